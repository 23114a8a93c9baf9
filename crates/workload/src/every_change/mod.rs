//! Writes every kind of change Cassandra knows to a keyspace of random tables, so that its commit log can be read by two
//! readers and compared. The seed decides tables, statements, keys and values; only the clock is not of it.
//!
//! Statements are valid by construction; one that Cassandra refuses is a mistake of the generator and an error.

mod alterations;
mod answer;
mod representable;
mod schema;
mod types;
mod values;
mod writes;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::{DbError, ExecutionError, RequestAttemptError};
use scylla::statement::batch::{Batch, BatchType};

use schema::{Shape, Table};
use types::{Place, Type, Types, quote};
use values::Value;
use writes::{Context, Write, Writer};

pub use answer::{Answer, select};
pub use scylla::client::session::Session;

/// What is written, and where.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Created by [`EveryChange::create`].
    pub keyspace: String,
    /// Cassandra 5.0 knows the vector type.
    pub vectors: bool,
    /// Seconds. Cassandra refuses one that ends behind 2038-01-19 (2106 with `storage_compatibility_mode: NONE`).
    pub longest_ttl: i32,
    /// Microseconds. Cassandra 5.0 with `storage_compatibility_mode: NONE` does not read back what it flushed of a
    /// partition's deletion before 1970 ("Invalid flags found deserializing `DeletionTime`").
    pub earliest_write: i64,
    /// Bytes; a mutation may have half a segment.
    pub longest_blob: usize,
    pub variety: Variety,
    /// Only values PostgreSQL can hold.
    pub representable: bool,
    /// Nodes that hold each partition. With several no counter is deleted: used again, it counts what the replica that
    /// leads the write knows of before, so Cassandra's answer depends on which one missed the deletion.
    pub replicas: usize,
}

/// How much of what is written differs: keys, values and write times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variety {
    /// Anything goes, so that few writes meet.
    Great,
    /// Most writes meet others in a cell, often at the same write time. What has no place in a comparison of merged
    /// states is left out: `TRUNCATE`, COMPACT STORAGE, views, tables of a hundred columns.
    Small {
        /// Of the few values each type has.
        seed: u64,
    },
}

/// A keyspace and what the generator knows of it. Any failure is an error that names the statement.
#[derive(Debug)]
pub struct EveryChange {
    options: Options,
    rng: ChaCha8Rng,
    types: Types,
    tables: Vec<Table>,
    /// Microseconds; goes on from the time the generator was made.
    clock: i64,
    begin: i64,
    operations: usize,
    sent: Vec<Sent>,
}

/// A statement, or one of a batch.
#[derive(Debug)]
struct Sent {
    operation: usize,
    table: String,
    partition: Vec<Value>,
    write: Write,
}

/// A session that writes at `LOCAL_QUORUM` and does not wait for what a single node need not wait for.
pub async fn connect(contact_points: &[String]) -> anyhow::Result<Session> {
    SessionBuilder::new()
        .known_nodes(contact_points)
        .fetch_schema_metadata(false)
        .auto_await_schema_agreement(contact_points.len() > 1)
        .schema_agreement_interval(Duration::from_millis(20))
        .build()
        .await
        .with_context(|| format!("connect to Cassandra at {}", contact_points.join(", ")))
}

impl EveryChange {
    /// Creates keyspace, types and tables, all but one of the tables captured.
    pub async fn create(&self, session: &Session) -> anyhow::Result<()> {
        for cql in self.schema() {
            execute(session, Write { cql, values: Vec::new() }).await?;
        }
        Ok(())
    }

    /// Changes the schema once: columns and fields are added, dropped, added again and renamed, tables dropped and
    /// created.
    pub async fn alter(&mut self, session: &Session) -> anyhow::Result<()> {
        for cql in self.alteration() {
            execute(session, Write { cql, values: Vec::new() }).await?;
        }
        Ok(())
    }

    /// Sends so many statements and batches. Tells how many Cassandra refused: those that name an element of a list by
    /// its index are valid or not by what was deleted before, at which write time; conditional ones read before they
    /// write, which 5.0.5 sometimes cannot after a schema change ("complexBuilder is null").
    pub async fn write(&mut self, session: &Session, operations: usize) -> anyhow::Result<usize> {
        let mut refused = 0;
        for _ in 0..operations {
            match self.next() {
                Operation::Write(write) => execute(session, write).await?,
                Operation::ListElement(write) => {
                    // The list is read first, which fails where its name is not ASCII (`Table::with_mergeable_collections`).
                    let may_be = |error: &DbError| matches!(error, DbError::Invalid | DbError::ReadFailure { .. });
                    refused += usize::from(!try_execute(session, write, may_be).await?);
                }
                Operation::Conditional(write) => {
                    let may_be = |error: &DbError| matches!(error, DbError::ReadFailure { .. });
                    refused += usize::from(!try_execute(session, write, may_be).await?);
                }
                Operation::Batch(kind, writes) => {
                    let mut batch = Batch::new(kind);
                    let (texts, values): (Vec<_>, Vec<_>) =
                        writes.into_iter().map(|write| (write.cql, write.values)).unzip();
                    texts.iter().for_each(|cql| batch.append_statement(cql.as_str()));
                    let sent = session.batch(&batch, &values).await;
                    sent.with_context(|| format!("batch {kind:?} {texts:#?} {values:?}"))?;
                }
            }
        }
        Ok(refused)
    }

    /// The statements sent to a partition, given by the columns of its key, in the order of sending; none with great
    /// variety. Those of one batch have the same number.
    pub fn written_to(&self, table: &str, partition: &[Vec<u8>]) -> Vec<String> {
        let is_there = |sent: &&Sent| {
            let values =
                sent.partition.iter().map(|value| if let Value::Bytes(bytes) = value { &bytes[..] } else { &[] });
            sent.table == table && values.eq(partition.iter().map(Vec::as_slice))
        };
        let sent = self.sent.iter().filter(is_there);
        sent.map(|Sent { operation, write, .. }| format!("{operation}: {} {:?}", write.cql, write.values)).collect()
    }
}

async fn execute(session: &Session, write: Write) -> anyhow::Result<()> {
    let Write { cql, values } = write;
    session.query_unpaged(cql.as_str(), &values[..]).await.with_context(|| format!("{cql} {values:?}"))?;
    Ok(())
}

/// False: Cassandra refused it as this kind of statement may be.
async fn try_execute(session: &Session, write: Write, may_be: fn(&DbError) -> bool) -> anyhow::Result<bool> {
    match session.query_unpaged(write.cql.as_str(), &write.values[..]).await {
        Ok(_) => Ok(true),
        Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _))) if may_be(&error) => Ok(false),
        Err(error) => bail!(anyhow::Error::from(error).context(write.cql)),
    }
}

enum Operation {
    Write(Write),
    ListElement(Write),
    Conditional(Write),
    Batch(BatchType, Vec<Write>),
}

impl EveryChange {
    pub fn new(options: Options) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let types = Types::random_udts(&mut rng, &options);
        let mut tables = match options.variety {
            Variety::Great => Self::tables(&types, &mut rng),
            Variety::Small { .. } => Self::meeting_tables(&types, &mut rng),
        };
        if let Variety::Small { seed } = options.variety {
            // Those of several seeds may stand beside each other in one database.
            tables.iter_mut().for_each(|table| table.name = format!("{}_{seed}", table.name));
        }
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_micros();
        let clock = i64::try_from(clock).expect("the clock is before the year 292,000");
        Self { options, rng, types, tables, clock, begin: clock, operations: 0, sent: Vec::new() }
    }

    fn tables(types: &Types, rng: &mut ChaCha8Rng) -> Vec<Table> {
        let mut twins = Table::random(types, "twin", rng);
        for _ in 0..4 {
            twins.partition(types, rng);
        }
        vec![
            Table::natives(types, rng),
            Table::collections(types, "collections", rng),
            Table::random(types, "random_0", rng),
            Table::random(types, "random_1", rng),
            Table::many_clustering_columns(types, rng),
            Table::wide(types, rng),
            Table::counters(types, "counters", Shape::Counters, rng),
            Table::twin(&twins, types, rng),
            twins,
            Table::view_base(types, rng),
            Table::compact_static(types, rng),
            Table::compact_dense(types, "compact_dense", 1, rng),
            Table::compact_dense(types, "compact_keys", 0, rng),
        ]
    }

    /// Those of [`Variety::Small`]; half of them lie partly on disk.
    fn meeting_tables(types: &Types, rng: &mut ChaCha8Rng) -> Vec<Table> {
        let tables = [
            Table::natives(types, rng),
            Table::collections(types, "collections", rng),
            Table::unclustered(types, rng),
            Table::random(types, "random_0", rng),
            Table::random(types, "random_1", rng),
            Table::counters(types, "counter_rows", Shape::CounterRows, rng),
            Table::counters(types, "counter_cells", Shape::CounterCells, rng),
        ];
        let tables = tables.into_iter().map(Table::with_mergeable_collections);
        tables.map(|table| if rng.random() { table.flushed_often() } else { table }).collect()
    }

    fn schema(&self) -> Vec<String> {
        let Options { keyspace, replicas, .. } = &self.options;
        let mut statements = vec![format!(
            "create keyspace {keyspace} with replication = {{'class': 'SimpleStrategy', 'replication_factor': {replicas}}}"
        )];
        for udt in &self.types.udts {
            let fields = udt.fields.iter().map(|(name, ty)| format!("{} {}", quote(name), self.types.cql(ty)));
            let fields: Vec<_> = fields.collect();
            statements.push(format!("create type {keyspace}.{} ({})", udt.name, fields.join(", ")));
        }
        for table in &self.tables {
            statements.push(table.create(keyspace, &self.types, table.name != "uncaptured_twin"));
            if table.shape == Shape::ViewBase {
                let key = &table.regulars[0];
                let columns = table.partition_key.iter().chain(table.clustering.iter().map(|(column, _)| column));
                let names: Vec<_> = [key].into_iter().chain(columns).map(|column| quote(&column.name)).collect();
                let conditions: Vec<_> = names.iter().map(|name| format!("{name} is not null")).collect();
                statements.push(format!(
                    "create materialized view {keyspace}.by_value as select * from {keyspace}.{} where {} primary key ({})",
                    table.name,
                    conditions.join(" and "),
                    names.join(", ")
                ));
            }
        }
        statements
    }

    fn next(&mut self) -> Operation {
        self.clock += self.rng.random_range(0..50);
        self.operations += 1;
        let has_great_variety = self.options.variety == Variety::Great;
        let index = self.rng.random_range(0..self.tables.len());
        let is_counter = self.tables[index].is_of_counters();
        let is_compact = matches!(self.tables[index].shape, Shape::CompactDense | Shape::CompactStatic);
        match self.rng.random_range(0..100) {
            0..6 if !is_counter && !is_compact => {
                Operation::Conditional(self.write_anywhere(index, Context::Conditional))
            }
            6..12 => {
                let kind = if is_counter { BatchType::Counter } else { self.batch_type() };
                let writes = (0..self.rng.random_range(2..5)).map(|_| {
                    let index = if is_counter { index } else { self.uncounted() };
                    self.write_anywhere(index, Context::Batch)
                });
                Operation::Batch(kind, writes.collect())
            }
            12..15 if !is_counter => Operation::Batch(self.batch_type(), self.one_partition(index)),
            15..18 if has_great_variety => Operation::Batch(self.batch_type(), self.one_mutation()),
            18..21 => self.list_element(),
            21 if has_great_variety && self.tables[index].may_change() => {
                let cql = format!("truncate {}.{}", self.options.keyspace, self.tables[index].name);
                Operation::Write(Write { cql, values: Vec::new() })
            }
            _ => Operation::Write(self.write_anywhere(index, Context::Single)),
        }
    }

    fn alteration(&mut self) -> Vec<String> {
        loop {
            let keyspace = &self.options.keyspace;
            if let Some(statements) = alterations::alter(keyspace, &mut self.types, &mut self.tables, &mut self.rng) {
                return statements;
            }
        }
    }

    fn batch_type(&mut self) -> BatchType {
        if self.rng.random() { BatchType::Logged } else { BatchType::Unlogged }
    }

    fn uncounted(&mut self) -> usize {
        loop {
            let index = self.rng.random_range(0..self.tables.len());
            if !self.tables[index].is_of_counters() {
                return index;
            }
        }
    }

    fn write_anywhere(&mut self, index: usize, context: Context) -> Write {
        let partition = self.tables[index].partition(&self.types, &mut self.rng);
        self.write_to(index, &partition, context)
    }

    fn write_to(&mut self, index: usize, partition: &[Value], context: Context) -> Write {
        let writer = Writer {
            keyspace: &self.options.keyspace,
            types: &self.types,
            longest_ttl: self.options.longest_ttl,
            blob_max: self.options.longest_blob,
            replicas: self.options.replicas,
            earliest: self.options.earliest_write,
            now: self.clock,
            begin: self.begin,
        };
        let write = writer.write(&mut self.tables[index], partition, context, &mut self.rng);
        self.remember(index, partition, &write);
        write
    }

    /// For [`Self::written_to`], which with great variety would be long and of no use.
    fn remember(&mut self, index: usize, partition: &[Value], write: &Write) {
        if self.options.variety != Variety::Great {
            let (operation, table) = (self.operations, self.tables[index].name.clone());
            self.sent.push(Sent { operation, table, partition: partition.to_vec(), write: write.clone() });
        }
    }

    /// Writes that Cassandra merges into one update.
    fn one_partition(&mut self, index: usize) -> Vec<Write> {
        let partition = self.tables[index].partition(&self.types, &mut self.rng);
        (0..self.rng.random_range(2..6)).map(|_| self.write_to(index, &partition, Context::Batch)).collect()
    }

    /// Writes to tables with equal partition keys, one of them not captured: one mutation of several updates.
    fn one_mutation(&mut self) -> Vec<Write> {
        let twins: Vec<usize> = (0..self.tables.len()).filter(|at| self.tables[*at].name.ends_with("twin")).collect();
        let partition = self.tables[twins[0]].partition(&self.types, &mut self.rng);
        let writes = (0..self.rng.random_range(2..6)).map(|at| {
            // An altered twin may have another key by now.
            let index = twins[at % twins.len()];
            if self.tables[index].is_twin_of(&self.tables[twins[0]]) {
                self.write_to(index, &partition, Context::Batch)
            } else {
                self.write_anywhere(index, Context::Batch)
            }
        });
        writes.collect()
    }

    /// Sets or deletes an element of a list by its index.
    fn list_element(&mut self) -> Operation {
        let (types, rng) = (&self.types, &mut self.rng);
        let lists = self.tables.iter_mut().enumerate().filter_map(|(index, table)| {
            let of_list =
                |column: &&schema::Column| column.ty.is_multi_cell() && matches!(column.ty, Type::List { .. });
            let column = table.regulars.iter().find(of_list)?.clone();
            Some((index, table, column))
        });
        let Some((table_index, table, column)) = lists.collect::<Vec<_>>().pop() else {
            return Operation::Write(self.write_anywhere(0, Context::Single));
        };
        let Type::List { element, .. } = &column.ty else { unreachable!("only lists were taken") };
        let (partition, row) = (table.partition(types, rng), table.row(types, rng));
        let keys = table.partition_key.iter().chain(table.clustering.iter().map(|(column, _)| column));
        let keys: Vec<_> = keys.map(|column| format!("{} = ?", quote(&column.name))).collect();
        let (name, keys) = (quote(&column.name), keys.join(" and "));
        let full_name = format!("{}.{}", self.options.keyspace, table.name);
        let index = Value::Bytes(rng.random_range(0..3_i32).to_be_bytes().to_vec());
        let (cql, mut values) = if rng.random() {
            let value = Value::Bytes(types.item(element, Place::Element, rng));
            (format!("update {full_name} set {name}[?] = ? where {keys}"), vec![index, value])
        } else {
            (format!("delete {name}[?] from {full_name} where {keys}"), vec![index])
        };
        values.extend(partition.iter().cloned().chain(row));
        let write = Write { cql, values };
        self.remember(table_index, &partition, &write);
        Operation::ListElement(write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(seed: u64, variety: Variety) -> Vec<String> {
        let keyspace = "k".to_owned();
        let earliest_write = i64::MIN + 1;
        let (longest_ttl, longest_blob) = (9, 9);
        let options = Options {
            seed,
            keyspace,
            vectors: true,
            longest_ttl,
            earliest_write,
            longest_blob,
            variety,
            representable: false,
            replicas: 1,
        };
        let mut changes = EveryChange::new(options);
        (changes.clock, changes.begin) = (0, 0);
        let mut lines = changes.schema();
        for _ in 0..2_000 {
            match changes.next() {
                Operation::Write(write) | Operation::ListElement(write) | Operation::Conditional(write) => {
                    assert_eq!(unquoted_marks(&write.cql), write.values.len(), "{}", write.cql);
                    lines.push(format!("{write:?}"));
                }
                Operation::Batch(kind, writes) => lines.push(format!("{kind:?} {writes:?}")),
            }
            if variety == Variety::Great && lines.len().is_multiple_of(50) {
                lines.extend(changes.alteration());
            }
        }
        lines
    }

    fn unquoted_marks(cql: &str) -> usize {
        cql.split('"').step_by(2).map(|outside| outside.matches('?').count()).sum()
    }

    #[test]
    fn a_seed_gives_the_same_statements_every_time_and_another_seed_others() {
        for variety in [Variety::Great, Variety::Small { seed: 1 }] {
            assert_eq!(digest(7, variety), digest(7, variety));
            assert_ne!(digest(7, variety), digest(8, variety));
        }
    }
}
