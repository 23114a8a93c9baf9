//! The algebra the pipeline stands on: merging is commutative, associative and idempotent, deletions included.

use std::sync::Arc;

use bytes::Bytes;
use cdc_model::{
    Bound, Cell, CellValue, Clustering, Column, ColumnId, ColumnKind, ColumnState, ComplexState, CqlType, DeletionTime,
    KeyColumn, Liveness, LocalTime, PartitionTombstones, RangeTombstone, RowState, TableId, TableSchema, ValueBytes,
    VisibleColumn, WriteTime, decode_row, decode_tombstones, encode_row, encode_tombstones,
};
use proptest::{collection::vec, option, prelude::*};

fn table() -> Arc<TableSchema> {
    let column = |name: &str, ty| Column { name: name.into(), ty, kind: ColumnKind::Regular, dropped: None };
    let tags = CqlType::Set { element: Box::new(CqlType::Text), frozen: false };
    let key = |name: &str| KeyColumn { name: name.into(), ty: CqlType::Int, reversed: false };
    Arc::new(
        TableSchema {
            id: TableId(uuid::Uuid::from_u128(1)),
            keyspace: "ks".into(),
            name: "t".into(),
            partition_key: vec![key("k")],
            clustering: vec![key("c")],
            columns: vec![column("a", CqlType::Blob), column("b", CqlType::Counter), column("c_tags", tags)],
            cdc: true,
            gc_grace_seconds: 864_000,
        }
        .new()
        .expect("a valid schema"),
    )
}

// Few distinct times and values, so that ties are the rule.
fn time() -> impl Strategy<Value = WriteTime> {
    (-2i64..3).prop_map(WriteTime)
}

fn local() -> impl Strategy<Value = LocalTime> {
    (0i64..3).prop_map(LocalTime)
}

fn deletion() -> impl Strategy<Value = DeletionTime> {
    (time(), local()).prop_map(|(time, local)| DeletionTime { time, local })
}

fn value() -> impl Strategy<Value = ValueBytes> {
    vec(0u8..2, 0..3).prop_map(ValueBytes::from)
}

fn cell() -> impl Strategy<Value = Cell> {
    prop_oneof![
        (time(), value()).prop_map(|(time, value)| Cell::live(time, value)),
        (time(), local()).prop_map(|(time, local)| Cell::tombstone(time, local)),
        (time(), 1i32..3, local(), value()).prop_map(|(time, ttl, local, value)| Cell {
            time,
            ttl,
            local,
            value: CellValue::Live(value)
        }),
    ]
}

/// Contexts of one global shard, as the log holds them.
fn counter() -> impl Strategy<Value = Cell> {
    (time(), 0u8..3, 0i64..3, -2i64..3).prop_map(|(time, id, clock, count)| {
        let mut context = vec![0, 1, 0x80, 0];
        context.extend([id; 16]);
        context.extend(clock.to_be_bytes());
        context.extend(count.to_be_bytes());
        Cell { time, ttl: 0, local: LocalTime::NONE, value: CellValue::Counter(context.into()) }
    })
}

fn complex() -> impl Strategy<Value = ComplexState> {
    (option::of(deletion()), proptest::collection::btree_map(value(), cell(), 0..3)).prop_map(|(deletion, cells)| {
        let live = |cell: &Cell| deletion.is_none_or(|deletion| !deletion.deletes(cell.time));
        ComplexState { deletion, cells: cells.into_iter().filter(|(_, cell)| live(cell)).collect() }
    })
}

fn row() -> impl Strategy<Value = RowState> {
    let liveness = option::of((time(), option::of((1i32..3, local()))).prop_map(|(time, ttl)| {
        let (ttl, expires) = ttl.unwrap_or((0, LocalTime::NONE));
        Liveness { time, ttl, expires }
    }));
    let columns = (option::of(cell()), option::of(complex()));
    (liveness, option::of(deletion()), columns).prop_map(|(liveness, deletion, (a, c))| {
        let columns = [(0, a.map(ColumnState::Simple)), (2, c.map(ColumnState::Complex))];
        let columns = columns.into_iter().filter_map(|(id, column)| Some((ColumnId(id), column?))).collect();
        // What one writer produces is already consistent: its own deletion has been applied.
        RowState { liveness, deletion, columns }.merge(RowState { deletion, ..RowState::default() })
    })
}

fn clustering(value: i32) -> Clustering {
    Clustering::new([Some(value.to_be_bytes())])
}

fn bound() -> impl Strategy<Value = Bound> {
    prop_oneof![
        Just(Bound::OPEN),
        (0i32..4, any::<bool>()).prop_map(|(c, inclusive)| Bound { prefix: vec![c.to_be_bytes().into()], inclusive })
    ]
}

fn tombstones() -> impl Strategy<Value = PartitionTombstones> {
    let range =
        (bound(), bound(), deletion()).prop_map(|(start, end, deletion)| RangeTombstone { start, end, deletion });
    (option::of(deletion()), vec(range, 0..4))
        .prop_map(|(partition, ranges)| PartitionTombstones { partition, ranges }.merge(PartitionTombstones::default()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn merging_rows_is_commutative_associative_and_idempotent(a in row(), b in row(), c in row()) {
        prop_assert_eq!(a.clone().merge(b.clone()), b.clone().merge(a.clone()));
        prop_assert_eq!(a.clone().merge(b.clone()).merge(c.clone()), a.clone().merge(b.clone().merge(c)));
        prop_assert_eq!(a.clone().merge(a.clone()), a);
    }

    /// Without deletions: Cassandra itself gives no order-free answer for a counter that is deleted and used again.
    #[test]
    fn merging_counters_is_commutative_associative_and_idempotent(a in counter(), b in counter(), c in counter()) {
        prop_assert_eq!(a.clone().merge(b.clone()), b.clone().merge(a.clone()));
        prop_assert_eq!(a.clone().merge(b.clone()).merge(c.clone()), a.clone().merge(b.clone().merge(c)));
        prop_assert_eq!(a.clone().merge(a.clone()), a);
    }

    #[test]
    fn a_deletion_from_outside_commutes_with_the_merge(a in row(), b in row(), by in deletion()) {
        let mut before = a.clone();
        before.shadow(by);
        let mut late = before.merge(b.clone());
        late.shadow(by);
        let mut once = a.merge(b);
        once.shadow(by);
        prop_assert_eq!(late, once);
    }

    #[test]
    fn merging_tombstones_is_commutative_associative_and_idempotent(a in tombstones(), b in tombstones(), c in tombstones()) {
        prop_assert_eq!(a.clone().merge(b.clone()), b.clone().merge(a.clone()));
        prop_assert_eq!(a.clone().merge(b.clone()).merge(c.clone()), a.clone().merge(b.clone().merge(c)));
        prop_assert_eq!(a.clone().merge(a.clone()), a);
    }

    #[test]
    fn merged_tombstones_cover_what_either_covered(a in tombstones(), b in tombstones(), c in 0i32..4) {
        let (table, row) = (table(), clustering(c));
        let expected = a.covering(&table, Some(&row)).max(b.covering(&table, Some(&row)));
        prop_assert_eq!(a.merge(b).covering(&table, Some(&row)), expected);
    }

    #[test]
    fn a_persisted_state_is_the_state(row in row(), tombstones in tombstones()) {
        let table = table();
        prop_assert_eq!(decode_row(&table, encode_row(&table, &row)), Ok(row));
        prop_assert_eq!(decode_tombstones(encode_tombstones(&tombstones)), Ok(tombstones));
    }

    #[test]
    fn damaged_states_are_refused_without_a_panic(mut bytes in vec(any::<u8>(), 0..200)) {
        if let Some(version) = bytes.first_mut() {
            *version = 1;
        }
        let bytes = Bytes::from(bytes);
        drop(decode_row(&table(), bytes.clone()));
        drop(decode_tombstones(bytes));
    }
}

fn at(time: i64, value: &'static [u8]) -> Cell {
    Cell::live(WriteTime(time), Bytes::from_static(value))
}

#[test]
fn ties_go_to_the_tombstone_then_the_expiring_cell_then_the_larger_value() {
    let plain = at(1, b"b");
    let expiring = Cell { ttl: 10, local: LocalTime(100), ..at(1, b"a") };
    let tombstone = Cell::tombstone(WriteTime(1), LocalTime(5));
    assert_eq!(plain.clone().merge(at(1, b"a")), plain);
    assert_eq!(plain.clone().merge(expiring.clone()), expiring);
    assert_eq!(expiring.merge(tombstone.clone()), tombstone);
    assert_eq!(tombstone.merge(at(2, b"")).value, CellValue::Live(ValueBytes::EMPTY), "a later write beats them all");
}

#[test]
fn a_row_lives_by_its_marker_or_by_a_live_cell() {
    let now = LocalTime(50);
    let marker = Liveness { time: WriteTime(1), ttl: 0, expires: LocalTime::NONE };
    let only_marker = RowState { liveness: Some(marker), ..RowState::default() };
    assert_eq!(only_marker.visible(now), Some(vec![]));
    let cell = |cell| RowState { columns: vec![(ColumnId(0), ColumnState::Simple(cell))], ..RowState::default() };
    let shown = vec![(ColumnId(0), VisibleColumn::Simple(b"v"[..].into()))];
    assert_eq!(cell(at(1, b"v")).visible(now), Some(shown));
    let expired = Cell { ttl: 10, local: now, ..at(1, b"v") };
    assert_eq!(cell(expired).visible(now), None, "a cell is gone in the second of its expiry");
    assert_eq!(cell(Cell::tombstone(WriteTime(1), now)).visible(now), None);
}

#[test]
fn exclusive_and_reversed_bounds_follow_storage_order() {
    let mut reversed = (*table()).clone();
    reversed.clustering[0].reversed = true;
    let bytes = |c: i32| vec![c.to_be_bytes().into()];
    // DELETE ... WHERE c > 1 AND c <= 3 on a DESC column: storage order runs from 3 down to 1.
    let range = RangeTombstone {
        start: Bound { prefix: bytes(3), inclusive: true },
        end: Bound { prefix: bytes(1), inclusive: false },
        deletion: DeletionTime { time: WriteTime(1), local: LocalTime(1) },
    };
    let covered: Vec<i32> = (-1..5).filter(|c| range.covers(&reversed, &clustering(*c))).collect();
    assert_eq!(covered, [2, 3]);
}

/// What is left of writes merged in each of two orders. That Cassandra answers the same is tested with real nodes in
/// `tests/commitlog/merge/ties.rs`.
#[track_caller]
fn assert_wins(winner: &Cell, loser: &Cell) {
    assert_eq!(winner.clone().merge(loser.clone()), *winner);
    assert_eq!(loser.clone().merge(winner.clone()), *winner);
}

fn until(expires: i64, value: &'static [u8]) -> Cell {
    Cell { ttl: 10, local: LocalTime(expires), ..at(10, value) }
}

#[test]
fn values_of_one_time_are_compared_as_unsigned_bytes_and_anything_is_over_empty() {
    assert_wins(&at(10, &[0x80]), &at(10, &[0x7f]));
    assert_wins(&at(10, &[1, 0]), &at(10, &[1]));
    assert_wins(&at(10, &[0]), &at(10, &[]));
    assert_wins(&at(11, &[]), &at(10, &[0xff]));
}

#[test]
fn a_tombstone_wins_over_any_value_of_its_time() {
    let tombstone = Cell::tombstone(WriteTime(10), LocalTime(5));
    for value in [at(10, &[]), at(10, &[0xff]), until(1_000, &[0xff]), until(1, &[0xff])] {
        assert_wins(&tombstone, &value);
    }
}

#[test]
fn of_expiring_cells_of_one_time_the_later_expiry_wins_and_then_the_larger_value() {
    assert_wins(&until(900, &[1]), &until(800, &[2]));
    assert_wins(&until(900, &[2]), &until(900, &[1]));
}

#[test]
fn an_expired_cell_hides_a_value_that_stays_of_its_time() {
    let now = LocalTime(50);
    let (expired, plain, expiring) = (until(40, &[3]), at(10, &[2]), until(900, &[1]));
    assert_wins(&expired, &plain);
    assert!(!expired.is_live(now));
    assert_wins(&expiring, &expired.clone().merge(plain));
    assert_wins(&at(11, &[]), &expired);
}

#[test]
fn an_expired_marker_hides_one_that_stays_of_its_time() {
    let now = LocalTime(50);
    let marker = |time, ttl, expires| Liveness { time: WriteTime(time), ttl, expires };
    let expired = marker(10, 1, LocalTime(40));
    let row = |liveness| RowState { liveness: Some(liveness), ..RowState::default() };
    for (other, is_visible) in [
        (marker(10, 0, LocalTime::NONE), false),
        (marker(11, 0, LocalTime::NONE), true),
        (marker(10, 1, LocalTime(60)), true),
    ] {
        let merged = [row(expired).merge(row(other)), row(other).merge(row(expired))];
        assert_eq!(merged.map(|row| row.visible(now).is_some()), [is_visible; 2]);
    }
}

/// One element of the column `c_tags`.
fn element(path: &'static [u8], cell: Cell) -> RowState {
    tags(ComplexState { deletion: None, cells: vec![(path.into(), cell)] })
}

fn tags(state: ComplexState) -> RowState {
    RowState { columns: vec![(ColumnId(2), ColumnState::Complex(state))], ..RowState::default() }
}

/// Deletes a collection up to a write time.
fn emptied(time: i64) -> RowState {
    let deletion = DeletionTime { time: WriteTime(time), local: LocalTime(5) };
    tags(ComplexState { deletion: Some(deletion), cells: Vec::new() })
}

fn paths(row: &RowState) -> Vec<ValueBytes> {
    let columns = row.visible(LocalTime(50)).unwrap_or_default();
    let of = |(_, column)| if let VisibleColumn::Complex(elements) = column { elements } else { Vec::new() };
    columns.into_iter().flat_map(of).map(|(path, _)| path).collect()
}

#[test]
fn overwriting_a_collection_leaves_elements_of_its_own_time() {
    // `SET m = {…}` and `SET m = null` at 10 delete up to 9, `DELETE m` up to 10.
    let overwritten = emptied(9).merge(element(b"a", at(10, b"1")));
    for (other, left) in [
        (element(b"b", at(10, b"2")), &[&b"a"[..], b"b"][..]),
        (element(b"b", at(9, b"2")), &[b"a"]),
        (emptied(9).merge(element(b"b", at(10, b"2"))), &[b"a", b"b"]),
        (emptied(10), &[]),
        (element(b"a", Cell::tombstone(WriteTime(10), LocalTime(5))), &[]),
        (element(b"a", until(40, b"2")), &[]),
    ] {
        let left: Vec<ValueBytes> = left.iter().map(|path| (*path).into()).collect();
        assert_eq!(paths(&overwritten.clone().merge(other.clone())), left);
        assert_eq!(paths(&other.merge(overwritten.clone())), left);
    }
}

#[test]
fn a_deletion_of_the_row_takes_all_of_its_time_and_nothing_later() {
    let marker = |time| RowState {
        liveness: Some(Liveness { time: WriteTime(time), ttl: 0, expires: LocalTime::NONE }),
        ..RowState::default()
    };
    let deletion = DeletionTime { time: WriteTime(10), local: LocalTime(5) };
    let deleted = RowState { deletion: Some(deletion), ..RowState::default() };
    let written = marker(10).merge(element(b"a", at(10, b"1"))).merge(emptied(9));
    assert_eq!(written.clone().merge(deleted.clone()), deleted);
    assert_eq!(deleted.clone().merge(written), deleted);
    assert_eq!(deleted.merge(marker(11)).visible(LocalTime(50)), Some(vec![]));
}

#[test]
fn a_static_row_is_deleted_with_its_partition_and_not_with_a_range() {
    let deletion = DeletionTime { time: WriteTime(10), local: LocalTime(5) };
    let everything = RangeTombstone { start: Bound::OPEN, end: Bound::OPEN, deletion };
    let ranges = PartitionTombstones { partition: None, ranges: vec![everything] };
    assert_eq!(ranges.covering(&table(), None), None);
    assert_eq!(ranges.covering(&table(), Some(&clustering(0))), Some(deletion));
    let partition = PartitionTombstones { partition: Some(deletion), ranges: Vec::new() };
    assert_eq!(ranges.merge(partition).covering(&table(), None), Some(deletion));
}
