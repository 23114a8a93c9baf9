//! A server for the whole binary, a database per test, and short ways to say what changes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use cdc_model::{
    Cell, CellValue, Change, ChangeBody, Clustering, Column, ColumnKind, ColumnState, CqlType, DeletionTime, KeyColumn,
    Liveness, LocalTime, NodeId, PartitionTombstones, Provenance, RowState, SegmentId, SegmentPosition, TableId,
    TableSchema, ValueBytes, VisibleColumn, WriteTime,
};
use cdc_postgres::{PostgresConfig, Target};
use cdc_runtime::Secret;
use cdc_testkit::Postgres;
use deadpool_postgres::{Manager, Object, Pool};
use tokio_postgres::NoTls;
use uuid::Uuid;

static SERVER: OnceLock<Postgres> = OnceLock::new();
static DATABASES: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct Database {
    pub(crate) config: PostgresConfig,
    pool: Pool,
}

fn pool(url: &str) -> Result<Pool> {
    Ok(Pool::builder(Manager::new(url.parse()?, NoTls)).max_size(4).build()?)
}

impl Database {
    /// A new, empty database on the shared server.
    pub(crate) async fn create() -> Result<Self> {
        let server =
            tokio::task::spawn_blocking(|| SERVER.get_or_init(|| Postgres::start().expect("start PostgreSQL")));
        Self::create_on(server.await?).await
    }

    pub(crate) async fn create_on(server: &Postgres) -> Result<Self> {
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let admin = pool(&server.url())?.get().await?;
        admin.batch_execute(&format!("create database {name}")).await?;
        let url = server.url_of(&name);
        let password = url.split(['@', ':']).nth(2).context("the password stands between : and @")?;
        let address = server.address();
        let mut config = PostgresConfig::new(address.ip().to_string(), address.port(), &name, "postgres");
        config.password = Some(Secret::new(password));
        Ok(Self { config, pool: pool(&url)? })
    }

    pub(crate) async fn target(&self) -> Result<Target> {
        Ok(Target::connect(&self.config).await?)
    }

    pub(crate) async fn client(&self) -> Result<Object> {
        Ok(self.pool.get().await?)
    }

    /// The one value of the one row.
    pub(crate) async fn number(&self, sql: &str) -> Result<i64> {
        Ok(self.client().await?.query_one(&format!("select ({sql})::bigint"), &[]).await?.get(0))
    }

    /// All rows, each column as text.
    pub(crate) async fn rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let rows = self.client().await?.simple_query(sql).await?;
        Ok(rows
            .iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }
}

pub(crate) fn now() -> LocalTime {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    LocalTime(elapsed.as_secs().cast_signed())
}

pub(crate) fn key_column(name: &str, ty: CqlType) -> KeyColumn {
    KeyColumn { name: name.to_owned(), ty, reversed: false }
}

pub(crate) fn column(name: &str, ty: CqlType, kind: ColumnKind) -> Column {
    Column { name: name.to_owned(), ty, kind, dropped: None }
}

pub(crate) fn schema(
    name: &str,
    key: Vec<KeyColumn>,
    clustering: Vec<KeyColumn>,
    columns: Vec<Column>,
) -> Arc<TableSchema> {
    let schema = TableSchema {
        id: TableId(Uuid::from_u128(u128::from_be_bytes(*b"table-id-of-test") ^ name.len() as u128)),
        keyspace: "shop".to_owned(),
        name: name.to_owned(),
        partition_key: key,
        clustering,
        columns,
        cdc: true,
        gc_grace_seconds: 864_000,
    };
    Arc::new(schema.new().expect("the schema is valid"))
}

/// `orders (p text, c int, v int, t text, tags set<int>, st text static)`.
pub(crate) fn orders() -> Arc<TableSchema> {
    let tags = CqlType::Set { element: Box::new(CqlType::Int), frozen: false };
    schema(
        "Orders",
        vec![key_column("p", CqlType::Text)],
        vec![key_column("c", CqlType::Int)],
        vec![
            column("v", CqlType::Int, ColumnKind::Regular),
            column("t", CqlType::Text, ColumnKind::Regular),
            column("tags", tags, ColumnKind::Regular),
            column("st", CqlType::Text, ColumnKind::Static),
        ],
    )
}

pub(crate) fn text(text: &str) -> ValueBytes {
    text.as_bytes().into()
}

pub(crate) fn int(number: i32) -> ValueBytes {
    number.to_be_bytes().into()
}

pub(crate) fn clustering(number: i32) -> Clustering {
    Clustering::new([Some(int(number))])
}

pub(crate) fn live(time: i64, value: ValueBytes) -> ColumnState {
    ColumnState::Simple(Cell::live(WriteTime(time), value))
}

pub(crate) fn deletion(time: i64) -> DeletionTime {
    DeletionTime { time: WriteTime(time), local: LocalTime(1_000_000) }
}

pub(crate) fn marker(time: i64) -> Liveness {
    Liveness { time: WriteTime(time), ttl: 0, expires: LocalTime::NONE }
}

/// A row state from columns by name.
pub(crate) fn state(table: &TableSchema, liveness: Option<Liveness>, columns: Vec<(&str, ColumnState)>) -> RowState {
    let id = |name: &str| table.column_id(name.as_bytes()).expect("the table has the column");
    let mut columns: Vec<_> = columns.into_iter().map(|(name, state)| (id(name), state)).collect();
    columns.sort_by_key(|(id, _)| *id);
    RowState { liveness, deletion: None, columns }
}

pub(crate) fn change(table: &Arc<TableSchema>, partition: &str, body: ChangeBody) -> Change {
    let position = SegmentPosition { segment: SegmentId(1), offset: 100 };
    let provenance = Provenance { node: NodeId(Uuid::from_u128(7)), position };
    Change { table: Arc::clone(table), partition_key: partition.as_bytes().into(), body, provenance }
}

/// `INSERT INTO orders (p, c, v, t)` at a write time.
pub(crate) fn insert(table: &Arc<TableSchema>, p: &str, c: i32, v: i32, t: &str, time: i64) -> Change {
    let columns = vec![("v", live(time, int(v))), ("t", live(time, text(t)))];
    let row = state(table, Some(marker(time)), columns);
    change(table, p, ChangeBody::Row { clustering: clustering(c), row })
}

pub(crate) fn delete_row(table: &Arc<TableSchema>, p: &str, c: i32, time: i64) -> Change {
    let row = RowState { deletion: Some(deletion(time)), ..RowState::default() };
    change(table, p, ChangeBody::Row { clustering: clustering(c), row })
}

pub(crate) fn delete_partition(table: &Arc<TableSchema>, p: &str, time: i64) -> Change {
    change(table, p, ChangeBody::DeletePartition(deletion(time)))
}

/// What the model says all changes together come to: `p/c` (or `p/` for the static row) and the columns as text.
pub(crate) fn expected(changes: &[Change], now: LocalTime) -> BTreeMap<String, Vec<Option<String>>> {
    let mut rows: BTreeMap<(ValueBytes, Option<Clustering>), RowState> = BTreeMap::new();
    let mut tombstones: BTreeMap<ValueBytes, PartitionTombstones> = BTreeMap::new();
    for change in changes {
        let deleted = tombstones.entry(change.partition_key.clone()).or_default();
        let (key, row) = match change.body.clone() {
            ChangeBody::Row { clustering, row } => (Some(clustering), row),
            ChangeBody::Static(row) => (None, row),
            ChangeBody::DeletePartition(partition) => {
                let one = PartitionTombstones { partition: Some(partition), ranges: Vec::new() };
                *deleted = std::mem::take(deleted).merge(one);
                continue;
            }
            ChangeBody::DeleteRange(range) => {
                let one = PartitionTombstones { partition: None, ranges: vec![range] };
                *deleted = std::mem::take(deleted).merge(one);
                continue;
            }
        };
        let known = rows.entry((change.partition_key.clone(), key)).or_default();
        *known = std::mem::take(known).merge(row);
    }
    let table = changes.first().map(|change| Arc::clone(&change.table)).expect("some changes");
    let mut shown = BTreeMap::new();
    for ((partition, clustering), mut row) in rows {
        if let Some(deletion) = tombstones[&partition].covering(&table, clustering.as_ref()) {
            row.shadow(deletion);
        }
        let Some(columns) = row.visible(now) else { continue };
        let show = |name: &str| {
            let id = table.column_id(name.as_bytes())?;
            let (_, value) = columns.iter().find(|(other, _)| *other == id)?;
            Some(match value {
                VisibleColumn::Simple(value) if name == "v" => number(value).to_string(),
                VisibleColumn::Simple(value) => String::from_utf8_lossy(value).into_owned(),
                VisibleColumn::Counter(total) => total.to_string(),
                VisibleColumn::Complex(elements) => {
                    let mut numbers: Vec<i32> = elements.iter().map(|(path, _)| number(path)).collect();
                    numbers.sort_unstable();
                    format!("{numbers:?}")
                }
            })
        };
        let partition = String::from_utf8_lossy(&partition).into_owned();
        let (key, names) = match clustering.as_ref().and_then(|clustering| clustering.values().next().flatten()) {
            Some(c) => (format!("{partition}/{}", number(c)), ["v", "t", "tags"].as_slice()),
            None => (format!("{partition}/"), ["st"].as_slice()),
        };
        shown.insert(key, names.iter().map(|name| show(name)).collect());
    }
    shown
}

fn number(bytes: &[u8]) -> i32 {
    bytes.try_into().map(i32::from_be_bytes).unwrap_or_default()
}

/// What PostgreSQL shows of partitions that begin with a prefix, in the same form.
pub(crate) async fn stored(database: &Database, prefix: &str) -> Result<BTreeMap<String, Vec<Option<String>>>> {
    let rows = format!("select p || '/' || c, v, t, tags from \"cdc_Orders\" where p like '{prefix}%'");
    let statics = format!("select p || '/', st from \"cdc_Orders__static\" where p like '{prefix}%'");
    let mut shown = BTreeMap::new();
    for sql in [rows, statics] {
        for mut row in database.rows(&sql).await? {
            let key = row.remove(0).unwrap_or_default();
            shown.insert(key, row);
        }
    }
    Ok(shown)
}

pub(crate) fn expiring(time: i64, expires: LocalTime, value: ValueBytes) -> Cell {
    Cell { time: WriteTime(time), ttl: 60, local: expires, value: CellValue::Live(value) }
}
