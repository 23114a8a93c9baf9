//! Schema changes of the source, and target tables that belong to the user.

use std::sync::Arc;

use anyhow::Result;
use cdc_model::{Change, ChangeBody, ColumnKind, CqlType, TableSchema};
use cdc_postgres::{ColumnSettings, Mask, SchemaMode, TableSettings, Target};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::support::{
    Database, change, clustering, column, expected, insert, int, key_column, live, marker, now, orders, schema, state,
    stored, text,
};

/// When `t` was dropped.
const DROPPED: i64 = 1000;

/// `orders`, after `t` was dropped, added again with another type, and `x` was added.
fn newer_orders(t: CqlType) -> Arc<TableSchema> {
    let old = orders();
    let mut newer = TableSchema::clone(&old);
    let gone = newer.columns.iter_mut().find(|column| column.name == "t").expect("there is one");
    gone.dropped = Some(DROPPED);
    newer.columns.push(column("t", t, ColumnKind::Regular));
    newer.columns.push(column("x", CqlType::Int, ColumnKind::Regular));
    Arc::new(old.evolve(newer.new().expect("valid")).expect("valid"))
}

/// An `INSERT` of before or after, and what it comes to with `t` as text.
fn some_insert(rng: &mut StdRng, newer: Option<&Arc<TableSchema>>, time: i64) -> (Change, Change) {
    let (p, c) = (format!("p{}", rng.random_range(0..3)), rng.random_range(0..8));
    let number: i32 = rng.random_range(0..1000);
    let body = |row| ChangeBody::Row { clustering: clustering(c), row };
    let liveness = rng.random_bool(0.5).then(|| marker(time));
    let (table, mut columns) = (orders(), vec![("v", live(time, int(number)))]);
    let Some(newer) = newer else {
        let shown = change(&table, &p, body(state(&table, liveness, columns.clone())));
        columns.push(("t", live(time, text("old"))));
        return (change(&table, &p, body(state(&table, liveness, columns))), shown);
    };
    let mut shown = columns.clone();
    shown.push(("t", live(time, text(&number.to_string()))));
    columns.extend([("t", live(time, int(number))), ("x", live(time, int(number)))]);
    (change(newer, &p, body(state(newer, liveness, columns))), change(&table, &p, body(state(&table, liveness, shown))))
}

async fn write(target: Target, changes: Vec<Change>, seed: u64) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rest = changes.as_slice();
    while !rest.is_empty() {
        let (batch, tail) = rest.split_at(rng.random_range(1..6).min(rest.len()));
        target.apply(batch.to_vec(), &[]).await?;
        rest = tail;
    }
    Ok(())
}

async fn writers_behind_each_other_agree(t: CqlType) -> Result<()> {
    let database = Database::create().await?;
    let newer = newer_orders(t);
    let mut rng = StdRng::seed_from_u64(3);
    let (before, shown): (Vec<_>, Vec<_>) = (0..150).map(|time| some_insert(&mut rng, None, time)).unzip();
    let after = (0..150).map(|time| some_insert(&mut rng, Some(&newer), DROPPED + 1 + time));
    let (after, shown_after): (Vec<_>, Vec<_>) = after.unzip();
    let mut writers = tokio::task::JoinSet::new();
    for seed in 0..3u64 {
        // Each learns of the change at another time; changes of before come late, too.
        let (mut first, mut rest) = (before.clone(), after.clone());
        let mut rng = StdRng::seed_from_u64(seed);
        first.shuffle(&mut rng);
        rest.extend(first.split_off(first.len() * (usize::try_from(seed)? + 1) / 4));
        rest.shuffle(&mut rng);
        first.extend(rest);
        writers.spawn(write(database.target().await?, first, seed));
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    assert_eq!(stored(&database, "p").await?, expected(&[shown, shown_after].concat(), now()));
    // Nothing of any state was lost: to another writer it is all known.
    let all = [before, after].concat();
    assert_eq!(database.target().await?.apply(all, &[]).await?.rows_written, 0);
    // What was there before is kept apart.
    let kept = database.number("select count(t__dropped_1) from \"cdc_Orders\"").await?;
    assert!(kept > 0);
    let view = "select count(*) from \"cdc_Orders__all\" where t is not null and t__dropped_1 is not null";
    assert!(database.number(view).await? <= kept);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_dropped_and_added_with_another_type_keeps_old_values_apart_under_load() -> Result<()> {
    writers_behind_each_other_agree(CqlType::Int).await
}

#[tokio::test]
async fn a_column_dropped_and_added_again_as_it_was_begins_empty() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let newer = newer_orders(CqlType::Text);
    target.apply(vec![insert(&orders(), "a", 1, 1, "old", 5), insert(&orders(), "a", 2, 2, "old", 5)], &[]).await?;
    let row = state(&newer, None, vec![("t", live(DROPPED + 1, text("new")))]);
    let update = change(&newer, "a", ChangeBody::Row { clustering: clustering(1), row });
    // The other writer still knows the table as it was.
    let late = database.target().await?;
    late.apply(vec![insert(&orders(), "b", 1, 1, "old", 5)], &[]).await?;
    target.apply(vec![update], &[]).await?;
    late.apply(vec![insert(&orders(), "a", 1, 3, "old", 7), insert(&orders(), "c", 1, 1, "old", 5)], &[]).await?;
    let rows = database.rows("select p, c, v, t, t__dropped_1 from \"cdc_Orders__all\" order by p, c").await?;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        rows,
        [
            [some("a"), some("1"), some("3"), some("new"), some("old")],
            [some("a"), some("2"), some("2"), None, some("old")],
            [some("b"), some("1"), some("1"), None, some("old")],
            [some("c"), some("1"), some("1"), None, None],
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_type_that_only_widens_is_followed_and_another_halts_with_the_statement() -> Result<()> {
    let database = Database::create().await?;
    let table = orders();
    database.target().await?.apply(vec![insert(&table, "a", 1, 7, "t", 5)], &[]).await?;
    let client = database.client().await?;
    client.batch_execute("drop view \"cdc_Orders__all\"; alter table \"cdc_Orders\" alter v type smallint").await?;
    client.batch_execute("alter table \"cdc_Orders\" alter t type varchar(20)").await?;
    client.batch_execute("create view mine as select v from \"cdc_Orders\"").await?;
    let error = database.target().await?.prepare_table(table.clone()).await.expect_err("a view is in the way");
    assert_eq!(error.disposition(), cdc_postgres::Disposition::Halt);
    assert!(error.to_string().contains("drop what depends on it, run this"), "{error}");
    client.batch_execute("drop view mine").await?;
    let target = database.target().await?;
    target.apply(vec![insert(&table, "a", 2, 70_000, "text of more than twenty characters", 5)], &[]).await?;
    assert_eq!(database.number("select sum(v) from \"cdc_Orders__all\"").await?, 70_007);
    client.batch_execute("drop view \"cdc_Orders__all\"; alter table \"cdc_Orders\" alter v type bigint").await?;
    let error = database.target().await?.prepare_table(table.clone()).await.expect_err("it would lose something");
    let fix = "alter table \"public\".\"cdc_Orders\" alter column \"v\" type integer using \"v\"::integer;";
    assert!(error.to_string().ends_with(fix), "{error}");
    client.batch_execute(fix).await?;
    database.target().await?.prepare_table(table).await?;
    Ok(())
}

#[tokio::test]
async fn the_users_own_tables_are_compared_and_never_altered() -> Result<()> {
    let mut database = Database::create().await?;
    database.config.schema_mode = SchemaMode::Validate;
    let table = schema(
        "own",
        vec![key_column("p", CqlType::Text)],
        Vec::new(),
        vec![column("v", CqlType::Int, ColumnKind::Regular), column("d", CqlType::Decimal, ColumnKind::Regular)],
    );
    let row = state(&table, Some(marker(5)), vec![("v", live(5, int(7)))]);
    let insert = change(&table, "a", ChangeBody::Row { clustering: cdc_model::Clustering::default(), row });
    let target = database.target().await?;
    let error = target.apply(vec![insert.clone()], &[]).await.expect_err("there is no table").to_string();
    assert!(error.contains("\"cdc_own\" is missing; create schema if not exists \"public\";\ncreate table"), "{error}");
    assert_eq!(database.number("select count(*) from pg_class where relname like 'cdc\\_%'").await?, 0);
    let client = database.client().await?;
    client
        .batch_execute(
            "create table cdc_own (p text, v smallint not null, d numeric(5, 2), \"_cdc_state\" bytea, _cdc_token bigint, \
             _cdc_written_at bigint, needed int not null, nice int, best int not null default 5)",
        )
        .await?;
    let error = target.apply(vec![insert.clone()], &[]).await.expect_err("much is wrong").to_string();
    let told = cdc_postgres::differences(&client, &database.config, &[TableSchema::clone(&table)]).await?;
    assert_eq!(told, [error.as_str()]);
    let (_, statements) = error.split_once("; alter").expect("statements follow");
    let expected = [
        " table \"public\".\"cdc_own\" add column _cdc_expires_at timestamptz;",
        "alter table \"public\".\"cdc_own\" add primary key (\"p\");",
        "alter table \"public\".\"cdc_own\" alter column \"d\" type numeric;",
        "alter table \"public\".\"cdc_own\" alter column \"v\" type integer;",
        "alter table \"public\".\"cdc_own\" alter column \"v\" drop not null;",
        "alter table \"public\".\"cdc_own\" alter column \"needed\" drop not null;",
    ];
    assert_eq!(statements.lines().collect::<Vec<_>>(), expected, "{error}");
    client.batch_execute(&format!("alter{statements}")).await?;
    target.apply(vec![insert], &[]).await?;
    assert_eq!(database.number("select v + best from cdc_own").await?, 12);
    Ok(())
}

#[tokio::test]
async fn settings_that_do_not_go_with_what_is_stored_halt() -> Result<()> {
    let mut database = Database::create().await?;
    let table = orders();
    database.target().await?.apply(vec![insert(&table, "a", 1, 7, "clear", 5)], &[]).await?;
    let comment = "select col_description('\"cdc_Orders\"'::regclass, attnum) from pg_attribute \
        where attrelid = '\"cdc_Orders\"'::regclass and attname = 't'";
    assert_eq!(database.rows(comment).await?, [[Some("t of shop.Orders in Cassandra.".to_owned())]]);
    let settings = |name: Option<&str>, mask: Option<Mask>| TableSettings {
        name: name.map(str::to_owned),
        columns: [("t".to_owned(), ColumnSettings { mask, ..ColumnSettings::default() })].into(),
        ..TableSettings::default()
    };
    let cases = [
        (settings(None, Some(Mask::Hash(cdc_runtime::Secret::new("0123456789abcdef")))), "masked: HMAC-SHA-256, salt "),
        (settings(None, Some(Mask::Null)), "masked: NULL"),
        (settings(Some("other"), None), "its rows are in \"public\".\"cdc_Orders\", but it is to be written to"),
    ];
    for (settings, sentence) in cases {
        database.config.tables.insert("shop.Orders".to_owned(), settings);
        let error = database.target().await?.prepare_table(table.clone()).await.expect_err("it does not go");
        assert!(error.to_string().contains(sentence), "{error}");
    }
    // A comment of the user's says nothing.
    database.config.tables.clear();
    let comment = "comment on column \"cdc_Orders\".t is 'PII of shop.Orders in Cassandra, masked: never'";
    database.client().await?.batch_execute(comment).await?;
    database.target().await?.prepare_table(table).await?;
    Ok(())
}
