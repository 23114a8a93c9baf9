//! Claims, fencing and positions.

use std::time::{Duration, Instant};

use anyhow::Result;
use cdc_model::{LocalTime, Marker, NodeId};
use cdc_postgres::{Advance, ApplyError, Delivery, Disposition, StreamName};
use uuid::Uuid;

use crate::support::{Database, delete_partition, delete_row, insert, orders};

#[tokio::test]
async fn positions_move_with_the_rows_and_only_for_the_latest_claim() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let stream = StreamName("node:1".to_owned());
    let claim = target.claim(&stream).await?;
    assert_eq!((claim.epoch, claim.position.as_deref()), (1, None));
    let advance = |claim, position: &str| Advance { claim, position: position.to_owned() };
    target.apply(vec![insert(&table, "a", 1, 1, "t", 5)], &[advance(claim.clone(), "1:10")]).await?;
    target.apply(Vec::new(), &[advance(claim.clone(), "1:20")]).await?;

    let newer = target.claim(&stream).await?;
    assert_eq!((newer.epoch, newer.position.as_deref()), (2, Some("1:20")));
    let refused = target.apply(vec![insert(&table, "a", 2, 1, "t", 5)], &[advance(claim.clone(), "1:30")]).await;
    assert!(matches!(refused, Err(ApplyError::Fenced { .. })), "{refused:?}");
    let many = (0..3000).map(|c| insert(&table, &format!("p{c}"), 1, 1, "t", 5)).collect();
    let refused = target.apply(many, &[advance(claim, "1:30")]).await;
    assert!(matches!(refused, Err(ApplyError::Fenced { .. })), "{refused:?}");
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 1);

    let many = (0..3000).map(|c| insert(&table, &format!("p{c}"), 1, 1, "t", 5)).collect();
    target.apply(many, &[advance(newer, "1:40")]).await?;
    assert_eq!(target.claim(&stream).await?.position.as_deref(), Some("1:40"));
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, 3001);
    Ok(())
}

#[tokio::test]
async fn a_marker_is_recorded_with_the_position_that_passes_it_and_forgotten_after_a_day() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let (table, stream) = (orders(), StreamName("node:1".to_owned()));
    let marker = |id, node| Marker { id: Uuid::from_u128(id), node: NodeId(Uuid::from_u128(node)) };
    let lost = target.claim(&stream).await?;
    let claim = target.claim(&stream).await?;
    let deliver = async |claim, rows: i32, markers| {
        let commit = [Advance { claim, position: "1:10".to_owned() }];
        let changes = (0..rows).map(|c| insert(&table, "a", c, 1, "t", 5)).collect();
        target.deliver(Delivery { changes, commit: &commit, markers, ..Delivery::default() }).await
    };
    let refused = deliver(lost, 1, vec![marker(1, 1)]).await;
    assert!(matches!(refused, Err(ApplyError::Fenced { .. })), "{refused:?}");
    assert!(target.marked_nodes(Uuid::from_u128(1)).await?.is_empty());
    assert_eq!(target.positions(vec![stream.clone()]).await?.len(), 0);

    // Alone, with rows, with more rows than one transaction takes, and again.
    deliver(claim.clone(), 0, vec![marker(1, 1)]).await?;
    deliver(claim.clone(), 10, vec![marker(1, 2), marker(2, 2)]).await?;
    deliver(claim.clone(), 3000, vec![marker(1, 3)]).await?;
    deliver(claim.clone(), 10, vec![marker(1, 2)]).await?;
    let nodes: Vec<u128> = target.marked_nodes(Uuid::from_u128(1)).await?.iter().map(|n| n.0.as_u128()).collect();
    assert_eq!(nodes, [1, 2, 3]);
    assert_eq!(target.positions(vec![stream.clone()]).await?[&stream], "1:10");

    let client = database.client().await?;
    client.batch_execute("update _cdc.barriers set at = at - interval '25 hours' where node::text like '%1'").await?;
    target.purge(LocalTime(0), 0).await?;
    assert_eq!(database.number("select count(*) from _cdc.barriers").await?, 3);
    // A batch of which something is set aside does not move the position, and so does not pass the marker.
    client.batch_execute("alter table \"cdc_Orders\" add constraint c check (c < 5000)").await?;
    let commit = [Advance { claim, position: "1:20".to_owned() }];
    let (changes, markers) = (vec![insert(&table, "a", 5000, 1, "t", 5)], vec![marker(3, 1)]);
    let applied = target.deliver(Delivery { changes, commit: &commit, markers, ..Delivery::default() }).await?;
    assert_eq!(applied.quarantined, 1);
    assert!(target.marked_nodes(Uuid::from_u128(3)).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_lost_table_halts_and_leaves_the_position() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let stream = StreamName("node:1".to_owned());
    let claim = target.claim(&stream).await?;
    target.prepare_table(table.clone()).await?;
    database.client().await?.batch_execute("drop table \"cdc_Orders\" cascade").await?;
    let advance = Advance { claim, position: "1:10".to_owned() };
    let error = target.apply(vec![insert(&table, "a", 1, 1, "t", 5)], &[advance]).await.expect_err("no table");
    assert_eq!(error.disposition(), Disposition::Halt, "{error}");
    assert!(error.to_string().contains("cdc_Orders"), "{error}");
    assert_eq!(target.claim(&stream).await?.position, None);
    Ok(())
}

#[tokio::test]
async fn an_unreachable_server_is_named_with_the_fix_and_without_the_password() -> Result<()> {
    let database = Database::create().await?;
    let mut config = database.config.clone();
    config.password = Some(cdc_runtime::Secret::new("wrong-hunter2"));
    let error = database_error(&config).await;
    assert!(error.contains("as user postgres") && error.contains("check postgres.username"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    config.port = 1;
    let error = database_error(&config).await;
    assert!(error.contains("127.0.0.1:1/") && error.contains("check postgres.host"), "{error}");
    Ok(())
}

async fn database_error(config: &cdc_postgres::PostgresConfig) -> String {
    match cdc_postgres::Target::connect(config).await {
        Ok(_) => "connected".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// On connections that planned their statements while all was empty.
#[tokio::test]
async fn a_row_is_looked_up_by_its_key_however_large_the_tables_have_grown() -> Result<()> {
    const BATCHES: i32 = 10;
    const ROWS: i32 = 200;
    let database = Database::create().await?;
    let mut config = database.config.clone();
    config.pool_size = 1;
    let target = cdc_postgres::Target::connect(&config).await?;
    let table = orders();
    for batch in 0..BATCHES {
        let p = |row: i32| format!("p{}", batch * ROWS + row);
        let rows = (0..ROWS).map(|row| {
            if row % 2 == 0 { insert(&table, &p(row), 1, 1, "t", 5) } else { delete_row(&table, &p(row), 1, 5) }
        });
        target.apply(rows.collect(), &[]).await?;
        let deletions = (0..ROWS / 2).map(|row| delete_partition(&table, &format!("q{batch}-{row}"), 5));
        target.apply(deletions.collect(), &[]).await?;
    }
    drop(target);
    // Connections count what they did when they end, at the latest.
    let connected =
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'cdc'";
    let deadline = Instant::now() + Duration::from_secs(30);
    while database.number(connected).await? > 0 {
        assert!(Instant::now() < deadline, "its connection stays open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let read = database
        .number("select sum(idx_tup_read) from pg_stat_user_indexes where schemaname in ('_cdc', 'public')")
        .await?;
    assert!(read <= 100, "{read} entries read for keys that were new");
    Ok(())
}
