//! Small files of the agent's own state: versioned, checksummed, and whole or as before after a crash.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    /// CRC-32 of `body`.
    crc: u32,
    /// JSON, as text so that the checksum covers exactly these bytes.
    body: String,
}

pub(crate) fn seal<T: Serialize>(version: u32, body: &T) -> Vec<u8> {
    let body = serde_json::to_string(body).expect("state is plain data");
    let envelope = Envelope { version, crc: crc32fast::hash(body.as_bytes()), body };
    serde_json::to_vec(&envelope).expect("an envelope is plain data")
}

/// The version found, if it is another; `Err(None)` if the bytes are not what was sealed.
pub(crate) fn unseal<T: DeserializeOwned>(version: u32, text: &[u8]) -> Result<T, Option<u32>> {
    let envelope: Envelope = serde_json::from_slice(text).map_err(|_| None)?;
    if crc32fast::hash(envelope.body.as_bytes()) != envelope.crc {
        return Err(None);
    }
    if envelope.version != version {
        return Err(Some(envelope.version));
    }
    serde_json::from_str(&envelope.body).map_err(|_| None)
}

/// Writes a file so that after a crash it is either the old or the new one.
pub(crate) fn replace(directory: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}
