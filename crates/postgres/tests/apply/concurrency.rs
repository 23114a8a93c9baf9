//! Several writers of the same rows.

use std::sync::Arc;

use anyhow::Result;
use cdc_model::{Bound, Change, ChangeBody, RangeTombstone};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::support::{
    Database, change, delete_partition, delete_row, deletion, expected, insert, int, now, orders, stored,
};

fn some_change(rng: &mut impl Rng, table: &Arc<cdc_model::TableSchema>, rows: i32) -> Change {
    let p = format!("p{}", rng.random_range(0..3));
    let (c, time) = (rng.random_range(0..rows), rng.random_range(0..1000));
    match rng.random_range(0..20) {
        0 => delete_partition(table, &p, time),
        1..4 => delete_row(table, &p, c, time),
        4 => {
            let bound = |c| Bound { prefix: vec![int(c)], inclusive: true };
            let range = RangeTombstone { start: bound(c), end: bound(c + 2), deletion: deletion(time) };
            change(table, &p, ChangeBody::DeleteRange(range))
        }
        _ => insert(table, &p, c, c, "t", time),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_write_the_same_rows_at_once_agree_with_the_model() -> Result<()> {
    agree(400, 5, 1..8).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_copy_the_same_rows_at_once_agree_with_the_model() -> Result<()> {
    agree(6000, 2000, 200..900).await
}

async fn agree(number: usize, rows: i32, sizes: std::ops::Range<usize>) -> Result<()> {
    const PROCESSES: u64 = 3;
    let database = Database::create().await?;
    let table = orders();
    let changes: Vec<Change> = {
        let mut rng = StdRng::seed_from_u64(1);
        (0..number).map(|_| some_change(&mut rng, &table, rows)).collect()
    };
    let mut processes = tokio::task::JoinSet::new();
    for process in 0..PROCESSES {
        let (target, mut changes, sizes) = (database.target().await?, changes.clone(), sizes.clone());
        processes.spawn(async move {
            let mut rng = StdRng::seed_from_u64(100 + process);
            changes.shuffle(&mut rng);
            let mut rest = changes.as_slice();
            while !rest.is_empty() {
                let (batch, tail) = rest.split_at(rng.random_range(sizes.clone()).min(rest.len()));
                target.apply(batch.to_vec(), &[]).await?;
                rest = tail;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = processes.join_next().await {
        done??;
    }
    assert_eq!(stored(&database, "p").await?, expected(&changes, now()));
    let both = "select count(*) from _cdc.remains r join \"cdc_Orders\" o on \
        r.partition_key = convert_to(o.p, 'UTF8') and r.clustering = int4send(4) || int4send(o.c)";
    assert_eq!(database.number(both).await?, 0, "rows both live and in remains");
    assert_eq!(database.target().await?.apply(changes, &[]).await?.rows_written, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_prepare_the_same_table_at_once_succeed() -> Result<()> {
    let database = Database::create().await?;
    let mut processes = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let config = database.config.clone();
        processes.spawn(async move {
            let target = cdc_postgres::Target::connect(&config).await?;
            target.prepare_table(orders()).await
        });
    }
    while let Some(done) = processes.join_next().await {
        done??;
    }
    Ok(())
}
