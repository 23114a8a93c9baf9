//! One text for each value, whichever store it came from.
//!
//! | type | text |
//! |---|---|
//! | text, ascii | quoted and escaped |
//! | integers, varint, decimal | digits without leading or trailing zeros |
//! | float, double | the shortest digits that read back the same; `-0` is `0` |
//! | timestamp, time, date | ms since 1970, µs since midnight (all that PostgreSQL's `time` can show), days since 1970 |
//! | blob | hexadecimal |
//! | list, tuple, vector | `[…]` |
//! | set, map | `{…}` sorted |
//! | user type | `(name=…)` sorted, NULL fields left out |

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use num_bigint::BigInt;
use scylla::frame::response::result::{CollectionType, ColumnType, NativeType};
use scylla::value::CqlValue;
use uuid::Uuid;

use super::json::Json;

pub(super) fn is_empty(canonical: &str) -> bool {
    matches!(canonical, "[]" | "{}" | "()")
}

/// A value as the driver gives it.
pub(super) fn value(value: &CqlValue) -> String {
    match value {
        CqlValue::Ascii(text) | CqlValue::Text(text) => format!("{text:?}"),
        CqlValue::Boolean(it) => it.to_string(),
        CqlValue::Blob(bytes) => hex(bytes),
        CqlValue::TinyInt(it) => it.to_string(),
        CqlValue::SmallInt(it) => it.to_string(),
        CqlValue::Int(it) => it.to_string(),
        CqlValue::BigInt(it) => it.to_string(),
        CqlValue::Counter(it) => it.0.to_string(),
        CqlValue::Varint(it) => BigInt::from_signed_bytes_be(it.as_signed_bytes_be_slice()).to_string(),
        CqlValue::Decimal(it) => {
            let (digits, scale) = it.as_signed_be_bytes_slice_and_exponent();
            decimal(&BigInt::from_signed_bytes_be(digits), scale.into())
        }
        CqlValue::Float(it) => float(f64::from(*it), it.to_string()),
        CqlValue::Double(it) => float(*it, it.to_string()),
        CqlValue::Uuid(it) => it.to_string(),
        CqlValue::Timeuuid(it) => Uuid::from_bytes(*it.as_bytes()).to_string(),
        CqlValue::Timestamp(it) => it.0.to_string(),
        CqlValue::Time(it) => (it.0 / 1_000).to_string(),
        CqlValue::Date(it) => (i64::from(it.0) - (1 << 31)).to_string(),
        CqlValue::Inet(it) => it.to_string(),
        CqlValue::Duration(it) => format!("{}mo{}d{}ns", it.months, it.days, it.nanoseconds),
        CqlValue::Empty => "empty".to_owned(),
        CqlValue::List(elements) | CqlValue::Vector(elements) => list(elements.iter().map(self::value)),
        CqlValue::Tuple(elements) => tuple(elements.iter().map(|it| it.as_ref().map(self::value)).collect()),
        CqlValue::Set(elements) => sorted(elements.iter().map(self::value).collect()),
        CqlValue::Map(pairs) => {
            sorted(pairs.iter().map(|(key, it)| format!("{}:{}", self::value(key), self::value(it))).collect())
        }
        CqlValue::UserDefinedType { fields, .. } => {
            let fields = fields.iter().filter_map(|(name, it)| Some(format!("{name}={}", self::value(it.as_ref()?))));
            user_type(fields.collect())
        }
        // The driver's enum may grow; an unknown value must never equal anything.
        other => format!("unknown to the oracle: {other:?}"),
    }
}

/// A column's text in PostgreSQL: JSON where the type is composed, the type's own text otherwise.
pub(super) fn parse(ty: &ColumnType<'_>, text: &str) -> anyhow::Result<String> {
    match ty {
        ColumnType::Native(native) => scalar(native, text),
        _ => from_json(ty, &Json::parse(text)?),
    }
}

fn from_json(ty: &ColumnType<'_>, json: &Json) -> anyhow::Result<String> {
    Ok(match (ty, json) {
        (ColumnType::Native(native), json) => scalar(native, json.text().context("expected a scalar")?)?,
        (ColumnType::Collection { typ: CollectionType::List(element), .. }, Json::Array(elements)) => {
            list(each(element, elements)?.into_iter())
        }
        (ColumnType::Vector { typ, .. }, Json::Array(elements)) => list(each(typ, elements)?.into_iter()),
        (ColumnType::Collection { typ: CollectionType::Set(element), .. }, Json::Array(elements)) => {
            sorted(each(element, elements)?)
        }
        (ColumnType::Collection { typ: CollectionType::Map(key, value), .. }, Json::Object(fields)) => {
            let pair = |(name, it): &(String, Json)| -> anyhow::Result<String> {
                // A key that is not text is an object's name in its own text form.
                Ok(format!("{}:{}", parse(key, name)?, from_json(value, it)?))
            };
            sorted(fields.iter().map(pair).collect::<Result<_, _>>()?)
        }
        (ColumnType::Collection { typ: CollectionType::Map(key, value), .. }, Json::Array(pairs)) => {
            let pair = |pair: &Json| -> anyhow::Result<String> {
                let (name, it) = match pair {
                    Json::Array(pair) if pair.len() == 2 => (&pair[0], &pair[1]),
                    Json::Object(fields) if fields.len() == 2 => {
                        let field = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, it)| it);
                        (field("key").context("no key")?, field("value").context("no value")?)
                    }
                    _ => bail!("a map's entry is neither [key, value] nor an object of both"),
                };
                Ok(format!("{}:{}", from_json(key, name)?, from_json(value, it)?))
            };
            sorted(pairs.iter().map(pair).collect::<Result<_, _>>()?)
        }
        (ColumnType::Tuple(types), Json::Array(elements)) => {
            let element = |(ty, it): (_, &Json)| if it.is_null() { Ok(None) } else { from_json(ty, it).map(Some) };
            tuple(types.iter().zip(elements).map(element).collect::<Result<_, _>>()?)
        }
        (ColumnType::UserDefinedType { definition, .. }, Json::Object(fields)) => {
            let mut out = Vec::new();
            for (name, it) in fields.iter().filter(|(_, it)| !it.is_null()) {
                let (_, ty) = definition
                    .field_types
                    .iter()
                    .find(|(field, _)| field == name)
                    .with_context(|| format!("field {name} is not in the user type"))?;
                out.push(format!("{name}={}", from_json(ty, it)?));
            }
            user_type(out)
        }
        _ => bail!("the JSON value has another shape than the type"),
    })
}

fn each(ty: &ColumnType<'_>, elements: &[Json]) -> anyhow::Result<Vec<String>> {
    elements.iter().map(|it| from_json(ty, it)).collect()
}

fn scalar(ty: &NativeType, text: &str) -> anyhow::Result<String> {
    Ok(match ty {
        NativeType::Ascii | NativeType::Text => format!("{text:?}"),
        NativeType::Boolean => text.parse::<bool>()?.to_string(),
        NativeType::Blob => {
            let digits = text.strip_prefix("\\x").or_else(|| text.strip_prefix("0x")).context("bytes without \\x")?;
            digits.to_ascii_lowercase()
        }
        NativeType::TinyInt
        | NativeType::SmallInt
        | NativeType::Int
        | NativeType::BigInt
        | NativeType::Counter
        | NativeType::Varint => text.parse::<BigInt>()?.to_string(),
        NativeType::Decimal => decimal_text(text)?,
        NativeType::Float => {
            let it: f32 = text.parse()?;
            float(f64::from(it), it.to_string())
        }
        NativeType::Double => {
            let it: f64 = text.parse()?;
            float(it, it.to_string())
        }
        NativeType::Uuid | NativeType::Timeuuid => text.parse::<Uuid>()?.to_string(),
        NativeType::Inet => text.split('/').next().unwrap_or(text).parse::<IpAddr>()?.to_string(),
        NativeType::Timestamp => timestamp(text)?.to_string(),
        NativeType::Date => days(text)?.to_string(),
        NativeType::Time => (nanoseconds(text)? / 1_000).to_string(),
        NativeType::Duration => duration(text)?,
        other => bail!("type {other:?} is unknown to the oracle"),
    })
}

fn list(elements: impl Iterator<Item = String>) -> String {
    format!("[{}]", elements.collect::<Vec<_>>().join(","))
}

/// A tuple written before its type grew has fewer elements than one with NULLs at its end.
fn tuple(mut elements: Vec<Option<String>>) -> String {
    while elements.last().is_some_and(Option::is_none) {
        elements.pop();
    }
    list(elements.into_iter().map(|it| it.unwrap_or_else(|| "null".to_owned())))
}

fn sorted(mut elements: Vec<String>) -> String {
    elements.sort_unstable();
    format!("{{{}}}", elements.join(","))
}

fn user_type(mut fields: Vec<String>) -> String {
    fields.sort_unstable();
    format!("({})", fields.join(","))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        write!(out, "{byte:02x}").expect("a string takes everything");
        out
    })
}

/// `digits` are the type's own shortest ones: a `float` must not be shown with a `double`'s.
fn float(it: f64, digits: String) -> String {
    match it {
        0.0 => "0".to_owned(),
        it if it.is_nan() => "NaN".to_owned(),
        _ => digits,
    }
}

/// `digits · 10^-scale`, without trailing zeros: `<digits>e<exponent>`.
fn decimal(digits: &BigInt, scale: i64) -> String {
    let digits = digits.to_string();
    let significant = digits.trim_end_matches('0');
    if matches!(significant, "" | "-") {
        return "0".to_owned();
    }
    let zeros = i64::try_from(digits.len() - significant.len()).expect("a number's digits fit in memory");
    format!("{significant}e{}", zeros - scale)
}

fn decimal_text(text: &str) -> anyhow::Result<String> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse()?),
        None => (text, 0_i64),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: BigInt = format!("{whole}{fraction}").parse().with_context(|| "not a number")?;
    Ok(decimal(&digits, i64::try_from(fraction.len())? - exponent))
}

/// Milliseconds since 1970 of `2024-02-29[ T]01:02:03[.456][Z|+00[:00]][ BC]`, or of plain digits.
fn timestamp(text: &str) -> anyhow::Result<i64> {
    if let Ok(milliseconds) = text.parse() {
        return Ok(milliseconds);
    }
    let (date, time) = text.split_once([' ', 'T']).context("no time of day")?;
    let (time, era) = match time.strip_suffix(" BC") {
        Some(time) => (time, " BC"),
        None => (time, ""),
    };
    let (time, offset_minutes) = match time.rfind(['+', '-', 'Z']) {
        Some(at) => {
            let (time, offset) = time.split_at(at);
            (time, offset_minutes(offset)?)
        }
        None => (time, 0),
    };
    let in_day = nanoseconds(time)?;
    anyhow::ensure!(in_day % 1_000_000 == 0, "finer than a millisecond");
    Ok((days(&format!("{date}{era}"))? * 86_400_000) + in_day / 1_000_000 - offset_minutes * 60_000)
}

fn offset_minutes(offset: &str) -> anyhow::Result<i64> {
    let digits: String = offset.chars().filter(char::is_ascii_digit).collect();
    let number: i64 = if digits.is_empty() { 0 } else { digits.parse()? };
    let minutes = if digits.len() > 2 { number / 100 * 60 + number % 100 } else { number * 60 };
    Ok(if offset.starts_with('-') { -minutes } else { minutes })
}

/// Days since 1970 in the proleptic Gregorian calendar of `2024-02-29` or `0044-03-15 BC`.
fn days(text: &str) -> anyhow::Result<i64> {
    let (text, before_christ) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (text, sign) = match text.strip_prefix('-') {
        Some(text) => (text, -1),
        None => (text.strip_prefix('+').unwrap_or(text), 1),
    };
    let parts = text.split('-').map(str::parse).collect::<Result<Vec<i64>, _>>()?;
    let &[year, month, day] = parts.as_slice() else { bail!("not a date") };
    let year = if before_christ { 1 - year } else { sign * year };
    // Years begin in March here, so that the leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let from_march = (153 * month + 2) / 5 + day - 1;
    Ok(year * 365 + leap_days + from_march - 719_468)
}

/// Nanoseconds since midnight of `01:02[:03[.456]]`, or of plain digits.
fn nanoseconds(text: &str) -> anyhow::Result<i64> {
    if let Ok(nanoseconds) = text.parse() {
        return Ok(nanoseconds);
    }
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds = 0;
    for (part, weight) in clock.split(':').zip([3_600, 60, 1]) {
        seconds += part.parse::<i64>()? * weight;
    }
    anyhow::ensure!(fraction.len() <= 9, "finer than a nanosecond");
    Ok(seconds * 1_000_000_000 + format!("{fraction:0<9}").parse::<i64>()?)
}

/// ISO 8601 as in `P1Y2M3DT4H5M6.000000007S`, a minus before the whole.
fn duration(text: &str) -> anyhow::Result<String> {
    let (text, sign) = text.strip_prefix('-').map_or((text, 1), |text| (text, -1));
    let text = text.strip_prefix('P').context("a duration without P")?;
    let (date, time) = text.split_once('T').unwrap_or((text, ""));
    let (mut months, mut days, mut nanoseconds) = (0_i64, 0_i64, 0_i64);
    for (number, unit) in components(date)? {
        let number: i64 = number.parse()?;
        match unit {
            'Y' => months += number * 12,
            'M' => months += number,
            'D' => days += number,
            _ => bail!("unknown unit of a duration"),
        }
    }
    for (number, unit) in components(time)? {
        let (number, fraction) = number.split_once('.').unwrap_or((number, ""));
        let scale = match unit {
            'H' => 3_600_000_000_000,
            'M' => 60_000_000_000,
            'S' => 1_000_000_000,
            _ => bail!("unknown unit of a duration"),
        };
        anyhow::ensure!(
            fraction.is_empty() || (unit == 'S' && fraction.len() <= 9),
            "a fraction that is not of seconds"
        );
        nanoseconds += number.parse::<i64>()?.checked_mul(scale).context("too long a duration")?;
        nanoseconds += format!("{fraction:0<9}").parse::<i64>()?;
    }
    Ok(format!("{}mo{}d{}ns", sign * months, sign * days, sign * nanoseconds))
}

/// `4H5M6.5S` as numbers with their units.
fn components(text: &str) -> anyhow::Result<Vec<(&str, char)>> {
    text.split_inclusive(|c: char| c.is_ascii_alphabetic())
        .map(|piece| {
            let unit =
                piece.chars().next_back().filter(char::is_ascii_alphabetic).context("a number without a unit")?;
            Ok((piece.trim_end_matches(unit), unit))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use scylla::frame::response::result::UserDefinedType;
    use scylla::value::{CqlDate, CqlDecimal, CqlDuration, CqlTime, CqlTimestamp, CqlVarint};

    use super::*;

    fn native(ty: NativeType) -> ColumnType<'static> {
        ColumnType::Native(ty)
    }

    fn collection(typ: CollectionType<'static>) -> ColumnType<'static> {
        ColumnType::Collection { frozen: false, typ }
    }

    #[track_caller]
    fn same(cassandra: CqlValue, ty: ColumnType<'static>, postgres: &[&str]) {
        for text in postgres {
            assert_eq!(value(&cassandra), parse(&ty, text).unwrap(), "{text}");
        }
    }

    fn text(it: &str) -> CqlValue {
        CqlValue::Text(it.to_owned())
    }

    fn decimal(digits: i64, scale: i32) -> CqlValue {
        let digits = BigInt::from(digits).to_signed_bytes_be();
        CqlValue::Decimal(CqlDecimal::from_signed_be_bytes_and_exponent(digits, scale))
    }

    #[test]
    fn scalars_of_both_stores_meet() {
        same(text("a\"b"), native(NativeType::Text), &["a\"b"]);
        same(CqlValue::Boolean(true), native(NativeType::Boolean), &["true"]);
        same(CqlValue::Blob(vec![0, 255]), native(NativeType::Blob), &["\\x00ff", "0x00FF"]);
        same(CqlValue::BigInt(i64::MIN), native(NativeType::BigInt), &["-9223372036854775808"]);
        same(CqlValue::Varint(CqlVarint::from_signed_bytes_be(vec![0, 0, 200])), native(NativeType::Varint), &["200"]);
        same(CqlValue::Inet("1.2.3.4".parse().unwrap()), native(NativeType::Inet), &["1.2.3.4", "1.2.3.4/32"]);
        same(CqlValue::Inet("2001:db8::1".parse().unwrap()), native(NativeType::Inet), &["2001:db8::1/128"]);
        let time = CqlValue::Time(CqlTime(3_723_000_004_999));
        same(time, native(NativeType::Time), &["01:02:03.000004", "01:02:03.000004999", "3723000004999"]);
        let duration = |months, days, nanoseconds| CqlValue::Duration(CqlDuration { months, days, nanoseconds });
        let iso = native(NativeType::Duration);
        same(duration(14, 3, 14_706_000_000_007), iso.clone(), &["P1Y2M3DT4H5M6.000000007S"]);
        same(duration(-1, 0, -1_500_000_000), iso.clone(), &["-P1MT1.5S"]);
        same(duration(0, 0, 0), iso, &["PT0S"]);
    }

    #[test]
    fn decimals_compare_by_value_not_by_scale() {
        same(decimal(100, 2), native(NativeType::Decimal), &["1", "1.0", "1.00", "1e0"]);
        same(decimal(7, -3), native(NativeType::Decimal), &["7000", "7000.0", "7E+3"]);
        same(decimal(-5, 4), native(NativeType::Decimal), &["-0.0005"]);
        same(decimal(0, 9), native(NativeType::Decimal), &["0", "0.000000000"]);
    }

    #[test]
    fn floats_compare_by_their_own_precision() {
        same(CqlValue::Float(0.1), native(NativeType::Float), &["0.1"]);
        same(CqlValue::Double(0.1), native(NativeType::Double), &["0.1", "1e-1"]);
        same(CqlValue::Double(f64::MAX), native(NativeType::Double), &["1.7976931348623157e+308"]);
        same(CqlValue::Double(f64::NAN), native(NativeType::Double), &["NaN"]);
        same(CqlValue::Double(f64::NEG_INFINITY), native(NativeType::Double), &["-Infinity"]);
        same(CqlValue::Double(-0.0), native(NativeType::Double), &["0", "-0"]);
    }

    #[test]
    fn instants_and_days_meet_before_and_after_1970_and_christ() {
        let at = |ms| CqlValue::Timestamp(CqlTimestamp(ms));
        let ty = native(NativeType::Timestamp);
        same(at(0), ty.clone(), &["1970-01-01 00:00:00", "1970-01-01T00:00:00.000Z", "1970-01-01 02:00:00+02"]);
        same(at(1_709_168_523_456), ty.clone(), &["2024-02-29 01:02:03.456", "2024-02-28 20:02:03.456-05:00"]);
        same(at(-1), ty.clone(), &["1969-12-31 23:59:59.999"]);
        same(at(-62_167_219_200_000), ty, &["0001-01-01 00:00:00 BC"]);
        let day = |days: i64| CqlValue::Date(CqlDate(u32::try_from(days + (1 << 31)).unwrap()));
        same(day(-1), native(NativeType::Date), &["1969-12-31"]);
        same(day(19_782), native(NativeType::Date), &["2024-02-29"]);
    }

    #[test]
    fn sets_maps_and_user_types_ignore_order_and_missing_fields() {
        let words = || Box::new(native(NativeType::Text));
        same(CqlValue::Set(vec![text("b"), text("a")]), collection(CollectionType::Set(words())), &[r#"["a", "b"]"#]);
        let map = CqlValue::Map(vec![(text("k,\u{1F680}"), text("")), (text("a"), text("x"))]);
        same(
            map,
            collection(CollectionType::Map(words(), words())),
            &[
                r#"{"a": "x", "k,🚀": ""}"#,
                r#"[["k,\ud83d\ude80", ""], ["a", "x"]]"#,
                r#"[{"key": "a", "value": "x"}, {"key": "k,🚀", "value": ""}]"#,
            ],
        );
        let numbers = collection(CollectionType::Map(Box::new(native(NativeType::Int)), words()));
        same(CqlValue::Map(vec![(CqlValue::Int(7), text("x"))]), numbers, &[r#"{"7": "x"}"#, r#"[[7, "x"]]"#]);

        let field_types = vec![("street".into(), native(NativeType::Text)), ("zip".into(), native(NativeType::Int))];
        let definition = Arc::new(UserDefinedType { name: "address".into(), keyspace: "shop".into(), field_types });
        let user_type = ColumnType::UserDefinedType { frozen: false, definition };
        let fields = vec![("street".to_owned(), None), ("zip".to_owned(), Some(CqlValue::Int(1)))];
        let keyspace = "shop".to_owned();
        let cassandra = CqlValue::UserDefinedType { keyspace, name: "address".to_owned(), fields };
        same(cassandra, user_type, &[r#"{"zip": 1}"#, r#"{"zip": 1, "street": null}"#]);
    }

    #[test]
    fn lists_and_tuples_keep_their_order() {
        let numbers = collection(CollectionType::List(Box::new(native(NativeType::Double))));
        same(
            CqlValue::List(vec![CqlValue::Double(2.0), CqlValue::Double(1.5)]),
            numbers.clone(),
            &["[2, 1.5]", "[2.0,1.50]"],
        );
        assert_ne!(parse(&numbers, "[1, 2]").unwrap(), parse(&numbers, "[2, 1]").unwrap());
        let pair = ColumnType::Tuple(vec![native(NativeType::Int), native(NativeType::Text)]);
        same(CqlValue::Tuple(vec![Some(CqlValue::Int(1)), None]), pair.clone(), &["[1, null]", "[1]"]);
        assert_ne!(parse(&pair, "[null, \"x\"]").unwrap(), parse(&pair, "[1, \"x\"]").unwrap());
    }
}
