//! Samples, times and single partitions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use cdc_model::{TableSchema, TokenRange, token};
use cdc_reconciler::{
    Class, Finding, Only, Options, Outcome, Pass, PipelineBarrier, Repair, Sample, Scope, Strategy, Written,
};
use futures::future::BoxFuture;

use crate::{RATE, world::World};

/// Of the row with key 0, microseconds since 1970; the others follow it.
const FIRST: i64 = 1_700_000_000_000_000;
const ROWS: i32 = 600;

/// The real barrier for the first time, and none any more.
struct Once {
    barrier: Arc<PipelineBarrier>,
    has_passed: AtomicBool,
}

impl Pass for Once {
    fn pass<'a>(&'a self, table: &'a TableSchema) -> BoxFuture<'a, Result<(), String>> {
        match self.has_passed.swap(true, Ordering::Relaxed) {
            false => self.barrier.pass(table),
            true => Box::pin(std::future::ready(Err("no log is there".to_owned()))),
        }
    }
}

/// First column of the key of what was found.
fn keys(outcome: &Outcome) -> BTreeSet<i32> {
    let first = |partition: &[u8]| i32::from_be_bytes(partition.try_into().expect("an int"));
    outcome.findings.iter().map(|finding| first(&finding.key.partition)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_a_time_range_and_a_partition_find_what_is_wrong_in_them_and_nothing_else() -> Result<()> {
    let world = World::start(&[], async |session| {
        for statement in [
            "create table shop.plain (id int primary key, v text, n int) with cdc = true",
            "create table shop.wide (p int, c int, v text, s text static, primary key (p, c)) with cdc = true",
        ] {
            session.query_unpaged(statement, ()).await?;
        }
        Ok(())
    })
    .await?;
    for id in 0..ROWS {
        let time = FIRST + i64::from(id);
        world
            .cql(&format!("insert into shop.plain (id, v, n) values ({id}, 'v', {id}) using timestamp {time}"))
            .await?;
    }
    for p in 0..4 {
        world.cql(&format!("insert into shop.wide (p, c, v, s) values ({p}, 1, 'v', 's')")).await?;
        world.cql(&format!("insert into shop.wide (p, c, v) values ({p}, 2, 'v')")).await?;
    }
    world.settle().await?;
    let plain = || Ok::<_, anyhow::Error>(Scope::new(world.table("shop.plain")?, TokenRange::RING));
    let sample = async |percent: f64, seed: u32| {
        world.compare_only(plain()?.only(Only::Sample(Sample { percent, seed })), Options::default()).await
    };
    let written = async |from: i64, to: i64| {
        let (from, to) = (FIRST + from, FIRST + to);
        world.compare_only(plain()?.only(Only::Written(Written { from, to })), Options::default()).await
    };

    // Under load, and without drift.
    let load = world.load(9, RATE);
    load.writes_on().await;
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_micros())?;
    for table in world.schema.iter().filter(|table| table.keyspace == "shop" && table.cdc) {
        let scope = || Scope::new(table.clone().into(), TokenRange::RING);
        let seed = rand::random();
        println!("seed {seed}");
        let lately = Written { from: now - 60_000_000, to: i64::MAX };
        for only in [Only::Sample(Sample { percent: 30.0, seed }), Only::Written(lately)] {
            let outcome = world.compare_only(scope().only(only), Options::default()).await?;
            ensure!(outcome.findings.is_empty(), "{outcome:#?}");
        }
    }
    ensure!(load.stop().await? > 500);

    let clean = sample(50.0, 1).await?;
    let sampled = clean.sample.expect("it was one");
    ensure!(clean.findings.is_empty() && clean.strategy == "SAMPLE" && sampled.drawn == 32_768, "{clean:#?}");
    ensure!((200..400).contains(&clean.rows.cassandra) && clean.rows.cassandra == clean.rows.postgres, "{clean:#?}");
    ensure!(sampled.wrong == 0 && (0.5..2.0).contains(&sampled.wrong_percentage_max), "{sampled:?}");
    let all = written(100, 200).await?;
    ensure!(all.findings.is_empty() && all.rows.cassandra == 100 && all.rows.postgres == 100, "{all:#?}");
    ensure!(all.strategy == "TIMESTAMP_RANGE" && all.written.is_some());

    world.sql("update cdc_plain set v = 'x'").await?;
    let drawn = sample(10.0, 1).await?;
    let sampled = drawn.sample.expect("it was one");
    let found = keys(&drawn);
    ensure!((20..120).contains(&found.len()) && drawn.drift() == drawn.rows.cassandra, "{drawn:#?}");
    ensure!(sampled.wrong == sampled.with_rows && sampled.wrong_percentage_max == 100.0, "{sampled:?}");
    ensure!(keys(&sample(10.0, 1).await?) == found && keys(&sample(10.0, 2).await?) != found);

    // What one store alone has written then belongs to it, too.
    world.sql("delete from cdc_plain where id in (150, 250)").await?;
    world.sql(&format!("update cdc_plain set _cdc_written_at = {} where id = 300", FIRST + 120)).await?;
    for (id, time) in [(1_000, FIRST + 130), (1_001, FIRST + 230)] {
        let token = token(&i32::to_be_bytes(id)).0;
        let row = format!("({id}, 'x', {token}, {time})");
        world.sql(&format!("insert into cdc_plain (id, v, _cdc_token, _cdc_written_at) values {row}")).await?;
    }
    let within = written(100, 200).await?;
    ensure!(keys(&within) == (100..200).chain([300, 1_000]).collect(), "{within:#?}");
    let class_of = |id: i32| {
        let is_it = |finding: &&cdc_reconciler::Finding| finding.key.partition[..] == id.to_be_bytes();
        within.findings.iter().find(is_it).map(|finding| finding.class)
    };
    ensure!(class_of(150) == Some(Class::MissingInPostgres) && class_of(1_000) == Some(Class::Extra), "{within:#?}");
    ensure!(written(5_000, 6_000).await?.findings.is_empty());

    world.sql("update cdc_wide set v = 'x' where p in (1, 2) and c = 1").await?;
    world.sql("update cdc_wide__static set s = 'x' where p = 1").await?;
    let of = async |p: i32| {
        let scope = Scope::partition(world.table("shop.wide")?, &p.to_be_bytes());
        world.compare_only(scope, Options::default()).await
    };
    let (first, third, unknown) = (of(1).await?, of(3).await?, of(77).await?);
    ensure!(first.findings.len() == 2 && keys(&first) == BTreeSet::from([1]), "{first:#?}");
    ensure!(first.rows.cassandra == 3 && first.coverage.share == 1.0, "{first:#?}");
    ensure!(third.findings.is_empty() && third.rows.cassandra == 3 && unknown.rows.postgres == 0, "{third:#?}");
    // The row of each store shows as a checksum that says that they differ, and nothing else.
    let sums = |finding: &Finding| (finding.cassandra_checksum.clone(), finding.postgres_checksum.clone());
    ensure!(first.findings.iter().map(sums).all(|(one, other)| one.is_some() && other.is_some() && one != other));

    // A repair that nobody can prove is told, and not called one.
    world.sql("delete from cdc_wide where p = 3 and c = 1").await?;
    let barrier = Arc::new(Once { barrier: world.barrier.clone(), has_passed: AtomicBool::new(false) });
    let repair = Repair { classes: Class::ALL.into_iter().collect(), max_share: 100.0, dry_run: false };
    let scope = || Ok::<_, anyhow::Error>(Scope::partition(world.table("shop.wide")?, &3i32.to_be_bytes()));
    let options = Options { repair: Some(repair), ..Options::default() };
    let changed = world.compare_scope(scope()?, Strategy::Checksum, options, barrier).await?;
    let finding = &changed.findings[0];
    ensure!(changed.findings.len() == 1 && finding.class == Class::MissingInPostgres, "{changed:#?}");
    ensure!(finding.attempted && !finding.repaired && changed.repairs.is_some_and(|all| all.done == 0), "{changed:#?}");
    ensure!(sums(finding).1.is_none());
    ensure!(world.compare_only(scope()?, Options::default()).await?.findings.is_empty(), "it was set right");
    world.stop().await;
    Ok(())
}
