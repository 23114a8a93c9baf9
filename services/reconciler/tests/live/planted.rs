//! Every class of difference planted by chance, under load: found, named, repaired, and then nothing is left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cdc_model::{TokenRange, token};
use cdc_reconciler::{Class, Options, Outcome, Repair, Scope};
use rand::{RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::{RATE, seeds, world::World};

const ROUNDS: u64 = 10;
const PARTITIONS: i32 = 40;
/// What expires is there when the test begins, and gone, but for what is planted, when it looks.
const TTL: Duration = Duration::from_secs(8);

/// Partition key, and clustering key if it is no static row.
type Place = (i32, Option<i32>);

struct Round {
    table: String,
    random: ChaCha8Rng,
    planted: BTreeMap<Place, Class>,
    /// Nothing is planted twice.
    free: Vec<i32>,
}

impl Round {
    fn new(number: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut free: Vec<i32> = (0..PARTITIONS).collect();
        free.shuffle(&mut random);
        Self { table: format!("drift{number}"), random, planted: BTreeMap::new(), free }
    }

    /// One to three rows of partitions that are left, as the condition that finds each.
    fn some(&mut self, class: Class) -> Vec<(i32, i32)> {
        let count = self.random.random_range(1..=3);
        let partitions = self.free.split_off(self.free.len() - count);
        let rows: Vec<(i32, i32)> = partitions.into_iter().map(|p| (p, self.random.random_range(0..2))).collect();
        self.planted.extend(rows.iter().map(|(p, c)| ((*p, Some(*c)), class)));
        rows
    }

    async fn fill(&mut self, world: &World) -> Result<()> {
        let table = &self.table;
        for p in 0..PARTITIONS {
            world.cql(&format!("insert into shop.{table} (p, s) values ({p}, 's{p}')")).await?;
            for c in 0..2 {
                let values = format!("({p}, {c}, 'v{p}.{c}', {})", p + 1);
                world.cql(&format!("insert into shop.{table} (p, c, v, n) values {values}")).await?;
            }
        }
        for (p, c) in self.some(Class::ExpiredNotRemoved) {
            let (table, ttl) = (&self.table, TTL.as_secs());
            world.cql(&format!("delete from shop.{table} where p = {p} and c = {c}")).await?;
            world.cql(&format!("insert into shop.{table} (p, c, v) values ({p}, {c}, 'x') using ttl {ttl}")).await?;
        }
        Ok(())
    }

    /// Hides what expires from whoever removes it.
    async fn keep(&self, world: &World) -> Result<()> {
        for (p, c) in self.planted.keys() {
            let row = format!("p = {p} and c = {}", c.unwrap_or_default());
            world.sql(&format!("update cdc_{} set _cdc_expires_at = null where {row}", self.table)).await?;
        }
        Ok(())
    }

    async fn plant(&mut self, world: &World) -> Result<()> {
        let table = self.table.clone();
        let stale = self.some(Class::Stale);
        world.sql(&format!("create table {table}_saved as select * from cdc_{table}")).await?;
        for (p, c) in &stale {
            world.cql(&format!("update shop.{table} set v = 'newer' where p = {p} and c = {c}")).await?;
        }
        let letters = self.some(Class::InDlq);
        for (p, c) in &letters {
            // PostgreSQL cannot hold it.
            world.cql(&format!("update shop.{table} set v = 'a\u{0}b' where p = {p} and c = {c}")).await?;
        }
        world.settle().await?;
        for (p, c) in stale {
            let set = "v = o.v, _cdc_state = o._cdc_state, _cdc_written_at = o._cdc_written_at";
            let from = format!("{table}_saved as o where o.p = {p} and o.c = {c} and t.p = o.p and t.c = o.c");
            world.sql(&format!("update cdc_{table} as t set {set} from {from}")).await?;
        }
        for (p, c) in self.some(Class::MissingInPostgres) {
            world.sql(&format!("delete from cdc_{table} where p = {p} and c = {c}")).await?;
        }
        for (p, c) in self.some(Class::ValueDiffers) {
            // A value without a trace is one that never came.
            let ways =
                [("v = v || '!'", Class::ValueDiffers), ("n = -n", Class::ValueDiffers), ("v = null", Class::Stale)];
            let (set, class) = ways[self.random.random_range(0..ways.len())];
            world.sql(&format!("update cdc_{table} set {set} where p = {p} and c = {c}")).await?;
            self.planted.insert((p, Some(c)), class);
        }
        for (p, c) in self.some(Class::TargetAhead) {
            let set = "v = 'x', _cdc_written_at = _cdc_written_at + 1000000000000";
            world.sql(&format!("update cdc_{table} set {set} where p = {p} and c = {c}")).await?;
        }
        for _ in 0..self.random.random_range(1..=3) {
            let p: i32 = self.random.random_range(1_000..i32::MAX);
            let row = format!("({p}, 7, 'x', {}, 1)", token(&p.to_be_bytes()).0);
            world.sql(&format!("insert into cdc_{table} (p, c, v, _cdc_token, _cdc_written_at) values {row}")).await?;
            self.planted.insert((p, Some(7)), Class::Extra);
        }
        let p = self.random.random_range(0..PARTITIONS);
        world.sql(&format!("update cdc_{table}__static set s = 'x' where p = {p}")).await?;
        self.planted.insert((p, None), Class::ValueDiffers);
        // Afterwards nothing of it is left to say.
        self.free = letters.into_iter().map(|(p, _)| p).collect();
        Ok(())
    }
}

fn found(outcome: &Outcome) -> BTreeMap<Place, Class> {
    let int = |bytes: &[u8]| i32::from_be_bytes(bytes.try_into().expect("an int"));
    let place = |finding: &cdc_reconciler::Finding| {
        let clustering = finding.key.clustering.as_ref();
        let first = clustering.and_then(|values| values.values().next().flatten().map(int));
        (int(&finding.key.partition), first)
    };
    outcome.findings.iter().map(|finding| (place(finding), finding.class)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_planted_under_load_is_found_named_and_repaired_by_any_seed() -> Result<()> {
    let seeds = match std::env::var_os("CDC_SEED") {
        Some(_) => seeds()?,
        None => (0..ROUNDS).map(|_| rand::random()).collect(),
    };
    let world = World::start(&[], async |session| {
        for number in 0..seeds.len() {
            let columns = "(p int, c int, v text, n int, s text static, primary key (p, c))";
            session.query_unpaged(format!("create table shop.drift{number} {columns} with cdc = true"), ()).await?;
        }
        Ok(())
    })
    .await?;
    let mut rounds: Vec<Round> = seeds.iter().enumerate().map(|(number, seed)| Round::new(number, *seed)).collect();
    for round in &mut rounds {
        let began = Instant::now();
        round.fill(&world).await?;
        world.settle().await?;
        round.keep(&world).await?;
        ensure!(began.elapsed() < TTL, "the machine is too slow for what expires");
    }
    let expired = Instant::now() + TTL + Duration::from_secs(6);
    let load = world.load(seeds[0], RATE);
    load.writes_on().await;
    tokio::time::sleep_until(expired.into()).await;
    for (round, seed) in rounds.iter_mut().zip(&seeds) {
        println!("CDC_SEED={seed}");
        round.plant(&world).await?;
        let scope =
            || Ok::<_, anyhow::Error>(Scope::new(world.table(&format!("shop.{}", round.table))?, TokenRange::RING));
        let outcome = world.compare_only(scope()?, Options::default()).await?;
        let own = found(&outcome);
        ensure!(own == round.planted, "seed {seed}: found {own:?}\nplanted {:?}\n{outcome:#?}", round.planted);

        let classes = round.planted.values().copied().filter(|class| class.is_repairable()).collect();
        let repair = Some(Repair { classes, max_share: 100.0, dry_run: false });
        let outcome = world.compare_only(scope()?, Options { repair, ..Options::default() }).await?;
        let is_right = |finding: &cdc_reconciler::Finding| finding.repaired == (finding.class != Class::InDlq);
        ensure!(outcome.findings.iter().all(is_right), "seed {seed}: {outcome:#?}");
        for p in &round.free {
            world.cql(&format!("delete from shop.{} where p = {p}", round.table)).await?;
        }
        let outcome = world.compare_only(scope()?, Options::default()).await?;
        ensure!(outcome.findings.is_empty(), "seed {seed}: {outcome:#?}");
    }
    ensure!(load.stop().await? > 500);
    world.stop().await;
    Ok(())
}
