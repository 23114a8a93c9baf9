//! As `target`, but the way through Kafka and with sinks as they run.
//!
//! What a real node logged is shuffled, a third of it repeated, and sent to topics in which a key's changes stand in any
//! order and in any partition, so that both of two `cdc sink` processes write the same rows at the same time. Each of them is
//! killed twice, PostgreSQL once, after numbers of records that follow from the seed; all of it goes on by itself. Once every
//! record is accounted for, the oracle compares, while the sinks remove what expires.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cdc_kafka::{KafkaConfig, Outgoing, Publisher};
use cdc_model::Change;
use cdc_testkit::{Kafka, Postgres};
use cdc_wire::encode_change;
use cdc_workload::{every_change, oracle};
use futures::future::try_join_all;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;

use super::log::Logged;
use super::target::{WRITTEN, Written, client, shuffled};
use super::{answer, keyspace};

const PARTITIONS: i32 = 3;
/// Not what the sinks are told: they then do not look at which partition a key belongs into.
const PARTITIONS_TOLD: i32 = 8;
/// Few, so that there are many between which a process can die.
const BATCH_ROWS: usize = 40;
const SENT_AT_ONCE: usize = 500;
const STUCK: Duration = Duration::from_secs(180);

#[test]
fn what_is_delivered_through_kafka_to_sinks_that_are_killed_is_in_postgres_what_cassandra_answers() {
    let Written { cassandra, seeds, logged } = &*WRITTEN;
    let (kafka, postgres) = (Kafka::start().unwrap(), Postgres::start().unwrap());
    let folder = tempfile::tempdir().unwrap();
    // The one keeps its partitions while it is away, those of the other move and come back.
    let first = Sink::start(folder.path(), "first", "  instance_id: first\n", &kafka, &postgres);
    let second = Sink::start(folder.path(), "second", "", &kafka, &postgres);
    let compared = Runtime::new().unwrap().block_on(async {
        let mut rng = ChaCha8Rng::seed_from_u64(seeds.last().copied().unwrap_or_default());
        let changes = logged.iter().flat_map(|(_, partitions)| partitions.values().flatten().cloned()).collect();
        let changes = shuffled(changes, &mut rng);
        let disturbances = disturb([first, second], &postgres, changes.len(), rng.random());
        let (_, sinks) = tokio::try_join!(send(&kafka, logged, &changes, rng.random()), disturbances)?;
        applied(&postgres, changes.len()).await?;
        let rows = compare(&cassandra.contact_points(), &postgres, logged, seeds).await;
        drop(sinks);
        rows
    });
    let keep = |_: &anyhow::Error| {
        cassandra.keep();
        postgres.keep();
        for name in ["first", "second"] {
            println!("{}", fs::read_to_string(folder.path().join(name).with_extension("log")).unwrap_or_default());
        }
    };
    let rows = compared.inspect_err(keep).unwrap();
    println!("{rows} rows of seeds {seeds:?} delivered through Kafka are equal");
    assert!(rows >= 20 * seeds.len(), "too little was compared");
}

async fn send(kafka: &Kafka, logged: &Logged, changes: &[Change], seed: u64) -> anyhow::Result<()> {
    let config = KafkaConfig { partitions: PARTITIONS, ..KafkaConfig::new(vec![kafka.bootstrap()]) };
    let (publisher, topics) = (Publisher::connect(&config)?, config.template());
    let tables: Vec<_> = logged.iter().map(|(table, _)| std::sync::Arc::clone(table)).collect();
    publisher.ensure_topics(&tables).await?;
    try_join_all(tables.iter().map(|table| publisher.publish_schema(table))).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for changes in changes.chunks(SENT_AT_ONCE) {
        let sending = changes.iter().map(|change| {
            let (topic, payload) = (topics.topic(&change.table), encode_change(change));
            let (partition, publisher) = (rng.random_range(0..PARTITIONS), &publisher);
            async move {
                let record = Outgoing {
                    topic: &topic,
                    partition: Some(partition),
                    key: Some(&change.partition_key),
                    payload: Some(&payload),
                    headers: &[],
                };
                publisher.publish_record(record).await
            }
        });
        try_join_all(sending).await?;
    }
    Ok(())
}

/// Kills each sink twice and PostgreSQL once, at moments spread over the delivery of so many records.
async fn disturb(mut sinks: [Sink; 2], postgres: &Postgres, records: usize, seed: u64) -> anyhow::Result<[Sink; 2]> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut moments: Vec<usize> = (0..5).map(|_| rng.random_range(1..=records * 9 / 10)).collect();
    moments.sort_unstable();
    for (number, moment) in moments.into_iter().enumerate() {
        let reached = applied(postgres, moment).await?;
        println!("{} dies after {reached} of {records} records", ["first", "second", "PostgreSQL"][number % 3]);
        match sinks.get_mut(number % 3) {
            Some(sink) => sink.kill_and_start()?,
            None => {
                postgres.kill()?;
                postgres.start()?;
            }
        }
    }
    Ok(sinks)
}

/// Waits until so many records are accounted for by positions; tells how many there are then.
async fn applied(postgres: &Postgres, records: usize) -> anyhow::Result<usize> {
    let deadline = Instant::now() + STUCK;
    let sum = "select coalesce(sum(position::bigint), 0)::bigint from _cdc.streams where name like 'kafka:%'";
    loop {
        // It may not be there yet, nor its tables.
        let answer = async { anyhow::Ok(client(&postgres.url()).await?.query_one(sum, &[]).await?.get::<_, i64>(0)) };
        let reached = usize::try_from(answer.await.unwrap_or(0))?;
        if reached >= records {
            return Ok(reached);
        }
        ensure!(Instant::now() < deadline, "{reached} of {records} records are applied after {STUCK:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Tells how many rows were compared, all of them equal.
async fn compare(
    contact_points: &[String],
    postgres: &Postgres,
    logged: &Logged,
    seeds: &[u64],
) -> anyhow::Result<usize> {
    let session = every_change::connect(contact_points).await?;
    let client = client(&postgres.url()).await?;
    let (mut rows, mut differences) = (0, 0);
    for seed in seeds {
        let of_seed = || logged.iter().filter(|(table, _)| table.keyspace == keyspace(*seed));
        for (table, partitions) in of_seed() {
            // What expires has expired from here on.
            answer::ask(&session, table, partitions.values().flatten()).await?;
        }
        let tables: Vec<&str> = of_seed().map(|(table, _)| table.name.as_str()).collect();
        let report = oracle::compare(&session, &client, &keyspace(*seed), &tables).await?;
        if report.differences() > 0 {
            println!("CDC_SEED={seed}\n{report}");
        }
        rows += report.rows();
        differences += report.differences();
    }
    ensure!(differences == 0, "{differences} rows differ, seeds {seeds:?}");
    let letters: i64 = client.query_one("select count(*) from _cdc.dlq", &[]).await?.get(0);
    ensure!(letters == 0, "PostgreSQL does not hold what it should, see _cdc.dlq");
    Ok(rows)
}

/// A running `cdc sink`; killed when dropped.
struct Sink {
    config: PathBuf,
    child: Child,
}

impl Sink {
    /// With further lines of its section.
    fn start(folder: &Path, name: &str, sink: &str, kafka: &Kafka, postgres: &Postgres) -> Self {
        let postgres: tokio_postgres::Config = postgres.url().parse().unwrap();
        let config = folder.join(name).with_extension("yaml");
        let password = folder.join("password");
        fs::write(&password, postgres.get_password().unwrap()).unwrap();
        let text = format!(
            "kafka:\n  bootstrap_servers: [\"{}\"]\n  partitions: {PARTITIONS_TOLD}\n\
             postgres:\n  host: 127.0.0.1\n  port: {}\n  database: {}\n  username: postgres\n  password_file: {}\n\
             sink:\n  batch_rows: {BATCH_ROWS}\n{sink}\
             admin:\n  listen: 127.0.0.1:0\n",
            kafka.bootstrap(),
            postgres.get_ports()[0],
            postgres.get_dbname().unwrap(),
            password.display(),
        );
        fs::write(&config, text).unwrap();
        let child = run(&config).unwrap();
        Self { config, child }
    }

    /// As `kill -9`.
    fn kill_and_start(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.try_wait()?.is_none(), "the sink of {} has ended by itself", self.config.display());
        self.child.kill()?;
        self.child.wait()?;
        self.child = run(&self.config).context("start the sink again")?;
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn run(config: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(config.with_extension("log"))?;
    let mut command = crate::node::cdc();
    command.arg("sink").arg(config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command.spawn()?)
}
