//! The kinds of errors that set a change or record aside: a contract with those who read dead letters.

use serde::{Deserialize, Serialize};

use crate::value::Unrepresentable;

/// Why something is a dead letter. The list is closed; the exact cause is the letter's code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorType {
    /// The record speaks of a table or column that nobody has described.
    SchemaMismatch,
    /// A value has no form in the column's type.
    TypeConversion,
    /// A constraint of the target table, or its primary key, does not admit the row.
    ConstraintViolation,
    /// A value has the right type and is too large, too small or too long.
    ValueOutOfRange,
    /// The record is not a change as an agent writes it.
    DecodeError,
    /// PostgreSQL refused the row with a code that says no more than that.
    Unknown,
}

impl ErrorType {
    pub const ALL: [Self; 6] = [
        Self::SchemaMismatch,
        Self::TypeConversion,
        Self::ConstraintViolation,
        Self::ValueOutOfRange,
        Self::DecodeError,
        Self::Unknown,
    ];

    /// As it stands in `_cdc.dlq`, in topic `dlq-events` and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::SchemaMismatch => "SCHEMA_MISMATCH",
            Self::TypeConversion => "TYPE_CONVERSION",
            Self::ConstraintViolation => "CONSTRAINT_VIOLATION",
            Self::ValueOutOfRange => "VALUE_OUT_OF_RANGE",
            Self::DecodeError => "DECODE_ERROR",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// The one of this name; [`Self::Unknown`] if there is none.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|one| one.name() == name).unwrap_or(Self::Unknown)
    }

    pub(crate) fn of_value(error: Unrepresentable) -> Self {
        match error {
            Unrepresentable::Nul | Unrepresentable::Malformed(_) => Self::TypeConversion,
            Unrepresentable::Range(_) | Unrepresentable::Size => Self::ValueOutOfRange,
            Unrepresentable::NullKey | Unrepresentable::InexactKey(_) => Self::ConstraintViolation,
        }
    }

    /// Of an SQLSTATE that condemns a row (classes 22 and 23, and 54000). Those of class 22 that PostgreSQL does not
    /// raise by itself for a stored value, as a trigger's own, tell nothing.
    pub(crate) fn of_sqlstate(sqlstate: &str) -> Self {
        match sqlstate {
            // String, number, date or interval too large; a key longer than an index takes.
            "22001" | "22003" | "22008" | "22015" | "54000" => Self::ValueOutOfRange,
            // Character sets and encodings, formats of text and binary values, JSON.
            "22021" | "2200N" | "22007" | "22018" | "22023" | "22026" | "22030" | "22032" | "22P02" | "22P03"
            | "22P05" => Self::TypeConversion,
            code if code.starts_with("23") => Self::ConstraintViolation,
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for ErrorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_serialised_form() {
        for one in ErrorType::ALL {
            assert_eq!(serde_json::to_value(one).unwrap(), one.name());
            assert_eq!(ErrorType::named(one.name()), one);
        }
    }
}
