//! Typed values, decoded from Cassandra's serialised form (`serializers/`, `db/marshal/`).

use std::net::IpAddr;

use bytes::Bytes;
use num_bigint::BigInt;
use uuid::Uuid;

use crate::CqlType;

#[derive(Clone, PartialEq, Debug)]
pub enum CqlValue {
    Text(String),
    Blob(Bytes),
    Boolean(bool),
    TinyInt(i8),
    SmallInt(i16),
    Int(i32),
    BigInt(i64),
    Varint(BigInt),
    /// `unscaled * 10^-scale`.
    Decimal {
        unscaled: BigInt,
        scale: i32,
    },
    Float(f32),
    Double(f64),
    /// Milliseconds since 1970.
    Timestamp(i64),
    /// Days since 1970-01-01.
    Date(i64),
    /// Nanoseconds since midnight.
    Time(i64),
    Uuid(Uuid),
    Inet(IpAddr),
    Duration {
        months: i32,
        days: i32,
        nanoseconds: i64,
    },
    List(Vec<Option<CqlValue>>),
    Set(Vec<CqlValue>),
    Map(Vec<(CqlValue, Option<CqlValue>)>),
    Tuple(Vec<Option<CqlValue>>),
    Udt(Vec<(String, Option<CqlValue>)>),
    Vector(Vec<CqlValue>),
    /// A zero-length value of a type for which that is no ordinary value ("empty": not NULL, but nothing either).
    Empty,
}

#[derive(thiserror::Error, Debug, PartialEq, Eq)]
pub enum ValueError {
    #[error("a value of {length} bytes is not a {ty}")]
    Length { ty: &'static str, length: usize },
    #[error("text is not valid UTF-8")]
    Utf8,
    #[error("a collection is cut off")]
    Truncated,
}

/// Nested frozen types deeper than this are refused rather than recursed into.
const DEPTH_MAX: usize = 64;

impl CqlValue {
    /// Decodes one serialised value: of a simple cell, a key column, or a frozen collection.
    pub fn decode(ty: &CqlType, bytes: &[u8]) -> Result<Self, ValueError> {
        decode(ty, bytes, DEPTH_MAX)
    }
}

fn fixed<const N: usize>(ty: &'static str, bytes: &[u8]) -> Result<[u8; N], ValueError> {
    bytes.try_into().map_err(|_| ValueError::Length { ty, length: bytes.len() })
}

fn decode(ty: &CqlType, bytes: &[u8], depth: usize) -> Result<CqlValue, ValueError> {
    if depth == 0 {
        return Err(ValueError::Truncated);
    }
    if bytes.is_empty() {
        return Ok(match ty {
            CqlType::Ascii | CqlType::Text => CqlValue::Text(String::new()),
            CqlType::Blob | CqlType::Custom(_) => CqlValue::Blob(Bytes::new()),
            _ => CqlValue::Empty,
        });
    }
    Ok(match ty {
        CqlType::Ascii | CqlType::Text => {
            CqlValue::Text(std::str::from_utf8(bytes).map_err(|_| ValueError::Utf8)?.to_owned())
        }
        CqlType::Blob | CqlType::Custom(_) => CqlValue::Blob(Bytes::copy_from_slice(bytes)),
        CqlType::Empty => CqlValue::Empty,
        CqlType::Boolean => CqlValue::Boolean(fixed::<1>("boolean", bytes)? != [0]),
        CqlType::TinyInt => CqlValue::TinyInt(i8::from_be_bytes(fixed("tinyint", bytes)?)),
        CqlType::SmallInt => CqlValue::SmallInt(i16::from_be_bytes(fixed("smallint", bytes)?)),
        CqlType::Int => CqlValue::Int(i32::from_be_bytes(fixed("int", bytes)?)),
        CqlType::BigInt => CqlValue::BigInt(i64::from_be_bytes(fixed("bigint", bytes)?)),
        CqlType::Counter => CqlValue::BigInt(i64::from_be_bytes(fixed("counter", bytes)?)),
        CqlType::Varint => CqlValue::Varint(BigInt::from_signed_bytes_be(bytes)),
        CqlType::Decimal => {
            let (scale, unscaled) =
                bytes.split_first_chunk::<4>().ok_or(ValueError::Length { ty: "decimal", length: bytes.len() })?;
            CqlValue::Decimal { unscaled: BigInt::from_signed_bytes_be(unscaled), scale: i32::from_be_bytes(*scale) }
        }
        CqlType::Float => CqlValue::Float(f32::from_be_bytes(fixed("float", bytes)?)),
        CqlType::Double => CqlValue::Double(f64::from_be_bytes(fixed("double", bytes)?)),
        CqlType::Timestamp => CqlValue::Timestamp(i64::from_be_bytes(fixed("timestamp", bytes)?)),
        CqlType::Date => CqlValue::Date(i64::from(u32::from_be_bytes(fixed("date", bytes)?)) - (1 << 31)),
        CqlType::Time => CqlValue::Time(i64::from_be_bytes(fixed("time", bytes)?)),
        CqlType::Uuid => CqlValue::Uuid(Uuid::from_bytes(fixed("uuid", bytes)?)),
        CqlType::TimeUuid => CqlValue::Uuid(Uuid::from_bytes(fixed("timeuuid", bytes)?)),
        CqlType::Inet => CqlValue::Inet(match bytes.len() {
            4 => IpAddr::from(fixed::<4>("inet", bytes)?),
            _ => IpAddr::from(fixed::<16>("inet", bytes)?),
        }),
        CqlType::Duration => duration(bytes)?,
        CqlType::List { element, .. } => CqlValue::List(
            counted(bytes, 1)?.into_iter().map(|part| optional(element, part, depth)).collect::<Result<_, _>>()?,
        ),
        CqlType::Set { element, .. } => CqlValue::Set(
            counted(bytes, 1)?
                .into_iter()
                .map(|part| decode(element, part.ok_or(ValueError::Truncated)?, depth - 1))
                .collect::<Result<_, _>>()?,
        ),
        CqlType::Map { key, value, .. } => CqlValue::Map(
            counted(bytes, 2)?
                .chunks_exact(2)
                .map(|pair| {
                    let name = decode(key, pair[0].ok_or(ValueError::Truncated)?, depth - 1)?;
                    Ok((name, optional(value, pair[1], depth)?))
                })
                .collect::<Result<_, ValueError>>()?,
        ),
        CqlType::Tuple(fields) => CqlValue::Tuple(
            fields
                .iter()
                .zip(parts(bytes, fields.len())?)
                .map(|(ty, part)| optional(ty, part, depth))
                .collect::<Result<_, _>>()?,
        ),
        CqlType::Udt { fields, .. } => CqlValue::Udt(
            fields
                .iter()
                .zip(parts(bytes, fields.len())?)
                .map(|((name, ty), part)| Ok((name.clone(), optional(ty, part, depth)?)))
                .collect::<Result<_, ValueError>>()?,
        ),
        CqlType::Vector { element, dimension } => {
            let elements = vector_elements(element, *dimension, bytes)?;
            CqlValue::Vector(elements.map(|value| decode(element, value?, depth - 1)).collect::<Result<_, _>>()?)
        }
    })
}

fn optional(ty: &CqlType, part: Option<&[u8]>, depth: usize) -> Result<Option<CqlValue>, ValueError> {
    part.map(|part| decode(ty, part, depth - 1)).transpose()
}

/// One i32-length-prefixed part; length -1 is null, the end of the bytes `None`.
fn part<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, ValueError> {
    let (length, tail) = rest.split_first_chunk::<4>().ok_or(ValueError::Truncated)?;
    let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
        *rest = tail;
        return Ok(None);
    };
    let (part, tail) = tail.split_at_checked(length).ok_or(ValueError::Truncated)?;
    *rest = tail;
    Ok(Some(part))
}

/// The parts of a frozen collection, `per_element` each; the count is not trusted for allocation.
fn counted(bytes: &[u8], per_element: usize) -> Result<Vec<Option<&[u8]>>, ValueError> {
    let (count, mut rest) = bytes.split_first_chunk::<4>().ok_or(ValueError::Truncated)?;
    let count = usize::try_from(i32::from_be_bytes(*count)).map_err(|_| ValueError::Truncated)?;
    let count = count.checked_mul(per_element).filter(|n| *n <= rest.len() / 4).ok_or(ValueError::Truncated)?;
    (0..count).map(|_| part(&mut rest)).collect()
}

/// The fields of a tuple or frozen UDT; trailing ones that were added later are missing in old values.
fn parts(bytes: &[u8], count: usize) -> Result<Vec<Option<&[u8]>>, ValueError> {
    let mut rest = bytes;
    (0..count).map(|_| if rest.is_empty() { Ok(None) } else { part(&mut rest) }).collect()
}

/// The serialised elements of a vector (`VectorType.FixedLengthSerializer` and `VariableLengthSerializer`).
pub(crate) fn vector_elements<'a>(
    element: &CqlType,
    dimension: u32,
    bytes: &'a [u8],
) -> Result<impl Iterator<Item = Result<&'a [u8], ValueError>> + use<'a>, ValueError> {
    let dimension = usize::try_from(dimension).map_err(|_| ValueError::Truncated)?;
    let width = element.fixed_length().filter(|width| *width > 0);
    if width.is_some_and(|width| width.checked_mul(dimension) != Some(bytes.len())) {
        return Err(ValueError::Length { ty: "vector", length: bytes.len() });
    }
    let mut rest = bytes;
    Ok((0..dimension).map(move |_| {
        let length = match width {
            Some(width) => width,
            None => usize::try_from(unsigned_vint(&mut rest)?).map_err(|_| ValueError::Truncated)?,
        };
        let (value, tail) = rest.split_at_checked(length).ok_or(ValueError::Truncated)?;
        rest = tail;
        Ok(value)
    }))
}

/// As many leading one bits in the first byte, so many bytes follow (`utils/vint/VIntCoding.java`).
fn unsigned_vint(rest: &mut &[u8]) -> Result<u64, ValueError> {
    let (first, tail) = rest.split_first().ok_or(ValueError::Truncated)?;
    let extra = usize::try_from(first.leading_ones()).expect("at most eight");
    let (more, tail) = tail.split_at_checked(extra).ok_or(ValueError::Truncated)?;
    *rest = tail;
    let head = if extra >= 7 { 0 } else { u64::from(first & (0x7f >> extra)) };
    Ok(more.iter().fold(head, |value, byte| (value << 8) | u64::from(*byte)))
}

fn signed_vint(rest: &mut &[u8]) -> Result<i64, ValueError> {
    let zigzag = unsigned_vint(rest)?;
    Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
}

fn duration(bytes: &[u8]) -> Result<CqlValue, ValueError> {
    let mut rest = bytes;
    let narrow =
        |value: i64| i32::try_from(value).map_err(|_| ValueError::Length { ty: "duration", length: bytes.len() });
    let months = narrow(signed_vint(&mut rest)?)?;
    let days = narrow(signed_vint(&mut rest)?)?;
    Ok(CqlValue::Duration { months, days, nanoseconds: signed_vint(&mut rest)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(parts: &[Option<&[u8]>]) -> Vec<u8> {
        let part = |part: &Option<&[u8]>| match part {
            None => (-1i32).to_be_bytes().to_vec(),
            Some(bytes) => [&i32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat(),
        };
        parts.iter().flat_map(part).collect()
    }

    #[test]
    fn fields_that_an_old_value_lacks_are_null() {
        let fields = || vec![("a".to_owned(), CqlType::Int), ("b".to_owned(), CqlType::Text)];
        let udt = CqlType::Udt { keyspace: "k".into(), name: "u".into(), fields: fields(), frozen: true };
        let one = framed(&[Some(&7i32.to_be_bytes())]);
        let expected = vec![("a".to_owned(), Some(CqlValue::Int(7))), ("b".to_owned(), None)];
        assert_eq!(CqlValue::decode(&udt, &one), Ok(CqlValue::Udt(expected)));
        let tuple = CqlType::Tuple(vec![CqlType::Int, CqlType::Text, CqlType::Int]);
        let two = framed(&[None, Some(b"")]);
        let expected = vec![None, Some(CqlValue::Text(String::new())), None];
        assert_eq!(CqlValue::decode(&tuple, &two), Ok(CqlValue::Tuple(expected)));
    }

    #[test]
    fn frozen_types_nest() {
        let list = |element| CqlType::List { element: Box::new(element), frozen: true };
        let set = CqlType::Set { element: Box::new(CqlType::SmallInt), frozen: true };
        let map = CqlType::Map { key: Box::new(CqlType::Text), value: Box::new(list(set)), frozen: true };
        let counted = |n: i32, parts: &[Option<&[u8]>]| [&n.to_be_bytes()[..], &framed(parts)].concat();
        let set = counted(1, &[Some(&[0xff, 0xfe])]);
        let list = counted(2, &[Some(&set), None]);
        let bytes = counted(1, &[Some(b"key"), Some(&list)]);
        let inner = CqlValue::List(vec![Some(CqlValue::Set(vec![CqlValue::SmallInt(-2)])), None]);
        assert_eq!(
            CqlValue::decode(&map, &bytes),
            Ok(CqlValue::Map(vec![(CqlValue::Text("key".into()), Some(inner))]))
        );
        for end in 1..bytes.len() {
            assert!(CqlValue::decode(&map, &bytes[..end]).is_err(), "cut at {end}");
        }
        assert!(CqlValue::decode(&map, &i32::MAX.to_be_bytes()).is_err(), "a count that lies");
    }

    #[test]
    fn the_ends_of_scalar_types_are_read() {
        use CqlType as T;
        let big = |bytes: &[u8]| BigInt::from_signed_bytes_be(bytes);
        let months = 2_147_483_647;
        let cases: Vec<(T, &[u8], CqlValue)> = vec![
            (T::Date, &[0x00, 0, 0, 0], CqlValue::Date(-(1 << 31))),
            (T::Date, &[0x80, 0, 0, 0], CqlValue::Date(0)),
            (T::TinyInt, &[0x80], CqlValue::TinyInt(-128)),
            (T::Boolean, &[0x02], CqlValue::Boolean(true)),
            (T::Varint, &[0x80, 0, 0], CqlValue::Varint(BigInt::from(-8_388_608))),
            (T::Decimal, &[0xff, 0xff, 0xff, 0xfd, 0x0c], CqlValue::Decimal { unscaled: big(&[12]), scale: -3 }),
            (T::Inet, &[127, 0, 0, 1], CqlValue::Inet([127, 0, 0, 1].into())),
            (T::Duration, &[0x01, 0x03, 0x05], CqlValue::Duration { months: -1, days: -2, nanoseconds: -3 }),
            (
                T::Duration,
                &[0xf0, 0xff, 0xff, 0xff, 0xfe, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe],
                CqlValue::Duration { months, days: 0, nanoseconds: i64::MAX },
            ),
            (T::Int, &[], CqlValue::Empty),
            (T::Blob, &[], CqlValue::Blob(Bytes::new())),
            (T::Empty, &[], CqlValue::Empty),
        ];
        for (ty, bytes, value) in cases {
            assert_eq!(CqlValue::decode(&ty, bytes), Ok(value), "{ty:?}");
        }
        for (ty, bytes) in [(T::Int, &[1u8, 2][..]), (T::Inet, &[1, 2, 3]), (T::Decimal, &[1]), (T::Duration, &[0xff])]
        {
            assert!(CqlValue::decode(&ty, bytes).is_err(), "{ty:?}");
        }
    }

    #[test]
    fn a_vector_larger_than_memory_is_refused() {
        let inner = CqlType::Vector { element: Box::new(CqlType::Uuid), dimension: u32::MAX };
        let outer = CqlType::Vector { element: Box::new(inner), dimension: u32::MAX };
        assert!(CqlValue::decode(&outer, &[0; 16]).is_err());
    }
}
