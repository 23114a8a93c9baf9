//! Real servers are started, broken and abandoned.

use std::time::Instant;

use cdc_testkit::{Cassandra, Kafka, Postgres};

#[test]
fn probe() {
    let t = Instant::now();
    let pg = Postgres::start().unwrap();
    println!("pg {:?}", t.elapsed());
    let out = std::process::Command::new("psql").arg(pg.url()).args(["-c", "select version()"]).output().unwrap();
    println!("{}", String::from_utf8_lossy(&out.stdout));
    let t = Instant::now();
    let kafka = Kafka::start().unwrap();
    println!("kafka {:?} {}", t.elapsed(), kafka.bootstrap());
    let t = Instant::now();
    let c = Cassandra::start().unwrap();
    println!("cassandra {:?} {}", t.elapsed(), c.node(0).address());
}
