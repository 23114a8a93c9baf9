//! Java keystores, as far as Cassandra's `JKSKeyProvider` takes a secret key out of one.
//!
//! The form is told from the file, as Java does for `JKS` and `PKCS12`: [JCEKS](jceks) and [PKCS#12](pkcs12) hold
//! secret keys, JKS cannot.

mod der;
mod jceks;
mod pkcs12;

use std::{fs, io, path::Path, sync::Arc};

#[derive(thiserror::Error, Debug)]
pub enum KeystoreError {
    #[error("cannot read keystore {path}")]
    Io { path: std::path::PathBuf, source: io::Error },
    #[error("the keystore is a {form}, which {reason}; convert it with keytool -importkeystore -deststoretype pkcs12")]
    Unsupported { form: String, reason: &'static str },
    #[error("the keystore is damaged: {reason}")]
    Damaged { reason: &'static str },
    #[error("the keystore does not open: its password is another, or the file is damaged")]
    Password,
    #[error("key {alias} does not open: its password is another; set its own as key_password if it has one")]
    KeyPassword { alias: String },
    #[error("the keystore has no key {alias}, only: {known}")]
    NoSuchKey { alias: String, known: String },
}

/// The keystore of `transparent_data_encryption_options`, opened. Neither keys nor passwords show in its `Debug`.
#[derive(Clone)]
pub struct Keystore(Arc<Content>);

struct Content {
    entries: Vec<Entry>,
    /// Of the keys.
    password: String,
}

struct Entry {
    alias: String,
    sealed: Sealed,
}

enum Sealed {
    /// Not sealed at all.
    Plain(Vec<u8>),
    Jceks(jceks::SealedKey),
    Pkcs12(pkcs12::SealedKey),
}

impl std::fmt::Debug for Keystore {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let aliases: Vec<_> = self.0.entries.iter().map(|entry| &entry.alias).collect();
        out.debug_struct("Keystore").field("aliases", &aliases).finish_non_exhaustive()
    }
}

/// Far beyond any keystore; it is read as a whole.
const BYTES_MAX: u64 = 16 << 20;
/// Java's own bound for the rounds a file may ask for.
const ROUNDS_MAX: u32 = 5_000_000;

impl Keystore {
    /// `key_password`: Cassandra's `key_password`; the keystore's own if `None` or empty.
    pub fn open(path: &Path, password: &str, key_password: Option<&str>) -> Result<Self, KeystoreError> {
        let failed = |source| KeystoreError::Io { path: path.to_owned(), source };
        if fs::metadata(path).map_err(failed)?.len() > BYTES_MAX {
            return Err(KeystoreError::Damaged { reason: "it is over 16 MiB" });
        }
        Self::parse(&fs::read(path).map_err(failed)?, password, key_password)
    }

    /// As [`Self::open`], of the file's bytes.
    pub fn parse(bytes: &[u8], password: &str, key_password: Option<&str>) -> Result<Self, KeystoreError> {
        let entries = match bytes {
            [0xce, 0xce, 0xce, 0xce, ..] => jceks::parse(bytes, password)?,
            [0xfe, 0xed, 0xfe, 0xed, ..] => {
                let reason = "cannot hold the secret key of an encrypted commit log";
                return Err(KeystoreError::Unsupported { form: "JKS".into(), reason });
            }
            [0x30, ..] => pkcs12::parse(bytes, password)?,
            _ => return Err(KeystoreError::Damaged { reason: "it is neither JCEKS nor PKCS#12" }),
        };
        let password = key_password.filter(|password| !password.is_empty()).unwrap_or(password).to_owned();
        Ok(Self(Arc::new(Content { entries, password })))
    }

    /// Of keys that come from elsewhere, as those of a `key_provider` of one's own: alias and bytes.
    pub fn of_keys(keys: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let entries = keys.into_iter().map(|(alias, key)| Entry { alias, sealed: Sealed::Plain(key) }).collect();
        Self(Arc::new(Content { entries, password: String::new() }))
    }

    /// The bytes of the secret key. Java does not tell aliases apart by case.
    pub(crate) fn key(&self, alias: &str) -> Result<Vec<u8>, KeystoreError> {
        let Content { entries, password } = &*self.0;
        let Some(entry) = entries.iter().find(|entry| entry.alias.to_lowercase() == alias.to_lowercase()) else {
            let known: Vec<_> = entries.iter().map(|entry| entry.alias.as_str()).collect();
            return Err(KeystoreError::NoSuchKey { alias: alias.to_owned(), known: known.join(", ") });
        };
        let key = match &entry.sealed {
            Sealed::Plain(key) => Some(key.clone()),
            Sealed::Jceks(sealed) => sealed.open(password)?,
            Sealed::Pkcs12(sealed) => sealed.open(password)?,
        };
        key.ok_or_else(|| KeystoreError::KeyPassword { alias: alias.to_owned() })
    }
}

fn rounds(number: u64) -> Result<u32, KeystoreError> {
    let rounds = u32::try_from(number).ok().filter(|rounds| (1..=ROUNDS_MAX).contains(rounds));
    rounds.ok_or(KeystoreError::Damaged { reason: "it asks for no or too many rounds of hashing" })
}

/// UTF-16, big-endian, as Java's `char`s.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}
