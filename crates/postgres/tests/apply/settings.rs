//! What users set for tables and columns.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Result;
use cdc_model::{Change, ChangeBody, ColumnKind, ColumnState, ComplexState, CqlType, LocalTime, RowState, TableSchema};
use cdc_postgres::{ColumnSettings, Mask, TableSettings};
use cdc_runtime::Secret;

use crate::support::{
    Database, change, clustering, column, delete_row, expiring, insert, int, key_column, live, marker, now, orders,
    schema, state, text,
};

const SALT: &str = "a salt of more than sixteen bytes";

fn masked(mask: Mask) -> ColumnSettings {
    ColumnSettings { mask: Some(mask), ..ColumnSettings::default() }
}

fn named(name: &str) -> ColumnSettings {
    ColumnSettings { name: Some(name.to_owned()), ..ColumnSettings::default() }
}

fn columns(columns: impl IntoIterator<Item = (&'static str, ColumnSettings)>) -> TableSettings {
    let columns = columns.into_iter().map(|(name, settings)| (name.to_owned(), settings)).collect();
    TableSettings { columns, ..TableSettings::default() }
}

fn some(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|value| Some((*value).to_owned())).collect()
}

fn update(table: &Arc<TableSchema>, columns: Vec<(&str, ColumnState)>) -> Change {
    let row = state(table, None, columns);
    change(table, "a", ChangeBody::Row { clustering: clustering(1), row })
}

#[tokio::test]
async fn tables_and_columns_go_by_the_names_that_are_set() -> Result<()> {
    let mut database = Database::create().await?;
    let table = orders();
    let names = [("p", named("Customer")), ("v", named("amount")), ("st", named("note"))];
    let settings = TableSettings { name: Some("sales".to_owned()), ..columns(names) };
    database.config.tables.insert("shop.Orders".to_owned(), settings);
    let target = database.target().await?;
    let note = ChangeBody::Static(state(&table, None, vec![("st", live(5, text("hi")))]));
    let batch = || vec![insert(&table, "a", 1, 7, "t", 5), change(&table, "a", note.clone())];
    target.apply(batch(), &[]).await?;
    let rows = database.rows("select \"Customer\", c, note, amount, t from sales__all").await?;
    assert_eq!(rows, [some(&["a", "1", "hi", "7", "t"])]);
    assert_eq!(database.number("select count(*) from sales where _cdc_state is null").await?, 1, "still uniform");
    assert_eq!(target.apply(batch(), &[]).await?.rows_stale, 2);
    target.apply(vec![delete_row(&table, "a", 1, 6)], &[]).await?;
    assert_eq!(database.number("select count(*) from sales").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_column_left_out_is_nowhere_and_still_keeps_its_row_alive() -> Result<()> {
    let mut database = Database::create().await?;
    let table = orders();
    let settings = TableSettings { exclude: vec!["t".to_owned(), "tags".to_owned()], ..TableSettings::default() };
    database.config.tables.insert("shop.Orders".to_owned(), settings);
    let target = database.target().await?;
    let set = |element: i32, time| ComplexState {
        deletion: None,
        cells: vec![(int(element), cdc_model::Cell::live(cdc_model::WriteTime(time), text("")))],
    };
    // No marker: only what is left out makes the row one.
    target.apply(vec![update(&table, vec![("t", live(5, text("secret-t")))])], &[]).await?;
    assert_eq!(database.rows("select c, v from \"cdc_Orders\"").await?, [[Some("1".to_owned()), None]]);
    let kept = "select count(*) from information_schema.columns where table_name = 'cdc_Orders' \
        and column_name in ('t', 'tags')";
    assert_eq!(database.number(kept).await?, 0);
    let leaks = "select count(*) from \"cdc_Orders\" where position('secret'::bytea in _cdc_state) > 0";
    assert_eq!(database.number(leaks).await?, 0);
    // The last element of a set goes, and so does the row; one element of two does not take it along.
    let gone = ColumnState::Simple(cdc_model::Cell::tombstone(cdc_model::WriteTime(6), LocalTime(1)));
    target.apply(vec![update(&table, vec![("tags", ColumnState::Complex(set(1, 5)))])], &[]).await?;
    target.apply(vec![update(&table, vec![("t", gone), ("tags", ColumnState::Complex(set(2, 6)))])], &[]).await?;
    let remove = |element: i32| {
        let cells = vec![(int(element), cdc_model::Cell::tombstone(cdc_model::WriteTime(7), LocalTime(1)))];
        update(&table, vec![("tags", ColumnState::Complex(ComplexState { deletion: None, cells }))])
    };
    target.apply(vec![remove(1)], &[]).await?;
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 1);
    target.apply(vec![remove(2)], &[]).await?;
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 0);
    // And what is left out expires.
    let soon = LocalTime(now().0 + 1000);
    let row = RowState {
        columns: state(&table, None, vec![("t", ColumnState::Simple(expiring(9, soon, text("secret"))))]).columns,
        ..RowState::default()
    };
    target.apply(vec![change(&table, "a", ChangeBody::Row { clustering: clustering(2), row })], &[]).await?;
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 1);
    assert_eq!(target.sweep_expired(LocalTime(soon.0 + 1)).await?, 1);
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 0);
    Ok(())
}

#[tokio::test]
async fn masked_values_are_in_no_table_of_the_database() -> Result<()> {
    let mut database = Database::create().await?;
    let boxed = |ty| Box::new(ty);
    let set = CqlType::Set { element: boxed(CqlType::Text), frozen: false };
    let map = CqlType::Map { key: boxed(CqlType::Text), value: boxed(CqlType::Int), frozen: false };
    let regular = |name: &str, ty| column(name, ty, ColumnKind::Regular);
    let table = schema(
        "people",
        vec![key_column("p", CqlType::Text)],
        Vec::new(),
        vec![
            regular("email", CqlType::Text),
            regular("number", CqlType::Int),
            regular("phone", CqlType::Text),
            regular("city", CqlType::Text),
            regular("tags", set),
            regular("scores", map),
        ],
    );
    let hash = || masked(Mask::Hash(Secret::new(SALT)));
    let settings = columns([
        ("email", hash()),
        ("number", hash()),
        ("phone", masked(Mask::Fixed("***".to_owned()))),
        ("city", masked(Mask::Null)),
        ("tags", hash()),
        ("scores", hash()),
    ]);
    database.config.tables.insert("shop.people".to_owned(), settings);
    assert_eq!(database.config.validate(), Vec::<String>::new());
    let target = database.target().await?;
    let element = |path, value| (path, cdc_model::Cell::live(cdc_model::WriteTime(5), value));
    let cells = |cells| ColumnState::Complex(ComplexState { deletion: None, cells });
    let row = |p: &str, extra: &str| {
        let row = state(
            &table,
            Some(marker(5)),
            vec![
                ("email", live(5, text("clear-a@example.org"))),
                ("number", live(5, int(7))),
                ("phone", live(5, text("clear-phone\0"))),
                ("city", live(5, text(&format!("clear-city{extra}")))),
                ("tags", cells(vec![element(text("clear-one"), text("")), element(text("clear-two"), text(""))])),
                ("scores", cells(vec![element(text("clear-key"), int(1))])),
            ],
        );
        change(&table, p, ChangeBody::Row { clustering: cdc_model::Clustering::default(), row })
    };
    // A key that is refused takes its masked cells to the quarantine.
    let applied = target.apply(vec![row("a", ""), row("b\0", "")], &[]).await?;
    assert_eq!((applied.rows_written, applied.quarantined), (1, 1));
    let rows = database
        .rows("select length(email), length(number), phone, city, jsonb_array_length(tags) from cdc_people")
        .await?;
    assert_eq!(rows, [vec![Some("64".into()), Some("64".into()), Some("***".into()), None, Some("2".into())]]);
    let dump = "select coalesce(string_agg(t::text, ''), '') from (select o::text from cdc_people o \
        union all select encode(_cdc_state, 'escape') from cdc_people \
        union all select encode(state, 'escape') || q::text from _cdc.dlq q \
        union all select encode(state, 'escape') from _cdc.remains) as x(t)";
    let dump = database.rows(dump).await?[0][0].clone().unwrap_or_default();
    assert!(dump.len() > 500 && !dump.contains("clear"), "{dump}");
    assert_eq!(target.apply(vec![row("a", "")], &[]).await?.rows_stale, 1, "masked again, it is the same");
    // Deleted, its remains say no more.
    let deleted = RowState { deletion: Some(crate::support::deletion(4)), ..RowState::default() };
    let body = ChangeBody::Row { clustering: cdc_model::Clustering::default(), row: deleted };
    target.apply(vec![change(&table, "a", body)], &[]).await?;
    Ok(())
}

#[tokio::test]
async fn lists_and_user_defined_types_are_masked_element_by_element() -> Result<()> {
    let mut database = Database::create().await?;
    let list = |frozen| CqlType::List { element: Box::new(CqlType::Text), frozen };
    let udt = |frozen| CqlType::Udt {
        keyspace: "shop".to_owned(),
        name: "address".to_owned(),
        fields: vec![("street".to_owned(), CqlType::Text), ("number".to_owned(), CqlType::Int)],
        frozen,
    };
    let kinds = [("l", list(false)), ("fl", list(true)), ("u", udt(false)), ("fu", udt(true))];
    let masks =
        [("hash", Mask::Hash(Secret::new(SALT))), ("fixed", Mask::Fixed("***".to_owned())), ("null", Mask::Null)];
    let mut cells_of = Vec::new();
    let mut settings = TableSettings::default();
    for (kind, ty) in &kinds {
        for (mask, set) in &masks {
            let name = format!("{kind}_{mask}");
            settings.columns.insert(name.clone(), masked(set.clone()));
            cells_of.push(column(&name, ty.clone(), ColumnKind::Regular));
        }
    }
    let table = schema("masked", vec![key_column("p", CqlType::Text)], Vec::new(), cells_of);
    database.config.tables.insert("shop.masked".to_owned(), settings);
    let target = database.target().await?;

    // A list's elements are named by time, a user type's by the number of the field.
    let path = |number: u8, kind: &str| -> cdc_model::ValueBytes {
        if kind == "l" {
            [0, 0, 0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0, 0, 0, 0, number].as_slice().into()
        } else {
            [0, number].as_slice().into()
        }
    };
    let element = |kind: &str, number, time, value| {
        (path(number, kind), cdc_model::Cell::live(cdc_model::WriteTime(time), value))
    };
    let gone = |kind: &str, number, time| {
        (path(number, kind), cdc_model::Cell::tombstone(cdc_model::WriteTime(time), LocalTime(1)))
    };
    let row = |columns: Vec<(String, ColumnState)>| {
        let columns = columns.iter().map(|(name, state)| (name.as_str(), state.clone())).collect();
        let row = state(&table, Some(marker(5)), columns);
        change(&table, "a", ChangeBody::Row { clustering: cdc_model::Clustering::default(), row })
    };
    let all = |cells: &dyn Fn(&str) -> Option<ColumnState>| -> Vec<(String, ColumnState)> {
        let names = kinds.iter().flat_map(|(kind, _)| masks.iter().map(move |(mask, _)| (*kind, *mask)));
        names.filter_map(|(kind, mask)| Some((format!("{kind}_{mask}"), cells(kind)?))).collect()
    };
    let complex = |cells| Some(ColumnState::Complex(ComplexState { deletion: None, cells }));
    let part = |value: &[u8]| [&i32::try_from(value.len()).expect("short").to_be_bytes()[..], value].concat();
    let written = all(&|kind| match kind {
        "fl" => Some(live(5, [&[0, 0, 0, 1], &part(b"clear")[..]].concat().as_slice().into())),
        "fu" => Some(live(5, [part(b"clear"), part(&[0, 0, 0, 7])].concat().as_slice().into())),
        kind => {
            let second = if kind == "l" { text("clear") } else { int(7) };
            complex(vec![element(kind, 0, 5, text("clear")), element(kind, 1, 5, second)])
        }
    });
    assert_eq!(target.apply(vec![row(written.clone())], &[]).await?.rows_written, 1);

    let hashes = "select jsonb_array_length(l_hash), l_hash ->> 0 = l_hash ->> 1, length(l_hash ->> 0), \
        length(u_hash ->> 'street'), length(u_hash ->> 'number'), length(fl_hash), length(fu_hash) from cdc_masked";
    assert_eq!(database.rows(hashes).await?, [some(&["2", "t", "64", "64", "64", "64", "64"])]);
    let others = "select l_fixed, u_fixed, fl_fixed, fu_fixed, l_null, u_null, fl_null, fu_null from cdc_masked";
    let (fixed, null) = (Some("***".to_owned()), None);
    assert_eq!(database.rows(others).await?, [[vec![fixed; 4], vec![null; 4]].concat()]);
    let clear = "select count(*) from cdc_masked m where m::text like '%clear%' or position('clear' in \
        encode(coalesce(_cdc_state, ''), 'escape')) > 0";
    assert_eq!(database.number(clear).await?, 0);

    // An element goes, another is overwritten, and the same again changes nothing.
    let later = all(&|kind| match kind {
        "l" | "u" => complex(vec![element(kind, 0, 6, text("other")), gone(kind, 1, 6)]),
        _ => None,
    });
    let before = database.rows("select l_hash ->> 0, u_hash ->> 'street' from cdc_masked").await?;
    assert_eq!(target.apply(vec![row(later.clone())], &[]).await?.rows_written, 1);
    let after = database.rows("select l_hash ->> 0, u_hash ->> 'street' from cdc_masked").await?;
    assert!(before[0].iter().zip(&after[0]).all(|(before, after)| after.is_some() && before != after));
    assert_eq!(after[0][0], after[0][1], "the same text, the same hash");
    let shrunk = "select jsonb_array_length(l_hash), u_hash ->> 'number', l_fixed, l_null from cdc_masked";
    let expected = vec![Some("1".to_owned()), None, Some("***".to_owned()), None];
    assert_eq!(database.rows(shrunk).await?, [expected]);
    assert_eq!(target.apply(vec![row(later), row(written)], &[]).await?.rows_stale, 1);
    // The last elements go, and with them what stands for them.
    let none = all(&|kind| matches!(kind, "l" | "u").then(|| complex(vec![gone(kind, 0, 7)])).flatten());
    target.apply(vec![row(none)], &[]).await?;
    let empty = "select l_hash, u_hash, l_fixed, u_fixed from cdc_masked";
    assert_eq!(database.rows(empty).await?, [vec![None; 4]]);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_set_is_told_with_key_and_fix() -> Result<()> {
    let database = Database::create().await?;
    let refused = |settings: TableSettings| {
        let mut config = database.config.clone();
        config.tables = BTreeMap::from([("shop.Orders".to_owned(), settings)]);
        let faults = config.validate();
        if faults.is_empty() { config.validate_with(&[TableSchema::clone(&orders())]) } else { faults }
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let exclude = |columns: &[&str]| TableSettings { exclude: names(columns), ..TableSettings::default() };
    let cases = [
        (exclude(&["p"]), "postgres.tables.shop.Orders.exclude names `p`, a column of the primary key"),
        (exclude(&["tagz"]), "exclude names `tagz`, a column shop.Orders does not have (did you mean `tags`?)"),
        (TableSettings { include: Some(names(&["v"])), ..exclude(&["t"]) }, "exclude stands beside include"),
        (columns([("v", named("t"))]), "makes `t` the name of both `t` and `v`"),
        (columns([("v", named("_cdc_x"))]), "columns.v.name is `_cdc_x`"),
        (columns([("c", masked(Mask::Null))]), "columns.c.mask is set for a column of the primary key"),
        (columns([("tags", masked(Mask::Null))]), "columns.tags.mask hides a set or map"),
        (columns([("v", masked(Mask::Hash(Secret::new("short"))))]), "columns.v.mask.hash.salt is shorter than 16"),
    ];
    for (settings, sentence) in cases {
        let faults = refused(settings);
        assert!(faults.len() == 1 && faults[0].contains(sentence), "{sentence}: {faults:?}");
    }
    let mut config = database.config.clone();
    config.tables.insert("shop.Order".to_owned(), TableSettings::default());
    let faults = config.validate_with(&[TableSchema::clone(&orders())]);
    assert!(faults[0].contains("(did you mean `shop.Orders`?)"), "{faults:?}");
    // At run time, too: nothing is created.
    let mut config = database.config.clone();
    config.tables.insert("shop.Orders".to_owned(), exclude(&["p"]));
    let target = cdc_postgres::Target::connect(&config).await?;
    let error = target.prepare_table(orders()).await.expect_err("the key cannot be left out");
    assert!(error.to_string().contains("exclude names `p`"), "{error}");
    Ok(())
}
