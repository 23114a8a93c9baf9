//! What is wrong with a configuration, as sentences.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use super::SECRETS;

/// One fault: the key, what is wrong with it, what to write instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// As in `kafka.bootstrap_servers`; empty for the file as a whole.
    pub path: String,
    pub message: String,
    pub line: Option<usize>,
    /// The environment variable that set the value.
    pub variable: Option<String>,
}

impl Fault {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), line: None, variable: None }
    }

    /// Of a sentence that begins with the key, as in `kafka.partitions is 0: use 1 or more`.
    pub fn of_sentence(sentence: &str) -> Self {
        match sentence.split_once(' ') {
            Some((key, message)) if key.contains('.') => Self::new(key.trim_end_matches(':'), message),
            _ => Self::new("", sentence),
        }
    }

    pub(super) fn segments(&self) -> Vec<String> {
        self.path.split('.').map(str::to_owned).collect()
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (&self.variable, self.line) {
            (Some(variable), _) => write!(f, "{variable}: ")?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            (None, None) => {}
        }
        if !self.path.is_empty() {
            write!(f, "{} ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a file.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors {
    pub file: PathBuf,
    pub faults: Vec<Fault>,
}

impl Display for ConfigErrors {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let count = self.faults.len();
        write!(f, "configuration {} has {count} fault{}", self.file.display(), if count == 1 { "" } else { "s" })?;
        for fault in &self.faults {
            write!(f, "\n  {}", fault.to_string().replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

/// The closest of some names to one that is mistyped, if any is close.
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(name.len()) / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// What serde says, taken apart.
pub(super) enum Complaint {
    UnknownKey { key: String, known: Vec<String> },
    UnknownVariant { value: String, known: Vec<String> },
    Missing { key: String },
    Wrong { got: String, expected: String },
    Other(String),
}

impl Complaint {
    pub(super) fn parse(message: &str) -> Self {
        let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        if let Some(rest) = message.strip_prefix("unknown field ") {
            let mut names = quoted(rest).into_iter();
            return Self::UnknownKey { key: names.next().unwrap_or_default(), known: names.collect() };
        }
        if let Some(rest) = message.strip_prefix("unknown variant ") {
            let mut names = quoted(rest).into_iter();
            return Self::UnknownVariant { value: names.next().unwrap_or_default(), known: names.collect() };
        }
        if let Some(rest) = message.strip_prefix("missing field ") {
            return Self::Missing { key: quoted(rest).into_iter().next().unwrap_or_default() };
        }
        let wrong = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
        if let Some((got, expected)) = wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
            return Self::Wrong { got: got.to_owned(), expected: expected.to_owned() };
        }
        Self::Other(message.to_owned())
    }

    pub(super) fn expects_text(&self) -> bool {
        matches!(self, Self::Wrong { expected, .. } if expected.contains("string"))
    }

    /// `hidden`: the value is one that was put together from elsewhere.
    pub(super) fn into_fault(self, path: &[String], hidden: bool) -> Fault {
        let is_secret = hidden || path.iter().any(|key| is_secret(key));
        let message = match self {
            Self::UnknownKey { key, known } => {
                let mut known: Vec<&str> = known.iter().map(String::as_str).collect();
                for (secret, in_file) in SECRETS {
                    if known.contains(&secret) {
                        known.push(in_file);
                    }
                }
                match closest(&key, known.iter().copied()) {
                    Some(meant) => format!("is not a known key; did you mean `{meant}`?"),
                    None if known.is_empty() => "is not a known key; its section has none".to_owned(),
                    None => format!("is not a known key; the section has: {}", known.join(", ")),
                }
            }
            Self::UnknownVariant { .. } if is_secret => "has a value that is not known".to_owned(),
            Self::UnknownVariant { value, known } => match closest(&value, known.iter().map(String::as_str)) {
                Some(meant) => format!("is `{value}`; did you mean `{meant}`? (one of: {})", known.join(", ")),
                None => format!("is `{value}`; use one of: {}", known.join(", ")),
            },
            Self::Missing { .. } => format!("is missing; add it:\n{}", lines_to_add(path)),
            Self::Wrong { expected, .. } if is_secret => {
                format!("has a value of the wrong type; expected {}", plain(&expected))
            }
            Self::Wrong { got, expected } => {
                let hint = if expected.contains("string") && !got.starts_with(['m', 's', 'u']) {
                    "; put it in quotes"
                } else {
                    ""
                };
                format!("is {}, expected {}{hint}", plain(&got), plain(&expected))
            }
            Self::Other(_) if is_secret => "has a value that is not valid".to_owned(),
            Self::Other(message) => format!("is not valid: {message}"),
        };
        Fault::new(path.join("."), message)
    }
}

fn is_secret(key: &str) -> bool {
    let names_file = SECRETS.iter().any(|(_, in_file)| *in_file == key);
    !names_file && ["password", "secret", "token", "private_key", "salt"].iter().any(|word| key.contains(word))
}

/// serde's names for types, as someone who writes YAML calls them.
fn plain(what: &str) -> String {
    let (name, value) = what.split_once(' ').unwrap_or((what, ""));
    match (name, value) {
        ("unit", _) => "empty".to_owned(),
        ("map", _) => "a section".to_owned(),
        ("sequence", _) => "a list".to_owned(),
        ("a", "sequence") => "a list".to_owned(),
        ("a", "string") => "text".to_owned(),
        ("struct", _) => "a section".to_owned(),
        ("string", value) => format!("the text {value}"),
        ("integer", value) => format!("the number {value}"),
        ("floating", value) => format!("the number {}", value.trim_start_matches("point ")),
        ("boolean", value) => value.to_owned(),
        ("a", "boolean") => "true or false".to_owned(),
        ("path", "string") => "a path".to_owned(),
        ("u8" | "u16" | "u32" | "u64" | "usize" | "nonzero", _) => format!("a whole number{}", range(name)),
        ("i8" | "i16" | "i32" | "i64" | "isize", _) => "a whole number".to_owned(),
        ("f32" | "f64", _) => "a number".to_owned(),
        _ => what.to_owned(),
    }
}

fn range(unsigned: &str) -> &'static str {
    match unsigned {
        "u8" => " from 0 to 255",
        "u16" => " from 0 to 65535",
        _ => " of at least 0",
    }
}

fn lines_to_add(path: &[String]) -> String {
    let mut lines = Vec::new();
    for (depth, key) in path.iter().enumerate() {
        let value = if depth + 1 == path.len() { " ..." } else { "" };
        lines.push(format!("{}{key}:{value}", "  ".repeat(depth + 2)));
    }
    lines.join("\n")
}
