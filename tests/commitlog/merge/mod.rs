//! The model's merge answers what Cassandra answers.
//!
//! A real node is made to write statements that meet in few cells, often at the same write time and in no order of it:
//! every kind `cdc_workload::every_change` knows. Each mutation is then read from the commit log on its own, and the
//! changes of each partition are shuffled, repeated and folded in random grouping through nothing but the model's public
//! merge. What is visible in the result must be what `SELECT *` answers, byte for byte and in the second of asking: of
//! rows that are there, of columns, of partitions with nothing but static columns. Part of the tables is flushed all the
//! time, so that Cassandra merges memory with disk while the model merges changes.
//!
//! Nothing here is shared with the sink; `target` and `sinks` compare what it makes of the same. What has a TTL expires long before or long after Cassandra is asked.

mod answer;
mod log;
mod partition;
mod sinks;
mod target;
mod ties;

use std::collections::BTreeMap;

use cdc_testkit::Cassandra;
use cdc_workload::every_change::{self, EveryChange, Options, Session, Variety};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;

use answer::Rows;
use partition::Partition;

const FIXED_SEEDS: [u64; 4] = [1, 2, 3, 4];
const OPERATIONS: usize = 700;
/// Of each partition, in another order and grouping each.
const FOLDS: usize = 4;
/// Differences shown of each seed.
const SHOWN: usize = 3;
/// Seconds. What expires later than that does not during the test.
const SOON: i64 = 3_600;

#[test]
fn what_is_merged_from_the_log_is_what_cassandra_answers() {
    let seeds = crate::seeds(&FIXED_SEEDS);
    let last = seeds.last().copied().unwrap_or_default();
    let cassandra = node(last);
    let met = Runtime::new().unwrap().block_on(compare(&cassandra, &seeds, last));
    let met = met.inspect_err(|_| cassandra.keep()).unwrap();
    println!("{met:?}");
    for (what, count) in met {
        assert!(count > 0, "no {what} in seeds {seeds:?}: too little was compared");
    }
}

/// With the disk format of 5.0 for odd seeds, that of 4.0 for even ones.
fn node(seed: u64) -> Cassandra {
    let mode = if is_new_format(seed) { "NONE" } else { "CASSANDRA_4" };
    Cassandra::builder().version("5.0.5").setting("storage_compatibility_mode", mode).start().unwrap()
}

fn is_new_format(seed: u64) -> bool {
    seed % 2 == 1
}

/// What a seed makes a node write, which writes in the format of `last`.
fn options(seed: u64, last: u64) -> Options {
    Options {
        seed,
        keyspace: keyspace(seed),
        vectors: true,
        longest_ttl: if is_new_format(last) { 630_720_000 } else { 300_000_000 },
        earliest_write: if is_new_format(last) { 0 } else { i64::MIN + 1 },
        longest_blob: 100,
        variety: Variety::Small { seed },
        representable: false,
        replicas: 1,
    }
}

async fn write(session: &Session, options: Options, operations: usize) -> anyhow::Result<EveryChange> {
    let seed = options.seed;
    let mut changes = EveryChange::new(options);
    changes.create(session).await?;
    let refused = changes.write(session, operations).await?;
    anyhow::ensure!(refused < operations / 10, "seed {seed}: {refused} writes refused");
    Ok(changes)
}

/// Tells how often it met what it is about.
async fn compare(cassandra: &Cassandra, seeds: &[u64], last: u64) -> anyhow::Result<BTreeMap<&'static str, usize>> {
    let session = every_change::connect(&cassandra.contact_points()).await?;
    let mut written = Vec::new();
    for seed in seeds {
        written.push((*seed, write(&session, options(*seed, last), OPERATIONS).await?));
    }
    let logged = log::changes(cassandra.nodes(), "meeting_")?;
    let mut met = BTreeMap::new();
    let mut differences = 0;
    for (seed, changes) in &written {
        let mut rng = ChaCha8Rng::seed_from_u64(*seed);
        for (table, partitions) in logged.iter().filter(|(table, _)| table.keyspace == keyspace(*seed)) {
            let (answer, now) = answer::ask(&session, table, partitions.values().flatten()).await?;
            partition::count(partitions, now, &mut met);
            *met.entry("rows with clustering").or_default() += answer.keys().filter(|key| key.row.is_some()).count();
            *met.entry("partitions of static columns").or_default() +=
                answer.keys().filter(|key| key.row.is_none()).count();
            let mut wrong = BTreeMap::new();
            for fold in 0..FOLDS {
                let mut expected = Rows::new();
                for (key, partition) in partitions {
                    let merged = match fold {
                        0 => Partition::in_order(table, partition),
                        _ => Partition::in_any_order(table, partition, &mut rng),
                    };
                    answer::show(table, key, &merged, now, &mut expected);
                }
                for key in expected.keys().chain(answer.keys()).filter(|key| expected.get(key) != answer.get(key)) {
                    wrong.entry(key.clone()).or_insert_with(|| (fold, expected.get(key).cloned()));
                }
            }
            for (key, (fold, expected)) in wrong.iter().take(SHOWN) {
                println!("CDC_SEED={seed}, fold {fold}, table {}: {key:?}", table.full_name());
                answer::print_difference(expected.as_ref(), answer.get(key));
                for statement in changes.written_to(&table.name, &key.partition) {
                    println!("    {statement}");
                }
            }
            differences += wrong.len();
        }
    }
    anyhow::ensure!(differences == 0, "{differences} rows differ, seeds {seeds:?}");
    Ok(met)
}

fn keyspace(seed: u64) -> String {
    format!("meeting_{seed}")
}
