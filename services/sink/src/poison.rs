//! What records hold, and those that hold nothing.

use std::{collections::HashMap, sync::Arc};

use cdc_kafka::{Record, SchemaFollower, partition_of};
use cdc_model::{Change, TableId, TableSchema, TableTruncation};
use cdc_postgres::{ErrorType, Original, Undecodable, Undecoded};
use cdc_wire::{SchemaLookup, WireError, decode_change, decode_truncation, table_of};

/// What an agent sends.
pub(crate) enum Event {
    Change(Change),
    Truncation(TableTruncation),
}

/// Why a record is not a change, or not one that belongs where it stands.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Poison {
    #[error("the record has no key; an agent's has the partition key")]
    NullKey,
    #[error("the record has no value; an agent never deletes a record")]
    NullValue,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the record's key is not the partition key of the change in it")]
    KeyMismatch,
    #[error("the record's key belongs into another of the topic's partitions")]
    PartitionMismatch,
}

impl Poison {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NullKey => "NULL_KEY",
            Self::NullValue => "NULL_VALUE",
            Self::Wire(error) => error.code(),
            Self::KeyMismatch => "KEY_MISMATCH",
            Self::PartitionMismatch => "PARTITION_MISMATCH",
        }
    }

    pub(crate) fn error_type(&self) -> ErrorType {
        match self {
            Self::Wire(
                WireError::UnknownTable(_)
                | WireError::UnknownColumn { .. }
                | WireError::SchemaVersion(_)
                | WireError::Schema(_),
            ) => ErrorType::SchemaMismatch,
            Self::NullKey
            | Self::NullValue
            | Self::KeyMismatch
            | Self::PartitionMismatch
            | Self::Wire(WireError::NotSingleObject | WireError::UnknownFormat(_) | WireError::Malformed { .. }) => {
                ErrorType::DecodeError
            }
        }
    }

    /// Never the name of a column as the record has it: whoever wrote the record may have put anything there.
    fn message(&self) -> String {
        match self {
            Self::Wire(WireError::UnknownColumn { table, .. }) => {
                format!("the record names a column that table {table} does not have in cdc-schemas")
            }
            other => other.to_string(),
        }
    }

    pub(crate) fn undecoded(&self, record: &Record, schemas: &impl SchemaLookup) -> Undecoded {
        let table = record.payload.as_deref().and_then(table_of).and_then(|id| schemas.table(id));
        Undecoded {
            original: original(record),
            table: table.map(|table| (table.id, table.full_name())),
            error_type: self.error_type(),
            code: self.code().to_owned(),
            message: self.message(),
        }
    }
}

pub(crate) fn original(record: &Record) -> Original {
    Original {
        topic: record.at.topic.to_string(),
        partition: record.at.partition,
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
        key: record.key.clone(),
        value: record.payload.clone(),
        headers: record.headers.clone(),
    }
}

/// What a record holds; with the number of the topic's partitions also where a change stands is looked at.
pub(crate) fn decode(record: &Record, partitions: Option<i32>, schemas: &impl SchemaLookup) -> Result<Event, Poison> {
    let payload = record.payload.clone().ok_or(Poison::NullValue)?;
    // It stands in every partition, under no key.
    if record.key.is_none()
        && let Some(truncation) = decode_truncation(payload.clone(), schemas)?
    {
        return Ok(Event::Truncation(truncation));
    }
    let key = record.key.as_ref().ok_or(Poison::NullKey)?;
    let change = decode_change(payload, schemas)?;
    if change.partition_key[..] != key[..] {
        return Err(Poison::KeyMismatch);
    }
    match partitions {
        Some(partitions) if partition_of(key, partitions) != record.at.partition => Err(Poison::PartitionMismatch),
        Some(_) | None => Ok(Event::Change(change)),
    }
}

/// Decodes a record that was set aside, with the stored definitions of tables and what the schema topic adds to them. Its
/// key and place are not looked at again: whoever replays it has decided.
pub fn decode_again(
    original: &Original,
    stored: &HashMap<TableId, Arc<TableSchema>>,
    topic: Option<&SchemaFollower>,
) -> Result<Change, Undecodable> {
    let value = original.value.clone().ok_or(Poison::NullValue);
    let schemas = Evolved { stored, topic };
    value.and_then(|value| Ok(decode_change(value, &schemas)?)).map_err(|poison| Undecodable {
        error_type: poison.error_type(),
        code: poison.code().to_owned(),
        message: poison.message(),
    })
}

/// The topic's definitions as versions of the stored ones, whose columns keep their ids.
struct Evolved<'s> {
    stored: &'s HashMap<TableId, Arc<TableSchema>>,
    topic: Option<&'s SchemaFollower>,
}

impl SchemaLookup for Evolved<'_> {
    fn table(&self, id: TableId) -> Option<Arc<TableSchema>> {
        match (self.stored.get(&id), self.topic.and_then(|topic| topic.table(id))) {
            (Some(stored), Some(newer)) => stored.evolve((*newer).clone()).ok().map(Arc::new),
            (stored, newer) => stored.cloned().or(newer),
        }
    }
}
