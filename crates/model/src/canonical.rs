//! One form for all values that compare as equal.
//!
//! Cassandra knows rows, elements of sets and keys of maps by their type's comparator, for which bytes that differ may
//! be equal: 2.5 and 2.50, numbers with needless leading bytes, all NaNs, tuples whose last components are null or
//! missing. Which of them it answers is chance. Partition keys are known by their bytes.

use std::borrow::Cow;

use num_bigint::{BigInt, Sign};

use crate::{CqlType, CqlValue};

impl CqlType {
    /// Whether values of other bytes may compare as equal.
    pub fn has_equal_forms(&self) -> bool {
        match self {
            Self::Boolean | Self::Decimal | Self::Varint | Self::Float | Self::Double => true,
            Self::Tuple(_) | Self::Udt { .. } => true,
            Self::List { element, .. } | Self::Set { element, .. } | Self::Vector { element, .. } => {
                element.has_equal_forms()
            }
            Self::Map { key, value, .. } => key.has_equal_forms() || value.has_equal_forms(),
            _ => false,
        }
    }
}

/// The form that stands for all values [`crate::compare_values`] takes for equal to this one. What does not decode
/// stands for itself; so do vectors of elements without a fixed length.
pub fn canonical_value<'v>(ty: &CqlType, value: &'v [u8]) -> Cow<'v, [u8]> {
    if value.is_empty() || !ty.has_equal_forms() {
        return value.into();
    }
    let canonical = match ty {
        CqlType::Tuple(fields) => parts(value, 0, |index| fields.get(index)),
        CqlType::Udt { fields, .. } => parts(value, 0, |index| fields.get(index).map(|(_, ty)| ty)),
        CqlType::List { element, .. } | CqlType::Set { element, .. } => parts(value, 4, |_| Some(element)),
        CqlType::Map { key, value: of, .. } => {
            parts(value, 4, |index| Some(if index.is_multiple_of(2) { key.as_ref() } else { of.as_ref() }))
        }
        CqlType::Vector { element, .. } => element.fixed_length().filter(|width| *width > 0).map(|width| {
            value.chunks(width).flat_map(|element_value| canonical_value(element, element_value).into_owned()).collect()
        }),
        _ => match CqlValue::decode(ty, value) {
            Ok(CqlValue::Boolean(flag)) => Some(vec![u8::from(flag)]),
            Ok(CqlValue::Varint(number)) => Some(number.to_signed_bytes_be()),
            Ok(CqlValue::Decimal { unscaled, scale }) => Some(decimal(unscaled, scale)),
            Ok(CqlValue::Float(number)) if number.is_nan() => Some(f32::NAN.to_be_bytes().into()),
            Ok(CqlValue::Double(number)) if number.is_nan() => Some(f64::NAN.to_be_bytes().into()),
            _ => None,
        },
    };
    canonical.map_or(value.into(), Cow::Owned)
}

/// Without zeros at the end of its digits, before or behind the decimal point.
fn decimal(unscaled: BigInt, scale: i32) -> Vec<u8> {
    let (unscaled, scale) = if unscaled.sign() == Sign::NoSign {
        (unscaled, 0)
    } else {
        let digits = unscaled.magnitude().to_string();
        let zeros = u32::try_from(digits.len() - digits.trim_end_matches('0').len()).unwrap_or(u32::MAX);
        let zeros = zeros.min(scale.abs_diff(i32::MIN));
        (unscaled / BigInt::from(10).pow(zeros), scale.saturating_sub_unsigned(zeros))
    };
    [&scale.to_be_bytes()[..], &unscaled.to_signed_bytes_be()].concat()
}

/// Of parts with i32 lengths behind a head; without a head nulls at the end are left out. `None` if they are cut off.
fn parts<'t>(value: &[u8], head: usize, ty: impl Fn(usize) -> Option<&'t CqlType>) -> Option<Vec<u8>> {
    let (start, mut rest) = value.split_at_checked(head)?;
    let mut out = start.to_vec();
    let mut end = out.len();
    for index in 0.. {
        if rest.is_empty() {
            break;
        }
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            out.extend((-1i32).to_be_bytes());
            rest = tail;
            continue;
        };
        let (part, tail) = tail.split_at_checked(length)?;
        let part = ty(index).map_or(part.into(), |ty| canonical_value(ty, part));
        out.extend(i32::try_from(part.len()).ok()?.to_be_bytes());
        out.extend_from_slice(&part);
        end = out.len();
        rest = tail;
    }
    if head == 0 {
        // One null stays: a value of no bytes is another.
        out.truncate(end.max(4));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;
    use crate::compare_values;

    fn sized(parts: &[Option<&[u8]>]) -> Vec<u8> {
        let sized = |part: &Option<&[u8]>| {
            let length = part.map_or(-1, |part| i32::try_from(part.len()).unwrap());
            [&length.to_be_bytes()[..], part.unwrap_or_default()].concat()
        };
        parts.iter().flat_map(sized).collect()
    }

    fn decimal_of(unscaled: i64, scale: i32) -> Vec<u8> {
        [&scale.to_be_bytes()[..], &unscaled.to_be_bytes()].concat()
    }

    #[test]
    fn equal_values_have_one_form_and_others_have_theirs() {
        let pair = CqlType::Tuple(vec![CqlType::Decimal, CqlType::Text]);
        let set = CqlType::Set { element: Box::new(CqlType::Varint), frozen: true };
        let vector = CqlType::Vector { element: Box::new(CqlType::Float), dimension: 1 };
        let counted = |parts: &[Option<&[u8]>]| [&[0, 0, 0, 1][..], &sized(parts)].concat();
        let nan = f32::from_bits(0xffc0_0001).to_be_bytes().to_vec();
        let equal: [(CqlType, Vec<Vec<u8>>); 9] = [
            (CqlType::Decimal, vec![decimal_of(25, 1), decimal_of(250, 2), vec![0, 0, 0, 3, 9, 0xc4]]),
            (CqlType::Decimal, vec![decimal_of(10, 0), decimal_of(1, -1), decimal_of(1000, 2)]),
            (CqlType::Decimal, vec![decimal_of(0, 0), decimal_of(0, i32::MIN), decimal_of(0, 7)]),
            (CqlType::Varint, vec![vec![7], vec![0, 0, 7]]),
            (CqlType::Boolean, vec![vec![1], vec![2]]),
            (vector, vec![nan, f32::NAN.to_be_bytes().to_vec()]),
            (pair.clone(), vec![sized(&[None]), sized(&[None, None])]),
            (
                pair,
                vec![
                    sized(&[Some(&decimal_of(1, 0))]),
                    sized(&[Some(&decimal_of(10, 1)), None]),
                    sized(&[Some(&decimal_of(100, 2))]),
                ],
            ),
            (set, vec![counted(&[Some(&[5])]), counted(&[Some(&[0, 5])])]),
        ];
        let mut forms = std::collections::HashSet::new();
        for (ty, values) in equal {
            let canonical: Vec<_> = values.iter().map(|value| canonical_value(&ty, value)).collect();
            assert!(canonical.iter().all(|form| *form == canonical[0]), "{ty:?}: {canonical:?}");
            for value in &values {
                assert_eq!(compare_values(&ty, value, &canonical[0]), Ordering::Equal, "{ty:?}");
            }
            assert!(forms.insert((format!("{ty:?}"), canonical[0].to_vec())));
        }
    }

    proptest! {
        #[test]
        fn two_decimals_have_one_form_exactly_if_they_compare_as_equal(
            a in (-1_000_i64..1_000, -3_i32..4), b in (-1_000_i64..1_000, -3_i32..4)
        ) {
            let [a, b] = [a, b].map(|(unscaled, scale)| decimal_of(unscaled, scale));
            let is_equal = compare_values(&CqlType::Decimal, &a, &b) == Ordering::Equal;
            let one_form = canonical_value(&CqlType::Decimal, &a) == canonical_value(&CqlType::Decimal, &b);
            prop_assert_eq!(is_equal, one_form);
        }

        #[test]
        fn any_bytes_have_a_form_that_is_its_own(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
            let nested = CqlType::Map {
                key: Box::new(CqlType::Tuple(vec![CqlType::Decimal, CqlType::Boolean])),
                value: Box::new(CqlType::Double),
                frozen: true,
            };
            for ty in [CqlType::Decimal, CqlType::Varint, CqlType::Float, nested] {
                let form = canonical_value(&ty, &bytes).into_owned();
                prop_assert_eq!(canonical_value(&ty, &form), &form[..], "{:?}", ty);
            }
        }
    }
}
