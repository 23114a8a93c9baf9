//! Looking at dead letters, and what can be done with them without applying anything.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use cdc_model::TableSchema;
use serde::Serialize;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{ErrorType, Original};
use crate::{
    Target, TargetError,
    session::{Call, Frame, Session},
    target::Inner,
};

/// Filters of every statement below; NULL admits everything.
macro_rules! matching {
    () => {
        "where ($1::uuid[] is null or id = any($1)) and ($2::text is null or table_name = $2 or original_topic = $2) \
         and ($3::text is null or error_type = $3) and ($4::text is null or status = $4) \
         and ($5::text is null or first_failed_at >= $5::timestamptz) \
         and ($6::text is null or first_failed_at < $6::timestamptz)"
    };
}

/// Times in UTC, so that they sort as text.
macro_rules! time {
    ($column:literal) => {
        concat!("to_char(", $column, " at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')")
    };
}

const LIST: &str = concat!(
    "-- cdc: list dead letters\nselect id, coalesce(table_name, original_topic), column_name, node, position, error_type, \
     code, message, source_component, attempts, ",
    time!("first_failed_at"),
    ", ",
    time!("last_failed_at"),
    ", status, resolution, ",
    time!("resolved_at"),
    ", ",
    time!("published_at"),
    ", history::text, original_topic, original_partition, original_offset, original_timestamp_ms, table_id, \
     state is null, clustering, case when $8 then partition_key end, case when $8 then state end, \
     case when $8 then original_key end, case when $8 then original_value end, \
     case when $8 then original_headers::text end from _cdc.dlq ",
    matching!(),
    " order by first_failed_at, id limit $7 offset $9"
);
const COUNT: &str = concat!("-- cdc: count dead letters\nselect count(*) from _cdc.dlq ", matching!());
const IDS: &str = concat!(
    "-- cdc: find dead letters\nselect id from _cdc.dlq ",
    matching!(),
    " order by first_failed_at, id limit $7"
);
const RECORDS: &str = "-- cdc: records among dead letters\nselect exists (select from _cdc.dlq \
    where id = any($1::uuid[]) and state is null)";
const SUMMARY: &str = concat!(
    "-- cdc: sum up dead letters\nselect coalesce(table_name, original_topic), error_type, code, status, count(*), \
     sum(attempts)::bigint, ",
    time!("min(first_failed_at)"),
    ", ",
    time!("max(last_failed_at)"),
    " from _cdc.dlq ",
    matching!(),
    " group by 1, 2, 3, 4 order by 1, 2, 3, 4"
);
const DISCARD: &str = "-- cdc: discard dead letters\nupdate _cdc.dlq set status = 'discarded', resolution = $2, \
    resolved_at = now() where id = any($1::uuid[]) and status = 'unresolved' returning id";
const UNPUBLISHED: &str = concat!(
    "-- cdc: unpublished dead letters\nselect id, table_name, node, position, error_type, code, message, \
     source_component, attempts, ",
    time!("first_failed_at"),
    ", ",
    time!("last_failed_at"),
    ", ",
    time!("now()"),
    ", original_topic, original_partition, original_offset, original_timestamp_ms, original_key, original_value, \
     original_headers::text from _cdc.dlq where published_at is null and original_topic is not null \
     order by first_failed_at limit $1"
);
const PUBLISHED: &str = "-- cdc: published dead letters\nupdate _cdc.dlq set published_at = now() \
    where id = any($1::uuid[])";
const SCHEMAS: &str = "-- cdc: known schemas\nselect newest_schema from _cdc.tables where newest_schema is not null \
    order by table_id";
/// Not by one that knows less than another writer does.

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LetterStatus {
    Unresolved,
    /// The target was seen to contain it.
    Resolved,
    /// Given up by a person.
    Discarded,
}

impl LetterStatus {
    pub const ALL: [Self; 3] = [Self::Unresolved, Self::Resolved, Self::Discarded];

    pub fn name(self) -> &'static str {
        match self {
            Self::Unresolved => "unresolved",
            Self::Resolved => "resolved",
            Self::Discarded => "discarded",
        }
    }
}

/// Which letters; what is not set admits all.
#[derive(Clone, Default, Debug)]
pub struct LetterFilter {
    pub ids: Vec<Uuid>,
    /// `keyspace.table`, or the topic.
    pub table: Option<String>,
    pub error_type: Option<ErrorType>,
    pub status: Option<LetterStatus>,
    /// First refused then or later; in any form PostgreSQL reads.
    pub since: Option<String>,
    /// First refused before.
    pub until: Option<String>,
    /// Of the oldest, so many.
    pub limit: Option<u32>,
    /// All but so many of the oldest.
    pub offset: u32,
}

/// A dead letter, without key and values unless they were asked for.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    pub id: Uuid,
    /// `keyspace.table`, else the topic.
    pub table: Option<String>,
    pub column: Option<String>,
    /// `row`, `static row`, `deletion`, or `record` for one that was not decoded.
    pub kind: &'static str,
    pub error_type: ErrorType,
    pub code: String,
    pub message: String,
    pub status: String,
    pub attempts: i32,
    pub first_failed_at: String,
    pub last_failed_at: String,
    pub source_component: String,
    pub node: Option<Uuid>,
    pub position: Option<String>,
    pub original_topic: Option<String>,
    pub original_partition: Option<i32>,
    pub original_offset: Option<i64>,
    pub original_timestamp_ms: Option<i64>,
    pub resolution: Option<String>,
    pub resolved_at: Option<String>,
    pub published_at: Option<String>,
    pub history: serde_json::Value,
    #[serde(skip)]
    pub(super) content: Content,
}

/// What was refused.
#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) table: Option<Uuid>,
    pub(super) partition_key: Option<Vec<u8>>,
    pub(super) clustering: Option<Vec<u8>>,
    pub(super) state: Option<Vec<u8>>,
    pub(super) original: Option<Original>,
}

impl std::fmt::Debug for Content {
    /// Says nothing, because it is keys and values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Content")
    }
}

impl DeadLetter {
    fn of(row: &Row) -> Self {
        let clustering: Option<Vec<u8>> = row.get(23);
        let kind = match (row.get::<_, bool>(22), &clustering) {
            (true, _) => "record",
            (false, None) => "deletion",
            (false, Some(clustering)) if clustering == crate::transact::STATIC_ROW => "static row",
            (false, Some(_)) => "row",
        };
        Self {
            id: row.get(0),
            table: row.get(1),
            column: row.get(2),
            kind,
            node: row.get(3),
            position: row.get(4),
            error_type: ErrorType::named(row.get(5)),
            code: row.get(6),
            message: row.get(7),
            source_component: row.get(8),
            attempts: row.get(9),
            first_failed_at: row.get(10),
            last_failed_at: row.get(11),
            status: row.get(12),
            resolution: row.get(13),
            resolved_at: row.get(14),
            published_at: row.get(15),
            history: json(row.get(16)),
            original_topic: row.get(17),
            original_partition: row.get(18),
            original_offset: row.get(19),
            original_timestamp_ms: row.get(20),
            content: Content {
                table: row.get(21),
                clustering,
                partition_key: row.get(24),
                state: row.get(25),
                original: original(row, 17, 26),
            },
        }
    }

    /// Key and values as bytes in base64: of a record as Kafka had it, of a change also as `_cdc.dlq` holds it.
    pub fn values(&self) -> serde_json::Value {
        let base64 = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| BASE64_STANDARD.encode(bytes));
        let Content { partition_key, clustering, state, original, .. } = &self.content;
        let text = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| BASE64_STANDARD.encode(bytes));
        serde_json::json!({
            "partition_key": base64(partition_key),
            "clustering": base64(clustering),
            "state": base64(state),
            "original_key": original.as_ref().and_then(|original| text(&original.key)),
            "original_value": original.as_ref().and_then(|original| text(&original.value)),
            "original_headers": original.as_ref().map(|original| super::park::headers_json(&original.headers)),
        })
    }
}

/// The record behind a letter: topic, partition, offset and time stand at `place`, key, value and headers at `bytes`.
fn original(row: &Row, place: usize, bytes: usize) -> Option<Original> {
    let value = |index: usize| row.get::<_, Option<Vec<u8>>>(index).map(Bytes::from);
    let headers = row.get::<_, Option<String>>(bytes + 2).map(json).unwrap_or_default();
    let header = |header: &serde_json::Value| {
        let value = header[1].as_str().and_then(|value| BASE64_STANDARD.decode(value).ok()).map(Bytes::from);
        (header[0].as_str().unwrap_or_default().to_owned(), value)
    };
    Some(Original {
        topic: row.get::<_, Option<String>>(place)?,
        partition: row.get(place + 1),
        offset: row.get(place + 2),
        timestamp_ms: row.get(place + 3),
        key: value(bytes),
        value: value(bytes + 1),
        headers: headers.as_array().into_iter().flatten().map(header).collect(),
    })
}

fn json(text: String) -> serde_json::Value {
    serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text))
}

/// Letters of one table, cause and status.
#[derive(Clone, Debug, Serialize)]
pub struct LetterSummary {
    pub table: Option<String>,
    pub error_type: ErrorType,
    pub code: String,
    pub status: String,
    pub letters: i64,
    pub attempts: i64,
    pub oldest: String,
    pub newest: String,
}

/// A letter that topic `dlq-events` does not have yet.
#[derive(Clone, Debug)]
pub struct UnpublishedLetter {
    pub id: Uuid,
    pub table: Option<String>,
    pub node: Option<Uuid>,
    pub position: Option<String>,
    pub error_type: ErrorType,
    pub code: String,
    pub message: String,
    pub source_component: String,
    pub attempts: i32,
    pub first_failed_at: String,
    pub last_failed_at: String,
    /// The database's clock.
    pub now: String,
    pub original: Original,
}

impl Inner {
    pub(crate) async fn ask(&self, doing: &'static str, call: Call<'_>) -> Result<Vec<Row>, TargetError> {
        let mut session = Session::acquire(&self.pool).await?;
        match session.run(Frame::Whole, vec![call]).await {
            Ok(mut answers) => Ok(answers.remove(0)),
            Err(fault) => {
                session.abandon(&fault).await;
                Err(TargetError::Database { doing, fault })
            }
        }
    }

    /// Letters with all they hold, in no order.
    pub(super) async fn contents(&self, ids: Vec<Uuid>) -> Result<Vec<DeadLetter>, TargetError> {
        let call =
            filtered(LIST, &LetterFilter { ids, ..LetterFilter::default() }).with(None::<i64>).with(true).with(0_i64);
        Ok(self.ask("read dead letters", call).await?.iter().map(DeadLetter::of).collect())
    }
}

fn filtered<'s>(sql: &'s str, filter: &LetterFilter) -> Call<'s> {
    Call::new(sql)
        .with((!filter.ids.is_empty()).then(|| filter.ids.clone()))
        .with(filter.table.clone())
        .with(filter.error_type.map(ErrorType::name))
        .with(filter.status.map(LetterStatus::name))
        .with(filter.since.clone())
        .with(filter.until.clone())
}

impl Target {
    /// Oldest first.
    ///
    /// # Errors
    /// With [`crate::Disposition::Quarantine`] if `since` or `until` is not a time.
    pub async fn dead_letters(&self, filter: &LetterFilter, contents: bool) -> Result<Vec<DeadLetter>, TargetError> {
        let call =
            filtered(LIST, filter).with(filter.limit.map(i64::from)).with(contents).with(i64::from(filter.offset));
        Ok(self.inner.ask("list dead letters", call).await?.iter().map(DeadLetter::of).collect())
    }

    /// How many match, whatever limit and offset are.
    pub async fn count_dead_letters(&self, filter: &LetterFilter) -> Result<i64, TargetError> {
        let rows = self.inner.ask("count dead letters", filtered(COUNT, filter)).await?;
        Ok(rows.first().map_or(0, |row| row.get(0)))
    }

    /// As [`Self::dead_letters`], ids only and whatever the offset is.
    pub async fn dead_letter_ids(&self, filter: &LetterFilter) -> Result<Vec<Uuid>, TargetError> {
        let call = filtered(IDS, filter).with(filter.limit.map(i64::from));
        Ok(self.inner.ask("find dead letters", call).await?.iter().map(|row| row.get(0)).collect())
    }

    /// Whether any of these is a record that was not decoded, so that a replay needs schemas.
    pub async fn hold_records(&self, ids: &[Uuid]) -> Result<bool, TargetError> {
        let rows = self.inner.ask("look for records among dead letters", Call::new(RECORDS).with(ids.to_vec())).await?;
        Ok(rows.iter().any(|row| row.get(0)))
    }

    /// Letters by table, cause and status; the limit does not apply.
    pub async fn dead_letter_summary(&self, filter: &LetterFilter) -> Result<Vec<LetterSummary>, TargetError> {
        let rows = self.inner.ask("sum up dead letters", filtered(SUMMARY, filter)).await?;
        let summary = |row: &Row| LetterSummary {
            table: row.get(0),
            error_type: ErrorType::named(row.get(1)),
            code: row.get(2),
            status: row.get(3),
            letters: row.get(4),
            attempts: row.get(5),
            oldest: row.get(6),
            newest: row.get(7),
        };
        Ok(rows.iter().map(summary).collect())
    }

    /// Gives up those of the letters that are unresolved; how many they were.
    pub async fn discard_dead_letters(&self, ids: Vec<Uuid>, reason: &str) -> Result<usize, TargetError> {
        let call = Call::new(DISCARD).with(ids).with(reason.to_owned());
        Ok(self.inner.ask("discard dead letters", call).await?.len())
    }

    /// Letters that came from Kafka and are not yet in topic `dlq-events`, oldest first.
    pub async fn unpublished_dead_letters(&self, limit: i64) -> Result<Vec<UnpublishedLetter>, TargetError> {
        let rows = self.inner.ask("read unpublished dead letters", Call::new(UNPUBLISHED).with(limit)).await?;
        let letter = |row: &Row| {
            Some(UnpublishedLetter {
                id: row.get(0),
                table: row.get(1),
                node: row.get(2),
                position: row.get(3),
                error_type: ErrorType::named(row.get(4)),
                code: row.get(5),
                message: row.get(6),
                source_component: row.get(7),
                attempts: row.get(8),
                first_failed_at: row.get(9),
                last_failed_at: row.get(10),
                now: row.get(11),
                original: original(row, 12, 16)?,
            })
        };
        Ok(rows.iter().filter_map(letter).collect())
    }

    /// Notes that topic `dlq-events` has these.
    pub async fn dead_letters_published(&self, ids: Vec<Uuid>) -> Result<(), TargetError> {
        self.inner.ask("mark dead letters as published", Call::new(PUBLISHED).with(ids)).await.map(drop)
    }

    /// The newest definition of every table that writers of this database have known.
    pub async fn known_schemas(&self) -> Result<Vec<Arc<TableSchema>>, TargetError> {
        let rows = self.inner.ask("read table schemas", Call::new(SCHEMAS)).await?;
        let schema = |row: &Row| serde_json::from_str::<TableSchema>(row.get(0)).ok()?.new().ok().map(Arc::new);
        Ok(rows.iter().filter_map(schema).collect())
    }
}
