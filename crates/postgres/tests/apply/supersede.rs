//! Rows that leave nothing of older ones, which are not read therefore.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Result;
use cdc_model::{Change, ChangeBody, ColumnKind, ColumnState, CqlType, Liveness, LocalTime, TableSchema, WriteTime};

use crate::support::{
    Database, change, clustering, column, delete_partition, delete_row, expected, expiring, int, key_column, live,
    marker, now, schema, state, stored, text,
};

/// Rows of a batch, many enough for what is done to large ones.
const MANY: i32 = 300;
/// Batches after which a table is known to be one whose rows are superseded.
const USUAL: i64 = 10;

/// As [`crate::support::orders`], but without a collection.
fn orders() -> Arc<TableSchema> {
    let column = |name, kind| column(name, CqlType::Text, kind);
    schema(
        "Orders",
        vec![key_column("p", CqlType::Text)],
        vec![key_column("c", CqlType::Int)],
        vec![
            crate::support::column("v", CqlType::Int, ColumnKind::Regular),
            column("t", ColumnKind::Regular),
            column("tags", ColumnKind::Regular),
            column("st", ColumnKind::Static),
        ],
    )
}

/// `INSERT` of all columns.
fn insert(table: &Arc<TableSchema>, p: &str, c: i32, v: i32, t: &str, time: i64) -> Change {
    let columns = vec![("v", live(time, int(v))), ("t", live(time, text(t))), ("tags", live(time, text("some")))];
    let row = state(table, Some(marker(time)), columns);
    change(table, p, ChangeBody::Row { clustering: clustering(c), row })
}

async fn note_updates(database: &Database) -> Result<()> {
    let sql = "create table noted (statement text); grant all on noted to public; \
        create function note() returns trigger language plpgsql as $$ begin \
        insert into noted values (split_part(current_query(), E'\\n', 1)); return null; end $$; \
        create trigger note after update on \"cdc_Orders\" for each row execute function note()";
    Ok(database.client().await?.batch_execute(sql).await?)
}

/// By which statements rows were updated since this was last asked.
async fn noted(database: &Database) -> Result<BTreeSet<String>> {
    let rows = database.rows("delete from noted returning statement").await?;
    Ok(rows.into_iter().flatten().flatten().collect())
}

#[tokio::test]
async fn rows_that_leave_nothing_of_older_ones_supersede_them_and_all_others_merged() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let soon = LocalTime(now().0 + 1_000_000);
    let p = |n: i32| format!("p{}", n % 7);
    let row = |n: i32, time: i64| insert(&table, &p(n), n, n, &format!("at {time}"), time);
    let mut changes = Vec::new();
    for time in 0..USUAL {
        changes.extend((0..MANY).map(|n| row(n, time)));
        target.apply((0..MANY).map(|n| row(n, time)).collect(), &[]).await?;
    }
    note_updates(&database).await?;
    // What is stored becomes of every kind: uniform, expiring, of several times, deleted.
    let partial = |n: i32, time: i64| {
        let row = state(&table, None, vec![("v", live(time, int(-n)))]);
        change(&table, &p(n), ChangeBody::Row { clustering: clustering(n), row })
    };
    let expires = |n: i32, time: i64| {
        let marker = Liveness { time: WriteTime(time), ttl: 60, expires: soon };
        let cell = ColumnState::Simple(expiring(time, soon, int(n)));
        let row = state(&table, Some(marker), vec![("v", cell)]);
        change(&table, &p(n), ChangeBody::Row { clustering: clustering(n), row })
    };
    let various: Vec<Change> = (0..MANY / 4)
        .map(|n| match n % 3 {
            0 => partial(n, 20),
            1 => expires(n, 20),
            _ => delete_row(&table, &p(n), n, 20),
        })
        .collect();
    target.apply(various.clone(), &[]).await?;
    changes.extend(various);
    noted(&database).await?;

    // Older than what is stored, as old, newer; new rows; and such as say nothing of a column.
    let mixed: Vec<Change> = (0..MANY + 50)
        .map(|n| match n % 10 {
            0 => row(n, USUAL - 2),
            1 => row(n, USUAL - 1),
            2 => partial(n, 30),
            3 => expires(n, 30),
            _ => row(n, 19 + i64::from(n % 3)),
        })
        .collect();
    let applied = target.apply(mixed.clone(), &[]).await?;
    changes.extend(mixed.clone());
    assert_eq!(stored(&database, "p").await?, expected(&changes, now()));
    let both = ["-- cdc: supersede rows", "-- cdc: update rows"];
    assert_eq!(noted(&database).await?, both.map(str::to_owned).into(), "{applied:?}");
    // Again: nothing is older now.
    assert_eq!(target.apply(mixed, &[]).await?.rows_written, 0);
    assert!(noted(&database).await?.is_empty());
    target.apply(changes.clone(), &[]).await?;
    assert_eq!(stored(&database, "p").await?, expected(&changes, now()));
    Ok(())
}

#[tokio::test]
async fn no_row_is_superseded_by_what_a_stored_deletion_covers() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let rows = |time: i64| (0..MANY).map(|n| insert(&table, "p", n, n, "t", time)).collect::<Vec<_>>();
    let mut changes = Vec::new();
    for time in 0..USUAL {
        changes.extend(rows(time));
        target.apply(rows(time), &[]).await?;
    }
    note_updates(&database).await?;
    let deletion = delete_partition(&table, "p", 50);
    target.apply(vec![deletion.clone()], &[]).await?;
    target.apply(rows(60), &[]).await?;
    noted(&database).await?;
    // Newer than nothing that shows, but for the deletion; and newer than all.
    for time in [40, 70] {
        target.apply(rows(time), &[]).await?;
        changes.extend(rows(time));
    }
    changes.extend([deletion].into_iter().chain(rows(60)));
    assert_eq!(stored(&database, "p").await?, expected(&changes, now()));
    assert_eq!(noted(&database).await?, ["-- cdc: update rows".to_owned()].into());
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_by_itself_where_others_are_superseded() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let row = |n: i32, time: i64| insert(&table, "p", n, n, "t", time);
    for time in 0..USUAL {
        target.apply((0..MANY).map(|n| row(n, time)).collect(), &[]).await?;
    }
    let client = database.client().await?;
    client.batch_execute("alter table \"cdc_Orders\" add constraint few check (v < 10000)").await?;
    let mut batch: Vec<Change> = (0..MANY).map(|n| row(n, 20)).collect();
    // Too much for the constraint, and for `text`.
    batch[7] = insert(&table, "p", 7, 10_000, "t", 20);
    batch[9] = insert(&table, "p", 9, 9, "nul \0", 20);
    let applied = target.apply(batch, &[]).await?;
    assert_eq!((applied.quarantined, applied.rows_written), (2, usize::try_from(MANY)? - 2));
    let old = database.rows("select c from \"cdc_Orders\" where _cdc_written_at < 20 order by c").await?;
    assert_eq!(old, [[Some("7".to_owned())], [Some("9".to_owned())]]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_supersede_the_same_rows_at_once_agree_with_the_model() -> Result<()> {
    const PROCESSES: i64 = 3;
    const BATCHES: i64 = 30;
    let database = Database::create().await?;
    let table = orders();
    // Later batches are mostly newer, so that most rows supersede something, and some do not.
    let batch = |process: i64, number: i64| -> Vec<Change> {
        let time = |n: i32| 10 * number + i64::from(n * 7) % 23 + process;
        (0..MANY).map(|n| insert(&table, "p", n, n, &format!("{process} {number}"), time(n))).collect()
    };
    let first = database.target().await?;
    first.apply(batch(0, 0), &[]).await?;
    note_updates(&database).await?;
    let mut processes = tokio::task::JoinSet::new();
    for process in 0..PROCESSES {
        let target = database.target().await?;
        let batches: Vec<_> = (0..BATCHES).map(|number| batch(process, number)).collect();
        processes.spawn(async move {
            for batch in batches {
                target.apply(batch, &[]).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = processes.join_next().await {
        done??;
    }
    let changes: Vec<Change> =
        (0..PROCESSES).flat_map(|process| (0..BATCHES).flat_map(move |number| batch(process, number))).collect();
    assert_eq!(stored(&database, "p").await?, expected(&changes, now()));
    assert!(noted(&database).await?.contains("-- cdc: supersede rows"));
    assert_eq!(first.apply(changes, &[]).await?.rows_written, 0);
    Ok(())
}
