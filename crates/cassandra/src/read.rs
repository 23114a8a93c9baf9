//! Rows of a table as row states: whole token ranges page by page, or single rows by their keys.
//!
//! Only what `SELECT` shows can be read: live cells, with their write times and TTLs where CQL tells them. It does not for
//! row markers and counters, nor before Cassandra 5.0 for elements of collections; those have [`WriteTime::NONE`].

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdc_model::{
    Cell, CellValue, Clustering, ColumnId, ColumnKind, ColumnState, ComplexState, CqlType, Liveness, LocalTime, RowKey,
    RowState, TableSchema, TokenRange, ValueBytes, WriteTime,
};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::{ColumnIterator, DeserializeRow};
use scylla::deserialize::{DeserializationError, TypeCheckError};
use scylla::errors::{DbError, ExecutionError, PrepareError, RequestAttemptError};
use scylla::frame::response::result::{ColumnSpec, ColumnType};
use scylla::response::PagingState;
use scylla::serialize::SerializationError;
use scylla::serialize::value::SerializeValue;
use scylla::serialize::writers::{CellWriter, WrittenCellProof};
pub use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;

use crate::{CassandraConfig, CassandraError};

mod pages;

pub use pages::{Page, Pages};

/// Rows of a page; a page that fails is asked for again with a quarter of them.
const PAGE_ROWS: i32 = 2_000;
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(200);
/// Single rows asked for at a time.
const LOOKUPS: usize = 32;

/// What is read of each row beside its key. Static columns are always read as far as it takes to know whether there are any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fields {
    Nothing,
    /// Write times; no values.
    Times,
    Values,
    /// Values with write times and TTLs.
    All,
}

/// A session with the whole cluster, for reading tables.
#[derive(Clone)]
pub struct ClusterReader {
    session: Arc<Session>,
}

/// Reads one table. Clones are cheap.
#[derive(Clone)]
pub struct TableReader {
    session: Arc<Session>,
    schema: Arc<TableSchema>,
    pass: Arc<Query>,
    row: Arc<Query>,
    statics: Option<Arc<Query>>,
}

/// Key columns first, then the fields.
struct Query {
    statement: PreparedStatement,
    clustering: usize,
    fields: Vec<Field>,
}

struct Field {
    id: ColumnId,
    kind: ColumnKind,
    ty: CqlType,
    value: Option<usize>,
    time: Option<usize>,
    ttl: Option<usize>,
}

/// A single row that could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unread {
    /// Too few replicas answered.
    Unavailable,
    Failed(String),
}

impl ClusterReader {
    /// # Errors
    /// If no contact point can be reached or logged in to.
    pub fn connect(config: &CassandraConfig) -> BoxFuture<'_, Result<Self, CassandraError>> {
        Box::pin(async move {
            let contact_point = config.contact_points.join(", ");
            let mut builder = SessionBuilder::new()
                .known_nodes(&config.contact_points)
                .connection_timeout(Duration::from_millis(config.connect_timeout_ms))
                .fetch_schema_metadata(false);
            if let (Some(username), Some(password)) = (&config.username, &config.password) {
                builder = builder.user(username, password.expose());
            }
            let session = builder
                .build()
                .await
                .map_err(|source| CassandraError::Connect { contact_point, source: Box::new(source) })?;
            Ok(Self::of(Arc::new(session)))
        })
    }

    pub(crate) fn of(session: Arc<Session>) -> Self {
        Self { session }
    }

    /// Prepares what it takes to read a table: its ranges at `consistency`, its rows as they are asked for.
    ///
    /// # Errors
    /// If Cassandra refuses a statement, say because a column is gone.
    pub fn table(
        &self,
        schema: Arc<TableSchema>,
        fields: Fields,
        consistency: Consistency,
    ) -> BoxFuture<'_, Result<TableReader, CassandraError>> {
        Box::pin(async move {
            // 5.0 and later tell the times of elements; older ones refuse to prepare the question.
            match self.prepare(&schema, fields, consistency, true).await {
                Err(error) if error.is_refused() => self.prepare(&schema, fields, consistency, false).await,
                result => result,
            }
        })
    }

    async fn prepare(
        &self,
        schema: &Arc<TableSchema>,
        fields: Fields,
        consistency: Consistency,
        with_elements: bool,
    ) -> Result<TableReader, CassandraError> {
        let names = |columns: &[cdc_model::KeyColumn]| columns.iter().map(|c| quote(&c.name)).collect::<Vec<_>>();
        let (partition, clustering) = (names(&schema.partition_key), names(&schema.clustering));
        let equal = |names: &[String]| names.iter().map(|n| format!("{n} = ?")).collect::<Vec<_>>().join(" and ");
        let token = format!("token({})", partition.join(", "));
        let both: &[_] = &[ColumnKind::Regular, ColumnKind::Static];
        let range = format!("{token} > ? and {token} <= ?");
        let pass = self.query(schema, both, fields, with_elements, &range, consistency).await?;
        let key = [&partition[..], &clustering].concat();
        let row = [ColumnKind::Regular];
        let row = self.query(schema, &row, Fields::All, with_elements, &equal(&key), consistency).await?;
        let statics = match schema.live_columns(ColumnKind::Static).next() {
            None => None,
            Some(_) => {
                let one = format!("{} limit 1", equal(&partition));
                let kinds = [ColumnKind::Static];
                Some(Arc::new(self.query(schema, &kinds, Fields::All, with_elements, &one, consistency).await?))
            }
        };
        let (pass, row) = (Arc::new(pass), Arc::new(row));
        Ok(TableReader { session: Arc::clone(&self.session), schema: Arc::clone(schema), pass, row, statics })
    }

    async fn query(
        &self,
        schema: &TableSchema,
        kinds: &[ColumnKind],
        wanted: Fields,
        with_elements: bool,
        condition: &str,
        consistency: Consistency,
    ) -> Result<Query, CassandraError> {
        let keys = schema.partition_key.iter().chain(&schema.clustering);
        let mut selected: Vec<String> = keys.map(|column| quote(&column.name)).collect();
        let mut fields = Vec::new();
        for (id, column) in kinds.iter().flat_map(|kind| schema.live_columns(*kind)) {
            let (name, ty) = (quote(&column.name), column.ty.clone());
            let has_time = ty != CqlType::Counter && (with_elements || !ty.is_multi_cell());
            let time = has_time && matches!(wanted, Fields::Times | Fields::All);
            let is_needed = column.kind == ColumnKind::Static && !time;
            let value = matches!(wanted, Fields::Values | Fields::All) || is_needed;
            let mut select = |wanted: bool, text: String| {
                wanted.then(|| {
                    selected.push(text);
                    selected.len() - 1
                })
            };
            let field = Field {
                id,
                kind: column.kind,
                ty,
                value: select(value, name.clone()),
                time: select(time, format!("writetime({name})")),
                ttl: select(time && wanted == Fields::All, format!("ttl({name})")),
            };
            fields.push(field);
        }
        // In the order of ids, as a row state has them.
        fields.sort_by_key(|field| field.id);
        let (keyspace, table) = (quote(&schema.keyspace), quote(&schema.name));
        let cql = format!("select {} from {keyspace}.{table} where {condition}", selected.join(", "));
        let prepared = self.session.prepare(cql).await;
        let mut statement =
            prepared.map_err(|error| CassandraError::Query { table: "a captured table", source: Box::new(error) })?;
        statement.set_consistency(consistency);
        statement.set_page_size(PAGE_ROWS);
        statement.set_is_idempotent(true);
        Ok(Query { statement, clustering: schema.partition_key.len(), fields })
    }
}

impl CassandraError {
    /// Whether Cassandra has understood a statement and refused it, which is no failure that passes.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Query { source, .. } if is_invalid(&**source))
    }
}

fn is_invalid(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let Some(PrepareError::AllAttemptsFailed { first_attempt }) = error.downcast_ref() else { return false };
    matches!(first_attempt, RequestAttemptError::DbError(DbError::Invalid, _))
}

impl TableReader {
    /// Reads a range page by page and hands over its rows; a partition's static row before its first row. Ends early, with
    /// what it has, when `go_on` says so.
    ///
    /// # Errors
    /// What the last attempt at a page met.
    pub async fn scan(
        &self,
        range: TokenRange,
        mut go_on: impl FnMut(usize) -> bool,
        mut take: impl FnMut(RowKey, RowState),
    ) -> Result<(), CassandraError> {
        let mut pages = self.pages(range);
        loop {
            let page = pages.next(&mut take).await?;
            if !go_on(page.rows) || page.is_last {
                return Ok(());
            }
        }
    }

    /// Single rows with times and TTLs, in the order of their keys; `None` of one that is not there. At `ALL` rather than
    /// the reader's consistency if asked.
    pub fn rows<'a>(
        &'a self,
        keys: &'a [RowKey],
        at_all: bool,
    ) -> BoxFuture<'a, Vec<Result<Option<RowState>, Unread>>> {
        let asked: Vec<BoxFuture<'a, _>> = keys.iter().map(|key| self.look(key, at_all).boxed()).collect();
        stream::iter(asked).buffered(LOOKUPS).collect().boxed()
    }

    async fn look(&self, key: &RowKey, at_all: bool) -> Result<Option<RowState>, Unread> {
        let Some(query) = (match key.clustering {
            Some(_) => Some(&self.row),
            None => self.statics.as_ref(),
        }) else {
            return Ok(None);
        };
        let Some(partition) = self.schema.split_partition_key(&key.partition) else { return Ok(None) };
        let clustering = key.clustering.iter().flat_map(Clustering::values).flatten();
        let values: Vec<RawValue<'_>> =
            partition.iter().map(|value| &value[..]).chain(clustering).map(RawValue).collect();
        let mut statement = query.statement.clone();
        if at_all {
            statement.set_consistency(Consistency::All);
        }
        let mut attempt = 1;
        let page = loop {
            match self.session.execute_single_page(&statement, &values, PagingState::start()).await {
                Ok((page, _)) => break page,
                Err(error) if attempt == ATTEMPTS => return Err(unread(&error)),
                Err(_) => tokio::time::sleep(PAUSE * attempt).await,
            }
            attempt += 1;
        };
        let damaged = |error: &dyn std::error::Error| Unread::Failed(error.to_string());
        let rows = page.into_rows_result().map_err(|error| damaged(&error))?;
        let row = rows.maybe_first_row::<RawRow<'_>>().map_err(|error| damaged(&error))?;
        let Some(RawRow(values)) = row else { return Ok(None) };
        let (row, fixed) = query.states(&values, now(), true);
        Ok(match key.clustering {
            Some(_) => query.clustering(&self.schema, &values).map(|_| row),
            None => fixed,
        })
    }
}

impl Query {
    fn partition(&self, values: &[Option<&[u8]>]) -> ValueBytes {
        let parts: Vec<&[u8]> = values[..self.clustering].iter().map(|value| value.unwrap_or_default()).collect();
        TableSchema::join_partition_key(&parts)
    }

    /// `None` of a partition with static columns and no row.
    fn clustering(&self, schema: &TableSchema, values: &[Option<&[u8]>]) -> Option<Clustering> {
        let values = &values[self.clustering..self.clustering + schema.clustering.len()];
        (values.is_empty() || values.iter().any(Option::is_some)).then(|| Clustering::new(values.iter().copied()))
    }

    /// The row, and, if wanted, the static row if there is one.
    fn states(&self, values: &[Option<&[u8]>], now: LocalTime, statics: bool) -> (RowState, Option<RowState>) {
        let marker = Liveness { time: WriteTime::NONE, ttl: 0, expires: LocalTime::NONE };
        let mut row = RowState { liveness: Some(marker), ..RowState::default() };
        let mut fixed = RowState::default();
        for field in &self.fields {
            let of = match field.kind {
                ColumnKind::Regular => &mut row,
                ColumnKind::Static if statics => &mut fixed,
                ColumnKind::Static => continue,
            };
            of.columns.extend(field.state(values, now).map(|state| (field.id, state)));
        }
        (row, (!fixed.columns.is_empty()).then_some(fixed))
    }
}

impl Field {
    fn state(&self, values: &[Option<&[u8]>], now: LocalTime) -> Option<ColumnState> {
        let at = |place: Option<usize>| place.and_then(|place| values[place]);
        let (times, ttls) = (at(self.time), at(self.ttl));
        if !self.ty.is_multi_cell() {
            let value = match self.value {
                Some(_) => at(self.value)?,
                None => times.map(|_| &[][..])?,
            };
            let time = times.and_then(long).map_or(WriteTime::NONE, WriteTime);
            let expires = ttls.and_then(int).map_or(LocalTime::NONE, |ttl| LocalTime(now.0 + i64::from(ttl)));
            let cell = cell(time, expires, value.into());
            return Some(ColumnState::Simple(match self.ty {
                CqlType::Counter => Cell { value: CellValue::Counter(counter(value)), ..cell },
                _ => cell,
            }));
        }
        let times: Option<Vec<Option<&[u8]>>> = times.and_then(|times| parts(times, 4));
        let Some(place) = self.value else {
            let newest = times?.into_iter().flatten().filter_map(long).max()?;
            return Some(ColumnState::Simple(cell(WriteTime(newest), LocalTime::NONE, ValueBytes::default())));
        };
        let (times, ttls) = (times.unwrap_or_default(), ttls.and_then(|ttls| parts(ttls, 4)).unwrap_or_default());
        let elements = elements(&self.ty, values[place]?)?;
        // Numbered by field or by element: if Cassandra told another number of times they are not known.
        let count = elements.last().map_or(0, |(number, ..)| number + 1);
        let is_known = times.len() >= count;
        let cells = elements.into_iter().map(|(number, path, value)| {
            let of = |list: &[Option<&[u8]>]| list.get(number).copied().flatten().map(<[u8]>::to_vec);
            let time = of(&times).filter(|_| is_known).as_deref().and_then(long).map_or(WriteTime::NONE, WriteTime);
            let ttl = of(&ttls).as_deref().and_then(int);
            let expires = ttl.map_or(LocalTime::NONE, |ttl| LocalTime(now.0 + i64::from(ttl)));
            (path, cell(time, expires, value))
        });
        let mut cells: Vec<(ValueBytes, Cell)> = cells.collect();
        cells.sort_by(|(a, _), (b, _)| a.cmp(b));
        (!cells.is_empty()).then_some(ColumnState::Complex(ComplexState { deletion: None, cells }))
    }
}

fn cell(time: WriteTime, expires: LocalTime, value: ValueBytes) -> Cell {
    Cell { time, ttl: 0, local: expires, value: CellValue::Live(value) }
}

/// A context of one shard that adds up to what was read.
fn counter(total: &[u8]) -> ValueBytes {
    [&[0, 0][..], &[0; 16], &1i64.to_be_bytes(), total].concat().into()
}

/// Number, path and value of each element of a non-frozen collection or user-defined type.
fn elements(ty: &CqlType, value: &[u8]) -> Option<Vec<(usize, ValueBytes, ValueBytes)>> {
    let head = if matches!(ty, CqlType::Udt { .. }) { 0 } else { 4 };
    let parts = parts(value, head)?;
    let numbered = parts.iter().enumerate();
    Some(match ty {
        // Elements of a list are found by time UUIDs, which CQL does not tell: any that keep their order.
        CqlType::List { .. } => {
            let path = |number: usize| {
                let mut uuid = [0; 16];
                uuid[..4].copy_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
                uuid[6] = 0x10;
                ValueBytes::from(&uuid[..])
            };
            numbered.map(|(number, part)| (number, path(number), part.unwrap_or_default().into())).collect()
        }
        CqlType::Set { .. } => {
            numbered.map(|(number, part)| (number, part.unwrap_or_default().into(), ValueBytes::default())).collect()
        }
        CqlType::Map { .. } => {
            let pairs = parts.chunks_exact(2).enumerate();
            pairs.map(|(n, pair)| (n, pair[0].unwrap_or_default().into(), pair[1].unwrap_or_default().into())).collect()
        }
        _ => numbered
            .filter_map(|(number, part)| {
                let path = u16::try_from(number).ok()?.to_be_bytes();
                Some((number, ValueBytes::from(&path[..]), (*part)?.into()))
            })
            .collect(),
    })
}

/// Values with i32 lengths behind a head; `None` if they are cut off.
fn parts(value: &[u8], head: usize) -> Option<Vec<Option<&[u8]>>> {
    let mut rest = value.get(head..)?;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        rest = tail;
        parts.push(match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => None,
            Ok(length) => {
                let (part, tail) = tail.split_at_checked(length)?;
                rest = tail;
                Some(part)
            }
        });
    }
    Some(parts)
}

fn long(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(bytes.try_into().ok()?))
}

fn int(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_be_bytes(bytes.try_into().ok()?))
}

fn now() -> LocalTime {
    seconds(SystemTime::now())
}

fn seconds(time: SystemTime) -> LocalTime {
    let elapsed = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    LocalTime(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX - 1))
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> CassandraError {
    CassandraError::Query { table: "a captured table", source: Box::new(error) }
}

fn unread(error: &ExecutionError) -> Unread {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(
            DbError::Unavailable { .. } | DbError::ReadTimeout { .. } | DbError::ReadFailure { .. },
            _,
        ))
        | ExecutionError::RequestTimeout(_) => Unread::Unavailable,
        // Errors of Cassandra repeat no values.
        other => Unread::Failed(other.to_string()),
    }
}

/// Columns as they came.
struct RawRow<'frame>(Vec<Option<&'frame [u8]>>);

impl<'frame, 'metadata> DeserializeRow<'frame, 'metadata> for RawRow<'frame> {
    fn type_check(_: &[ColumnSpec<'_>]) -> Result<(), TypeCheckError> {
        Ok(())
    }

    fn deserialize(row: ColumnIterator<'frame, 'metadata>) -> Result<Self, DeserializationError> {
        row.map(|column| Ok(column?.slice.map(|slice| slice.as_slice()))).collect::<Result<_, _>>().map(Self)
    }
}

/// A value as Cassandra serialises it.
struct RawValue<'v>(&'v [u8]);

impl SerializeValue for RawValue<'_> {
    fn serialize<'b>(
        &self,
        _: &ColumnType<'_>,
        writer: CellWriter<'b>,
    ) -> Result<WrittenCellProof<'b>, SerializationError> {
        writer.set_value(self.0).map_err(SerializationError::new)
    }
}
