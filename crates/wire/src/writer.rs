//! The encoder's half of Avro's binary encoding: fields in schema order, unions by branch number, an array as one
//! block and a zero.

use cdc_model::{
    Bound, Cell, CellValue, Change, ChangeBody, ColumnState, DeletionTime, LocalTime, NodeId, Provenance, RowState,
    SegmentPosition, TableSchema, TableTruncation, ValueBytes,
};

/// Variable-length zig-zag, as for Avro's int and long alike.
pub(crate) fn long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push((rest & 0x7f) as u8);
}

fn length(out: &mut Vec<u8>, length: usize) {
    long(out, i64::try_from(length).expect("memory is smaller than 2^63 bytes"));
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    length(out, value.len());
    out.extend_from_slice(value);
}

fn branch(out: &mut Vec<u8>, number: u8) {
    out.push(number << 1);
}

/// An array of known length: one block, closed by an empty one.
fn array<T>(out: &mut Vec<u8>, items: &[T], mut item: impl FnMut(&mut Vec<u8>, &T)) {
    if !items.is_empty() {
        length(out, items.len());
        for each in items {
            item(out, each);
        }
    }
    out.push(0);
}

pub(crate) fn change(out: &mut Vec<u8>, change: &Change) {
    out.extend_from_slice(change.table.id.0.as_bytes());
    bytes(out, &change.partition_key);
    match &change.body {
        ChangeBody::Row { clustering, row: state } => {
            branch(out, 0);
            let values = clustering.values().count();
            if values > 0 {
                length(out, values);
                for value in clustering.values() {
                    optional(out, value.as_ref(), |out, value| bytes(out, value));
                }
            }
            out.push(0);
            row(out, &change.table, state);
        }
        ChangeBody::Static(state) => {
            branch(out, 1);
            row(out, &change.table, state);
        }
        ChangeBody::DeletePartition(time) => {
            branch(out, 2);
            deletion(out, *time);
        }
        ChangeBody::DeleteRange(range) => {
            branch(out, 3);
            bound(out, &range.start);
            bound(out, &range.end);
            deletion(out, range.deletion);
        }
    }
    let Provenance { node, position } = change.provenance;
    place(out, node, position);
}

pub(crate) fn truncation(out: &mut Vec<u8>, truncation: &TableTruncation) {
    out.extend_from_slice(truncation.table.id.0.as_bytes());
    let positions: Vec<_> = truncation.at.iter().collect();
    array(out, &positions, |out, (node, position)| place(out, *node, *position));
}

fn place(out: &mut Vec<u8>, node: NodeId, position: SegmentPosition) {
    out.extend_from_slice(node.0.as_bytes());
    long(out, position.segment.0.cast_signed());
    long(out, position.offset.cast_signed());
}

fn optional<T>(out: &mut Vec<u8>, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        None => branch(out, 0),
        Some(value) => {
            branch(out, 1);
            write(out, value);
        }
    }
}

fn local_time(out: &mut Vec<u8>, local: LocalTime) {
    optional(out, (local != LocalTime::NONE).then_some(local), |out, local| long(out, local.0));
}

fn deletion(out: &mut Vec<u8>, deletion: DeletionTime) {
    long(out, deletion.time.0);
    long(out, deletion.local.0);
}

fn bound(out: &mut Vec<u8>, bound: &Bound) {
    array(out, &bound.prefix, |out, value| bytes(out, value));
    out.push(u8::from(bound.inclusive));
}

fn row(out: &mut Vec<u8>, table: &TableSchema, row: &RowState) {
    optional(out, row.liveness, |out, liveness| {
        long(out, liveness.time.0);
        long(out, liveness.ttl.into());
        local_time(out, liveness.expires);
    });
    optional(out, row.deletion, deletion);
    array(out, &row.columns, |out, (id, state)| {
        bytes(out, table.column(*id).name.as_bytes());
        match state {
            ColumnState::Simple(simple) => {
                branch(out, 0);
                cell(out, simple);
            }
            ColumnState::Complex(complex) => {
                branch(out, 1);
                optional(out, complex.deletion, deletion);
                array(out, &complex.cells, |out, (path, element): &(ValueBytes, Cell)| {
                    bytes(out, path);
                    cell(out, element);
                });
            }
        }
    });
}

fn cell(out: &mut Vec<u8>, cell: &Cell) {
    long(out, cell.time.0);
    long(out, cell.ttl.into());
    local_time(out, cell.local);
    match &cell.value {
        CellValue::Tombstone => branch(out, 0),
        CellValue::Live(value) => {
            branch(out, 1);
            bytes(out, value);
        }
        CellValue::Counter(context) => {
            branch(out, 2);
            bytes(out, context);
        }
    }
}
