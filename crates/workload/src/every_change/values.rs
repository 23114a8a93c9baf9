//! Random values as the bytes of the native protocol, so that everything the server accepts can be sent, and nothing a
//! client library would tidy up is lost: extremes, empty values, numbers with needless leading bytes, short tuples.

use num_bigint::BigInt;
use rand::{RngExt as _, SeedableRng as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;
use scylla::cluster::metadata::ColumnType;
use scylla::serialize::SerializationError;
use scylla::serialize::value::SerializeValue;
use scylla::serialize::writers::{CellWriter, WrittenCellProof};

use super::types::{Native, Place, Type, Types};
use super::{Variety, representable};

/// What a placeholder is bound to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Value {
    Bytes(Vec<u8>),
    Null,
    Unset,
}

impl SerializeValue for Value {
    fn serialize<'b>(
        &self,
        _: &ColumnType,
        writer: CellWriter<'b>,
    ) -> Result<WrittenCellProof<'b>, SerializationError> {
        match self {
            Self::Bytes(bytes) => writer.set_value(bytes).map_err(SerializationError::new),
            Self::Null => Ok(writer.set_null()),
            Self::Unset => Ok(writer.set_unset()),
        }
    }
}

/// Of each type, where there is small variety.
const FEW_VALUES: u64 = 4;
const NANOSECONDS_OF_DAY: i64 = 86_400_000_000_000;
/// The years 0000 and 9999 begin and end there; beyond, few programs write a date as one.
const MILLISECONDS_AT_THE_EDGES: [i64; 8] = [
    -62_167_219_200_000,
    -62_167_219_200_001,
    253_402_300_799_999,
    253_402_300_800_000,
    // The Gregorian calendar begins on 1582-10-15.
    -12_219_292_800_000,
    -12_219_292_800_001,
    -1,
    1_709_164_800_000,
];
const TEXTS: [&str; 14] = [
    "",
    "a",
    "red",
    "it's \"quoted\" \\ and/or {curly}",
    "großartig, naïve",
    "北京",
    "\u{1F680}\u{1F468}\u{200D}\u{1F469}",
    "\0",
    "nul\0within",
    "new\nline\ttab\r\u{1f}\u{7f}\u{8}\u{c}",
    "\u{feff}bom\u{2028}\u{2029}\u{fffd}\u{ffff}",
    "\u{7ff}\u{800}\u{10ffff}",
    " spaces ",
    "0",
];

impl Types {
    /// Bytes of a value of the type; never more than a few hundred.
    pub(super) fn value(&self, ty: &Type, place: Place, rng: &mut ChaCha8Rng) -> Vec<u8> {
        match self.variety {
            Variety::Small { seed } if rng.random_bool(0.9) => {
                let mut one_of_few = ChaCha8Rng::seed_from_u64(seed.wrapping_add(rng.random_range(0..FEW_VALUES)));
                self.any_value(ty, place, &mut one_of_few)
            }
            Variety::Small { .. } | Variety::Great => self.any_value(ty, place, rng),
        }
    }

    /// As [`Self::value`], however small the variety.
    pub(super) fn any_value(&self, ty: &Type, place: Place, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let few =
            |rng: &mut ChaCha8Rng| if place == Place::Column { rng.random_range(0..5) } else { rng.random_range(0..3) };
        match ty {
            Type::Native(native) => loop {
                let empty = if self.variety == Variety::Great { 0.03 } else { 0.1 };
                let is_empty = native.may_be_empty() && rng.random_bool(empty);
                let value = if is_empty { Vec::new() } else { self::native(*native, place, rng) };
                if !self.representable || representable::holds(*native, place, &value) {
                    return value;
                }
            },
            Type::Counter => big_int(rng).to_be_bytes().to_vec(),
            Type::List { element, .. } => {
                let count = few(rng);
                collection(count, (0..count).map(|_| self.item(element, inner(place), rng)).collect())
            }
            Type::Set { element, .. } => {
                let mut items: Vec<_> = (0..few(rng)).map(|_| self.item(element, Place::Key, rng)).collect();
                self.as_a_set(&mut items);
                collection(items.len(), items)
            }
            Type::Map { key, value, .. } => {
                let mut entries: Vec<_> = (0..few(rng))
                    .map(|_| [self.item(key, Place::Key, rng), self.item(value, inner(place), rng)])
                    .collect();
                self.as_a_set(&mut entries);
                entries.dedup_by(|a, b| self.representable && a[0] == b[0]);
                collection(entries.len(), entries.into_iter().flatten().collect())
            }
            Type::Tuple(parts) => self.parts(parts.iter(), place, rng),
            Type::Udt { udt, .. } => {
                let udt = &self.udts[*udt];
                // Cassandra (5.0.5) takes added fields for rubbish where the type stands within another.
                let known = if place == Place::Column { udt.fields.len() } else { udt.created };
                self.parts(udt.fields[..known].iter().map(|(_, ty)| ty), place, rng)
            }
            Type::Vector { element, dimension } => self.vector(element, *dimension, place, rng),
        }
    }

    /// Cassandra keeps any order, and what is there twice, within a frozen type; PostgreSQL does not in every place, nor
    /// does what compares the two.
    fn as_a_set<T: Ord>(&self, items: &mut Vec<T>) {
        if self.representable {
            items.sort();
            items.dedup();
        }
    }

    /// Of a collection or vector. Cassandra takes apart and rebuilds these, and an empty value becomes none on the way
    /// where zero bytes are not an ordinary value of the type.
    pub(super) fn item(&self, ty: &Type, place: Place, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let may_be_empty = matches!(ty, Type::Native(Native::Ascii | Native::Blob | Native::Text));
        loop {
            let value = self.value(ty, place, rng);
            if may_be_empty || !value.is_empty() {
                return value;
            }
        }
    }

    /// The components of a tuple or UDT, some NULL; the last ones may be missing, as in a value written before a field was
    /// added.
    fn parts<'a>(&self, types: impl ExactSizeIterator<Item = &'a Type>, place: Place, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let count = types.len();
        // As keys, one with trailing NULL and one without it are equal.
        let is_split = self.variety != Variety::Great && place == Place::Key;
        let present = if !is_split && rng.random_bool(0.1) { rng.random_range(1..=count) } else { count };
        let mut bytes = Vec::new();
        for ty in types.take(present) {
            if rng.random_bool(0.15) {
                bytes.extend((-1_i32).to_be_bytes());
            } else {
                sized(&mut bytes, &self.value(ty, inner(place), rng));
            }
        }
        bytes
    }

    fn vector(&self, element: &Type, dimension: usize, place: Place, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..dimension {
            let mut value = self.item(element, inner(place), rng);
            // The driver (scylla 1.9.0) takes an empty element for none.
            while self.representable && value.is_empty() {
                value = self.item(element, inner(place), rng);
            }
            if !element.has_fixed_length() {
                unsigned_vint(&mut bytes, value.len() as u64);
            }
            bytes.extend(value);
        }
        bytes
    }
}

fn inner(place: Place) -> Place {
    if place == Place::Key { Place::Key } else { Place::Element }
}

/// As of protocol version 3.
pub(super) fn collection(count: usize, items: Vec<Vec<u8>>) -> Vec<u8> {
    let mut bytes = i32::try_from(count).expect("few elements").to_be_bytes().to_vec();
    for item in items {
        sized(&mut bytes, &item);
    }
    bytes
}

fn sized(out: &mut Vec<u8>, item: &[u8]) {
    out.extend(i32::try_from(item.len()).expect("small values").to_be_bytes());
    out.extend(item);
}

fn big_int(rng: &mut ChaCha8Rng) -> i64 {
    match rng.random_range(0..8) {
        0 => i64::MIN,
        1 => i64::MAX,
        2 => 0,
        3 => -1,
        4..6 => rng.random_range(-300..300),
        _ => rng.random(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
fn native(native: Native, place: Place, rng: &mut ChaCha8Rng) -> Vec<u8> {
    match native {
        Native::Ascii => match rng.random_range(0..4) {
            0 => b"\0\x01\x1f\x7f\"\\/".to_vec(),
            _ => (0..rng.random_range(0..12)).map(|_| rng.random_range(0x20..0x7f)).collect(),
        },
        Native::Text => {
            let words = rng.random_range(1..4);
            (0..words).map(|_| *TEXTS.choose(rng).expect("there are texts")).collect::<String>().into_bytes()
        }
        Native::Blob => (0..rng.random_range(0..40)).map(|_| rng.random()).collect(),
        Native::Boolean => vec![rng.random_range(0..2)],
        Native::TinyInt => (big_int(rng) as i8).to_be_bytes().to_vec(),
        Native::SmallInt => (big_int(rng) as i16).to_be_bytes().to_vec(),
        Native::Int => match rng.random_range(0..4) {
            0 => i32::MIN.to_be_bytes().to_vec(),
            1 => i32::MAX.to_be_bytes().to_vec(),
            _ => (big_int(rng) as i32).to_be_bytes().to_vec(),
        },
        Native::BigInt => big_int(rng).to_be_bytes().to_vec(),
        Native::Varint => varint(rng),
        Native::Decimal => decimal(place, rng),
        Native::Float => match rng.random_range(0..10) {
            0 => f32::NAN.to_be_bytes().to_vec(),
            1 => f32::NEG_INFINITY.to_be_bytes().to_vec(),
            2 => (-0.0_f32).to_be_bytes().to_vec(),
            3 => f32::MAX.to_be_bytes().to_vec(),
            4 => f32::from_bits(1).to_be_bytes().to_vec(),
            5 => (rng.random_range(-1000..1000_i16) as f32 / 8.0).to_be_bytes().to_vec(),
            // Subnormals and NaNs of any payload among them.
            _ => rng.random::<u32>().to_be_bytes().to_vec(),
        },
        Native::Double => match rng.random_range(0..10) {
            0 => f64::NAN.to_be_bytes().to_vec(),
            1 => f64::INFINITY.to_be_bytes().to_vec(),
            2 => (-0.0_f64).to_be_bytes().to_vec(),
            3 => f64::MIN.to_be_bytes().to_vec(),
            4 => f64::from_bits(1).to_be_bytes().to_vec(),
            5 => (f64::from(rng.random_range(-100_000..100_000)) / 100.0).to_be_bytes().to_vec(),
            6 => 1e23_f64.to_be_bytes().to_vec(),
            _ => rng.random::<u64>().to_be_bytes().to_vec(),
        },
        Native::Date => {
            let day: u32 = match rng.random_range(0..8) {
                0 => 0,
                1 => u32::MAX,
                2 => rng.random(),
                // The years 0000 and 9999 begin and end there.
                3 => (1 << 31) - 719_528 - rng.random_range(0..2),
                4 => (1 << 31) + 2_932_896 + rng.random_range(0..2),
                _ => (1 << 31) - 40_000 + rng.random_range(0..80_000),
            };
            day.to_be_bytes().to_vec()
        }
        Native::Time => match rng.random_range(0..5) {
            0 => 0_i64.to_be_bytes().to_vec(),
            1 => (NANOSECONDS_OF_DAY - 1).to_be_bytes().to_vec(),
            2 => (rng.random_range(0..86_400_i64) * 1_000_000_000).to_be_bytes().to_vec(),
            _ => rng.random_range(0..NANOSECONDS_OF_DAY).to_be_bytes().to_vec(),
        },
        Native::Timestamp => match rng.random_range(0..6) {
            0 => big_int(rng).to_be_bytes().to_vec(),
            1 => MILLISECONDS_AT_THE_EDGES.choose(rng).expect("there are edges").to_be_bytes().to_vec(),
            2 => rng.random_range(-70_000_000_000_000_i64..260_000_000_000_000).to_be_bytes().to_vec(),
            _ => rng.random_range(-1_262_304_000_000_i64..3_471_292_800_000).to_be_bytes().to_vec(),
        },
        Native::Uuid => match rng.random_range(0..6) {
            0 => vec![0; 16],
            1 => vec![0xff; 16],
            _ => rng.random::<[u8; 16]>().to_vec(),
        },
        Native::TimeUuid => {
            let mut bytes: [u8; 16] = rng.random();
            bytes[6] = bytes[6] & 0x0f | 0x10;
            bytes.to_vec()
        }
        Native::Inet => match rng.random_range(0..6) {
            0..3 => rng.random::<[u8; 4]>().to_vec(),
            3 => [&[0; 10], &[0xff; 2][..], &rng.random::<[u8; 4]>()].concat(),
            4 => [&[0x20, 1, 0xd, 0xb8], &[0; 8][..], &rng.random::<[u8; 4]>()].concat(),
            _ => rng.random::<[u8; 16]>().to_vec(),
        },
        Native::Duration => duration(rng),
    }
}

fn varint(rng: &mut ChaCha8Rng) -> Vec<u8> {
    match rng.random_range(0..6) {
        0 => vec![0],
        1 => (0..rng.random_range(9..40)).map(|_| rng.random()).collect(),
        // Cassandra keeps needless leading bytes.
        2 => vec![0xff, 0xff, 0xfe],
        3 => vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
        _ => BigInt::from(big_int(rng)).to_signed_bytes_be(),
    }
}

/// Scale, then the unscaled number. Far scales only where nothing is ordered by them.
fn decimal(place: Place, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let scale: i32 = match rng.random_range(0..8) {
        0 => rng.random_range(-40..0),
        1 => rng.random_range(3..40),
        2 if place == Place::Column => *[i32::MIN, i32::MAX, -1_000_000, 1_000_000].choose(rng).expect("some"),
        _ => rng.random_range(0..3),
    };
    [&scale.to_be_bytes(), &varint(rng)[..]].concat()
}

/// Months, days and nanoseconds of one sign.
fn duration(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let (months, days, nanoseconds): (i64, i64, i64) = match rng.random_range(0..6) {
        0 => (0, 0, 0),
        1 => (i32::MAX.into(), i32::MAX.into(), i64::MAX),
        2 => (-i64::from(i32::MAX), -i64::from(i32::MAX), -i64::MAX),
        3 => (0, 0, rng.random_range(0..i64::MAX)),
        _ => (rng.random_range(0..40), rng.random_range(0..400), rng.random_range(0..200_000_000_000_000)),
    };
    let sign = if months >= 0 && days >= 0 && nanoseconds >= 0 && rng.random() { -1 } else { 1 };
    let mut bytes = Vec::new();
    for part in [months, days, nanoseconds] {
        let part = part * sign;
        unsigned_vint(&mut bytes, ((part << 1) ^ (part >> 63)).cast_unsigned());
    }
    bytes
}

/// As many leading one bits in the first byte, so many bytes follow.
fn unsigned_vint(out: &mut Vec<u8>, value: u64) {
    let bits = 64 - value.leading_zeros();
    let extra = (bits.max(1) - 1) / 7;
    if extra >= 8 {
        out.push(0xff);
        out.extend(value.to_be_bytes());
        return;
    }
    let bytes = value.to_be_bytes();
    let used = &bytes[7 - extra as usize..];
    let marks = !(0xff_u8 >> extra);
    out.push(used[0] | marks);
    out.extend(&used[1..]);
}
