//! Collections, tuples, user-defined types and vectors as JSON text, built by hand so that numbers keep every digit.

use std::fmt::Write;

use cdc_model::{CqlType, CqlValue, ValueBytes, compare_values};

use crate::{
    number::number,
    value::{Unrepresentable, without_nul},
};

/// A frozen collection, tuple, user-defined type or vector.
pub(crate) fn value(value: &CqlValue, replace: bool) -> Result<String, Unrepresentable> {
    let mut writer = Writer { out: String::new(), replace };
    writer.value(value)?;
    Ok(writer.out)
}

/// A non-frozen collection or user-defined type from its paths and values.
pub(crate) fn complex(
    ty: &CqlType,
    elements: &[(ValueBytes, ValueBytes)],
    replace: bool,
) -> Result<String, Unrepresentable> {
    let decode = |ty: &CqlType, bytes: &ValueBytes| {
        CqlValue::decode(ty, bytes).map_err(|_| Unrepresentable::Malformed("collection element"))
    };
    let sorted = |path: &CqlType| {
        let mut elements: Vec<&(ValueBytes, ValueBytes)> = elements.iter().collect();
        elements.sort_by(|(a, _), (b, _)| compare_values(path, a, b));
        elements
    };
    let whole = match ty {
        CqlType::List { element, .. } => CqlValue::List(
            sorted(&CqlType::TimeUuid)
                .into_iter()
                .map(|(_, value)| decode(element, value).map(Some))
                .collect::<Result<_, _>>()?,
        ),
        CqlType::Set { element, .. } => {
            CqlValue::Set(sorted(element).into_iter().map(|(path, _)| decode(element, path)).collect::<Result<_, _>>()?)
        }
        CqlType::Map { key, value, .. } => CqlValue::Map(
            sorted(key)
                .into_iter()
                .map(|(path, bytes)| Ok((decode(key, path)?, Some(decode(value, bytes)?))))
                .collect::<Result<_, Unrepresentable>>()?,
        ),
        CqlType::Udt { fields, .. } => CqlValue::Udt(
            (0u16..)
                .zip(fields)
                .map(|(index, (name, ty))| {
                    let cell = elements.iter().find(|(path, _)| path.as_ref() == index.to_be_bytes());
                    Ok((name.clone(), cell.map(|(_, value)| decode(ty, value)).transpose()?))
                })
                .collect::<Result<_, Unrepresentable>>()?,
        ),
        _ => return Err(Unrepresentable::Malformed("collection")),
    };
    value(&whole, replace)
}

struct Writer {
    out: String,
    /// What PostgreSQL cannot hold becomes the nearest it can.
    replace: bool,
}

impl Writer {
    fn value(&mut self, value: &CqlValue) -> Result<(), Unrepresentable> {
        let replace = self.replace;
        let out = &mut self.out;
        match value {
            CqlValue::Text(text) => self.string(text)?,
            CqlValue::Boolean(flag) => push(out, flag),
            CqlValue::TinyInt(number) => push(out, number),
            CqlValue::SmallInt(number) => push(out, number),
            CqlValue::Int(number) => push(out, number),
            CqlValue::BigInt(number) => push(out, number),
            CqlValue::Varint(unscaled) => push(out, number(unscaled, 0, replace)?),
            CqlValue::Decimal { unscaled, scale } => push(out, number(unscaled, *scale, replace)?),
            CqlValue::Float(number) if number.is_finite() => push(out, format_args!("{number:?}")),
            CqlValue::Double(number) if number.is_finite() => push(out, format_args!("{number:?}")),
            CqlValue::Float(number) => write_not_finite(out, f64::from(*number)),
            CqlValue::Double(number) => write_not_finite(out, *number),
            CqlValue::Timestamp(millis) => push(out, format_args!("\"{}\"", timestamp(*millis))),
            CqlValue::Date(days) => push(out, format_args!("\"{}\"", date(*days))),
            CqlValue::Time(nanos) => push(out, format_args!("\"{}\"", time(*nanos))),
            CqlValue::Uuid(uuid) => push(out, format_args!("\"{uuid}\"")),
            CqlValue::Inet(address) => push(out, format_args!("\"{address}\"")),
            CqlValue::Duration { months, days, nanoseconds } => {
                push(out, format_args!("\"{}\"", duration(*months, *days, *nanoseconds)));
            }
            CqlValue::Blob(bytes) => {
                out.push_str("\"0x");
                for byte in bytes {
                    push(out, format_args!("{byte:02x}"));
                }
                out.push('"');
            }
            CqlValue::Empty => out.push_str("\"\""),
            CqlValue::List(elements) | CqlValue::Tuple(elements) => self.array(elements.iter().map(Option::as_ref))?,
            CqlValue::Set(elements) | CqlValue::Vector(elements) => self.array(elements.iter().map(Some))?,
            CqlValue::Map(entries) => {
                self.out.push('{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    self.comma(index);
                    match key {
                        CqlValue::Text(text) => self.string(text)?,
                        key => {
                            let name = self::value(key, replace)?;
                            // What is a JSON string already (a uuid, a date) serves as it is.
                            if name.starts_with('"') { self.out.push_str(&name) } else { self.string(&name)? }
                        }
                    }
                    self.out.push(':');
                    self.optional(value.as_ref())?;
                }
                self.out.push('}');
            }
            CqlValue::Udt(fields) => {
                self.out.push('{');
                for (index, (name, value)) in fields.iter().enumerate() {
                    self.comma(index);
                    self.string(name)?;
                    self.out.push(':');
                    self.optional(value.as_ref())?;
                }
                self.out.push('}');
            }
        }
        Ok(())
    }

    fn array<'v>(&mut self, elements: impl Iterator<Item = Option<&'v CqlValue>>) -> Result<(), Unrepresentable> {
        self.out.push('[');
        for (index, element) in elements.enumerate() {
            self.comma(index);
            self.optional(element)?;
        }
        self.out.push(']');
        Ok(())
    }

    fn optional(&mut self, value: Option<&CqlValue>) -> Result<(), Unrepresentable> {
        match value {
            None => {
                self.out.push_str("null");
                Ok(())
            }
            Some(value) => self.value(value),
        }
    }

    fn string(&mut self, text: &str) -> Result<(), Unrepresentable> {
        let json = |text: &str| serde_json::to_string(text).expect("a string has a JSON form");
        self.out.push_str(&match text.contains('\0') {
            false => json(text),
            true if self.replace => json(&without_nul(text)),
            true => return Err(Unrepresentable::Nul),
        });
        Ok(())
    }

    fn comma(&mut self, index: usize) {
        if index > 0 {
            self.out.push(',');
        }
    }
}

fn write_not_finite(out: &mut String, number: f64) {
    let name = match number {
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        _ => "NaN",
    };
    push(out, format_args!("\"{name}\""));
}

fn push(out: &mut String, value: impl std::fmt::Display) {
    write!(out, "{value}").expect("a String takes all text");
}

/// Proleptic Gregorian date of days since 1970 (Howard Hinnant's `civil_from_days`); years beyond 9999 or before 0
/// carry a sign, as ISO 8601 asks.
fn date(days: i64) -> String {
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let sign = if year < 0 { "-" } else { "+" };
    let sign = if (0..=9999).contains(&year) { "" } else { sign };
    format!("{sign}{:04}-{month:02}-{day:02}", year.abs())
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(millis: i64) -> String {
    const DAY: i64 = 86_400_000;
    let of_day = millis.rem_euclid(DAY);
    let (seconds, fraction) = (of_day / 1000, of_day % 1000);
    let day = date(millis.div_euclid(DAY));
    format!("{day}T{:02}:{:02}:{:02}.{fraction:03}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn time(nanos: i64) -> String {
    let seconds = nanos / 1_000_000_000;
    let fraction = nanos % 1_000_000_000;
    format!("{:02}:{:02}:{:02}.{fraction:09}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// ISO 8601 with nanoseconds, a minus before the whole where it is negative: months, days and time stay apart, because
/// none of them converts into another.
pub(crate) fn duration(months: i32, days: i32, nanoseconds: i64) -> String {
    let negative = months < 0 || days < 0 || nanoseconds < 0;
    let (months, days, nanos) = (months.unsigned_abs(), days.unsigned_abs(), nanoseconds.unsigned_abs());
    let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let mut out = String::from(if negative { "-P" } else { "P" });
    let mut part = |number: u64, unit: char| {
        if number > 0 {
            push(&mut out, format_args!("{number}{unit}"));
        }
    };
    part(u64::from(months / 12), 'Y');
    part(u64::from(months % 12), 'M');
    part(u64::from(days), 'D');
    if nanos > 0 {
        out.push('T');
        let mut part = |number: u64, unit: char| {
            if number > 0 {
                push(&mut out, format_args!("{number}{unit}"));
            }
        };
        part(seconds / 3600, 'H');
        part(seconds / 60 % 60, 'M');
        if fraction > 0 {
            let digits = format!("{fraction:09}");
            push(&mut out, format_args!("{}.{}S", seconds % 60, digits.trim_end_matches('0')));
        } else if seconds % 60 > 0 {
            push(&mut out, format_args!("{}S", seconds % 60));
        }
    } else if months == 0 && days == 0 {
        out.push_str("T0S");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_rfc_3339_in_utc() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(timestamp(951_827_696_789), "2000-02-29T12:34:56.789Z");
        assert_eq!(date(2_932_897), "+10000-01-01");
        assert_eq!(date(-719_529), "-0001-12-31");
    }

    #[test]
    fn durations_are_iso_8601_with_nanoseconds() {
        assert_eq!(duration(0, 0, 0), "PT0S");
        assert_eq!(duration(14, 3, 14_706_000_000_007), "P1Y2M3DT4H5M6.000000007S");
        assert_eq!(duration(-1, 0, -1_500_000_000), "-P1MT1.5S");
    }
}
