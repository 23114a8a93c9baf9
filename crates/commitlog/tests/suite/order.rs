//! Values that are easily read or ordered wrongly, of a real Cassandra 5.0.5. The expectations were written down from
//! `golden/order/statements.cql`.

use std::fmt::Write as _;

use cdc_commitlog::{Decoder, Format, SchemaHistory};
use cdc_model::{
    Bound, Cell, CellValue, Change, ChangeBody, ColumnState, ComplexState, CqlType, CqlValue, TableSchema, ValueBytes,
    WriteTime, compare_values,
};

use crate::{schema::Recording, support::provenance};

const T0: i64 = 1_700_000_000_000_000;

/// Each change to the tables of the statements with the entry it was logged in, decoded with the schema in the log.
fn recorded() -> Vec<(bytes::Bytes, Change)> {
    let (mut decoder, mut history) = (Decoder::new(), SchemaHistory::new());
    let mut found = Vec::new();
    for (_, payload) in Recording::load("order", "5.0.5").segments.iter().flat_map(|(_, entries)| entries) {
        let mut changes = Vec::new();
        let captured = |table: &TableSchema| table.keyspace == "ordered" || history.follows(table.id);
        decoder.decode(Format::V7, payload, provenance(), &history, &captured, &mut changes).unwrap();
        assert_eq!(history.apply(&changes).faults, []);
        let own = changes.into_iter().filter(|change| change.table.keyspace == "ordered");
        found.extend(own.map(|change| (payload.clone(), change)));
    }
    found
}

fn show(ty: &CqlType, bytes: &[u8]) -> String {
    fn joined(values: impl IntoIterator<Item = String>) -> String {
        values.into_iter().collect::<Vec<_>>().join(" ")
    }
    fn text(value: CqlValue) -> String {
        let option = |value: Option<CqlValue>| value.map_or("null".into(), text);
        match value {
            CqlValue::Text(text) => format!("'{text}'"),
            CqlValue::Blob(bytes) => bytes.iter().fold("0x".into(), |mut hex, byte| {
                write!(hex, "{byte:02x}").unwrap();
                hex
            }),
            CqlValue::TinyInt(value) => value.to_string(),
            CqlValue::Int(value) => value.to_string(),
            CqlValue::BigInt(value) | CqlValue::Timestamp(value) | CqlValue::Date(value) => value.to_string(),
            CqlValue::Varint(value) => value.to_string(),
            CqlValue::Decimal { unscaled, scale } => format!("{unscaled}e{}", -i64::from(scale)),
            CqlValue::Float(value) if value.is_nan() => format!("NaN:{:x}", value.to_bits()),
            CqlValue::Float(value) => format!("{value:?}"),
            CqlValue::Double(value) if value.is_nan() => format!("NaN:{:x}", value.to_bits()),
            CqlValue::Double(value) => format!("{value:?}"),
            CqlValue::Uuid(value) => value.to_string(),
            CqlValue::Inet(value) => value.to_string(),
            CqlValue::Duration { months, days, nanoseconds } => format!("{months}mo{days}d{nanoseconds}ns"),
            CqlValue::List(values) => format!("[{}]", joined(values.into_iter().map(option))),
            CqlValue::Tuple(values) => format!("({})", joined(values.into_iter().map(option))),
            CqlValue::Vector(values) => format!("[{}]", joined(values.into_iter().map(text))),
            CqlValue::Set(values) => format!("{{{}}}", joined(values.into_iter().map(text))),
            CqlValue::Map(entries) => {
                let entry = |(key, value)| format!("{}:{}", text(key), option(value));
                format!("{{{}}}", joined(entries.into_iter().map(entry)))
            }
            CqlValue::Empty => "empty".into(),
            other => panic!("{other:?}"),
        }
    }
    text(CqlValue::decode(ty, bytes).unwrap())
}

fn time(time: WriteTime) -> String {
    format!("@{}", time.0 - T0)
}

fn cell(ty: &CqlType, cell: &Cell) -> String {
    let value = match &cell.value {
        CellValue::Live(bytes) => show(ty, bytes),
        CellValue::Tombstone => "x".into(),
        CellValue::Counter(_) => panic!("no counters"),
    };
    format!("{value}{}", time(cell.time))
}

/// Type of the paths and of the values.
fn types(ty: &CqlType) -> (&CqlType, &CqlType) {
    match ty {
        CqlType::Set { element, .. } => (element, &CqlType::Empty),
        CqlType::Map { key, value, .. } => (key, value),
        CqlType::List { element, .. } => (&CqlType::TimeUuid, element),
        other => panic!("{other:?} is not complex"),
    }
}

/// As Cassandra orders them.
fn in_order<'a>(ty: &CqlType, complex: &'a ComplexState) -> Vec<&'a (ValueBytes, Cell)> {
    let mut cells: Vec<_> = complex.cells.iter().collect();
    cells.sort_by(|a, b| compare_values(types(ty).0, &a.0, &b.0));
    cells
}

fn complex(ty: &CqlType, complex: &ComplexState) -> String {
    let (path_type, value_type) = types(ty);
    let element = |(path, state): &(ValueBytes, Cell)| match ty {
        CqlType::List { .. } => cell(value_type, state),
        CqlType::Set { .. } => format!("{}{}", show(path_type, path), time(state.time)),
        _ => format!("{}:{}", show(path_type, path), cell(value_type, state)),
    };
    let deletion = complex.deletion.map(|deletion| format!("x{}", time(deletion.time)));
    let elements: Vec<_> = deletion.into_iter().chain(in_order(ty, complex).into_iter().map(element)).collect();
    format!("[{}]", elements.join(", "))
}

fn line(change: &Change) -> String {
    let table = &change.table;
    let clustering = |values: &[ValueBytes]| {
        let values = table.clustering.iter().zip(values).map(|(column, value)| show(&column.ty, value));
        values.collect::<Vec<_>>().join(",")
    };
    let bound =
        |bound: &Bound| format!("{} {}", clustering(&bound.prefix), if bound.inclusive { "incl" } else { "excl" });
    let body = match &change.body {
        ChangeBody::Row { row, .. } => {
            let column = |(id, state): &(_, ColumnState)| {
                let column = table.column(*id);
                let state = match state {
                    ColumnState::Simple(state) => cell(&column.ty, state),
                    ColumnState::Complex(state) => complex(&column.ty, state),
                };
                format!("{}={state}", column.name)
            };
            let live = row.liveness.map(|liveness| format!("live{}", time(liveness.time)));
            live.into_iter().chain(row.columns.iter().map(column)).collect::<Vec<_>>().join(" ")
        }
        ChangeBody::DeleteRange(range) => {
            format!("{} .. {}{}", bound(&range.start), bound(&range.end), time(range.deletion.time))
        }
        other => panic!("{other:?}"),
    };
    format!("{} {}: {body}", table.name, show(&CqlType::Int, &change.partition_key))
}

const EXPECTED: &str = "
cells 1: live@1 floats=[x@0, -inf@1, -1.5@1, -0.0@1, 0.0@1, 1.5@1, 3.4028235e38@1, inf@1, NaN:ffc00001@1]
cells 2: live@2 floats=[x@1, -3.4028235e38@2, -0.0@2, 0.0@2, inf@2, NaN:7fc00000@2]
cells 3: live@3 doubles=[x@2, -inf@3, -0.0@3, 0.0@3, 1e23@3, inf@3, NaN:fff8000000000001@3]
cells 4: floats=[NaN:ffc00001@4]
cells 19: decimals=[250e-2@20]
cells 5: live@5 decimals=[x@4, -1e30@5, -2e0@5, -15e-1@5, 0e-2@5, 1e-30@5, 150e-2@5, 999e-2@5, 1e1@5, 101e-1@5]
cells 6: live@6 by_decimal=[x@5, -1e-1:0x03@6, 250e-2:0x02@6, 999e-1:0x04@6, 100e0:0x01@6]
cells 7: live@7 varints=[x@6, -18446744073709551616@7, -129@7, -128@7, -1@7, 0@7, 6@7, 7@7, 8@7, 127@7, 128@7, \
18446744073709551616@7]
cells 8: live@8 uuids=[x@7, 00000000-0000-0000-0000-000000000000@8, 00000001-0000-1000-bfff-ffffffffffff@8, \
ffffffff-0000-1000-8000-000000000000@8, 50554d6e-29bb-11e5-807f-000000000000@8, \
50554d6e-29bb-11e5-8080-000000000000@8, 023e4567-e89b-42d3-a456-426614174000@8, \
123e4567-e89b-42d3-a456-426614174000@8, ffffffff-ffff-ffff-ffff-ffffffffffff@8]
cells 9: live@9 timeuuids=[x@8, 00000001-0000-1000-bfff-ffffffffffff@9, ffffffff-0000-1000-8000-000000000000@9, \
50554d6e-29bb-11e5-8080-000000000000@9, 50554d6e-29bb-11e5-807f-000000000000@9]
cells 10: live@10 inets=[x@9, ::1@10, 9.255.255.255@10, 10.0.0.1@10, 2001:db8::1@10, fe80::1@10, 255.255.255.255@10]
cells 11: live@11 tinyints=[x@10, -128@11, -1@11, 0@11, 127@11]
cells 12: live@12 bigints=[x@11, empty@12, -9223372036854775808@12, -1@12, 1@12, 9223372036854775807@12]
cells 13: live@13 dates=[x@12, -719893@13, -1@13, 0@13, 2932896@13]
cells 14: live@14 texts=[x@13, ''@14, 'Z'@14, 'a'@14, 'aa'@14, 'é'@14, '�'@14, '😀'@14]
cells 15: live@15 tuples=[x@14, (-1 'z')@15, (1 null)@15, (1 '')@15, (1 'a')@15, (2 null)@15]
cells 16: live@16 by_vector=[x@15, [-9223372036854775808 5]:0x01@16, [-1 0]:0x02@16, [3075402048585 \
-9223372036854775808]:0x03@16, [199218492505611 -455673060000]:0x04@16]
cells 17: live@17 by_texts=[x@16, ['aaa' 'cc']:0x01@17, ['aaa' 'd']:0x02@17, ['b' '']:0x03@17]
cells 18: live@18 float_lists=[x@17, [-0.0]@18, [0.0]@18, [1.0]@18, [1.0 inf]@18, [1.0 NaN:ffc00001]@18]
single 1: live@30 b=0x@30 i=empty@30 m=[x@29, 'e':empty@30, 'f':1@30] t=''@30 tup=(null empty '')@30
single 1: live@31 b=x@31 i=x@31 t=x@31 tup=x@31
single 1: m=['e':x@32, 'g':0@32]
single 2: live@33 fmap={50554d6e-29bb-11e5-807f-000000000000:'' 50554d6e-29bb-11e5-8080-000000000000:'later'}@33 \
fset={-0.0 0.0 inf NaN:ffc00001}@33
single 3: live@34 d=-1mo-2d-3ns@34 durations=[x@33, 'back':0mo0d-3ns@34, \
'long':2147483647mo2147483647d9223372036854775807ns@34, 'none':0mo0d0ns@34]
single 3: dlist=[1mo0d0ns@35, 0mo-1d0ns@35]
ranges 1: 1 incl .. 5 incl@40
ranges 1: 1 excl .. 5 excl@41
ranges 2: 1 incl .. 5 excl@42
ranges 2: 5 incl .. 9 incl@43
ranges 3: 1 incl .. 5 incl@44
ranges 3: 5 excl .. 9 excl@45
ranges 4: 4 excl ..  incl@46
ranges 4:  incl .. 4 incl@47
ranges 4: 7 incl .. 7,3 excl@48
ranges 4: 7,3 incl .. 7 incl@49
ranges 4: 8 incl .. 8 incl@50";

#[test]
fn values_of_every_type_come_out_as_written_in_the_order_of_their_type() {
    let lines: Vec<_> = recorded().iter().map(|(_, change)| line(change)).collect();
    let expected: Vec<_> = EXPECTED.trim().lines().collect();
    for (ours, expected) in lines.iter().zip(&expected) {
        assert_eq!(ours, expected);
    }
    assert_eq!(lines.len(), expected.len());
}

#[test]
fn cells_are_logged_in_the_order_that_values_are_compared_in() {
    let mut seen = 0;
    for (payload, change) in &recorded() {
        // Of the inserts, whose cells have the row's time.
        let ChangeBody::Row { row, .. } = &change.body else { continue };
        if change.table.name != "cells" || row.liveness.is_none() {
            continue;
        }
        let [(id, ColumnState::Complex(state))] = &row.columns[..] else { panic!("{change:?}") };
        let column = change.table.column(*id);
        let cells = in_order(&column.ty, state);
        for pair in cells.windows(2) {
            let order = compare_values(types(&column.ty).0, &pair[0].0, &pair[1].0);
            assert!(order.is_lt(), "{}: none is equal to another", line(change));
        }
        // A cell is its flags, its path and, in a map, its value; one follows the other.
        let short = |bytes: &[u8]| [&[u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let logged = |(path, cell): &&(ValueBytes, Cell)| match &cell.value {
            CellValue::Live(value) if value.is_empty() => [&[0x0c][..], &short(path)].concat(),
            CellValue::Live(value) => [&[0x08][..], &short(path), &short(value)].concat(),
            other => panic!("{other:?}"),
        };
        let run: Vec<u8> = cells.iter().flat_map(logged).collect();
        assert!(payload.windows(run.len()).any(|part| part == run), "{}", line(change));
        seen += 1;
    }
    assert_eq!(seen, 17);
}

#[test]
fn bounds_of_every_kind_are_among_the_ranges() {
    let recorded = recorded();
    // Ends that exclude and include, starts likewise, and both boundaries between two ranges.
    for kind in [0, 6, 1, 7, 2, 5] {
        // A marker, its kind, and how many values it has.
        let marker = [2, kind, 0, 1];
        let ranges = recorded.iter().filter(|(_, change)| change.table.name == "ranges");
        let found = ranges.filter(|(payload, _)| payload.windows(4).any(|part| part == marker));
        assert!(found.count() > 0, "kind {kind}");
    }
}
