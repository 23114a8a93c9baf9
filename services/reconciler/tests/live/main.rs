//! The comparison on real servers, with a pipeline that goes on replicating.

#![expect(clippy::print_stdout, reason = "seeds and figures of a run")]

mod mutants;
mod planted;
mod strategies;
mod world;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use cdc_cassandra::Consistency;
use cdc_model::token;
use cdc_postgres::Strategy;
use cdc_reconciler::{Class, Finding, Outcome, Repair};
use cdc_workload::every_change::{EveryChange, Options, Variety};
use world::World;

const STRATEGIES: [Strategy; 3] = [Strategy::Checksum, Strategy::Version, Strategy::RowCount];
const RATE: u32 = 400;

fn findings(outcomes: &[Outcome]) -> Vec<&Finding> {
    outcomes.iter().flat_map(|outcome| &outcome.findings).collect()
}

/// One by chance; `CDC_SEED` names others instead, as in `CDC_SEED=7,8,9`.
fn seeds() -> Result<Vec<u64>> {
    match std::env::var("CDC_SEED") {
        Ok(seeds) => seeds.split(',').map(|seed| Ok(seed.trim().parse()?)).collect(),
        Err(_) => Ok(vec![rand::random()]),
    }
}

/// Nothing wrong, and everything compared.
fn ensure_clean(outcomes: &[Outcome], rows: u64) -> Result<()> {
    let compared: u64 = outcomes.iter().map(|outcome| outcome.rows.cassandra).sum();
    ensure!(findings(outcomes).is_empty(), "{outcomes:#?}");
    ensure!(compared >= rows, "{compared} rows are too few");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn under_heavy_load_nothing_is_called_wrong() -> Result<()> {
    let world = World::start(&[], async |_| Ok(())).await?;
    for seed in seeds()? {
        println!("CDC_SEED={seed}");
        let load = world.load(seed, RATE);
        for strategy in STRATEGIES {
            load.writes_on().await;
            let outcomes = world.compare("shop", strategy, Consistency::LocalQuorum).await?;
            for outcome in &outcomes {
                let Outcome { table, strategy, rows, suspects, in_motion, seconds, .. } = outcome;
                println!("{table} {strategy}: {rows:?}, {suspects} suspects, {in_motion} in motion, {seconds:.1} s");
            }
            ensure_clean(&outcomes, 100)?;
        }
        ensure!(load.stop().await? > 1_000);
    }
    world.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_and_type_compares_as_equal() -> Result<()> {
    let mut changes = EveryChange::new(Options {
        seed: 11,
        keyspace: "every_11".to_owned(),
        vectors: true,
        longest_ttl: 300_000_000,
        earliest_write: i64::MIN + 1,
        longest_blob: 100,
        variety: Variety::Small { seed: 11 },
        representable: true,
        replicas: 1,
    });
    let world = World::start(&["every_11"], async |session| changes.create(session).await).await?;
    changes.write(&world.session, 1_000).await?;
    for strategy in STRATEGIES {
        ensure_clean(&world.compare("every_11", strategy, Consistency::One).await?, 50)?;
    }
    world.stop().await;
    Ok(())
}

/// What was planted where: rows of `planted` by partition and clustering, of the others by key.
#[derive(Default)]
struct Planted(BTreeMap<Place, Class>);

/// Table, partition key, clustering key.
type Place = (&'static str, Vec<u8>, Option<Vec<u8>>);

impl Planted {
    fn row(&mut self, p: i32, c: i32, class: Class) {
        let clustering = [&4i32.to_be_bytes()[..], &c.to_be_bytes()].concat();
        self.0.insert(("shop.planted", p.to_be_bytes().into(), Some(clustering)), class);
    }

    fn fixed(&mut self, p: i32, class: Class) {
        self.0.insert(("shop.planted", p.to_be_bytes().into(), None), class);
    }

    fn key(&mut self, table: &'static str, id: i32, class: Class) {
        self.0.insert((table, id.to_be_bytes().into(), Some(Vec::new())), class);
    }
}

const TABLES: [&str; 4] = [
    "create table shop.planted (p int, c int, v text, n decimal, tags set<text>, m map<text, frozen<list<int>>>, \
     s text static, primary key (p, c)) with cdc = true",
    "create table shop.plain (id int primary key, v text, n int) with cdc = true",
    "create table shop.hits (id int primary key, n counter) with cdc = true",
    "create table thin.t (id int primary key, v text) with cdc = true",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_planted_difference_is_found_and_named_and_nothing_else() -> Result<()> {
    let world = World::start(&["thin"], async |session| {
        // More replicas than nodes: never readable at ALL.
        let thin = "create keyspace thin with replication = {'class': 'SimpleStrategy', 'replication_factor': 2}";
        for statement in [thin].into_iter().chain(TABLES) {
            session.query_unpaged(statement, ()).await?;
        }
        Ok(())
    })
    .await?;
    for p in 0..60 {
        for c in 0..3 {
            world
                .cql(&format!(
                    "insert into shop.planted (p, c, v, n, tags, m) values ({p}, {c}, 'v{p}.{c}', {p}.50, {{'a', 'b{c}'}}, \
                     {{'k': [{p}, {c}]}})"
                ))
                .await?;
        }
        world.cql(&format!("insert into shop.planted (p, s) values ({p}, 's{p}')")).await?;
        world.cql(&format!("insert into shop.plain (id, v, n) values ({p}, 'v{p}', {p})")).await?;
        world.cql(&format!("update shop.hits set n = n + {p} where id = {p}")).await?;
        world.cql(&format!("insert into thin.t (id, v) values ({p}, 'v{p}')")).await?;
    }
    world.cql("insert into shop.plain (id, v) values (102, 'short-lived') using ttl 3").await?;
    world.cql("insert into shop.plain (id) values (105)").await?;
    world.settle().await?;
    world.sql("update cdc_plain set _cdc_expires_at = null where id = 102").await?;
    world.sql("create table saved as select * from cdc_planted where p in (6, 7)").await?;
    world.cql("update shop.planted set v = 'newer' where p = 6 and c = 0").await?;
    world.cql("delete from shop.planted where p = 7 and c = 0").await?;
    // A value PostgreSQL cannot hold.
    world.cql("insert into shop.plain (id, v) values (103, 'a\u{0}b')").await?;
    world.settle().await?;
    for strategy in [Strategy::Checksum, Strategy::RowCount] {
        let outcomes = world.compare("shop", strategy, Consistency::LocalQuorum).await?;
        let known = [Class::InDlq, Class::ExpiredNotRemoved, Class::Unproven];
        ensure!(findings(&outcomes).iter().all(|finding| known.contains(&finding.class)), "{outcomes:#?}");
    }

    let load = world.load(5, RATE);
    let mut planted = Planted::default();
    use Class::{ExpiredNotRemoved, Extra, InDlq, MissingInPostgres, Stale, TargetAhead, ValueDiffers};
    world.sql("delete from cdc_planted where p = 1 and c = 1").await?;
    planted.row(1, 1, MissingInPostgres);
    let token = token(&1_000i32.to_be_bytes()).0;
    world
        .sql(&format!(
            "insert into cdc_planted (p, c, v, _cdc_token, _cdc_written_at) values (1000, 0, 'x', {token}, 1)"
        ))
        .await?;
    planted.row(1_000, 0, Extra);
    world.sql("update cdc_planted set v = v || '!' where p = 2 and c = 0").await?;
    planted.row(2, 0, ValueDiffers);
    world.sql("update cdc_planted set n = -n where p = 3 and c = 2").await?;
    planted.row(3, 2, ValueDiffers);
    world.sql("update cdc_planted set v = null where p = 3 and c = 1").await?;
    planted.row(3, 1, ValueDiffers);
    world.sql("update cdc_planted set tags = '[\"a\"]' where p = 4 and c = 0").await?;
    planted.row(4, 0, ValueDiffers);
    world.sql("update cdc_planted set m = '{\"k\": [[4], 1]}' where p = 4 and c = 1").await?;
    planted.row(4, 1, ValueDiffers);
    // Values change places.
    world
        .sql("update cdc_planted set v = case c when 0 then 'v5.1' else 'v5.0' end where p = 5 and c in (0, 1)")
        .await?;
    planted.row(5, 0, ValueDiffers);
    planted.row(5, 1, ValueDiffers);
    world
        .sql(
            "update cdc_planted as t set v = o.v, _cdc_state = o._cdc_state, _cdc_written_at = o._cdc_written_at \
             from saved as o where o.p = 6 and o.c = 0 and t.p = o.p and t.c = o.c",
        )
        .await?;
    planted.row(6, 0, Stale);
    world.sql("delete from _cdc.remains where partition_key = '\\x00000007'").await?;
    world.sql("insert into cdc_planted select * from saved where p = 7 and c = 0").await?;
    planted.row(7, 0, Extra);
    world.sql("update cdc_planted__static set s = 'x' where p = 8").await?;
    planted.fixed(8, ValueDiffers);
    world.sql("delete from cdc_planted__static where p = 9").await?;
    planted.fixed(9, MissingInPostgres);
    world.sql("update cdc_plain set v = 'x', _cdc_written_at = _cdc_written_at + 1000000000000 where id = 1").await?;
    planted.key("shop.plain", 1, TargetAhead);
    planted.key("shop.plain", 102, ExpiredNotRemoved);
    planted.key("shop.plain", 103, InDlq);
    world.sql("delete from cdc_plain where id = 105").await?;
    planted.key("shop.plain", 105, MissingInPostgres);
    world.sql("update cdc_hits set n = n + 1 where id = 6").await?;
    planted.key("shop.hits", 6, ValueDiffers);
    // The time to expire, and what is left alone after it.
    tokio::time::sleep(Duration::from_secs(6)).await;

    let outcomes = world.compare("shop", Strategy::Checksum, Consistency::LocalQuorum).await?;
    let found: BTreeMap<_, Class> = outcomes
        .iter()
        .flat_map(|outcome| outcome.findings.iter().map(move |finding| (outcome.table.as_str(), finding)))
        .map(|(table, finding)| {
            let clustering = finding.key.clustering.as_ref().map(|clustering| clustering.as_bytes().to_vec());
            ((table.to_owned(), finding.key.partition.to_vec(), clustering), finding.class)
        })
        .collect();
    let expected: BTreeMap<_, Class> =
        planted.0.iter().map(|((table, p, c), class)| (((*table).to_owned(), p.clone(), c.clone()), *class)).collect();
    ensure!(found == expected, "found {found:#?}\nplanted {expected:#?}\n{outcomes:#?}");
    // Cheaper strategies find what they say.
    let outcomes = world.compare("shop", Strategy::Version, Consistency::LocalQuorum).await?;
    let of = |class| expected.values().filter(|other| **other == class).count();
    let count = |class| findings(&outcomes).iter().filter(|finding| finding.class == class).count();
    for class in [MissingInPostgres, Extra, Stale] {
        ensure!(count(class) == of(class), "{class:?}: {outcomes:#?}");
    }

    let classes = [MissingInPostgres, Extra, Stale, ValueDiffers, ExpiredNotRemoved, TargetAhead].into_iter().collect();
    let repair = Some(Repair { classes, max_share: 100.0, dry_run: false });
    let options = cdc_reconciler::Options { repair, ..Default::default() };
    let outcomes = world.compare_with("shop", Strategy::Checksum, options).await?;
    let is_right = |finding: &&Finding| finding.repaired == (finding.class != InDlq);
    ensure!(findings(&outcomes).iter().all(is_right), "{outcomes:#?}");
    let outcomes = world.compare("shop", Strategy::Checksum, Consistency::LocalQuorum).await?;
    ensure!(findings(&outcomes).iter().all(|finding| finding.class == InDlq), "{outcomes:#?}");
    ensure!(load.stop().await? > 500);

    // Without all replicas nothing is proven.
    world.sql("update cdc_t set v = 'x' where id = 3").await?;
    let outcomes = world.compare("thin", Strategy::Checksum, Consistency::One).await?;
    let found = findings(&outcomes);
    ensure!(found.len() == 1 && found[0].class == Class::Unproven, "{outcomes:#?}");
    ensure!(found[0].cause.as_deref() == Some("ALL_UNAVAILABLE"), "{found:?}");
    ensure!(outcomes.iter().all(|outcome| outcome.drift() == 0));
    // Behind by its write times is proven without.
    world.sql("delete from cdc_t where id = 4").await?;
    let outcomes = world.compare("thin", Strategy::RowCount, Consistency::One).await?;
    ensure!(findings(&outcomes).iter().any(|finding| finding.class == MissingInPostgres), "{outcomes:#?}");
    world.stop().await;
    Ok(())
}
