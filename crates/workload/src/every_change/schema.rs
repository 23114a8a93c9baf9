//! Random keyspaces: tables of every shape, and what the generator remembers of each.

use rand::{RngExt as _, seq::IndexedRandom as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use super::types::{Native, Place, Type, Types, Udt, quote};
use super::values::Value;
use super::{Options, Variety};

#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) ty: Type,
}

/// What a table must not be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    Ordinary,
    Counters,
    /// Counters that are not deleted one by one but with their row, or range, or partition: where both are done and the
    /// counter is used again, Cassandra's answer depends on the order in which it merges.
    CounterRows,
    /// Counters that are only deleted one by one.
    CounterCells,
    /// COMPACT STORAGE without clustering columns: kept in the static row.
    CompactStatic,
    /// COMPACT STORAGE with clustering columns, which may be missing from the end, and one value.
    CompactDense,
    /// A materialized view hangs on it: its columns stay as they are.
    ViewBase,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) partition_key: Vec<Column>,
    pub(super) clustering: Vec<(Column, Order)>,
    pub(super) statics: Vec<Column>,
    pub(super) regulars: Vec<Column>,
    /// Dropped and not added again; whether it was static.
    pub(super) dropped: Vec<(Column, bool)>,
    options: Vec<String>,
    columns_named: usize,
    /// Partition keys in use.
    pub(super) partitions: Vec<Vec<Value>>,
    /// Clusterings in use, of all partitions.
    pub(super) rows: Vec<Vec<Value>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Ascending,
    Descending,
}

const PARTITIONS: usize = 5;
const ROWS: usize = 8;
/// One bitmap of empty and null values covers 32 of them.
const MANY_CLUSTERING_COLUMNS: usize = 35;
/// From 64 columns on, a row names those that are there in another way.
const WIDE: std::ops::RangeInclusive<usize> = 63..=130;

impl Types {
    pub(super) fn random_udts(rng: &mut ChaCha8Rng, options: &Options) -> Self {
        let Options { vectors, variety, representable, .. } = *options;
        let mut types = Self { udts: Vec::new(), vectors, variety, representable };
        for index in 0..4 {
            let place = if index == 0 { Place::Key } else { Place::Element };
            let created = rng.random_range(1..5);
            let fields = (0..created).map(|field| {
                let name = if field == 2 { "Mixed \"field\"".to_owned() } else { format!("f{field}") };
                (name, types.random(rng, place, 2))
            });
            let fields = fields.collect();
            types.udts.push(Udt { name: format!("udt_{index}"), fields, created });
        }
        types
    }
}

impl Table {
    /// With every native type among its columns.
    pub(super) fn natives(types: &Types, rng: &mut ChaCha8Rng) -> Self {
        let mut table = Self::keys(types, "natives", rng, 1, 1);
        let mut natives = Native::ALL.to_vec();
        natives.shuffle(rng);
        table.regulars.clear();
        for native in natives {
            let column = table.column(Type::Native(native), rng);
            table.regulars.push(column);
        }
        table
    }

    pub(super) fn random(types: &Types, name: &str, rng: &mut ChaCha8Rng) -> Self {
        let (partition_columns, clustering_columns) = (rng.random_range(1..4), rng.random_range(0..5));
        let mut table = Self::keys(types, name, rng, partition_columns, clustering_columns);
        for _ in 0..rng.random_range(1..10) {
            let column = table.column(types.random(rng, Place::Column, 3), rng);
            table.regulars.push(column);
        }
        if clustering_columns > 0 {
            for _ in 0..rng.random_range(0..4) {
                let column = table.column(types.random(rng, Place::Column, 2), rng);
                table.statics.push(column);
            }
        }
        if rng.random_bool(0.2) {
            table.options.push(format!("default_time_to_live = {}", rng.random_range(1..100_000_000)));
        }
        table
    }

    /// A non-frozen collection of each kind and a non-frozen UDT, as regular and as static columns.
    pub(super) fn collections(types: &Types, name: &str, rng: &mut ChaCha8Rng) -> Self {
        let mut table = Self::keys(types, name, rng, 2, 2);
        let frozen = false;
        for round in 0..2 {
            let element = |rng: &mut ChaCha8Rng, place| Box::new(types.random(rng, place, 1));
            let columns = [
                Type::List { element: element(rng, Place::Element), frozen },
                Type::Set { element: element(rng, Place::Key), frozen },
                Type::Map { key: element(rng, Place::Key), value: element(rng, Place::Element), frozen },
                Type::Udt { udt: rng.random_range(0..types.udts.len()), frozen },
            ];
            for ty in columns {
                let column = table.column(ty, rng);
                if round == 0 { table.regulars.push(column) } else { table.statics.push(column) }
            }
        }
        let column = table.column(types.random(rng, Place::Column, 0), rng);
        table.regulars.push(column);
        table
    }

    /// Rows that are partitions.
    pub(super) fn unclustered(types: &Types, rng: &mut ChaCha8Rng) -> Self {
        let clustered = Self::collections(types, "unclustered", rng);
        Self { clustering: Vec::new(), statics: Vec::new(), ..clustered }
    }

    /// Its memtable goes to disk so often that what is read comes from both.
    pub(super) fn flushed_often(mut self) -> Self {
        self.options.push("memtable_flush_period_in_ms = 400".to_owned());
        self
    }

    /// Collections under names that begin in ASCII. Cassandra (5.0.5) takes others for simple columns when it merges
    /// (they sort before `Columns.FIRST_COMPLEX_REGULAR`) and answers NULL, half of them, or "complexBuilder is null".
    pub(super) fn with_mergeable_collections(mut self) -> Self {
        for column in self.regulars.iter_mut().chain(&mut self.statics) {
            if column.ty.is_multi_cell() && !column.name.starts_with(|first: char| first.is_ascii()) {
                column.name.insert(0, 'c');
            }
        }
        self
    }

    pub(super) fn many_clustering_columns(types: &Types, rng: &mut ChaCha8Rng) -> Self {
        let mut table = Self::keys(types, "many_clustering_columns", rng, 1, MANY_CLUSTERING_COLUMNS);
        let column = table.column(types.random(rng, Place::Column, 1), rng);
        table.regulars.push(column);
        table
    }

    pub(super) fn wide(types: &Types, rng: &mut ChaCha8Rng) -> Self {
        let mut table = Self::keys(types, "wide", rng, 1, 1);
        for index in 0..rng.random_range(WIDE) {
            let depth = usize::from(index % 16 == 0);
            let column = table.column(types.random(rng, Place::Column, depth), rng);
            if index % 5 == 4 { table.statics.push(column) } else { table.regulars.push(column) }
        }
        table
    }

    pub(super) fn counters(types: &Types, name: &str, shape: Shape, rng: &mut ChaCha8Rng) -> Self {
        let clustering_columns = rng.random_range(0..3);
        let mut table = Self::keys(types, name, rng, 1, clustering_columns);
        table.shape = shape;
        for _ in 0..rng.random_range(1..4) {
            let column = table.column(Type::Counter, rng);
            table.regulars.push(column);
        }
        if clustering_columns > 0 {
            let column = table.column(Type::Counter, rng);
            table.statics.push(column);
        }
        table
    }

    /// The same partition keys as `other`, which puts updates of both into one mutation; not captured.
    pub(super) fn twin(other: &Self, types: &Types, rng: &mut ChaCha8Rng) -> Self {
        let mut table = Self {
            name: "uncaptured_twin".to_owned(),
            clustering: Vec::new(),
            statics: Vec::new(),
            regulars: Vec::new(),
            options: Vec::new(),
            rows: Vec::new(),
            ..other.clone()
        };
        let column = table.column(types.random(rng, Place::Key, 1), rng);
        table.clustering.push((column, Order::Ascending));
        for _ in 0..4 {
            let column = table.column(types.random(rng, Place::Column, 2), rng);
            table.regulars.push(column);
        }
        table
    }

    pub(super) fn view_base(types: &Types, rng: &mut ChaCha8Rng) -> Self {
        let mut table = Self::keys(types, "view_base", rng, 1, 1);
        table.shape = Shape::ViewBase;
        // No type that knows an empty value: it would be a view's partition key.
        for native in [Native::SmallInt, Native::Text, Native::Int] {
            let column = table.column(Type::Native(native), rng);
            table.regulars.push(column);
        }
        table
    }

    pub(super) fn compact_static(types: &Types, rng: &mut ChaCha8Rng) -> Self {
        let mut table = Self::keys(types, "compact_static", rng, 1, 0);
        table.shape = Shape::CompactStatic;
        for _ in 0..3 {
            let column = table.column(types.random(rng, Place::Element, 1), rng);
            table.regulars.push(column);
        }
        table
    }

    pub(super) fn compact_dense(types: &Types, name: &str, values: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut table = Self::keys(types, name, rng, 1, 2);
        table.shape = Shape::CompactDense;
        for _ in 0..values {
            let column = table.column(types.random(rng, Place::Element, 0), rng);
            table.regulars.push(column);
        }
        table
    }

    fn keys(types: &Types, name: &str, rng: &mut ChaCha8Rng, partition: usize, clustering: usize) -> Self {
        let mut table = Self {
            name: name.to_owned(),
            shape: Shape::Ordinary,
            partition_key: Vec::new(),
            clustering: Vec::new(),
            statics: Vec::new(),
            regulars: Vec::new(),
            dropped: Vec::new(),
            options: Vec::new(),
            columns_named: 0,
            partitions: Vec::new(),
            rows: Vec::new(),
        };
        for _ in 0..partition {
            let column = table.column(types.partition_key(rng), rng);
            table.partition_key.push(column);
        }
        for _ in 0..clustering {
            let column = table.column(types.random(rng, Place::Key, 2), rng);
            let order = if rng.random_bool(0.4) { Order::Descending } else { Order::Ascending };
            table.clustering.push((column, order));
        }
        table
    }

    /// A column with a name of its own, now and then one that needs its quotes.
    pub(super) fn column(&mut self, ty: Type, rng: &mut ChaCha8Rng) -> Column {
        let number = self.columns_named;
        self.columns_named += 1;
        let name = match rng.random_range(0..12) {
            0 => format!("C{number} \"quoted\""),
            1 => format!("ß{number}"),
            2 => format!("\u{1F680}{number}"),
            _ => format!("c{number}"),
        };
        Column { name, ty }
    }

    pub(super) fn create(&self, keyspace: &str, types: &Types, captured: bool) -> String {
        let mut columns = Vec::new();
        let statics = self.statics.iter().map(|column| (column, " static"));
        let keys = self.partition_key.iter().chain(self.clustering.iter().map(|(column, _)| column));
        for (column, suffix) in keys.chain(&self.regulars).map(|column| (column, "")).chain(statics) {
            columns.push(format!("{} {}{suffix}", quote(&column.name), types.cql(&column.ty)));
        }
        let names = |columns: &mut dyn Iterator<Item = &Column>| -> Vec<String> {
            columns.map(|column| quote(&column.name)).collect()
        };
        let partition_key = names(&mut self.partition_key.iter()).join(", ");
        let clustering = names(&mut self.clustering.iter().map(|(column, _)| column));
        let mut key = format!("({partition_key})");
        for name in &clustering {
            key.push_str(&format!(", {name}"));
        }
        let mut options = self.options.clone();
        if captured {
            options.push("cdc = true".to_owned());
        }
        if matches!(self.shape, Shape::CompactStatic | Shape::CompactDense) {
            options.push("compact storage".to_owned());
        }
        if !clustering.is_empty() {
            let order = |order| if order == Order::Descending { "desc" } else { "asc" };
            let orders = clustering.iter().zip(&self.clustering);
            let orders: Vec<_> = orders.map(|(name, (_, of))| format!("{name} {}", order(*of))).collect();
            options.push(format!("clustering order by ({})", orders.join(", ")));
        }
        let options = if options.is_empty() { String::new() } else { format!(" with {}", options.join(" and ")) };
        format!("create table {keyspace}.{} ({}, primary key ({key})){options}", self.name, columns.join(", "))
    }

    /// One in use, or a new one.
    pub(super) fn partition(&mut self, types: &Types, rng: &mut ChaCha8Rng) -> Vec<Value> {
        let in_use = match types.variety {
            Variety::Great => &self.partitions[..],
            // Each for a while only: in the end all is deleted at the latest write time there is.
            Variety::Small { .. } => &self.partitions[self.partitions.len().saturating_sub(PARTITIONS)..],
        };
        if in_use.len() >= PARTITIONS && rng.random_bool(0.9) {
            return in_use.choose(rng).expect("there are some").clone();
        }
        let is_single = self.partition_key.len() == 1;
        let values = self.partition_key.iter().map(|column| {
            loop {
                let value = types.any_value(&column.ty, Place::Key, rng);
                // A whole key must not be empty, a component may.
                if !is_single || !value.is_empty() {
                    return Value::Bytes(value);
                }
            }
        });
        let values: Vec<_> = values.collect();
        self.partitions.push(values.clone());
        values
    }

    /// One in use, or one that shares its first columns, or a new one.
    pub(super) fn row(&mut self, types: &Types, rng: &mut ChaCha8Rng) -> Vec<Value> {
        let known = self.rows.choose(rng).cloned();
        let shared = match (&known, rng.random_range(0..10)) {
            (Some(known), _) if types.variety != Variety::Great && self.rows.len() >= ROWS => return known.clone(),
            (Some(known), 0..6) if self.rows.len() >= ROWS => return known.clone(),
            (Some(_), 6..9) => rng.random_range(0..=self.clustering.len()),
            _ => 0,
        };
        let mut values = known.unwrap_or_default();
        values.truncate(shared);
        for (column, _) in &self.clustering[values.len()..] {
            values.push(Value::Bytes(types.value(&column.ty, Place::Key, rng)));
        }
        self.rows.push(values.clone());
        values
    }

    pub(super) fn is_of_counters(&self) -> bool {
        matches!(self.shape, Shape::Counters | Shape::CounterRows | Shape::CounterCells)
    }

    pub(super) fn may_change(&self) -> bool {
        self.shape == Shape::Ordinary
    }

    /// Their partition keys are of the same types.
    pub(super) fn is_twin_of(&self, other: &Self) -> bool {
        let types = |table: &Self| table.partition_key.iter().map(|column| column.ty.clone()).collect::<Vec<_>>();
        types(self) == types(other)
    }
}
