//! What is set aside, under which type, and how it gets back.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use cdc_model::{Change, ChangeBody, ColumnKind, CqlType, TableSchema};
use cdc_postgres::{
    Advance, Delivery, ErrorType, FloodLimit, LetterFilter, LetterStatus, Original, Replayed, StreamName, Target,
    Undecodable, Undecoded,
};
use uuid::Uuid;

use crate::support::{
    Database, change, clustering, column, delete_partition, insert, int, key_column, live, marker, orders, schema,
    state, text,
};

/// `insert` with columns by name instead of `v` and `t`.
fn row(table: &Arc<TableSchema>, p: &str, c: i32, time: i64, columns: Vec<(&str, cdc_model::ValueBytes)>) -> Change {
    let columns = columns.into_iter().map(|(name, value)| (name, live(time, value))).collect();
    change(table, p, ChangeBody::Row { clustering: clustering(c), row: state(table, Some(marker(time)), columns) })
}

async fn replay(target: &Target, ids: &[Uuid], rehearse: bool) -> Result<Vec<Replayed>> {
    let mut outcomes = Vec::new();
    let undecodable = Undecodable {
        error_type: ErrorType::DecodeError,
        code: "MALFORMED".to_owned(),
        message: "still not a change".to_owned(),
    };
    target
        .replay_dead_letters(ids, rehearse, &|_, _| Err(undecodable.clone()), |_, outcome| outcomes.push(outcome))
        .await?;
    Ok(outcomes)
}

async fn letters(target: &Target) -> Result<Vec<Uuid>> {
    let filter = LetterFilter { status: Some(LetterStatus::Unresolved), ..LetterFilter::default() };
    Ok(target.dead_letter_ids(&filter).await?)
}

#[tokio::test]
async fn every_refusal_of_postgresql_has_its_type_and_says_nothing_of_the_value() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let columns = [("v", CqlType::Int), ("t", CqlType::Text), ("at", CqlType::Timestamp), ("n", CqlType::Varint)];
    let columns = columns.map(|(name, ty)| column(name, ty, ColumnKind::Regular)).into();
    let clustering = vec![key_column("c", CqlType::Int)];
    let table = schema("kinds", vec![key_column("p", CqlType::Text)], clustering, columns);
    target.prepare_table(Arc::clone(&table)).await?;
    let client = database.client().await?;
    client
        .batch_execute(
            "alter table cdc_kinds add constraint not_13 check (v <> 13);
             create unique index kinds_t on cdc_kinds (t) where t like 'unique%';
             create function refuse() returns trigger language plpgsql as $$ begin
                 if new.v = 14 then raise exception 'secret' using errcode = '22999'; end if;
                 perform case when new.v = 15 then new.p::int end;
                 perform case when new.v = 16 then 2147483647 + new.v end;
                 return new; end $$;
             create trigger refuse before insert on cdc_kinds for each row execute function refuse();",
        )
        .await?;
    let long: String = (0..9000).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    let one =
        |c: i32, name: &'static str, value: cdc_model::ValueBytes| row(&table, "secret", c, 5, vec![(name, value)]);
    let digits = [&[1][..], &[0; 60_000]].concat();
    let batch = vec![
        one(0, "v", int(1)),
        one(1, "t", text("secret\0")),
        one(2, "t", Bytes::from_static(b"secret\xff").into()),
        one(3, "at", i64::MAX.to_be_bytes().as_slice().into()),
        one(4, "n", digits.as_slice().into()),
        row(&table, &long, 5, 5, vec![("v", int(1))]),
        one(6, "v", int(13)),
        one(7, "t", text("unique secret")),
        one(8, "t", text("unique secret")),
        row(&table, "", 9, 5, Vec::new()),
        one(10, "v", int(14)),
        one(11, "v", int(15)),
        one(12, "v", int(16)),
    ];
    let mut key_of_no_value = change(&table, "p", ChangeBody::Static(cdc_model::RowState::default()));
    key_of_no_value.body = ChangeBody::Row {
        clustering: cdc_model::Clustering::new([Some(text(""))]),
        row: state(&table, Some(marker(5)), Vec::new()),
    };
    let applied = target.apply(batch.into_iter().chain([key_of_no_value]).collect(), &[]).await?;
    assert_eq!((applied.rows_written, applied.quarantined), (3, 11));
    let of = |error_type| applied.letters.get(&("shop.kinds".to_owned(), error_type)).copied();
    assert_eq!(of(ErrorType::ValueOutOfRange), Some(4));
    let some = |texts: [&str; 2]| texts.map(|text| Some(text.to_owned())).to_vec();
    assert_eq!(
        database.rows("select error_type, code from _cdc.dlq order by 1, 2").await?,
        [
            ["CONSTRAINT_VIOLATION", "KEY_UNREPRESENTABLE"],
            ["CONSTRAINT_VIOLATION", "SQLSTATE_23505"],
            ["CONSTRAINT_VIOLATION", "SQLSTATE_23514"],
            ["TYPE_CONVERSION", "SQLSTATE_22P02"],
            ["TYPE_CONVERSION", "VALUE_UNREPRESENTABLE"],
            ["TYPE_CONVERSION", "VALUE_UNREPRESENTABLE"],
            ["UNKNOWN", "SQLSTATE_22999"],
            ["VALUE_OUT_OF_RANGE", "SQLSTATE_22003"],
            ["VALUE_OUT_OF_RANGE", "SQLSTATE_54000"],
            ["VALUE_OUT_OF_RANGE", "VALUE_UNREPRESENTABLE"],
            ["VALUE_OUT_OF_RANGE", "VALUE_UNREPRESENTABLE"],
        ]
        .map(some)
    );
    assert_eq!(database.number("select count(*) from _cdc.dlq where message || history like '%secret%'").await?, 0);
    assert_eq!(database.number("select count(*) from _cdc.dlq where message like '%not_13%'").await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_fails_again_stays_one_letter_with_its_history() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    for _ in 0..25 {
        target.apply(vec![insert(&table, "a", 1, 1, "\0", 5)], &[]).await?;
    }
    let letter = target.dead_letters(&LetterFilter::default(), false).await?.remove(0);
    assert_eq!((letter.attempts, letter.history.as_array().map(Vec::len)), (25, Some(20)));
    assert!(letter.first_failed_at < letter.last_failed_at);
    assert_eq!(target.discard_dead_letters(vec![letter.id], "a test").await?, 1);
    target.apply(vec![insert(&table, "a", 1, 1, "\0", 5)], &[]).await?;
    let letter = target.dead_letters(&LetterFilter::default(), false).await?.remove(0);
    assert_eq!((letter.attempts, letter.status.as_str()), (26, "discarded"));
    assert_eq!(letter.resolution.as_deref(), Some("a test"));
    assert_eq!(replay(&target, &[letter.id], false).await?, [Replayed::Settled]);
    Ok(())
}

#[tokio::test]
async fn a_letter_is_replayed_once_its_cause_is_gone_and_disturbs_no_writer() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.prepare_table(Arc::clone(&table)).await?;
    let client = database.client().await?;
    client.batch_execute("alter table \"cdc_Orders\" add constraint c check (v <> 13)").await?;
    let claim = target.claim(&StreamName("node:a".to_owned())).await?;
    let advance = [Advance { claim, position: "7".to_owned() }];
    target.apply((0..200).map(|c| insert(&table, "a", c, 13, "t", 5)).collect(), &advance).await?;
    let ids = letters(&target).await?;
    assert_eq!(ids.len(), 200);

    let refused = replay(&target, &ids[..1], false).await?;
    let Some(Replayed::Refused(again)) = refused.first() else { anyhow::bail!("{refused:?}") };
    assert_eq!((again.error_type, again.code.as_str()), (ErrorType::ConstraintViolation, "SQLSTATE_23514"));
    assert_eq!(replay(&target, &ids[..1], true).await?, refused);
    let letter =
        target.dead_letters(&LetterFilter { ids: ids[..1].to_vec(), ..LetterFilter::default() }, false).await?;
    assert_eq!((letter[0].attempts, letter[0].status.as_str()), (2, "unresolved"));
    assert_eq!(letter[0].history[1]["by"], "replay");

    client.batch_execute("alter table \"cdc_Orders\" drop constraint c").await?;
    assert_eq!(replay(&target, &ids[..3], true).await?, [Replayed::Applied, Replayed::Applied, Replayed::Applied]);
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 0);
    // Another process, which knows nothing of the table but what is stored.
    let other = database.target().await?;
    assert!(replay(&other, &ids, false).await?.iter().all(|outcome| *outcome == Replayed::Applied));
    assert_eq!(database.number("select count(*) from \"cdc_Orders\" where v = 13").await?, 200);
    assert_eq!(database.number("select count(*) from _cdc.dlq where status = 'resolved'").await?, 200);
    assert_eq!(replay(&other, &ids[..1], false).await?, [Replayed::Settled]);
    let stream = database.rows("select position, epoch from _cdc.streams").await?;
    assert_eq!(stream, [[Some("7".to_owned()), Some("1".to_owned())]]);
    target.apply(vec![insert(&table, "b", 1, 1, "t", 5)], &advance).await?;
    Ok(())
}

#[tokio::test]
async fn newer_data_in_the_target_wins_over_a_replayed_letter() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.prepare_table(Arc::clone(&table)).await?;
    let client = database.client().await?;
    client.batch_execute("create unique index orders_t on \"cdc_Orders\" (t)").await?;
    target.apply(vec![insert(&table, "a", 1, 1, "taken", 5)], &[]).await?;
    let refused = vec![insert(&table, "a", 2, 2, "taken", 5), insert(&table, "a", 3, 3, "taken", 5)];
    assert_eq!(target.apply(refused, &[]).await?.quarantined, 2);
    // Row 2 is overwritten as a whole, of row 3 one column.
    let update = ChangeBody::Row { clustering: clustering(3), row: state(&table, None, vec![("v", live(9, int(9)))]) };
    target.apply(vec![insert(&table, "a", 2, 9, "free", 9), change(&table, "a", update)], &[]).await?;
    client.batch_execute("drop index orders_t").await?;
    // Meanwhile another writer has changed the table: the first look at it is with a layout that is behind.
    client.batch_execute("update _cdc.tables set generation = generation + 1").await?;
    let mut outcomes = replay(&target, &letters(&target).await?, false).await?;
    outcomes.sort_by_key(|outcome| *outcome != Replayed::Applied);
    assert_eq!(outcomes, [Replayed::Applied, Replayed::Superseded]);
    let some = |row: [&str; 3]| row.map(|text| Some(text.to_owned())).to_vec();
    assert_eq!(
        database.rows("select c, v, t from \"cdc_Orders\" order by c").await?,
        [["1", "1", "taken"], ["2", "9", "free"], ["3", "9", "taken"]].map(some)
    );
    assert!(letters(&target).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_letter_is_not_resolved_by_an_apply_that_the_target_does_not_show() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.prepare_table(Arc::clone(&table)).await?;
    let client = database.client().await?;
    client.batch_execute("alter table \"cdc_Orders\" add constraint c check (v <> 13)").await?;
    target.apply(vec![insert(&table, "a", 1, 13, "t", 5)], &[]).await?;
    client
        .batch_execute(
            "alter table \"cdc_Orders\" drop constraint c;
             create function swallow() returns trigger language plpgsql as $$ begin return null; end $$;
             create trigger swallow before insert on \"cdc_Orders\" for each row execute function swallow();",
        )
        .await?;
    let outcomes = replay(&target, &letters(&target).await?, false).await?;
    let Some(Replayed::Refused(refused)) = outcomes.first() else { anyhow::bail!("{outcomes:?}") };
    assert_eq!((refused.error_type, refused.code.as_str()), (ErrorType::Unknown, "NOT_VERIFIED"));
    client.batch_execute("drop trigger swallow on \"cdc_Orders\"").await?;
    assert_eq!(replay(&target, &letters(&target).await?, false).await?, [Replayed::Applied]);
    let letter = target.dead_letters(&LetterFilter::default(), false).await?.remove(0);
    assert_eq!((letter.status.as_str(), letter.attempts), ("resolved", 2));
    Ok(())
}

#[tokio::test]
async fn deletions_and_static_rows_are_letters_too() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.apply(vec![insert(&table, "a", 1, 1, "t", 5)], &[]).await?;
    let client = database.client().await?;
    client
        .batch_execute(
            "create table child (p text, c int, foreign key (p, c) references \"cdc_Orders\");
             insert into child values ('a', 1);
             alter table \"cdc_Orders__static\" add constraint s check (st <> 'x')",
        )
        .await?;
    let statics = ChangeBody::Static(state(&table, None, vec![("st", live(9, text("x")))]));
    let batch = vec![delete_partition(&table, "a", 7), change(&table, "b", statics)];
    assert_eq!(target.apply(batch, &[]).await?.quarantined, 2);
    let mut kinds: Vec<&str> =
        target.dead_letters(&LetterFilter::default(), false).await?.iter().map(|letter| letter.kind).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["deletion", "static row"]);
    client.batch_execute("drop table child; alter table \"cdc_Orders__static\" drop constraint s").await?;
    let other = database.target().await?;
    let outcomes = replay(&other, &letters(&other).await?, false).await?;
    assert_eq!(outcomes, [Replayed::Applied, Replayed::Applied]);
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 0);
    assert_eq!(database.number("select count(*) from \"cdc_Orders__static\"").await?, 1);
    // The deletion is known from now on.
    target.apply(vec![insert(&table, "a", 1, 1, "t", 6)], &[]).await?;
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_replay_keeps_the_cells_of_columns_that_are_younger_than_the_letter() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.prepare_table(Arc::clone(&table)).await?;
    let client = database.client().await?;
    client.batch_execute("alter table \"cdc_Orders\" add constraint c check (v <> 13)").await?;
    target.apply(vec![insert(&table, "a", 1, 13, "t", 5)], &[]).await?;
    let mut newer = TableSchema::clone(&table);
    newer.columns.push(column("young", CqlType::Text, ColumnKind::Regular));
    let newer = Arc::new(table.evolve(newer)?);
    let update = |value, time| {
        let row = state(&newer, None, vec![("young", live(time, text(value)))]);
        change(&newer, "a", ChangeBody::Row { clustering: clustering(1), row })
    };
    target.apply(vec![update("kept", 9)], &[]).await?;
    // A writer that knows less than the others does not make them forget.
    database.target().await?.prepare_table(Arc::clone(&table)).await?;
    client.batch_execute("alter table \"cdc_Orders\" drop constraint c").await?;
    let other = database.target().await?;
    assert_eq!(replay(&other, &letters(&other).await?, false).await?, [Replayed::Applied]);
    // Older than what is there, so it must lose; it would not if the replay had forgotten the cell's time.
    target.apply(vec![update("older", 8)], &[]).await?;
    let rows = database.rows("select v, young from \"cdc_Orders\"").await?;
    assert_eq!(rows, [[Some("13".to_owned()), Some("kept".to_owned())]]);
    Ok(())
}

fn record(offset: i64, value: Option<&[u8]>) -> Undecoded {
    Undecoded {
        original: Original {
            topic: "events".to_owned(),
            partition: 3,
            offset,
            timestamp_ms: Some(i64::MAX),
            key: None,
            value: value.map(Bytes::copy_from_slice),
            headers: vec![("h\0".to_owned(), None), ("i".to_owned(), Some(Bytes::from_static(b"\0\xff")))],
        },
        table: None,
        error_type: ErrorType::DecodeError,
        code: "MALFORMED".to_owned(),
        message: "no \0 column".to_owned(),
    }
}

#[tokio::test]
async fn a_record_that_is_no_change_is_kept_as_it_came_and_decoded_again_by_a_replay() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let claim = target.claim(&StreamName("kafka:events:3".to_owned())).await?;
    let advance = [Advance { claim, position: "9".to_owned() }];
    for _ in 0..2 {
        let undecoded = vec![record(7, Some(b"\0garbage")), record(8, None)];
        let changes = vec![insert(&table, "a", 1, 1, "t", 5)];
        let applied = target.deliver(Delivery { changes, undecoded, commit: &advance, ..Delivery::default() }).await?;
        assert_eq!(applied.quarantined, 2);
    }
    assert_eq!(database.number("select count(*) from _cdc.dlq where attempts = 2").await?, 2);
    assert_eq!(database.number("select count(*) from _cdc.streams where position is null").await?, 1);
    let unpublished = target.unpublished_dead_letters(10).await?;
    let originals: Vec<_> = unpublished.iter().map(|letter| (letter.original.offset, &letter.original.value)).collect();
    assert_eq!(originals, [(7, &Some(Bytes::from_static(b"\0garbage"))), (8, &None)]);
    assert_eq!(unpublished[0].original.headers[1], ("i".to_owned(), Some(Bytes::from_static(b"\0\xff"))));
    target.dead_letters_published(unpublished.iter().map(|letter| letter.id).collect()).await?;
    assert!(target.unpublished_dead_letters(10).await?.is_empty());

    let ids = letters(&target).await?;
    assert!(matches!(replay(&target, &ids, false).await?.as_slice(), [Replayed::Refused(_), Replayed::Refused(_)]));
    let mut outcomes = Vec::new();
    let decoded = insert(&table, "a", 2, 2, "t", 5);
    target.replay_dead_letters(&ids[..1], false, &|_, _| Ok(decoded.clone()), |_, one| outcomes.push(one)).await?;
    assert_eq!(outcomes, [Replayed::Applied]);
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_flood_halts_its_table_and_no_other_until_the_cause_is_gone() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.prepare_table(Arc::clone(&table)).await?;
    let client = database.client().await?;
    client.batch_execute("alter table \"cdc_Orders\" add constraint c check (v <> 13)").await?;
    let claim = target.claim(&StreamName("node:a".to_owned())).await?;
    let advance = [Advance { claim, position: "1".to_owned() }];
    let flood = Some(FloodLimit { letters: 5, window: Duration::from_secs(3600) });
    let deliver =
        async |changes| target.deliver(Delivery { changes, commit: &advance, flood, ..Delivery::default() }).await;
    let bad = || (0..3_000).map(|c| insert(&table, "a", c, 13, "t", 5)).collect::<Vec<_>>();
    for _ in 0..2 {
        let error = deliver(bad()).await.expect_err("too many");
        assert_eq!(error.disposition(), cdc_postgres::Disposition::Halt);
        assert!(
            error.to_string().contains("shop.Orders") && error.to_string().contains("sink.dlq_rows_max"),
            "{error}"
        );
    }
    assert!(database.number("select count(*) from _cdc.dlq").await? <= 5);
    assert_eq!(database.number("select count(*) from _cdc.streams where position is null").await?, 1);
    let key = vec![key_column("p", CqlType::Text)];
    let other = schema("other", key, Vec::new(), vec![column("t", CqlType::Text, ColumnKind::Regular)]);
    let nul = change(
        &other,
        "p",
        ChangeBody::Row {
            clustering: cdc_model::Clustering::default(),
            row: state(&other, None, vec![("t", live(5, text("\0")))]),
        },
    );
    assert_eq!(deliver(vec![nul]).await?.quarantined, 1);
    client.batch_execute("alter table \"cdc_Orders\" drop constraint c").await?;
    assert_eq!(deliver(bad()).await?.quarantined, 0);
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 3_000);
    client.batch_execute("alter table \"cdc_Orders\" add constraint c check (v <> 14)").await?;
    assert_eq!(deliver(vec![insert(&table, "a", 1, 14, "t", 6)]).await?.quarantined, 1);
    Ok(())
}

#[tokio::test]
async fn letters_are_found_by_what_is_known_of_them() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.apply(vec![insert(&table, "a", 1, 1, "\0", 5)], &[]).await?;
    target.deliver(Delivery { undecoded: vec![record(1, Some(b"x"))], ..Delivery::default() }).await?;
    let all = LetterFilter::default;
    let found = async |filter: LetterFilter| anyhow::Ok(target.dead_letters(&filter, true).await?.len());
    assert_eq!(found(all()).await?, 2);
    assert_eq!(found(LetterFilter { table: Some("shop.Orders".to_owned()), ..all() }).await?, 1);
    assert_eq!(found(LetterFilter { table: Some("events".to_owned()), ..all() }).await?, 1);
    assert_eq!(found(LetterFilter { error_type: Some(ErrorType::DecodeError), ..all() }).await?, 1);
    assert_eq!(found(LetterFilter { status: Some(LetterStatus::Resolved), ..all() }).await?, 0);
    assert_eq!(found(LetterFilter { since: Some("yesterday".to_owned()), ..all() }).await?, 2);
    assert_eq!(found(LetterFilter { until: Some("2020-01-01".to_owned()), ..all() }).await?, 0);
    assert_eq!(found(LetterFilter { limit: Some(1), ..all() }).await?, 1);
    let error = target.dead_letters(&LetterFilter { since: Some("?".to_owned()), ..all() }, false).await;
    assert_eq!(error.expect_err("not a time").disposition(), cdc_postgres::Disposition::Quarantine);
    let summary = target.dead_letter_summary(&all()).await?;
    let summary: Vec<_> = summary.iter().map(|one| (one.table.as_deref(), one.code.as_str(), one.letters)).collect();
    assert_eq!(summary, [(Some("events"), "MALFORMED", 1), (Some("shop.Orders"), "VALUE_UNREPRESENTABLE", 1)]);
    let record = LetterFilter { table: Some("events".to_owned()), ..all() };
    let letter = target.dead_letters(&record, true).await?.pop().context("one letter")?;
    assert_eq!(letter.values()["original_value"], "eA==");
    assert!(!serde_json::to_string(&letter)?.contains("eA=="));
    Ok(())
}

#[tokio::test]
async fn what_was_in_quarantine_before_the_migration_is_a_dead_letter_after_it() -> Result<()> {
    let database = Database::create().await?;
    let client = database.client().await?;
    client.batch_execute("create schema _cdc").await?;
    client.batch_execute(include_str!("../../../../migrations/0001_cdc_schema.sql")).await?;
    client
        .batch_execute(
            "insert into _cdc.quarantine (id, table_id, table_name, node, position, code, message, partition_key, state)
             select md5(code)::uuid, md5('')::uuid, 'shop.orders', md5('')::uuid, '1:1', code, message, '', ''
             from (values ('KEY_COLLISION', ''), ('VALUE_UNREPRESENTABLE', 'text contains a NUL character'),
                 ('VALUE_UNREPRESENTABLE2', 'date lies outside PostgreSQL''s range'), ('SQLSTATE_22P02', '')) as t(code, message)",
        )
        .await?;
    client.batch_execute(include_str!("../../../../migrations/0002_dlq.sql")).await?;
    let some = |texts: [&str; 2]| texts.map(|text| Some(text.to_owned())).to_vec();
    assert_eq!(
        database.rows("select error_type, history -> 0 ->> 'error_type' from _cdc.dlq order by 1").await?,
        ["CONSTRAINT_VIOLATION", "TYPE_CONVERSION", "TYPE_CONVERSION", "VALUE_OUT_OF_RANGE"].map(|ty| some([ty, ty]))
    );
    let uncommented = "select count(*) from pg_attribute where attrelid = '_cdc.dlq'::regclass and attnum > 0 \
        and not attisdropped and col_description(attrelid, attnum) is null";
    assert_eq!(database.number(uncommented).await?, 0);
    Ok(())
}
