//! JSON as PostgreSQL shows `jsonb`: without spaces but one after `,` and `:`, keys by length and bytes, the last of equal ones,
//! numbers without exponent.

use std::{borrow::Cow, fmt::Write as _};

/// The text `jsonb::text` gives for JSON that [`crate::json`] wrote; `None` if it is none.
pub(crate) fn canonical(json: &str) -> Option<String> {
    let mut parser = Parser { rest: json.trim_ascii() };
    let value = parser.value()?;
    let mut out = String::with_capacity(json.len() + 16);
    value.write(&mut out);
    parser.rest.is_empty().then_some(out)
}

enum Value<'j> {
    /// `null`, `true`, `false`.
    Word(&'j str),
    Number(&'j str),
    String(Cow<'j, str>),
    Array(Vec<Value<'j>>),
    Object(Vec<(Cow<'j, str>, Value<'j>)>),
}

struct Parser<'j> {
    rest: &'j str,
}

impl<'j> Parser<'j> {
    fn take(&mut self, length: usize) -> Option<&'j str> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest.trim_ascii_start();
        Some(taken)
    }

    fn has(&mut self, mark: char) -> bool {
        let has = self.rest.starts_with(mark);
        if has {
            self.take(1);
        }
        has
    }

    fn value(&mut self) -> Option<Value<'j>> {
        match self.rest.bytes().next()? {
            b'"' => self.string().map(Value::String),
            b'[' => {
                self.take(1);
                let mut elements = Vec::new();
                if self.has(']') {
                    return Some(Value::Array(elements));
                }
                loop {
                    elements.push(self.value()?);
                    if !self.has(',') {
                        return self.has(']').then_some(Value::Array(elements));
                    }
                }
            }
            b'{' => {
                self.take(1);
                let mut entries = Vec::new();
                if self.has('}') {
                    return Some(Value::Object(entries));
                }
                loop {
                    let key = self.string()?;
                    if !self.has(':') {
                        return None;
                    }
                    entries.push((key, self.value()?));
                    if !self.has(',') {
                        return self.has('}').then(|| Value::Object(in_order(entries)));
                    }
                }
            }
            first => {
                let length = self.rest.find([',', ']', '}', ' ']).unwrap_or(self.rest.len());
                let word = self.take(length)?;
                Some(if first.is_ascii_alphabetic() { Value::Word(word) } else { Value::Number(word) })
            }
        }
    }

    fn string(&mut self) -> Option<Cow<'j, str>> {
        let bytes = self.rest.as_bytes();
        if bytes.first() != Some(&b'"') {
            return None;
        }
        let mut end = 1;
        let mut plain = true;
        while *bytes.get(end)? != b'"' {
            plain &= bytes[end] != b'\\';
            end += 1 + usize::from(bytes[end] == b'\\');
        }
        let text = self.take(end + 1)?;
        if plain {
            return text.strip_prefix('"')?.strip_suffix('"').map(Cow::Borrowed);
        }
        serde_json::from_str(text).ok().map(Cow::Owned)
    }
}

fn in_order<'j>(mut entries: Vec<(Cow<'j, str>, Value<'j>)>) -> Vec<(Cow<'j, str>, Value<'j>)> {
    entries.reverse();
    entries.sort_by(|(a, _), (b, _)| (a.len(), a.as_bytes()).cmp(&(b.len(), b.as_bytes())));
    entries.dedup_by(|later, earlier| later.0 == earlier.0);
    entries
}

impl Value<'_> {
    fn write(&self, out: &mut String) {
        match self {
            Self::Word(word) => out.push_str(word),
            Self::Number(number) => write_number(out, number),
            Self::String(text) => write_string(out, text),
            Self::Array(elements) => {
                out.push('[');
                for (index, element) in elements.iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    element.write(out);
                }
                out.push(']');
            }
            Self::Object(entries) => {
                out.push('{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    out.push_str(if index > 0 { ", " } else { "" });
                    write_string(out, key);
                    out.push_str(": ");
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

/// `escape_json` of PostgreSQL.
fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            control if control < ' ' => {
                write!(out, "\\u{:04x}", u32::from(control)).expect("a String takes all text");
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// `numeric_out(numeric_in(...))`.
fn write_number(out: &mut String, number: &str) {
    let (negative, number) = number.strip_prefix('-').map_or((false, number), |number| (true, number));
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let digits = format!("{whole}{fraction}");
    let length = |text: &str| i64::try_from(text.len()).unwrap_or(i64::MAX);
    // Where the decimal point stands in the digits, and how many of them follow it.
    let point = length(whole) + exponent;
    let scale = (length(fraction) - exponent).max(0);
    let digit =
        |at: i64| usize::try_from(at).ok().and_then(|at| digits.as_bytes().get(at)).map_or('0', |b| char::from(*b));
    let whole: String = (0..point.max(0)).map(digit).collect();
    let whole = whole.trim_start_matches('0');
    let fraction: String = (point..point + scale).map(digit).collect();
    let is_zero = digits.bytes().all(|digit| digit == b'0');
    out.push_str(if negative && !is_zero { "-" } else { "" });
    out.push_str(if whole.is_empty() { "0" } else { whole });
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(&fraction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_as_postgresql_shows_it() {
        for (written, shown) in [
            (
                r#"[1,2.50,25e-1,-0.0,1e3,1.5e-7,"a\u0001\n\"\\ñ"]"#,
                r#"[1, 2.50, 2.5, 0.0, 1000, 0.00000015, "a\u0001\n\"\\ñ"]"#,
            ),
            (r#"{"bb":1,"a":{"x":null},"c":true,"a":[]}"#, r#"{"a": [], "c": true, "bb": 1}"#),
            ("5e-3", "0.005"),
            ("-12e-3", "-0.012"),
            ("007e-1", "0.7"),
            ("{}", "{}"),
        ] {
            assert_eq!(canonical(written).as_deref(), Some(shown));
        }
        assert_eq!(canonical("[1"), None);
    }
}
