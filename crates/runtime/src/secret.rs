//! Values that must not be shown.

use std::path::{Path, PathBuf};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A password or token. `Debug`, `Display` and `Serialize` write `[redacted]`.
///
/// In configuration every `password` may instead be given as `password_file`, every `salt` as `salt_file`, every `token` as
/// `token_file`, every `secret_id` as `secret_id_file`: see [`crate::config`].
#[derive(Clone)]
pub struct Secret {
    value: String,
    file: Option<PathBuf>,
}

/// How [`crate::config`] hands over what it has read from a file: a section with these keys.
pub(crate) const FILE: &str = "\u{0}file";
pub(crate) const CONTENT: &str = "\u{0}content";

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self { value: value.into(), file: None }
    }

    /// The value itself, for the driver that needs it; of a file as it was when the process started.
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// As it is now, if it came from a file; the last one that could be read, if the file cannot be.
    #[must_use]
    pub fn now(&self) -> Self {
        let read = self.file.as_deref().and_then(|file| read(file).ok());
        Self { value: read.unwrap_or_else(|| self.value.clone()), file: self.file.clone() }
    }
}

/// A file's content, less a trailing line break.
pub(crate) fn read(file: &Path) -> std::io::Result<String> {
    let content = std::fs::read_to_string(file)?;
    let content = content.strip_suffix('\n').unwrap_or(&content);
    Ok(content.strip_suffix('\r').unwrap_or(content).to_owned())
}

/// By value, wherever it came from.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for Secret {}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Given;
        impl<'de> Visitor<'de> for Given {
            type Value = Secret;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Secret, E> {
                Ok(Secret::new(value))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
                let mut secret = Secret::new("");
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    match key.as_str() {
                        FILE => secret.file = Some(value.into()),
                        CONTENT => secret.value = value,
                        _ => return Err(A::Error::custom("invalid type: map, expected a string")),
                    }
                }
                Ok(secret)
            }
        }
        deserializer.deserialize_any(Given)
    }
}

const REDACTED: &str = "[redacted]";

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(REDACTED)
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown_by_any_formatting() {
        let secret = Secret::new("hunter2");
        let shown = format!("{secret} {secret:?} {}", serde_json::to_string(&secret).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_secret_of_a_file_is_the_files_and_outlives_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        let secret = Secret { value: "old".to_owned(), file: Some(file.clone()) };
        assert_eq!(secret.now().expose(), "old", "there is no such file yet");
        std::fs::write(&file, "new\n").unwrap();
        assert_eq!((secret.now().expose(), secret.expose()), ("new", "old"));
    }
}
