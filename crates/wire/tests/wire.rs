//! The hand-written encoding against `apache-avro`, against damage, and against files of earlier releases.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::{io::Cursor, path::PathBuf, sync::Arc};

use apache_avro::{GenericSingleObjectReader, Schema, types::Value, writer::datum::GenericDatumWriter};
use bytes::Bytes;
use cdc_model::{
    Bound, Cell, CellValue, Change, ChangeBody, Clustering, Column, ColumnId, ColumnKind, ColumnState, ComplexState,
    CqlType, DeletionTime, KeyColumn, Liveness, LocalTime, NodeId, Provenance, RangeTombstone, RowState, SegmentId,
    SegmentPosition, TableId, TableSchema, TableTruncation, TruncatedAt, ValueBytes, WriteTime,
};
use cdc_wire::{
    CHANGE_SCHEMA, SchemaLookup, TRUNCATION_SCHEMA, WireError, decode_change, decode_schema, decode_truncation,
    encode_change, encode_schema, encode_truncation, fingerprint, table_of, truncation_fingerprint,
};
use proptest::{collection, option, prelude::*};
use uuid::Uuid;

struct Tables(Vec<Arc<TableSchema>>);

impl SchemaLookup for Tables {
    fn table(&self, id: TableId) -> Option<Arc<TableSchema>> {
        self.0.iter().find(|table| table.id == id).cloned()
    }
}

fn key(name: &str) -> KeyColumn {
    KeyColumn { name: name.to_owned(), ty: CqlType::Text, reversed: false }
}

fn table() -> Arc<TableSchema> {
    let set = CqlType::Set { element: Box::new(CqlType::Text), frozen: false };
    let columns = [("amount", CqlType::Int), ("tags", set), ("zähler", CqlType::Counter), ("note", CqlType::Text)];
    let column = |(name, ty): (&str, CqlType)| Column {
        name: name.to_owned(),
        ty,
        kind: if name == "note" { ColumnKind::Static } else { ColumnKind::Regular },
        dropped: None,
    };
    let table = TableSchema {
        id: TableId(Uuid::from_u128(0x0123_4567_89ab_cdef_0011_2233_4455_6677)),
        keyspace: "shop".to_owned(),
        name: "orders".to_owned(),
        partition_key: vec![key("customer")],
        clustering: vec![key("day"), key("number")],
        columns: columns.into_iter().map(column).collect(),
        cdc: true,
        gc_grace_seconds: 864_000,
    };
    Arc::new(table.new().unwrap())
}

/// Shorter and longer than what a value holds in place.
fn blob() -> impl Strategy<Value = ValueBytes> {
    collection::vec(any::<u8>(), 0..50).prop_map(ValueBytes::from)
}

fn local_time() -> impl Strategy<Value = LocalTime> {
    any::<i64>().prop_map(LocalTime)
}

fn deletion() -> impl Strategy<Value = DeletionTime> {
    (any::<i64>(), local_time()).prop_map(|(time, local)| DeletionTime { time: WriteTime(time), local })
}

fn cell() -> impl Strategy<Value = Cell> {
    let value =
        prop_oneof![Just(CellValue::Tombstone), blob().prop_map(CellValue::Live), blob().prop_map(CellValue::Counter)];
    (any::<i64>(), any::<i32>(), local_time(), value).prop_map(|(time, ttl, local, value)| Cell {
        time: WriteTime(time),
        ttl,
        local,
        value,
    })
}

fn row() -> impl Strategy<Value = RowState> {
    let liveness = (any::<i64>(), any::<i32>(), local_time()).prop_map(|(time, ttl, expires)| Liveness {
        time: WriteTime(time),
        ttl,
        expires,
    });
    let complex = (option::of(deletion()), collection::btree_map(blob(), cell(), 0..4))
        .prop_map(|(deletion, cells)| ComplexState { deletion, cells: cells.into_iter().collect() });
    let state = prop_oneof![cell().prop_map(ColumnState::Simple), complex.prop_map(ColumnState::Complex)];
    (option::of(liveness), option::of(deletion()), collection::btree_map(0u16..4, state, 0..5)).prop_map(
        |(liveness, deletion, columns)| RowState {
            liveness,
            deletion,
            columns: columns.into_iter().map(|(id, state)| (ColumnId(id), state)).collect(),
        },
    )
}

fn bound() -> impl Strategy<Value = Bound> {
    (collection::vec(blob(), 0..3), any::<bool>()).prop_map(|(prefix, inclusive)| Bound { prefix, inclusive })
}

fn body() -> impl Strategy<Value = ChangeBody> {
    let clustering = collection::vec(option::of(blob()), 0..3).prop_map(Clustering::new);
    prop_oneof![
        4 => (clustering, row()).prop_map(|(clustering, row)| ChangeBody::Row { clustering, row }),
        1 => row().prop_map(ChangeBody::Static),
        1 => deletion().prop_map(ChangeBody::DeletePartition),
        1 => (bound(), bound(), deletion())
            .prop_map(|(start, end, deletion)| ChangeBody::DeleteRange(RangeTombstone { start, end, deletion })),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    (blob(), body(), any::<u128>(), any::<u64>(), any::<u64>()).prop_map(
        |(partition_key, body, node, segment, offset)| Change {
            table: table(),
            partition_key,
            body,
            provenance: Provenance {
                node: NodeId(Uuid::from_u128(node)),
                position: SegmentPosition { segment: SegmentId(segment), offset },
            },
        },
    )
}

fn truncation() -> impl Strategy<Value = TableTruncation> {
    let position = (any::<u64>(), any::<u64>());
    let position = position.prop_map(|(segment, offset)| SegmentPosition { segment: SegmentId(segment), offset });
    let node = any::<u128>().prop_map(|node| NodeId(Uuid::from_u128(node)));
    collection::btree_map(node, position, 0..4)
        .prop_map(|at| TableTruncation { table: table(), at: at.into_iter().collect() })
}

/// As [`value`].
fn truncation_value(truncation: &TableTruncation) -> Value {
    let field = |name: &str, value| (name.to_owned(), value);
    let uuid = |id: Uuid| Value::Fixed(16, id.as_bytes().to_vec());
    let position = |(node, position): (NodeId, SegmentPosition)| {
        Value::Record(vec![
            field("node", uuid(node.0)),
            field("segment", Value::Long(position.segment.0.cast_signed())),
            field("offset", Value::Long(position.offset.cast_signed())),
        ])
    };
    Value::Record(vec![
        field("table", uuid(truncation.table.id.0)),
        field("positions", Value::Array(truncation.at.iter().map(position).collect())),
    ])
}

/// The change as `apache-avro` would hold it, written from the schema alone.
fn value(change: &Change) -> Value {
    let record = |fields: Vec<(&str, Value)>| {
        Value::Record(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    };
    let union = |branch: u32, value: Value| Value::Union(branch, Box::new(value));
    let optional = |value: Option<Value>| value.map_or_else(|| union(0, Value::Null), |value| union(1, value));
    let bytes = |value: &[u8]| Value::Bytes(value.to_vec());
    let uuid = |id: Uuid| Value::Fixed(16, id.as_bytes().to_vec());
    let local = |time: LocalTime| optional((time != LocalTime::NONE).then_some(Value::Long(time.0)));
    let deletion = |d: DeletionTime| record(vec![("time", Value::Long(d.time.0)), ("local", Value::Long(d.local.0))]);
    let cell = |cell: &Cell| {
        record(vec![
            ("time", Value::Long(cell.time.0)),
            ("ttl", Value::Int(cell.ttl)),
            ("local", local(cell.local)),
            (
                "value",
                match &cell.value {
                    CellValue::Tombstone => union(0, Value::Null),
                    CellValue::Live(value) => union(1, bytes(value)),
                    CellValue::Counter(context) => union(2, record(vec![("context", bytes(context))])),
                },
            ),
        ])
    };
    let state = |state: &ColumnState| match state {
        ColumnState::Simple(simple) => union(0, cell(simple)),
        ColumnState::Complex(complex) => {
            let element =
                |(path, value): &(ValueBytes, Cell)| record(vec![("path", bytes(path)), ("cell", cell(value))]);
            union(
                1,
                record(vec![
                    ("deletion", optional(complex.deletion.map(deletion))),
                    ("cells", Value::Array(complex.cells.iter().map(element).collect())),
                ]),
            )
        }
    };
    let row = |row: &RowState| {
        let liveness = |l: Liveness| {
            record(vec![("time", Value::Long(l.time.0)), ("ttl", Value::Int(l.ttl)), ("expires", local(l.expires))])
        };
        let column = |(id, column): &(ColumnId, ColumnState)| {
            let name = Value::String(change.table.column(*id).name.clone());
            record(vec![("name", name), ("state", state(column))])
        };
        record(vec![
            ("liveness", optional(row.liveness.map(liveness))),
            ("deletion", optional(row.deletion.map(deletion))),
            ("columns", Value::Array(row.columns.iter().map(column).collect())),
        ])
    };
    let bound = |bound: &Bound| {
        record(vec![
            ("prefix", Value::Array(bound.prefix.iter().map(|value| bytes(value)).collect())),
            ("inclusive", Value::Boolean(bound.inclusive)),
        ])
    };
    let body = match &change.body {
        ChangeBody::Row { clustering, row: state } => {
            let values = clustering.values().map(|value| optional(value.map(bytes))).collect();
            union(0, record(vec![("clustering", Value::Array(values)), ("row", row(state))]))
        }
        ChangeBody::Static(state) => union(1, record(vec![("row", row(state))])),
        ChangeBody::DeletePartition(time) => union(2, record(vec![("deletion", deletion(*time))])),
        ChangeBody::DeleteRange(range) => union(
            3,
            record(vec![
                ("start", bound(&range.start)),
                ("end", bound(&range.end)),
                ("deletion", deletion(range.deletion)),
            ]),
        ),
    };
    let Provenance { node, position } = change.provenance;
    let provenance = record(vec![
        ("node", uuid(node.0)),
        ("segment", Value::Long(position.segment.0.cast_signed())),
        ("offset", Value::Long(position.offset.cast_signed())),
    ]);
    record(vec![
        ("table", uuid(change.table.id.0)),
        ("partition_key", bytes(&change.partition_key)),
        ("body", body),
        ("provenance", provenance),
    ])
}

fn assert_same(left: &Change, right: &Change) {
    assert_eq!(left.table.id, right.table.id);
    assert_eq!(left.partition_key, right.partition_key);
    assert_eq!(left.body, right.body);
    assert_eq!(left.provenance, right.provenance);
}

proptest! {
    #[test]
    fn apache_avro_reads_what_we_write(change in change()) {
        let schema = Schema::parse_str(CHANGE_SCHEMA).unwrap();
        let reader = GenericSingleObjectReader::builder().schema(schema).build().unwrap();
        let record = encode_change(&change);
        let mut cursor = Cursor::new(&record[..]);
        prop_assert_eq!(reader.read_value(&mut cursor).unwrap(), value(&change));
        prop_assert_eq!(cursor.position(), record.len() as u64);
    }

    #[test]
    fn we_read_what_apache_avro_writes(change in change()) {
        let schema = Schema::parse_str(CHANGE_SCHEMA).unwrap();
        let mut record = vec![0xc3, 0x01];
        record.extend(fingerprint().to_le_bytes());
        let writer = GenericDatumWriter::builder(&schema).build().unwrap();
        record.extend(writer.write_value_to_vec(value(&change)).unwrap());
        prop_assert_eq!(&record[..], &encode_change(&change)[..]);
        assert_same(&decode_change(record.into(), &Tables(vec![table()])).unwrap(), &change);
    }

    #[test]
    fn apache_avro_reads_the_truncations_we_write_and_we_those_it_writes(truncation in truncation()) {
        let schema = Schema::parse_str(TRUNCATION_SCHEMA).unwrap();
        let writer = GenericDatumWriter::builder(&schema).build().unwrap();
        let mut record = vec![0xc3, 0x01];
        record.extend(truncation_fingerprint().to_le_bytes());
        record.extend(writer.write_value_to_vec(truncation_value(&truncation)).unwrap());
        prop_assert_eq!(&record[..], &encode_truncation(&truncation)[..]);
        let tables = Tables(vec![table()]);
        let read = decode_truncation(record.clone().into(), &tables).unwrap().unwrap();
        prop_assert_eq!((read.table.id, read.at), (truncation.table.id, truncation.at));
        for cut in 10..record.len() {
            prop_assert!(decode_truncation(Bytes::copy_from_slice(&record[..cut]), &tables).is_err());
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic(
        change in change(), at in any::<prop::sample::Index>(), byte in any::<u8>(), noise in blob(),
    ) {
        let tables = Tables(vec![table()]);
        let record = encode_change(&change);
        let cut = record.slice(..at.index(record.len()));
        prop_assert!(decode_change(cut, &tables).is_err());
        let mut flipped = record.to_vec();
        flipped[at.index(record.len())] = byte;
        drop(decode_change(flipped.into(), &tables));
        let mut longer = record.to_vec();
        longer.extend_from_slice(&noise);
        prop_assert_eq!(decode_change(longer.into(), &tables).is_ok(), noise.is_empty());
        let mut random = record[..26].to_vec();
        random.extend_from_slice(&noise);
        drop(decode_change(random.into(), &tables));
    }
}

/// Changes of every kind, as fixed as the files that hold them.
fn golden_changes() -> Vec<(&'static str, Change)> {
    let time = WriteTime(1_700_000_000_000_000);
    let deletion = DeletionTime { time, local: LocalTime(1_700_000_000) };
    let provenance = Provenance {
        node: NodeId(Uuid::from_u128(7)),
        position: SegmentPosition { segment: SegmentId(1_700_000_000_123), offset: 4_711 },
    };
    let table = table();
    let id = |name: &str| table.column_id(name.as_bytes()).unwrap();
    let text = |text: &'static [u8]| ValueBytes::from(text);
    let mut columns = vec![
        (id("amount"), ColumnState::Simple(Cell::live(time, text(b"\x00\x00\x00\x2a")))),
        (
            id("tags"),
            ColumnState::Complex(ComplexState {
                deletion: Some(deletion),
                cells: vec![
                    (text(b"a"), Cell::live(time, ValueBytes::EMPTY)),
                    (text(b"b"), Cell::tombstone(time, deletion.local)),
                ],
            }),
        ),
        (
            id("zähler"),
            ColumnState::Simple(Cell {
                value: CellValue::Counter(text(&[0; 34])),
                ..Cell::live(time, ValueBytes::EMPTY)
            }),
        ),
    ];
    columns.sort_by_key(|(id, _)| *id);
    let row = RowState {
        liveness: Some(Liveness { time, ttl: 3600, expires: LocalTime(1_700_003_600) }),
        deletion: Some(deletion),
        columns,
    };
    let note = ColumnState::Simple(Cell { ttl: 60, local: LocalTime(1_700_000_060), ..Cell::live(time, text(b"hi")) });
    let note = RowState { columns: vec![(id("note"), note)], ..RowState::default() };
    let range = RangeTombstone {
        start: Bound { prefix: vec![text(b"2023-11-14")], inclusive: false },
        end: Bound::OPEN,
        deletion,
    };
    let clustering = Clustering::new([Some(b"2023-11-14"), None]);
    [
        ("row", ChangeBody::Row { clustering, row }),
        ("static", ChangeBody::Static(note)),
        ("delete-partition", ChangeBody::DeletePartition(deletion)),
        ("delete-range", ChangeBody::DeleteRange(range)),
    ]
    .into_iter()
    .map(|(name, body)| (name, Change { table: Arc::clone(&table), partition_key: text(b"ann"), body, provenance }))
    .collect()
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// With `CDC_GOLDEN=write` the files are made; to be done once per format version, never for one that was released.
fn read_golden(name: &str, made: &[u8]) -> Vec<u8> {
    if std::env::var_os("CDC_GOLDEN").is_some_and(|value| value == "write") {
        std::fs::write(golden(name), made).unwrap();
    }
    std::fs::read(golden(name)).unwrap()
}

#[test]
fn files_of_version_1_stay_readable() {
    let tables = Tables(vec![table()]);
    for (name, change) in golden_changes() {
        let record = read_golden(&format!("change-v1-{name}.avro"), &encode_change(&change));
        assert_same(&decode_change(record.into(), &tables).unwrap(), &change);
    }
    let node = |node| NodeId(Uuid::from_u128(node));
    let at = |offset| SegmentPosition { segment: SegmentId(1_700_000_000_123), offset };
    let at: TruncatedAt = [(node(7), at(4_711)), (node(8), at(0))].into_iter().collect();
    let truncation = TableTruncation { table: table(), at };
    let record = Bytes::from(read_golden("truncation-v1.avro", &encode_truncation(&truncation)));
    assert_eq!(decode_truncation(record.clone(), &tables).unwrap().unwrap().at, truncation.at);
    assert_eq!(table_of(&record), Some(truncation.table.id));
    assert_eq!(decode_change(record, &tables).unwrap_err(), WireError::UnknownFormat(truncation_fingerprint()));
    let (_, change) = golden_changes().swap_remove(0);
    assert!(decode_truncation(encode_change(&change), &tables).unwrap().is_none());
    let schema = read_golden("schema-v1.json", &encode_schema(&table()));
    assert_eq!(decode_schema(&schema).unwrap(), *table());
}

#[test]
fn columns_travel_by_name_and_land_on_the_readers_numbers() {
    let writers = table();
    let mut readers = TableSchema::clone(&writers);
    readers.columns.reverse();
    let (_, change) = golden_changes().swap_remove(0);
    let read = decode_change(encode_change(&change), &Tables(vec![Arc::new(readers.clone())])).unwrap();
    let ChangeBody::Row { row, .. } = &read.body else { panic!("a row was written") };
    let mut names: Vec<&str> = row.columns.iter().map(|(id, _)| readers.column(*id).name.as_str()).collect();
    assert!(row.columns.is_sorted_by_key(|(id, _)| *id));
    names.sort_unstable();
    assert_eq!(names, ["amount", "tags", "zähler"]);
}

#[test]
fn what_a_newer_schema_may_cure_is_told_from_what_stays_undecodable() {
    let (_, change) = golden_changes().swap_remove(0);
    let record = encode_change(&change);
    let unknown = decode_change(record.clone(), &Tables(Vec::new())).unwrap_err();
    assert_eq!(unknown, WireError::UnknownTable(change.table.id));
    let mut old = TableSchema::clone(&change.table);
    old.columns.retain(|column| column.name != "tags");
    let unknown = decode_change(record.clone(), &Tables(vec![Arc::new(old)])).unwrap_err();
    assert!(unknown.awaits_schema() && unknown.to_string().contains("tags"), "{unknown}");
    let mut newer = record.to_vec();
    newer[2] ^= 1;
    assert!(matches!(decode_change(newer.into(), &Tables(Vec::new())), Err(WireError::UnknownFormat(_))));
    assert_eq!(decode_change(Bytes::from_static(b"{}"), &Tables(Vec::new())).unwrap_err(), WireError::NotSingleObject);
}

#[test]
fn every_field_of_the_schema_is_documented() {
    fn check(schema: &serde_json::Value, path: &str) {
        match schema {
            serde_json::Value::Object(object) => {
                for field in object.get("fields").and_then(|fields| fields.as_array()).into_iter().flatten() {
                    let path = format!("{path}.{}", field["name"]);
                    assert!(field["doc"].is_string(), "{path} has no doc");
                    check(&field["type"], &path);
                }
                object.values().for_each(|value| check(value, path));
            }
            serde_json::Value::Array(parts) => parts.iter().for_each(|part| check(part, path)),
            _ => {}
        }
    }
    check(&serde_json::from_str(CHANGE_SCHEMA).unwrap(), "Change");
    check(&serde_json::from_str(TRUNCATION_SCHEMA).unwrap(), "Truncation");
}

#[test]
fn schemas_of_a_later_version_are_refused_with_the_remedy() {
    let error = decode_schema(br#"{"version": 2, "table": {"something": "new"}}"#).unwrap_err().to_string();
    assert!(error.contains("version 2") && error.contains("update"), "{error}");
}
