//! Values as JSON, by the table of `docs/specs/log-json.md`.

use std::io::Write as _;
use std::net::IpAddr;

use cdc_model::{CqlType, CqlValue};
use num_bigint::{BigInt, Sign};

/// Longest number that is written without an exponent, in digits.
const PLAIN_DIGITS_MAX: i64 = 21;

/// Writing into memory does not fail.
macro_rules! put {
    ($out:expr, $($format:tt)*) => { write!($out, $($format)*).expect("a vector takes every byte") };
}
pub(super) use put;

/// One serialised value: of a cell, a key column, or a path.
pub(super) fn write_value(out: &mut Vec<u8>, ty: &CqlType, bytes: &[u8]) {
    match CqlValue::decode(ty, bytes) {
        Ok(value) => write(out, &value),
        Err(_) => {
            put!(out, "{{\"invalid\":");
            write_hex(out, bytes);
            out.push(b'}');
        }
    }
}

pub(super) fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a vector takes every byte");
}

fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    put!(out, "\"0x");
    for byte in bytes {
        put!(out, "{byte:02x}");
    }
    out.push(b'"');
}

fn write(out: &mut Vec<u8>, value: &CqlValue) {
    match value {
        CqlValue::Text(text) => write_text(out, text),
        CqlValue::Blob(bytes) => write_hex(out, bytes),
        CqlValue::Boolean(value) => put!(out, "{value}"),
        CqlValue::TinyInt(value) => put!(out, "{value}"),
        CqlValue::SmallInt(value) => put!(out, "{value}"),
        CqlValue::Int(value) => put!(out, "{value}"),
        CqlValue::BigInt(value) => put!(out, "{value}"),
        CqlValue::Varint(value) => put!(out, "{value}"),
        CqlValue::Decimal { unscaled, scale } => write_decimal(out, unscaled, (*scale).into()),
        CqlValue::Float(value) => write_float(out, f64::from(*value), &format!("{value:e}")),
        CqlValue::Double(value) => write_float(out, *value, &format!("{value:e}")),
        CqlValue::Timestamp(millis) => write_timestamp(out, *millis),
        CqlValue::Date(days) => match year_month_day(*days) {
            (year @ 0..=9999, month, day) => put!(out, "\"{year:04}-{month:02}-{day:02}\""),
            _ => put!(out, "{days}"),
        },
        CqlValue::Time(nanos @ 0..86_400_000_000_000) => {
            let seconds = nanos / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            put!(out, "\"{hours:02}:{minutes:02}:{:02}.{:09}\"", seconds % 60, nanos % 1_000_000_000);
        }
        CqlValue::Time(nanos) => put!(out, "{nanos}"),
        CqlValue::Uuid(uuid) => put!(out, "\"{uuid}\""),
        CqlValue::Inet(address) => write_inet(out, *address),
        CqlValue::Duration { months, days, nanoseconds } => write_duration(out, *months, *days, *nanoseconds),
        CqlValue::List(values) | CqlValue::Tuple(values) => write_array(out, values.iter().map(Option::as_ref)),
        CqlValue::Set(values) | CqlValue::Vector(values) => write_array(out, values.iter().map(Some)),
        CqlValue::Map(entries) => write_object(out, entries, |out, key| {
            let start = out.len();
            write(out, key);
            if out.get(start) != Some(&b'"') {
                let json = String::from_utf8_lossy(&out[start..]).into_owned();
                out.truncate(start);
                write_text(out, &json);
            }
        }),
        CqlValue::Udt(fields) => write_object(out, fields, |out, name| write_text(out, name)),
        CqlValue::Empty => put!(out, "\"\""),
    }
}

fn write_array<'a>(out: &mut Vec<u8>, values: impl Iterator<Item = Option<&'a CqlValue>>) {
    out.push(b'[');
    for (index, value) in values.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_optional(out, value);
    }
    out.push(b']');
}

fn write_object<K>(out: &mut Vec<u8>, entries: &[(K, Option<CqlValue>)], key: impl Fn(&mut Vec<u8>, &K)) {
    out.push(b'{');
    for (index, (name, value)) in entries.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        key(out, name);
        out.push(b':');
        write_optional(out, value.as_ref());
    }
    out.push(b'}');
}

fn write_optional(out: &mut Vec<u8>, value: Option<&CqlValue>) {
    match value {
        Some(value) => write(out, value),
        None => put!(out, "null"),
    }
}

/// As Java's `BigDecimal.toString`.
fn write_decimal(out: &mut Vec<u8>, unscaled: &BigInt, scale: i64) {
    let digits = unscaled.magnitude().to_string();
    if unscaled.sign() == Sign::Minus {
        out.push(b'-');
    }
    write_digits(out, &digits, scale);
}

/// `digits * 10^-scale`.
fn write_digits(out: &mut Vec<u8>, digits: &str, scale: i64) {
    let length = i64::try_from(digits.len()).expect("a number fits into memory");
    let exponent = length - 1 - scale;
    if scale == 0 {
        put!(out, "{digits}");
    } else if scale > 0 && exponent >= -6 {
        match usize::try_from(length - scale).ok().filter(|point| *point > 0) {
            Some(point) => put!(out, "{}.{}", &digits[..point], &digits[point..]),
            None => put!(out, "0.{:0>width$}", digits, width = usize::try_from(scale).expect("positive")),
        }
    } else {
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        put!(out, "{first}{point}{rest}E{exponent:+}");
    }
}

/// `shortest`: as Rust's `{:e}` gives it, the fewest digits that read back as the same value.
fn write_float(out: &mut Vec<u8>, value: f64, shortest: &str) {
    if value.is_nan() {
        return put!(out, "\"NaN\"");
    }
    let sign = if value.is_sign_negative() { "-" } else { "" };
    if value.is_infinite() {
        return put!(out, "\"{sign}Infinity\"");
    }
    if value == 0.0 {
        return put!(out, "{sign}0.0");
    }
    put!(out, "{sign}");
    let (mantissa, exponent) = shortest.trim_start_matches('-').split_once('e').expect("the form of {:e}");
    let digits = mantissa.replace('.', "");
    let length = i64::try_from(digits.len()).expect("a few digits");
    let scale = length - 1 - exponent.parse::<i64>().expect("the form of {:e}");
    if scale < 0 && length - scale <= PLAIN_DIGITS_MAX {
        let zeros = usize::try_from(-scale).expect("positive");
        put!(out, "{digits}{:0>zeros$}", "");
    } else {
        write_digits(out, &digits, scale);
    }
}

/// `Inet6Address.getHostAddress`; Java makes of a mapped IPv4 address an IPv4 one.
fn write_inet(out: &mut Vec<u8>, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(address) => put!(out, "\"{address}\""),
        IpAddr::V6(address) => {
            let groups: Vec<String> = address.segments().iter().map(|group| format!("{group:x}")).collect();
            put!(out, "\"{}\"", groups.join(":"));
        }
    }
}

/// `Duration.toString`.
fn write_duration(out: &mut Vec<u8>, months: i32, days: i32, nanoseconds: i64) {
    const NANOS: [(&str, i64); 6] = [
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ];
    out.push(b'"');
    if months < 0 || days < 0 || nanoseconds < 0 {
        out.push(b'-');
    }
    let mut parts = |mut rest: i64, units: &[(&str, i64)]| {
        for (unit, size) in units {
            if rest >= *size {
                put!(out, "{}{unit}", rest / size);
                rest %= size;
            }
        }
    };
    parts(months.wrapping_abs().into(), &[("y", 12), ("mo", 1)]);
    parts(days.wrapping_abs().into(), &[("d", 1)]);
    parts(nanoseconds.wrapping_abs(), &NANOS);
    out.push(b'"');
}

fn write_timestamp(out: &mut Vec<u8>, millis: i64) {
    const DAY: i64 = 86_400_000;
    let (year @ 0..=9999, month, day) = year_month_day(millis.div_euclid(DAY)) else { return put!(out, "{millis}") };
    let rest = millis.rem_euclid(DAY);
    let (hours, minutes, seconds) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
    put!(out, "\"{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}.{:03}Z\"", rest % 1000);
}

/// Of the proleptic Gregorian calendar, from days since 1970-01-01.
pub(super) fn year_month_day(days: i64) -> (i64, i64, i64) {
    // Eras of 400 years, in years that begin with March, so that a leap day is a year's last.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(ty: &CqlType, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        write_value(&mut out, ty, bytes);
        String::from_utf8(out).unwrap()
    }

    fn decimal(unscaled: &str, scale: i64) -> String {
        let mut out = Vec::new();
        write_decimal(&mut out, &unscaled.parse().unwrap(), scale);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn decimals_are_written_as_java_does() {
        // From the documentation of BigDecimal.toString.
        for (unscaled, scale, text) in [
            ("123", 0, "123"),
            ("-123", 0, "-123"),
            ("123", -1, "1.23E+3"),
            ("123", -3, "1.23E+5"),
            ("123", 1, "12.3"),
            ("123", 5, "0.00123"),
            ("123", 10, "1.23E-8"),
            ("-123", 12, "-1.23E-10"),
            ("0", 3, "0.000"),
            ("0", -2, "0E+2"),
            ("5", i64::from(i32::MIN), "5E+2147483648"),
        ] {
            assert_eq!(decimal(unscaled, scale), text);
        }
    }

    #[test]
    fn floats_keep_their_value_in_few_digits() {
        let double = |value: f64| json(&CqlType::Double, &value.to_be_bytes());
        for (value, text) in [
            (1.5, "1.5"),
            (300.0, "300"),
            (1e20, "100000000000000000000"),
            (1e22, "1E+22"),
            (2e-3, "0.002"),
            (5e-324, "5E-324"),
            (-0.0, "-0.0"),
            (f64::NEG_INFINITY, "\"-Infinity\""),
            (f64::NAN, "\"NaN\""),
        ] {
            assert_eq!(double(value), text);
        }
        assert_eq!(json(&CqlType::Float, &0.1f32.to_be_bytes()), "0.1");
    }

    #[test]
    fn days_become_dates_throughout_the_range() {
        assert_eq!(year_month_day(0), (1970, 1, 1));
        assert_eq!(year_month_day(-1), (1969, 12, 31));
        assert_eq!(year_month_day(11_016), (2000, 2, 29));
        assert_eq!(year_month_day(-719_528), (0, 1, 1));
        assert_eq!(year_month_day(2_932_896), (9999, 12, 31));
        let date = |days: i64| json(&CqlType::Date, &u32::try_from(days + (1 << 31)).unwrap().to_be_bytes());
        assert_eq!(date(-719_528), "\"0000-01-01\"");
        assert_eq!(date(2_932_897), "2932897");
        assert_eq!(json(&CqlType::Timestamp, &(-1i64).to_be_bytes()), "\"1969-12-31 23:59:59.999Z\"");
        assert_eq!(json(&CqlType::Timestamp, &i64::MIN.to_be_bytes()), i64::MIN.to_string());
    }

    #[test]
    fn what_is_no_value_of_its_type_is_shown_as_bytes() {
        assert_eq!(json(&CqlType::Int, &[1, 2, 3]), r#"{"invalid":"0x010203"}"#);
        assert_eq!(json(&CqlType::Int, &[]), r#""""#);
        assert_eq!(json(&CqlType::Text, b"\xff"), r#"{"invalid":"0xff"}"#);
        assert_eq!(json(&CqlType::Blob, &[]), r#""0x""#);
    }

    #[test]
    fn keys_of_maps_become_text() {
        let int = Box::new(CqlType::Int);
        let ty = CqlType::Map { key: int.clone(), value: int, frozen: true };
        assert_eq!(json(&ty, &[0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7, 255, 255, 255, 255]), r#"{"7":null}"#);
    }

    #[test]
    fn durations_read_as_in_cql() {
        let duration = |months, days, nanoseconds| {
            let mut out = Vec::new();
            write_duration(&mut out, months, days, nanoseconds);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(duration(14, 3, 14_706_007_008_009), r#""1y2mo3d4h5m6s7ms8us9ns""#);
        assert_eq!(duration(0, -3, 0), r#""-3d""#);
        assert_eq!(duration(0, 0, 0), r#""""#);
    }
}
