//! Changes as JSON, in the form of `docs/specs/log-json.md`.

use cdc_commitlog::Truncation;
use cdc_model::{
    Bound, Cell, CellValue, Change, ChangeBody, ColumnId, ColumnState, CqlType, DeletionTime, KeyColumn, LocalTime,
    RowState, SegmentPosition, TableSchema, ValueBytes, compare_values,
};
use std::io::Write as _;
use uuid::Uuid;

use super::value::{put, write_text, write_value};

/// An object being written.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Object<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    /// Where the key's value is to be written.
    fn key(&mut self, name: &str) -> &mut Vec<u8> {
        if !std::mem::take(&mut self.empty) {
            self.out.push(b',');
        }
        write_text(self.out, name);
        self.out.push(b':');
        self.out
    }

    fn put(&mut self, name: &str, value: impl std::fmt::Display) {
        put!(self.key(name), "{value}");
    }

    fn text(&mut self, name: &str, text: &str) {
        write_text(self.key(name), text);
    }

    fn value(&mut self, name: &str, ty: &CqlType, bytes: &[u8]) {
        write_value(self.key(name), ty, bytes);
    }

    fn end(self) {
        self.out.push(b'}');
    }
}

pub(super) fn kind(body: &ChangeBody) -> &'static str {
    match body {
        ChangeBody::Row { .. } => "row",
        ChangeBody::Static(_) => "static",
        ChangeBody::DeletePartition(_) => "partition_delete",
        ChangeBody::DeleteRange(_) => "range_delete",
    }
}

pub(crate) fn write_change(out: &mut Vec<u8>, change: &Change) {
    let table = &change.table;
    let mut object = head(out, change.provenance.position, table, kind(&change.body));
    write_partition_key(object.key("partition_key"), table, &change.partition_key);
    match &change.body {
        ChangeBody::Row { clustering, row } => {
            write_key(object.key("clustering"), &table.clustering, clustering.values());
            write_row(&mut object, table, row);
        }
        ChangeBody::Static(row) => write_row(&mut object, table, row),
        ChangeBody::DeletePartition(deletion) => write_deletion(object.key("deletion"), *deletion),
        ChangeBody::DeleteRange(range) => {
            write_bound(object.key("start"), table, &range.start);
            write_bound(object.key("end"), table, &range.end);
            write_deletion(object.key("deletion"), range.deletion);
        }
    }
    object.end();
}

pub(super) fn write_truncation(out: &mut Vec<u8>, at: SegmentPosition, table: &TableSchema, truncation: &Truncation) {
    let mut object = head(out, at, table, "truncate");
    let mut truncated = Object::new(object.key("truncated_at"));
    if let Some(at) = truncation.at {
        truncated.put("segment", at.segment.0);
        truncated.put("position", at.offset);
    }
    truncated.put("time", truncation.wall_ms.saturating_mul(1000));
    truncated.end();
    object.end();
}

fn head<'a>(out: &'a mut Vec<u8>, at: SegmentPosition, table: &TableSchema, kind: &str) -> Object<'a> {
    let mut object = Object::new(out);
    object.put("segment", at.segment.0);
    object.put("position", at.offset);
    object.text("table", &table.full_name());
    put!(object.key("id"), "\"{}\"", table.id.0);
    object.text("kind", kind);
    object
}

fn write_partition_key(out: &mut Vec<u8>, table: &TableSchema, key: &[u8]) {
    match table.split_partition_key(key) {
        Some(values) => write_key(out, &table.partition_key, values.iter().map(|value| Some(&value[..]))),
        // Shown as bytes, like every value that is none of its type.
        None => write_value(out, &CqlType::Boolean, key),
    }
}

fn write_key<'v>(out: &mut Vec<u8>, columns: &[KeyColumn], values: impl Iterator<Item = Option<&'v [u8]>>) {
    let mut object = Object::new(out);
    for (column, value) in columns.iter().zip(values) {
        match value {
            Some(value) => object.value(&column.name, &column.ty, value),
            None => object.put(&column.name, "null"),
        }
    }
    object.end();
}

fn write_bound(out: &mut Vec<u8>, table: &TableSchema, bound: &Bound) {
    let mut object = Object::new(out);
    write_key(object.key("values"), &table.clustering, bound.prefix.iter().map(|value| Some(&value[..])));
    object.put("inclusive", bound.inclusive);
    object.end();
}

fn write_row(object: &mut Object<'_>, table: &TableSchema, row: &RowState) {
    if let Some(marker) = row.liveness {
        let mut json = Object::new(object.key("marker"));
        json.put("time", marker.time.0);
        if marker.ttl != 0 {
            json.put("ttl", marker.ttl);
            json.put("expires", marker.expires.0);
        }
        json.end();
    }
    if let Some(deletion) = row.deletion {
        write_deletion(object.key("deletion"), deletion);
    }
    let (mut cells, mut deletions) = (Vec::new(), Vec::new());
    for (name, ty, state) in columns_by_name(table, row) {
        match state {
            ColumnState::Simple(cell) => item(&mut cells, |out| write_cell(out, name, ty, None, cell)),
            ColumnState::Complex(complex) => {
                if let Some(deletion) = complex.deletion {
                    item(&mut deletions, |out| {
                        let mut json = Object::new(out);
                        json.text("column", name);
                        write_times(json, deletion);
                    });
                }
                for (path, cell) in in_type_order(ty, &complex.cells) {
                    item(&mut cells, |out| write_cell(out, name, ty, Some(path), cell));
                }
            }
        }
    }
    for (key, items) in [("cells", cells), ("complex_deletions", deletions)] {
        if !items.is_empty() {
            let out = object.key(key);
            out.push(b'[');
            out.extend(items);
            out.push(b']');
        }
    }
}

fn item(items: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    if !items.is_empty() {
        items.push(b',');
    }
    write(items);
}

pub(super) fn columns_by_name<'a>(
    table: &'a TableSchema,
    row: &'a RowState,
) -> Vec<(&'a str, &'a CqlType, &'a ColumnState)> {
    let of = |(id, state): &'a (ColumnId, ColumnState)| (table.column(*id).name.as_str(), &table.column(*id).ty, state);
    let mut columns: Vec<_> = row.columns.iter().map(of).collect();
    columns.sort_by_key(|(name, ..)| *name);
    columns
}

/// Elements as `SELECT` shows them.
pub(super) fn in_type_order<'a>(ty: &CqlType, cells: &'a [(ValueBytes, Cell)]) -> Vec<&'a (ValueBytes, Cell)> {
    let path_type: &CqlType = match ty {
        CqlType::List { .. } => &CqlType::TimeUuid,
        CqlType::Set { element, .. } => element,
        CqlType::Map { key, .. } => key,
        _ => &CqlType::Blob,
    };
    let mut cells: Vec<_> = cells.iter().collect();
    cells.sort_by(|a, b| compare_values(path_type, &a.0, &b.0));
    cells
}

fn write_cell(out: &mut Vec<u8>, column: &str, ty: &CqlType, path: Option<&[u8]>, cell: &Cell) {
    let mut object = Object::new(out);
    object.text("column", column);
    let mut value_type = Some(ty);
    if let Some(path) = path {
        value_type = write_path(object.key("path"), ty, path);
    }
    match &cell.value {
        CellValue::Tombstone => object.put("deleted", true),
        CellValue::Counter(context) => write_shards(object.key("shards"), context),
        CellValue::Live(value) => {
            if let Some(ty) = value_type {
                object.value("value", ty, value);
            }
        }
    }
    object.put("time", cell.time.0);
    if cell.ttl != 0 {
        object.put("ttl", cell.ttl);
    }
    if cell.local != LocalTime::NONE {
        object.put("local", cell.local.0);
    }
    object.end();
}

/// Writes which element a cell is of and gives the type of its value; `None`: the path is all there is.
pub(super) fn write_path<'a>(out: &mut Vec<u8>, ty: &'a CqlType, path: &[u8]) -> Option<&'a CqlType> {
    match ty {
        CqlType::List { element, .. } => {
            write_value(out, &CqlType::TimeUuid, path);
            Some(element)
        }
        CqlType::Set { element, .. } => {
            write_value(out, element, path);
            None
        }
        CqlType::Map { key, value, .. } => {
            write_value(out, key, path);
            Some(value)
        }
        CqlType::Udt { fields, .. } => {
            let number = path.try_into().map(u16::from_be_bytes).map(usize::from);
            match number.ok().and_then(|number| fields.get(number)) {
                Some((name, ty)) => {
                    write_text(out, name);
                    Some(ty)
                }
                // A field this schema does not know.
                None => {
                    write_value(out, &CqlType::Blob, path);
                    Some(&CqlType::Blob)
                }
            }
        }
        other => {
            write_value(out, &CqlType::Blob, path);
            Some(other)
        }
    }
}

/// Shards as they stand (`db/context/CounterContext.java`): u16 count of header entries, the entries (the index of a
/// shard, plus `i16::MIN` if it is global, else it is local), and per shard id, clock, count.
fn write_shards(out: &mut Vec<u8>, context: &[u8]) {
    let count = context.first_chunk::<2>().map_or(0, |word| i16::from_be_bytes(*word).unsigned_abs());
    let header = context.get(2..2 + 2 * usize::from(count)).unwrap_or_default();
    let shards = context.get(2 + header.len()..).unwrap_or_default();
    let (entries, _) = header.as_chunks::<2>();
    out.push(b'[');
    for (index, shard) in (0i32..).zip(shards.chunks_exact(32)) {
        if index > 0 {
            out.push(b',');
        }
        let stands = |wanted: i32| entries.iter().any(|entry| i32::from(i16::from_be_bytes(*entry)) == wanted);
        let kind = match (stands(index + i32::from(i16::MIN)), stands(index)) {
            (true, _) => "global",
            (false, true) => "local",
            (false, false) => "remote",
        };
        let word = |at: usize| shard[at..].first_chunk::<8>().map_or(0, |word| i64::from_be_bytes(*word));
        let mut json = Object::new(out);
        put!(json.key("id"), "\"{}\"", Uuid::from_slice(&shard[..16]).unwrap_or_default());
        json.put("clock", word(16));
        json.put("count", word(24));
        json.text("kind", kind);
        json.end();
    }
    out.push(b']');
}

fn write_deletion(out: &mut Vec<u8>, deletion: DeletionTime) {
    write_times(Object::new(out), deletion);
}

fn write_times(mut object: Object<'_>, deletion: DeletionTime) {
    object.put("time", deletion.time.0);
    object.put("local", deletion.local.0);
    object.end();
}
