//! Reads one table of Cassandra whole.

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use scylla::client::session::Session;
use scylla::frame::response::result::ColumnType;
use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlValue, Row};

use super::canonical;
use super::{Cells, Rows};

/// Token ranges read, and how many at a time.
const RANGES: i64 = 32;
const RANGES_AT_A_TIME: usize = 3;
const PAGE_ROWS: i32 = 2_000;

pub(super) struct Shape {
    pub(super) keyspace: String,
    pub(super) table: String,
    pub(super) partition: Vec<Column>,
    clustering: Vec<Column>,
    /// Regular columns.
    pub(super) columns: Vec<Column>,
    pub(super) statics: Vec<Column>,
    consistency: Consistency,
}

#[derive(Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) ty: ColumnType<'static>,
    /// A collection or user type stored element by element, which Cassandra cannot tell from NULL when it is empty.
    pub(super) multi_cell: bool,
}

impl Shape {
    pub(super) async fn load(session: &Session, keyspace: &str, table: &str) -> anyhow::Result<Self> {
        let described = session
            .query_unpaged(
                "select column_name, kind, position, type from system_schema.columns \
                 where keyspace_name = ? and table_name = ?",
                (keyspace, table),
            )
            .await?
            .into_rows_result()?;
        let mut described: Vec<(String, String, i32, String)> = described.rows()?.collect::<Result<_, _>>()?;
        anyhow::ensure!(!described.is_empty(), "table {keyspace}.{table} does not exist in Cassandra");
        described.sort_by_key(|(_, _, position, _)| *position);

        // The driver knows the columns' types, except whether they are frozen, which the protocol does not say.
        let select = format!("select * from {}.{}", quote(keyspace), quote(table));
        let select = session.prepare(select).await?;
        let specs = select.get_current_result_set_col_specs();
        let of_kind = |wanted: &str| -> anyhow::Result<Vec<Column>> {
            let columns = described.iter().filter(|(_, kind, _, _)| kind == wanted);
            columns
                .map(|(name, _, _, type_name)| {
                    let (_, spec) =
                        specs.get().get_by_name(name).with_context(|| format!("column {name} is not selectable"))?;
                    let ty = spec.typ().clone();
                    let complex = matches!(ty, ColumnType::Collection { .. } | ColumnType::UserDefinedType { .. });
                    Ok(Column { name: name.clone(), ty, multi_cell: complex && !type_name.starts_with("frozen<") })
                })
                .collect()
        };
        let several_nodes = session.get_cluster_state().get_nodes_info().len() > 1;
        Ok(Self {
            keyspace: keyspace.to_owned(),
            table: table.to_owned(),
            partition: of_kind("partition_key")?,
            clustering: of_kind("clustering")?,
            columns: of_kind("regular")?,
            statics: of_kind("static")?,
            consistency: if several_nodes { Consistency::All } else { Consistency::LocalOne },
        })
    }

    /// The primary key's columns.
    pub(super) fn key(&self) -> Vec<Column> {
        self.partition.iter().chain(&self.clustering).cloned().collect()
    }
}

pub(super) async fn rows(session: &Session, shape: &Shape) -> anyhow::Result<Rows> {
    read(session, shape, &shape.key(), &shape.columns).await
}

/// Partitions with at least one static column set. Every row of a partition repeats them; `SELECT DISTINCT` would not, but
/// fails on 5.0.5 once a partition lies on disk and in memory (`UnfilteredRowIterator ... must be closed`).
pub(super) async fn static_rows(session: &Session, shape: &Shape) -> anyhow::Result<Rows> {
    let mut rows = read(session, shape, &shape.partition, &shape.statics).await?;
    rows.retain(|_, cells| cells.iter().any(Option::is_some));
    Ok(rows)
}

async fn read(session: &Session, shape: &Shape, key: &[Column], columns: &[Column]) -> anyhow::Result<Rows> {
    let names = |columns: &[Column]| columns.iter().map(|column| quote(&column.name)).collect::<Vec<_>>().join(", ");
    let selected: Vec<Column> = key.iter().chain(columns).cloned().collect();
    let token = format!("token({})", names(&shape.partition));
    let cql = format!(
        "select {} from {}.{} where {token} > ? and {token} <= ?",
        names(&selected),
        quote(&shape.keyspace),
        quote(&shape.table),
    );
    let mut statement = session.prepare(cql).await?;
    statement.set_consistency(shape.consistency);
    statement.set_page_size(PAGE_ROWS);

    let statement = &statement;
    let parts: Vec<Vec<(Box<str>, Cells)>> = stream::iter(token_ranges())
        .map(|range| read_range(session, statement, range, key, columns))
        .buffer_unordered(RANGES_AT_A_TIME)
        .try_collect()
        .await
        .with_context(|| format!("read {}.{} from Cassandra", shape.keyspace, shape.table))?;
    Ok(parts.into_iter().flatten().collect())
}

async fn read_range(
    session: &Session,
    statement: &PreparedStatement,
    range: (i64, i64),
    key: &[Column],
    columns: &[Column],
) -> anyhow::Result<Vec<(Box<str>, Cells)>> {
    let mut rows = session.execute_iter(statement.clone(), range).await?.rows_stream::<Row>()?;
    let mut out = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let (key_values, values) = row.columns.split_at(key.len());
        // A partition with nothing but static columns answers one row without clustering.
        if let Some(key) =
            key_values.iter().map(|value| value.as_ref().map(canonical::value)).collect::<Option<Vec<_>>>()
        {
            let cells = columns.iter().zip(values).map(|(column, value)| cell(column, value.as_ref())).collect();
            out.push((key.join(" ").into(), cells));
        }
    }
    Ok(out)
}

fn cell(column: &Column, value: Option<&CqlValue>) -> Option<Box<str>> {
    let value = value.filter(|value| !matches!(value, CqlValue::Empty))?;
    let canonical = canonical::value(value);
    (!column.multi_cell || !canonical::is_empty(&canonical)).then(|| canonical.into())
}

/// The ring in equal parts, each without its start and with its end.
fn token_ranges() -> impl Iterator<Item = (i64, i64)> {
    let step = i64::MAX / RANGES * 2;
    (0..RANGES).map(move |n| {
        let start = i64::MIN + n * step;
        (start, if n == RANGES - 1 { i64::MAX } else { start + step })
    })
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
