//! How fast changes are applied to PostgreSQL, by kind, beside one raw binary `COPY` of the same rows into the same table.
//!
//! Changes are made from a fixed seed in batches as the sink's writer makes them, and handed to
//! [`Target::apply`](cdc_postgres::Target::apply) one batch after another with a claimed stream, so positions and the
//! fence are part of it. Only applying is timed, not making the changes. The rows for `COPY` are encoded beforehand, so
//! it is what the server can take over one connection.
//!
//! A snapshot is what the others are: rows handed to `apply`, but in the order of their tokens, in batches of four times
//! the size, into an empty table; and its `COPY` has that order, too, which costs the index more.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use cdc_model::{
    Cell, Change, ChangeBody, Clustering, Column, ColumnId, ColumnKind, ColumnState, CqlType, DeletionTime, KeyColumn,
    Liveness, LocalTime, NodeId, Provenance, RowState, SegmentPosition, TableId, TableSchema, WriteTime, token,
};
use cdc_postgres::{Advance, Claim, PostgresConfig, StreamName, Target};
use cdc_runtime::Secret;
use cdc_testkit::Postgres;
use deadpool_postgres::{Manager, Object, Pool};
use futures::SinkExt;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::time::{ClockId, clock_gettime};
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::{report::Report, usage};

/// The table the changes are of, in PostgreSQL; its twin takes the `COPY`.
const TABLE: &str = "cdc_items";
const TWIN: &str = "copied_items";
const SNAPSHOT_TWIN: &str = "copied_in_token_order";
/// Milliseconds since 1970 of PostgreSQL's epoch.
const EPOCH_MS: i64 = 946_684_800_000;
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_CHUNK: usize = 256 << 10;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rows inserted; of each other kind there are half as many changes
    #[arg(long, default_value_t = 500_000)]
    rows: i64,
    /// Changes applied at once, as the sink's `batch_rows`
    #[arg(long, default_value_t = 5_000)]
    batch: usize,
    /// Connections, as PostgreSQL's `pool_size`
    #[arg(long, default_value_t = 8)]
    pool: usize,
    /// Makes the same changes every time
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What one kind of change cost.
#[derive(Default)]
struct Cost {
    changes: f64,
    seconds: f64,
    /// Processor seconds of this process and of the server's.
    sink: f64,
    server: f64,
    wal_bytes: f64,
    statements: f64,
}

impl Cost {
    fn sum<'c>(costs: impl Iterator<Item = &'c Self>) -> Self {
        let mut sum = Self::default();
        for cost in costs {
            sum.changes += cost.changes;
            sum.seconds += cost.seconds;
            sum.sink += cost.sink;
            sum.server += cost.server;
            sum.wal_bytes += cost.wal_bytes;
            sum.statements += cost.statements;
        }
        sum
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Snapshot,
    Insert,
    Update,
    PartialUpdate,
    Mixed,
    Stale,
    Delete,
}

impl Kind {
    /// In an order in which each finds what it needs.
    const ALL: [(Self, &str); 7] = [
        (Self::Snapshot, "snapshot"),
        (Self::Insert, "fresh inserts"),
        (Self::Stale, "stale redelivery"),
        (Self::Update, "random full updates"),
        (Self::PartialUpdate, "random partial updates"),
        (Self::Mixed, "mixed, 4 updates to 1 insert"),
        (Self::Delete, "random deletes"),
    ];
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rows > 0 && options.batch > 0 && options.pool > 0, "rows, batch and pool are at least 1");
    tokio::runtime::Runtime::new()?.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let server = Postgres::builder()
        .setting("shared_preload_libraries", "pg_stat_statements")
        .setting("shared_buffers", "1GB")
        .setting("max_wal_size", "16GB")
        .setting("checkpoint_timeout", "1h")
        .setting("autovacuum", "off")
        .start()?;
    let admin = Pool::builder(Manager::new(server.url().parse()?, NoTls)).build()?.get().await?;
    admin.batch_execute("create extension pg_stat_statements").await?;
    let mut config =
        PostgresConfig::new(server.address().ip().to_string(), server.address().port(), "warehouse", "postgres");
    let url = server.url();
    config.password = Some(Secret::new(url.split(['@', ':']).nth(2).context("the password stands between : and @")?));
    config.pool_size = options.pool;
    let target = Target::connect(&config).await?;
    let claim = target.claim(&StreamName("bench".to_owned())).await?;
    let mut by_token: Vec<i64> = (0..options.rows).collect();
    by_token.sort_by_key(|id| token(&id.to_be_bytes()).0);
    let bench = Bench { options, server, admin, target, claim, by_token, table: Arc::new(table()?) };

    // Creates the table, and its twins, all of them empty.
    bench.target.apply(vec![bench.insert(-1, 1), bench.delete(-1, 2)], &[bench.advance()]).await?;
    bench.admin.batch_execute("truncate _cdc.remains").await?;
    for twin in [TWIN, SNAPSHOT_TWIN] {
        let create = format!("create table {twin} (like {TABLE} including all) with (fillfactor = 80)");
        bench.admin.batch_execute(&create).await?;
    }
    let version: String = bench.admin.query_one("show server_version", &[]).await?.get(0);
    let mut report = Report::new(
        "sink",
        format!(
            "{} rows of 10 columns, {:.0} bytes each as COPY sends them, batches of {}, at most {} connections, seed {}, \
             PostgreSQL {} and sink on one machine",
            options.rows,
            bench.copy_bytes(0..options.rows) / float(options.rows),
            options.batch,
            options.pool,
            options.seed,
            version,
        ),
    );
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header([
        "changes",
        "k rows/s",
        "of COPY",
        "WAL bytes/row",
        "statements",
        "sink s/M rows",
        "server s/M rows",
    ]);
    let mut add = |name: &str, cost: &Cost, copied: &Cost| {
        let copy_rate = copied.changes / copied.seconds;
        let millions = cost.changes / 1e6;
        let rate = cost.changes / cost.seconds;
        report.add(format!("{name}: rows per second"), rate, "rows/s");
        report.add(format!("{name}: speed against COPY"), rate / copy_rate, "ratio");
        report.add(format!("{name}: WAL bytes per row"), cost.wal_bytes / cost.changes, "B");
        report.add(format!("{name}: statements"), cost.statements, "statements");
        report.add(format!("{name}: processor time of the sink per million rows"), cost.sink / millions, "s");
        report.add(format!("{name}: processor time of the server per million rows"), cost.server / millions, "s");
        table.add_row([
            name.to_owned(),
            format!("{:.0}", rate / 1e3),
            format!("{:.0} %", 100.0 * rate / copy_rate),
            format!("{:.0}", cost.wal_bytes / cost.changes),
            format!("{:.0}", cost.statements),
            format!("{:.1}", cost.sink / millions),
            format!("{:.1}", cost.server / millions),
        ]);
    };
    // A yardstick of one short run would say more of what else the machine did in it, so there is one before each kind.
    let mut measured = Vec::new();
    for (kind, name) in Kind::ALL {
        let copied = match kind {
            Kind::Snapshot => bench.copy(SNAPSHOT_TWIN, bench.by_token.iter().copied()).await?,
            _ => bench.copy(TWIN, 0..options.rows).await?,
        };
        measured.push((kind, name, copied, bench.apply(kind).await.with_context(|| name.to_owned())?));
        if kind == Kind::Snapshot {
            bench.admin.batch_execute(&format!("truncate {TABLE}")).await?;
        }
    }
    let (snapshot, others) = measured.split_first().context("there are kinds")?;
    add("COPY in token order", &snapshot.2, &snapshot.2);
    add(snapshot.1, &snapshot.3, &snapshot.2);
    let copied = Cost::sum(others.iter().map(|(_, _, copied, _)| copied));
    add("COPY", &copied, &copied);
    for (_, name, _, cost) in others {
        add(name, cost, &copied);
    }
    report.add(
        "peak resident memory, changes being made included",
        float(i64::try_from(usage::usage("self")?.1)?) / f64::from(1 << 20),
        "MiB",
    );
    report.finish_as(&table)
}

struct Bench<'o> {
    options: &'o Options,
    server: Postgres,
    admin: Object,
    target: Target,
    claim: Claim,
    /// The rows' ids in the order Cassandra would be read in.
    by_token: Vec<i64>,
    table: Arc<TableSchema>,
}

/// `items (id bigint PRIMARY KEY, …)`.
fn table() -> anyhow::Result<TableSchema> {
    let columns = [
        ("kind", CqlType::Text),
        ("name", CqlType::Text),
        ("amount", CqlType::Double),
        ("quantity", CqlType::Int),
        ("at", CqlType::Timestamp),
        ("customer", CqlType::BigInt),
        ("parent", CqlType::BigInt),
        ("note", CqlType::Text),
        ("open", CqlType::Boolean),
    ];
    let column =
        |(name, ty): (&str, CqlType)| Column { name: name.to_owned(), ty, kind: ColumnKind::Regular, dropped: None };
    let table = TableSchema {
        id: TableId(Uuid::from_u128(0x17e3)),
        keyspace: "bench".to_owned(),
        name: "items".to_owned(),
        partition_key: vec![KeyColumn { name: "id".to_owned(), ty: CqlType::BigInt, reversed: false }],
        clustering: Vec::new(),
        columns: columns.map(column).into(),
        cdc: true,
        gc_grace_seconds: 864_000,
    };
    Ok(table.new()?)
}

impl Bench<'_> {
    /// The values of a row's columns in the order of the schema, the same for the same seed, id and version.
    fn values(&self, id: i64, version: i64) -> Vec<(ColumnId, Bytes)> {
        let seed = self.options.seed ^ id.cast_unsigned().rotate_left(20) ^ version.cast_unsigned().rotate_left(50);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut text = |length: usize| -> Bytes {
            (0..length).map(|_| random.random_range(b'a'..=b'z')).collect::<Vec<u8>>().into()
        };
        let (kind, name, note) = (text(5), text(16), text(30));
        let value = |name_of: &str| match name_of {
            "kind" => kind.clone(),
            "name" => name.clone(),
            "note" => note.clone(),
            "amount" => Bytes::copy_from_slice(&(float(id) / 3.0).to_be_bytes()),
            "quantity" => Bytes::copy_from_slice(&i32::try_from(id % 1000).unwrap_or(0).to_be_bytes()),
            "at" => Bytes::copy_from_slice(&(1_700_000_000_000 + id).to_be_bytes()),
            "customer" => Bytes::copy_from_slice(&(id % 5000).to_be_bytes()),
            "parent" => Bytes::copy_from_slice(&(id / 2).to_be_bytes()),
            _ => Bytes::from_static(&[1]),
        };
        let ids = (0u16..).map(ColumnId);
        ids.zip(&self.table.columns).map(|(id, column)| (id, value(&column.name))).collect()
    }

    fn row(&self, id: i64, row: RowState) -> Change {
        Change {
            table: Arc::clone(&self.table),
            partition_key: id.to_be_bytes().into(),
            body: ChangeBody::Row { clustering: Clustering::default(), row },
            provenance: Provenance { node: NodeId(Uuid::nil()), position: SegmentPosition::START },
        }
    }

    /// `INSERT` of all columns; a version is its write time as well.
    fn insert(&self, id: i64, version: i64) -> Change {
        let time = WriteTime(version);
        let cell = |(id, value)| (id, ColumnState::Simple(Cell::live(time, value)));
        let liveness = Some(Liveness { time, ttl: 0, expires: LocalTime::NONE });
        let columns = self.values(id, version).into_iter().map(cell).collect();
        self.row(id, RowState { liveness, deletion: None, columns })
    }

    /// `UPDATE` of two columns.
    fn partial(&self, id: i64, version: i64) -> Change {
        let mut change = self.insert(id, version);
        if let ChangeBody::Row { row, .. } = &mut change.body {
            row.liveness = None;
            row.columns.retain(|(id, _)| id.0 % 5 == 2);
        }
        change
    }

    fn delete(&self, id: i64, version: i64) -> Change {
        let deletion = DeletionTime { time: WriteTime(version), local: LocalTime(1_700_000_000) };
        self.row(id, RowState { liveness: None, deletion: Some(deletion), columns: Vec::new() })
    }

    fn advance(&self) -> Advance {
        Advance { claim: self.claim.clone(), position: "1:1".to_owned() }
    }

    /// Change number `n` of a kind; newer than those of the kinds before.
    fn change(&self, kind: Kind, n: i64, random: &mut ChaCha8Rng) -> Change {
        let some = random.random_range(0..self.options.rows);
        match kind {
            Kind::Snapshot => self.insert(self.by_token[usize::try_from(n).unwrap_or(0)], 1),
            Kind::Insert | Kind::Stale => self.insert(n, 1),
            Kind::Update => self.insert(some, 1_000_000 + n),
            Kind::PartialUpdate => self.partial(some, 10_000_000 + n),
            Kind::Mixed if n % 5 == 0 => self.insert(self.options.rows + n, 1),
            Kind::Mixed => self.insert(some, 20_000_000 + n),
            Kind::Delete => self.delete(some, 30_000_000 + n),
        }
    }

    async fn apply(&self, kind: Kind) -> anyhow::Result<Cost> {
        let (changes, size) = match kind {
            Kind::Snapshot => (self.options.rows, 4 * self.options.batch),
            Kind::Insert => (self.options.rows, self.options.batch),
            _ => (self.options.rows / 2, self.options.batch),
        };
        let mut random = ChaCha8Rng::seed_from_u64(self.options.seed);
        let mut cost = self.start().await?;
        let (mut wall, mut processor) = (Duration::ZERO, Duration::ZERO);
        let mut next = 0;
        while next < changes {
            let upto = changes.min(next + i64::try_from(size)?);
            let batch: Vec<Change> = (next..upto).map(|n| self.change(kind, n, &mut random)).collect();
            next = upto;
            let (start, before) = (Instant::now(), processor_time());
            let applied = self.target.apply(batch, &[self.advance()]).await?;
            wall += start.elapsed();
            processor += processor_time() - before;
            ensure!(applied.quarantined == 0, "{} changes were refused", applied.quarantined);
            ensure!(
                kind != Kind::Stale || applied.rows_written == 0,
                "{} stale rows were written",
                applied.rows_written
            );
        }
        self.finish(&mut cost).await?;
        Ok(Cost { changes: float(changes), seconds: wall.as_secs_f64(), sink: processor.as_secs_f64(), ..cost })
    }

    /// As `COPY … (FORMAT binary)` takes them: the columns a uniform row has.
    fn copy_rows(&self, ids: impl Iterator<Item = i64>) -> Vec<Bytes> {
        let mut chunks = Vec::new();
        let mut out = BytesMut::from(SIGNATURE);
        for id in ids {
            let values = self.values(id, 1);
            out.put_i16(i16::try_from(values.len() + 3).expect("ten columns"));
            let key = id.to_be_bytes();
            let token = token(&key).0.to_be_bytes();
            field(&mut out, &key);
            for ((_, value), column) in values.iter().zip(&self.table.columns) {
                match value.first_chunk() {
                    Some(ms) if column.ty == CqlType::Timestamp => {
                        field(&mut out, &((i64::from_be_bytes(*ms) - EPOCH_MS) * 1000).to_be_bytes());
                    }
                    _ => field(&mut out, value),
                }
            }
            field(&mut out, &token);
            field(&mut out, &1i64.to_be_bytes());
            if out.len() >= COPY_CHUNK {
                chunks.push(out.split().freeze());
            }
        }
        out.put_i16(-1);
        chunks.push(out.freeze());
        chunks
    }

    fn copy_bytes(&self, ids: impl Iterator<Item = i64>) -> f64 {
        self.copy_rows(ids).iter().map(|chunk| float(i64::try_from(chunk.len()).unwrap_or(0))).sum()
    }

    async fn copy(&self, twin: &str, ids: impl Iterator<Item = i64>) -> anyhow::Result<Cost> {
        let chunks = self.copy_rows(ids);
        self.admin.batch_execute(&format!("truncate {twin}")).await?;
        let mut sql = format!("copy {twin} (id");
        for column in &self.table.columns {
            write!(sql, ", {}", column.name)?;
        }
        sql.push_str(", _cdc_token, _cdc_written_at) from stdin (format binary)");
        let mut cost = self.start().await?;
        let (start, before) = (Instant::now(), processor_time());
        let mut copy = std::pin::pin!(self.admin.copy_in::<_, Bytes>(&sql).await?);
        for chunk in chunks {
            copy.send(chunk).await?;
        }
        let rows = copy.finish().await?;
        let (wall, processor) = (start.elapsed(), processor_time() - before);
        ensure!(i64::try_from(rows)? == self.options.rows, "{rows} rows were copied");
        self.finish(&mut cost).await?;
        Ok(Cost {
            changes: float(self.options.rows),
            seconds: wall.as_secs_f64(),
            sink: processor.as_secs_f64(),
            ..cost
        })
    }

    /// What the counters say now, to be subtracted.
    async fn start(&self) -> anyhow::Result<Cost> {
        self.admin.batch_execute("checkpoint").await?;
        self.counters().await
    }

    async fn finish(&self, cost: &mut Cost) -> anyhow::Result<()> {
        let after = self.counters().await?;
        cost.server = after.server - cost.server;
        cost.wal_bytes = after.wal_bytes - cost.wal_bytes;
        cost.statements = after.statements - cost.statements;
        Ok(())
    }

    async fn counters(&self) -> anyhow::Result<Cost> {
        let sql = "select (pg_current_wal_insert_lsn() - '0/0')::float8, \
                   (select coalesce(sum(calls), 0)::float8 from pg_stat_statements where query not like '%pg_stat_statements%')";
        let row = self.admin.query_one(sql, &[]).await?;
        let pid = self.server.pid().context("the server runs")?;
        let (wal_bytes, statements) = (row.get(0), row.get(1));
        Ok(Cost { changes: 0.0, seconds: 0.0, sink: 0.0, server: usage::tree(pid)?, wal_bytes, statements })
    }
}

fn field(out: &mut BytesMut, value: &[u8]) {
    out.put_i32(i32::try_from(value.len()).expect("short"));
    out.put_slice(value);
}

/// Of all threads of this process.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).expect("a process' clock counts from 0")
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn float(value: i64) -> f64 {
    value as f64
}
