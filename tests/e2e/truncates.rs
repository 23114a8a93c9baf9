//! `TRUNCATE` under load: what it removed is gone on both sides, and nothing else.

use std::thread;

use cdc_workload::shop;
use rand_chacha::ChaCha8Rng;

use crate::{
    converges::{RATE, moments, run_on},
    pipeline::{Process, Servers},
};

const TRUNCATIONS: usize = 9;
/// Microseconds: a write time that no clock has reached, and one that all have passed.
const FUTURE: i64 = 4_000_000_000_000_000;
const PAST: i64 = 1_000_000;

fn cql(servers: &Servers, statements: &[String]) {
    servers.runtime.block_on(async {
        let session = cdc_workload::connect(&servers.cassandra.contact_points()).await.unwrap();
        for statement in statements {
            session.query_unpaged(statement.as_str(), ()).await.unwrap();
        }
    });
}

/// A row of every table that no load touches.
fn write(servers: &Servers, row: usize, time: i64) {
    let statements = [
        format!(
            "insert into shop.users (id, name) values (00000000-0000-4000-8000-{row:012}, 'n') using timestamp {time}"
        ),
        format!(
            "insert into shop.orders (user_id, order_id, points, status) values (00000000-0000-4000-8000-{row:012}, \
             00000000-0000-1000-8000-{row:012}, 1, 's') using timestamp {time}"
        ),
        format!(
            "insert into shop.events (day, seq, kind, payload) values ('never', {row}, 'k', 'p') using timestamp {time}"
        ),
    ];
    cql(servers, &statements);
}

/// Each table three times, with rows before it that seem newer than all, and after it rows that seem older.
fn truncate_under_load(servers: &Servers, random: &mut ChaCha8Rng, mut meanwhile: impl FnMut(usize)) {
    for turn in 0..TRUNCATIONS {
        write(servers, 2 * turn, FUTURE);
        run_on(random);
        thread::scope(|scope| {
            let table = shop::TABLES[turn % shop::TABLES.len()];
            scope.spawn(move || cql(servers, &[format!("truncate shop.{table}")]));
            meanwhile(turn);
        });
        write(servers, 2 * turn, PAST);
        write(servers, 2 * turn + 1, PAST);
    }
    run_on(random);
}

/// Writes of all nodes are mixed in every row, and each agent tells the others' places, too.
#[test]
fn what_is_truncated_on_three_nodes_under_load_is_equal_in_direct_mode() {
    let (seed, mut random) = moments("truncate, three nodes");
    let servers = Servers::start_nodes(false, 3);
    let mut agents = servers.spawn_agents();
    let load = servers.load(seed, RATE / 4);
    truncate_under_load(&servers, &mut random, |turn| {
        if turn % 3 == 2 {
            agents[turn / 3].kill_and_start();
        }
    });
    assert!(load.stop(&servers) > 500);
    servers.let_short_ttls_pass();
    agents.iter_mut().for_each(Process::wait_until_idle);
    servers.assert_equal();
}

#[test]
fn what_is_truncated_under_load_and_kills_is_equal_in_direct_mode() {
    let (seed, mut random) = moments("truncate, direct");
    let servers = Servers::start(false);
    let mut agent = servers.spawn("run", "");
    let load = servers.load(seed, RATE);
    truncate_under_load(&servers, &mut random, |turn| {
        if turn % 2 == 1 {
            agent.kill_and_start();
        }
    });
    assert!(load.stop(&servers) > 1_000);
    servers.let_short_ttls_pass();
    agent.wait_until_idle();
    servers.assert_equal();
}

#[test]
fn what_is_truncated_under_load_and_kills_is_equal_through_kafka() {
    let (seed, mut random) = moments("truncate, kafka");
    let servers = Servers::start(true);
    let (mut source, mut sink) = (servers.spawn("source", ""), servers.spawn("sink", ""));
    let load = servers.load(seed, RATE);
    truncate_under_load(&servers, &mut random, |turn| match turn % 3 {
        0 => {}
        1 => source.kill_and_start(),
        _ => sink.kill_and_start(),
    });
    assert!(load.stop(&servers) > 1_000);
    servers.let_short_ttls_pass();
    source.wait_until_idle();
    sink.wait_until_applied();
    servers.assert_equal();
}
