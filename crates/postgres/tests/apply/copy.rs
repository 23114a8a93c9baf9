//! New rows that are many enough to be copied.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Result;
use cdc_model::{Bound, Change, ChangeBody, ColumnState, Liveness, LocalTime, RangeTombstone, TableSchema, WriteTime};
use cdc_postgres::Target;
use cdc_runtime::Secret;

use crate::support::{
    Database, change, delete_partition, delete_row, deletion, expected, expiring, insert, int, live, now, orders,
    state, stored, text,
};

/// Rows that are certainly copied if they are new.
const MANY: i32 = 300;

/// Has the target's table note by what statements its rows are inserted.
async fn note_statements(database: &Database) -> Result<()> {
    let sql = "create table noted (statement text); grant all on noted to public; \
        create function note() returns trigger language plpgsql as $$ begin \
        insert into noted values (split_part(current_query(), E'\\n', 1)); return null; end $$; \
        create trigger note after insert on \"cdc_Orders\" execute function note()";
    Ok(database.client().await?.batch_execute(sql).await?)
}

async fn noted(database: &Database) -> Result<BTreeSet<String>> {
    let rows = database.rows("select statement from noted").await?;
    Ok(rows.into_iter().flatten().flatten().collect())
}

#[tokio::test]
async fn a_batch_that_is_half_new_and_half_known_is_copied_and_merged() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let key = |n: i32| (format!("p{}", n % 7), n);
    let row = |n: i32, value: i32, time: i64| insert(&table, &key(n).0, n, value, "t", time);
    let mut changes: Vec<Change> = (0..MANY).map(|n| row(n, 1, 5)).collect();
    target.apply(changes.clone(), &[]).await?;
    note_statements(&database).await?;
    // Of those known, a third is older, a third the same, a third newer.
    let second: Vec<Change> = (0..2 * MANY).map(|n| row(n, n % 3, 4 + i64::from(n % 3))).collect();
    let applied = target.apply(second.clone(), &[]).await?;
    let newer = usize::try_from(MANY / 3)?;
    assert_eq!((applied.rows_written, applied.rows_stale), (3 * newer + newer, 2 * newer));
    changes.extend(second);
    assert_eq!(stored(&database, "p").await?, expected(&changes, now()));
    assert_eq!(noted(&database).await?, ["-- cdc: copy rows".to_owned()].into());
    assert_eq!(target.apply(changes, &[]).await?.rows_written, 0);
    Ok(())
}

#[tokio::test]
async fn rows_with_remains_tombstones_ttl_or_statics_are_copied_as_the_model_has_them() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let (now, soon) = (now(), LocalTime(now().0 + 1_000_000));
    let mut changes = Vec::new();
    for n in 0..MANY {
        let p = format!("p{}", n % 5);
        // Deleted before, after and with the insert to come.
        changes.extend((n % 6 < 3).then(|| delete_row(&table, &p, n, 4 + i64::from(n % 6))));
    }
    changes.extend([delete_partition(&table, "p3", 4), delete_partition(&table, "p4", 6)]);
    target.apply(changes.clone(), &[]).await?;
    note_statements(&database).await?;
    let mut second = Vec::new();
    for n in 0..MANY {
        let p = format!("p{}", n % 5);
        let mut inserted = insert(&table, &p, n, n, "t", 5);
        if let (ChangeBody::Row { row, .. }, 0) = (&mut inserted.body, n % 4) {
            let marker = Liveness { time: WriteTime(5), ttl: 60, expires: soon };
            let value = ColumnState::Simple(expiring(5, soon, int(n)));
            *row = state(&table, Some(marker), vec![("v", value)]);
        }
        second.push(inserted);
        let statics = state(&table, None, vec![("st", live(5, text("s")))]);
        second.push(change(&table, &format!("p{}", 5 + n), ChangeBody::Static(statics)));
    }
    target.apply(second.clone(), &[]).await?;
    changes.extend(second);
    assert_eq!(noted(&database).await?, ["-- cdc: copy rows".to_owned()].into());
    assert_eq!(stored(&database, "p").await?, expected(&changes, now));
    let both = "select count(*) from _cdc.remains r join \"cdc_Orders\" o on \
        r.partition_key = convert_to(o.p, 'UTF8') and r.clustering = int4send(4) || int4send(o.c)";
    assert_eq!(database.number(both).await?, 0, "rows both live and in remains");
    assert_eq!(target.apply(changes.clone(), &[]).await?.rows_written, 0);
    let later = LocalTime(soon.0 + 1);
    while target.sweep_expired(later).await? > 0 {}
    assert_eq!(stored(&database, "p").await?, expected(&changes, later));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_meets_a_row_inserted_meanwhile_is_merged_with_it() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.prepare_table(table.clone()).await?;
    let mut other = database.client().await?;
    let transaction = other.transaction().await?;
    // As another writer leaves them: one row newer than ours, one older.
    let theirs = "insert into \"cdc_Orders\" (p, c, v, t, _cdc_token, _cdc_written_at) values \
        ('p', 100, -1, 'newer', 0, 9), ('p', 200, -1, 'older', 0, 1)";
    transaction.batch_execute(theirs).await?;
    let changes: Vec<Change> = (0..MANY).map(|c| insert(&table, "p", c, c, "ours", 5)).collect();
    let waits = "select count(*) from pg_stat_activity where datname = current_database() \
        and wait_event_type = 'Lock' and query like '-- cdc: copy rows%'";
    let commits = async {
        while database.number(waits).await? == 0 {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(transaction.commit().await?)
    };
    let (applied, ()) = tokio::try_join!(async { Ok(target.apply(changes.clone(), &[]).await?) }, commits)?;
    assert_eq!(applied.rows_written, usize::try_from(MANY)? - 1);
    let mut all = changes;
    all.extend([insert(&table, "p", 100, -1, "newer", 9), insert(&table, "p", 200, -1, "older", 1)]);
    assert_eq!(stored(&database, "p").await?, expected(&all, now()));
    Ok(())
}

#[tokio::test]
async fn where_a_copy_would_not_do_rows_are_inserted() -> Result<()> {
    let mut database = Database::create().await?;
    let limited = "create role limited login password 'limited'; grant create on schema public to limited; \
        do $$ begin execute format('grant create on database %I to limited', current_database()); end $$";
    database.client().await?.batch_execute(limited).await?;
    database.config.username = "limited".to_owned();
    database.config.password = Some(Secret::new("limited"));
    let target = database.target().await?;
    let table = orders();
    target.prepare_table(table.clone()).await?;
    note_statements(&database).await?;
    let rows = |from: i32| -> Vec<Change> { (from..from + MANY).map(|c| insert(&table, "p", c, c, "t", 5)).collect() };
    let mut changes = rows(0);
    target.apply(changes.clone(), &[]).await?;
    assert_eq!(noted(&database).await?, ["-- cdc: copy rows".to_owned()].into());
    // PostgreSQL copies nothing into such a table.
    let secured = "alter table \"cdc_Orders\" enable row level security; \
        alter table \"cdc_Orders\" force row level security; \
        create policy anyone on \"cdc_Orders\" using (true) with check (true); truncate noted";
    database.client().await?.batch_execute(secured).await?;
    target.apply(rows(1000), &[]).await?;
    changes.extend(rows(1000));
    // And takes the bytes of a value for what the column is now.
    let retyped = "drop view \"cdc_Orders__all\"; alter table \"cdc_Orders\" disable row level security; \
        alter table \"cdc_Orders\" alter column v type real";
    database.client().await?.batch_execute(retyped).await?;
    // The second time on a connection that has never known another type.
    for from in [2000, 3000] {
        target.apply(rows(from), &[]).await?;
        changes.extend(rows(from));
    }
    assert_eq!(stored(&database, "p").await?, expected(&changes, now()));
    assert_eq!(noted(&database).await?, ["-- cdc: insert rows".to_owned()].into());
    Ok(())
}

/// Large batches of new rows until only samples of the next ones are looked up.
async fn grow(target: &Target, table: &Arc<TableSchema>, p: &str) -> Result<Vec<Change>> {
    let row = |c| insert(table, p, c, 1, "t", 5);
    let batches: Vec<Vec<Change>> = (0..12).map(|n| (n * MANY..(n + 1) * MANY).map(row).collect()).collect();
    for batch in &batches {
        target.apply(batch.clone(), &[]).await?;
    }
    Ok(batches.concat())
}

#[tokio::test]
async fn of_a_table_that_only_grows_few_keys_are_looked_up() -> Result<()> {
    let mut database = Database::create().await?;
    database.config.pool_size = 1;
    let target = database.target().await?;
    let changes = grow(&target, &orders(), "p").await?;
    drop(target);
    // A connection has counted what it did when it ends.
    let connected =
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'cdc'";
    while database.number(connected).await? > 0 {
        tokio::task::yield_now().await;
    }
    let scans = database.number("select sum(idx_scan) from pg_stat_user_indexes where relname = 'cdc_Orders'").await?;
    assert!(scans < 9 * i64::from(MANY), "{scans} lookups");
    assert_eq!(stored(&database, "p").await?, expected(&changes, now()));
    Ok(())
}

#[tokio::test]
async fn what_a_sample_of_the_keys_does_not_show_is_found_all_the_same() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let range = {
        let bound = |c| Bound { prefix: vec![int(c)], inclusive: true };
        RangeTombstone { start: bound(3), end: bound(9), deletion: deletion(7) }
    };
    // What is known of a partition before the table grows; what comes with the many rows of it after that.
    let cases: [(&str, Vec<Change>, Vec<Change>); 6] = [
        ("newer", vec![insert(&table, "newer", 7, -1, "x", 9)], Vec::new()),
        ("older", vec![insert(&table, "older", 7, -1, "x", 1)], Vec::new()),
        ("deleted", vec![delete_row(&table, "deleted", 7, 9)], Vec::new()),
        ("range", vec![change(&table, "range", ChangeBody::DeleteRange(range))], Vec::new()),
        ("deletes", vec![insert(&table, "deletes", 1000, 1, "x", 1)], vec![delete_row(&table, "deletes", 1000, 9)]),
        ("all", vec![insert(&table, "all", 1000, 1, "x", 1)], vec![delete_partition(&table, "all", 4)]),
    ];
    for (p, mut changes, with) in cases {
        target.apply(changes.clone(), &[]).await?;
        grow(&target, &table, &format!("grown {p}")).await?;
        let batch: Vec<Change> = (0..MANY).map(|c| insert(&table, p, c, 1, "t", 5)).chain(with).collect();
        target.apply(batch.clone(), &[]).await?;
        changes.extend(batch);
        assert_eq!(stored(&database, p).await?, expected(&changes, now()), "{p}");
        assert_eq!(target.apply(changes, &[]).await?.rows_written, 0, "{p}");
    }
    Ok(())
}
