//! The descriptor at the start of a segment: version, id and parameters as JSON, closed by a CRC.

use crc32fast::Hasher;
use serde_json::Value;

use crate::{compression::Compressor, encryption::CIPHER};

/// Version of the segment format, which decides how its payloads are decoded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Format {
    /// Cassandra 4.0, 4.1, and 5.0 with `storage_compatibility_mode: CASSANDRA_4`.
    V7,
    /// Cassandra 5.0: the same bytes, deletion times are unsigned.
    V8,
    /// Cassandra 6.0: an epoch per partition update.
    V9,
}

pub(crate) struct Header {
    pub(crate) format: Format,
    /// In bytes; the first sync marker follows.
    pub(crate) length: u64,
    pub(crate) encoding: Encoding,
}

/// What was done to the sections.
pub(crate) enum Encoding {
    Plain,
    Compressed(Compressor),
    Encrypted { alias: String, iv: Vec<u8> },
}

pub(crate) enum HeaderError {
    /// More bytes are needed, or none were written yet.
    Incomplete,
    Damaged(String),
    Unsupported(String),
}

/// Version, id and the length of the parameters.
const FIXED: usize = 14;
/// The longest header there can be.
pub(crate) const HEADER_MAX: usize = FIXED + 65_535 + 4;

pub(crate) fn parse(bytes: &[u8], id: u64) -> Result<Header, HeaderError> {
    let fixed = bytes.first_chunk::<FIXED>().ok_or(HeaderError::Incomplete)?;
    if *fixed == [0; FIXED] {
        return Err(HeaderError::Incomplete);
    }
    let (version, rest) = fixed.split_at(4);
    let (own_id, params_length) = rest.split_at(8);
    let params_end = FIXED + usize::from(u16::from_be_bytes([params_length[0], params_length[1]]));
    let params = bytes.get(FIXED..params_end).ok_or(HeaderError::Incomplete)?;
    let stored = bytes.get(params_end..params_end + 4).ok_or(HeaderError::Incomplete)?;

    let mut crc = Hasher::new();
    crc.update(version);
    crc.update(&own_id[4..]);
    crc.update(&own_id[..4]);
    // The two-byte length counts as a four-byte one.
    crc.update(&[0, 0]);
    crc.update(params_length);
    crc.update(params);
    if crc.finalize().to_be_bytes() != stored {
        return Err(HeaderError::Damaged("its CRC does not hold".into()));
    }
    if own_id != id.to_be_bytes() {
        return Err(HeaderError::Damaged(format!("it belongs to segment {}", word(own_id))));
    }
    let format = match word(version) {
        7 => Format::V7,
        8 => Format::V8,
        9 => Format::V9,
        other => {
            let reason = format!("its format version is {other}, this release reads 7 to 9 (Cassandra 4.0 to 6.0)");
            return Err(HeaderError::Unsupported(reason));
        }
    };
    Ok(Header { format, length: (params_end + 4) as u64, encoding: encoding(params)? })
}

fn encoding(params: &[u8]) -> Result<Encoding, HeaderError> {
    let params: Value = serde_json::from_slice(params)
        .map_err(|error| HeaderError::Damaged(format!("its parameters are not JSON: {error}")))?;
    let text = |name: &str| params.get(name).and_then(Value::as_str);
    // As in Cassandra: encrypted if both stand there, whatever is said of compression.
    if let (Some(cipher), Some(alias)) = (text("encCipher"), text("encKeyAlias")) {
        if cipher != CIPHER {
            let reason = format!("it is encrypted with {cipher}, this release decrypts {CIPHER}");
            return Err(HeaderError::Unsupported(reason));
        }
        let iv = text("encIV").and_then(unhex);
        let iv = iv.ok_or_else(|| HeaderError::Damaged("its encIV is no initialisation vector".into()))?;
        return Ok(Encoding::Encrypted { alias: alias.to_owned(), iv });
    }
    match params.get("compressionClass") {
        None | Some(Value::Null) => Ok(Encoding::Plain),
        Some(class) => match class.as_str().and_then(Compressor::by_class) {
            Some(compressor) => Ok(Encoding::Compressed(compressor)),
            None => Err(HeaderError::Unsupported(format!(
                "it is compressed with {class}, this release reads Cassandra's own LZ4Compressor, SnappyCompressor, \
                 DeflateCompressor, ZstdCompressor and NoopCompressor"
            ))),
        },
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| u8::try_from(high << 4 | low).ok()).collect()
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
