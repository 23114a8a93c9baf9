//! CQL types, as far as the generator needs them: to declare columns and to know what may go where.

use rand::{RngExt as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

use super::Variety;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Native {
    Ascii,
    BigInt,
    Blob,
    Boolean,
    Date,
    Decimal,
    Double,
    Duration,
    Float,
    Inet,
    Int,
    SmallInt,
    Text,
    Time,
    Timestamp,
    TimeUuid,
    TinyInt,
    Uuid,
    Varint,
}

impl Native {
    pub(super) const ALL: [Self; 19] = [
        Self::Ascii,
        Self::BigInt,
        Self::Blob,
        Self::Boolean,
        Self::Date,
        Self::Decimal,
        Self::Double,
        Self::Duration,
        Self::Float,
        Self::Inet,
        Self::Int,
        Self::SmallInt,
        Self::Text,
        Self::Time,
        Self::Timestamp,
        Self::TimeUuid,
        Self::TinyInt,
        Self::Uuid,
        Self::Varint,
    ];

    fn cql(self) -> &'static str {
        match self {
            Self::Ascii => "ascii",
            Self::BigInt => "bigint",
            Self::Blob => "blob",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Decimal => "decimal",
            Self::Double => "double",
            Self::Duration => "duration",
            Self::Float => "float",
            Self::Inet => "inet",
            Self::Int => "int",
            Self::SmallInt => "smallint",
            Self::Text => "text",
            Self::Time => "time",
            Self::Timestamp => "timestamp",
            Self::TimeUuid => "timeuuid",
            Self::TinyInt => "tinyint",
            Self::Uuid => "uuid",
            Self::Varint => "varint",
        }
    }

    /// Zero bytes are a value of it, and not NULL.
    pub(super) fn may_be_empty(self) -> bool {
        !matches!(self, Self::Date | Self::Duration | Self::SmallInt | Self::Time | Self::TinyInt)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Type {
    Native(Native),
    /// Only of columns of a counter table.
    Counter,
    List {
        element: Box<Self>,
        frozen: bool,
    },
    Set {
        element: Box<Self>,
        frozen: bool,
    },
    Map {
        key: Box<Self>,
        value: Box<Self>,
        frozen: bool,
    },
    Tuple(Vec<Self>),
    /// Index into the keyspace's [`Types::udts`].
    Udt {
        udt: usize,
        frozen: bool,
    },
    Vector {
        element: Box<Self>,
        dimension: usize,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Udt {
    pub(super) name: String,
    pub(super) fields: Vec<(String, Type)>,
    /// Of them, those it was created with.
    pub(super) created: usize,
}

/// Where a type stands, which limits what it may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Part of the primary key, element of a set or key of a map: ordered, so without durations.
    Key,
    /// Within another type.
    Element,
    /// A column of its own; not frozen if it likes.
    Column,
}

/// The user-defined types of a keyspace, and what its release can do.
#[derive(Debug)]
pub(super) struct Types {
    pub(super) udts: Vec<Udt>,
    pub(super) vectors: bool,
    pub(super) variety: Variety,
    pub(super) representable: bool,
}

impl Types {
    pub(super) fn random(&self, rng: &mut ChaCha8Rng, place: Place, depth: usize) -> Type {
        loop {
            let ty = self.any(rng, place, depth);
            let is_split = self.variety != Variety::Great && !self.representable && self.has_equals(&ty);
            if place != Place::Key || !self.has_duration(&ty) && !is_split {
                return ty;
            }
        }
    }

    /// With small variety a type whose values Cassandra takes as they are, so that [`super::EveryChange::written_to`]
    /// knows them again: it sorts sets and maps.
    pub(super) fn partition_key(&self, rng: &mut ChaCha8Rng) -> Type {
        loop {
            let ty = self.random(rng, Place::Key, 2);
            let is_sorted = |ty: &Type| matches!(ty, Type::Set { .. } | Type::Map { .. });
            let is_taken = |ty: &Type| self.contains(ty, &is_sorted) || self.has_equals(ty);
            if self.variety == Variety::Great || !is_taken(&ty) {
                return ty;
            }
        }
    }

    fn any(&self, rng: &mut ChaCha8Rng, place: Place, depth: usize) -> Type {
        let simple = if place == Place::Column { 8 } else { 14 };
        if depth == 0 || rng.random_range(0..20) < simple {
            return Type::Native(*Native::ALL.choose(rng).expect("there are native types"));
        }
        let frozen = place != Place::Column || rng.random_bool(0.3);
        let inner = if place == Place::Key { Place::Key } else { Place::Element };
        match rng.random_range(0..12) {
            0..2 => Type::List { element: Box::new(self.random(rng, inner, depth - 1)), frozen },
            2..4 => Type::Set { element: Box::new(self.random(rng, Place::Key, depth - 1)), frozen },
            4..6 => Type::Map {
                key: Box::new(self.random(rng, Place::Key, depth - 1)),
                value: Box::new(self.random(rng, inner, depth - 1)),
                frozen,
            },
            6..8 => Type::Tuple((0..rng.random_range(1..4)).map(|_| self.random(rng, inner, depth - 1)).collect()),
            8..10 if !self.udts.is_empty() => Type::Udt { udt: rng.random_range(0..self.udts.len()), frozen },
            _ if self.vectors => Type::Vector {
                element: Box::new(self.random(rng, inner, depth - 1)),
                dimension: rng.random_range(1..5),
            },
            _ => Type::Native(Native::Text),
        }
    }

    /// Whether the type, or one within it, is such.
    fn contains(&self, ty: &Type, is_such: &impl Fn(&Type) -> bool) -> bool {
        is_such(ty)
            || match ty {
                Type::Native(_) | Type::Counter => false,
                Type::List { element, .. } | Type::Set { element, .. } | Type::Vector { element, .. } => {
                    self.contains(element, is_such)
                }
                Type::Map { key, value, .. } => self.contains(key, is_such) || self.contains(value, is_such),
                Type::Tuple(parts) => parts.iter().any(|part| self.contains(part, is_such)),
                Type::Udt { udt, .. } => self.udts[*udt].fields.iter().any(|(_, ty)| self.contains(ty, is_such)),
            }
    }

    pub(super) fn has_duration(&self, ty: &Type) -> bool {
        self.contains(ty, &|ty| *ty == Type::Native(Native::Duration))
    }

    /// Values of other bytes may be equal: as keys they are one, and which bytes stay is chance. 1.5 and 1.50 are such.
    fn has_equals(&self, ty: &Type) -> bool {
        let natives = [Native::Decimal, Native::Varint, Native::Float, Native::Double];
        self.contains(ty, &|ty| matches!(ty, Type::Native(native) if natives.contains(native)))
    }

    pub(super) fn has_udt(&self, ty: &Type) -> bool {
        self.contains(ty, &|ty| matches!(ty, Type::Udt { .. }))
    }

    pub(super) fn refers_to(&self, ty: &Type, udt: usize) -> bool {
        self.contains(ty, &|ty| matches!(ty, Type::Udt { udt: other, .. } if *other == udt))
    }

    pub(super) fn cql(&self, ty: &Type) -> String {
        let text = match ty {
            Type::Native(native) => native.cql().to_owned(),
            Type::Counter => "counter".to_owned(),
            Type::List { element, .. } => format!("list<{}>", self.cql(element)),
            Type::Set { element, .. } => format!("set<{}>", self.cql(element)),
            Type::Map { key, value, .. } => format!("map<{}, {}>", self.cql(key), self.cql(value)),
            Type::Tuple(parts) => {
                let parts: Vec<_> = parts.iter().map(|part| self.cql(part)).collect();
                format!("frozen<tuple<{}>>", parts.join(", "))
            }
            Type::Udt { udt, .. } => self.udts[*udt].name.clone(),
            Type::Vector { element, dimension } => format!("vector<{}, {dimension}>", self.cql(element)),
        };
        if ty.is_frozen() { format!("frozen<{text}>") } else { text }
    }
}

impl Type {
    fn is_frozen(&self) -> bool {
        match self {
            Self::List { frozen, .. } | Self::Set { frozen, .. } | Self::Map { frozen, .. } => *frozen,
            Self::Udt { frozen, .. } => *frozen,
            _ => false,
        }
    }

    /// Stored as one cell per element.
    pub(super) fn is_multi_cell(&self) -> bool {
        let may_be = matches!(self, Self::List { .. } | Self::Set { .. } | Self::Map { .. } | Self::Udt { .. });
        may_be && !self.is_frozen()
    }

    /// Of a value within a vector, which then goes without its length (`AbstractType.valueLengthIfFixed`).
    pub(super) fn has_fixed_length(&self) -> bool {
        match self {
            Self::Native(native) => matches!(
                native,
                Native::Boolean
                    | Native::Int
                    | Native::Float
                    | Native::BigInt
                    | Native::Timestamp
                    | Native::Double
                    | Native::Uuid
                    | Native::TimeUuid
            ),
            Self::Vector { element, .. } => element.has_fixed_length(),
            _ => false,
        }
    }
}

/// Names are quoted everywhere, so they may be anything.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
