//! What replaces values that users do not want in PostgreSQL, before anything is merged or stored.

use cdc_model::{CellValue, ColumnState, CqlType, ValueBytes};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::settings::Mask;

/// Bytes kept of an element's hash where only its identity matters.
const IDENTITY: usize = 16;

/// How the cells of a column lose their values. Write times and TTLs stay, so that a row lives as long as in Cassandra.
#[derive(Clone, Debug)]
pub(crate) enum Concealment {
    /// Values are dropped. Of sets and maps, whose elements are told apart by what they are, a hash is kept.
    Drop { keyed: bool },
    /// Values, and what elements of sets and maps are called, become their HMAC.
    Hash { key: HashKey, keyed: bool },
}

/// Of one column.
#[derive(Clone)]
pub(crate) struct HashKey(Hmac<Sha256>);

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl HashKey {
    fn hash(&self, value: &[u8]) -> ValueBytes {
        let digest = self.0.clone().chain_update(value).finalize().into_bytes();
        hex(&digest).into_bytes().into()
    }

    /// Tells one salt from another and says nothing else of it.
    fn fingerprint(&self) -> String {
        hex(&self.0.clone().chain_update(b"cdc: which salt is this").finalize().into_bytes()[..4])
    }
}

impl Concealment {
    /// What a mask does; without one, what leaving the column out does.
    pub(crate) fn new(mask: Option<&Mask>, ty: &CqlType) -> Self {
        let keyed = matches!(ty, CqlType::Set { frozen: false, .. } | CqlType::Map { frozen: false, .. });
        match mask {
            None | Some(Mask::Null | Mask::Fixed(_)) => Self::Drop { keyed },
            Some(Mask::Hash(salt)) => {
                let key = Hmac::new_from_slice(salt.expose().as_bytes()).expect("HMAC takes keys of any length");
                Self::Hash { key: HashKey(key), keyed }
            }
        }
    }

    /// The type of what is left.
    pub(crate) fn masked_type(&self, ty: &CqlType) -> CqlType {
        let text = || Box::new(CqlType::Text);
        match (self, ty) {
            (Self::Drop { .. }, ty) => ty.clone(),
            (Self::Hash { .. }, CqlType::List { frozen: false, .. }) => {
                CqlType::List { element: text(), frozen: false }
            }
            (Self::Hash { .. }, CqlType::Set { frozen: false, .. }) => CqlType::Set { element: text(), frozen: false },
            (Self::Hash { .. }, CqlType::Map { frozen: false, .. }) => {
                CqlType::Map { key: text(), value: text(), frozen: false }
            }
            (Self::Hash { .. }, CqlType::Udt { keyspace, name, fields, frozen: false }) => CqlType::Udt {
                keyspace: keyspace.clone(),
                name: name.clone(),
                fields: fields.iter().map(|(field, _)| (field.clone(), CqlType::Text)).collect(),
                frozen: false,
            },
            (Self::Hash { .. }, _) => CqlType::Text,
        }
    }

    /// For the column's comment, by which a change of masks is noticed.
    pub(crate) fn describe(&self, mask: &Mask) -> String {
        match (self, mask) {
            (Self::Hash { key, .. }, _) => format!("HMAC-SHA-256, salt {}", key.fingerprint()),
            (Self::Drop { .. }, Mask::Fixed(_)) => "fixed text".to_owned(),
            (Self::Drop { .. }, _) => "NULL".to_owned(),
        }
    }

    pub(crate) fn apply(&self, state: &mut ColumnState) {
        match state {
            ColumnState::Simple(cell) => self.conceal(&mut cell.value),
            ColumnState::Complex(complex) => {
                for (path, cell) in &mut complex.cells {
                    match self {
                        Self::Drop { keyed: true } => *path = Sha256::digest(&**path)[..IDENTITY].into(),
                        Self::Hash { key, keyed: true } => *path = key.hash(path),
                        Self::Drop { keyed: false } | Self::Hash { keyed: false, .. } => {}
                    }
                    self.conceal(&mut cell.value);
                }
                complex.cells.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
        }
    }

    fn conceal(&self, value: &mut CellValue) {
        match (self, &mut *value) {
            (_, CellValue::Tombstone) => {}
            (Self::Hash { key, .. }, CellValue::Live(bytes)) => *bytes = key.hash(bytes),
            (Self::Drop { .. }, CellValue::Live(bytes)) => *bytes = ValueBytes::default(),
            // A context of no shards.
            (_, CellValue::Counter(bytes)) => *bytes = [0, 0].into(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        write!(out, "{byte:02x}").expect("a String takes all text");
        out
    })
}

#[cfg(test)]
mod tests {
    use cdc_runtime::Secret;

    use super::*;

    #[test]
    fn a_hash_is_hmac_sha_256_and_its_key_is_not_shown() {
        // RFC 4231, test case 2.
        let mask = Mask::Hash(Secret::new("Jefe"));
        let concealment = Concealment::new(Some(&mask), &CqlType::Text);
        let mut value = CellValue::Live(b"what do ya want for nothing?".as_slice().into());
        concealment.conceal(&mut value);
        assert_eq!(value.bytes(), b"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let shown = format!("{concealment:?} {mask:?}");
        assert!(!shown.contains("Jefe"), "{shown}");
    }
}
