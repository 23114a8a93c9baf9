//! Random changes of the schema, in the middle of the writes.

use rand::{RngExt as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

use super::schema::{Column, Table};
use super::types::{Native, Place, Type, Types, quote};

/// Changes the remembered schema and says how; `None` if what was drawn cannot be done now.
pub(super) fn alter(
    keyspace: &str,
    types: &mut Types,
    tables: &mut [Table],
    rng: &mut ChaCha8Rng,
) -> Option<Vec<String>> {
    if rng.random_bool(0.15) {
        return alter_type(keyspace, types, tables, rng).map(|cql| vec![cql]);
    }
    let table = tables.choose_mut_where(Table::may_change, rng)?;
    let name = format!("{keyspace}.{}", table.name);
    match rng.random_range(0..9) {
        0..3 => {
            let is_static = !table.clustering.is_empty() && rng.random_bool(0.3);
            let ty = types.random(rng, Place::Column, 2);
            let column = table.column(ty, rng);
            Some(vec![add(&name, types, table, column, is_static)])
        }
        3..5 => {
            let is_static = !table.statics.is_empty() && rng.random_bool(0.3);
            let columns = if is_static { &mut table.statics } else { &mut table.regulars };
            // One of a non-frozen UDT cannot be dropped.
            let droppable: Vec<usize> =
                (0..columns.len()).filter(|at| !matches!(columns[*at].ty, Type::Udt { frozen: false, .. })).collect();
            let column = columns.remove(*droppable.choose(rng)?);
            let cql = format!("alter table {name} drop {}", quote(&column.name));
            table.dropped.push((column, is_static));
            Some(vec![cql])
        }
        5..7 => {
            // One with a UDT is kept as a tuple once dropped and may not come back.
            let at = table.dropped.iter().position(|(column, _)| !types.has_udt(&column.ty))?;
            let (mut column, is_static) = table.dropped.remove(at);
            if column.ty == Type::Native(Native::Ascii) && rng.random() {
                column.ty = Type::Native(Native::Text);
            }
            Some(vec![add(&name, types, table, column, is_static)])
        }
        7 => {
            let keys = table.partition_key.len() + table.clustering.len();
            let at = rng.random_range(0..keys);
            let fresh = table.column(Type::Counter, rng).name;
            let column = match at.checked_sub(table.partition_key.len()) {
                None => &mut table.partition_key[at],
                Some(at) => &mut table.clustering[at].0,
            };
            let old = std::mem::replace(&mut column.name, fresh);
            Some(vec![format!("alter table {name} rename {} to {}", quote(&old), quote(&column.name))])
        }
        _ => {
            let fresh = Table::random(types, &table.name, rng);
            *table = fresh;
            Some(vec![format!("drop table {name}"), table.create(keyspace, types, true)])
        }
    }
}

fn add(name: &str, types: &Types, table: &mut Table, column: Column, is_static: bool) -> String {
    let suffix = if is_static { " static" } else { "" };
    let cql = format!("alter table {name} add {} {}{suffix}", quote(&column.name), types.cql(&column.ty));
    if is_static {
        table.statics.push(column)
    } else {
        table.regulars.push(column)
    }
    cql
}

fn alter_type(keyspace: &str, types: &mut Types, tables: &[Table], rng: &mut ChaCha8Rng) -> Option<String> {
    let udt = rng.random_range(0..types.udts.len());
    let of_partitions = tables.iter().flat_map(|table| &table.partition_key);
    let is_in_key = of_partitions.clone().any(|column| types.refers_to(&column.ty, udt));
    let fields = types.udts[udt].fields.len();
    let field = format!("added{fields}");
    // Not of a type that could hold this one, and nothing that may not be ordered.
    let ty = types.random(rng, Place::Key, 0);
    let definition = types.cql(&ty);
    let udt = &mut types.udts[udt];
    if rng.random_bool(0.3) {
        let (name, _) = &mut udt.fields[rng.random_range(0..fields)];
        let fresh = format!("renamed{}", name.len()) + name;
        let old = std::mem::replace(name, fresh);
        return Some(format!("alter type {keyspace}.{} rename {} to {}", udt.name, quote(&old), quote(name)));
    }
    if is_in_key {
        return None;
    }
    udt.fields.push((field.clone(), ty));
    Some(format!("alter type {keyspace}.{} add {} {definition}", udt.name, quote(&field)))
}

trait ChooseWhere<T> {
    fn choose_mut_where(&mut self, is_fit: impl Fn(&T) -> bool, rng: &mut ChaCha8Rng) -> Option<&mut T>;
}

impl<T> ChooseWhere<T> for [T] {
    fn choose_mut_where(&mut self, is_fit: impl Fn(&T) -> bool, rng: &mut ChaCha8Rng) -> Option<&mut T> {
        let fit: Vec<usize> = (0..self.len()).filter(|at| is_fit(&self[*at])).collect();
        self.get_mut(*fit.choose(rng)?)
    }
}
