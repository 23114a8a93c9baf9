//! What is planted in one table.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use super::{IN_DLQ, World, trouble::micros};

const PARTITIONS: i32 = 48;
/// What expires is there when it is hidden from the sweeper, and gone when it is looked for.
const TTL: Duration = Duration::from_secs(20);
/// Around an expiry nothing is said of a row, and whole seconds are all that CQL tells.
const TTL_AND_SLACK: Duration = Duration::from_secs(TTL.as_secs() + 7);
/// Of the clock of whoever writes a partition.
pub(crate) const SKEW_MICROS: i64 = 5_000_000;

/// Partition key, and clustering key if it is no static row.
pub(crate) type Place = (i32, Option<i32>);

pub(crate) fn name(number: usize) -> String {
    format!("drift{number}")
}

pub(crate) fn table(number: usize) -> String {
    let columns = "p int, c int, v text, n int, tags set<text>, m map<text, int>, s text static";
    format!("create table shop.{} ({columns}, primary key (p, c)) with cdc = true", name(number))
}

pub(crate) struct Round {
    pub(crate) seed: u64,
    pub(crate) table: String,
    pub(crate) random: ChaCha8Rng,
    pub(crate) planted: BTreeMap<Place, &'static str>,
    /// Write time of each partition.
    written: BTreeMap<i32, i64>,
    /// Partitions with collections, and without, in which nothing is planted yet.
    rich: Vec<i32>,
    plain: Vec<i32>,
    letters: Vec<i32>,
    expired: Option<Instant>,
}

impl Round {
    pub(crate) fn new(number: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut partitions: Vec<i32> = (0..PARTITIONS).collect();
        partitions.shuffle(&mut random);
        let (rich, plain) = partitions.into_iter().partition(|p| p % 3 > 0);
        Self {
            seed,
            table: name(number),
            random,
            planted: BTreeMap::new(),
            written: BTreeMap::new(),
            rich,
            plain,
            letters: Vec::new(),
            expired: None,
        }
    }

    /// Everything there is, in rows that every replica has and that were delivered by all of them.
    pub(crate) fn plant(&mut self, world: &World, config: &Path) {
        self.fill(world);
        let expiring = self.one_or_two_of_rich();
        for p in &expiring {
            let (table, ttl, time) = (&self.table, TTL.as_secs(), self.written[p]);
            let values = format!("values ({p}, 2, 'x') using ttl {ttl} and timestamp {time}");
            world.cql(&format!("insert into shop.{table} (p, c, v) {values}"));
        }
        let expire = Instant::now();
        world.barrier(config).unwrap();
        for p in expiring {
            self.put(world, (p, 2), "EXPIRED_NOT_REMOVED", "_cdc_expires_at = null");
        }
        assert!(expire.elapsed() < TTL, "the machine is too slow for what expires");

        world.sql(&format!("create table saved_{0} as select * from cdc_{0}", self.table));
        let (stale, deleted) = (self.one_or_two_of_rich(), self.one_or_two_of_rich());
        for p in &stale {
            self.cql_later(world, *p, |time| format!("update shop.{{t}} using timestamp {time} set v = 'newer'"), 0);
        }
        for p in &deleted {
            self.cql_later(world, *p, |time| format!("delete from shop.{{t}} using timestamp {time}"), 1);
        }
        self.letters = self.one_or_two_of_rich();
        for p in self.letters.clone() {
            // PostgreSQL cannot hold it.
            self.cql_later(world, p, |time| format!("update shop.{{t}} using timestamp {time} set v = 'a\0b'"), 1);
            self.planted.insert((p, Some(1)), IN_DLQ);
        }
        world.barrier(config).unwrap();
        self.put_back(world, &stale, &deleted);
        self.alter(world);
        self.invent(world);
        self.expired = Some(expire + TTL_AND_SLACK);
    }

    /// Waits until what was planted to expire has, beyond doubt.
    pub(crate) fn let_expire(&self) {
        let rest = self.expired.map(|expired| expired.saturating_duration_since(Instant::now()));
        std::thread::sleep(rest.unwrap_or_default());
    }

    fn fill(&mut self, world: &World) {
        for p in 0..PARTITIONS {
            let time = micros() + self.random.random_range(-SKEW_MICROS..SKEW_MICROS);
            self.written.insert(p, time);
            for c in 0..2 {
                let mut columns = "p, c, s, v, n".to_owned();
                let mut values = format!("{p}, {c}, 's{p}', 'v{p}.{c}', {}", p + 1);
                if p % 3 > 0 {
                    columns.push_str(", tags, m");
                    values.push_str(&format!(", {{'a', 'b{c}'}}, {{'k': {c}, 'l': {p}}}"));
                }
                let table = &self.table;
                world.cql(&format!("insert into shop.{table} ({columns}) values ({values}) using timestamp {time}"));
            }
        }
    }

    fn one_or_two_of_rich(&mut self) -> Vec<i32> {
        self.rich.split_off(self.rich.len() - self.random.random_range(1..=2))
    }

    fn one_or_two_of_plain(&mut self) -> Vec<i32> {
        self.plain.split_off(self.plain.len() - self.random.random_range(1..=2))
    }

    /// Newer than the row, by whatever clock.
    fn cql_later(&mut self, world: &World, p: i32, statement: impl Fn(i64) -> String, c: i32) {
        let time = self.written[&p] + self.random.random_range(1..2 * SKEW_MICROS);
        let statement = statement(time).replace("{t}", &self.table);
        world.cql(&format!("{statement} where p = {p} and c = {c}"));
    }

    /// Alters one row of PostgreSQL.
    fn put(&mut self, world: &World, (p, c): (i32, i32), class: &'static str, set: &str) {
        world.sql_of_one_row(&format!("update cdc_{} set {set} where p = {p} and c = {c}", self.table));
        self.planted.insert((p, Some(c)), class);
    }

    /// Older versions, and rows whose deletion is forgotten.
    fn put_back(&mut self, world: &World, stale: &[i32], deleted: &[i32]) {
        let table = &self.table;
        for p in stale {
            let set = "v = o.v, _cdc_state = o._cdc_state, _cdc_written_at = o._cdc_written_at";
            let from = format!("saved_{table} as o where o.p = {p} and o.c = 0 and t.p = o.p and t.c = o.c");
            world.sql_of_one_row(&format!("update cdc_{table} as t set {set} from {from}"));
            self.planted.insert((*p, Some(0)), "STALE");
        }
        let id = format!("(select table_id from _cdc.tables where keyspace = 'shop' and name = '{table}')");
        for p in deleted {
            let key = format!("table_id = {id} and partition_key = int4send({p})");
            world.sql_of_one_row(&format!("delete from _cdc.remains where {key}"));
            let row = format!("select * from saved_{table} where p = {p} and c = 1");
            world.sql_of_one_row(&format!("insert into cdc_{table} {row}"));
            self.planted.insert((*p, Some(1)), "EXTRA");
        }
    }

    fn alter(&mut self, world: &World) {
        let ways = [
            "v = v || '!', n = n + 1",
            "n = -n",
            "tags = '[\"a\"]'",
            "tags = tags || '[\"c\"]'",
            "m = m || '{\"k\": 77}'",
            "m = m - 'l'",
            // What is known of it says that there was a value.
            "v = null",
        ];
        for set in ways {
            let (p, c) = (self.rich.pop().unwrap(), self.random.random_range(0..2));
            self.put(world, (p, c), "VALUE_DIFFERS", set);
        }
        // Two rows that trade a value: no sum of their parts changes.
        let table = self.table.clone();
        let (one, other) = (self.rich.pop().unwrap(), self.rich.pop().unwrap());
        for (own, from) in [(one, other), (other, one)] {
            self.put(world, (own, 0), "VALUE_DIFFERS", &format!("v = 'v{from}.0'"));
        }
        for p in self.one_or_two_of_plain() {
            // A value without a trace is one that never came.
            self.put(world, (p, 0), "STALE", "v = null");
        }
        for p in self.one_or_two_of_plain() {
            self.put(world, (p, 1), "TARGET_AHEAD", "v = 'x', _cdc_written_at = _cdc_written_at + 1000000000000");
        }
        for p in self.one_or_two_of_plain() {
            world.sql_of_one_row(&format!("delete from cdc_{table} where p = {p} and c = 0"));
            self.planted.insert((p, Some(0)), "MISSING_IN_POSTGRES");
        }
        for p in self.one_or_two_of_rich() {
            world.sql_of_one_row(&format!("update cdc_{table}__static set s = 'x' where p = {p}"));
            self.planted.insert((p, None), "VALUE_DIFFERS");
        }
        for p in self.one_or_two_of_plain() {
            world.sql_of_one_row(&format!("delete from cdc_{table}__static where p = {p}"));
            self.planted.insert((p, None), "MISSING_IN_POSTGRES");
        }
    }

    /// Rows that nobody ever wrote.
    fn invent(&mut self, world: &World) {
        for p in self.one_or_two_of_plain() {
            let columns = "p, c, v, _cdc_token, _cdc_written_at";
            let row = format!("select p, 7, 'x', _cdc_token, 1 from cdc_{} where p = {p} and c = 0", self.table);
            world.sql_of_one_row(&format!("insert into cdc_{} ({columns}) {row}", self.table));
            self.planted.insert((p, Some(7)), "EXTRA");
        }
    }

    /// Afterwards nothing of them is left to say.
    pub(crate) fn settle_letters(&self, world: &World) {
        for p in &self.letters {
            let time = self.written[p] + 3 * SKEW_MICROS;
            world.cql(&format!("delete from shop.{} using timestamp {time} where p = {p}", self.table));
        }
    }
}
