//! Hashes that PostgreSQL and we compute alike, so that rows are compared without being moved.
//!
//! `hash_record_extended(ROW(...), seed)` is PostgreSQL's own typed hash: Jenkins' lookup3 of each column, seeded, and
//! `31 * sum + hash` over them. It builds no text, but it is internal, so it is tried on known values when a table is
//! opened (`Inner::agrees`). Where it gives something else (a big-endian server, a changed hash) SHA-256 over the
//! binary forms of the columns takes its place: documented functions only, and slower.
//!
//! The seed matters. Unseeded the hash is linear: values swapped between two rows cancel out in the sum of a leaf. So the
//! values of a row are seeded by the hash of its key.
//!
//! Two of PostgreSQL's hashes say too little: that of `numeric` knows no sign, that of `jsonb` no brackets. Their binary
//! form and their text are hashed instead.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};
use tokio_postgres::types::Type;

use crate::value::sql_name;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Digest {
    Native,
    Portable,
}

/// A value in PostgreSQL's binary form, with its type; `None` is NULL. Of `jsonb`, the text PostgreSQL shows.
pub(crate) type Element<'v> = (&'v Type, Option<&'v [u8]>);

impl Digest {
    /// The expression, a `bigint`, over columns of the relation.
    pub(crate) fn sql<'c>(self, columns: impl IntoIterator<Item = (&'c str, &'c Type)>, seed: &str) -> String {
        let columns = columns.into_iter();
        match self {
            Self::Native => {
                let elements: Vec<String> = columns
                    .map(|(name, ty)| match *ty {
                        Type::NUMERIC => number(name),
                        Type::JSONB => format!("{name}::text collate \"C\""),
                        Type::TEXT => format!("{name} collate \"C\""),
                        _ => name.to_owned(),
                    })
                    .collect();
                format!("hash_record_extended(row({}), {seed})", elements.join(", "))
            }
            Self::Portable => {
                let element = |(name, ty): (&str, &Type)| {
                    let sent = match *ty {
                        Type::JSONB => format!("textsend({name}::text)"),
                        Type::BYTEA => name.to_owned(),
                        Type::NUMERIC => number(name),
                        _ => format!("{}({name})", send_function(ty)),
                    };
                    format!(" || coalesce(int4send(octet_length({sent})) || {sent}, '\\xffffffff')")
                };
                let elements: String = columns.map(element).collect();
                format!("('x' || encode(substring(sha256(int8send({seed}){elements}) for 8), 'hex'))::bit(64)::bigint")
            }
        }
    }

    /// What the expression gives for these values.
    pub(crate) fn of<'v>(self, elements: impl IntoIterator<Item = Element<'v>>, seed: i64) -> i64 {
        let elements = elements.into_iter().map(|(ty, value)| (ty, value.map(|value| without_scale(ty, value))));
        match self {
            Self::Native => elements
                .fold(0u64, |sum, (ty, value)| {
                    let hash = value.map_or(0, |value| native(ty, &value, seed.cast_unsigned()));
                    sum.wrapping_mul(31).wrapping_add(hash)
                })
                .cast_signed(),
            Self::Portable => {
                let mut hash = Sha256::new_with_prefix(seed.to_be_bytes());
                for (_, value) in elements {
                    let value = value.as_deref();
                    let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap_or(i32::MAX));
                    hash.update(length.to_be_bytes());
                    hash.update(value.unwrap_or_default());
                }
                let mut first = [0; 8];
                first.copy_from_slice(&hash.finalize()[..8]);
                i64::from_be_bytes(first)
            }
        }
    }

    /// A query of one `bigint` for each of [`Self::expected`], in order.
    pub(crate) fn trial(self) -> String {
        let types = sample_types();
        let names: Vec<String> = (0..types.len()).map(|at| format!("c{at}")).collect();
        let columns = names.iter().map(String::as_str).zip(&types);
        let (digest, list) = (self.sql(columns, "seed"), names.join(", "));
        let rows: Vec<String> = SAMPLES
            .iter()
            .zip(SEEDS.iter().cycle())
            .map(|(values, seed)| {
                let typed = |(text, ty): (&Option<&str>, &Type)| match text {
                    Some(text) => format!("'{text}'::{}", sql_name(ty)),
                    None => format!("null::{}", sql_name(ty)),
                };
                let values: Vec<String> = values.iter().zip(&types).map(typed).collect();
                format!("({seed}::bigint, {})", values.join(", "))
            })
            .collect();
        format!("-- cdc: try the hash\nselect {digest} from (values {}) as v(seed, {list})", rows.join(", "))
    }

    /// What [`Self::trial`] must answer: computed from the same values in their binary forms.
    pub(crate) fn expected(self) -> Vec<i64> {
        let types = sample_types();
        let seeds = SEEDS.iter().cycle();
        sample_bytes()
            .iter()
            .zip(seeds)
            .map(|(row, seed)| self.of(types.iter().zip(row.iter().map(Option::as_deref)), *seed))
            .collect()
    }
}

/// Binary form without the scale: 2.5 and 2.50 are equal, and PostgreSQL gives infinities a scale.
fn number(name: &str) -> String {
    format!("overlay(numeric_send({name}) placing '\\x0000'::bytea from 7 for 2)")
}

fn without_scale<'v>(ty: &Type, value: &'v [u8]) -> Cow<'v, [u8]> {
    match value.split_at_checked(6) {
        Some((head, tail)) if *ty == Type::NUMERIC && tail.len() >= 2 => [head, &[0, 0], &tail[2..]].concat().into(),
        _ => value.into(),
    }
}

fn send_function(ty: &Type) -> String {
    match *ty {
        Type::TIMESTAMPTZ | Type::UUID | Type::INET | Type::DATE | Type::TIME => {
            format!("{}_send", ty.name())
        }
        _ => format!("{}send", ty.name()),
    }
}

const SEEDS: [i64; 3] = [0, -7_046_029_254_386_353_131, 42];

fn sample_types() -> [Type; 15] {
    [
        Type::INT2,
        Type::INT4,
        Type::INT8,
        Type::NUMERIC,
        Type::FLOAT4,
        Type::FLOAT8,
        Type::BOOL,
        Type::TEXT,
        Type::BYTEA,
        Type::UUID,
        Type::INET,
        Type::DATE,
        Type::TIME,
        Type::TIMESTAMPTZ,
        Type::JSONB,
    ]
}

/// One row per line, by [`sample_types`]; their binary forms are [`sample_bytes`].
const SAMPLES: [[Option<&str>; 15]; 3] = [
    [
        Some("-2"),
        Some("-3"),
        Some("-4294967296"),
        Some("-10000.50"),
        Some("-0"),
        Some("NaN"),
        Some("true"),
        Some("ñ漢 twelve bytes and more"),
        Some("\\x00ff"),
        Some("00112233-4455-6677-8899-aabbccddeeff"),
        Some("127.0.0.1"),
        Some("1999-12-31"),
        Some("00:00:00.000001"),
        Some("2000-01-01T00:00:00.001Z"),
        Some("[1, [2.50], \"\\n\"]"),
    ],
    [
        Some("7"),
        Some("2147483647"),
        Some("9223372036854775807"),
        Some("0.00"),
        Some("1.5"),
        Some("-2.25"),
        Some("false"),
        Some(""),
        Some(""),
        Some("00000000-0000-0000-0000-000000000000"),
        Some("::1"),
        Some("2000-01-02"),
        Some("23:59:59.999999"),
        Some("1999-12-31T23:59:59.999Z"),
        Some("{}"),
    ],
    [None; 15],
];

fn sample_bytes() -> [Vec<Option<Vec<u8>>>; 3] {
    let uuid = |byte: fn(u8) -> u8| (0..16).map(byte).collect::<Vec<u8>>();
    let first: [Vec<u8>; 15] = [
        (-2i16).to_be_bytes().into(),
        (-3i32).to_be_bytes().into(),
        (-4_294_967_296i64).to_be_bytes().into(),
        [3u16, 1, 0x4000, 2, 1, 0, 5000].iter().flat_map(|word| word.to_be_bytes()).collect(),
        (-0f32).to_be_bytes().into(),
        f64::NAN.to_be_bytes().into(),
        vec![1],
        "ñ漢 twelve bytes and more".into(),
        vec![0, 255],
        uuid(|n| n * 17),
        vec![2, 32, 0, 4, 127, 0, 0, 1],
        (-1i32).to_be_bytes().into(),
        1i64.to_be_bytes().into(),
        1_000i64.to_be_bytes().into(),
        "[1, [2.50], \"\\n\"]".into(),
    ];
    let second: [Vec<u8>; 15] = [
        7i16.to_be_bytes().into(),
        i32::MAX.to_be_bytes().into(),
        i64::MAX.to_be_bytes().into(),
        [0u16, 0, 0, 2].iter().flat_map(|word| word.to_be_bytes()).collect(),
        1.5f32.to_be_bytes().into(),
        (-2.25f64).to_be_bytes().into(),
        vec![0],
        Vec::new(),
        Vec::new(),
        uuid(|_| 0),
        [&[3, 128, 0, 16][..], &[0; 15], &[1]].concat(),
        1i32.to_be_bytes().into(),
        86_399_999_999i64.to_be_bytes().into(),
        (-1_000i64).to_be_bytes().into(),
        "{}".into(),
    ];
    [first.map(Some).into(), second.map(Some).into(), vec![None; 15]]
}

/// The hash of one value, as the type's `..._extended` hash function gives it.
fn native(ty: &Type, value: &[u8], seed: u64) -> u64 {
    let word = |value: &[u8]| value.first_chunk().map_or(0, |word| u32::from_be_bytes(*word));
    let long = |value: &[u8]| value.first_chunk().map_or(0, |long| u64::from_be_bytes(*long));
    match *ty {
        Type::BOOL => hash_word(u32::from(value.first() == Some(&1)), seed),
        Type::INT2 => {
            let number = value.first_chunk().map_or(0, |number| i16::from_be_bytes(*number));
            hash_word(i32::from(number).cast_unsigned(), seed)
        }
        Type::INT4 | Type::DATE => hash_word(word(value), seed),
        Type::INT8 | Type::TIME | Type::TIMESTAMPTZ => {
            let number = long(value);
            #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
            let (low, high) = (number as u32, (number >> 32) as u32);
            hash_word(low ^ if number.cast_signed() >= 0 { high } else { !high }, seed)
        }
        Type::FLOAT4 => hash_float(f64::from(f32::from_bits(word(value))), seed),
        Type::FLOAT8 => hash_float(f64::from_bits(long(value)), seed),
        // Family, prefix length, address: without what the binary form says besides.
        Type::INET if value.len() > 4 => hash_bytes(&[&value[..2], &value[4..]].concat(), seed),
        _ => hash_bytes(value, seed),
    }
}

fn hash_float(number: f64, seed: u64) -> u64 {
    if number == 0.0 {
        return seed;
    }
    let number = if number.is_nan() { f64::from_bits(0x7ff8_0000_0000_0000) } else { number };
    hash_bytes(&number.to_le_bytes(), seed)
}

/// `hash_bytes_extended` of `common/hashfn.c`.
fn hash_bytes(key: &[u8], seed: u64) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "a value is below 1 GiB")]
    let mut state = start(key.len() as u32, seed);
    let mut blocks = key.chunks_exact(12);
    let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
    for block in &mut blocks {
        state = mix([
            state[0].wrapping_add(word(block)),
            state[1].wrapping_add(word(&block[4..])),
            state[2].wrapping_add(word(&block[8..])),
        ]);
    }
    let rest = blocks.remainder();
    let mut tail = [0; 12];
    tail[..rest.len()].copy_from_slice(rest);
    last([
        state[0].wrapping_add(word(&tail)),
        state[1].wrapping_add(word(&tail[4..])),
        // The lowest byte of it is reserved for the length.
        state[2].wrapping_add(word(&tail[8..]) << 8),
    ])
}

/// `hash_bytes_uint32_extended`.
fn hash_word(key: u32, seed: u64) -> u64 {
    let [a, b, c] = start(4, seed);
    last([a.wrapping_add(key), b, c])
}

fn start(length: u32, seed: u64) -> [u32; 3] {
    let word = 0x9e37_79b9u32.wrapping_add(length).wrapping_add(3_923_095);
    if seed == 0 {
        return [word; 3];
    }
    #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
    let (low, high) = (seed as u32, (seed >> 32) as u32);
    mix([word.wrapping_add(high), word.wrapping_add(low), word])
}

fn mix([mut a, mut b, mut c]: [u32; 3]) -> [u32; 3] {
    for rotations in [[4, 6, 8], [16, 19, 4]] {
        a = a.wrapping_sub(c) ^ c.rotate_left(rotations[0]);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(rotations[1]);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(rotations[2]);
        b = b.wrapping_add(a);
    }
    [a, b, c]
}

fn last([mut a, mut b, mut c]: [u32; 3]) -> u64 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    u64::from(b) << 32 | u64::from(c)
}
