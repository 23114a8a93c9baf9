//! A broker and a database server for all tests of the run, and per test a database, a group and topics of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use cdc_kafka::{Assignment, Consumer, Headers, KafkaConfig, Publisher, Start, TopicPartition};
use cdc_model::{
    Cell, Change, ChangeBody, Clustering, Column, ColumnId, ColumnKind, ColumnState, CqlType, KeyColumn, Liveness,
    LocalTime, NodeId, Provenance, RowState, SegmentId, SegmentPosition, TableId, TableSchema, WriteTime,
};
use cdc_postgres::PostgresConfig;
use cdc_runtime::{Exit, Lifecycle, Secret};
use cdc_sink::{SinkConfig, SinkMetrics};
use cdc_testkit::{Kafka, Postgres};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(90);

static KAFKA: LazyLock<Kafka> = LazyLock::new(|| Kafka::start().unwrap());
static POSTGRES: LazyLock<Postgres> = LazyLock::new(|| Postgres::start().unwrap());

pub(crate) struct World {
    name: String,
    pub(crate) kafka: KafkaConfig,
    pub(crate) postgres: PostgresConfig,
    pub(crate) sink: SinkConfig,
    url: String,
}

impl World {
    pub(crate) async fn new(name: &str) -> Self {
        let (bootstrap, url, own) = blocking({
            let name = name.to_owned();
            move || (KAFKA.bootstrap(), POSTGRES.url(), POSTGRES.url_of(&name))
        })
        .await;
        client(&url).await.batch_execute(&format!("create database {name}")).await.unwrap();
        let mut kafka = KafkaConfig::new(vec![bootstrap]);
        kafka.topic = format!("{name}-{{table}}");
        let postgres = config(&own);
        let sink = SinkConfig { group: name.to_owned(), ..SinkConfig::default() };
        Self { name: name.to_owned(), kafka, postgres, sink, url: own }
    }

    /// A broker that this test may break.
    pub(crate) async fn own_broker(&mut self) -> Kafka {
        let broker = blocking(|| Kafka::start().unwrap()).await;
        self.kafka.bootstrap_servers = vec![broker.bootstrap()];
        broker
    }

    /// A database server that this test may break.
    pub(crate) async fn own_database_server(&mut self) -> Postgres {
        let server = blocking(|| Postgres::start().unwrap()).await;
        (self.postgres, self.url) = (config(&server.url()), server.url());
        server
    }

    /// Unique among tests, which share topic `cdc-schemas`.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}_{name}", self.name)
    }

    pub(crate) async fn client(&self) -> tokio_postgres::Client {
        client(&self.url).await
    }

    pub(crate) async fn publisher(&self, tables: &[&Arc<TableSchema>]) -> Publisher {
        let publisher = Publisher::connect(&self.kafka).unwrap();
        let tables: Vec<Arc<TableSchema>> = tables.iter().map(|table| Arc::clone(table)).collect();
        publisher.ensure_topics(&tables).await.unwrap();
        for table in &tables {
            publisher.publish_schema(table).await.unwrap();
        }
        publisher
    }

    /// Sends a row per key and waits until all are acknowledged.
    pub(crate) async fn send(&self, publisher: &Publisher, table: &Arc<TableSchema>, keys: Range<i64>) {
        let changes: Vec<Change> = keys.clone().map(|key| insert(table, key)).collect();
        for part in changes.chunks(1_000) {
            publisher.send_batch(part, part.last().unwrap().provenance.position).await.unwrap();
        }
        self.acknowledged(publisher, keys.end - 1).await;
    }

    pub(crate) async fn acknowledged(&self, publisher: &Publisher, key: i64) {
        let mut durable = publisher.durable();
        let reached = durable.wait_for(|durable| *durable == Some(position(key)));
        tokio::time::timeout(PATIENCE, reached).await.expect("records are acknowledged in time").unwrap();
    }

    pub(crate) async fn count(&self, table: &TableSchema) -> i64 {
        let query = format!("select count(*) from cdc_{}", table.name);
        // Before the first row there is no table.
        self.client().await.query_one(&query, &[]).await.map_or(0, |row| row.get(0))
    }

    pub(crate) async fn rows(&self, table: &TableSchema, expected: i64) {
        eventually(&format!("{} has {expected} rows", table.name), async || self.count(table).await == expected).await;
    }

    /// Records accounted for by the positions in PostgreSQL.
    pub(crate) async fn offsets(&self) -> i64 {
        let query = "select coalesce(sum(position::bigint), 0)::bigint from _cdc.streams where name like 'kafka:%'";
        self.client().await.query_one(query, &[]).await.unwrap().get(0)
    }

    /// So many dead letters of a topic, with their headers, from `dlq-events`.
    pub(crate) async fn dead_letters(&self, topic: &str, count: usize) -> Vec<(serde_json::Value, Headers)> {
        let config = KafkaConfig { topic: "dlq-{table}".to_owned(), ..self.kafka.clone() };
        let (group, topic) = (format!("letters-{}", Uuid::from_u128(rand::random())), topic.to_owned());
        blocking(move || {
            let consumer = Consumer::connect(&config, &group, None, FromTheBeginning).unwrap();
            let deadline = Instant::now() + PATIENCE;
            let mut letters = Vec::new();
            while letters.len() < count {
                assert!(Instant::now() < deadline, "{} of {count} dead letters of {topic}", letters.len());
                if let Ok(Some(record)) = consumer.poll(Duration::from_millis(100)) {
                    let text = String::from_utf8(record.payload.unwrap().to_vec()).unwrap();
                    assert!(!text.contains('\n'), "one line each");
                    let letter: serde_json::Value = serde_json::from_str(&text).unwrap();
                    if letter["original_topic"] == topic {
                        letters.push((letter, record.headers));
                    }
                }
            }
            letters
        })
        .await
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.client().await.query_one(&format!("select ({sql})::bigint"), &[]).await.unwrap().get(0)
    }
}

fn config(url: &str) -> PostgresConfig {
    let parsed: tokio_postgres::Config = url.parse().unwrap();
    let Some(tokio_postgres::config::Host::Tcp(host)) = parsed.get_hosts().first() else { panic!("a TCP host") };
    let database = parsed.get_dbname().unwrap();
    let mut postgres = PostgresConfig::new(host, parsed.get_ports()[0], database, parsed.get_user().unwrap());
    postgres.password = parsed.get_password().map(|password| Secret::new(std::str::from_utf8(password).unwrap()));
    postgres
}

pub(crate) struct FromTheBeginning;

impl Assignment for FromTheBeginning {
    fn assigned(&self, partitions: &[TopicPartition]) -> Option<Vec<Start>> {
        Some(vec![Start::Beginning; partitions.len()])
    }
    fn revoked(&self, _: &[TopicPartition]) {}
    fn end(&self, _: &TopicPartition, _: i64) {}
}

/// A sink within this process.
pub(crate) struct Sink {
    pub(crate) metrics: Arc<SinkMetrics>,
    lifecycle: Lifecycle,
}

impl Sink {
    pub(crate) fn start(world: &World) -> Self {
        let (metrics, lifecycle) = (Arc::<SinkMetrics>::default(), Lifecycle::new());
        let run = cdc_sink::run(
            world.sink.clone(),
            world.kafka.clone(),
            world.postgres.clone(),
            Arc::clone(&metrics),
            lifecycle.clone(),
        );
        lifecycle.spawn("sink", run);
        Self { metrics, lifecycle }
    }

    pub(crate) async fn stop(self) {
        assert!(!self.lifecycle.soft().is_cancelled(), "the sink ended by itself");
        self.lifecycle.stop();
        assert_eq!(self.lifecycle.finish(Duration::from_secs(20)).await, Exit::Success);
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ends(self) -> Exit {
        tokio::time::timeout(PATIENCE, self.lifecycle.soft().cancelled()).await.expect("the sink ends by itself");
        self.lifecycle.finish(Duration::from_secs(20)).await
    }

    /// As near to a crash as one process allows: whatever is held is dropped.
    pub(crate) async fn kill(self) {
        self.lifecycle.stop_now();
        self.lifecycle.finish(Duration::ZERO).await;
    }
}

pub(crate) fn table(name: &str, column: &str) -> Arc<TableSchema> {
    let column = Column { name: column.to_owned(), ty: CqlType::Text, kind: ColumnKind::Regular, dropped: None };
    let key = KeyColumn { name: "k".to_owned(), ty: CqlType::BigInt, reversed: false };
    let table = TableSchema {
        id: TableId(Uuid::from_u128(rand::random())),
        keyspace: "shop".to_owned(),
        name: name.to_owned(),
        partition_key: vec![key],
        clustering: Vec::new(),
        columns: vec![column],
        cdc: true,
        gc_grace_seconds: 864_000,
    };
    Arc::new(table.new().unwrap())
}

pub(crate) fn position(key: i64) -> SegmentPosition {
    SegmentPosition { segment: SegmentId(1), offset: u64::try_from(key).unwrap() + 1 }
}

pub(crate) fn insert(table: &Arc<TableSchema>, key: i64) -> Change {
    let time = WriteTime(1_700_000_000_000_000 + key);
    let cell = Cell::live(time, Bytes::from(format!("value of {key}")));
    let row = RowState {
        liveness: Some(Liveness { time, ttl: 0, expires: LocalTime::NONE }),
        deletion: None,
        columns: vec![(ColumnId(0), ColumnState::Simple(cell))],
    };
    Change {
        table: Arc::clone(table),
        partition_key: key.to_be_bytes().into(),
        body: ChangeBody::Row { clustering: Clustering::default(), row },
        provenance: Provenance { node: NodeId(Uuid::nil()), position: position(key) },
    }
}

#[expect(clippy::disallowed_methods, reason = "a test has no lifecycle; the task ends with its client")]
async fn client(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Looks again and again, up to a deadline.
pub(crate) async fn eventually<F: AsyncFn() -> bool>(what: &str, condition: F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
