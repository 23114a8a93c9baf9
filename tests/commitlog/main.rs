//! `cdc log dump` reads what Cassandra's own reader reads: both print the commit log of real nodes that were made to
//! write every kind of change, and the lines must be equal byte for byte.
//!
//! A run covers the three releases, plain segments of each, each compressor, encryption and direct I/O; which release
//! gets which compressor follows from the seed. `CDC_EQUALITY=all` runs every combination. Seeds are a fixed few;
//! `CDC_SEED` names others instead, as in `CDC_SEED=7,8,9`. Module `merge` compares what is merged from the log.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(clippy::print_stdout, reason = "seeds")]

mod compare;
mod merge;
mod node;

use node::{Combination, Disk};

const VERSIONS: [&str; 3] = ["4.0.17", "4.1.9", "5.0.5"];
const COMPRESSORS: [&str; 4] = ["LZ4Compressor", "SnappyCompressor", "DeflateCompressor", "ZstdCompressor"];
/// Run every time: more of them on each node cost little beside its start.
const FIXED_SEEDS: [u64; 2] = [1, 2];

fn seeds(fixed: &[u64]) -> Vec<u64> {
    match std::env::var("CDC_SEED") {
        Ok(seeds) => seeds.split(',').map(|seed| seed.trim().parse().unwrap()).collect(),
        Err(_) => fixed.to_vec(),
    }
}

/// All that are due of one release.
fn combinations(release: usize, seed: u64) -> Vec<Combination> {
    let version = VERSIONS[release];
    let all = std::env::var("CDC_EQUALITY").is_ok_and(|value| value == "all");
    let turn = usize::try_from(seed % 12).unwrap();
    let is_due = |compressor: usize| {
        let turned = (compressor + turn) % COMPRESSORS.len();
        turned == release || turned == VERSIONS.len() && turn % VERSIONS.len() == release
    };
    let compressed = (0..COMPRESSORS.len()).filter(|compressor| all || is_due(*compressor));
    let mut disks = vec![Disk::Plain];
    disks.extend(compressed.map(|compressor| Disk::Compressed(COMPRESSORS[compressor])));
    disks.extend((version == "5.0.5").then_some(Disk::Direct));
    disks.extend((all || version == "4.1.9").then_some(Disk::Encrypted));
    disks.into_iter().map(|disk| Combination { version, disk }).collect()
}

fn assert_equal(release: usize) {
    let seeds = seeds(&FIXED_SEEDS);
    for combination in combinations(release, *seeds.last().unwrap()) {
        println!("{combination:?}, seeds {seeds:?}");
        compare::assert_equal(&combination, &seeds);
    }
}

#[test]
fn segments_of_4_0_are_read_as_cassandra_reads_them() {
    assert_equal(0);
}

#[test]
fn segments_of_4_1_are_read_as_cassandra_reads_them() {
    assert_equal(1);
}

#[test]
fn segments_of_5_0_are_read_as_cassandra_reads_them() {
    assert_equal(2);
}

#[test]
fn every_compressor_is_due_at_every_seed() {
    for seed in 0..24 {
        let due = (0..VERSIONS.len()).flat_map(|release| combinations(release, seed));
        let due: Vec<_> = due.map(|combination| combination.disk).collect();
        for compressor in COMPRESSORS {
            assert!(due.contains(&Disk::Compressed(compressor)), "{compressor} at seed {seed}");
        }
        assert!(due.contains(&Disk::Direct));
    }
}
