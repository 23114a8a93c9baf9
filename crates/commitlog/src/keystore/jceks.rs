//! JCEKS (`com.sun.crypto.provider.JceKeyStore`): a list of entries, closed by a salted SHA-1. A secret key is a
//! serialised Java object sealed with a key made from the password; opened, it is a serialised object again.

use std::rc::Rc;

use md5::Md5;
use sha1::{Digest as _, Sha1};

use super::{Entry, KeystoreError, Sealed, der, rounds, utf16};
use crate::encryption::cbc;

/// The only one `JceKeyStore` writes.
const SEAL: &str = "PBEWithMD5AndTripleDES";
const DAMAGED: KeystoreError = KeystoreError::Damaged { reason: "a part of the JCEKS file is broken" };
/// Depth of serialised objects within each other.
const DEPTH_MAX: usize = 16;

pub(super) struct SealedKey {
    salt: [u8; 8],
    rounds: u32,
    sealed: Vec<u8>,
}

pub(super) fn parse(bytes: &[u8], password: &str) -> Result<Vec<Entry>, KeystoreError> {
    let (content, digest) = bytes.split_last_chunk::<20>().ok_or(DAMAGED)?;
    let mut own = Sha1::new();
    own.update(utf16(password));
    own.update("Mighty Aphrodite");
    own.update(content);
    if own.finalize()[..] != digest[..] {
        return Err(KeystoreError::Password);
    }
    let mut input = Input(content);
    input.u32()?;
    let version = input.u32()?;
    let mut entries = Vec::new();
    for _ in 0..input.u32()? {
        let kind = input.u32()?;
        let alias = input.text()?;
        input.take(8)?;
        match kind {
            1 => {
                input.sized()?;
                for _ in 0..input.u32()? {
                    input.certificate(version)?;
                }
            }
            2 => input.certificate(version)?,
            3 => entries.push(Entry { alias, sealed: Sealed::Jceks(sealed_key(input.object()?)?) }),
            _ => return Err(DAMAGED),
        }
    }
    Ok(entries)
}

fn sealed_key(object: Value) -> Result<SealedKey, KeystoreError> {
    let Value::Object { mut fields, .. } = object else { return Err(DAMAGED) };
    let mut field = |name: &str| {
        let at = fields.iter().position(|(own, _)| own == name)?;
        Some(fields.swap_remove(at).1)
    };
    let (Some(Value::Bytes(sealed)), Some(Value::Bytes(parameters)), Some(Value::Text(seal))) =
        (field("encryptedContent"), field("encodedParams"), field("sealAlg"))
    else {
        return Err(DAMAGED);
    };
    if *seal != *SEAL {
        return Err(KeystoreError::Unsupported { form: format!("JCEKS sealed with {seal}"), reason: "is not known" });
    }
    let mut parameters = der::Der(&parameters).enter(der::SEQUENCE)?;
    let salt = parameters.expect(der::OCTETS)?.try_into().map_err(|_| DAMAGED)?;
    Ok(SealedKey { salt, rounds: rounds(parameters.number()?)?, sealed: sealed.to_vec() })
}

impl SealedKey {
    /// `None`: the password is another.
    pub(super) fn open(&self, password: &str) -> Result<Option<Vec<u8>>, KeystoreError> {
        // `PBES1Core`: each half of the salt is hashed with the password, round after round, to half of key and vector.
        let password: Vec<u8> = password.chars().filter_map(|char| u8::try_from(u32::from(char) & 0x7f).ok()).collect();
        let mut material = Vec::with_capacity(32);
        for half in self.salt.chunks(4) {
            let mut hash = half.to_vec();
            for _ in 0..self.rounds {
                hash = Md5::new().chain_update(&hash).chain_update(&password).finalize().to_vec();
            }
            material.extend(hash);
        }
        let (key, iv) = material.split_at(24);
        let mut sealed = self.sealed.clone();
        let Some(object) = cbc::<des::TdesEde3>(key, iv, &mut sealed) else { return Ok(None) };
        let Ok(object) = Input(object).object() else { return Ok(None) };
        match object {
            Value::Object { class, fields } if class == "javax.crypto.spec.SecretKeySpec" => {
                let key = fields.into_iter().find_map(|(name, value)| match value {
                    Value::Bytes(key) if name == "key" => Some(key.to_vec()),
                    _ => None,
                });
                key.map(Some).ok_or(DAMAGED)
            }
            Value::Object { class, .. } => {
                let form = format!("JCEKS with a {class}");
                Err(KeystoreError::Unsupported { form, reason: "is not a plain secret key" })
            }
            _ => Ok(None),
        }
    }
}

/// A value of Java's serialisation, as far as sealed keys use it. Cheap to name again, however long.
#[derive(Clone)]
enum Value {
    Null,
    Text(Rc<str>),
    Bytes(Rc<[u8]>),
    Object { class: String, fields: Vec<(String, Value)> },
}

/// What a later reference can name.
enum Handle {
    Class(Class),
    Value(Value),
    /// Nothing names one again.
    Object,
}

#[derive(Clone)]
struct Class {
    name: String,
    /// The parents' first.
    fields: Vec<(u8, String)>,
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], KeystoreError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(DAMAGED)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, KeystoreError> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, KeystoreError> {
        Ok(self.take(2)?.iter().fold(0, |number, byte| number << 8 | u16::from(*byte)))
    }

    fn u32(&mut self) -> Result<u32, KeystoreError> {
        Ok(self.take(4)?.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    /// `DataOutput.writeUTF`; names beyond the basic plane do not occur.
    fn text(&mut self) -> Result<String, KeystoreError> {
        let length = self.u16()?;
        Ok(String::from_utf8_lossy(self.take(length.into())?).into_owned())
    }

    fn sized(&mut self) -> Result<&'a [u8], KeystoreError> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    fn certificate(&mut self, version: u32) -> Result<(), KeystoreError> {
        if version >= 2 {
            self.text()?;
        }
        self.sized().map(drop)
    }

    /// A stream of Java's serialisation with one object.
    fn object(&mut self) -> Result<Value, KeystoreError> {
        if self.take(4)? != [0xac, 0xed, 0, 5] {
            return Err(DAMAGED);
        }
        self.value(&mut Vec::new(), 0)
    }

    fn value(&mut self, handles: &mut Vec<Handle>, depth: usize) -> Result<Value, KeystoreError> {
        if depth > DEPTH_MAX {
            return Err(DAMAGED);
        }
        let value = match self.u8()? {
            0x70 => return Ok(Value::Null),
            0x71 => match self.handle(handles)? {
                Handle::Value(value) => return Ok(value.clone()),
                Handle::Class(_) | Handle::Object => return Err(DAMAGED),
            },
            0x74 => Value::Text(self.text()?.into()),
            0x75 => {
                let class = self.class(handles, depth)?.ok_or(DAMAGED)?;
                if class.name != "[B" {
                    return Err(DAMAGED);
                }
                Value::Bytes(self.sized()?.into())
            }
            0x73 => {
                let class = self.class(handles, depth)?.ok_or(DAMAGED)?;
                handles.push(Handle::Object);
                let mut fields = Vec::new();
                for (kind, name) in class.fields {
                    let value = match kind {
                        b'L' | b'[' => self.value(handles, depth + 1)?,
                        b'B' | b'Z' => self.take(1).map(|_| Value::Null)?,
                        b'C' | b'S' => self.take(2).map(|_| Value::Null)?,
                        b'F' | b'I' => self.take(4).map(|_| Value::Null)?,
                        b'D' | b'J' => self.take(8).map(|_| Value::Null)?,
                        _ => return Err(DAMAGED),
                    };
                    fields.push((name, value));
                }
                return Ok(Value::Object { class: class.name, fields });
            }
            _ => return Err(DAMAGED),
        };
        handles.push(Handle::Value(value.clone()));
        Ok(value)
    }

    fn handle<'h>(&mut self, handles: &'h [Handle]) -> Result<&'h Handle, KeystoreError> {
        let index = self.u32()?.checked_sub(0x7e_0000).ok_or(DAMAGED)?;
        handles.get(index as usize).ok_or(DAMAGED)
    }

    /// `None`: no class, as the parent of the topmost.
    fn class(&mut self, handles: &mut Vec<Handle>, depth: usize) -> Result<Option<Class>, KeystoreError> {
        if depth > DEPTH_MAX {
            return Err(DAMAGED);
        }
        match self.u8()? {
            0x70 => Ok(None),
            0x71 => match self.handle(handles)? {
                Handle::Class(class) => Ok(Some(class.clone())),
                Handle::Value(_) | Handle::Object => Err(DAMAGED),
            },
            0x72 => {
                let name = self.text()?;
                self.take(8)?;
                let at = handles.len();
                handles.push(Handle::Class(Class { name: name.clone(), fields: Vec::new() }));
                // Serialisable and nothing else: a class that writes its own data could hold anything.
                if self.u8()? != 2 {
                    return Err(DAMAGED);
                }
                let mut own = Vec::new();
                for _ in 0..self.u16()? {
                    let kind = self.u8()?;
                    own.push((kind, self.text()?));
                    if matches!(kind, b'L' | b'[') {
                        self.value(handles, depth + 1)?;
                    }
                }
                if self.u8()? != 0x78 {
                    return Err(DAMAGED);
                }
                let parent = self.class(handles, depth + 1)?;
                let mut fields = parent.map(|parent| parent.fields).unwrap_or_default();
                fields.extend(own);
                let class = Class { name, fields };
                handles[at] = Handle::Class(class.clone());
                Ok(Some(class))
            }
            _ => Err(DAMAGED),
        }
    }
}
