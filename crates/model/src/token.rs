//! Murmur3 token of a partition key (`utils/MurmurHash.java`, `dht/Murmur3Partitioner.java`).

/// Place of a partition on the ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub i64);

/// A part of the ring, without its start and with its end; the start `i64::MIN` is before all tokens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub struct TokenRange {
    pub start: i64,
    pub end: i64,
}

impl TokenRange {
    pub const RING: Self = Self { start: i64::MIN, end: i64::MAX };

    /// In so many parts of about one size, in order.
    pub fn parts(self, parts: u64) -> impl Iterator<Item = Self> {
        let at = move |part: u64| {
            let offset = u128::from(self.width()) * u128::from(part) / u128::from(parts.max(1));
            self.start.wrapping_add_unsigned(u64::try_from(offset).unwrap_or(u64::MAX))
        };
        (0..parts.max(1))
            .map(move |part| Self { start: at(part), end: at(part + 1) })
            .filter(|part| part.start < part.end)
    }

    /// How many tokens it has.
    pub fn width(self) -> u64 {
        self.end.abs_diff(self.start)
    }
}

const C1: u64 = 0x87c3_7b91_1142_53d5;
const C2: u64 = 0x4cf5_ad43_2745_937f;

fn fmix(mut k: u64) -> u64 {
    k ^= k >> 33;
    k = k.wrapping_mul(0xff51_afd7_ed55_8ccd);
    k ^= k >> 33;
    k = k.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ (k >> 33)
}

fn mix1(k: u64) -> u64 {
    k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2)
}

fn mix2(k: u64) -> u64 {
    k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1)
}

/// First word of Cassandra's `murmur3_x64_128`, which sign-extends the tail bytes, unlike the standard one.
#[expect(clippy::cast_sign_loss, clippy::cast_possible_wrap, reason = "the hash works on bit patterns")]
pub fn token(key: &[u8]) -> Token {
    let word = |bytes: &[u8]| bytes.first_chunk::<8>().map_or(0, |w| u64::from_le_bytes(*w));
    let (mut h1, mut h2) = (0u64, 0u64);
    let mut blocks = key.chunks_exact(16);
    for block in &mut blocks {
        h1 ^= mix1(word(block));
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= mix2(word(&block[8..]));
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let tail = blocks.remainder();
    let gather = |bytes: &[u8]| {
        bytes.iter().enumerate().fold(0u64, |k, (i, byte)| k ^ ((i64::from(*byte as i8) as u64) << (8 * i)))
    };
    if tail.len() > 8 {
        h2 ^= mix2(gather(&tail[8..]));
    }
    if !tail.is_empty() {
        h1 ^= mix1(gather(&tail[..tail.len().min(8)]));
    }
    let length = key.len() as u64;
    h1 ^= length;
    h2 ^= length;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    h1 = fmix(h1).wrapping_add(fmix(h2));
    match h1 as i64 {
        i64::MIN => Token(i64::MAX),
        hash => Token(hash),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_equal_cassandras() {
        // SELECT token(k) FROM t on Cassandra 5.0.5.
        assert_eq!(token(&1i32.to_be_bytes()), Token(-4_069_959_284_402_364_209));
        assert_eq!(token(b""), Token(0));
    }
}
