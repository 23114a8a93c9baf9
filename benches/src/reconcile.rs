//! How fast a table is compared: the whole, the pass over Cassandra and the pass over PostgreSQL by themselves, beside a bare
//! scan of the same token ranges that does nothing with the rows, and beside a plain full read of both sides whose rows are compared
//! in memory (`cdc_workload::oracle`). And what it costs others: bytes over the wire, and how much longer writes take.

mod meter;
mod writer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use cdc_cassandra::{Cassandra as Node, CassandraConfig, ClusterReader, Consistency, Fields};
use cdc_model::{Change, ChangeBody, ColumnKind, NodeId, Provenance, SegmentPosition, TableSchema, TokenRange};
use cdc_postgres::{PostgresConfig, Strategy, Target};
use cdc_reconciler::{Options as ReconcileOptions, Pass, Reconciler, Scope};
use cdc_runtime::Secret;
use cdc_testkit::{Cassandra, Postgres};
use futures::{StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scylla::client::session::Session;
use tokio_util::sync::CancellationToken;

use self::meter::Meter;
use crate::report::Report;

const RANGES: u64 = 1_024;
const APPLIED_AT_ONCE: usize = 5_000;
const WRITERS: usize = 128;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rows in the table
    #[arg(long, default_value_t = 200_000)]
    rows: i64,
    /// Token ranges read at a time
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// Runs of each, of which the fastest counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes a second beside the comparison
    #[arg(long, default_value_t = 500)]
    write_rate: u32,
    /// How long to write alone, and beside comparisons at least
    #[arg(long, default_value_t = 10)]
    write_seconds: u64,
}

/// Equal stores need none.
struct NoBarrier;

impl Pass for NoBarrier {
    fn pass<'a>(&'a self, _: &'a TableSchema) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Err("the stores of the benchmark are equal".to_owned()) })
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rows > 0 && options.parallel > 0 && options.runs > 0, "rows, parallel and runs are at least 1");
    ensure!(options.write_rate > 0 && options.write_seconds > 0, "write-rate and write-seconds are at least 1");
    tokio::runtime::Runtime::new()?.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let cassandra = Cassandra::start()?;
    let postgres = Postgres::builder().setting("shared_buffers", "1GB").start()?;
    let session = cdc_workload::connect(&cassandra.contact_points()).await?;
    fill(&session, options).await?;
    let config = CassandraConfig::new(cassandra.node(0).address());
    let schema = Node::connect(&config).await?.load_schema().await?;
    let table = schema.into_iter().find(|table| table.keyspace == "bench").context("the table was created")?;
    let table = Arc::new(table);
    let reader = ClusterReader::connect(&config).await?;
    let address = postgres.address();
    let mut place = PostgresConfig::new(address.ip().to_string(), address.port(), "warehouse", "postgres");
    let url = postgres.url();
    place.password = Some(Secret::new(url.split(['@', ':']).nth(2).context("the password stands between : and @")?));
    let target = Target::connect(&place).await?;
    copy(&reader, &target, &table).await?;
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    #[expect(clippy::disallowed_methods, reason = "the connection ends with its client")]
    tokio::spawn(connection);
    client.batch_execute("vacuum analyze cdc_items").await?;

    let whole = best(options, async || compare(&reader, &target, &table, options).await).await?;
    let mirror = target.mirror(Arc::clone(&table)).await?;
    let values = reader.table(Arc::clone(mirror.schema()), Fields::Values, Consistency::One).await?;
    let cassandra_pass = best(options, async || {
        let mut running = tokio::task::JoinSet::new();
        let mut ranges = TokenRange::RING.parts(RANGES);
        loop {
            while running.len() < options.parallel
                && let Some(range) = ranges.next()
            {
                let (values, mirror) = (values.clone(), mirror.clone());
                running.spawn(async move {
                    let mut sum = 0u64;
                    let take = |key, state| {
                        let hashed = mirror.hash(Strategy::Checksum, key, state);
                        sum = sum.wrapping_add(hashed.map_or(0, |hashed| hashed.value.cast_unsigned()));
                    };
                    values.scan(range, |_| true, take).await.map(|()| sum)
                });
            }
            match running.join_next().await {
                None => return Ok(()),
                Some(done) => drop(std::hint::black_box(done??)),
            }
        }
    });
    let cassandra_pass = cassandra_pass.await?;
    let postgres_pass = best(options, async || {
        let leaves = mirror.leaves(Strategy::Checksum, ColumnKind::Regular, TokenRange::RING, 48).await?;
        ensure!(!leaves.is_empty(), "there are rows");
        Ok(())
    });
    let postgres_pass = postgres_pass.await?;
    let bare = best(options, async || bare_scan(&session, options).await).await?;
    let plain = best(options, async || {
        let report = cdc_workload::oracle::compare(&session, &client, "bench", &["items"]).await?;
        ensure!(report.differences() == 0, "{report}");
        Ok(())
    });
    let plain = plain.await?;
    let bytes = bytes_moved(&cassandra, &postgres, &place, &table, options).await?;
    writer::create_table(&session).await?;
    let time = Duration::from_secs(options.write_seconds);
    let rest = async {
        tokio::time::sleep(time).await;
        Ok(())
    };
    let alone = writer::delays(&session, options.write_rate, rest).await?;
    let comparing = async {
        let began = Instant::now();
        while began.elapsed() < time {
            compare(&reader, &target, &table, options).await?;
        }
        Ok(())
    };
    let beside = writer::delays(&session, options.write_rate, comparing).await?;

    let mut report = Report::new(
        "reconcile",
        format!(
            "{} rows of 8 columns, {} token ranges at a time, best of {}, seed {}, {} writes/s for {} s, Cassandra {}, \
             PostgreSQL {} and the reconciler on one machine",
            options.rows,
            options.parallel,
            options.runs,
            options.seed,
            options.write_rate,
            options.write_seconds,
            cdc_testkit::default_version::CASSANDRA,
            cdc_testkit::default_version::POSTGRES,
        ),
    );
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = |seconds: f64| options.rows as f64 / seconds;
    report.add("whole comparison", rate(whole), "rows/s");
    report.add("pass over Cassandra", rate(cassandra_pass), "rows/s");
    report.add("pass over PostgreSQL", rate(postgres_pass), "rows/s");
    report.add("bare scan of Cassandra", rate(bare), "rows/s");
    report.add("plain read and compare", rate(plain), "rows/s");
    report.add("pass over Cassandra to bare scan", bare / cassandra_pass, "ratio");
    report.add("whole to plain read and compare", plain / whole, "ratio");
    for (name, bytes) in bytes {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        report.add(name, bytes as f64 / options.rows as f64, "bytes/row");
    }
    for percent in [50, 99] {
        let (alone, beside) = (alone.percentile(percent), beside.percentile(percent));
        report.add(format!("write latency alone, p{percent}"), alone, "ms");
        report.add(format!("write latency beside the comparison, p{percent}"), beside, "ms");
    }
    report.finish()
}

async fn compare(
    reader: &ClusterReader,
    target: &Target,
    table: &Arc<TableSchema>,
    options: &Options,
) -> anyhow::Result<()> {
    let reconcile =
        ReconcileOptions { parallel: options.parallel, consistency: Consistency::One, ..Default::default() };
    let reconciler = Reconciler::new(reader.clone(), target.clone(), Arc::new(NoBarrier), reconcile);
    let scope = Scope::new(Arc::clone(table), TokenRange::RING);
    let (progress, cancel) = (Arc::default(), CancellationToken::new());
    let outcome = reconciler.compare(&scope, Strategy::Checksum, &progress, &cancel).await?;
    ensure!(outcome.suspects == 0 && outcome.rows.cassandra.cast_signed() == options.rows, "{outcome:?}");
    Ok(())
}

/// Over the wire, by a comparison and by a plain read of both: a run of its own, since counting takes time.
async fn bytes_moved(
    cassandra: &Cassandra,
    postgres: &Postgres,
    place: &PostgresConfig,
    table: &Arc<TableSchema>,
    options: &Options,
) -> anyhow::Result<[(&'static str, u64); 4]> {
    let source = Meter::before(cassandra.node(0).socket_address()).await?;
    let stored = Meter::before(postgres.address()).await?;
    let reader = ClusterReader::connect(&CassandraConfig::new(source.address.to_string())).await?;
    let target = Target::connect(&PostgresConfig { port: stored.address.port(), ..place.clone() }).await?;
    let session = cdc_workload::connect(&[source.address.to_string()]).await?;
    let [own, other] = [postgres.address(), stored.address].map(|address| format!(":{}/", address.port()));
    let url = postgres.url().replace(&own, &other);
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    #[expect(clippy::disallowed_methods, reason = "the connection ends with its client")]
    tokio::spawn(connection);
    let take = || (source.take(), stored.take());
    take();
    compare(&reader, &target, table, options).await?;
    let (from_cassandra, from_postgres) = take();
    cdc_workload::oracle::compare(&session, &client, "bench", &["items"]).await?;
    let (plain_cassandra, plain_postgres) = take();
    ensure!(from_cassandra > 0 && from_postgres > 0, "the comparison went past the meters");
    Ok([
        ("moved by the comparison, Cassandra", from_cassandra),
        ("moved by the comparison, PostgreSQL", from_postgres),
        ("moved by a plain read, Cassandra", plain_cassandra),
        ("moved by a plain read, PostgreSQL", plain_postgres),
    ])
}

/// Seconds of the fastest run.
async fn best(options: &Options, run: impl AsyncFn() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..options.runs {
        let began = Instant::now();
        run().await?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(best)
}

async fn fill(session: &Session, options: &Options) -> anyhow::Result<()> {
    let keyspace = "create keyspace bench with replication = {'class': 'SimpleStrategy', 'replication_factor': 1}";
    session.query_unpaged(keyspace, ()).await?;
    let table = "create table bench.items (p int, c int, name text, note text, amount double, flag boolean, at timestamp, \
                 data blob, primary key (p, c))";
    session.query_unpaged(table, ()).await?;
    let insert = "insert into bench.items (p, c, name, note, amount, flag, at, data) values (?, ?, ?, ?, ?, ?, ?, ?)";
    let insert = &session.prepare(insert).await?;
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let rows = (0..options.rows).map(move |number| {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        let at = scylla::value::CqlTimestamp(random.random_range(0..1_000_000_000_000));
        let data = random.random::<[u8; 32]>().to_vec();
        let note = "a note of some words ".repeat(random.random_range(0..4));
        (
            number / 20,
            number % 20,
            format!("item {number}"),
            note,
            random.random::<f64>(),
            random.random::<bool>(),
            at,
            data,
        )
    });
    stream::iter(rows)
        .map(|row| async move { session.execute_unpaged(insert, row).await.map(drop) })
        .buffer_unordered(WRITERS)
        .try_collect::<()>()
        .await?;
    Ok(())
}

/// The rows into PostgreSQL, with the times Cassandra gave them.
async fn copy(reader: &ClusterReader, target: &Target, table: &Arc<TableSchema>) -> anyhow::Result<()> {
    let all = reader.table(Arc::clone(table), Fields::All, Consistency::One).await?;
    let provenance = Provenance { node: NodeId(uuid::Uuid::nil()), position: SegmentPosition::START };
    let mut changes = Vec::new();
    let take = |key: cdc_model::RowKey, mut row: cdc_model::RowState| {
        let time = row.newest_write();
        row.liveness.iter_mut().for_each(|marker| marker.time = time);
        let body = ChangeBody::Row { clustering: key.clustering.unwrap_or_default(), row };
        changes.push(Change { table: Arc::clone(table), partition_key: key.partition, body, provenance });
    };
    all.scan(TokenRange::RING, |_| true, take).await?;
    while !changes.is_empty() {
        let rest = changes.split_off(changes.len().saturating_sub(APPLIED_AT_ONCE));
        target.apply(rest, &[]).await?;
    }
    Ok(())
}

/// What Cassandra can give: pages that are received and counted.
async fn bare_scan(session: &Session, options: &Options) -> anyhow::Result<()> {
    let select =
        "select p, c, name, note, amount, flag, at, data from bench.items where token(p) > ? and token(p) <= ?";
    let mut select = session.prepare(select).await?;
    select.set_page_size(2_000);
    let select = &select;
    let rows = &AtomicU64::new(0);
    stream::iter(TokenRange::RING.parts(RANGES))
        .map(|range| async move {
            let mut state = scylla::response::PagingState::start();
            loop {
                let page = session.execute_single_page(select, (range.start, range.end), state).await?;
                rows.fetch_add(page.0.into_rows_result()?.rows_num() as u64, Ordering::Relaxed);
                match page.1.into_paging_control_flow() {
                    std::ops::ControlFlow::Break(()) => return anyhow::Ok(()),
                    std::ops::ControlFlow::Continue(next) => state = next,
                }
            }
        })
        .buffer_unordered(options.parallel)
        .try_collect::<()>()
        .await?;
    ensure!(rows.load(Ordering::Relaxed).cast_signed() == options.rows, "all rows are there");
    Ok(())
}
