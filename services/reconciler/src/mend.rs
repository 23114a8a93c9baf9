//! What PostgreSQL is to know of a row that was proven wrong, so that it shows what Cassandra answered. Pure: no I/O, no
//! clock.
//!
//! It is put in the place of what PostgreSQL knew, if that is still the same, and a change that comes later is merged with it
//! as with anything else. So what Cassandra answered keeps its own write times: what is newer wins, what is older or the same
//! alters nothing. What Cassandra did not answer with is deleted, each as of the time it was written itself, so that the same
//! write does not bring it back, and nothing else is touched.
//!
//! `SELECT` does not tell all. Where it is silent the least is taken that shows the row: PostgreSQL's own times and names of
//! list elements where there are such, and a marker as old as the oldest cell.

use cdc_model::{
    Cell, CellValue, ColumnId, ColumnKind, ColumnState, ComplexState, DeletionTime, Liveness, LocalTime, RowState,
    ValueBytes, WriteTime,
};

/// `None` if it cannot be made: a counter's total does not tell the shards that later changes are merged with.
pub(crate) fn mended(
    is_list: impl Fn(ColumnId) -> bool,
    kind: ColumnKind,
    known: &RowState,
    answer: Option<&RowState>,
    now: LocalTime,
) -> Option<RowState> {
    let Some(answer) = answer else {
        let deletion = DeletionTime { time: known.newest_write(), local: now };
        return Some(RowState { deletion: known.deletion.max(Some(deletion)), ..RowState::default() });
    };
    let times = || answer.columns.iter().flat_map(|(_, column)| cells(column)).map(|cell| cell.time);
    let told = || times().filter(|time| *time != WriteTime::NONE);
    // What Cassandra shows was not deleted.
    let deletion = known.deletion.filter(|deletion| !told().any(|time| deletion.deletes(time)));
    let after_deletion = deletion.map(|deletion| WriteTime(deletion.time.0.saturating_add(1)));
    let unknown = told().max().max(after_deletion).unwrap_or(WriteTime(0));
    let mut mended = RowState { liveness: None, deletion, columns: Vec::new() };
    let mut ids: Vec<_> = known.columns.iter().chain(&answer.columns).map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let (known, answer) = (of(known, id), of(answer, id));
        mended.columns.push((id, column(is_list(id), known, answer, unknown, now)?));
    }
    let is_shown = known.is_visible(now);
    mended.liveness = match known.liveness {
        _ if kind == ColumnKind::Static => None,
        Some(marker) if deletion == known.deletion && (marker.is_live(now) || mended.is_visible(now)) => Some(marker),
        None if is_shown && mended.is_visible(now) => None,
        _ => {
            let oldest = told().min().max(after_deletion).unwrap_or(WriteTime(0));
            let live = || mended.columns.iter().flat_map(|(_, column)| cells(column)).filter(|cell| cell.is_live(now));
            // With a TTL on all that it has, a row was most likely inserted with it.
            let expires = live().map(|cell| cell.local).max().unwrap_or(LocalTime::NONE);
            Some(Liveness { time: oldest, ttl: ttl(expires, now), expires })
        }
    };
    Some(mended)
}

fn of(row: &RowState, id: ColumnId) -> Option<&ColumnState> {
    row.columns.iter().find(|(own, _)| *own == id).map(|(_, column)| column)
}

fn cells(column: &ColumnState) -> impl Iterator<Item = &Cell> {
    let (simple, complex) = match column {
        ColumnState::Simple(cell) => (Some(cell), None),
        ColumnState::Complex(complex) => (None, Some(complex.cells.iter().map(|(_, cell)| cell))),
    };
    simple.into_iter().chain(complex.into_iter().flatten())
}

fn ttl(expires: LocalTime, now: LocalTime) -> i32 {
    match expires {
        LocalTime::NONE => 0,
        LocalTime(second) => i32::try_from(second - now.0).unwrap_or(i32::MAX - 1).max(1),
    }
}

fn column(
    is_list: bool,
    known: Option<&ColumnState>,
    answer: Option<&ColumnState>,
    unknown: WriteTime,
    now: LocalTime,
) -> Option<ColumnState> {
    let nothing = ComplexState::default();
    Some(match (known, answer) {
        (Some(ColumnState::Complex(known)), Some(ColumnState::Complex(answer))) => {
            complex(is_list, known, answer, unknown, now)
        }
        (_, Some(ColumnState::Complex(answer))) => complex(is_list, &nothing, answer, unknown, now),
        (Some(ColumnState::Complex(known)), _) => complex(is_list, known, &nothing, unknown, now),
        (Some(ColumnState::Simple(known)), Some(ColumnState::Simple(answer))) => {
            ColumnState::Simple(cell(Some(known), answer, unknown, now)?)
        }
        (None, Some(ColumnState::Simple(answer))) => ColumnState::Simple(cell(None, answer, unknown, now)?),
        (Some(ColumnState::Simple(known)), None) => ColumnState::Simple(deleted(known, now)),
        (None, None) => return None,
    })
}

fn complex(
    is_list: bool,
    known: &ComplexState,
    answer: &ComplexState,
    unknown: WriteTime,
    now: LocalTime,
) -> ColumnState {
    let told = answer.cells.iter().map(|(_, cell)| cell.time).filter(|time| *time != WriteTime::NONE);
    let deletion = known.deletion.filter(|deletion| !told.clone().any(|time| deletion.deletes(time)));
    let after_deletion = deletion.map(|deletion| WriteTime(deletion.time.0.saturating_add(1)));
    let unknown = after_deletion.map_or(unknown, |time| time.max(unknown));
    let live: Vec<&(ValueBytes, Cell)> = known.cells.iter().filter(|(_, cell)| cell.is_live(now)).collect();
    // Names of list elements are not told: if it is the same list, they are PostgreSQL's.
    let is_same = is_list
        && live.len() == answer.cells.len()
        && live.iter().zip(&answer.cells).all(|((_, known), (_, answer))| known.value == answer.value);
    let mut cells: Vec<(ValueBytes, Cell)> = if is_same {
        let named = live.iter().zip(&answer.cells).map(|((path, _), (_, cell))| (path.clone(), cell.clone()));
        named.collect()
    } else {
        answer.cells.clone()
    };
    let of_path = |path: &ValueBytes| known.cells.iter().find(|(own, _)| own == path).map(|(_, cell)| cell);
    for (path, element) in &mut cells {
        // Counters are no elements.
        if let Some(mended) = cell(of_path(path), element, unknown, now) {
            *element = mended;
        }
    }
    let others = known.cells.iter().filter(|(path, _)| !cells.iter().any(|(own, _)| own == path));
    let others: Vec<_> = others.map(|(path, cell)| (path.clone(), deleted(cell, now))).collect();
    cells.extend(others);
    cells.sort_by(|(a, _), (b, _)| a.cmp(b));
    ColumnState::Complex(ComplexState { deletion, cells })
}

fn cell(known: Option<&Cell>, answer: &Cell, unknown: WriteTime, now: LocalTime) -> Option<Cell> {
    if let Some(known @ Cell { value: CellValue::Counter(_), .. }) = known {
        return Some(known.clone());
    }
    let CellValue::Live(_) = answer.value else { return None };
    let time = match answer.time {
        WriteTime::NONE => known.filter(|known| known.is_live(now)).map_or(unknown, |known| known.time),
        time => time,
    };
    // PostgreSQL knows the second of its expiry more exactly.
    let same = known.filter(|known| known.time == time && known.value == answer.value && known.is_live(now));
    let anew = Cell { time, ttl: ttl(answer.local, now), ..answer.clone() };
    Some(
        same.filter(|known| (known.local == LocalTime::NONE) == (answer.local == LocalTime::NONE))
            .cloned()
            .unwrap_or(anew),
    )
}

fn deleted(known: &Cell, now: LocalTime) -> Cell {
    match known.value {
        CellValue::Tombstone => known.clone(),
        CellValue::Live(_) | CellValue::Counter(_) => Cell::tombstone(known.time, now),
    }
}

#[cfg(test)]
mod tests {
    use cdc_model::VisibleColumn;
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const NOW: LocalTime = LocalTime(1_000);
    const LIST: ColumnId = ColumnId(2);

    /// A number, a set and a list, as Cassandra answers with them or as PostgreSQL knows them.
    fn row(random: &mut ChaCha8Rng, is_answer: bool) -> RowState {
        let mut cell = |value: Vec<u8>| {
            let time = WriteTime(random.random_range(10..20));
            match random.random_range(0..4) {
                0 if !is_answer => Cell::tombstone(time, LocalTime(5)),
                1 => Cell { ttl: 7, local: LocalTime(2_000), ..Cell::live(time, value) },
                _ => Cell::live(time, value),
            }
        };
        let simple = cell(vec![1]);
        let set: Vec<_> = (0..3u8).map(|path| (vec![path].into(), cell(Vec::new()))).collect();
        let list: Vec<_> = (0..3u8).map(|at| ([vec![at; 16]].concat().into(), cell(vec![at]))).collect();
        let mut keep = |cells: Vec<(ValueBytes, Cell)>| {
            let cells: Vec<_> = cells.into_iter().filter(|_| random.random_range(0..3) > 0).collect();
            let deletion = DeletionTime { time: WriteTime(random.random_range(5..15)), local: LocalTime(5) };
            let deletion = Some(deletion).filter(|_| !is_answer && random.random());
            let is_kept = |(_, cell): &(ValueBytes, Cell)| deletion.is_none_or(|deletion| !deletion.deletes(cell.time));
            ComplexState { deletion, cells: cells.into_iter().filter(is_kept).collect() }
        };
        let mut columns = vec![(ColumnId(0), ColumnState::Simple(simple))];
        columns.push((ColumnId(1), ColumnState::Complex(keep(set))));
        columns.push((LIST, ColumnState::Complex(keep(list))));
        columns.retain(|_| random.random_range(0..4) > 0);
        let marker = Liveness { time: WriteTime(8), ttl: 0, expires: LocalTime::NONE };
        RowState { liveness: (is_answer || random.random()).then_some(marker), deletion: None, columns }
    }

    /// Path and value.
    type Elements = Vec<(ValueBytes, ValueBytes)>;

    /// Values without the names of list elements.
    fn shown(row: &RowState) -> Option<Vec<(ColumnId, Elements)>> {
        let values = |(id, column): (ColumnId, VisibleColumn)| match column {
            VisibleColumn::Simple(value) => (id, vec![(ValueBytes::default(), value)]),
            VisibleColumn::Complex(cells) if id == LIST => {
                (id, cells.into_iter().map(|(_, value)| (ValueBytes::default(), value)).collect())
            }
            VisibleColumn::Complex(cells) => (id, cells),
            VisibleColumn::Counter(_) => (id, Vec::new()),
        };
        row.visible(NOW).map(|columns| columns.into_iter().map(values).collect())
    }

    #[test]
    fn a_mended_row_shows_the_answer_and_later_changes_win() {
        for seed in 0..20_000 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let (known, answer) = (row(&mut random, false), row(&mut random, true));
            let mend = |answer| mended(|id| id == LIST, ColumnKind::Regular, &known, answer, NOW).unwrap();
            let fixed = mend(Some(&answer));
            assert_eq!(shown(&fixed), shown(&answer), "seed {seed}: {known:?} {answer:?}");
            // The same again, without what names the list's elements.
            let mut again = answer.clone();
            again.columns.retain(|(id, _)| *id != LIST);
            again.liveness = None;
            assert_eq!(shown(&fixed.clone().merge(again)), shown(&answer), "seed {seed}");
            let later = RowState {
                columns: vec![(ColumnId(0), ColumnState::Simple(Cell::live(WriteTime(21), vec![9])))],
                ..RowState::default()
            };
            let changed = fixed.clone().merge(later);
            assert!(shown(&changed).unwrap().contains(&(ColumnId(0), vec![(ValueBytes::default(), vec![9].into())])));
            let deletion = Some(DeletionTime { time: WriteTime(21), local: NOW });
            assert_eq!(fixed.merge(RowState { deletion, ..RowState::default() }).visible(NOW), None, "seed {seed}");

            // Gone in Cassandra: what was known does not come back, what is written anew does.
            let gone = mend(None);
            assert_eq!(gone.clone().merge(known.clone()).visible(NOW), None, "seed {seed}");
            assert!(gone.merge(changed).is_visible(NOW));
        }
    }

    #[test]
    fn what_is_newer_in_postgresql_goes_back_to_the_answer() {
        let deletion = Some(DeletionTime { time: WriteTime(50), local: NOW });
        let cell = |time, value: u8| (ColumnId(0), ColumnState::Simple(Cell::live(WriteTime(time), vec![value])));
        let answer = RowState { columns: vec![cell(10, 1)], ..RowState::default() };
        for known in [
            RowState { deletion, ..RowState::default() },
            RowState { columns: vec![cell(50, 2)], ..RowState::default() },
        ] {
            let fixed = mended(|_| false, ColumnKind::Regular, &known, Some(&answer), NOW).unwrap();
            assert_eq!(shown(&fixed), shown(&answer));
            assert_eq!(fixed.newest_write(), WriteTime(10));
        }
    }

    #[test]
    fn a_counter_keeps_its_shards() {
        let cell =
            |context: Vec<u8>| Cell { value: CellValue::Counter(context.into()), ..Cell::live(WriteTime(1), vec![]) };
        let row = |context| RowState {
            columns: vec![(ColumnId(0), ColumnState::Simple(cell(context)))],
            ..RowState::default()
        };
        let (known, answer) = (row(vec![1]), row(vec![2]));
        let fixed = mended(|_| false, ColumnKind::Regular, &known, Some(&answer), NOW).unwrap();
        assert_eq!(fixed.columns, known.columns);
        assert_eq!(mended(|_| false, ColumnKind::Regular, &RowState::default(), Some(&answer), NOW), None);
    }
}
