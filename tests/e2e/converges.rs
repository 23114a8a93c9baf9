//! Both stores say the same at the end, whatever was killed, restarted or late meanwhile.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::pipeline::Servers;

pub(crate) const RATE: u32 = 400;

/// Prints the seed, so that a failing run can be repeated.
pub(crate) fn moments(test: &str) -> (u64, ChaCha8Rng) {
    let seed = std::env::var("CDC_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("{test}: CDC_SEED={seed}");
    (seed, ChaCha8Rng::seed_from_u64(seed))
}

/// Lets the load run for a random while.
pub(crate) fn run_on(random: &mut ChaCha8Rng) {
    std::thread::sleep(Duration::from_millis(random.random_range(500..4_000)));
}

#[test]
fn direct_mode_survives_kills_restarts_and_starting_first() {
    let (seed, mut random) = moments("direct");
    let servers = Servers::start(false);
    servers.cassandra.node(0).stop().unwrap();
    servers.postgres.stop().unwrap();
    let mut agent = servers.spawn("run", "");
    run_on(&mut random);
    assert!(agent.is_running(), "it waits for its servers:\n{}", agent.log());
    servers.cassandra.node(0).start().unwrap();
    servers.postgres.start().unwrap();

    let load = servers.load(seed, RATE);
    for _ in 0..3 {
        run_on(&mut random);
        agent.kill_and_start();
    }
    run_on(&mut random);
    servers.postgres.kill().unwrap();
    run_on(&mut random);
    servers.postgres.start().unwrap();
    run_on(&mut random);
    servers.cassandra.node(0).restart().unwrap();
    run_on(&mut random);
    agent.kill_and_start();
    run_on(&mut random);
    assert!(load.stop(&servers) > 1_000);
    servers.let_short_ttls_pass();

    agent.wait_until_idle();
    servers.assert_equal();
}

#[test]
fn kafka_mode_survives_kills_and_restarts_of_everything() {
    let (seed, mut random) = moments("kafka");
    let servers = Servers::start(true);
    let kafka = servers.kafka.as_ref().expect("asked for");
    kafka.stop().unwrap();
    // What a killed Cassandra forgets lies behind the last marker; `marker` does not read that far.
    let mut source = servers.spawn("source", "  mode: marker\n");
    let mut sink = servers.spawn("sink", "");
    run_on(&mut random);
    assert!(source.is_running() && sink.is_running(), "they wait for Kafka:\n{}\n{}", source.log(), sink.log());
    kafka.start().unwrap();

    let load = servers.load(seed, RATE);
    for _ in 0..3 {
        run_on(&mut random);
        source.kill_and_start();
        run_on(&mut random);
        sink.kill_and_start();
    }
    run_on(&mut random);
    kafka.kill().unwrap();
    run_on(&mut random);
    kafka.start().unwrap();
    run_on(&mut random);
    servers.cassandra.node(0).kill().unwrap();
    servers.cassandra.node(0).start().unwrap();
    run_on(&mut random);
    servers.postgres.restart().unwrap();
    run_on(&mut random);
    // A second sink takes over half of the partitions and leaves again.
    let second = servers.spawn_as("second-sink", "sink", "");
    run_on(&mut random);
    drop(second);
    run_on(&mut random);
    assert!(load.stop(&servers) > 1_000);
    servers.let_short_ttls_pass();

    source.wait_until_idle();
    sink.wait_until_applied();
    servers.assert_equal();
}
