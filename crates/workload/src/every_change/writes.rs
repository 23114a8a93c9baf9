//! Random statements: INSERT, UPDATE and DELETE in every form, single, conditional and in batches.

use rand::{RngExt as _, seq::IndexedRandom as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use super::Variety;
use super::schema::{Column, Shape, Table};
use super::types::{Native, Place, Type, Types, quote};
use super::values::{Value, collection};

/// Microseconds.
const HOUR: i64 = 3_600_000_000;

#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) cql: String,
    pub(super) values: Vec<Value>,
}

/// What all statements have in common.
pub(super) struct Writer<'a> {
    pub(super) keyspace: &'a str,
    pub(super) types: &'a Types,
    pub(super) longest_ttl: i32,
    pub(super) blob_max: usize,
    pub(super) replicas: usize,
    pub(super) earliest: i64,
    /// Microseconds.
    pub(super) now: i64,
    /// As [`Self::now`] was in the beginning.
    pub(super) begin: i64,
}

/// Where a write ends up, which decides what it may say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    Single,
    Batch,
    /// A lightweight transaction gives no write time.
    Conditional,
}

impl Writer<'_> {
    pub(super) fn write(
        &self,
        table: &mut Table,
        partition: &[Value],
        context: Context,
        rng: &mut ChaCha8Rng,
    ) -> Write {
        if table.is_of_counters() {
            return match rng.random_range(0..10) {
                0..8 => self.counter_update(table, partition, rng),
                _ if self.replicas > 1 => self.counter_update(table, partition, rng),
                _ => self.delete(table, partition, context, rng),
            };
        }
        match rng.random_range(0..20) {
            0..8 => self.insert(table, partition, context, rng),
            8..14 => self.update(table, partition, context, rng),
            _ => self.delete(table, partition, context, rng),
        }
    }

    fn insert(&self, table: &mut Table, partition: &[Value], context: Context, rng: &mut ChaCha8Rng) -> Write {
        let row = table.row(self.types, rng);
        let mut columns: Vec<(&Column, Value)> = table.partition_key.iter().zip(partition.iter().cloned()).collect();
        // Static columns alone go without a row, and a dense row without its last columns.
        let clustered = match table.shape {
            Shape::CompactDense if rng.random_bool(0.3) => 1,
            Shape::Ordinary if !table.statics.is_empty() && rng.random_bool(0.05) => 0,
            _ => row.len(),
        };
        columns.extend(table.clustering.iter().map(|(column, _)| column).zip(row).take(clustered));
        let share =
            if table.shape == Shape::CompactStatic { 1.0 } else { [0.0, 0.2, 0.7, 1.0][rng.random_range(0..4)] };
        let is_static_only = clustered == 0 && !table.clustering.is_empty();
        let statics = table.statics.iter().filter(|_| is_static_only || rng.random_bool(0.3)).collect::<Vec<_>>();
        let is_dense = table.shape == Shape::CompactDense;
        let regulars = table.regulars.iter().filter(|_| !is_static_only && (is_dense || rng.random_bool(share)));
        for column in regulars.collect::<Vec<_>>().into_iter().chain(statics) {
            let value = match table.shape {
                Shape::CompactDense => Value::Bytes(self.types.value(&column.ty, Place::Column, rng)),
                _ => self.cell(&column.ty, rng),
            };
            columns.push((column, value));
        }
        let mut write = Write {
            cql: format!(
                "insert into {} ({}) values ({})",
                self.name(table),
                columns.iter().map(|(column, _)| quote(&column.name)).collect::<Vec<_>>().join(", "),
                vec!["?"; columns.len()].join(", "),
            ),
            values: columns.into_iter().map(|(_, value)| value).collect(),
        };
        if context == Context::Conditional {
            write.cql.push_str(" if not exists");
        }
        let (using, values) = self.using(context, true, rng);
        write.cql.push_str(&using);
        write.values.extend(values);
        write
    }

    fn update(&self, table: &mut Table, partition: &[Value], context: Context, rng: &mut ChaCha8Rng) -> Write {
        let is_static = !table.statics.is_empty() && (table.regulars.is_empty() || rng.random_bool(0.15));
        let row = if is_static { Vec::new() } else { table.row(self.types, rng) };
        let mut columns: Vec<&Column> =
            if is_static { table.statics.iter().collect() } else { table.regulars.iter().collect() };
        if columns.is_empty() {
            return self.insert(table, partition, context, rng);
        }
        columns.shuffle(rng);
        columns.truncate(rng.random_range(1..6));
        if !is_static {
            columns.extend(table.statics.choose(rng).filter(|_| rng.random_bool(0.1)));
        }
        let (using, mut values) = self.using(context, true, rng);
        let mut assignments = Vec::new();
        for column in &columns {
            let (text, bound) = self.assignment(table.shape, column, rng);
            assignments.push(text);
            values.extend(bound);
        }
        let (mut relations, keys) = self.key(table, partition, &row);
        values.extend(keys);
        if context == Context::Conditional {
            relations.push_str(" if ");
            let simple = columns.iter().find(|column| matches!(column.ty, Type::Native(_)));
            match simple.filter(|_| rng.random()) {
                Some(column) => {
                    relations.push_str(&format!("{} = ?", quote(&column.name)));
                    values.push(if rng.random() { Value::Null } else { self.value(&column.ty, rng) });
                }
                None => relations.push_str("exists"),
            }
        }
        let cql = format!("update {}{using} set {} where {relations}", self.name(table), assignments.join(", "));
        Write { cql, values }
    }

    fn counter_update(&self, table: &mut Table, partition: &[Value], rng: &mut ChaCha8Rng) -> Write {
        let is_static = !table.statics.is_empty() && rng.random_bool(0.3);
        let row = if is_static { Vec::new() } else { table.row(self.types, rng) };
        let columns = if is_static { &table.statics } else { &table.regulars };
        let (mut assignments, mut values) = (Vec::new(), Vec::new());
        let first = rng.random_range(0..columns.len());
        for column in &columns[first..] {
            let (name, sign) = (quote(&column.name), ["+", "-"][rng.random_range(0..2)]);
            assignments.push(format!("{name} = {name} {sign} ?"));
            let step: i64 = if rng.random_bool(0.1) { rng.random::<i64>() / 2 } else { rng.random_range(-9..100) };
            values.push(Value::Bytes(step.to_be_bytes().to_vec()));
        }
        let (relations, keys) = self.key(table, partition, &row);
        values.extend(keys);
        Write { cql: format!("update {} set {} where {relations}", self.name(table), assignments.join(", ")), values }
    }

    fn assignment(&self, shape: Shape, column: &Column, rng: &mut ChaCha8Rng) -> (String, Vec<Value>) {
        let name = quote(&column.name);
        let whole = |rng: &mut ChaCha8Rng| (format!("{name} = ?"), vec![self.cell(&column.ty, rng)]);
        if !column.ty.is_multi_cell() || rng.random_bool(0.25) {
            if shape == Shape::CompactDense {
                return (format!("{name} = ?"), vec![self.value(&column.ty, rng)]);
            }
            return whole(rng);
        }
        let added = |rng: &mut ChaCha8Rng| match rng.random_range(0..25) {
            0 => Value::Null,
            1 => Value::Unset,
            _ => self.value(&column.ty, rng),
        };
        match &column.ty {
            Type::List { .. } => {
                let form = ["{} = {} + ?", "{} = ? + {}", "{} = {} - ?"][rng.random_range(0..3)];
                // Cassandra fails on an unset one.
                let value = match added(rng) {
                    Value::Unset => Value::Null,
                    value => value,
                };
                (form.replace("{}", &name), vec![value])
            }
            Type::Set { .. } => {
                let form = ["{} = {} + ?", "{} = {} - ?"][rng.random_range(0..2)];
                (form.replace("{}", &name), vec![added(rng)])
            }
            Type::Map { key, value, .. } => match rng.random_range(0..3) {
                0 => (format!("{name} = {name} + ?"), vec![added(rng)]),
                1 => {
                    let count = rng.random_range(0..4);
                    let keys = (0..count).map(|_| self.types.item(key, Place::Key, rng)).collect();
                    (format!("{name} = {name} - ?"), vec![Value::Bytes(collection(count, keys))])
                }
                _ => {
                    let key = Value::Bytes(self.types.item(key, Place::Key, rng));
                    let value = Value::Bytes(self.types.item(value, Place::Element, rng));
                    let value = if rng.random_bool(0.2) { Value::Null } else { value };
                    (format!("{name}[?] = ?"), vec![key, value])
                }
            },
            Type::Udt { udt, .. } => {
                let (field, ty) = self.types.udts[*udt].fields.choose(rng).expect("a UDT has fields");
                (format!("{name}.{} = ?", quote(field)), vec![self.cell(ty, rng)])
            }
            _ => whole(rng),
        }
    }

    fn delete(&self, table: &mut Table, partition: &[Value], context: Context, rng: &mut ChaCha8Rng) -> Write {
        let (using, used) = if table.is_of_counters() { Default::default() } else { self.using(context, false, rng) };
        let columns = match table.shape {
            Shape::CompactDense | Shape::CounterRows => Vec::new(),
            _ => self.deleted_columns(table, rng),
        };
        let has_ranges = !table.clustering.is_empty();
        let (relations, keys) = match rng.random_range(0..10) {
            kind if !columns.is_empty() && (kind < 3 || table.shape == Shape::CounterCells) => {
                let is_static =
                    columns.iter().all(|column| table.statics.iter().any(|other| other.name == column.name));
                let row = if is_static { Vec::new() } else { table.row(self.types, rng) };
                let (mut names, mut values) = (Vec::new(), Vec::new());
                for column in &columns {
                    names.push(self.deleted(column, &mut values, rng));
                }
                let (relations, keys) = self.key(table, partition, &row);
                let cql = format!("delete {} from {}{using} where {relations}", names.join(", "), self.name(table));
                let cql = if context == Context::Conditional { cql + " if exists" } else { cql };
                return Write { cql, values: [values, used, keys].concat() };
            }
            3..5 if context != Context::Conditional => self.key(table, partition, &[]),
            5..8 if has_ranges && context != Context::Conditional => self.range(table, partition, rng),
            _ => {
                let row = table.row(self.types, rng);
                self.key(table, partition, &row)
            }
        };
        let condition = if context == Context::Conditional { " if exists" } else { "" };
        let cql = format!("delete from {}{using} where {relations}{condition}", self.name(table));
        Write { cql, values: [used, keys].concat() }
    }

    fn deleted_columns(&self, table: &Table, rng: &mut ChaCha8Rng) -> Vec<Column> {
        let is_static = !table.statics.is_empty() && rng.random_bool(0.3);
        let mut columns = if is_static { table.statics.clone() } else { table.regulars.clone() };
        columns.shuffle(rng);
        columns.truncate(rng.random_range(1..4));
        columns
    }

    /// A column or one element of it.
    fn deleted(&self, column: &Column, values: &mut Vec<Value>, rng: &mut ChaCha8Rng) -> String {
        let name = quote(&column.name);
        if !column.ty.is_multi_cell() || rng.random() {
            return name;
        }
        match &column.ty {
            Type::Set { element: key, .. } | Type::Map { key, .. } => {
                values.push(Value::Bytes(self.types.item(key, Place::Key, rng)));
                format!("{name}[?]")
            }
            Type::Udt { udt, .. } => {
                let (field, _) = self.types.udts[*udt].fields.choose(rng).expect("a UDT has fields");
                format!("{name}.{}", quote(field))
            }
            _ => name,
        }
    }

    /// Several rows: by an equal prefix, a range of the column behind it or of several, or by IN.
    fn range(&self, table: &mut Table, partition: &[Value], rng: &mut ChaCha8Rng) -> (String, Vec<Value>) {
        let (low, high) = (table.row(self.types, rng), table.row(self.types, rng));
        let names: Vec<_> = table.clustering.iter().map(|(column, _)| quote(&column.name)).collect();
        let equal = rng.random_range(0..names.len());
        let (mut relations, mut values) = self.key(table, partition, &low[..equal]);
        let (above, below) = ([">", ">="][rng.random_range(0..2)], ["<", "<="][rng.random_range(0..2)]);
        let name = &names[equal];
        // Alone, as several columns may not be mixed with single ones in front.
        if equal == 0 && rng.random_bool(0.4) {
            let tuple = |count: usize| format!("({})", names[..count].join(", "));
            let marks = |count: usize| format!("({})", vec!["?"; count].join(", "));
            let (first, second) = (rng.random_range(1..=names.len()), rng.random_range(1..=names.len()));
            match rng.random_range(0..3) {
                0 => relations.push_str(&format!(" and {} {above} {}", tuple(first), marks(first))),
                1 => relations.push_str(&format!(" and {} {below} {}", tuple(first), marks(first))),
                _ => {
                    relations.push_str(&format!(" and {} {above} {}", tuple(first), marks(first)));
                    relations.push_str(&format!(" and {} {below} {}", tuple(second), marks(second)));
                    values.extend_from_slice(&low[..first]);
                    values.extend_from_slice(&high[..second]);
                    return (relations, values);
                }
            }
            values.extend_from_slice(&low[..first]);
            return (relations, values);
        }
        match rng.random_range(0..6) {
            0 => relations.push_str(&format!(" and {name} {above} ?")),
            1 => relations.push_str(&format!(" and {name} {below} ?")),
            2 if equal + 1 < names.len() => relations.push_str(&format!(" and {name} = ?")),
            3 if !self.types.has_duration(&table.clustering[equal].0.ty) && equal + 1 == names.len() => {
                relations.push_str(&format!(" and {name} in (?, ?)"));
                values.push(high[equal].clone());
            }
            _ => {
                relations.push_str(&format!(" and {name} {above} ? and {name} {below} ?"));
                values.extend([low[equal].clone(), high[equal].clone()]);
                return (relations, values);
            }
        }
        values.push(low[equal].clone());
        (relations, values)
    }

    /// `partition AND row`, of which only the given columns.
    fn key(&self, table: &Table, partition: &[Value], row: &[Value]) -> (String, Vec<Value>) {
        let columns =
            table.partition_key.iter().chain(table.clustering.iter().take(row.len()).map(|(column, _)| column));
        let relations: Vec<_> = columns.map(|column| format!("{} = ?", quote(&column.name))).collect();
        (relations.join(" and "), [partition, row].concat())
    }

    /// For an assignment of a whole column.
    fn cell(&self, ty: &Type, rng: &mut ChaCha8Rng) -> Value {
        match rng.random_range(0..20) {
            0 => Value::Null,
            1 => Value::Unset,
            _ if *ty == Type::Native(Native::Blob) && rng.random_bool(0.02) => {
                Value::Bytes((0..rng.random_range(0..self.blob_max)).map(|_| rng.random()).collect())
            }
            _ => self.value(ty, rng),
        }
    }

    fn value(&self, ty: &Type, rng: &mut ChaCha8Rng) -> Value {
        Value::Bytes(self.types.value(ty, Place::Column, rng))
    }

    fn using(&self, context: Context, with_ttl: bool, rng: &mut ChaCha8Rng) -> (String, Vec<Value>) {
        let (mut parts, mut values) = (Vec::new(), Vec::new());
        let timed = if self.types.variety == Variety::Great { 0.5 } else { 0.95 };
        if context != Context::Conditional && rng.random_bool(timed) {
            parts.push("timestamp ?");
            values.push(Value::Bytes(self.write_time(rng).to_be_bytes().to_vec()));
        }
        let expiring = if self.types.variety == Variety::Great { 0.2 } else { 0.35 };
        if with_ttl && rng.random_bool(expiring) {
            parts.push("ttl ?");
            let ttl = match rng.random_range(0..4) {
                0 => 0,
                1 => self.longest_ttl,
                2 => rng.random_range(1..4),
                _ if self.types.variety != Variety::Great => 86_400 + rng.random_range(0..2),
                _ => rng.random_range(1..self.longest_ttl),
            };
            values.push(Value::Bytes(ttl.to_be_bytes().to_vec()));
        }
        if parts.is_empty() { (String::new(), values) } else { (format!(" using {}", parts.join(" and ")), values) }
    }

    /// Mostly about now, with ties; any but the smallest number is one.
    fn write_time(&self, rng: &mut ChaCha8Rng) -> i64 {
        if self.types.variety != Variety::Great && rng.random_bool(0.97) {
            // What is written without a time of its own lies between them.
            let times = [1_442_880_000_000_000 - 1, 1_442_880_000_000_000, self.begin - 1, self.begin + HOUR];
            return times.choose(rng).expect("some") + rng.random_range(0..2);
        }
        let time = match rng.random_range(0..16) {
            0 => i64::MIN + 1,
            1 => i64::MAX,
            2 => rng.random_range(-3..3),
            3 => -rng.random_range(0..i64::MAX),
            4 => rng.random_range(0..i64::MAX),
            // The headers of mutations count from there.
            5 => 1_442_880_000_000_000 + rng.random_range(-200..200),
            _ => self.now - rng.random_range(0..1_000),
        };
        time.max(self.earliest)
    }

    fn name(&self, table: &Table) -> String {
        format!("{}.{}", self.keyspace, table.name)
    }
}
