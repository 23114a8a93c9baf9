//! `varint` and `decimal` as `numeric`.

use bytes::{BufMut, BytesMut};
use cdc_model::ValueBytes;
use num_bigint::{BigInt, Sign};

use crate::value::Unrepresentable;

/// Limits of `numeric`: digits before and after the decimal point.
const INTEGER_DIGITS: usize = 131_072;
const SCALE_MAX: usize = 16_383;
/// Numbers of more digits are not looked at: writing them out would take seconds.
const DIGITS_MAX: usize = 4 * INTEGER_DIGITS;

/// A number `numeric` can hold.
pub(crate) enum Number {
    Finite {
        negative: bool,
        digits: String,
        /// How many of them, with zeros before them if they are too few, follow the decimal point.
        scale: usize,
    },
    Infinite {
        negative: bool,
    },
}

/// `unscaled * 10^-scale`. `replace`: what is too large becomes infinite, and digits that are too many are cut off.
pub(crate) fn number(unscaled: &BigInt, scale: i32, replace: bool) -> Result<Number, Unrepresentable> {
    let out = Err(Unrepresentable::Range("number"));
    let negative = unscaled.sign() == Sign::Minus;
    let after = usize::try_from(scale).unwrap_or_default();
    let zeros = if scale < 0 { usize::try_from(scale.unsigned_abs()).unwrap_or(usize::MAX) } else { 0 };
    if unscaled.sign() == Sign::NoSign {
        return Ok(Number::Finite { negative, digits: "0".to_owned(), scale: after.min(SCALE_MAX) });
    }
    let bits = usize::try_from(unscaled.bits()).unwrap_or(usize::MAX);
    // log10(2) is between 0.30102 and 0.30103.
    let (least, most) =
        (bits.saturating_sub(1).saturating_mul(30_102) / 100_000, bits.saturating_mul(30_103) / 100_000 + 1);
    let too_large = |digits: usize| digits.saturating_add(zeros) > INTEGER_DIGITS.saturating_add(after);
    let infinite = || if replace { Ok(Number::Infinite { negative }) } else { Err(Unrepresentable::Range("number")) };
    if too_large(least) {
        return infinite();
    }
    let cut = after.saturating_sub(SCALE_MAX);
    if cut > 0 && !replace {
        return out;
    }
    if most <= cut {
        return Ok(Number::Finite { negative: false, digits: "0".to_owned(), scale: SCALE_MAX });
    }
    if least > DIGITS_MAX {
        return out;
    }
    let mut digits = unscaled.magnitude().to_string();
    if too_large(digits.len()) {
        return infinite();
    }
    digits.extend(std::iter::repeat_n('0', zeros));
    digits.truncate(digits.len().saturating_sub(cut));
    Ok(Number::Finite { negative, digits, scale: after - cut })
}

impl Number {
    /// PostgreSQL's binary form: groups of four decimal digits around the decimal point.
    pub(crate) fn numeric(&self) -> ValueBytes {
        let (negative, digits, scale) = match self {
            Self::Finite { negative, digits, scale } => (*negative, digits, *scale),
            Self::Infinite { negative } => {
                let sign: u16 = if *negative { 0xf000 } else { 0xd000 };
                return [[0, 0], [0, 0], sign.to_be_bytes(), [0, 0]].concat().into();
            }
        };
        let whole = digits.len().saturating_sub(scale);
        let lead = if digits.len() < scale { scale - digits.len() } else { (4 - whole % 4) % 4 };
        let trail = (4 - scale % 4) % 4;
        let padded: Vec<u8> = std::iter::repeat_n(b'0', lead)
            .chain(digits.bytes())
            .chain(std::iter::repeat_n(b'0', trail))
            .map(|digit| digit - b'0')
            .collect();
        let groups: Vec<i16> =
            padded.chunks(4).map(|group| group.iter().fold(0, |sum, digit| sum * 10 + i16::from(*digit))).collect();
        let zeros = groups.iter().take_while(|group| **group == 0).count();
        let used = groups.len() - groups.iter().rev().take_while(|group| **group == 0).count();
        let groups = groups.get(zeros..used).unwrap_or_default();
        let narrow = |number: usize| u16::try_from(number).expect("within the limits of numeric");
        // Two's complement: numbers below one have a negative weight.
        let weight = narrow(whole.div_ceil(4)).wrapping_sub(1).wrapping_sub(narrow(zeros));
        let mut out = BytesMut::with_capacity(8 + 2 * groups.len());
        out.put_u16(narrow(groups.len()));
        out.put_u16(if groups.is_empty() { 0 } else { weight });
        out.put_u16(if negative { 0x4000 } else { 0 });
        out.put_u16(narrow(scale));
        for group in groups {
            out.put_i16(*group);
        }
        out.freeze().into()
    }
}

impl std::fmt::Display for Number {
    /// As JSON.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = |negative: &bool| if *negative { "-" } else { "" };
        match self {
            Self::Finite { negative, digits, scale: 0 } => write!(f, "{}{digits}", sign(negative)),
            Self::Finite { negative, digits, scale } => write!(f, "{}{digits}e-{scale}", sign(negative)),
            Self::Infinite { negative } => write!(f, "\"{}Infinity\"", sign(negative)),
        }
    }
}
