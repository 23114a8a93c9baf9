//! PKCS#12 (RFC 7292) as Java writes it: secret keys lie in `SecretBag`s of a safe that is not encrypted itself, each
//! as a PKCS#8 key under a password (`sun.security.pkcs12.PKCS12KeyStore`).

use hmac::{Hmac, KeyInit as _, Mac as _};
use pbkdf2::pbkdf2_hmac;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::{
    Entry, KeystoreError, Sealed,
    der::{BMP_STRING, CONTEXT_0, Der, OCTETS, OID, SEQUENCE, SET, dotted},
    rounds, utf16,
};
use crate::encryption::{aes_cbc, cbc};

/// `1.2.840.113549.`
macro_rules! rsa { ($($byte:literal),*) => { [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, $($byte),*] } }

const DATA: [u8; 9] = rsa!(1, 7, 1);
const SECRET_BAG: [u8; 11] = rsa!(1, 12, 10, 1, 5);
const SHROUDED_KEY: [u8; 11] = rsa!(1, 12, 10, 1, 2);
const FRIENDLY_NAME: [u8; 9] = rsa!(1, 9, 20);
const PBE_SHA1_3DES: [u8; 10] = rsa!(1, 12, 1, 3);
const PBES2: [u8; 9] = rsa!(1, 5, 13);
const PBKDF2: [u8; 9] = rsa!(1, 5, 12);
/// Without the last number, which tells the hash.
const HMAC: [u8; 7] = rsa!(2);
const SHA1: [u8; 5] = [0x2b, 0x0e, 3, 2, 0x1a];
/// `2.16.840.1.101.3.4.`, NIST's; without the last numbers.
const SHA2: [u8; 8] = [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2];
const AES: [u8; 8] = [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1];

const DAMAGED: KeystoreError = KeystoreError::Damaged { reason: "a part of the PKCS#12 file is broken" };

#[derive(Clone, Copy)]
enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

pub(super) struct SealedKey {
    scheme: Scheme,
    salt: Vec<u8>,
    rounds: u32,
    sealed: Vec<u8>,
}

enum Scheme {
    /// Java before 16.
    Sha1TripleDes,
    /// Java since 16.
    Pbkdf2Aes { hash: Hash, key: usize, iv: Vec<u8> },
}

pub(super) fn parse(bytes: &[u8], password: &str) -> Result<Vec<Entry>, KeystoreError> {
    let mut file = Der(bytes).enter(SEQUENCE)?;
    file.number()?;
    let safes = data(&mut file)?.ok_or(DAMAGED)?;
    if !file.is_empty() {
        check_mac(safes, file.enter(SEQUENCE)?, password)?;
    }
    let mut entries = Vec::new();
    let mut safes = Der(safes).enter(SEQUENCE)?;
    while !safes.is_empty() {
        // An encrypted safe holds certificates.
        let Some(bags) = data(&mut safes)? else { continue };
        let mut bags = Der(bags).enter(SEQUENCE)?;
        while !bags.is_empty() {
            entries.extend(secret(bags.enter(SEQUENCE)?)?);
        }
    }
    Ok(entries)
}

/// The octets of a `ContentInfo`; `None` if they are encrypted.
fn data<'a>(input: &mut Der<'a>) -> Result<Option<&'a [u8]>, KeystoreError> {
    let mut info = input.enter(SEQUENCE)?;
    if info.expect(OID)? != DATA {
        return Ok(None);
    }
    info.enter(CONTEXT_0)?.expect(OCTETS).map(Some)
}

/// The secret key in a bag, if it is one.
fn secret(mut bag: Der<'_>) -> Result<Option<Entry>, KeystoreError> {
    if bag.expect(OID)? != SECRET_BAG {
        return Ok(None);
    }
    let mut secret = bag.enter(CONTEXT_0)?.enter(SEQUENCE)?;
    if secret.expect(OID)? != SHROUDED_KEY {
        return Ok(None);
    }
    let sealed = sealed_key(secret.enter(CONTEXT_0)?.expect(OCTETS)?)?;
    let mut alias = String::new();
    let mut attributes = if bag.is_empty() { bag } else { bag.enter(SET)? };
    while !attributes.is_empty() {
        let mut attribute = attributes.enter(SEQUENCE)?;
        if attribute.expect(OID)? == FRIENDLY_NAME {
            let name = attribute.enter(SET)?.expect(BMP_STRING)?;
            let units: Vec<u16> = name.as_chunks::<2>().0.iter().map(|unit| u16::from_be_bytes(*unit)).collect();
            alias = String::from_utf16_lossy(&units);
        }
    }
    Ok(Some(Entry { alias, sealed: Sealed::Pkcs12(sealed) }))
}

fn sealed_key(bytes: &[u8]) -> Result<SealedKey, KeystoreError> {
    let mut info = Der(bytes).enter(SEQUENCE)?;
    let mut algorithm = info.enter(SEQUENCE)?;
    let sealed = info.expect(OCTETS)?.to_vec();
    let name = algorithm.expect(OID)?;
    let mut parameters = algorithm.enter(SEQUENCE)?;
    if name == PBE_SHA1_3DES {
        let salt = parameters.expect(OCTETS)?.to_vec();
        return Ok(SealedKey { scheme: Scheme::Sha1TripleDes, salt, rounds: rounds(parameters.number()?)?, sealed });
    }
    if name != PBES2 {
        return Err(unknown(name));
    }
    let (mut derivation, mut cipher) = (parameters.enter(SEQUENCE)?, parameters.enter(SEQUENCE)?);
    let (name, mut derivation) = (derivation.expect(OID)?, derivation.enter(SEQUENCE)?);
    if name != PBKDF2 {
        return Err(unknown(name));
    }
    let salt = derivation.expect(OCTETS)?.to_vec();
    let rounds = rounds(derivation.number()?)?;
    if derivation.peek() == Some(super::der::INTEGER) {
        derivation.number()?;
    }
    let hash = if derivation.is_empty() {
        Hash::Sha1
    } else {
        let name = derivation.enter(SEQUENCE)?.expect(OID)?;
        match name.strip_prefix(&HMAC[..]) {
            Some([7]) => Hash::Sha1,
            Some([8]) => Hash::Sha224,
            Some([9]) => Hash::Sha256,
            Some([10]) => Hash::Sha384,
            Some([11]) => Hash::Sha512,
            _ => return Err(unknown(name)),
        }
    };
    let name = cipher.expect(OID)?;
    let key = match name.strip_prefix(&AES[..]) {
        Some([2]) => 16,
        Some([22]) => 24,
        Some([42]) => 32,
        _ => return Err(unknown(name)),
    };
    let iv = cipher.expect(OCTETS)?.to_vec();
    Ok(SealedKey { scheme: Scheme::Pbkdf2Aes { hash, key, iv }, salt, rounds, sealed })
}

fn unknown(oid: &[u8]) -> KeystoreError {
    KeystoreError::Unsupported { form: format!("PKCS#12 with algorithm {}", dotted(oid)), reason: "is not known" }
}

impl SealedKey {
    /// `None`: the password is another.
    pub(super) fn open(&self, password: &str) -> Result<Option<Vec<u8>>, KeystoreError> {
        let mut sealed = self.sealed.clone();
        let opened = match &self.scheme {
            Scheme::Sha1TripleDes => {
                let key = derive::<Sha1>(1, 24, 64, password, &self.salt, self.rounds);
                let iv = derive::<Sha1>(2, 8, 64, password, &self.salt, self.rounds);
                cbc::<des::TdesEde3>(&key, &iv, &mut sealed)
            }
            Scheme::Pbkdf2Aes { hash, key, iv } => {
                let mut derived = vec![0; *key];
                let (password, salt) = (password.as_bytes(), &self.salt);
                match hash {
                    Hash::Sha1 => pbkdf2_hmac::<Sha1>(password, salt, self.rounds, &mut derived),
                    Hash::Sha224 => pbkdf2_hmac::<Sha224>(password, salt, self.rounds, &mut derived),
                    Hash::Sha256 => pbkdf2_hmac::<Sha256>(password, salt, self.rounds, &mut derived),
                    Hash::Sha384 => pbkdf2_hmac::<Sha384>(password, salt, self.rounds, &mut derived),
                    Hash::Sha512 => pbkdf2_hmac::<Sha512>(password, salt, self.rounds, &mut derived),
                }
                aes_cbc(&derived, iv, &mut sealed)
            }
        };
        // PKCS#8: version, algorithm, key.
        let key = |opened: &[u8]| -> Result<Vec<u8>, KeystoreError> {
            let mut info = Der(opened).enter(SEQUENCE)?;
            info.number()?;
            info.enter(SEQUENCE)?;
            info.expect(OCTETS).map(<[u8]>::to_vec)
        };
        Ok(opened.and_then(|opened| key(opened).ok()))
    }
}

/// The MAC is over the safes, keyed by the password: only the right one gives it.
fn check_mac(safes: &[u8], mut mac: Der<'_>, password: &str) -> Result<(), KeystoreError> {
    let mut info = mac.enter(SEQUENCE)?;
    let name = info.enter(SEQUENCE)?.expect(OID)?;
    let digest = info.expect(OCTETS)?;
    let salt = mac.expect(OCTETS)?;
    let rounds = rounds(if mac.is_empty() { 1 } else { mac.number()? })?;
    // The numbers are those of the hash: its length and the length of its blocks.
    macro_rules! holds {
        ($hash:ty, $length:literal, $block:literal) => {{
            let key = derive::<$hash>(3, $length, $block, password, salt, rounds);
            let mac = <Hmac<$hash>>::new_from_slice(&key).map_err(|_| DAMAGED)?;
            mac.chain_update(safes).verify_slice(digest).is_ok()
        }};
    }
    let holds = match (name, name.strip_prefix(&SHA2[..])) {
        (name, _) if name == SHA1 => holds!(Sha1, 20, 64),
        (_, Some([4])) => holds!(Sha224, 28, 64),
        (_, Some([1])) => holds!(Sha256, 32, 64),
        (_, Some([2])) => holds!(Sha384, 48, 128),
        (_, Some([3])) => holds!(Sha512, 64, 128),
        _ => return Err(unknown(name)),
    };
    if holds { Ok(()) } else { Err(KeystoreError::Password) }
}

/// RFC 7292, appendix B: `length` bytes for a purpose (1 key, 2 vector, 3 MAC).
fn derive<D: Digest>(purpose: u8, length: usize, block: usize, password: &str, salt: &[u8], rounds: u32) -> Vec<u8> {
    // Closed by a zero, as a string of C's.
    let password = [utf16(password), vec![0, 0]].concat();
    let fill = |bytes: &[u8]| -> Vec<u8> {
        let filled = bytes.len().div_ceil(block) * block;
        bytes.iter().copied().cycle().take(if bytes.is_empty() { 0 } else { filled }).collect()
    };
    let mut input = [fill(salt), fill(&password)].concat();
    let mut derived = Vec::new();
    while derived.len() < length {
        let mut hash = D::new().chain_update(vec![purpose; block]).chain_update(&input).finalize();
        for _ in 1..rounds {
            hash = D::digest(&hash);
        }
        derived.extend_from_slice(&hash);
        let adder: Vec<u8> = hash.iter().copied().cycle().take(block).collect();
        for part in input.chunks_mut(block) {
            // part + adder + 1, as numbers of `block` bytes.
            let mut carry = 1;
            for (byte, add) in part.iter_mut().zip(&adder).rev() {
                let sum = u16::from(*byte) + u16::from(*add) + carry;
                *byte = sum.to_be_bytes()[1];
                carry = sum >> 8;
            }
        }
    }
    derived.truncate(length);
    derived
}
