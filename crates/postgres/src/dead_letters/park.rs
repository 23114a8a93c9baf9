//! Writing a dead letter.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use cdc_model::{Change, ChangeBody, TableId, encode_row, encode_tombstones};

use super::ErrorType;
use crate::{
    batch::{Body, Refusal, Unit},
    session::Call,
    transact::STATIC_ROW,
};

/// One that is there already keeps its first cause in its history; discarded is discarded for good.
const PARK: &str = "-- cdc: park a dead letter\ninsert into _cdc.dlq as d (id, table_id, table_name, column_name, node, \
    position, error_type, code, message, partition_key, clustering, state, original_topic, original_partition, \
    original_offset, original_timestamp_ms, original_key, original_value, original_headers, history) \
    select md5(coalesce(convert_to($1::uuid::text, 'UTF8') || $9::bytea || coalesce($10::bytea, '\\xfe'::bytea) \
        || $11::bytea, convert_to(format('%s:%s:%s:', $12::text, $13::int, $14::bigint), 'UTF8') \
        || coalesce($16::bytea, '\\xff'::bytea) || coalesce($17::bytea, '\\xff'::bytea)))::uuid, \
    $1::uuid, $2::text, $3::text, $4::uuid, $5::text, $6::text, $7::text, $8::text, $9::bytea, $10::bytea, $11::bytea, \
    $12::text, $13::int, $14::bigint, $15::bigint, $16::bytea, $17::bytea, $18::text::jsonb, \
    jsonb_build_array(jsonb_build_object('at', now(), 'error_type', $6::text, 'code', $7::text, 'message', $8::text)) \
    on conflict (id) do update set attempts = d.attempts + 1, last_failed_at = now(), column_name = excluded.column_name, \
    error_type = excluded.error_type, code = excluded.code, message = excluded.message, \
    history = (case when jsonb_array_length(d.history) < 20 then d.history else d.history - 0 end) || excluded.history, \
    original_topic = coalesce(d.original_topic, excluded.original_topic), \
    original_partition = coalesce(d.original_partition, excluded.original_partition), \
    original_offset = coalesce(d.original_offset, excluded.original_offset), \
    original_timestamp_ms = coalesce(d.original_timestamp_ms, excluded.original_timestamp_ms), \
    original_key = coalesce(d.original_key, excluded.original_key), \
    original_value = coalesce(d.original_value, excluded.original_value), \
    original_headers = coalesce(d.original_headers, excluded.original_headers), \
    status = case d.status when 'discarded' then d.status else 'unresolved' end, \
    resolution = case d.status when 'discarded' then d.resolution end, \
    resolved_at = case d.status when 'discarded' then d.resolved_at end";

/// A record as Kafka had it.
#[derive(Clone, PartialEq, Eq)]
pub struct Original {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl std::fmt::Debug for Original {
    /// Leaves key, value and headers out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Original({}:{}:{})", self.topic, self.partition, self.offset)
    }
}

/// A record that is no change.
#[derive(Clone, Debug)]
pub struct Undecoded {
    pub original: Original,
    /// Id and full name, if the record tells and the table is known.
    pub table: Option<(TableId, String)>,
    pub error_type: ErrorType,
    pub code: String,
    /// Without values.
    pub message: String,
}

impl Undecoded {
    /// The table, else the topic.
    pub fn name(&self) -> &str {
        self.table.as_ref().map_or(&self.original.topic, |(_, name)| name)
    }
}

/// Knows which records the changes of a delivery came in.
pub trait Origins: Send + Sync {
    /// The record of the last change that `is` accepts.
    fn find(&self, is: &dyn Fn(&Change) -> bool) -> Option<Original>;
}

pub(crate) fn park_change(unit: &Unit, refusal: &Refusal, origins: Option<&dyn Origins>) -> Call<'static> {
    let schema = &unit.layout.schema;
    let (clustering, state) = match &unit.body {
        Body::Row { clustering, change, .. } => {
            let clustering = clustering.as_ref().map_or(STATIC_ROW, |clustering| clustering.as_bytes());
            (Some(clustering.to_vec()), encode_row(schema, change))
        }
        Body::Tombstones(tombstones) => (None, encode_tombstones(tombstones)),
    };
    let mut original = origins.and_then(|origins| origins.find(&|change| is_of(change, unit)));
    if let Some(original) = original.as_mut().filter(|_| unit.layout.is_masked()) {
        // The record holds in clear what the state holds masked.
        original.value = None;
    }
    let call = Call::new(PARK)
        .with(Some(schema.id.0))
        .with(Some(schema.full_name()))
        .with(refusal.column.clone())
        .with(Some(unit.provenance.node.0))
        .with(Some(unit.provenance.position.to_string()))
        .with(refusal.error_type.name())
        .with(refusal.code.clone())
        .with(refusal.message.clone())
        .with(Some(unit.partition.to_vec()))
        .with(clustering)
        .with(Some(state.to_vec()));
    with_original(call, original)
}

pub(crate) fn park_record(record: Undecoded) -> Call<'static> {
    let (id, name) = record.table.map(|(id, name)| (id.0, name)).unzip();
    let call = Call::new(PARK)
        .with(id)
        .with(name)
        .with(None::<String>)
        .with(None::<uuid::Uuid>)
        .with(None::<String>)
        .with(record.error_type.name())
        .with(record.code)
        .with(printable(&record.message))
        .with(None::<Vec<u8>>)
        .with(None::<Vec<u8>>)
        .with(None::<Vec<u8>>);
    with_original(call, Some(record.original))
}

fn with_original(call: Call<'static>, original: Option<Original>) -> Call<'static> {
    let headers = original.as_ref().map(|original| headers_json(&original.headers).to_string());
    let (place, bytes) = original
        .map(|Original { topic, partition, offset, timestamp_ms, key, value, .. }| {
            ((topic, partition, offset, timestamp_ms), (key, value))
        })
        .unzip();
    let (key, value): (Option<Bytes>, Option<Bytes>) = bytes.unwrap_or_default();
    let bytea = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.to_vec());
    call.with(place.as_ref().map(|(topic, ..)| topic.clone()))
        .with(place.as_ref().map(|(_, partition, ..)| *partition))
        .with(place.as_ref().map(|(.., offset, _)| *offset))
        .with(place.and_then(|(.., timestamp)| timestamp))
        .with(bytea(key))
        .with(bytea(value))
        .with(headers)
}

pub(super) fn headers_json(headers: &[(String, Option<Bytes>)]) -> serde_json::Value {
    let header = |(name, value): &(String, Option<Bytes>)| {
        serde_json::json!([printable(name), value.as_ref().map(|value| BASE64_STANDARD.encode(value))])
    };
    headers.iter().map(header).collect()
}

/// PostgreSQL's text takes everything but this.
fn printable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Whether a change was folded into the unit.
fn is_of(change: &Change, unit: &Unit) -> bool {
    change.table.id == unit.layout.schema.id
        && change.partition_key == unit.partition
        && match (&change.body, &unit.body) {
            (ChangeBody::Row { clustering, .. }, Body::Row { clustering: Some(folded), .. }) => {
                unit.layout.canonical(clustering.clone()) == *folded
            }
            (ChangeBody::Static(_), Body::Row { clustering: None, .. })
            | (ChangeBody::DeletePartition(_) | ChangeBody::DeleteRange(_), Body::Tombstones(_)) => true,
            (ChangeBody::Row { .. } | ChangeBody::Static(_), _)
            | (ChangeBody::DeletePartition(_) | ChangeBody::DeleteRange(_), Body::Row { .. }) => false,
        }
}
