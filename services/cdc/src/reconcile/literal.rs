//! Partition keys and times as somebody types them.

use std::net::IpAddr;

use cdc_model::{CqlType, TableSchema, ValueBytes};
use chrono::{DateTime, NaiveDate, NaiveTime, Timelike as _};
use num_bigint::BigInt;
use uuid::Uuid;

/// Microseconds since 1970: a whole number of them, a time as RFC 3339 has it, or a day, which begins at midnight UTC.
pub(super) fn micros(text: &str) -> Result<i64, String> {
    let day = || text.parse::<NaiveDate>().ok().map(|day| i64::from(day.to_epoch_days()) * 86_400_000_000);
    let time = || DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros());
    text.parse().ok().or_else(time).or_else(day).ok_or_else(|| {
        "use a time as in 2026-11-21T10:00:00Z, a day as in 2026-11-21, or microseconds since 1970".to_owned()
    })
}

/// A word, or what stood in quotes.
enum Literal {
    Quoted(String),
    Bare(String),
}

impl Literal {
    fn text(&self) -> &str {
        match self {
            Self::Quoted(text) | Self::Bare(text) => text,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Quoted(text) => format!("'{text}'"),
            Self::Bare(text) => text.clone(),
        }
    }
}

/// A partition key as Cassandra serialises it, from `5`, `'a'`, `(5, 'a')`, `[5, "a"]` or `{"p": 5, "q": "a"}`.
///
/// # Errors
/// A sentence that names the column, what was given and what to write.
pub(crate) fn partition_key(table: &TableSchema, text: &str) -> Result<ValueBytes, String> {
    let names: Vec<&str> = table.partition_key.iter().map(|column| column.name.as_str()).collect();
    let shape = || {
        let list = names.join(", ");
        format!(
            "`{text}` is no key of {}: write its columns ({list}) in order, as in (1, 'a'), or as JSON",
            table.full_name()
        )
    };
    let mut given = Reader { rest: text }.key().ok_or_else(shape)?;
    if given.iter().all(|(name, _)| name.is_some()) {
        let place = |name: &Option<String>| names.iter().position(|own| name.as_deref() == Some(own));
        if let Some((Some(name), _)) = given.iter().find(|(name, _)| place(name).is_none()) {
            let list = names.join(", ");
            return Err(format!("{} has no partition key column `{name}`: they are {list}", table.full_name()));
        }
        given.sort_by_key(|(name, _)| place(name));
        given.dedup_by(|(one, _), (other, _)| one == other);
    }
    if given.len() != names.len() {
        return Err(shape());
    }
    let mut values = Vec::new();
    for (column, (_, literal)) in table.partition_key.iter().zip(&given) {
        let (kind, example) = kind(&column.ty).ok_or_else(|| {
            format!(
                "column {} is of a type that cannot be typed in here: use --range with its token instead",
                column.name
            )
        })?;
        let value = serialise(&column.ty, literal).filter(|value| value.len() <= usize::from(u16::MAX));
        values.push(value.ok_or_else(|| {
            let (name, shown) = (&column.name, literal.shown());
            format!("column {name} is of type {kind}, which {shown} is not: write it as in {example}")
        })?);
    }
    Ok(TableSchema::join_partition_key(&values))
}

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn key(mut self) -> Option<Vec<(Option<String>, Literal)>> {
        let close = match self.rest.trim_start().chars().next()? {
            '(' => ')',
            '[' => ']',
            '{' => '}',
            _ => {
                let literal = self.literal("")?;
                return self.rest.trim().is_empty().then(|| vec![(None, literal)]);
            }
        };
        self.rest = self.rest.trim_start().get(1..)?;
        let mut key = Vec::new();
        loop {
            let name = match close {
                '}' => {
                    let name = self.literal(":")?.text().to_owned();
                    self.skip(':')?;
                    Some(name)
                }
                _ => None,
            };
            key.push((name, self.literal(",)]}")?));
            if self.skip(',').is_none() {
                self.skip(close)?;
                return self.rest.trim().is_empty().then_some(key);
            }
        }
    }

    fn skip(&mut self, mark: char) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(mark)?;
        Some(())
    }

    /// In JSON's quotes, in CQL's, or in none up to a mark of `ends`.
    fn literal(&mut self, ends: &str) -> Option<Literal> {
        self.rest = self.rest.trim_start();
        if self.rest.starts_with('"') {
            let mut stream = serde_json::Deserializer::from_str(self.rest).into_iter::<String>();
            let text = stream.next()?.ok()?;
            self.rest = self.rest.get(stream.byte_offset()..)?;
            return Some(Literal::Quoted(text));
        }
        if self.rest.starts_with('\'') {
            let mut text = String::new();
            loop {
                let (part, rest) = self.rest.strip_prefix('\'')?.split_once('\'')?;
                text.push_str(part);
                self.rest = rest;
                // A doubled quote stands for one.
                if !rest.starts_with('\'') {
                    return Some(Literal::Quoted(text));
                }
                text.push('\'');
            }
        }
        let end = self.rest.find(|c: char| ends.contains(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        Some(word.trim()).filter(|word| !word.is_empty()).map(|word| Literal::Bare(word.to_owned()))
    }
}

/// Name and example; `None` of what cannot be typed.
fn kind(ty: &CqlType) -> Option<(&'static str, &'static str)> {
    Some(match ty {
        CqlType::Ascii => ("ascii", "'abc', with the quotes"),
        CqlType::Text => ("text", "'abc', with the quotes"),
        CqlType::Boolean => ("boolean", "true"),
        CqlType::TinyInt => ("tinyint", "-128 to 127"),
        CqlType::SmallInt => ("smallint", "-32768 to 32767"),
        CqlType::Int => ("int", "-2147483648 to 2147483647"),
        CqlType::BigInt => ("bigint", "12345"),
        CqlType::Varint => ("varint", "12345"),
        CqlType::Decimal => ("decimal", "1.50"),
        CqlType::Float => ("float", "1.5"),
        CqlType::Double => ("double", "1.5"),
        CqlType::Timestamp => ("timestamp", "'2026-11-21T10:00:00Z', or milliseconds since 1970"),
        CqlType::Date => ("date", "'2026-11-21'"),
        CqlType::Time => ("time", "'10:00:00.5'"),
        CqlType::Uuid => ("uuid", "0b9d5f4e-4fd1-4f5b-9d2a-1f9d4ad3a1e0"),
        CqlType::TimeUuid => ("timeuuid", "0b9d5f4e-4fd1-1f5b-9d2a-1f9d4ad3a1e0"),
        CqlType::Inet => ("inet", "'10.0.0.1'"),
        CqlType::Blob => ("blob", "0xcafe"),
        _ => return None,
    })
}

fn serialise(ty: &CqlType, literal: &Literal) -> Option<Vec<u8>> {
    let text = literal.text();
    Some(match ty {
        CqlType::Ascii | CqlType::Text => match literal {
            Literal::Quoted(text) if *ty == CqlType::Text || text.is_ascii() => text.clone().into_bytes(),
            Literal::Quoted(_) | Literal::Bare(_) => return None,
        },
        CqlType::Boolean => vec![u8::from(text.parse::<bool>().ok()?)],
        CqlType::TinyInt => text.parse::<i8>().ok()?.to_be_bytes().into(),
        CqlType::SmallInt => text.parse::<i16>().ok()?.to_be_bytes().into(),
        CqlType::Int => text.parse::<i32>().ok()?.to_be_bytes().into(),
        CqlType::BigInt => text.parse::<i64>().ok()?.to_be_bytes().into(),
        CqlType::Varint => text.parse::<BigInt>().ok()?.to_signed_bytes_be(),
        CqlType::Decimal => decimal(text)?,
        CqlType::Float => text.parse::<f32>().ok()?.to_be_bytes().into(),
        CqlType::Double => text.parse::<f64>().ok()?.to_be_bytes().into(),
        CqlType::Timestamp => {
            let time = || DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_millis());
            text.parse::<i64>().ok().or_else(time)?.to_be_bytes().into()
        }
        CqlType::Date => {
            let day = i64::from(text.parse::<NaiveDate>().ok()?.to_epoch_days());
            u32::try_from(day + (1 << 31)).ok()?.to_be_bytes().into()
        }
        CqlType::Time => {
            let time: NaiveTime = text.parse().ok()?;
            let nanos = i64::from(time.num_seconds_from_midnight()) * 1_000_000_000 + i64::from(time.nanosecond());
            nanos.to_be_bytes().into()
        }
        CqlType::Uuid | CqlType::TimeUuid => text.parse::<Uuid>().ok()?.into_bytes().into(),
        CqlType::Inet => match text.parse().ok()? {
            IpAddr::V4(address) => address.octets().into(),
            IpAddr::V6(address) => address.octets().into(),
        },
        CqlType::Blob => blob(text)?,
        _ => return None,
    })
}

fn decimal(text: &str) -> Option<Vec<u8>> {
    let (digits, exponent) = match text.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
    let unscaled: BigInt =
        fraction.bytes().all(|digit| digit.is_ascii_digit()).then(|| format!("{whole}{fraction}"))?.parse().ok()?;
    Some([&scale.to_be_bytes()[..], &unscaled.to_signed_bytes_be()].concat())
}

fn blob(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x")?;
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    if rest.is_empty() { bytes } else { None }
}

#[cfg(test)]
mod tests {
    use cdc_model::{CqlValue, KeyColumn, TableId};

    use super::*;

    fn table(columns: &[(&str, CqlType)]) -> TableSchema {
        let column =
            |(name, ty): &(&str, CqlType)| KeyColumn { name: (*name).to_owned(), ty: ty.clone(), reversed: false };
        TableSchema {
            id: TableId(Uuid::nil()),
            keyspace: "shop".to_owned(),
            name: "orders".to_owned(),
            cdc: true,
            partition_key: columns.iter().map(column).collect(),
            clustering: Vec::new(),
            columns: Vec::new(),
            gc_grace_seconds: 0,
        }
    }

    /// As Cassandra reads the one column.
    fn read(ty: CqlType, text: &str) -> CqlValue {
        let key = partition_key(&table(&[("p", ty.clone())]), text).unwrap_or_else(|error| panic!("{text}: {error}"));
        CqlValue::decode(&ty, &key).unwrap()
    }

    #[test]
    fn every_type_is_read_as_cql_and_as_json_write_it() {
        let uuid: Uuid = "0b9d5f4e-4fd1-4f5b-9d2a-1f9d4ad3a1e0".parse().unwrap();
        let big: BigInt = "-123456789012345678901234567890".parse().unwrap();
        for (ty, texts, value) in [
            (
                CqlType::Text,
                &["'it''s, (so)'", "\"it's, (so)\"", "[\"it's, (so)\"]", "{\"p\": \"it\\u0027s, (so)\"}"][..],
                CqlValue::Text("it's, (so)".into()),
            ),
            (CqlType::Ascii, &["''"], CqlValue::Text(String::new())),
            (CqlType::Int, &["-5", " -5 ", "(-5)", "[ -5 ]", "{p: -5}"], CqlValue::Int(-5)),
            (CqlType::BigInt, &["9223372036854775807"], CqlValue::BigInt(i64::MAX)),
            (CqlType::SmallInt, &["300"], CqlValue::SmallInt(300)),
            (CqlType::TinyInt, &["-128"], CqlValue::TinyInt(-128)),
            (CqlType::Boolean, &["true"], CqlValue::Boolean(true)),
            (CqlType::Varint, &["-123456789012345678901234567890"], CqlValue::Varint(big.clone())),
            (
                CqlType::Decimal,
                &["-1234567890123456789012345678.90", "\"-1234567890123456789012345678.90\""],
                CqlValue::Decimal { unscaled: big, scale: 2 },
            ),
            (CqlType::Decimal, &["1E+3"], CqlValue::Decimal { unscaled: 1.into(), scale: -3 }),
            (CqlType::Double, &["1.5"], CqlValue::Double(1.5)),
            (CqlType::Float, &["-0.25"], CqlValue::Float(-0.25)),
            (
                CqlType::Uuid,
                &["0b9d5f4e-4fd1-4f5b-9d2a-1f9d4ad3a1e0", "\"0b9d5f4e-4fd1-4f5b-9d2a-1f9d4ad3a1e0\""],
                CqlValue::Uuid(uuid),
            ),
            (CqlType::Blob, &["0x", "\"0x\""], CqlValue::Blob(Vec::new().into())),
            (CqlType::Blob, &["0xCAfe"], CqlValue::Blob(vec![0xca, 0xfe].into())),
            (CqlType::Inet, &["'10.0.0.1'"], CqlValue::Inet("10.0.0.1".parse().unwrap())),
            (
                CqlType::Inet,
                &["'2001:db8::1'", "{\"p\": \"2001:db8::1\"}"],
                CqlValue::Inet("2001:db8::1".parse().unwrap()),
            ),
            (CqlType::Date, &["'1969-12-31'"], CqlValue::Date(-1)),
            (CqlType::Time, &["'00:00:01.5'"], CqlValue::Time(1_500_000_000)),
            (
                CqlType::Timestamp,
                &["-1", "'1969-12-31T23:59:59.999Z'", "\"1969-12-31 23:59:59.999Z\""],
                CqlValue::Timestamp(-1),
            ),
        ] {
            for text in texts {
                assert_eq!(read(ty.clone(), text), value, "{text}");
            }
        }
    }

    #[test]
    fn a_key_of_several_columns_is_given_in_order_or_by_name() {
        let table = table(&[("p", CqlType::Int), ("q", CqlType::Text)]);
        let expected = [&[0, 4, 0, 0, 0, 5, 0][..], &[0, 1, b'a', 0]].concat();
        for text in ["(5, 'a')", "[5, \"a\"]", "{\"p\": 5, \"q\": \"a\"}", "{q: 'a', p: 5}"] {
            assert_eq!(&partition_key(&table, text).unwrap()[..], expected, "{text}");
        }
        for (text, words) in [
            ("5", "(p, q)"),
            ("(5, 'a', 6)", "(p, q)"),
            ("{p: 5, p: 5}", "(p, q)"),
            ("(5, 'a'", "(p, q)"),
            ("(5, 'a') x", "(p, q)"),
            ("", "(p, q)"),
            ("{p: 5, r: 1}", "no partition key column `r`"),
            ("('a', 'b')", "column p is of type int, which 'a' is not: write it as in -2147483648"),
            ("(5, a)", "column q is of type text, which a is not: write it as in 'abc'"),
            ("(99999999999, 'a')", "column p is of type int"),
        ] {
            let error = partition_key(&table, text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_typed_says_what_to_do_instead() {
        let frozen = CqlType::List { element: Box::new(CqlType::Int), frozen: true };
        let error = partition_key(&table(&[("p", frozen)]), "[1]").unwrap_err();
        assert!(error.contains("column p") && error.contains("--range"), "{error}");
        for (ty, text) in
            [(CqlType::Blob, "0xabc"), (CqlType::Blob, "cafe"), (CqlType::Decimal, "1.-5"), (CqlType::Date, "'soon'")]
        {
            assert!(partition_key(&table(&[("p", ty)]), text).unwrap_err().contains("column p"), "{text}");
        }
    }

    #[test]
    fn a_time_is_a_number_a_time_or_a_day() {
        for (text, expected) in [
            ("-5", -5),
            ("1970-01-02", 86_400_000_000),
            ("1970-01-01T01:00:00.000001+01:00", 1),
            ("1970-01-01T00:00:01Z", 1_000_000),
        ] {
            assert_eq!(micros(text), Ok(expected), "{text}");
        }
        for wrong in ["", "soon", "10:00", "2026-11-21T10:00", "1.5"] {
            assert!(micros(wrong).unwrap_err().contains("2026-11-21T10:00:00Z"), "{wrong}");
        }
    }
}
