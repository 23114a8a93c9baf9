//! The little of DER that keystores need: definite lengths, tags of one byte.

use super::KeystoreError;

pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTETS: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const BMP_STRING: u8 = 0x1e;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// `[0] EXPLICIT`.
pub(super) const CONTEXT_0: u8 = 0xa0;

const BROKEN: KeystoreError = KeystoreError::Damaged { reason: "a part of it is not DER" };

/// Elements one after another.
#[derive(Clone, Copy)]
pub(super) struct Der<'a>(pub(super) &'a [u8]);

impl<'a> Der<'a> {
    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The tag of the next element.
    pub(super) fn peek(self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The content of the next element, of whatever kind.
    pub(super) fn any(&mut self) -> Result<&'a [u8], KeystoreError> {
        let [_, first, rest @ ..] = self.0 else { return Err(BROKEN) };
        let (length, rest) = if *first < 0x80 {
            (usize::from(*first), rest)
        } else {
            let digits = usize::from(first & 0x7f);
            if !(1..=4).contains(&digits) || digits > rest.len() {
                return Err(BROKEN);
            }
            let (length, rest) = rest.split_at(digits);
            (length.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        };
        let (content, rest) = rest.split_at_checked(length).ok_or(BROKEN)?;
        self.0 = rest;
        Ok(content)
    }

    pub(super) fn expect(&mut self, tag: u8) -> Result<&'a [u8], KeystoreError> {
        if self.peek() == Some(tag) { self.any() } else { Err(BROKEN) }
    }

    /// The elements inside the next one.
    pub(super) fn enter(&mut self, tag: u8) -> Result<Der<'a>, KeystoreError> {
        self.expect(tag).map(Der)
    }

    pub(super) fn number(&mut self) -> Result<u64, KeystoreError> {
        let digits = self.expect(INTEGER)?;
        if digits.is_empty() || digits.len() > 8 || digits[0] >= 0x80 {
            return Err(BROKEN);
        }
        Ok(digits.iter().fold(0, |number, digit| number << 8 | u64::from(*digit)))
    }
}

/// `1.2.840.113549.1.12.1.3`, for messages.
pub(super) fn dotted(oid: &[u8]) -> String {
    let mut numbers = Vec::new();
    let mut number: u64 = 0;
    for byte in oid.iter().take(32) {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            numbers.push(std::mem::take(&mut number));
        }
    }
    let mut text = numbers.first().map_or_else(String::new, |first| {
        let root = (first / 40).min(2);
        format!("{root}.{}", first - 40 * root)
    });
    numbers.iter().skip(1).for_each(|number| text.push_str(&format!(".{number}")));
    text
}
