//! Compares every row and cell of both stores.
//!
//! Cassandra is read through its driver by token range, PostgreSQL as text; each value is brought to one canonical text by
//! rules written here alone, see [`canonical`]. What counts as equal is what Cassandra itself cannot tell apart: a NULL and
//! an empty collection that is not frozen, a user type's missing and NULL field, 1.0 and 1.00.
//!
//! Both stores are read at different instants, while rows expire. So a difference counts only when it is there again each
//! time the tables are read anew over a few seconds.

mod canonical;
mod cassandra;
mod json;
mod postgres;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use scylla::client::session::Session;

/// One canonical text per column, `None` for NULL, in the order of [`cassandra::Shape::columns`].
type Cells = Vec<Option<Box<str>>>;
/// Rows by the canonical text of their primary key.
type Rows = HashMap<Box<str>, Cells>;

const LOOKS_AGAIN: usize = 8;
const PAUSE_BETWEEN_LOOKS: Duration = Duration::from_millis(700);
const MOST_EXAMPLES: usize = 10;

#[derive(Debug)]
pub struct Report {
    pub tables: Vec<TableReport>,
}

#[derive(Debug)]
pub struct TableReport {
    pub table: String,
    /// Rows in Cassandra, partitions with static columns counted beside them.
    pub rows: usize,
    pub static_rows: usize,
    pub missing: usize,
    pub extra: usize,
    pub differing: usize,
    /// The first few, with keys and values: for a person who owns the data.
    pub examples: Vec<Difference>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// `users`, or `orders (static)`.
    pub relation: String,
    pub key: String,
    pub kind: DifferenceKind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DifferenceKind {
    /// In Cassandra only.
    Missing,
    /// In PostgreSQL only.
    Extra,
    Values(Vec<ColumnDifference>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ColumnDifference {
    pub column: String,
    pub cassandra: Option<Box<str>>,
    pub postgres: Option<Box<str>>,
}

impl Report {
    pub fn rows(&self) -> usize {
        self.tables.iter().map(|table| table.rows).sum()
    }

    pub fn differences(&self) -> usize {
        self.tables.iter().map(TableReport::differences).sum()
    }

    pub fn examples(&self) -> impl Iterator<Item = &Difference> {
        self.tables.iter().flat_map(|table| &table.examples)
    }
}

impl TableReport {
    pub fn differences(&self) -> usize {
        self.missing + self.extra + self.differing
    }
}

/// A table of figures, then the examples: what a failing test prints.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for TableReport { table, rows, static_rows, missing, extra, differing, .. } in &self.tables {
            writeln!(
                f,
                "{table}: {rows} rows, {static_rows} static rows, {missing} missing, {extra} extra, {differing} differing"
            )?;
        }
        self.examples().try_for_each(|example| writeln!(f, "  {example}"))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.relation, self.key)?;
        match &self.kind {
            DifferenceKind::Missing => f.write_str("missing in PostgreSQL"),
            DifferenceKind::Extra => f.write_str("not in Cassandra"),
            DifferenceKind::Values(columns) => {
                for ColumnDifference { column, cassandra, postgres } in columns {
                    let show = |value: &Option<Box<str>>| value.as_deref().unwrap_or("null").to_owned();
                    write!(f, "{column} is {} in Cassandra, {} in PostgreSQL; ", show(cassandra), show(postgres))?;
                }
                Ok(())
            }
        }
    }
}

/// Compares `tables` of `keyspace` with `public.cdc_<table>` and `public.cdc_<table>__static`. Reads Cassandra at `ALL`
/// when the cluster has several nodes.
///
/// # Errors
/// When a store cannot be read or a value cannot be understood. A missing PostgreSQL table is not an error: it has no rows.
pub fn compare<'a>(
    session: &'a Session,
    postgres: &'a tokio_postgres::Client,
    keyspace: &'a str,
    tables: &'a [&'a str],
) -> BoxFuture<'a, anyhow::Result<Report>> {
    Box::pin(async move {
        let mut reports = Vec::with_capacity(tables.len());
        for table in tables {
            reports.push(compare_table(session, postgres, keyspace, table).await?);
        }
        Ok(Report { tables: reports })
    })
}

async fn compare_table(
    session: &Session,
    postgres: &tokio_postgres::Client,
    keyspace: &str,
    table: &str,
) -> anyhow::Result<TableReport> {
    let shape = cassandra::Shape::load(session, keyspace, table).await?;
    let mut look = look(session, postgres, &shape).await?;
    for _ in 0..LOOKS_AGAIN {
        if look.differences.is_empty() {
            break;
        }
        tokio::time::sleep(PAUSE_BETWEEN_LOOKS).await;
        let again = self::look(session, postgres, &shape).await?;
        let mut differences = again.differences;
        differences.retain(|key, _| look.differences.contains_key(key));
        look = Look { differences, ..again };
    }

    let count = |wanted: fn(&DifferenceKind) -> bool| look.differences.values().filter(|kind| wanted(kind)).count();
    Ok(TableReport {
        table: table.to_owned(),
        rows: look.rows,
        static_rows: look.static_rows,
        missing: count(|kind| matches!(kind, DifferenceKind::Missing)),
        extra: count(|kind| matches!(kind, DifferenceKind::Extra)),
        differing: count(|kind| matches!(kind, DifferenceKind::Values(_))),
        examples: look
            .differences
            .into_iter()
            .take(MOST_EXAMPLES)
            .map(|((relation, key), kind)| Difference { relation, key: key.into(), kind })
            .collect(),
    })
}

struct Look {
    rows: usize,
    static_rows: usize,
    /// By relation and key.
    differences: BTreeMap<(String, Box<str>), DifferenceKind>,
}

async fn look(session: &Session, client: &tokio_postgres::Client, shape: &cassandra::Shape) -> anyhow::Result<Look> {
    let mut differences = BTreeMap::new();
    let rows = cassandra::rows(session, shape).await?;
    let count = rows.len();
    let target = format!("cdc_{}", shape.table);
    let replicated = postgres::rows(client, &target, &shape.key(), &shape.columns).await?;
    difference(&shape.table, &shape.columns, rows, replicated, &mut differences);

    let mut static_count = 0;
    if !shape.statics.is_empty() {
        let statics = cassandra::static_rows(session, shape).await?;
        static_count = statics.len();
        let mut replicated =
            postgres::rows(client, &format!("{target}__static"), &shape.partition, &shape.statics).await?;
        // A partition whose static columns are all NULL has none, whether or not PostgreSQL keeps a row for it.
        replicated.retain(|_, cells| cells.iter().any(Option::is_some));
        difference(&format!("{} (static)", shape.table), &shape.statics, statics, replicated, &mut differences);
    }
    Ok(Look { rows: count, static_rows: static_count, differences })
}

fn difference(
    relation: &str,
    columns: &[cassandra::Column],
    cassandra: Rows,
    mut postgres: Rows,
    differences: &mut BTreeMap<(String, Box<str>), DifferenceKind>,
) {
    let mut add = |key: Box<str>, kind| differences.insert((relation.to_owned(), key), kind);
    for (key, cells) in cassandra {
        let Some(replicated) = postgres.remove(&key) else {
            add(key, DifferenceKind::Missing);
            continue;
        };
        let differing: Vec<ColumnDifference> = columns
            .iter()
            .zip(cells.into_iter().zip(replicated))
            .filter(|(_, (cassandra, postgres))| cassandra != postgres)
            .map(|(column, (cassandra, postgres))| ColumnDifference {
                column: column.name.clone(),
                cassandra,
                postgres,
            })
            .collect();
        if !differing.is_empty() {
            add(key, DifferenceKind::Values(differing));
        }
    }
    for key in postgres.into_keys() {
        add(key, DifferenceKind::Extra);
    }
}
