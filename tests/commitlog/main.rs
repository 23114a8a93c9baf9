//! Reads the commit log of real nodes with `cdc log dump` and with Cassandra's own reader, and compares every change.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(clippy::print_stdout, reason = "seeds")]

mod node;

use node::{Combination, Node};

#[test]
fn generator() {
    let version = std::env::var("V").unwrap_or("5.0.5".into());
    let seeds: Vec<u64> = match std::env::var("CDC_SEED") {
        Ok(s) => s.split(',').map(|s| s.parse().unwrap()).collect(),
        Err(_) => (0..5).collect(),
    };
    let combination = Combination { version: "x", compressor: None, direct: false };
    let combination = Combination { version: Box::leak(version.into_boxed_str()), ..combination };
    let began = std::time::Instant::now();
    let node = Node::start(&combination);
    println!("started in {:?}", began.elapsed());
    let n = std::env::var("N").map_or(400, |n| n.parse().unwrap());
    for seed in seeds {
        let began = std::time::Instant::now();
        let outcome = node.write(seed, n);
        match outcome {
            Ok(o) => println!("seed {seed}: {o:?} in {:?}", began.elapsed()),
            Err(e) => println!("seed {seed}: {:.3000}", format!("{e:#}")),
        }
    }
    node.cassandra.node(0).stop().unwrap();
    for e in std::fs::read_dir(node.cassandra.node(0).cdc_raw_dir()).unwrap() {
        let e = e.unwrap();
        println!("{:?} {}", e.file_name(), e.metadata().unwrap().len());
    }
    node.cassandra.keep();
    println!("{:?}", node.cassandra.node(0).cdc_raw_dir());
}
