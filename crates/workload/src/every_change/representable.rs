//! Which values PostgreSQL's types hold as they are: those `docs/target.md` says nothing against.

use super::types::{Native, Place};

/// Years 1 to 9999, which every way of writing a date agrees on; days since -5877641-06-23, and milliseconds since 1970.
const DAYS: std::ops::RangeInclusive<u32> = (1 << 31) - 719_162..=(1 << 31) + 2_932_896;
const MILLISECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;
const LONGEST_SCALE: u32 = 1_000;

pub(super) fn holds(native: Native, place: Place, value: &[u8]) -> bool {
    match native {
        Native::Ascii | Native::Text => !value.contains(&0),
        Native::Blob => true,
        _ if value.is_empty() => false,
        Native::Date => value.try_into().is_ok_and(|days| DAYS.contains(&u32::from_be_bytes(days))),
        Native::Timestamp => value.try_into().is_ok_and(|time| MILLISECONDS.contains(&i64::from_be_bytes(time))),
        // Microseconds; what is below them is kept beside the row, but not of a key.
        Native::Time => place != Place::Key || value.try_into().is_ok_and(|time| i64::from_be_bytes(time) % 1_000 == 0),
        Native::Decimal => {
            value.first_chunk().is_some_and(|scale| i32::from_be_bytes(*scale).unsigned_abs() <= LONGEST_SCALE)
        }
        // A key of either is refused: PostgreSQL knows one zero, and one NaN.
        Native::Float => {
            place != Place::Key || value.try_into().is_ok_and(|bits| is_one(f32::from_be_bytes(bits).into()))
        }
        Native::Double => place != Place::Key || value.try_into().is_ok_and(|bits| is_one(f64::from_be_bytes(bits))),
        Native::BigInt
        | Native::Boolean
        | Native::Duration
        | Native::Inet
        | Native::Int
        | Native::SmallInt
        | Native::TimeUuid
        | Native::TinyInt
        | Native::Uuid
        | Native::Varint => true,
    }
}

fn is_one(number: f64) -> bool {
    !number.is_nan() && (number != 0.0 || number.is_sign_positive())
}
