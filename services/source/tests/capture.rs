//! The agent against a real Cassandra.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(clippy::large_futures, reason = "a few at a time, in tests")]

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use cdc_cassandra::CassandraConfig;
use cdc_commitlog::CaptureMode;
use cdc_model::ChangeBody;
use cdc_runtime::{Exit, Lifecycle, Secret};
use cdc_source::{ChannelBatch, ChannelOutlet, KeystoreConfig, Outlet, SourceConfig, SourceMetrics, SourceStatus};
use cdc_testkit::{Cassandra, CassandraBuilder};
use scylla::client::{session::Session, session_builder::SessionBuilder};
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_secs(60);

/// 1 MiB segments, so that every test switches them several times.
async fn cassandra() -> (Cassandra, Session) {
    cassandra_with(|builder| builder).await
}

async fn cassandra_with(settings: fn(CassandraBuilder) -> CassandraBuilder) -> (Cassandra, Session) {
    let builder = Cassandra::builder().commitlog_segment_size_mib(1).commitlog_sync_period_ms(500);
    let cassandra = tokio::task::spawn_blocking(move || settings(builder).start().unwrap()).await.unwrap();
    let session = SessionBuilder::new().known_nodes(cassandra.contact_points()).build().await.unwrap();
    cql(&session, "CREATE KEYSPACE k WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}").await;
    cql(&session, "CREATE TABLE k.t (id int PRIMARY KEY, v blob) WITH cdc = true").await;
    cql(&session, "CREATE TABLE k.noise (id int PRIMARY KEY, v blob)").await;
    (cassandra, session)
}

async fn cql(session: &Session, statement: &str) {
    session.query_unpaged(statement, ()).await.unwrap();
}

/// Inserts `ids` by eight writers; those acknowledged.
async fn insert(session: &Session, table: &str, ids: std::ops::Range<i32>, bytes: usize) -> Vec<i32> {
    let statement = session.prepare(format!("INSERT INTO k.{table} (id, v) VALUES (?, ?)")).await.unwrap();
    let next = Mutex::new(ids);
    let acknowledged = Mutex::new(Vec::new());
    let writer = || async {
        loop {
            let Some(id) = next.lock().unwrap().next() else { return };
            if session.execute_unpaged(&statement, (id, vec![7u8; bytes])).await.is_ok() {
                acknowledged.lock().unwrap().push(id);
            }
        }
    };
    tokio::join!(writer(), writer(), writer(), writer(), writer(), writer(), writer(), writer());
    acknowledged.into_inner().unwrap()
}

/// What was captured and acknowledged by the consumer behind the agent.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<HashSet<(String, i32)>>>, Arc<Mutex<Vec<(i32, String)>>>);

impl Seen {
    fn has(&self, table: &str, id: i32) -> bool {
        self.0.lock().unwrap().contains(&(table.to_owned(), id))
    }

    fn add(&self, batch: &ChannelBatch) {
        let mut seen = self.0.lock().unwrap();
        for change in &batch.changes {
            let ChangeBody::Row { row, .. } = &change.body else { panic!("a row") };
            let id = i32::from_be_bytes(change.partition_key[..].try_into().unwrap());
            seen.insert((change.table.name.clone(), id));
            if change.table.name == "altered" {
                let column = |(column, _): &(_, _)| {
                    let column = change.table.column(*column);
                    format!("{} {:?}", column.name, column.ty)
                };
                let columns: Vec<_> = row.columns.iter().map(column).collect();
                self.1.lock().unwrap().push((id, columns.join(", ")));
            }
        }
    }
}

fn config(cassandra: &Cassandra, state: &Path) -> SourceConfig {
    SourceConfig::new(cassandra.node(0).cdc_raw_dir(), state.to_owned(), vec!["k.*".to_owned()])
}

struct Agent {
    lifecycle: Lifecycle,
    metrics: Arc<SourceMetrics>,
    /// Batches with changes that are not acknowledged.
    withheld: Arc<Mutex<usize>>,
}

impl Agent {
    /// `acknowledge`: batches with changes that the consumer takes; it holds back the rest.
    fn start(cassandra: &Cassandra, state: &Path, mode: CaptureMode, seen: &Seen, acknowledge: usize) -> Self {
        Self::start_with(cassandra, SourceConfig { mode, ..config(cassandra, state) }, seen, acknowledge)
    }

    fn start_with(cassandra: &Cassandra, config: SourceConfig, seen: &Seen, acknowledge: usize) -> Self {
        let lifecycle = Lifecycle::new();
        let metrics = Arc::new(SourceMetrics::default());
        let (batches, mut received) = mpsc::channel::<ChannelBatch>(4);
        let (acknowledged, durable) = watch::channel(0);
        let withheld = Arc::new(Mutex::new(0));
        let (seen, held) = (seen.clone(), Arc::clone(&withheld));
        lifecycle.spawn_finite("consumer", async move {
            let mut left = acknowledge;
            while let Some(batch) = received.recv().await {
                if left == 0 {
                    *held.lock().unwrap() += usize::from(!batch.changes.is_empty());
                    continue;
                }
                left -= usize::from(!batch.changes.is_empty());
                seen.add(&batch);
                acknowledged.send_replace(batch.sequence);
            }
            drop(acknowledged);
            Ok::<(), std::convert::Infallible>(())
        });
        let outlet = Outlet::Channel(ChannelOutlet { batches, durable });
        let cassandra = CassandraConfig::new(cassandra.node(0).address());
        let agent = cdc_source::run(config, cassandra, outlet, Arc::clone(&metrics), lifecycle.clone());
        lifecycle.spawn("source", agent);
        Self { lifecycle, metrics, withheld }
    }

    fn status(&self) -> SourceStatus {
        self.metrics.status()
    }

    async fn stop(self) {
        self.lifecycle.stop();
        assert_eq!(self.lifecycle.finish(Duration::from_secs(10)).await, Exit::Success);
    }

    async fn kill(self) {
        self.lifecycle.stop_now();
        self.lifecycle.finish(Duration::ZERO).await;
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until_seen(seen: &Seen, table: &str, ids: &[i32]) {
    let missing = || ids.iter().filter(|id| !seen.has(table, **id)).count();
    let began = Instant::now();
    while missing() > 0 {
        assert!(began.elapsed() < PATIENCE, "{} of {} writes to {table} not captured", missing(), ids.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_is_captured_in_every_mode_and_segments_are_deleted() {
    let (cassandra, session) = cassandra().await;
    let state = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let mut next = 0;
    // The same state throughout: each agent goes on where the one before stopped.
    for mode in [CaptureMode::Live, CaptureMode::Marker, CaptureMode::Durable] {
        let agent = Agent::start(&cassandra, state.path(), mode, &seen, usize::MAX);
        let (captured, noise) = tokio::join!(
            insert(&session, "t", next..next + 2000, 2000),
            insert(&session, "noise", next..next + 500, 2000),
        );
        assert_eq!((captured.len(), noise.len()), (2000, 500));
        until_seen(&seen, "t", &captured).await;
        assert!(!noise.iter().any(|id| seen.has("noise", *id)), "cdc is off for it");
        until("segments are deleted", || agent.status().deleted_segments >= 2).await;
        until("everything is durable", || agent.status().idle).await;
        let status = agent.status();
        assert_eq!((status.quarantined_entries, status.damaged_segments, status.lost_segments), (0, 0, 0));
        // Written while no agent runs, for the next one to find.
        agent.stop().await;
        let unattended = insert(&session, "t", next + 2000..next + 2500, 2000).await;
        next += 2500;
        let agent = Agent::start(&cassandra, state.path(), mode, &seen, usize::MAX);
        until_seen(&seen, "t", &unattended).await;
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_acknowledged_is_captured_again_after_a_kill() {
    let (cassandra, session) = cassandra().await;
    let state = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let mut written = Vec::new();
    for round in 0..5 {
        let agent = Agent::start(&cassandra, state.path(), CaptureMode::Live, &seen, 5);
        // What was written before it looks comes as one batch.
        until("capture runs", || agent.status().mode.is_some()).await;
        written.extend(insert(&session, "t", round * 1000..round * 1000 + 1000, 2000).await);
        until("something is withheld", || *agent.withheld.lock().unwrap() > 0).await;
        assert!(!agent.status().idle);
        agent.kill().await;
    }
    let agent = Agent::start(&cassandra, state.path(), CaptureMode::Live, &seen, usize::MAX);
    until_seen(&seen, "t", &written).await;
    until("everything is durable", || agent.status().idle).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_cassandra_loses_nothing_it_kept() {
    let (cassandra, session) = cassandra().await;
    let state = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let agent = Agent::start(&cassandra, state.path(), CaptureMode::Live, &seen, usize::MAX);
    let before = insert(&session, "t", 0..3000, 1000).await;
    let cassandra = tokio::task::spawn_blocking(move || {
        cassandra.node(0).kill().unwrap();
        cassandra.node(0).start().unwrap();
        cassandra
    })
    .await
    .unwrap();
    let session = SessionBuilder::new().known_nodes(cassandra.contact_points()).build().await.unwrap();
    let after = insert(&session, "t", 3000..6000, 1000).await;
    let rows = session.query_unpaged("SELECT id FROM k.t", ()).await.unwrap().into_rows_result().unwrap();
    let kept: Vec<i32> = rows.rows::<(i32,)>().unwrap().map(|row| row.unwrap().0).collect();
    assert!(kept.len() >= after.len() && before.len() == 3000, "{} kept", kept.len());
    until_seen(&seen, "t", &kept).await;
    until("everything is durable", || agent.status().idle).await;
    let status = agent.status();
    assert_eq!((status.quarantined_entries, status.damaged_segments, status.lost_segments), (0, 0, 0));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_columns_that_are_new_are_captured_from_their_first_write() {
    let (cassandra, session) = cassandra().await;
    let state = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let agent = Agent::start(&cassandra, state.path(), CaptureMode::Live, &seen, usize::MAX);
    until("capture runs", || agent.status().mode.is_some()).await;
    cql(&session, "CREATE TABLE k.fresh (id int PRIMARY KEY, v blob) WITH cdc = true").await;
    cql(&session, "INSERT INTO k.fresh (id, v) VALUES (1, 0x01)").await;
    cql(&session, "ALTER TABLE k.fresh ADD w text").await;
    cql(&session, "INSERT INTO k.fresh (id, w) VALUES (2, 'new')").await;
    cql(&session, "CREATE TABLE k.gone (id int PRIMARY KEY, v blob) WITH cdc = true").await;
    cql(&session, "INSERT INTO k.gone (id, v) VALUES (1, 0x01)").await;
    cql(&session, "DROP TABLE k.gone").await;
    cql(&session, "INSERT INTO k.fresh (id, w) VALUES (3, 'after')").await;
    until_seen(&seen, "fresh", &[1, 2, 3]).await;
    cql(&session, "INSERT INTO k.noise (id, v) VALUES (1, 0x01)").await;
    cql(&session, "ALTER TABLE k.noise WITH cdc = true").await;
    cql(&session, "INSERT INTO k.noise (id, v) VALUES (2, 0x01)").await;
    until_seen(&seen, "noise", &[2]).await;
    assert_eq!(agent.status().quarantined_entries, 0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_schema_are_followed_in_the_log_and_remembered_through_restarts() {
    let (cassandra, session) = cassandra().await;
    let state = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let start = || Agent::start(&cassandra, state.path(), CaptureMode::Live, &seen, usize::MAX);
    cql(&session, "CREATE TABLE k.altered (id int PRIMARY KEY, v text) WITH cdc = true").await;
    let agent = start();
    cql(&session, "INSERT INTO k.altered (id, v) VALUES (1, 'text')").await;
    until_seen(&seen, "altered", &[1]).await;
    agent.stop().await;
    // All of it stands in the log before the next agent asks Cassandra, which has only the last of it then. The write
    // from the future is not one to the column that was added later.
    cql(&session, "INSERT INTO k.altered (id, v) VALUES (2, 'late') USING TIMESTAMP 3000000000000000").await;
    cql(&session, "ALTER TABLE k.altered DROP v").await;
    cql(&session, "ALTER TABLE k.altered ADD v blob").await;
    cql(&session, "INSERT INTO k.altered (id, v) VALUES (3, 0x00)").await;
    cql(&session, "ALTER TABLE k.altered ADD w int").await;
    cql(&session, "INSERT INTO k.altered (id, v, w) VALUES (4, 0x00, 4)").await;
    let agent = start();
    until_seen(&seen, "altered", &[2, 3, 4]).await;
    cql(&session, "TRUNCATE k.altered").await;
    cql(&session, "INSERT INTO k.altered (id, w) VALUES (5, 5)").await;
    until_seen(&seen, "altered", &[5]).await;
    let truncations = |agent: &Agent| {
        let mut metrics = String::new();
        agent.metrics.render(&mut metrics);
        metrics.contains("\ncdc_source_truncations_total 1\n")
    };
    until("the truncation is counted", || truncations(&agent)).await;
    assert_eq!(agent.status().quarantined_entries, 0);
    agent.stop().await;
    // Without the history the schema is Cassandra's.
    std::fs::write(state.path().join("schema.json"), "torn").unwrap();
    cql(&session, "INSERT INTO k.altered (id, w) VALUES (6, 6)").await;
    let agent = start();
    until_seen(&seen, "altered", &[6]).await;
    assert_eq!(agent.status().quarantined_entries, 0);
    agent.stop().await;
    let mut columns = seen.1.lock().unwrap().clone();
    columns.sort();
    columns.dedup();
    let columns: Vec<_> = columns.iter().map(|(id, columns)| format!("{id}: {columns}")).collect();
    assert_eq!(columns, ["1: v Text", "2: v Text", "3: v Blob", "4: v Blob, w Int", "5: w Int", "6: w Int"]);
}

/// Its password, and that of its key, is [`KEYSTORE_PASSWORD`].
const KEYSTORE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/commitlog/tests/golden/jceks-5.0.keystore");
const KEYSTORE_PASSWORD: &str = "cassandra";

fn encrypted(builder: CassandraBuilder) -> CassandraBuilder {
    builder.commitlog_encryption(KEYSTORE, "JCEKS", KEYSTORE_PASSWORD)
}

fn keystore(path: &str, password: &str) -> KeystoreConfig {
    KeystoreConfig { path: path.into(), password: Secret::new(password), key_password: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_log_is_captured_with_its_keystore_and_with_no_other() {
    let (cassandra, session) = cassandra_with(encrypted).await;
    let state = tempfile::tempdir().unwrap();
    let with = |keystore| SourceConfig { keystore, ..config(&cassandra, state.path()) };
    let mut written = insert(&session, "t", 0..500, 2000).await;
    let mut segments = std::fs::read_dir(cassandra.node(0).cdc_raw_dir()).unwrap();
    assert!(segments.any(|file| {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        bytes.windows(11).take(500).any(|part| part == b"encKeyAlias")
    }));

    for (keystore, said) in [
        (None, "source.keystore is not set, but this node encrypts its commit log"),
        (
            Some(keystore(KEYSTORE, "hunter2")),
            "source.keystore cannot be used: the keystore does not open: its password",
        ),
        (
            Some(keystore("/nowhere", "hunter2")),
            "source.keystore cannot be used: cannot read keystore /nowhere: No such",
        ),
    ] {
        let (batches, _received) = mpsc::channel(1);
        let outlet = Outlet::Channel(ChannelOutlet { batches, durable: watch::channel(0).1 });
        let node = CassandraConfig::new(cassandra.node(0).address());
        let agent = cdc_source::run(with(keystore), node, outlet, Arc::default(), Lifecycle::new());
        let error = tokio::time::timeout(PATIENCE, agent).await.unwrap().unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.starts_with(said) && !text.contains("hunter2"), "{text}");
    }

    let seen = Seen::default();
    // That the key has another password shows at the first segment. Nothing is passed over.
    let right = keystore(KEYSTORE, KEYSTORE_PASSWORD);
    let other_key = KeystoreConfig { key_password: Some(Secret::new("hunter2")), ..right.clone() };
    let agent = Agent::start_with(&cassandra, with(Some(other_key)), &seen, usize::MAX);
    tokio::time::timeout(PATIENCE, agent.lifecycle.soft().cancelled()).await.unwrap();
    assert_eq!(agent.lifecycle.finish(Duration::from_secs(10)).await, Exit::Failure);
    assert!(seen.0.lock().unwrap().is_empty());

    let start = || Agent::start_with(&cassandra, with(Some(right.clone())), &seen, usize::MAX);
    let agent = start();
    written.extend(insert(&session, "t", 500..3000, 2000).await);
    until_seen(&seen, "t", &written).await;
    until("segments are deleted", || agent.status().deleted_segments >= 2).await;
    until("everything is durable", || agent.status().idle).await;
    let status = agent.status();
    // There is nothing to read until Cassandra syncs.
    assert_eq!(status.mode, Some(CaptureMode::Durable));
    assert_eq!((status.quarantined_entries, status.damaged_segments, status.lost_segments), (0, 0, 0));
    // Written while no agent runs; the next one goes on in the middle of a segment.
    agent.stop().await;
    let unattended = insert(&session, "t", 3000..3500, 2000).await;
    let agent = start();
    until_seen(&seen, "t", &unattended).await;
    assert_eq!(agent.status().quarantined_entries, 0);
    agent.stop().await;
}
