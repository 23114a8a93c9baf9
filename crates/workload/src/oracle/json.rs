//! JSON with numbers left as they are written: no digit of a decimal may get lost before it is compared.

use anyhow::{Context as _, bail};

#[derive(Debug)]
pub(super) enum Json {
    Null,
    /// A number, `true` or `false`.
    Literal(String),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut rest = text;
        let json = value(&mut rest)?;
        anyhow::ensure!(rest.trim_start().is_empty(), "text after the JSON value");
        Ok(json)
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Literal(text) | Self::Text(text) => Some(text),
            Self::Null | Self::Array(_) | Self::Object(_) => None,
        }
    }
}

fn value(rest: &mut &str) -> anyhow::Result<Json> {
    *rest = rest.trim_start();
    Ok(match rest.as_bytes().first().context("JSON ends early")? {
        b'[' => {
            let mut elements = Vec::new();
            sequence(rest, ']', |rest| {
                elements.push(value(rest)?);
                Ok(())
            })?;
            Json::Array(elements)
        }
        b'{' => {
            let mut fields = Vec::new();
            sequence(rest, '}', |rest| {
                *rest = rest.trim_start();
                let name = string(rest)?;
                *rest = rest.trim_start().strip_prefix(':').context("no colon after a name")?;
                fields.push((name, value(rest)?));
                Ok(())
            })?;
            Json::Object(fields)
        }
        b'"' => Json::Text(string(rest)?),
        _ => {
            let end =
                rest.find(|c: char| matches!(c, ',' | ']' | '}' | ':') || c.is_whitespace()).unwrap_or(rest.len());
            let (literal, after) = rest.split_at(end);
            *rest = after;
            if literal == "null" { Json::Null } else { Json::Literal(literal.to_owned()) }
        }
    })
}

fn sequence(rest: &mut &str, close: char, mut item: impl FnMut(&mut &str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut chars = rest.chars();
    chars.next();
    *rest = chars.as_str().trim_start();
    if let Some(after) = rest.strip_prefix(close) {
        *rest = after;
        return Ok(());
    }
    loop {
        item(rest)?;
        *rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(close) {
            *rest = after;
            return Ok(());
        }
        *rest = rest.strip_prefix(',').context("no comma between elements")?;
    }
}

fn string(rest: &mut &str) -> anyhow::Result<String> {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => {
                let (token, after) = rest.split_at(at + 1);
                *rest = after;
                return serde_json::from_str(token).context("not a JSON string");
            }
            _ => {}
        }
    }
    bail!("a JSON string without its end")
}
