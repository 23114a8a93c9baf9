//! What PostgreSQL shows equals the model's merge, whatever the order.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::Result;
use cdc_model::{
    Bound, Cell, Change, ChangeBody, ColumnState, ComplexState, Liveness, LocalTime, RangeTombstone, RowState,
    TableSchema, ValueBytes, WriteTime,
};
use cdc_testkit::Postgres;
use proptest::{prelude::*, test_runner::TestRunner};

use crate::support::{
    Database, change, clustering, delete_partition, delete_row, deletion, expected, expiring, insert, int, live,
    marker, now, orders, state, stored, text,
};

const CASES: u32 = 60;
const PARTITIONS: [&str; 2] = ["a", "b"];

fn cell(value: impl Strategy<Value = ValueBytes>, soon: LocalTime) -> impl Strategy<Value = Cell> {
    (-3i64..6, value, 0..8u8).prop_map(move |(time, value, kind)| match kind {
        0 | 1 => Cell::tombstone(WriteTime(time), LocalTime(1_000_000)),
        2 => expiring(time, LocalTime(2_000_000), value),
        3 => expiring(time, soon, value),
        _ => Cell::live(WriteTime(time), value),
    })
}

fn tags(soon: LocalTime) -> impl Strategy<Value = ComplexState> {
    let element = (0i32..4, cell(Just(ValueBytes::EMPTY), soon));
    (prop::option::of(-3i64..4), prop::collection::vec(element, 0..3)).prop_map(|(deleted, elements)| {
        let mut cells: Vec<(ValueBytes, Cell)> = elements.into_iter().map(|(tag, cell)| (int(tag), cell)).collect();
        cells.sort_by(|a, b| a.0.cmp(&b.0));
        cells.dedup_by(|a, b| a.0 == b.0);
        cells.retain(|(_, cell)| deleted.is_none_or(|deleted| cell.time.0 > deleted));
        ComplexState { deletion: deleted.map(deletion), cells }
    })
}

fn row(table: Arc<TableSchema>, soon: LocalTime) -> impl Strategy<Value = RowState> {
    let liveness = (-3i64..6, 0..4u8).prop_map(move |(time, kind)| match kind {
        0 => Liveness { time: WriteTime(time), ttl: 60, expires: soon },
        _ => marker(time),
    });
    let values = (0i32..3).prop_map(int);
    let words = prop::sample::select(vec!["x", "y"]).prop_map(text);
    let whole = (-3i64..6, 0i32..3).prop_map({
        let table = Arc::clone(&table);
        move |(time, v)| {
            state(&table, Some(marker(time)), vec![("v", live(time, int(v))), ("t", live(time, text("z")))])
        }
    });
    let partial = (
        prop::option::of(liveness),
        prop::option::weighted(0.2, -3i64..6),
        prop::option::of(cell(values, soon)),
        prop::option::of(cell(words, soon)),
        prop::option::weighted(0.3, tags(soon)),
    )
        .prop_map(move |(liveness, deleted, v, t, tags)| {
            let mut columns = Vec::new();
            columns.extend(v.map(|cell| ("v", ColumnState::Simple(cell))));
            columns.extend(t.map(|cell| ("t", ColumnState::Simple(cell))));
            let tags = tags.filter(|tags| tags.deletion.is_some() || !tags.cells.is_empty());
            columns.extend(tags.map(|tags| ("tags", ColumnState::Complex(tags))));
            let mut row = state(&table, liveness, columns);
            row.deletion = deleted.map(deletion);
            RowState::default().merge(row)
        });
    prop_oneof![whole, partial]
}

fn body(table: &Arc<TableSchema>, soon: LocalTime) -> impl Strategy<Value = ChangeBody> + use<> {
    let static_table = Arc::clone(table);
    let bound = || (prop::option::of(0i32..4), any::<bool>());
    prop_oneof![
        8 => (0i32..4, row(Arc::clone(table), soon))
            .prop_map(|(c, row)| ChangeBody::Row { clustering: clustering(c), row }),
        2 => cell(Just(text("s")), soon).prop_map(move |cell| {
            ChangeBody::Static(state(&static_table, None, vec![("st", ColumnState::Simple(cell))]))
        }),
        1 => (-3i64..5).prop_map(|time| ChangeBody::DeletePartition(deletion(time))),
        1 => (bound(), bound(), -3i64..5).prop_map(|(start, end, time)| {
            let bound = |(c, inclusive): (Option<i32>, bool)| match c {
                Some(c) => Bound { prefix: vec![int(c)], inclusive },
                None => Bound::OPEN,
            };
            ChangeBody::DeleteRange(RangeTombstone { start: bound(start), end: bound(end), deletion: deletion(time) })
        }),
    ]
}

/// Changes, and the batches (of indices into them, shuffled and with repetitions) in which they arrive.
fn scenario(
    table: &Arc<TableSchema>,
    soon: LocalTime,
) -> impl Strategy<Value = (Vec<(usize, ChangeBody)>, Vec<Vec<usize>>)> + use<> {
    prop::collection::vec((0..PARTITIONS.len(), body(table, soon)), 1..25).prop_flat_map(|changes| {
        let indices: Vec<usize> = (0..changes.len()).chain(0..changes.len() / 2).collect();
        let batches = (Just(indices).prop_shuffle(), 1usize..6)
            .prop_map(|(order, size)| order.chunks(size).map(<[usize]>::to_vec).collect());
        (Just(changes), batches)
    })
}

#[test]
fn any_order_and_grouping_of_changes_shows_what_the_model_shows() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (database, target) = runtime.block_on(async {
        let database = Database::create().await?;
        let target = database.target().await?;
        anyhow::Ok((database, target))
    })?;
    let table = orders();
    let (now, soon, later) = (now(), LocalTime(now().0 + 1_000_000), LocalTime(now().0 + 2_000_000));
    let case = AtomicUsize::new(0);
    let config =
        ProptestConfig { cases: CASES, max_shrink_iters: 200, failure_persistence: None, ..Default::default() };
    let result = TestRunner::new(config).run(&scenario(&table, soon), |(bodies, batches)| {
        let prefix = format!("{}-", case.fetch_add(1, Ordering::Relaxed));
        let make = |(partition, body): (usize, ChangeBody)| {
            change(&table, &format!("{prefix}{}", PARTITIONS[partition]), body)
        };
        let changes: Vec<Change> = bodies.into_iter().map(make).collect();
        let fail = |error: anyhow::Error| TestCaseError::fail(format!("{error:#}"));
        runtime.block_on(async {
            for batch in batches {
                let batch = batch.into_iter().map(|index| changes[index].clone()).collect();
                target.apply(batch, &[]).await.map_err(|error| fail(error.into()))?;
            }
            prop_assert_eq!(stored(&database, &prefix).await.map_err(fail)?, expected(&changes, now));
            let again = target.apply(changes.clone(), &[]).await.map_err(|error| fail(error.into()))?;
            prop_assert_eq!(again.rows_written, 0, "everything was known, yet something was written");
            while target.sweep_expired(later).await.map_err(|error| fail(error.into()))? > 0 {}
            prop_assert_eq!(stored(&database, &prefix).await.map_err(fail)?, expected(&changes, later));
            Ok(())
        })
    });
    result.map_err(|error| anyhow::anyhow!("{error}"))
}

#[tokio::test]
async fn a_deleted_row_stays_deleted_for_older_writes_and_returns_for_newer_ones() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.apply(vec![delete_row(&table, "a", 1, 10)], &[]).await?;
    target.apply(vec![insert(&table, "a", 1, 1, "old", 10)], &[]).await?;
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 0);
    assert_eq!(database.number("select count(*) from _cdc.remains").await?, 1);
    target.apply(vec![insert(&table, "a", 1, 2, "new", 11)], &[]).await?;
    assert_eq!(database.number("select v from \"cdc_Orders\"").await?, 2);
    assert_eq!(database.number("select count(*) from _cdc.remains").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_partition_deletion_covers_rows_of_before_and_after_it() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let rows = (0..50).map(|c| insert(&table, "a", c, c, "t", 5)).collect();
    target.apply(rows, &[]).await?;
    let applied = target.apply(vec![delete_partition(&table, "a", 7)], &[]).await?;
    assert_eq!(applied.rows_written, 50);
    let applied =
        target.apply(vec![insert(&table, "a", 60, 1, "late", 6), insert(&table, "a", 61, 1, "new", 8)], &[]).await?;
    assert_eq!((applied.rows_written, applied.rows_stale), (1, 1));
    let rows = database.rows("select c, t, st from \"cdc_Orders__all\"").await?;
    assert_eq!(rows, [[Some("61".to_owned()), Some("new".to_owned()), None]]);
    Ok(())
}

#[tokio::test]
async fn a_row_of_one_write_time_has_no_state_beside_its_columns() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.apply(vec![insert(&table, "a", 1, 1, "t", 5)], &[]).await?;
    let uniform = "select count(*) from \"cdc_Orders\" where _cdc_state is null";
    assert_eq!(database.number(uniform).await?, 1);
    let update = state(&table, None, vec![("v", live(6, int(2)))]);
    target.apply(vec![change(&table, "a", ChangeBody::Row { clustering: clustering(1), row: update })], &[]).await?;
    assert_eq!(database.number(uniform).await?, 0);
    target.apply(vec![insert(&table, "a", 1, 3, "u", 7)], &[]).await?;
    assert_eq!(database.number(uniform).await?, 1);
    Ok(())
}

#[tokio::test]
async fn stale_redelivery_writes_no_wal() -> Result<()> {
    // A server of its own, without anyone else's WAL.
    let server = tokio::task::spawn_blocking(|| {
        let builder = Postgres::builder().setting("autovacuum", "off").setting("wal_level", "minimal");
        builder.setting("max_wal_senders", "0").setting("checkpoint_timeout", "1h").start()
    });
    let server = server.await??;
    let database = Database::create_on(&server).await?;
    let target = database.target().await?;
    let table = orders();
    let mut changes: Vec<Change> = (0..300).map(|c| insert(&table, &format!("p{}", c % 20), c, c, "t", 5)).collect();
    changes.push(delete_row(&table, "p1", 1, 9));
    changes.push(delete_partition(&table, "p2", 9));
    target.apply(changes.clone(), &[]).await?;
    // Once more, so that PostgreSQL's own hints (which may be logged) are all set.
    target.apply(changes.clone(), &[]).await?;
    let lsn = "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn";
    let before = database.number(lsn).await?;
    let applied = target.apply(changes, &[]).await?;
    assert_eq!(applied.rows_written, 0);
    assert_eq!(database.number(lsn).await? - before, 0);
    Ok(())
}

#[tokio::test]
async fn a_large_batch_is_spread_and_shows_the_same() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let mut changes: Vec<Change> =
        (0..6000).map(|n| insert(&table, &format!("p{}", n % 700), n % 9, n, "t", i64::from(n))).collect();
    changes.extend((0..50).map(|n| delete_partition(&table, &format!("p{n}"), 5500)));
    let applied = target.apply(changes.clone(), &[]).await?;
    assert_eq!(applied.quarantined, 0);
    assert_eq!(stored(&database, "p").await?, expected(&changes, now()));
    Ok(())
}

#[tokio::test]
async fn old_deletions_are_forgotten_and_nothing_else() -> Result<()> {
    const GRACE: i64 = 864_000;
    const HORIZON: u32 = 100;
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let deleted_at = |change: Change, local: i64| {
        let mut change = change;
        match &mut change.body {
            ChangeBody::Row { row, .. } => row.deletion.as_mut().expect("a deletion").local = LocalTime(local),
            ChangeBody::DeletePartition(deletion) => deletion.local = LocalTime(local),
            ChangeBody::DeleteRange(range) => range.deletion.local = LocalTime(local),
            ChangeBody::Static(_) => {}
        }
        change
    };
    let range = |local| {
        let start = Bound { prefix: vec![int(local)], inclusive: true };
        let range = RangeTombstone { start: start.clone(), end: start, deletion: deletion(50) };
        deleted_at(change(&table, "r", ChangeBody::DeleteRange(range)), local.into())
    };
    let mut changes = vec![insert(&table, "live", 1, 1, "t", 5), range(10), range(11)];
    // More than a page of old ones.
    changes.extend((0..1500).map(|c| deleted_at(delete_row(&table, "old", c, 50), 10)));
    changes.push(deleted_at(delete_row(&table, "new", 1, 50), 11));
    changes.push(deleted_at(delete_partition(&table, "gone", 50), 10));
    target.apply(changes, &[]).await?;
    let kept = async || -> Result<(i64, i64)> {
        let count = async |table: &str| database.number(&format!("select count(*) from _cdc.{table}")).await;
        Ok((count("remains").await?, count("tombstones").await?))
    };
    assert_eq!(kept().await?, (1501, 2));
    let at = |second: i64| LocalTime(second + GRACE + i64::from(HORIZON));
    assert_eq!(target.purge(at(10), HORIZON).await?, 0, "not before their time");
    assert_eq!(target.purge(at(11), HORIZON).await?, 1502, "old rows, the partition, and a part of the ranges");
    assert_eq!(kept().await?, (1, 1));
    // What is kept still counts, what is forgotten does not.
    let older = |p: &str, c| insert(&table, p, c, 1, "t", 40);
    target.apply(vec![older("new", 1), older("r", 11), older("r", 10), older("old", 0), older("gone", 1)], &[]).await?;
    assert_eq!(stored(&database, "").await?.into_keys().collect::<Vec<_>>(), ["gone/1", "live/1", "old/0", "r/10"]);
    // Another writer has changed the table: what is kept may say more than is known here.
    database.client().await?.batch_execute("update _cdc.tables set generation = generation + 1").await?;
    assert_eq!(target.purge(at(12), HORIZON).await?, 0);
    target.apply(vec![older("live", 1)], &[]).await?;
    assert_eq!(target.purge(at(12), HORIZON).await?, 2);
    assert_eq!(kept().await?, (0, 0));
    Ok(())
}
