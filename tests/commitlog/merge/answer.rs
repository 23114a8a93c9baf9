//! What Cassandra answers and what the model shows, as rows that can be compared.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use cdc_model::{Change, ColumnId, CqlType, LocalTime, TableSchema, ValueBytes, VisibleColumn, compare_values};
use cdc_workload::every_change::{Session, select};

use super::SOON;
use super::partition::{Partition, expiries};

/// The clustering is `None` where a partition has static columns and no row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) partition: Vec<Vec<u8>>,
    pub(super) row: Option<Vec<Vec<u8>>>,
}

/// Columns by name, serialised; NULL is left out.
type Columns = BTreeMap<String, Vec<u8>>;
pub(super) type Rows = BTreeMap<Key, Columns>;

/// The whole table and the second in which it was read, at which nothing expires.
pub(super) async fn ask(
    session: &Session,
    table: &TableSchema,
    changes: impl Iterator<Item = &Change>,
) -> anyhow::Result<(Rows, LocalTime)> {
    let begin = now();
    let soon = changes.flat_map(expiries).filter(|local| local.0 < begin.0 + SOON).max();
    while soon.is_some_and(|soon| now().0 <= soon.0 + 1) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let asked = now();
    let names = |columns: &[cdc_model::KeyColumn]| columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
    let (partition_key, clustering) = (names(&table.partition_key), names(&table.clustering));
    let mut rows = Rows::new();
    for answer in select(session, &table.keyspace, &table.name).await? {
        let mut columns: Columns = answer.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let mut take = |names: &[String]| names.iter().map(|name| columns.remove(name)).collect::<Option<Vec<_>>>();
        let partition = take(&partition_key).context("a key without a value")?;
        let row = take(&clustering);
        let twice = rows.insert(Key { partition, row }, columns);
        anyhow::ensure!(twice.is_none(), "{} answers a row twice", table.full_name());
    }
    Ok((rows, asked))
}

fn now() -> LocalTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
    LocalTime(i64::try_from(since.as_secs()).expect("the clock is before the year 292 billion"))
}

/// As `SELECT *` does it: rows with the static columns of their partition, which alone are a row, too.
pub(super) fn show(table: &TableSchema, key: &[u8], merged: &Partition, now: LocalTime, rows: &mut Rows) {
    let partition = table.split_partition_key(key).expect("a key of the log is whole");
    let partition: Vec<Vec<u8>> = partition.iter().map(|value| value.to_vec()).collect();
    let fixed = merged.fixed.visible(now);
    let fixed: Columns = fixed.into_iter().flatten().map(|column| serialised(table, column)).collect();
    let visible: Vec<_> =
        merged.rows.iter().filter_map(|(clustering, row)| Some((clustering, row.visible(now)?))).collect();
    if visible.is_empty() && !fixed.is_empty() {
        rows.insert(Key { partition: partition.clone(), row: None }, fixed.clone());
    }
    for (clustering, columns) in visible {
        let values = clustering.values().map(|value| value.map(Vec::from)).collect::<Option<Vec<_>>>();
        let mut columns: Columns = columns.into_iter().map(|column| serialised(table, column)).collect();
        columns.extend(fixed.clone());
        rows.insert(Key { partition: partition.clone(), row: Some(values.expect("no compact table")) }, columns);
    }
}

/// A column as the native protocol sends it.
fn serialised(table: &TableSchema, (id, column): (ColumnId, VisibleColumn)) -> (String, Vec<u8>) {
    let (name, ty) = (&table.column(id).name, &table.column(id).ty);
    let value = match column {
        VisibleColumn::Simple(value) => value.to_vec(),
        VisibleColumn::Counter(total) => total.to_be_bytes().to_vec(),
        VisibleColumn::Complex(mut elements) => {
            let order = match ty {
                CqlType::List { .. } => &CqlType::TimeUuid,
                CqlType::Set { element, .. } => element,
                CqlType::Map { key, .. } => key,
                _ => &CqlType::SmallInt,
            };
            elements.sort_by(|(a, _), (b, _)| compare_values(order, a, b));
            let count = i32::try_from(elements.len()).expect("few elements").to_be_bytes();
            match ty {
                CqlType::List { .. } => parts(&count, elements.iter().map(|(_, value)| Some(value))),
                CqlType::Set { .. } => parts(&count, elements.iter().map(|(path, _)| Some(path))),
                CqlType::Map { .. } => {
                    parts(&count, elements.iter().flat_map(|(path, value)| [Some(path), Some(value)]))
                }
                CqlType::Udt { fields, .. } => {
                    let at = |field: usize| {
                        let path = u16::try_from(field).expect("few fields").to_be_bytes();
                        elements.iter().find(|(own, _)| own[..] == path).map(|(_, value)| value)
                    };
                    parts(&[], (0..fields.len()).map(at))
                }
                other => unreachable!("{other:?} has no elements"),
            }
        }
    };
    (name.clone(), value)
}

fn parts<'a>(count: &[u8], parts: impl Iterator<Item = Option<&'a ValueBytes>>) -> Vec<u8> {
    let mut out = count.to_vec();
    for part in parts {
        let length = part.map_or(-1, |part| i32::try_from(part.len()).expect("short parts"));
        out.extend(length.to_be_bytes());
        out.extend_from_slice(part.map_or(&[], |part| part));
    }
    out
}

pub(super) fn print_difference(model: Option<&Columns>, cassandra: Option<&Columns>) {
    let (Some(model), Some(cassandra)) = (model, cassandra) else {
        println!("  model:     {model:?}\n  Cassandra: {cassandra:?}");
        return;
    };
    for name in model.keys().chain(cassandra.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (model, cassandra) = (model.get(name), cassandra.get(name));
        if model != cassandra {
            println!("  {name}\n    model:     {model:?}\n    Cassandra: {cassandra:?}");
        }
    }
}
