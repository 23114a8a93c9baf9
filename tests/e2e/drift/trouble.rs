//! Whatever makes a comparison harder: clients whose clocks differ, and everything that stands still for a moment.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::{Rng, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::{
    World,
    plant::{Round, SKEW_MICROS},
};
use crate::pipeline::connect_postgres;

const CLIENTS: u64 = 3;
/// Between two writes of a client, at least; longer as more tables are written.
const PAUSE: Duration = Duration::from_millis(10);
/// Partitions that nothing is planted in begin here.
const FIRST: i32 = 10_000;

pub(crate) fn micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
    i64::try_from(now.as_micros()).expect("the clock is before the year 292,000")
}

/// They write to the planted table itself, beside what is planted.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<u64>,
}

impl Clients {
    pub(crate) fn start(world: &World, round: &Round, tables: usize) -> Self {
        let pause = PAUSE * u32::try_from(tables).unwrap();
        let mut clients = Self { stop: Arc::default(), tasks: JoinSet::new() };
        for number in 0..CLIENTS {
            let (session, stop) = (Arc::clone(&world.session), Arc::clone(&clients.stop));
            let mut random = round.random.clone();
            random.set_stream(number + 1);
            let (table, skew) = (round.table.clone(), random.random_range(-SKEW_MICROS..SKEW_MICROS));
            let writing = async move {
                let mut acknowledged = 0;
                // Rows that expire are written once.
                let mut single = i32::try_from(number).unwrap() * 1_000_000;
                while !stop.load(Ordering::Relaxed) {
                    single += 1;
                    let statement = statement(&mut random, &table, micros() + skew, single);
                    // A node is taken away meanwhile.
                    acknowledged += u64::from(session.query_unpaged(statement, ()).await.is_ok());
                    tokio::time::sleep(pause).await;
                }
                acknowledged
            };
            clients.tasks.spawn_on(writing, world.servers.runtime.handle());
        }
        clients
    }

    /// How many writes Cassandra acknowledged.
    pub(crate) fn stop(mut self, world: &World) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        world.servers.runtime.block_on(async {
            let mut all = 0;
            while let Some(own) = self.tasks.join_next().await {
                all += own.unwrap();
            }
            all
        })
    }
}

fn statement(random: &mut impl Rng, table: &str, time: i64, single: i32) -> String {
    let (p, c, n) = (FIRST + random.random_range(0..40), random.random_range(0..4), random.random_range(0..1_000_000));
    let using = format!("using timestamp {time}");
    let row = format!("where p = {p} and c = {c}");
    match random.random_range(0..100) {
        0..36 => format!(
            "insert into shop.{table} (p, c, v, n, tags, m) values ({p}, {c}, 'v{n}', {n}, {{'a', 't{n}'}}, {{'k': {n}}}) \
             {using}"
        ),
        36..52 => format!("update shop.{table} {using} set v = 'u{n}', n = {n} {row}"),
        52..60 => format!("update shop.{table} {using} set tags = tags + {{'a', 'u'}}, m['l'] = {n} {row}"),
        60..70 => format!("update shop.{table} {using} set tags = tags - {{'a'}}, m = m - {{'k'}} {row}"),
        70..80 => format!("delete v from shop.{table} {using} {row}"),
        80..90 => format!("delete from shop.{table} {using} {row}"),
        90..97 => format!("insert into shop.{table} (p, s) values ({p}, 's{n}') {using}"),
        97 | 98 => format!("delete from shop.{table} {using} where p = {p}"),
        // Seldom: a comparison waits for what expires while it looks.
        _ => {
            let (c, ttl) = (1_000 + single, 1 + n % 20);
            format!("insert into shop.{table} (p, c, v) values ({p}, {c}, 'v') {using} and ttl {ttl}")
        }
    }
}

/// Makes things stand still, one at a time.
pub(crate) struct Trouble {
    seed: u64,
    tables: Vec<String>,
    is_over: AtomicBool,
}

/// Ends it, also when a test fails.
pub(crate) struct Ends<'t>(&'t Trouble);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl Trouble {
    pub(crate) fn new(seed: u64, tables: &[&str]) -> Self {
        let tables = tables.iter().map(|table| format!("cdc_{table}")).collect();
        Self { seed, tables, is_over: AtomicBool::new(false) }
    }

    pub(crate) fn ends_with_this(&self) -> Ends<'_> {
        Ends(self)
    }

    pub(crate) fn make(&self, world: &World) {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let locker = world.servers.runtime.block_on(connect_postgres(&world.servers.postgres)).unwrap();
        let sql = |statement: &str| world.servers.runtime.block_on(locker.batch_execute(statement)).unwrap();
        while !self.is_over.load(Ordering::Relaxed) {
            let moment = Duration::from_millis(random.random_range(100..2_000));
            match random.random_range(0..4) {
                0 | 1 => {
                    let table = &self.tables[random.random_range(0..self.tables.len())];
                    // Nobody writes to it; reading goes on.
                    sql(&format!("begin; lock table {table} in share mode"));
                    thread::sleep(moment);
                    sql("commit");
                }
                2 => {
                    world.servers.postgres.pause().unwrap();
                    thread::sleep(moment / 2);
                    world.servers.postgres.resume().unwrap();
                }
                _ => {
                    let processes: Vec<_> = world.sink.iter().chain(&world.agents).collect();
                    let process = processes[random.random_range(0..processes.len())];
                    process.signal(Signal::STOP);
                    thread::sleep(moment);
                    process.signal(Signal::CONT);
                }
            }
            thread::sleep(Duration::from_millis(random.random_range(200..1_500)));
        }
    }
}
