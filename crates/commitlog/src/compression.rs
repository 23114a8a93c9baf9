//! Cassandra's compressors (`org/apache/cassandra/io/compress`), as far as reading a section needs them.
//!
//! A section is decoded as a whole or not at all. All but Deflate say inside of their output how long the plain bytes
//! are; that number, and the one Cassandra writes in front, are claims: nothing is allocated for one that the bytes at
//! hand cannot hold or that is over the limit.

use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::get_frame_content_size;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Compressor {
    Lz4,
    Snappy,
    Deflate,
    Zstd,
    Noop,
}

/// Why a section gives no bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SectionFault {
    /// Not what the compressor or the cipher wrote.
    Corrupt,
    /// It says itself that it is longer than the limit.
    TooLarge(u64),
}

const PACKAGE: &str = "org.apache.cassandra.io.compress.";

impl Compressor {
    /// By the name of its class, short or with its package. `None`: a user's own class, or not a class.
    pub(crate) fn by_class(name: &str) -> Option<Self> {
        Some(match name.strip_prefix(PACKAGE).unwrap_or(name) {
            "LZ4Compressor" => Self::Lz4,
            "SnappyCompressor" => Self::Snappy,
            "DeflateCompressor" => Self::Deflate,
            "ZstdCompressor" => Self::Zstd,
            "NoopCompressor" => Self::Noop,
            _ => return None,
        })
    }

    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Lz4 => "LZ4Compressor",
            Self::Snappy => "SnappyCompressor",
            Self::Deflate => "DeflateCompressor",
            Self::Zstd => "ZstdCompressor",
            Self::Noop => "NoopCompressor",
        }
    }

    /// Whether so many bytes can stand for so many plain ones.
    pub(crate) fn can_hold(self, stored: u64, plain: u64) -> bool {
        let ratio = match self {
            // A byte of a match's length.
            Self::Lz4 => 255,
            // A copy of 64 bytes in three.
            Self::Snappy => 22,
            // A match of 258 bytes in two bits.
            Self::Deflate => 1032,
            // A run of 128 KiB in four bytes.
            Self::Zstd => 32 << 10,
            Self::Noop => 1,
        };
        plain <= stored * ratio
    }

    /// The plain bytes: all of them, as many as the compressor says. `stated` is how many Cassandra says there are.
    pub(crate) fn decode(self, stored: &[u8], stated: u64, limit: u64) -> Result<Vec<u8>, SectionFault> {
        // What Java's deflater makes of nothing.
        if stored.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::Lz4 => {
                let (length, block) = stored.split_first_chunk::<4>().ok_or(SectionFault::Corrupt)?;
                let length = self.room(stored, u32::from_le_bytes(*length).into(), limit)?;
                let plain = lz4_flex::block::decompress(block, length).map_err(|_| SectionFault::Corrupt)?;
                if plain.len() == length { Ok(plain) } else { Err(SectionFault::Corrupt) }
            }
            Self::Snappy => {
                let length = snap::raw::decompress_len(stored).map_err(|_| SectionFault::Corrupt)?;
                self.room(stored, length as u64, limit)?;
                snap::raw::Decoder::new().decompress_vec(stored).map_err(|_| SectionFault::Corrupt)
            }
            Self::Deflate => self.inflate(stored, stated, limit),
            Self::Zstd => {
                let length = get_frame_content_size(stored).map_err(|_| SectionFault::Corrupt)?.unwrap_or(stated);
                zstd::bulk::decompress(stored, self.room(stored, length, limit)?).map_err(|_| SectionFault::Corrupt)
            }
            Self::Noop => self.room(stored, stored.len() as u64, limit).map(|_| stored.to_vec()),
        }
    }

    fn room(self, stored: &[u8], length: u64, limit: u64) -> Result<usize, SectionFault> {
        if !self.can_hold(stored.len() as u64, length) {
            return Err(SectionFault::Corrupt);
        }
        if length > limit {
            return Err(SectionFault::TooLarge(length));
        }
        usize::try_from(length).map_err(|_| SectionFault::TooLarge(length))
    }

    fn inflate(self, stored: &[u8], stated: u64, limit: u64) -> Result<Vec<u8>, SectionFault> {
        let mut stream = Decompress::new(true);
        let mut plain = Vec::with_capacity(self.room(stored, stated, limit).unwrap_or(0));
        loop {
            let before = (stream.total_in(), stream.total_out());
            let rest = usize::try_from(before.0).ok().and_then(|read| stored.get(read..)).unwrap_or_default();
            let status = stream.decompress_vec(rest, &mut plain, FlushDecompress::None);
            let after = (stream.total_in(), stream.total_out());
            match status {
                Ok(_) if after.1 > limit => return Err(SectionFault::TooLarge(after.1)),
                Ok(Status::StreamEnd) if after.0 == stored.len() as u64 => return Ok(plain),
                Ok(Status::Ok | Status::BufError) if plain.len() == plain.capacity() => {
                    plain.reserve_exact((plain.len() / 2).max(64 << 10));
                }
                // It may hold back output although there is room.
                Ok(Status::Ok | Status::BufError) if after != before => {}
                _ => return Err(SectionFault::Corrupt),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const ALL: [Compressor; 5] =
        [Compressor::Lz4, Compressor::Snappy, Compressor::Deflate, Compressor::Zstd, Compressor::Noop];

    fn encode(compressor: Compressor, plain: &[u8]) -> Vec<u8> {
        match compressor {
            Compressor::Lz4 => lz4_flex::block::compress_prepend_size(plain),
            Compressor::Snappy => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
            Compressor::Deflate => {
                let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
                stream.write_all(plain).unwrap();
                stream.finish().unwrap()
            }
            Compressor::Zstd => zstd::bulk::compress(plain, 3).unwrap(),
            Compressor::Noop => plain.to_vec(),
        }
    }

    #[test]
    fn the_most_compressible_bytes_are_plausible_and_bound_by_the_limit() {
        for compressor in ALL {
            for length in [0, 1, 100, 1 << 20] {
                let stored = encode(compressor, &vec![7; length]);
                let length = length as u64;
                let plain = compressor.decode(&stored, length, 1 << 20).expect("it decodes");
                assert!(plain.len() as u64 == length && plain.iter().all(|byte| *byte == 7), "{compressor:?}");
                // A false claim beside it changes nothing but, for want of a better one, what is allocated.
                for stated in [0, length / 2, u64::from(u32::MAX)] {
                    assert_eq!(compressor.decode(&stored, stated, 1 << 20).as_ref(), Ok(&plain), "{compressor:?}");
                }
                if length > 1 {
                    let fault = compressor.decode(&stored, length, length - 1).unwrap_err();
                    assert!(matches!(fault, SectionFault::TooLarge(_)), "{compressor:?}");
                }
            }
        }
    }

    #[test]
    fn a_cut_or_longer_section_is_corrupt() {
        let plain: Vec<u8> = (0..5000_u32).flat_map(u32::to_be_bytes).collect();
        for compressor in ALL.into_iter().filter(|compressor| *compressor != Compressor::Noop) {
            let stored = encode(compressor, &plain);
            for end in 1..stored.len() {
                assert!(compressor.decode(&stored[..end], 20_000, 1 << 20).is_err(), "{compressor:?} {end}");
            }
            let longer = [&stored[..], &[0]].concat();
            assert!(compressor.decode(&longer, 20_000, 1 << 20).is_err(), "{compressor:?}");
        }
    }

    #[test]
    fn a_class_goes_by_its_short_or_its_full_name() {
        assert_eq!(Compressor::by_class("ZstdCompressor"), Some(Compressor::Zstd));
        assert_eq!(Compressor::by_class("org.apache.cassandra.io.compress.LZ4Compressor"), Some(Compressor::Lz4));
        for name in ["com.acme.LZ4Compressor", "", "lz4compressor", PACKAGE] {
            assert_eq!(Compressor::by_class(name), None, "{name}");
        }
    }
}
