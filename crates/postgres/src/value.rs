//! Values between Cassandra's serialised form and PostgreSQL's binary form.

use bytes::{BufMut, BytesMut};
use cdc_model::{CellValue, ColumnState, CqlType, CqlValue, LocalTime, ValueBytes, VisibleColumn};
use tokio_postgres::types::Type;

use crate::{OnUnrepresentable, json, number::number};

/// Why PostgreSQL cannot hold a value. Says nothing of the value itself.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unrepresentable {
    #[error("text contains a NUL character")]
    Nul,
    #[error("value is not a well-formed {0}")]
    Malformed(&'static str),
    #[error("{0} lies outside PostgreSQL's range")]
    Range(&'static str),
    #[error("value is larger than jsonb can be")]
    Size,
    #[error("a key column is empty or null")]
    NullKey,
    #[error("PostgreSQL cannot tell this {0} key from another one")]
    InexactKey(&'static str),
}

/// A value in PostgreSQL's binary form.
pub(crate) struct Encoded {
    /// `None` is NULL.
    pub(crate) bytes: Option<ValueBytes>,
    /// Whether [`decode`] gives back the very bytes.
    pub(crate) exact: bool,
}

/// Seconds, milliseconds and days between 1970-01-01 and PostgreSQL's epoch 2000-01-01.
const EPOCH_SECONDS: i64 = 946_684_800;
const EPOCH_MILLIS: i64 = EPOCH_SECONDS * 1000;
const EPOCH_DAYS: i64 = 10_957;
/// PostgreSQL's `MIN_TIMESTAMP` and `END_TIMESTAMP`, microseconds since 2000.
const TIMESTAMP_RANGE: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;
/// Days since 2000: Julian day 0 to `DATE_END_JULIAN`.
const DATE_RANGE: std::ops::Range<i64> = -2_451_545..2_145_031_949;
const DAY_NANOS: i64 = 86_400_000_000_000;
/// Bytes of strings in one `jsonb` (`JENTRY_OFFLENMASK`).
const JSONB_MAX: usize = 0x0fff_ffff;

/// The column type a CQL type gets.
pub(crate) fn pg_type(ty: &CqlType) -> Type {
    match ty {
        CqlType::Ascii | CqlType::Text | CqlType::Duration | CqlType::Empty => Type::TEXT,
        CqlType::TinyInt | CqlType::SmallInt => Type::INT2,
        CqlType::Int => Type::INT4,
        CqlType::BigInt | CqlType::Counter => Type::INT8,
        CqlType::Varint | CqlType::Decimal => Type::NUMERIC,
        CqlType::Float => Type::FLOAT4,
        CqlType::Double => Type::FLOAT8,
        CqlType::Boolean => Type::BOOL,
        CqlType::Blob | CqlType::Custom(_) => Type::BYTEA,
        CqlType::Uuid | CqlType::TimeUuid => Type::UUID,
        CqlType::Inet => Type::INET,
        CqlType::Date => Type::DATE,
        CqlType::Time => Type::TIME,
        CqlType::Timestamp => Type::TIMESTAMPTZ,
        CqlType::List { .. }
        | CqlType::Set { .. }
        | CqlType::Map { .. }
        | CqlType::Tuple(_)
        | CqlType::Udt { .. }
        | CqlType::Vector { .. } => Type::JSONB,
    }
}

/// The SQL name of a type [`pg_type`] gives.
pub(crate) fn sql_name(ty: &Type) -> &'static str {
    match *ty {
        Type::INT2 => "smallint",
        Type::INT4 => "integer",
        Type::INT8 => "bigint",
        Type::NUMERIC => "numeric",
        Type::FLOAT4 => "real",
        Type::FLOAT8 => "double precision",
        Type::BOOL => "boolean",
        Type::BYTEA => "bytea",
        Type::UUID => "uuid",
        Type::INET => "inet",
        Type::DATE => "date",
        Type::TIME => "time",
        Type::TIMESTAMPTZ => "timestamptz",
        Type::JSONB => "jsonb",
        _ => "text",
    }
}

/// Whether [`decode`] can rebuild values of the type (those that were encoded as exact).
pub(crate) fn is_reversible(ty: &CqlType) -> bool {
    match ty {
        CqlType::Ascii
        | CqlType::Text
        | CqlType::TinyInt
        | CqlType::SmallInt
        | CqlType::Int
        | CqlType::BigInt
        | CqlType::Float
        | CqlType::Double
        | CqlType::Boolean
        | CqlType::Blob
        | CqlType::Uuid
        | CqlType::TimeUuid
        | CqlType::Inet
        | CqlType::Date
        | CqlType::Time
        | CqlType::Timestamp => true,
        CqlType::Counter
        | CqlType::Varint
        | CqlType::Decimal
        | CqlType::Duration
        | CqlType::Empty
        | CqlType::Custom(_)
        | CqlType::List { .. }
        | CqlType::Set { .. }
        | CqlType::Map { .. }
        | CqlType::Tuple(_)
        | CqlType::Udt { .. }
        | CqlType::Vector { .. } => false,
    }
}

/// What is shown of a column, by a policy where PostgreSQL cannot hold it; `None` if nothing is.
pub(crate) fn encode_visible(
    ty: &CqlType,
    column: &ColumnState,
    now: LocalTime,
    policy: OnUnrepresentable,
) -> Option<Result<Encoded, Unrepresentable>> {
    let replace = policy == OnUnrepresentable::Replace;
    // Most columns are of this kind, and their values need no copy.
    if let ColumnState::Simple(cell) = column
        && let CellValue::Live(value) = &cell.value
    {
        return cell.is_live(now).then(|| relent(encode(ty, value, replace), policy));
    }
    let encoded = match column.visible(now)? {
        VisibleColumn::Simple(value) => encode(ty, &value, replace),
        VisibleColumn::Counter(total) => Ok(Encoded { bytes: Some(total.to_be_bytes().into()), exact: false }),
        VisibleColumn::Complex(elements) => json::complex(ty, &elements, replace)
            .and_then(|text| jsonb(&text))
            .map(|bytes| Encoded { bytes: Some(bytes), exact: false }),
    };
    Some(relent(encoded, policy))
}

fn relent(encoded: Result<Encoded, Unrepresentable>, policy: OnUnrepresentable) -> Result<Encoded, Unrepresentable> {
    match policy {
        OnUnrepresentable::Skip => encoded.or(Ok(Encoded { bytes: None, exact: false })),
        OnUnrepresentable::Quarantine | OnUnrepresentable::Replace => encoded,
    }
}

/// `replace`: what PostgreSQL cannot hold becomes the nearest it can.
pub(crate) fn encode(ty: &CqlType, value: &ValueBytes, replace: bool) -> Result<Encoded, Unrepresentable> {
    let exact = |bytes: ValueBytes| Ok(Encoded { bytes: Some(bytes), exact: true });
    let inexact = |bytes: ValueBytes| Ok(Encoded { bytes: Some(bytes), exact: false });
    let sized = |name, length| if value.len() == length { Ok(()) } else { Err(Unrepresentable::Malformed(name)) };
    match ty {
        CqlType::Ascii | CqlType::Text => {
            let text = std::str::from_utf8(value).map_err(|_| Unrepresentable::Malformed("text"))?;
            return match text.contains('\0') {
                false => exact(value.clone()),
                true if replace => inexact(without_nul(text).into_bytes().into()),
                true => Err(Unrepresentable::Nul),
            };
        }
        CqlType::Blob => return exact(value.clone()),
        CqlType::Custom(_) => return inexact(value.clone()),
        _ if value.is_empty() => return Ok(Encoded { bytes: None, exact: false }),
        _ => {}
    }
    let malformed = |name| move |_| Unrepresentable::Malformed(name);
    match ty {
        // Handled above, where a length of zero is a value like any other.
        CqlType::Ascii | CqlType::Text | CqlType::Blob | CqlType::Custom(_) => exact(value.clone()),
        CqlType::Empty => Ok(Encoded { bytes: None, exact: false }),
        CqlType::SmallInt => sized("smallint", 2).and_then(|()| exact(value.clone())),
        CqlType::Int => sized("int", 4).and_then(|()| exact(value.clone())),
        CqlType::BigInt | CqlType::Counter => sized("bigint", 8).and_then(|()| exact(value.clone())),
        CqlType::Uuid | CqlType::TimeUuid => sized("uuid", 16).and_then(|()| exact(value.clone())),
        CqlType::TinyInt => {
            sized("tinyint", 1)?;
            exact(i16::from(value[0].cast_signed()).to_be_bytes().into())
        }
        CqlType::Boolean => {
            sized("boolean", 1)?;
            Ok(Encoded { bytes: Some([u8::from(value[0] != 0)].into()), exact: value[0] <= 1 })
        }
        CqlType::Float => {
            let number = f32::from_be_bytes(value.as_ref().try_into().map_err(malformed("float"))?);
            Ok(Encoded { bytes: Some(value.clone()), exact: !number.is_nan() })
        }
        CqlType::Double => {
            let number = f64::from_be_bytes(value.as_ref().try_into().map_err(malformed("double"))?);
            Ok(Encoded { bytes: Some(value.clone()), exact: !number.is_nan() })
        }
        CqlType::Timestamp => {
            let millis = i64::from_be_bytes(value.as_ref().try_into().map_err(malformed("timestamp"))?);
            match timestamp(millis) {
                Err(_) if replace => inexact(if millis < 0 { i64::MIN } else { i64::MAX }.to_be_bytes().into()),
                micros => exact(micros?.to_be_bytes().into()),
            }
        }
        CqlType::Date => {
            let days = u32::from_be_bytes(value.as_ref().try_into().map_err(malformed("date"))?);
            let days = i64::from(days) - (1 << 31) - EPOCH_DAYS;
            match i32::try_from(days) {
                Ok(days) if DATE_RANGE.contains(&i64::from(days)) => exact(days.to_be_bytes().into()),
                _ if replace => inexact(if days < 0 { i32::MIN } else { i32::MAX }.to_be_bytes().into()),
                _ => Err(Unrepresentable::Range("date")),
            }
        }
        CqlType::Time => {
            let nanos = i64::from_be_bytes(value.as_ref().try_into().map_err(malformed("time"))?);
            let within = nanos.clamp(0, DAY_NANOS - 1);
            if within != nanos && !replace {
                return Err(Unrepresentable::Range("time"));
            }
            let micros = (within / 1000).to_be_bytes();
            Ok(Encoded { bytes: Some(micros.into()), exact: nanos % 1000 == 0 && within == nanos })
        }
        CqlType::Inet => {
            // Address family as PostgreSQL numbers it, prefix length, not a network, length, address.
            let head: [u8; 4] = match value.len() {
                4 => [2, 32, 0, 4],
                16 => [3, 128, 0, 16],
                _ => return Err(Unrepresentable::Malformed("inet")),
            };
            exact([&head, value.as_ref()].concat().into())
        }
        CqlType::Varint
        | CqlType::Decimal
        | CqlType::Duration
        | CqlType::List { .. }
        | CqlType::Set { .. }
        | CqlType::Map { .. }
        | CqlType::Tuple(_)
        | CqlType::Udt { .. }
        | CqlType::Vector { .. } => {
            let value = CqlValue::decode(ty, value).map_err(|_| Unrepresentable::Malformed(type_name(ty)))?;
            inexact(match &value {
                CqlValue::Varint(unscaled) => number(unscaled, 0, replace)?.numeric(),
                CqlValue::Decimal { unscaled, scale } => number(unscaled, *scale, replace)?.numeric(),
                CqlValue::Duration { months, days, nanoseconds } => {
                    json::duration(*months, *days, *nanoseconds).into_bytes().into()
                }
                nested => jsonb(&json::value(nested, replace)?)?,
            })
        }
    }
}

/// Encodes a key column: never NULL, and distinct wherever Cassandra's keys are.
pub(crate) fn encode_key(ty: &CqlType, value: &ValueBytes) -> Result<ValueBytes, Unrepresentable> {
    let encoded = encode(ty, value, false)?;
    // PostgreSQL's btree takes the two zeros for one.
    let minus_zero = matches!(ty, CqlType::Float | CqlType::Double)
        && value.first() == Some(&0x80)
        && value.iter().skip(1).all(|b| *b == 0);
    match encoded.bytes {
        None => Err(Unrepresentable::NullKey),
        Some(_) if is_reversible(ty) && (!encoded.exact || minus_zero) => {
            Err(Unrepresentable::InexactKey(type_name(ty)))
        }
        Some(bytes) => Ok(bytes),
    }
}

/// The bytes Cassandra had for a value of a reversible type.
pub(crate) fn decode(ty: &CqlType, value: ValueBytes) -> Option<ValueBytes> {
    Some(match ty {
        CqlType::TinyInt => value.get(1..)?.into(),
        CqlType::Timestamp => {
            let micros = i64::from_be_bytes(value.as_ref().try_into().ok()?);
            (micros.div_euclid(1000) + EPOCH_MILLIS).to_be_bytes().into()
        }
        CqlType::Date => {
            let days = i64::from(i32::from_be_bytes(value.as_ref().try_into().ok()?));
            let days = u32::try_from(days + EPOCH_DAYS + (1 << 31)).ok()?;
            days.to_be_bytes().into()
        }
        CqlType::Time => (i64::from_be_bytes(value.as_ref().try_into().ok()?) * 1000).to_be_bytes().into(),
        CqlType::Inet if value.len() >= 4 => value[4..].into(),
        _ => value,
    })
}

/// Microseconds since 2000 of milliseconds since 1970.
fn timestamp(millis: i64) -> Result<i64, Unrepresentable> {
    millis
        .checked_sub(EPOCH_MILLIS)
        .and_then(|millis| millis.checked_mul(1000))
        .filter(|micros| TIMESTAMP_RANGE.contains(micros))
        .ok_or(Unrepresentable::Range("timestamp"))
}

/// A `timestamptz` of seconds since 1970; the last one PostgreSQL has for anything later.
pub(crate) fn timestamptz(seconds: i64) -> ValueBytes {
    let micros = timestamp(seconds.saturating_mul(1000)).ok();
    micros.unwrap_or(TIMESTAMP_RANGE.end - 1).to_be_bytes().into()
}

/// Text without the one character PostgreSQL has no place for.
pub(crate) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn jsonb(text: &str) -> Result<ValueBytes, Unrepresentable> {
    if text.len() > JSONB_MAX {
        return Err(Unrepresentable::Size);
    }
    let mut out = BytesMut::with_capacity(1 + text.len());
    out.put_u8(1);
    out.put_slice(text.as_bytes());
    Ok(out.freeze().into())
}

fn type_name(ty: &CqlType) -> &'static str {
    match ty {
        CqlType::Ascii | CqlType::Text => "text",
        CqlType::BigInt => "bigint",
        CqlType::Blob => "blob",
        CqlType::Boolean => "boolean",
        CqlType::Counter => "counter",
        CqlType::Date => "date",
        CqlType::Decimal => "decimal",
        CqlType::Double => "double",
        CqlType::Duration => "duration",
        CqlType::Empty => "empty",
        CqlType::Float => "float",
        CqlType::Inet => "inet",
        CqlType::Int => "int",
        CqlType::SmallInt => "smallint",
        CqlType::Time => "time",
        CqlType::Timestamp => "timestamp",
        CqlType::TimeUuid => "timeuuid",
        CqlType::TinyInt => "tinyint",
        CqlType::Uuid => "uuid",
        CqlType::Varint => "varint",
        CqlType::List { .. } => "list",
        CqlType::Set { .. } => "set",
        CqlType::Map { .. } => "map",
        CqlType::Tuple(_) => "tuple",
        CqlType::Udt { .. } => "user-defined type",
        CqlType::Vector { .. } => "vector",
        CqlType::Custom(_) => "custom type",
    }
}
