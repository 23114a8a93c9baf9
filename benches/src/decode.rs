//! How fast one core turns a commit log into changes, by shape of what is in it, beside Cassandra's own reader.
//!
//! A shape is written once by a real Cassandra from a fixed seed, and its segments are kept below `target/bench`. Only
//! segments that were begun and ended while the shape was being written count, so nothing else is in them. Both
//! readers read the same files from the page cache and do the same: every captured change becomes an object, nothing
//! is printed. Figures are per second of processor time, all threads of a process together (so Java's garbage collector
//! counts), of each reader's best round: whatever else the machine does only makes one slower.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use cdc_cassandra::Cassandra as Client;
use cdc_commitlog::{
    Decoder, Fence, Format, Payload, ReadLimit, ReadOutcome, SchemaFile, SchemaHistory, SegmentFile, SegmentReader,
    list_segments, read_index,
};
use cdc_model::{Change, ChangeBody, NodeId, Provenance, TableSchema};
use cdc_testkit::Cassandra;
use futures::{StreamExt, stream};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::time::{ClockId, clock_gettime};
use scylla::{client::session::Session, value::CqlTimestamp};

use crate::report::Report;

const READ_BYTES: usize = 1 << 20;
const IN_FLIGHT: usize = 256;
const SEGMENT_MIB: u32 = 4;
const STUCK: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Mebibytes of log per shape
    #[arg(long, default_value_t = 12)]
    mib: u32,
    /// Makes the same log every time
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds per shape, in which both readers take turns; the best of each reader counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds our reader reads each shape in a round, over and over
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Times Cassandra's reader reads each shape in a round; the first half is to warm up
    #[arg(long, default_value_t = 30)]
    java_passes: u32,
    /// Reads only the shapes whose names contain this
    #[arg(long, default_value = "")]
    shape: String,
}

struct Shape {
    name: &'static str,
    what: &'static str,
    tables: Vec<String>,
    /// Table captured: all of `bench` otherwise.
    only: Option<&'static str>,
    compression: Option<&'static str>,
}

/// Tables of the shape of which one is captured.
const MANY: usize = 20;
/// Columns of a wide row.
const WIDE: usize = 24;

fn shapes() -> Vec<Shape> {
    let shape = |name, what, tables: &[&str]| Shape {
        name,
        what,
        tables: tables.iter().map(|table| (*table).to_owned()).collect(),
        only: None,
        compression: None,
    };
    let row = "row (id bigint PRIMARY KEY, kind text, amount double, at timestamp, payload blob)";
    let wide =
        format!("wide (id uuid, at timestamp, {}, PRIMARY KEY (id, at))", wide_columns(|n, ty| format!("c{n} {ty}")));
    let many: Vec<String> = (0..MANY)
        .map(|n| format!("many_{n} (id bigint PRIMARY KEY, kind text, amount double, at timestamp)"))
        .collect();
    vec![
        shape("narrow", "3 columns", &["narrow (id bigint PRIMARY KEY, kind text, amount double)"]),
        shape("row", "5 columns, a blob of 100 bytes among them", &[row]),
        shape("wide", "24 columns behind a clustering key", &[&wide]),
        shape(
            "collections",
            "a list, a set and a map of 5 elements each",
            &["collections (id bigint PRIMARY KEY, l list<int>, s set<text>, m map<text, bigint>)"],
        ),
        Shape {
            only: Some("many_0"),
            ..shape(
                "one of 20",
                "20 tables of 4 columns, one of them captured",
                &many.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        },
        Shape { compression: Some("LZ4Compressor"), ..shape("row, LZ4", "as row, compressed", &[row]) },
        Shape { compression: Some("ZstdCompressor"), ..shape("row, Zstd", "as row, compressed", &[row]) },
    ]
}

fn wide_columns(each: impl Fn(usize, &str) -> String) -> String {
    let columns: Vec<String> = (0..WIDE).map(|n| each(n, ["int", "bigint", "double", "text"][n % 4])).collect();
    columns.join(", ")
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let shapes: Vec<Shape> = shapes().into_iter().filter(|shape| shape.name.contains(&options.shape)).collect();
    ensure!(!shapes.is_empty(), "no shape is named like {:?}", options.shape);
    let cache = PathBuf::from(format!("target/bench/segments/{}-{}MiB", options.seed, options.mib));
    for compression in [None, Some("LZ4Compressor"), Some("ZstdCompressor")] {
        let missing: Vec<&Shape> = shapes
            .iter()
            .filter(|shape| shape.compression == compression && !cache.join(shape.name).exists())
            .collect();
        if !missing.is_empty() {
            let cassandra = Cassandra::builder()
                .heap_mib(1024)
                .commitlog_segment_size_mib(SEGMENT_MIB)
                .cdc_total_space_mib(8192)
                .commitlog_compression(compression)
                .commitlog_sync_period_ms(1000)
                .start()?;
            for shape in missing {
                runtime.block_on(write(&cassandra, shape, options, &cache))?;
            }
        }
    }

    let mut report = Report::new(
        "decode",
        format!(
            "one thread, segments of {SEGMENT_MIB} MiB of Cassandra 5.0 from the page cache, seed {}",
            options.seed
        ),
    );
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header([
        "shape",
        "bytes/row",
        "M rows/s",
        "MB/s",
        "framing MB/s",
        "Cassandra M rows/s",
        "Cassandra MB/s",
        "ratio",
    ]);
    for shape in &shapes {
        let folder = cache.join(shape.name);
        let log = Log::open(&folder, shape)?;
        let (mut ours, mut framing, mut theirs) = (Rate::default(), Rate::default(), Rate::default());
        for _ in 0..options.rounds {
            ours.keep_best(log.measure(options, Log::decode)?);
            framing.keep_best(log.measure(options, Log::frame)?);
            theirs.keep_best(log.measure_java(&folder, options)?);
        }
        let mut add = |what: &str, value: f64, unit| report.add(format!("{}: {what}", shape.name), value, unit);
        add("rows per processor second", ours.rows, "rows/s");
        add("log bytes per processor second", ours.bytes / 1e6, "MB/s");
        add("log bytes per processor second, framing alone", framing.bytes / 1e6, "MB/s");
        add("Cassandra's reader: rows per processor second", theirs.rows, "rows/s");
        add("Cassandra's reader: log bytes per processor second", theirs.bytes / 1e6, "MB/s");
        add("speed against Cassandra's reader", ours.rows / theirs.rows, "ratio");
        table.add_row([
            format!("{} ({})", shape.name, shape.what),
            format!("{:.0}", ours.bytes / ours.rows),
            format!("{:.2}", ours.rows / 1e6),
            format!("{:.0}", ours.bytes / 1e6),
            format!("{:.0}", framing.bytes / 1e6),
            format!("{:.2}", theirs.rows / 1e6),
            format!("{:.0}", theirs.bytes / 1e6),
            format!("{:.1}", ours.rows / theirs.rows),
        ]);
    }
    report.finish_as(&table)
}

/// Writes one shape and keeps the segments that hold nothing else.
async fn write(cassandra: &Cassandra, shape: &Shape, options: &Options, cache: &Path) -> anyhow::Result<()> {
    let session = cdc_workload::connect(&cassandra.contact_points()).await?;
    let keyspace =
        "CREATE KEYSPACE IF NOT EXISTS bench WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}";
    session.query_unpaged(keyspace, ()).await.context(keyspace)?;
    for table in &shape.tables {
        let statement = format!("CREATE TABLE bench.{table} WITH cdc = true");
        session.query_unpaged(statement.as_str(), ()).await.with_context(|| statement.clone())?;
    }
    let raw = cassandra.node(0).cdc_raw_dir();
    // The segment that is being written, or the one allocated ahead of need.
    let first = list_segments(&raw)?.last().context("no segment")?.id;
    let wanted = usize::try_from(options.mib.div_ceil(SEGMENT_MIB))?;
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let mut written = 0;
    let pure = loop {
        insert(&session, shape, &mut random, written..written + 10_000).await?;
        written += 10_000;
        let segments = list_segments(&raw)?;
        let Some(last) = segments.iter().rev().find(|segment| has_entries(segment)).map(|segment| segment.id) else {
            continue;
        };
        let pure: Vec<SegmentFile> =
            segments.into_iter().filter(|segment| segment.id > first && segment.id < last).collect();
        if pure.len() >= wanted {
            break pure;
        }
    };
    let part = cache.join(format!("{}.part", shape.name));
    fs::create_dir_all(&part)?;
    for segment in pure.iter().take(wanted) {
        let start = Instant::now();
        while !read_index(segment)?.is_some_and(|index| index.completed) {
            ensure!(start.elapsed() < STUCK, "segment {} is not completed after {STUCK:?}", segment.path.display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for file in [&segment.path, &segment.index_path()] {
            fs::copy(file, part.join(file.file_name().context("a file")?))?;
        }
    }
    let config = serde_json::from_value(serde_json::json!({ "contact_points": cassandra.contact_points() }))?;
    let schema = Client::connect(&config).await?.load_schema_file().await?;
    fs::write(part.join("schema.json"), schema.to_json())?;
    fs::rename(&part, cache.join(shape.name)).context("keep the segments")
}

/// The segment allocated ahead of need has none.
fn has_entries(segment: &SegmentFile) -> bool {
    let Ok(Some(mut reader)) = SegmentReader::open(segment, 0, SegmentReader::ENTRY_BYTES_MAX) else { return false };
    reader.backlog().is_ok_and(|bytes| bytes > 0)
}

async fn insert(
    session: &Session,
    shape: &Shape,
    random: &mut ChaCha8Rng,
    ids: std::ops::Range<i64>,
) -> anyhow::Result<()> {
    let mut inserts = Vec::new();
    for table in &shape.tables {
        let name = table.split(' ').next().unwrap_or_default();
        let (columns, marks) = match name {
            "narrow" => ("id, kind, amount".to_owned(), 3),
            "row" => ("id, kind, amount, at, payload".to_owned(), 5),
            "wide" => (format!("id, at, {}", wide_columns(|n, _| format!("c{n}"))), 2 + WIDE),
            "collections" => ("id, l, s, m".to_owned(), 4),
            _ => ("id, kind, amount, at".to_owned(), 4),
        };
        let marks = vec!["?"; marks].join(", ");
        inserts.push(session.prepare(format!("INSERT INTO bench.{name} ({columns}) VALUES ({marks})")).await?);
    }
    stream::iter(ids)
        .map(|id| {
            let kind = ["view", "click", "order", "return"][random.random_range(0..4)].to_owned();
            let amount = random.random_range(0.0..1_000.0);
            let at = CqlTimestamp(1_700_000_000_000 + id);
            let mut payload = vec![0u8; 100];
            random.fill(&mut payload[..]);
            let insert = &inserts[usize::try_from(id).unwrap_or_default() % inserts.len()];
            async move {
                match shape.tables[0].split(' ').next().unwrap_or_default() {
                    "narrow" => session.execute_unpaged(insert, (id, kind, amount)).await?,
                    "row" => session.execute_unpaged(insert, (id, kind, amount, at, payload)).await?,
                    "wide" => {
                        use scylla::value::CqlValue::{BigInt, Double, Int, Text, Timestamp, Uuid};
                        let word = u128::from_be_bytes(*payload.first_chunk().context("100 bytes")?);
                        let mut values = vec![Uuid(uuid::Uuid::from_u128(word)), Timestamp(at)];
                        values.extend((0..WIDE).map(|n| match n % 4 {
                            0 => Int(i32::from(payload[n])),
                            1 => BigInt(id),
                            2 => Double(amount),
                            _ => Text(format!("{kind} {id}")),
                        }));
                        session.execute_unpaged(insert, values).await?
                    }
                    "collections" => {
                        let list: Vec<i32> = payload[..5].iter().map(|byte| i32::from(*byte)).collect();
                        let set: Vec<String> = payload[5..10].iter().map(|byte| format!("element {byte}")).collect();
                        let map: HashMap<String, i64> =
                            payload[10..15].iter().map(|byte| (format!("key {byte}"), id)).collect();
                        session.execute_unpaged(insert, (id, list, set, map)).await?
                    }
                    _ => session.execute_unpaged(insert, (id, kind, amount, at)).await?,
                };
                anyhow::Ok(())
            }
        })
        .buffer_unordered(IN_FLIGHT)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect()
}

/// The segments of a shape and what is to be captured of them.
struct Log<'a> {
    segments: Vec<SegmentFile>,
    schemas: SchemaHistory,
    shape: &'a Shape,
}

/// Of one pass over a log.
#[derive(Clone, Copy, Default)]
struct Pass {
    /// Rows captured and rows in the log.
    captured: u64,
    rows: u64,
    /// Entries with their framing.
    bytes: u64,
}

/// Per second of processor time.
#[derive(Clone, Copy, Default)]
struct Rate {
    rows: f64,
    bytes: f64,
}

impl Rate {
    fn keep_best(&mut self, other: Self) {
        if other.rows > self.rows {
            *self = other;
        }
    }
}

impl<'a> Log<'a> {
    fn open(folder: &Path, shape: &'a Shape) -> anyhow::Result<Self> {
        let (schemas, faults) = SchemaHistory::from_file(SchemaFile::read(&folder.join("schema.json"))?);
        ensure!(faults.is_empty(), "{faults:?}");
        Ok(Self { segments: list_segments(folder)?, schemas, shape })
    }

    fn read(&self, mut take: impl FnMut(Format, Provenance, Payload<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let node = NodeId(uuid::Uuid::nil());
        for segment in &self.segments {
            let opened = SegmentReader::open(segment, 0, SegmentReader::ENTRY_BYTES_MAX)?;
            let mut reader = opened.context("a segment without a header")?;
            let format = reader.format();
            loop {
                let limit = ReadLimit { fence: Fence::Live, finished: true, max_bytes: READ_BYTES };
                let mut taken = Ok(());
                let report = reader.read(limit, &mut |position, payload| {
                    if let Err(error) = take(format, Provenance { node, position }, payload) {
                        taken = Err(error);
                    }
                })?;
                taken?;
                ensure!(report.damage.is_empty(), "{:?}", report.damage);
                if report.outcome == ReadOutcome::End {
                    break;
                }
            }
        }
        Ok(())
    }

    fn frame(&self) -> anyhow::Result<Pass> {
        let mut pass = Pass::default();
        self.read(|_, _, payload| {
            pass.rows += 1;
            pass.bytes += payload.len() as u64 + 12;
            Ok(())
        })?;
        Ok(pass)
    }

    fn decode(&self) -> anyhow::Result<Pass> {
        let mut pass = Pass::default();
        let mut decoder = Decoder::new();
        let captured =
            |table: &TableSchema| table.keyspace == "bench" && self.shape.only.is_none_or(|only| table.name == only);
        let mut changes: Vec<Change> = Vec::new();
        self.read(|format, at, payload| {
            pass.rows += 1;
            pass.bytes += payload.len() as u64 + 12;
            decoder.decode(format, payload, at, &self.schemas, &captured, &mut changes)?;
            let rows = changes.iter().filter(|change| matches!(change.body, ChangeBody::Row { .. }));
            pass.captured += rows.count() as u64;
            changes.clear();
            Ok(())
        })?;
        Ok(pass)
    }

    /// Cassandra's own reader: passes enough for its compiler to be done, of which the second half counts.
    fn measure_java(&self, folder: &Path, options: &Options) -> anyhow::Result<Rate> {
        let pass = self.decode()?;
        let mut command = cdc_testkit::cassandra_reader(cdc_testkit::default_version::CASSANDRA)?;
        command.arg("--schema").arg(folder.join("schema.json")).args([
            "--count",
            "--repeat",
            &options.java_passes.to_string(),
        ]);
        if let Some(only) = self.shape.only {
            command.args(["--table", &format!("bench.{only}")]);
        }
        let output = command.arg(folder).output().context("run Cassandra's reader")?;
        ensure!(output.status.success(), "Cassandra's reader failed: {}", String::from_utf8_lossy(&output.stderr));
        // Cassandra's classes print to the same place.
        let text = String::from_utf8_lossy(&output.stdout);
        let lines = text.lines().filter(|line| line.starts_with('{'));
        let passes: Vec<JavaPass> = lines.map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(!passes.is_empty(), "Cassandra's reader printed nothing: {text}");
        let warm = &passes[passes.len() / 2..];
        for java in warm {
            ensure!(java.rows == pass.captured, "Cassandra's reader found {} rows, ours {}", java.rows, pass.captured);
        }
        let seconds = warm.iter().map(|pass| pass.processor_seconds).sum::<f64>() / float(warm.len() as u64);
        Ok(Rate { rows: float(pass.rows) / seconds, bytes: float(pass.bytes) / seconds })
    }

    fn measure(&self, options: &Options, pass: impl Fn(&Self) -> anyhow::Result<Pass>) -> anyhow::Result<Rate> {
        // Warms up.
        pass(self)?;
        let (start, before) = (Instant::now(), processor_time());
        let mut total = Pass::default();
        while start.elapsed() < Duration::from_secs(options.seconds) {
            let pass = pass(self)?;
            total.rows += pass.rows;
            total.bytes += pass.bytes;
        }
        let seconds = (processor_time() - before).as_secs_f64();
        Ok(Rate { rows: float(total.rows) / seconds, bytes: float(total.bytes) / seconds })
    }
}

/// What the Java reader prints of one pass.
#[derive(serde::Deserialize)]
struct JavaPass {
    rows: u64,
    processor_seconds: f64,
}

/// Of this thread.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("a thread's clock counts from 0")
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn float(value: u64) -> f64 {
    value as f64
}
