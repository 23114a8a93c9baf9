//! PostgreSQL shows what Cassandra answers, whatever the order of delivery.
//!
//! What real nodes logged is shuffled, part of it repeated, cut into batches and applied by several writers at a time,
//! while PostgreSQL is killed and comes back; a batch that failed is applied again, as the sink does. Then both stores
//! are read by `cdc_workload::oracle`, which shares nothing with what applies, and compared cell by cell.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cdc_model::{Change, LocalTime};
use cdc_postgres::{Disposition, PostgresConfig, Target};
use cdc_runtime::Secret;
use cdc_testkit::{Cassandra, Postgres};
use cdc_workload::{
    every_change::{self, EveryChange},
    oracle,
};
use rand::{RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;

use super::log::Logged;
use super::{answer, every_change::Session, keyspace, log, node, options, write};

const FIXED_SEEDS: std::ops::RangeInclusive<u64> = 1..=20;
const FIXED_SEEDS_OF_NODES: [u64; 3] = [1, 2, 3];
const OPERATIONS: usize = 250;
const WRITERS: usize = 4;
const LARGEST_BATCH: usize = 120;
/// PostgreSQL dies under the writers at each seed that it divides.
const KILLED_EVERY: u64 = 5;
const STUCK: Duration = Duration::from_secs(120);

/// What a node was made to write and has logged; read by two tests.
pub(super) struct Written {
    pub(super) cassandra: Cassandra,
    pub(super) seeds: Vec<u64>,
    pub(super) logged: Logged,
}

pub(super) static WRITTEN: LazyLock<Written> = LazyLock::new(|| {
    let seeds = crate::seeds(&FIXED_SEEDS.collect::<Vec<_>>());
    let last = seeds.last().copied().unwrap_or_default();
    let cassandra = node(last);
    let logged = Runtime::new().unwrap().block_on(async {
        let session = every_change::connect(&cassandra.contact_points()).await?;
        for seed in &seeds {
            let options = every_change::Options { representable: true, ..options(*seed, last) };
            write(&session, options, OPERATIONS).await?;
        }
        log::changes(cassandra.nodes(), "meeting_")
    });
    let logged = logged.inspect_err(|_| cassandra.keep()).unwrap();
    Written { cassandra, seeds, logged }
});

#[test]
fn what_is_delivered_in_any_order_and_repeatedly_is_in_postgres_what_cassandra_answers() {
    let Written { cassandra, seeds, logged } = &*WRITTEN;
    let postgres = Postgres::start().unwrap();
    let compared = Runtime::new().unwrap().block_on(async {
        let session = every_change::connect(&cassandra.contact_points()).await?;
        compare_all(&session, logged, &postgres, seeds).await
    });
    let rows = compared.inspect_err(|_| (cassandra.keep(), postgres.keep()).1).unwrap();
    println!("{rows} rows of seeds {seeds:?} are equal");
    assert!(rows >= 20 * seeds.len(), "too little was compared");
}

/// Three nodes hold every row, and each in turn misses writes that it gets from the others later, or only answers.
#[test]
fn what_three_nodes_log_of_which_one_was_down_is_in_postgres_what_cassandra_answers() {
    let seeds = crate::seeds(&FIXED_SEEDS_OF_NODES);
    let cassandra = three_nodes().unwrap();
    let postgres = Postgres::start().unwrap();
    let compared = Runtime::new().unwrap().block_on(async {
        let session = every_change::connect(&cassandra.contact_points()).await?;
        let mut written = Vec::new();
        for seed in &seeds {
            let options = every_change::Options { representable: true, replicas: 3, ..options(*seed, 1) };
            written.push(EveryChange::new(options));
        }
        for changes in &written {
            changes.create(&session).await?;
        }
        for down in [None, Some(1), None, Some(2), None] {
            if let Some(node) = down {
                cassandra.node(node).stop()?;
            }
            for changes in &mut written {
                let refused =
                    changes.write(&session, OPERATIONS / 4).await.with_context(|| format!("down: {down:?}"))?;
                ensure!(refused < OPERATIONS / 40, "{refused} writes refused, down: {down:?}");
            }
            if let Some(node) = down {
                cassandra.node(node).start()?;
            }
        }
        let logged = log::changes(cassandra.nodes(), "meeting_")?;
        compare_all(&session, &logged, &postgres, &seeds).await
    });
    let rows = compared.inspect_err(|_| (cassandra.keep(), postgres.keep()).1).unwrap();
    println!("{rows} rows of seeds {seeds:?} on three nodes are equal");
    assert!(rows >= 20 * seeds.len(), "too little was compared");
}

/// Patient, because they share what cores there are.
fn three_nodes() -> Result<Cassandra, cdc_testkit::Error> {
    let patient = [
        "read_request_timeout",
        "range_request_timeout",
        "write_request_timeout",
        "counter_write_request_timeout",
        "cas_contention_timeout",
        "request_timeout",
    ];
    let builder = Cassandra::builder().version("5.0.5").nodes(3).setting("storage_compatibility_mode", "NONE");
    patient.iter().fold(builder, |builder, timeout| builder.setting(timeout, "25s")).start()
}

/// Tells how many rows were compared, all of them equal.
async fn compare_all(session: &Session, logged: &Logged, postgres: &Postgres, seeds: &[u64]) -> anyhow::Result<usize> {
    let (mut rows, mut differences) = (0, 0);
    for seed in seeds {
        let report = compare(session, postgres, logged, *seed).await.with_context(|| format!("seed {seed}"))?;
        if report.differences() > 0 {
            println!("CDC_SEED={seed}\n{report}");
        }
        rows += report.rows();
        differences += report.differences();
    }
    ensure!(differences == 0, "{differences} rows differ, seeds {seeds:?}");
    Ok(rows)
}

async fn compare(session: &Session, postgres: &Postgres, logged: &Logged, seed: u64) -> anyhow::Result<oracle::Report> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let of_seed = || logged.iter().filter(|(table, _)| table.keyspace == keyspace(seed));
    let changes: Vec<Change> = of_seed().flat_map(|(_, partitions)| partitions.values().flatten().cloned()).collect();
    let changes = shuffled(changes, &mut rng);

    let database = format!("seed_{seed}");
    client(&postgres.url()).await?.batch_execute(&format!("create database {database}")).await?;
    let target = Target::connect(&config(postgres, &database)?).await?;
    let mut writers = tokio::task::JoinSet::new();
    let share = changes.len().div_ceil(WRITERS);
    for share in changes.chunks(share) {
        let (target, mut rest, mut rng) = (target.clone(), share.to_vec(), ChaCha8Rng::seed_from_u64(rng.random()));
        writers.spawn(async move {
            let mut quarantined = 0;
            while !rest.is_empty() {
                let batch = rest.split_off(rest.len() - rng.random_range(1..=LARGEST_BATCH.min(rest.len())));
                quarantined += apply(&target, &batch).await?;
            }
            anyhow::Ok(quarantined)
        });
    }
    if seed.is_multiple_of(KILLED_EVERY) {
        postgres.kill()?;
        postgres.restart()?;
    }
    while let Some(quarantined) = writers.join_next().await {
        ensure!(quarantined?? == 0, "PostgreSQL does not hold what it should, see _cdc.dlq of {database}");
    }

    // What expires is gone when Cassandra is asked.
    for (table, partitions) in of_seed() {
        let (_, now) = answer::ask(session, table, partitions.values().flatten()).await?;
        while target.sweep_expired(LocalTime(now.0)).await? > 0 {}
    }
    let client = client(&postgres.url_of(&database)).await?;
    let tables: Vec<&str> = of_seed().map(|(table, _)| table.name.as_str()).collect();
    oracle::compare(session, &client, &keyspace(seed), &tables).await
}

/// In any order, a third of them again.
pub(super) fn shuffled(mut changes: Vec<Change>, rng: &mut ChaCha8Rng) -> Vec<Change> {
    for _ in 0..changes.len() / 3 {
        changes.push(changes[rng.random_range(0..changes.len())].clone());
    }
    changes.shuffle(rng);
    changes
}

#[expect(clippy::disallowed_methods, reason = "the connection ends with its client")]
pub(super) async fn client(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Again and again while PostgreSQL is away. Tells how much it does not hold.
async fn apply(target: &Target, batch: &[Change]) -> anyhow::Result<usize> {
    let again = async {
        loop {
            match target.apply(batch.to_vec(), &[]).await {
                Ok(applied) => return Ok(applied.quarantined),
                Err(error) if error.disposition() == Disposition::Retry => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    tokio::time::timeout(STUCK, again).await.context("PostgreSQL did not come back")?
}

fn config(postgres: &Postgres, database: &str) -> anyhow::Result<PostgresConfig> {
    let address = postgres.address();
    let mut config = PostgresConfig::new(address.ip().to_string(), address.port(), database, "postgres");
    let url = postgres.url();
    config.password = Some(Secret::new(url.split(['@', ':']).nth(2).context("a password stands between : and @")?));
    Ok(config)
}
