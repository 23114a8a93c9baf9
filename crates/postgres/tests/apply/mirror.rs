//! What we compute of a row is what PostgreSQL computes of it.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Result, ensure};
use cdc_model::{
    ChangeBody, Clustering, Column, ColumnKind, CqlType, RowKey, RowState, TableSchema, TokenRange, ValueBytes,
};
use cdc_postgres::{Leaf, Mirror, Replacement, Strategy};
use rand::{RngExt as _, SeedableRng as _};

use crate::{
    support::{Database, change, column, int, key_column, live, marker, schema, state, text},
    types::cases,
};

const TIME: i64 = 1_700_000_000_000_000;
const SHIFT: u8 = 56;

fn table_of_all_types(cases: &[(CqlType, ValueBytes)]) -> Arc<TableSchema> {
    let columns = cases.iter().enumerate();
    let mut columns: Vec<Column> =
        columns.map(|(at, (ty, _))| column(&format!("c{at}"), ty.clone(), ColumnKind::Regular)).collect();
    columns.push(column("s", CqlType::Decimal, ColumnKind::Static));
    let clustering = vec![key_column("k", CqlType::Decimal), key_column("i", CqlType::Inet)];
    schema("every_type", vec![key_column("p", CqlType::Text)], clustering, columns)
}

/// Rows with each value, or without it, and keys of types whose bytes PostgreSQL does not keep.
fn rows(table: &TableSchema, cases: &[(CqlType, ValueBytes)], seed: u64) -> Vec<(RowKey, RowState)> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut rows = Vec::new();
    for number in 0..200u8 {
        let partition = ValueBytes::from(format!("p{}", number % 20).as_bytes());
        let decimal = [&[0, 0, 0, number % 3][..], &[number]].concat();
        let clustering = Clustering::new([Some(&decimal[..]), Some(&[10, 0, 0, number])]);
        let names: Vec<String> = (0..cases.len()).map(|at| format!("c{at}")).collect();
        let columns = names.iter().zip(cases).filter(|_| random.random_range(0..4) > 0);
        let columns = columns.map(|(name, (_, value))| (name.as_str(), live(TIME, value.clone()))).collect();
        let clustering = Some(clustering);
        rows.push((RowKey { partition: partition.clone(), clustering }, state(table, Some(marker(TIME)), columns)));
        if number < 20 {
            let value = ValueBytes::from(decimal);
            rows.push((RowKey { partition, clustering: None }, state(table, None, vec![("s", live(TIME, value))])));
        }
    }
    rows
}

fn body(key: &RowKey, row: &RowState) -> ChangeBody {
    match key.clustering.clone() {
        Some(clustering) => ChangeBody::Row { clustering, row: row.clone() },
        None => ChangeBody::Static(row.clone()),
    }
}

fn expected_leaves(
    mirror: &Mirror,
    strategy: Strategy,
    kind: ColumnKind,
    rows: &[(RowKey, RowState)],
) -> HashMap<i64, Leaf> {
    let mut leaves: HashMap<i64, Leaf> = HashMap::new();
    for (key, state) in rows.iter().filter(|(key, _)| key.kind() == kind) {
        let hashed = mirror.hash(strategy, key.clone(), state.clone()).expect("PostgreSQL holds it");
        leaves.entry(cdc_model::token(&key.partition).0 >> SHIFT).or_default().add(hashed);
    }
    leaves
}

#[tokio::test]
async fn every_type_hashes_as_in_postgresql() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let cases: Vec<(CqlType, ValueBytes)> = cases().into_iter().map(|(ty, value, ..)| (ty, value)).collect();
    let table = table_of_all_types(&cases);
    let rows = rows(&table, &cases, 7);
    let partition = |key: &RowKey| String::from_utf8(key.partition.to_vec()).expect("text");
    let changes = rows.iter().map(|(key, row)| change(&table, &partition(key), body(key, row))).collect();
    ensure!(target.apply(changes, &[]).await?.quarantined == 0);

    let native = target.mirror(Arc::clone(&table)).await?;
    ensure!(native.is_native(), "the hash is not PostgreSQL's");
    for mirror in [native.clone(), native.with_portable_digest()] {
        for strategy in [Strategy::Checksum, Strategy::Version, Strategy::RowCount] {
            for kind in [ColumnKind::Regular, ColumnKind::Static] {
                let leaves = mirror.leaves(strategy, kind, TokenRange::RING, SHIFT).await?;
                let expected = expected_leaves(&mirror, strategy, kind, &rows);
                ensure!(leaves == expected, "{strategy:?} {kind:?} native: {}", mirror.is_native());
            }
        }
        let leaves: Vec<i64> = (-128..128).collect();
        let stored = mirror.rows(Strategy::Checksum, ColumnKind::Regular, TokenRange::RING, SHIFT, &leaves).await?;
        ensure!(stored.len() == 200);
        let keys: Vec<RowKey> = rows.iter().map(|(key, _)| key.clone()).collect();
        for ((key, state), seen) in rows.iter().zip(mirror.look(&keys).await?) {
            let expected = mirror.expect(key.clone(), state.clone());
            ensure!(expected.columns.is_some() && seen.columns == expected.columns, "{:?} {seen:?}", expected.columns);
            ensure!(seen.state == expected.state && seen.expires_at.is_none());
        }
    }
    Ok(())
}

/// Without the key as its seed the hash of a row would be a sum of its columns': values that changed places between two
/// rows would leave a leaf as it is.
#[tokio::test]
async fn values_swapped_between_rows_change_their_leaf() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let columns = vec![column("a", CqlType::Int, ColumnKind::Regular), column("b", CqlType::Text, ColumnKind::Regular)];
    let table = schema("swapped", vec![key_column("p", CqlType::Text)], Vec::new(), columns);
    let insert = |p: &str, a: i32, b: &str| {
        let row = state(&table, Some(marker(TIME)), vec![("a", live(TIME, int(a))), ("b", live(TIME, text(b)))]);
        change(&table, p, ChangeBody::Row { clustering: Clustering::default(), row })
    };
    target.apply(vec![insert("x", 1, "one"), insert("y", 2, "two")], &[]).await?;
    let mirror = target.mirror(Arc::clone(&table)).await?;
    let leaves = || mirror.leaves(Strategy::Checksum, ColumnKind::Regular, TokenRange::RING, 63);
    let unseeded = "select sum(hash_record_extended(row(a, b), 0)) from cdc_swapped";
    let (before, unseeded_before) = (leaves().await?, database.rows(unseeded).await?);
    database
        .client()
        .await?
        .batch_execute("update cdc_swapped set b = case p when 'x' then 'two' else 'one' end")
        .await?;
    ensure!(before != leaves().await?);
    ensure!(unseeded_before == database.rows(unseeded).await?, "this is what the seed is for");
    Ok(())
}

#[tokio::test]
async fn a_row_is_replaced_only_if_it_is_still_what_it_was() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let columns = vec![column("a", CqlType::Int, ColumnKind::Regular)];
    let table = schema("replaced", vec![key_column("p", CqlType::Text)], Vec::new(), columns);
    let row = |time, a: i32| state(&table, Some(marker(time)), vec![("a", live(time, int(a)))]);
    let write = |time, a| {
        let body = ChangeBody::Row { clustering: Clustering::default(), row: row(time, a) };
        target.apply(vec![change(&table, "x", body)], &[])
    };
    let mirror = target.mirror(Arc::clone(&table)).await?;
    let key = RowKey { partition: b"x"[..].into(), clustering: Some(Clustering::default()) };
    let keys = [key.clone()];
    let look = async || Ok::<_, anyhow::Error>(mirror.look(&keys).await?.remove(0).state);
    let replace = |known, state| vec![Replacement { key: key.clone(), known, state }];
    write(TIME + 5, 1).await?;
    let known = look().await?;
    write(TIME + 6, 2).await?;
    mirror.replace(&replace(known, row(TIME, 3))).await?;
    ensure!(look().await? == row(TIME + 6, 2), "a change has come in between");
    // Backwards, and away, and from nothing.
    mirror.replace(&replace(look().await?, row(TIME, 3))).await?;
    ensure!(look().await? == row(TIME, 3));
    let deletion = Some(cdc_model::DeletionTime { time: cdc_model::WriteTime(TIME), local: cdc_model::LocalTime(5) });
    let gone = RowState { deletion, ..RowState::default() };
    mirror.replace(&replace(look().await?, gone.clone())).await?;
    let seen = mirror.look(&keys).await?.remove(0);
    ensure!(seen.columns.is_none() && seen.state == gone);
    write(TIME, 4).await?;
    ensure!(look().await? == gone, "it was deleted as of then");
    mirror.replace(&replace(gone, row(TIME, 3))).await?;
    ensure!(look().await? == row(TIME, 3));
    write(TIME + 1, 5).await?;
    ensure!(look().await? == row(TIME + 1, 5), "what is newer wins");
    Ok(())
}
