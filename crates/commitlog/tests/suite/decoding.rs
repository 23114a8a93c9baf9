//! What the golden segments do not hold: other writers, other formats, wrong schemas.

use bytes::Bytes;
use cdc_commitlog::{DecodeError, Decoder, Format};
use cdc_model::{
    CellValue, Change, ChangeBody, Column, ColumnKind, ColumnState, CqlType, DeletionTime, KeyColumn, Liveness,
    LocalTime, RowState, TableId, TableSchema, ValueBytes, WriteTime,
};
use uuid::Uuid;

use crate::support::{Tables, provenance};

const EPOCH_MICROS: i64 = 1_442_880_000_000_000;
const EPOCH_SECONDS: u32 = 1_442_880_000;

fn uvint(value: u64) -> Vec<u8> {
    if value < 0x80 { vec![u8::try_from(value).unwrap()] } else { [&[0xff][..], &value.to_be_bytes()].concat() }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&uvint(bytes.len() as u64)[..], bytes].concat()
}

fn time(value: i64) -> Vec<u8> {
    uvint(value.wrapping_sub(EPOCH_MICROS).cast_unsigned())
}

/// As Cassandra 5 writes it: sign-extended when the difference does not fit an i32.
fn local(value: u32) -> Vec<u8> {
    uvint(i64::from(value.wrapping_sub(EPOCH_SECONDS).cast_signed()).cast_unsigned())
}

fn names(names: &[&str]) -> Vec<u8> {
    [uvint(names.len() as u64), names.iter().flat_map(|name| sized(name.as_bytes())).collect()].concat()
}

fn id(number: u128) -> TableId {
    TableId(Uuid::from_u128(number))
}

/// `t (k int primary key, a int, m map<text, int>, s set<text>, u uuid dropped)`, and `c` clustered by two.
fn tables() -> Tables {
    let key = |name: &str, ty| KeyColumn { name: name.into(), ty, reversed: false };
    let column = |name: &str, ty, dropped| Column { name: name.into(), ty, kind: ColumnKind::Regular, dropped };
    let text = || Box::new(CqlType::Text);
    let map = CqlType::Map { key: text(), value: Box::new(CqlType::Int), frozen: false };
    let table = |number, name: &str, clustering, columns| TableSchema {
        id: id(number),
        keyspace: "ks".into(),
        name: name.into(),
        partition_key: vec![key("k", CqlType::Int)],
        clustering,
        columns,
        cdc: true,
        gc_grace_seconds: 864_000,
    };
    let many = (0..100).map(|n| column(&format!("w{n:03}"), CqlType::Int, None)).collect();
    Tables::of([
        table(
            1,
            "t",
            vec![],
            vec![
                column("a", CqlType::Int, None),
                column("m", map.clone(), None),
                column("s", CqlType::Set { element: text(), frozen: false }, None),
                column("u", CqlType::Uuid, Some(1000)),
                column("z", map, Some(1000)),
            ],
        ),
        table(2, "c", (0..34).map(|n| key(&format!("c{n}"), CqlType::Text)).collect(), vec![]),
        table(3, "w", vec![], many),
    ])
}

fn update(table: u128, columns: &[&str], body: &[u8]) -> Vec<u8> {
    // Key, flags "has estimate", bases as they are, columns, estimate.
    let table = id(table);
    [table.0.as_bytes(), &sized(&7i32.to_be_bytes())[..], &[0x10, 0, 0, 0], &names(columns), &[1], body, &[1]].concat()
}

fn mutation(updates: &[Vec<u8>]) -> Bytes {
    [uvint(updates.len() as u64), updates.concat()].concat().into()
}

fn decode_as(format: Format, payload: &Bytes) -> Result<Vec<Change>, DecodeError> {
    let mut out = Vec::new();
    Decoder::new().decode(format, payload, provenance(), &tables(), &|_| true, &mut out).map(|_| out)
}

fn row(format: Format, columns: &[&str], parts: &[&[u8]]) -> RowState {
    let changes = decode_as(format, &mutation(&[update(1, columns, &parts.concat())])).unwrap();
    match <[Change; 1]>::try_from(changes).unwrap().map(|change| change.body) {
        [ChangeBody::Row { row, .. }] => row,
        [other] => panic!("{other:?}"),
    }
}

#[test]
fn write_times_of_any_size_survive_the_wrapping_deltas() {
    for written in [i64::MIN + 1, -1, 0, 1, EPOCH_MICROS - 1, EPOCH_MICROS, i64::MAX] {
        let row = row(Format::V7, &[], &[&[0x24], &time(written)]);
        let time = WriteTime(written);
        assert_eq!(row.liveness, Some(Liveness { time, ttl: 0, expires: LocalTime::NONE }));
    }
}

#[test]
fn expiry_past_2038_is_read_by_the_formats_rule() {
    let expires = |format, seconds| {
        let row = row(format, &[], &[&[0x2c], &time(5), &uvint(60), &local(seconds)]);
        let liveness = row.liveness.unwrap();
        assert_eq!((liveness.time, liveness.ttl), (WriteTime(5), 60));
        liveness.expires
    };
    for format in [Format::V7, Format::V8] {
        assert_eq!(expires(format, 1_800_000_000), LocalTime(1_800_000_000));
        assert_eq!(expires(format, 0x7fff_fffe), LocalTime(0x7fff_fffe));
    }
    assert_eq!(expires(Format::V8, 4_000_000_000), LocalTime(4_000_000_000));
    // Cassandra 5's INVALID_DELETION_TIME: far away, not in the past.
    assert_eq!(expires(Format::V7, 4_000_000_000), LocalTime(0xffff_fffe));
}

#[test]
fn a_live_complex_deletion_is_none_whoever_wrote_it() {
    for no_local in [0x7fff_ffff, 0xffff_ffff] {
        // Both collections carry a deletion since one has one.
        let cell = [&[0x00][..], &time(9), &sized(b"k"), &sized(&1i32.to_be_bytes())].concat();
        let parts: &[&[u8]] =
            &[&[0x60], &time(i64::MIN), &local(no_local), &[1], &cell, &time(8), &local(1_700_000_000), &[0]];
        let row = row(Format::V7, &["m", "s"], parts);
        let [(_, ColumnState::Complex(m)), (_, ColumnState::Complex(s))] = &row.columns[..] else { panic!("{row:?}") };
        assert_eq!((m.deletion, m.cells.len()), (None, 1));
        let deletion = DeletionTime { time: WriteTime(8), local: LocalTime(1_700_000_000) };
        assert_eq!((s.deletion, s.cells.len()), (Some(deletion), 0));
    }
}

#[test]
fn what_was_written_before_a_column_was_dropped_is_left_out() {
    let written = |at: i64| {
        let cell = |path: &[u8], value: &[u8]| [&[0x00][..], &time(at), path, value].concat();
        let simple = cell(&[], &[0xaa; 16]);
        let complex = [time(at - 1), local(1_700_000_000), vec![1], cell(&sized(b"k"), &sized(&[0; 4]))].concat();
        let kept = [&[0x00][..], &time(at), &[0, 0, 0, 1]].concat();
        let row = row(Format::V7, &["a", "u", "z"], &[&[0x60], &kept, &simple, &complex]);
        let names = |(id, _): &(cdc_model::ColumnId, _)| tables_column(*id);
        row.columns.iter().map(names).collect::<Vec<_>>()
    };
    assert_eq!(written(1000), ["a"]);
    assert_eq!(written(1002), ["a", "u", "z"]);
}

fn tables_column(column: cdc_model::ColumnId) -> String {
    tables().0[&id(1)].column(column).name.clone()
}

#[test]
fn columns_and_elements_are_sorted_whatever_the_order_in_the_log() {
    // Simple columns come first in a header, so "u" before "m"; the schema has live columns first.
    let cell = |path: &[u8]| [&[0x04][..], &time(9), &sized(path)].concat();
    let u = [&[0x00][..], &time(2000), &[0xaa; 16]].concat();
    let row = row(Format::V7, &["u", "m"], &[&[0x20], &u, &[3], &cell(b"b"), &cell(b"a"), &cell(b"b")]);
    let [(first, ColumnState::Complex(m)), (second, ColumnState::Simple(_))] = &row.columns[..] else {
        panic!("{row:?}")
    };
    assert!(first < second);
    assert_eq!(m.cells.iter().map(|(path, _)| &path[..]).collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(m.cells[0].1.value, CellValue::Live(ValueBytes::EMPTY), "a live empty value is not a deletion");
}

#[test]
fn format_9_has_an_epoch_in_each_update() {
    for epoch in [0u64, 5, u64::MAX] {
        let update = update(1, &[], &[&[0x24][..], &time(5)].concat());
        let with_epoch = [&update[..16], &uvint(epoch), &update[16..]].concat();
        assert_eq!(decode_as(Format::V9, &mutation(&[with_epoch])).unwrap().len(), 1);
    }
}

#[test]
fn subsets_of_wide_headers_name_the_present_or_the_missing() {
    let columns: Vec<String> = (0..100).map(|n| format!("w{n:03}")).collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    for (header, present) in [
        (64, vec![0, 63]),
        (65, vec![31, 64]),
        (100, (0..49).collect()),
        (100, (1..51).collect()),
        (64, (1..64).collect::<Vec<usize>>()),
    ] {
        let missing: Vec<usize> = (0..header).filter(|n| !present.contains(n)).collect();
        let listed = if present.len() < header / 2 { &present } else { &missing };
        let mut body = [vec![0x00], uvint(missing.len() as u64)].concat();
        body.extend(listed.iter().flat_map(|index| uvint(*index as u64)));
        for index in &present {
            body.extend([&[0x00][..], &time(9), &u32::try_from(*index).unwrap().to_be_bytes()].concat());
        }
        let changes = decode_as(Format::V7, &mutation(&[update(3, &columns[..header], &body)])).unwrap();
        let ChangeBody::Row { row, .. } = &changes[0].body else { panic!("a row") };
        assert_eq!(row.columns.iter().map(|(id, _)| usize::from(id.0)).collect::<Vec<_>>(), present);
    }
}

#[test]
fn clustering_values_are_empty_null_or_there_in_batches_of_32() {
    // Column 0 is empty, 1 null, 33 null; the rest are there.
    let mut body = [vec![0x24], uvint(0b1001)].concat();
    (2..32).for_each(|n| body.extend(sized(&[n])));
    body.extend([uvint(0b1000), sized(&[32]), time(5)].concat());
    let changes = decode_as(Format::V7, &mutation(&[update(2, &[], &body)])).unwrap();
    let ChangeBody::Row { clustering, .. } = &changes[0].body else { panic!("a row") };
    let values: Vec<_> = clustering.values().collect();
    assert_eq!(values.len(), 34);
    assert_eq!(values[..3], [Some(&[][..]), None, Some(&[2])]);
    assert_eq!(values[32..], [Some(&[32][..]), None]);
}

#[test]
fn an_unknown_or_uncaptured_table_is_skipped_where_nothing_follows() {
    let insert = |table| update(table, &[], &[&[0x24][..], &time(5)].concat());
    let decode = |updates: &[Vec<u8>], captured: fn(&TableSchema) -> bool| {
        let mut out = Vec::new();
        Decoder::new()
            .decode(Format::V7, &mutation(updates), provenance(), &tables(), &captured, &mut out)
            .map(|unknown| (unknown, out.len()))
    };
    let unknown = update(99, &["never", "decoded"], &[0xff; 20]);
    assert_eq!(decode(std::slice::from_ref(&unknown), |_| true), Ok((Some(id(99)), 0)));
    assert_eq!(decode(&[insert(1), unknown.clone()], |_| true), Ok((Some(id(99)), 1)));
    assert_eq!(decode(&[unknown, insert(1)], |_| true), Err(DecodeError::UnknownTable(id(99))));
    assert_eq!(decode(&[insert(1)], |_| false), Ok((None, 0)));
    assert_eq!(decode(&[insert(1), insert(3)], |table| table.name == "w"), Ok((None, 1)));
    assert_eq!(decode(&[insert(1), insert(3)], |table| table.name == "t"), Ok((None, 1)));
}

#[test]
fn a_wrong_schema_is_an_error_that_says_so_and_leaves_nothing_behind() {
    let cell = [&[0x20][..], &[0x00], &time(5), &[0, 0, 0, 1]].concat();
    let unknown = decode_as(Format::V7, &mutation(&[update(1, &["a"], &cell), update(1, &["nope"], &cell)]));
    assert_eq!(unknown.unwrap_err(), DecodeError::UnknownColumn { table: "ks.t".into(), column: "nope".into() });

    let whole = mutation(&[update(1, &["a"], &cell)]);
    let longer = Bytes::from([&whole[..], &[0]].concat());
    assert!(decode_as(Format::V7, &longer).unwrap_err().to_string().contains("bytes are left"));
    for end in 0..whole.len() {
        assert!(matches!(decode_as(Format::V7, &whole.slice(..end)), Err(DecodeError::Malformed { .. })), "{end}");
    }
}

#[test]
fn counts_that_lie_allocate_nothing() {
    let huge = [vec![0x20], uvint(u64::MAX >> 1)].concat();
    assert!(decode_as(Format::V7, &mutation(&[update(1, &["m"], &huge)])).is_err());
    assert!(decode_as(Format::V7, &Bytes::from(uvint(u64::MAX))).is_err());
    assert!(decode_as(Format::V7, &Bytes::new()).is_err());
    assert!(decode_as(Format::V7, &Bytes::from_static(&[0])).is_err());
}

#[test]
fn a_schema_that_changed_is_looked_at_again() {
    let mut decoder = Decoder::new();
    let mut tables = tables();
    let cell = [&[0x20][..], &[0x00], &time(5), &[0, 0, 0, 1]].concat();
    let payload = mutation(&[update(1, &["new"], &cell)]);
    let mut out = Vec::new();
    let at = provenance();
    assert!(decoder.decode(Format::V7, &payload, at, &tables, &|_| true, &mut out).is_err());
    let old = tables.0[&id(1)].clone();
    let mut newer = (*old).clone();
    newer.columns.push(Column { name: "new".into(), ty: CqlType::Int, kind: ColumnKind::Regular, dropped: None });
    tables.0.insert(id(1), std::sync::Arc::new(old.evolve(newer).unwrap()));
    decoder.decode(Format::V7, &payload, at, &tables, &|_| true, &mut out).unwrap();
    assert_eq!(out.len(), 1);
}

/// A mutation of a table `ks.one` with partition key `k int` and these clustering and other columns.
fn of_one(clustering: &[(&str, CqlType)], columns: &[Column], update: &[u8]) -> Result<Vec<Change>, DecodeError> {
    let key = |(name, ty): &(&str, CqlType)| KeyColumn { name: (*name).to_owned(), ty: ty.clone(), reversed: false };
    let table = TableSchema {
        id: id(9),
        keyspace: "ks".into(),
        name: "one".into(),
        partition_key: vec![key(&("k", CqlType::Int))],
        clustering: clustering.iter().map(key).collect(),
        columns: columns.to_vec(),
        cdc: true,
        gc_grace_seconds: 0,
    };
    let payload = mutation(&[[id(9).0.as_bytes(), &sized(&7i32.to_be_bytes())[..], update].concat()]);
    let mut out = Vec::new();
    Decoder::new().decode(Format::V8, &payload, provenance(), &Tables::of([table]), &|_| true, &mut out).map(|_| out)
}

fn column(name: &str, ty: CqlType, kind: ColumnKind, dropped: Option<i64>) -> Column {
    Column { name: name.into(), ty, kind, dropped }
}

#[test]
fn a_partition_deletion_a_static_row_and_rows_come_out_of_one_update() {
    let columns =
        [column("s", CqlType::Text, ColumnKind::Static, None), column("r", CqlType::Int, ColumnKind::Regular, None)];
    let header = [&[0x1c, 0, 0, 0][..], &names(&["s"]), &names(&["r"])].concat();
    let deletion = [time(3), local(1_700_000_000)].concat();
    let statics = [&[0xa0, 0x01][..], &[0x00], &time(4), &sized(b"st")].concat();
    // Row one only deletes itself, shadowably; row two has neither marker nor cell.
    let deleted = [&[0x90, 0x02][..], &[0], &[0, 0, 0, 1], &time(5), &local(1_700_000_001), &[1]].concat();
    let nothing = [&[0x00][..], &[0], &[0, 0, 0, 2], &[1]].concat();
    let body = [header, deletion, statics, vec![2], deleted, nothing, vec![1]].concat();
    let changes = of_one(&[("c", CqlType::Int)], &columns, &body).unwrap();
    let [partition, statics, row] = &changes[..] else { panic!("{changes:?}") };
    let deletion = |time, local| DeletionTime { time: WriteTime(time), local: LocalTime(local) };
    assert_eq!(partition.body, ChangeBody::DeletePartition(deletion(3, 1_700_000_000)));
    let ChangeBody::Static(statics) = &statics.body else { panic!("{statics:?}") };
    assert_eq!(statics.columns.len(), 1);
    let ChangeBody::Row { row, .. } = &row.body else { panic!("{row:?}") };
    assert_eq!((row.deletion, row.columns.len()), (Some(deletion(5, 1_700_000_001)), 0));
}

#[test]
fn counter_contexts_are_kept_whole_and_their_tombstones_are_tombstones() {
    let counter = [column("n", CqlType::Counter, ColumnKind::Regular, None)];
    let shard = |id: u8, clock: i64, count: i64| [&[id; 16][..], &clock.to_be_bytes(), &count.to_be_bytes()].concat();
    let shards = [shard(1, 10, 5), shard(2, 20, -3), shard(3, 30, 40)].concat();
    // One global and one local shard; the negative number of them says that local ones are to be cleared.
    let entries = [i16::MIN.to_be_bytes(), 1i16.to_be_bytes()].concat();
    for header in [2i16, -2] {
        let context = [&header.to_be_bytes()[..], &entries, &shards].concat();
        let cell = [&[0x20, 0x00][..], &time(9), &sized(&context)].concat();
        let body = [&[0x10, 0, 0, 0][..], &names(&["n"]), &[1], &cell, &[1]].concat();
        let changes = of_one(&[], &counter, &body).unwrap();
        let ChangeBody::Row { row, .. } = &changes[0].body else { panic!("a row") };
        let [(_, ColumnState::Simple(cell))] = &row.columns[..] else { panic!("{row:?}") };
        assert_eq!(cell.value, CellValue::Counter(context.into()));
        let visible = row.visible(LocalTime(0)).unwrap();
        assert_eq!(visible[0].1, cdc_model::VisibleColumn::Counter(42));
    }
    let tombstone = [&[0x20, 0x05][..], &time(9), &local(1_700_000_000)].concat();
    let body = [&[0x10, 0, 0, 0][..], &names(&["n"]), &[1], &tombstone, &[1]].concat();
    let changes = of_one(&[], &counter, &body).unwrap();
    let ChangeBody::Row { row, .. } = &changes[0].body else { panic!("a row") };
    let expected = cdc_model::Cell::tombstone(WriteTime(9), LocalTime(1_700_000_000));
    assert_eq!(row.columns[0].1, ColumnState::Simple(expected));
}

#[test]
fn cells_from_before_a_drop_stay_dropped_when_the_column_is_added_again_with_another_type() {
    let columns = [
        column("a", CqlType::Blob, ColumnKind::Regular, None),
        column("a", CqlType::Text, ColumnKind::Regular, Some(1000)),
    ];
    for (written, kept) in [(999, false), (1000, false), (1001, true)] {
        let cell = [&[0x20, 0x00][..], &time(written), &sized(b"x")].concat();
        let body = [&[0x10, 0, 0, 0][..], &names(&["a"]), &[1], &cell, &[1]].concat();
        let changes = of_one(&[], &columns, &body).unwrap();
        let named = changes.iter().filter_map(|change| match &change.body {
            ChangeBody::Row { row, .. } => row.columns.first().map(|(id, _)| change.table.column(*id).ty.clone()),
            _ => None,
        });
        assert_eq!(named.collect::<Vec<_>>(), if kept { vec![CqlType::Blob] } else { vec![] }, "written at {written}");
    }
}

#[test]
fn rows_of_many_cells_and_values_of_many_bytes_are_decoded() {
    let map = CqlType::Map { key: Box::new(CqlType::Int), value: Box::new(CqlType::Blob), frozen: false };
    let columns =
        [column("big", CqlType::Blob, ColumnKind::Regular, None), column("m", map, ColumnKind::Regular, None)];
    let big = vec![0xab; 9 << 20];
    let mut row = [&[0x24][..], &time(5), &[0x08], &sized(&big), &uvint(200_000)].concat();
    for path in 0..200_000i32 {
        row.extend([&[0x08][..], &sized(&path.to_be_bytes()), &sized(&[])].concat());
    }
    let body = [&[0x10, 0, 0, 0][..], &names(&["big", "m"]), &[1], &row, &[1]].concat();
    let changes = of_one(&[], &columns, &body).unwrap();
    let ChangeBody::Row { row, .. } = &changes[0].body else { panic!("a row") };
    let [(_, ColumnState::Simple(cell)), (_, ColumnState::Complex(complex))] = &row.columns[..] else {
        panic!("two columns")
    };
    assert_eq!(cell.value, CellValue::Live(big.into()));
    assert_eq!(complex.cells.len(), 200_000);
    assert!(complex.cells.is_sorted_by(|a, b| a.0 < b.0));
}

#[test]
fn values_of_classes_and_vectors_have_the_length_their_type_says() {
    let class = |name: &str| CqlType::Custom(format!("org.apache.cassandra.db.marshal.{name}"));
    let vector = |element, dimension| CqlType::Vector { element: Box::new(element), dimension };
    let sixteen = [0x11; 16];
    let cases: [(CqlType, Vec<u8>); 6] = [
        (class("LexicalUUIDType"), sixteen.to_vec()),
        (class("DynamicCompositeType(a=>org.apache.cassandra.db.marshal.BytesType)"), sized(b"any")),
        (vector(CqlType::Float, 4), sixteen.to_vec()),
        (vector(vector(CqlType::Int, 2), 2), sixteen.to_vec()),
        (vector(CqlType::Text, 2), sized(b"\x01a\x00")),
        (vector(CqlType::SmallInt, 1), sized(b"\x02\x00\x07")),
    ];
    for (ty, value) in cases {
        let columns = [column("v", ty.clone(), ColumnKind::Regular, None)];
        let cell = [&[0x20, 0x00][..], &time(9), &value].concat();
        let body = [&[0x10, 0, 0, 0][..], &names(&["v"]), &[1], &cell, &[1]].concat();
        let changes = of_one(&[], &columns, &body).unwrap();
        let ChangeBody::Row { row, .. } = &changes[0].body else { panic!("a row") };
        let ColumnState::Simple(cell) = &row.columns[0].1 else { panic!("a cell") };
        let CellValue::Live(bytes) = &cell.value else { panic!("a value") };
        assert!(value.ends_with(bytes) && bytes.len() + 1 >= value.len(), "{ty:?}");
        assert!(cdc_model::CqlValue::decode(&ty, bytes).is_ok(), "{ty:?}");
    }
}

#[test]
fn every_kind_of_range_bound_is_read_and_a_bound_that_does_not_fit_is_refused() {
    let table = |markers: &[u8]| {
        let body = [&[0x10, 0, 0, 0][..], &names(&[]), &[1], markers, &[1]].concat();
        of_one(&[("c", CqlType::Int), ("d", CqlType::Text)], &[], &body)
    };
    let deletion = |at| [time(at), local(1_700_000_000)].concat();
    let at = |kind: u8, values: &[&[u8]], deletions: &[u8]| {
        let size = u16::try_from(values.len()).unwrap().to_be_bytes();
        let bitmap = if values.is_empty() { vec![] } else { vec![0] };
        let second = values.get(1).map(|value| sized(value)).unwrap_or_default();
        let first = values.first().map(|value| value.to_vec()).unwrap_or_default();
        [&[0x02, kind][..], &size, &bitmap, &first, &second, deletions].concat()
    };
    let one: &[&[u8]] = &[&[0, 0, 0, 1]];
    let two: &[&[u8]] = &[&[0, 0, 0, 2], b"x"];
    // Open, boundary that ends inclusively, boundary that ends exclusively, end: three ranges side by side.
    let both = |a, b| [deletion(a), deletion(b)].concat();
    let markers = [
        at(1, &[], &deletion(1)),
        at(5, one, &both(1, 2)),
        at(2, two, &both(2, 3)),
        at(6, &[], &deletion(3)),
        at(7, two, &deletion(4)),
        at(0, two, &deletion(4)),
    ];
    let changes = table(&markers.concat()).unwrap();
    let shown = changes.iter().map(|change| {
        let ChangeBody::DeleteRange(range) = &change.body else { panic!("{change:?}") };
        let bound = |bound: &cdc_model::Bound| (bound.prefix.len(), bound.inclusive);
        (bound(&range.start), bound(&range.end), range.deletion.time.0)
    });
    assert_eq!(
        shown.collect::<Vec<_>>(),
        [
            ((0, true), (1, true), 1),
            ((1, false), (2, false), 2),
            ((2, true), (0, true), 3),
            ((2, false), (2, false), 4)
        ]
    );
    for wrong in [
        at(1, &[], &deletion(1)),
        at(6, one, &deletion(1)),
        [at(1, one, &deletion(1)), at(1, two, &deletion(2)), at(6, &[], &deletion(2))].concat(),
        at(3, one, &deletion(1)),
        at(8, one, &deletion(1)),
    ] {
        assert!(matches!(table(&wrong), Err(DecodeError::Malformed { .. })));
    }
}
