//! What PostgreSQL cannot hold.

use anyhow::Result;
use cdc_model::{ChangeBody, ColumnKind, CqlType, decode_row};

use crate::support::{Database, change, column, insert, int, key_column, live, marker, orders, schema, state, text};

#[tokio::test]
async fn text_with_nul_is_quarantined_once_and_all_else_flows() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let batch = || (0..10).map(|c| insert(&table, "a", c, c, if c == 4 { "bad\0" } else { "good" }, 5));
    let applied = target.apply(batch().collect(), &[]).await?;
    assert_eq!((applied.rows_written, applied.quarantined), (9, 1));
    target.apply(batch().collect(), &[]).await?;
    let client = database.client().await?;
    let parked = client.query("select code, column_name, message, state, position from _cdc.dlq", &[]).await?;
    assert_eq!(parked.len(), 1);
    assert_eq!((parked[0].get(0), parked[0].get(1)), ("VALUE_UNREPRESENTABLE", "t"));
    assert!(!parked[0].get::<_, &str>(2).contains("bad"));
    assert_eq!(parked[0].get::<_, &str>(4), "1:100");
    let ChangeBody::Row { row, .. } = batch().nth(4).expect("ten").body else { anyhow::bail!("a row") };
    assert_eq!(decode_row(&table, parked[0].get::<_, Vec<u8>>(3).into())?, row);
    Ok(())
}

#[tokio::test]
async fn what_only_postgresql_refuses_is_found_by_bisection() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.prepare_table(table.clone()).await?;
    let constraint = "alter table \"cdc_Orders\" add check (v <> 13)";
    database.client().await?.batch_execute(constraint).await?;
    // And a key that no index page takes: random, so that it does not compress.
    let long: String = (0..9000).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    let mut batch: Vec<_> = (0..40).map(|c| insert(&table, "a", c, c, "t", 5)).collect();
    batch.push(insert(&table, &long, 1, 1, "t", 5));
    let applied = target.apply(batch, &[]).await?;
    assert_eq!((applied.rows_written, applied.quarantined), (39, 2));
    let codes = database.rows("select code from _cdc.dlq order by code").await?;
    assert_eq!(codes, [[Some("SQLSTATE_23514".to_owned())], [Some("SQLSTATE_54000".to_owned())]]);
    Ok(())
}

#[tokio::test]
async fn partitions_whose_keys_are_equal_in_postgresql_do_not_mix() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = schema(
        "prices",
        vec![key_column("price", CqlType::Decimal)],
        Vec::new(),
        vec![column("v", CqlType::Int, ColumnKind::Regular)],
    );
    let decimal = |scale: i32, unscaled: u8| [&scale.to_be_bytes()[..], &[unscaled]].concat();
    let row = |key: Vec<u8>, v: i32| {
        let row = state(&table, Some(marker(5)), vec![("v", live(5, int(v)))]);
        let clustering = cdc_model::Clustering::default();
        let mut change = change(&table, "", ChangeBody::Row { clustering, row });
        change.partition_key = key.into();
        change
    };
    let applied = target.apply(vec![row(decimal(1, 15), 1)], &[]).await?;
    assert_eq!((applied.rows_written, applied.quarantined), (1, 0));
    let applied = target.apply(vec![row(decimal(1, 15), 1), row(vec![0, 0, 0, 2, 0, 150], 2)], &[]).await?;
    assert_eq!((applied.rows_stale, applied.quarantined), (1, 1));
    assert_eq!(
        database.rows("select price, v from cdc_prices").await?,
        [[Some("1.5".to_owned()), Some("1".to_owned())]]
    );
    let applied = target.apply(vec![row(Vec::new(), 1)], &[]).await?;
    assert_eq!(applied.quarantined, 1);
    let some = |texts: [&str; 2]| texts.map(|text| Some(text.to_owned())).to_vec();
    assert_eq!(
        database.rows("select error_type, code from _cdc.dlq order by code").await?,
        [["CONSTRAINT_VIOLATION", "KEY_COLLISION"], ["CONSTRAINT_VIOLATION", "KEY_UNREPRESENTABLE"]].map(some)
    );
    Ok(())
}

#[tokio::test]
async fn a_re_created_table_is_not_mixed_with_the_old_one() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.apply(vec![insert(&table, "a", 1, 1, "t", 5)], &[]).await?;
    let mut newer = cdc_model::TableSchema::clone(&table);
    newer.id = cdc_model::TableId(uuid::Uuid::from_u128(99));
    let newer = std::sync::Arc::new(newer);
    let error = target.prepare_table(newer.clone()).await.expect_err("the old rows are there");
    assert!(error.to_string().contains("created again"), "{error}");
    database.client().await?.batch_execute("drop table \"cdc_Orders\" cascade").await?;
    database.client().await?.batch_execute("drop table \"cdc_Orders__static\"").await?;
    target.prepare_table(newer).await?;
    Ok(())
}

#[tokio::test]
async fn a_column_added_later_is_added_to_the_target_and_the_view() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.apply(vec![insert(&table, "a", 1, 1, "t", 5)], &[]).await?;
    let mut newer = cdc_model::TableSchema::clone(&table);
    newer.columns.push(column("Extra \"x\"", CqlType::Text, ColumnKind::Regular));
    let newer = std::sync::Arc::new(table.evolve(newer)?);
    let row = state(&newer, None, vec![("Extra \"x\"", live(6, text("y")))]);
    let clustering = crate::support::clustering(1);
    let update = change(&newer, "a", ChangeBody::Row { clustering, row });
    // Old and new versions in one batch, as after a change of schema.
    target.apply(vec![update, insert(&table, "a", 2, 2, "t", 5)], &[]).await?;
    let rows = database.rows("select c, v, \"Extra \"\"x\"\"\" from \"cdc_Orders__all\" order by c").await?;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(rows, [[some("1"), some("1"), some("y")], [some("2"), some("2"), None]]);
    Ok(())
}
