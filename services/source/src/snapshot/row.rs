//! What a row that `SELECT` showed is as a change. Pure: no I/O, no clock.
//!
//! It says of each cell what was written, when, and when it expires; merged with the stream in any order it changes nothing that
//! the stream knows better. Where CQL is silent, what is said is as old as can be without losing what was seen: of the
//! *horizon*, up to which every write was visible when the page was read (the time it was asked for, less the bound of
//! clocks and delays). What is written later than that comes through the stream.
//!
//! - **Row markers** are as old as the oldest cell, and last as long as the cells do: a row was most likely inserted with
//!   them (`cdc_reconciler` takes the same). One without cells has the horizon.
//! - **Elements on 4.x** have the horizon, and no expiry.
//! - **Elements of lists** have lost their names. So the list as it was at the horizon takes the place of what was known
//!   before it, under names that come before all real ones; elements written since are left to the stream. What the stream
//!   says later of a single older element, by its real name, meets nothing: `docs/snapshot.md`.

use cdc_model::{
    Cell, ColumnId, ColumnKind, ColumnState, ComplexState, DeletionTime, Liveness, LocalTime, RowState, WriteTime,
};

/// What is known of the page a row stood in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) horizon: WriteTime,
    /// When the page was asked for.
    pub(super) now: LocalTime,
    /// Expiries are told so many seconds too late, at most.
    pub(super) late_seconds: i64,
}

/// `lists`: the non-frozen lists of the table among the columns of this kind.
pub(super) fn change(kind: ColumnKind, row: RowState, lists: &[ColumnId], seen: Seen) -> RowState {
    let mut row = row;
    for (_, column) in &mut row.columns {
        each(column, |cell| {
            if cell.local != LocalTime::NONE {
                // Rather too early, so that the stream's own expiry of the same write is the later one, and wins.
                cell.local = LocalTime((cell.local.0 - seen.late_seconds).max(seen.now.0 + 1));
                cell.ttl = ttl(cell.local, seen.now);
            }
        });
    }
    let marker = (kind == ColumnKind::Regular).then(|| marker(&mut row, seen));
    for list in lists {
        if let Err(at) = row.columns.binary_search_by_key(list, |(id, _)| *id) {
            row.columns.insert(at, (*list, ColumnState::Complex(ComplexState::default())));
        }
    }
    for (id, column) in &mut row.columns {
        match column {
            ColumnState::Complex(complex) if lists.contains(id) => as_of(complex, seen),
            column => each(column, |cell| {
                if cell.time == WriteTime::NONE {
                    cell.time = seen.horizon;
                }
            }),
        }
    }
    RowState { liveness: marker, deletion: None, columns: row.columns }
}

fn marker(row: &mut RowState, seen: Seen) -> Liveness {
    let (mut oldest, mut last) = (seen.horizon, None);
    for (_, column) in &mut row.columns {
        each(column, |cell| {
            if cell.time != WriteTime::NONE {
                oldest = oldest.min(cell.time);
            }
            last = last.max(Some(cell.local));
        });
    }
    let expires = last.unwrap_or(LocalTime::NONE);
    Liveness { time: oldest, ttl: ttl(expires, seen.now), expires }
}

/// The list as it was at the horizon, in the place of all that was written to it before.
fn as_of(list: &mut ComplexState, seen: Seen) {
    let before = WriteTime(seen.horizon.0.saturating_sub(1));
    list.cells.retain(|(_, cell)| cell.time <= before);
    list.cells.iter_mut().for_each(|(_, cell)| cell.time = seen.horizon);
    list.deletion = Some(DeletionTime { time: before, local: seen.now });
}

fn each(column: &mut ColumnState, mut change: impl FnMut(&mut Cell)) {
    match column {
        ColumnState::Simple(cell) => change(cell),
        ColumnState::Complex(complex) => complex.cells.iter_mut().for_each(|(_, cell)| change(cell)),
    }
}

fn ttl(expires: LocalTime, now: LocalTime) -> i32 {
    match expires {
        LocalTime::NONE => 0,
        LocalTime(second) => i32::try_from(second - now.0).unwrap_or(i32::MAX - 1).max(1),
    }
}

#[cfg(test)]
mod tests {
    use cdc_model::{ValueBytes, VisibleColumn};

    use super::*;

    const NOW: LocalTime = LocalTime(1_000);
    const SEEN: Seen = Seen { horizon: WriteTime(500), now: NOW, late_seconds: 2 };
    const PLAIN: ColumnId = ColumnId(0);
    const SET: ColumnId = ColumnId(1);
    const LIST: ColumnId = ColumnId(2);

    fn plain(cell: Cell) -> (ColumnId, ColumnState) {
        (PLAIN, ColumnState::Simple(cell))
    }

    fn complex(id: ColumnId, cells: Vec<(&[u8], Cell)>) -> (ColumnId, ColumnState) {
        let cells = cells.into_iter().map(|(path, cell)| (path.into(), cell)).collect();
        (id, ColumnState::Complex(ComplexState { deletion: None, cells }))
    }

    fn row(columns: Vec<(ColumnId, ColumnState)>) -> RowState {
        RowState { columns, ..RowState::default() }
    }

    fn regular(columns: Vec<(ColumnId, ColumnState)>) -> RowState {
        change(ColumnKind::Regular, row(columns), &[LIST], SEEN)
    }

    fn list(row: &RowState) -> Vec<Vec<u8>> {
        let columns = row.visible(NOW).unwrap_or_default();
        let values = columns.into_iter().filter(|(id, _)| *id == LIST).flat_map(|(_, column)| match column {
            VisibleColumn::Complex(cells) => cells.into_iter().map(|(_, value)| value.to_vec()).collect(),
            _ => Vec::new(),
        });
        values.collect()
    }

    #[test]
    fn cells_keep_their_write_times_and_the_marker_is_as_old_as_the_oldest() {
        let change = regular(vec![plain(Cell::live(WriteTime(30), vec![1]))]);
        assert_eq!(change.columns[0], plain(Cell::live(WriteTime(30), vec![1])));
        assert_eq!(change.liveness, Some(Liveness { time: WriteTime(30), ttl: 0, expires: LocalTime::NONE }));
        // Never newer than what was certainly seen.
        let change = regular(vec![plain(Cell::live(WriteTime(900), vec![1]))]);
        assert_eq!(change.liveness.unwrap().time, SEEN.horizon);
        assert_eq!(regular(Vec::new()).liveness.unwrap().time, SEEN.horizon, "a key without columns");
        assert_eq!(change_static().liveness, None);
    }

    fn change_static() -> RowState {
        change(ColumnKind::Static, row(vec![plain(Cell::live(WriteTime(30), vec![1]))]), &[], SEEN)
    }

    #[test]
    fn what_expires_does_so_no_later_than_in_cassandra_and_its_row_with_it() {
        let cell = Cell { local: LocalTime(1_062), ..Cell::live(WriteTime(30), vec![1]) };
        let change = regular(vec![plain(cell.clone())]);
        let ColumnState::Simple(copied) = &change.columns[0].1 else { panic!("a simple column") };
        assert_eq!((copied.local, copied.ttl), (LocalTime(1_060), 60));
        assert_eq!(change.liveness.unwrap().expires, LocalTime(1_060));
        // The stream knows it exactly.
        let exact = Cell { ttl: 100, local: LocalTime(1_061), ..cell.clone() };
        assert_eq!(change.clone().merge(row(vec![plain(exact.clone())])).columns[0], plain(exact));
        let set = complex(SET, vec![(b"a", Cell::live(WriteTime(40), vec![]))]);
        assert_eq!(regular(vec![plain(cell), set]).liveness.unwrap().expires, LocalTime::NONE);
    }

    #[test]
    fn elements_without_a_time_are_newer_than_deletions_before_and_older_than_what_follows() {
        let change = regular(vec![complex(SET, vec![(b"a", Cell::live(WriteTime::NONE, vec![]))])]);
        let deletion = |time| RowState {
            deletion: Some(DeletionTime { time: WriteTime(time), local: NOW }),
            ..RowState::default()
        };
        assert!(change.clone().merge(deletion(499)).is_visible(NOW));
        assert!(!change.merge(deletion(501)).is_visible(NOW));
    }

    #[test]
    fn a_list_takes_the_place_of_what_was_known_and_leaves_newer_elements_to_the_stream() {
        let real = |number: u8| [&[0xff][..], &[number; 15]].concat();
        let element = |path: Vec<u8>, time, value: u8| -> (ValueBytes, Cell) {
            (path.into(), Cell::live(WriteTime(time), vec![value]))
        };
        let of = |cells: Vec<(ValueBytes, Cell)>| {
            row(vec![(LIST, ColumnState::Complex(ComplexState { deletion: None, cells }))])
        };
        let read = of(vec![
            element(vec![0; 16], 10, 1),
            element([&[1][..], &[0; 15]].concat(), 20, 2),
            element([&[2][..], &[0; 15]].concat(), 600, 3),
        ]);
        let copied = change(ColumnKind::Regular, read, &[LIST], SEEN);
        assert_eq!(list(&copied), [vec![1], vec![2]]);
        let stream = of(vec![element(real(1), 10, 1), element(real(2), 20, 2), element(real(3), 600, 3)]);
        for merged in [copied.clone().merge(stream.clone()), stream.merge(copied.clone())] {
            assert_eq!(list(&merged), [vec![1], vec![2], vec![3]], "each element once");
        }
        // Copied again, one element shorter: nothing of the first copy is left.
        let later = Seen { horizon: WriteTime(700), ..SEEN };
        let again = change(ColumnKind::Regular, of(vec![element(vec![0; 16], 20, 2)]), &[LIST], later);
        assert_eq!(list(&copied.clone().merge(again)), [vec![2]]);
        let gone = change(ColumnKind::Regular, row(Vec::new()), &[LIST], later);
        assert_eq!(list(&copied.merge(gone)), Vec::<Vec<u8>>::new());
    }
}
