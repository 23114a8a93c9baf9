//! Benchmarks on real servers. Each runs what it is compared with in the same call and reports the ratio, because
//! absolute figures say more about the machine.

mod capture;
mod decode;
mod reconcile;
mod report;
mod sink;
mod usage;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "scripts/bench", about = "Benchmarks on real servers, each beside what it is compared with")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Drains a backlog of rows from the commit log into Kafka; compared with a bare producer of the same records
    Capture(capture::Options),
    /// Decodes segments of several shapes; compared with Cassandra's own reader of the same segments
    Decode(decode::Options),
    /// Compares a table on both sides; compared with a bare scan, and with a plain full read of both
    Reconcile(reconcile::Options),
    /// Applies changes of every kind to PostgreSQL; compared with one raw COPY of the same rows
    Sink(sink::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().bench {
        Bench::Capture(options) => capture::run(&options),
        Bench::Decode(options) => decode::run(&options),
        Bench::Reconcile(options) => reconcile::run(&options),
        Bench::Sink(options) => sink::run(&options),
    }
}
