//! The order of clustering values, as each type's comparator in `db/marshal/` defines it.

use std::cmp::Ordering;

use crate::{CqlType, CqlValue, value::vector_elements};

/// Compares two serialised values of one type. An empty value sorts before every other, bytes that do not decode
/// after every other.
pub fn compare_values(ty: &CqlType, a: &[u8], b: &[u8]) -> Ordering {
    if a.is_empty() || b.is_empty() {
        return a.len().cmp(&b.len());
    }
    match ty {
        CqlType::Ascii
        | CqlType::Text
        | CqlType::Blob
        | CqlType::Date
        | CqlType::Inet
        | CqlType::Duration
        | CqlType::Counter
        | CqlType::Empty
        | CqlType::Custom(_) => a.cmp(b),
        CqlType::TinyInt | CqlType::SmallInt | CqlType::Int | CqlType::BigInt | CqlType::Time | CqlType::Timestamp => {
            compare_signed(a, b)
        }
        // Whatever is not 0 is true.
        CqlType::Boolean => a.iter().any(|byte| *byte != 0).cmp(&b.iter().any(|byte| *byte != 0)),
        CqlType::TimeUuid => compare_time_uuids(a, b),
        CqlType::Uuid => match (version(a), version(b)) {
            // What has the same time is ordered as unsigned bytes here, as signed ones there (CASSANDRA-8730).
            (Some(1), Some(1)) => uuid_time(a).cmp(&uuid_time(b)).then_with(|| a.cmp(b)),
            (left, right) => left.cmp(&right).then_with(|| a.cmp(b)),
        },
        CqlType::List { element, .. } | CqlType::Set { element, .. } => {
            compare_parts(a, b, true, |_| Some(element.as_ref()))
        }
        CqlType::Map { key, value, .. } => {
            compare_parts(a, b, true, |index| Some(if index % 2 == 0 { key.as_ref() } else { value.as_ref() }))
        }
        CqlType::Tuple(fields) => compare_parts(a, b, false, |index| fields.get(index)),
        CqlType::Udt { fields, .. } => compare_parts(a, b, false, |index| fields.get(index).map(|(_, ty)| ty)),
        CqlType::Vector { element, dimension } => {
            match (vector_elements(element, *dimension, a), vector_elements(element, *dimension, b)) {
                (Ok(left), Ok(right)) => {
                    for pair in left.zip(right) {
                        let order = match pair {
                            (Ok(left), Ok(right)) => compare_values(element, left, right),
                            // Neither can be read on; the dimension alone may promise billions more.
                            (Err(_), Err(_)) => return a.cmp(b),
                            (left, right) => left.is_err().cmp(&right.is_err()),
                        };
                        if order.is_ne() {
                            return order;
                        }
                    }
                    Ordering::Equal
                }
                (left, right) => left.is_err().cmp(&right.is_err()).then_with(|| a.cmp(b)),
            }
        }
        CqlType::Varint | CqlType::Decimal | CqlType::Float | CqlType::Double => {
            match (CqlValue::decode(ty, a), CqlValue::decode(ty, b)) {
                (Ok(CqlValue::Varint(left)), Ok(CqlValue::Varint(right))) => left.cmp(&right),
                (Ok(CqlValue::Decimal { unscaled, scale }), Ok(CqlValue::Decimal { unscaled: other, scale: s })) => {
                    compare_decimals((&unscaled, scale), (&other, s))
                }
                // Java orders -0.0 before 0.0 and NaN last, whatever its sign and payload.
                (Ok(CqlValue::Float(left)), Ok(CqlValue::Float(right))) => {
                    let [left, right] = [left, right].map(|number| if number.is_nan() { f32::NAN } else { number });
                    left.total_cmp(&right)
                }
                (Ok(CqlValue::Double(left)), Ok(CqlValue::Double(right))) => {
                    let [left, right] = [left, right].map(|number| if number.is_nan() { f64::NAN } else { number });
                    left.total_cmp(&right)
                }
                // Malformed ones last, so that there is one order over all bytes, which sorting may rely on.
                (left, right) => left.is_err().cmp(&right.is_err()).then_with(|| a.cmp(b)),
            }
        }
    }
}

fn compare_signed(a: &[u8], b: &[u8]) -> Ordering {
    let sign = |bytes: &[u8]| bytes.first().map(|byte| byte ^ 0x80);
    sign(a).cmp(&sign(b)).then_with(|| a.cmp(b))
}

fn version(uuid: &[u8]) -> Option<u8> {
    uuid.get(6).map(|byte| byte >> 4)
}

fn uuid_time(uuid: &[u8]) -> [u8; 8] {
    let at = |index: usize| uuid.get(index).copied().unwrap_or_default();
    [at(6) & 0x0f, at(7), at(4), at(5), at(0), at(1), at(2), at(3)]
}

/// By timestamp, then by the low half as signed bytes (`TimeUUIDType.compareCustom`).
fn compare_time_uuids(a: &[u8], b: &[u8]) -> Ordering {
    let low = |uuid: &[u8]| uuid.get(8..).unwrap_or_default().iter().map(|byte| byte ^ 0x80).collect::<Vec<_>>();
    uuid_time(a).cmp(&uuid_time(b)).then_with(|| low(a).cmp(&low(b)))
}

fn compare_decimals((a, s): (&num_bigint::BigInt, i32), (b, t): (&num_bigint::BigInt, i32)) -> Ordering {
    use num_bigint::Sign;
    if a.sign() != b.sign() {
        return a.sign().cmp(&b.sign());
    }
    if a.sign() == Sign::NoSign {
        return Ordering::Equal;
    }
    let digits = |n: &num_bigint::BigInt| i64::try_from(n.magnitude().to_string().len()).unwrap_or(i64::MAX);
    let magnitude = (digits(a) - i64::from(s)).cmp(&(digits(b) - i64::from(t)));
    let order = magnitude.then_with(|| {
        // Same leading power of ten, so the scales differ by no more than the numbers of digits do.
        let pad = |n: &num_bigint::BigInt, by: i64| {
            n.magnitude() * num_bigint::BigUint::from(10u8).pow(u32::try_from(by.max(0)).unwrap_or(u32::MAX))
        };
        let by = i64::from(t) - i64::from(s);
        pad(a, by).cmp(&pad(b, -by))
    });
    if a.sign() == Sign::Minus { order.reverse() } else { order }
}

/// Elementwise over i32-length-prefixed parts; a null sorts before a value. A shorter run of equal parts sorts first, but
/// of a tuple what is missing counts as null (`TupleType.compareCustom`).
fn compare_parts<'t>(a: &[u8], b: &[u8], counted: bool, ty: impl Fn(usize) -> Option<&'t CqlType>) -> Ordering {
    let skip = if counted { 4 } else { 0 };
    let (mut a, mut b) = (a.get(skip..).unwrap_or_default(), b.get(skip..).unwrap_or_default());
    for index in 0.. {
        let order = match (take_part(&mut a), take_part(&mut b)) {
            (None, None) => return Ordering::Equal,
            (Some(Some(left)), Some(Some(right))) => match ty(index) {
                Some(ty) => compare_values(ty, left, right),
                None => left.cmp(right),
            },
            (left, right) if !counted => left.flatten().is_some().cmp(&right.flatten().is_some()),
            (left, right) => {
                (left.is_some(), left.flatten().is_some()).cmp(&(right.is_some(), right.flatten().is_some()))
            }
        };
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

fn take_part<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let (length, tail) = rest.split_first_chunk::<4>()?;
    let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
        *rest = tail;
        return Some(None);
    };
    let (part, tail) = tail.split_at_checked(length)?;
    *rest = tail;
    Some(Some(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(element: CqlType) -> CqlType {
        CqlType::Vector { element: Box::new(element), dimension: 2 }
    }

    /// Found by comparing with Cassandra's own reader: keys of a `map<vector<timestamp, 2>, blob>`.
    #[test]
    fn vectors_are_ordered_by_their_elements() {
        let of = |elements: [i64; 2]| elements.map(i64::to_be_bytes).concat();
        let in_order = [[i64::MIN, 5], [-1, 0], [3_075_402_048_585, i64::MIN], [199_218_492_505_611, -455_673_060_000]];
        for pair in in_order.windows(2) {
            let [left, right] = pair else { unreachable!() };
            assert_eq!(compare_values(&vector(CqlType::Timestamp), &of(*left), &of(*right)), Ordering::Less);
        }
        // Elements of any length stand behind their own.
        let order = compare_values(&vector(CqlType::Text), b"\x01b\x00", b"\x03aaa\x01c");
        assert_eq!(order, Ordering::Greater);
    }

    /// Found in a real commit log (`golden/order` of the reader).
    #[test]
    fn uuids_of_the_same_time_are_ordered_as_unsigned_bytes_and_timeuuids_as_signed_ones() {
        let of = |text: &str| text.parse::<uuid::Uuid>().unwrap().into_bytes();
        let low = of("50554d6e-29bb-11e5-807f-000000000000");
        let high = of("50554d6e-29bb-11e5-8080-000000000000");
        assert_eq!(compare_values(&CqlType::Uuid, &low, &high), Ordering::Less);
        assert_eq!(compare_values(&CqlType::TimeUuid, &low, &high), Ordering::Greater);
    }

    #[test]
    fn a_tuple_without_its_last_components_equals_one_that_has_them_null() {
        let ty = CqlType::Tuple(vec![CqlType::Int, CqlType::Int]);
        let one = [&4_i32.to_be_bytes()[..], &1_i32.to_be_bytes()].concat();
        let [with_null, with_value] =
            [&(-1_i32).to_be_bytes()[..], &[0, 0, 0, 0]].map(|second| [&one[..], second].concat());
        assert_eq!(compare_values(&ty, &one, &with_null), Ordering::Equal);
        assert_eq!(compare_values(&ty, &with_null, &one), Ordering::Equal);
        assert_eq!(compare_values(&ty, &one, &with_value), Ordering::Less);
        assert_eq!(compare_values(&ty, &with_value, &with_null), Ordering::Greater);
    }

    #[test]
    fn what_does_not_decode_comes_last() {
        let malformed = [&[0u8; 3][..], &[0xff; 5]];
        for (ty, valid) in [(CqlType::Float, vec![0x7f; 4]), (vector(CqlType::Int), vec![0x7f; 8])] {
            for bytes in malformed {
                assert_eq!(compare_values(&ty, &valid, bytes), Ordering::Less, "{ty:?}");
                assert_eq!(compare_values(&ty, bytes, &valid), Ordering::Greater, "{ty:?}");
            }
            assert_eq!(compare_values(&ty, malformed[0], malformed[1]), Ordering::Less);
        }
    }

    /// Found by fuzzing: the comparison went on for as many elements as the type has, whatever the bytes hold.
    #[test]
    fn malformed_vectors_are_compared_by_what_is_there() {
        let huge = |element| CqlType::Vector { element: Box::new(element), dimension: u32::MAX };
        let ty = huge(huge(huge(CqlType::Text)));
        assert_eq!(compare_values(&ty, b"\x01a", b"\x01a\x09"), Ordering::Less);
        assert_eq!(compare_values(&ty, b"\x01a", b"\x01a"), Ordering::Equal);
    }

    /// Found by comparing with Cassandra's own reader: elements of a `set<float>`.
    #[test]
    fn every_nan_comes_last() {
        let negative = f32::from_bits(0xffc0_0001);
        let in_order = [f32::NEG_INFINITY, -0.0, 0.0, f32::MAX, f32::INFINITY, negative];
        for pair in in_order.windows(2) {
            let (left, right) = (pair[0].to_be_bytes(), pair[1].to_be_bytes());
            assert_eq!(compare_values(&CqlType::Float, &left, &right), Ordering::Less);
        }
        let [negative, positive] = [negative, f32::NAN].map(f32::to_be_bytes);
        assert_eq!(compare_values(&CqlType::Float, &negative, &positive), Ordering::Equal);
        let negative = (-f64::NAN).to_be_bytes();
        assert_eq!(compare_values(&CqlType::Double, &f64::MAX.to_be_bytes(), &negative), Ordering::Less);
    }
}
