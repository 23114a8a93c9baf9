//! The agent's drain of a backlog: commit log → decode → Avro → Kafka, as a real process against real servers.
//!
//! Beside it in the same run: decoding alone (one thread, the same segments), and a bare producer that sends the very
//! same records without reading or decoding anything, which is what Kafka and the client library allow on this machine.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use cdc_commitlog::{Decoder, Fence, ReadLimit, ReadOutcome, SegmentReader, list_segments, read_index};
use cdc_model::{Change, NodeId, Provenance, TableSchema, ValueBytes};
use cdc_testkit::{Cassandra, Kafka};
use futures::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer},
};
use scylla::client::session::Session;

use crate::{report::Report, usage::usage};

const PARTITIONS: usize = 8;
const READ_BYTES: usize = 1 << 20;
const IN_FLIGHT: usize = 256;
const STUCK: Duration = Duration::from_secs(600);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rows in the backlog
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Makes the same backlog every time
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let folder = tempfile::tempdir()?;
    let cassandra = Cassandra::builder().heap_mib(1024).start()?;
    let schemas = runtime.block_on(fill(&cassandra, options))?;
    let copy = folder.path().join("segments");
    copy_segments(&cassandra.node(0).cdc_raw_dir(), &copy)?;

    let decoded = decode(&copy, &schemas)?;
    ensure!(decoded.changes == options.rows, "{} changes in the log, {} rows written", decoded.changes, options.rows);

    let kafka = Kafka::start()?;
    let agent = drain(&cassandra, &kafka, folder.path(), options.rows)?;
    let bare = produce(&kafka, &copy, &schemas)?;

    let rows = float(options.rows);
    let mut report = Report::new(
        "capture",
        format!(
            "{} full-row inserts of 5 columns, {:.0} log bytes each, seed {}, live mode, Kafka and agent on one machine",
            options.rows,
            float(decoded.bytes) / rows,
            options.seed
        ),
    );
    report.add("rows per second", rows / agent.seconds, "rows/s");
    report.add("log bytes per second", float(decoded.bytes) / agent.seconds / 1e6, "MB/s");
    report.add("processor time", agent.processor_seconds, "s");
    report.add("processor time per million rows", agent.processor_seconds / rows * 1e6, "s");
    report.add("peak resident memory", float(agent.peak_bytes) / f64::from(1 << 20), "MiB");
    report.add("decode alone, one thread: rows per second", rows / decoded.seconds, "rows/s");
    report.add("decode alone, one thread: log bytes per second", float(decoded.bytes) / decoded.seconds / 1e6, "MB/s");
    report.add("bare producer of the same records: rows per second", rows / bare.seconds, "rows/s");
    report.add("bare producer: processor time", bare.processor_seconds, "s");
    report.add("speed against the bare producer", bare.seconds / agent.seconds, "ratio");
    report.add("processor time against the bare producer", agent.processor_seconds / bare.processor_seconds, "ratio");
    report.finish()
}

/// Creates the table and writes the backlog; returns the schemas of all tables.
async fn fill(cassandra: &Cassandra, options: &Options) -> anyhow::Result<Vec<TableSchema>> {
    let session = cdc_workload::connect(&cassandra.contact_points()).await?;
    for statement in [
        "CREATE KEYSPACE bench WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
        "CREATE TABLE bench.events (id bigint PRIMARY KEY, kind text, amount double, at timestamp, payload blob) WITH cdc = true",
    ] {
        session.query_unpaged(statement, ()).await.context(statement)?;
    }
    insert(&session, options).await?;
    let config = serde_json::from_value(serde_json::json!({ "contact_points": cassandra.contact_points() }))?;
    Ok(cdc_cassandra::Cassandra::connect(&config).await?.load_schema().await?)
}

async fn insert(session: &Session, options: &Options) -> anyhow::Result<()> {
    let insert = "INSERT INTO bench.events (id, kind, amount, at, payload) VALUES (?, ?, ?, ?, ?)";
    let insert = &session.prepare(insert).await?;
    let style = ProgressStyle::with_template("backlog {wide_bar} {pos}/{len} rows {per_sec} {eta}")?;
    let progress = &ProgressBar::new(options.rows).with_style(style);
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    stream::iter(0..options.rows)
        .map(|id| {
            let id = i64::try_from(id).unwrap_or(i64::MAX);
            let mut payload = vec![0u8; 100];
            random.fill(&mut payload[..]);
            let kind = ["view", "click", "order", "return"][random.random_range(0..4)];
            let at = scylla::value::CqlTimestamp(1_700_000_000_000 + id);
            let values = (id, kind, random.random_range(0.0..1_000.0), at, payload);
            async move {
                session.execute_unpaged(insert, values).await?;
                progress.inc(1);
                anyhow::Ok(())
            }
        })
        .buffer_unordered(IN_FLIGHT)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<anyhow::Result<Vec<()>>>()?;
    progress.finish_and_clear();
    Ok(())
}

/// The agent deletes what it has drained, so the comparisons read a copy.
fn copy_segments(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

struct Decoded {
    changes: u64,
    bytes: u64,
    seconds: f64,
}

/// Hands every captured change of the segments to `take`; returns the bytes of log read.
fn read_all(folder: &Path, schemas: &[TableSchema], mut take: impl FnMut(&Change)) -> anyhow::Result<u64> {
    let schemas: HashMap<_, _> = schemas.iter().map(|table| (table.id, Arc::new(table.clone()))).collect();
    let mut decoder = Decoder::new();
    let mut changes = Vec::new();
    let mut bytes = 0;
    for segment in list_segments(folder)? {
        let Some(mut reader) = SegmentReader::open(&segment, 0, SegmentReader::ENTRY_BYTES_MAX)? else { continue };
        let format = reader.format();
        let finished = read_index(&segment)?.is_some_and(|index| index.completed);
        loop {
            let limit = ReadLimit { fence: Fence::Live, finished, max_bytes: READ_BYTES };
            let mut failure = None;
            let report = reader.read(limit, &mut |position, payload| {
                let at = Provenance { node: NodeId(uuid::Uuid::nil()), position };
                let captured = |table: &TableSchema| table.keyspace == "bench";
                if let Err(error) = decoder.decode(format, payload, at, &schemas, &captured, &mut changes) {
                    failure = Some(error);
                }
                changes.drain(..).for_each(|change| take(&change));
            })?;
            if let Some(error) = failure {
                return Err(error).context("decode the backlog");
            }
            bytes += report.bytes;
            if report.outcome != ReadOutcome::More {
                break;
            }
        }
    }
    Ok(bytes)
}

fn decode(folder: &Path, schemas: &[TableSchema]) -> anyhow::Result<Decoded> {
    let start = Instant::now();
    let mut changes = 0;
    let bytes = read_all(folder, schemas, |_| changes += 1)?;
    Ok(Decoded { changes, bytes, seconds: start.elapsed().as_secs_f64() })
}

struct Cost {
    seconds: f64,
    processor_seconds: f64,
    peak_bytes: u64,
}

/// The real agent, from its start to the acknowledgement of the last record.
fn drain(cassandra: &Cassandra, kafka: &Kafka, folder: &Path, rows: u64) -> anyhow::Result<Cost> {
    let node = cassandra.node(0);
    let config = folder.join("agent.yaml");
    let port_file = folder.join("agent.port");
    fs::write(
        &config,
        format!(
            "cassandra:\n  contact_points: [\"{}\"]\nsource:\n  cdc_raw_directory: {}\n  state_directory: {}\n  tables: [bench.events]\n\
             kafka:\n  bootstrap_servers: [\"{}\"]\n  replication_factor: 1\n  partitions: {PARTITIONS}\n\
             admin:\n  listen: 127.0.0.1:0\n  port_file: {}\n",
            node.address(),
            node.cdc_raw_dir().display(),
            folder.join("state").display(),
            kafka.bootstrap(),
            port_file.display()
        ),
    )?;
    let log = fs::File::create(folder.join("agent.log"))?;
    let binary = std::env::current_exe()?.with_file_name("cdc");
    let start = Instant::now();
    let mut agent = Agent(
        Command::new(&binary)
            .args([Path::new("source"), &config])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?,
    );
    loop {
        if let Some(status) = agent.0.try_wait()? {
            bail!("the agent ended with {status}: {}", fs::read_to_string(folder.join("agent.log"))?);
        }
        ensure!(start.elapsed() < STUCK, "the agent is not done after {STUCK:?}");
        if let Ok(status) = status(&port_file)
            && status["source"]["changes"].as_u64() >= Some(rows)
            && status["source"]["unacknowledged_batches"] == 0
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let seconds = start.elapsed().as_secs_f64();
    let (processor_seconds, peak_bytes) = usage(&agent.0.id().to_string())?;
    Ok(Cost { seconds, processor_seconds, peak_bytes })
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn status(port_file: &PathBuf) -> anyhow::Result<serde_json::Value> {
    let port: u16 = fs::read_to_string(port_file)?.trim().parse()?;
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
    Ok(serde_json::from_str(body)?)
}

/// Sends the records the agent sent, made beforehand, with the same settings.
fn produce(kafka: &Kafka, folder: &Path, schemas: &[TableSchema]) -> anyhow::Result<Cost> {
    let mut records: Vec<(ValueBytes, Bytes)> = Vec::new();
    read_all(folder, schemas, |change| records.push((change.partition_key.clone(), cdc_wire::encode_change(change))))?;
    let producer: Arc<BaseProducer> = Arc::new(
        ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap())
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            .set("linger.ms", "5")
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.kbytes", "16384")
            .create()?,
    );
    let (before, _) = usage("self")?;
    let start = Instant::now();
    for (key, value) in &records {
        let mut record = BaseRecord::to("cdc-events-events").key(key.as_ref()).payload(value.as_ref());
        while let Err((_, refused)) = producer.send(record) {
            producer.poll(Duration::from_millis(1));
            record = refused;
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(STUCK)?;
    let seconds = start.elapsed().as_secs_f64();
    let (after, peak_bytes) = usage("self")?;
    Ok(Cost { seconds, processor_seconds: after - before, peak_bytes })
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn float(value: u64) -> f64 {
    value as f64
}
