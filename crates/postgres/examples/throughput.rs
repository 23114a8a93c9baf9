//! How fast the apply path is: latency of single changes, rate of fresh rows, random updates and stale repetition.
//!
//! `cargo run --release -p cdc-postgres --example throughput [rows]`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use cdc_model::{
    Cell, Change, ChangeBody, Clustering, Column, ColumnId, ColumnKind, ColumnState, CqlType, KeyColumn, Liveness,
    LocalTime, NodeId, Provenance, RowState, SegmentPosition, TableId, TableSchema, WriteTime,
};
use cdc_postgres::{Advance, PostgresConfig, StreamName, Target};
use cdc_runtime::Secret;
use cdc_testkit::Postgres;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use uuid::Uuid;

const BATCH: usize = 20_000;
const COLUMNS: u16 = 8;

fn schema() -> Result<Arc<TableSchema>> {
    let column = |n| {
        let ty = if n % 2 == 0 { CqlType::Text } else { CqlType::BigInt };
        Column { name: format!("c{n}"), ty, kind: ColumnKind::Regular, dropped: None }
    };
    let key = |name: &str, ty| KeyColumn { name: name.to_owned(), ty, reversed: false };
    let schema = TableSchema {
        id: TableId(Uuid::from_u128(1)),
        keyspace: "bench".to_owned(),
        name: "rows".to_owned(),
        partition_key: vec![key("p", CqlType::BigInt)],
        clustering: Vec::new(),
        columns: (0..COLUMNS).map(column).collect(),
        cdc: true,
        gc_grace_seconds: 864_000,
    };
    Ok(Arc::new(schema.new()?))
}

fn write(table: &Arc<TableSchema>, key: i64, time: i64, columns: u16, marked: bool) -> Change {
    let value = |n| {
        let bytes = if n % 2 == 0 {
            Bytes::from(format!("text {key:010}"))
        } else {
            Bytes::copy_from_slice(&time.to_be_bytes())
        };
        (ColumnId(n), ColumnState::Simple(Cell::live(WriteTime(time), bytes)))
    };
    let liveness = marked.then_some(Liveness { time: WriteTime(time), ttl: 0, expires: LocalTime::NONE });
    let row = RowState { liveness, deletion: None, columns: (0..columns).map(value).collect() };
    Change {
        table: Arc::clone(table),
        partition_key: key.to_be_bytes().into(),
        body: ChangeBody::Row { clustering: Clustering::default(), row },
        provenance: Provenance { node: NodeId(Uuid::nil()), position: SegmentPosition::START },
    }
}

async fn run(target: &Target, name: &str, changes: &[Change]) -> Result<()> {
    let start = Instant::now();
    for batch in changes.chunks(BATCH) {
        target.apply(batch.to_vec(), &[]).await?;
    }
    report(name, changes.len(), start.elapsed());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a report for the terminal")]
fn report(name: &str, rows: usize, elapsed: Duration) {
    println!("{name:>16}: {:>8.0} rows/s", rows as f64 / elapsed.as_secs_f64());
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a report for the terminal")]
async fn main() -> Result<()> {
    let rows: i64 = std::env::args().nth(1).map_or(Ok(200_000), |rows| rows.parse())?;
    let server = tokio::task::spawn_blocking(Postgres::start).await??;
    let url = server.url();
    let address = server.address();
    let mut config = PostgresConfig::new(address.ip().to_string(), address.port(), "warehouse", "postgres");
    config.password = Some(Secret::new(url.split(['@', ':']).nth(2).context("password")?));
    let target = Target::connect(&config).await?;
    let table = schema()?;
    let mut keys: Vec<i64> = (0..rows).collect();
    keys.shuffle(&mut StdRng::seed_from_u64(1));
    let all =
        |time, columns, marked| keys.iter().map(|key| write(&table, *key, time, columns, marked)).collect::<Vec<_>>();
    run(&target, "fresh rows", &all(1, COLUMNS, true)).await?;
    let updates = all(2, COLUMNS, true);
    run(&target, "whole updates", &updates).await?;
    run(&target, "stale", &updates).await?;
    run(&target, "partial updates", &all(3, 2, false)).await?;

    let claim = target.claim(&StreamName("bench".to_owned())).await?;
    let mut taken = Vec::new();
    for turn in 0..1000 {
        let start = Instant::now();
        let advance = Advance { claim: claim.clone(), position: turn.to_string() };
        target.apply(vec![write(&table, turn, 4, COLUMNS, true)], &[advance]).await?;
        taken.push(start.elapsed());
    }
    taken.sort_unstable();
    println!("   single change: p50 {:?}, p99 {:?}", taken[500], taken[990]);
    Ok(())
}
