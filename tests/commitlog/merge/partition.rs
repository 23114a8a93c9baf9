//! A partition's changes, folded by the model's merge.

use std::collections::{BTreeMap, HashMap};

use cdc_model::{
    Cell, CellValue, Change, ChangeBody, Clustering, ColumnId, ColumnState, LocalTime, PartitionTombstones, RowState,
    TableSchema, ValueBytes, WriteTime,
};
use rand::{RngExt as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

#[derive(Clone, Default, Debug)]
pub(super) struct Partition {
    tombstones: PartitionTombstones,
    pub(super) fixed: RowState,
    pub(super) rows: BTreeMap<Clustering, RowState>,
}

impl Partition {
    fn of(change: &Change) -> Self {
        let mut this = Self::default();
        match change.body.clone() {
            ChangeBody::Row { clustering, row } => drop(this.rows.insert(clustering, row)),
            ChangeBody::Static(row) => this.fixed = row,
            ChangeBody::DeletePartition(deletion) => this.tombstones.partition = Some(deletion),
            ChangeBody::DeleteRange(range) => this.tombstones.ranges.push(range),
        }
        this
    }

    fn merge(mut self, other: Self, table: &TableSchema) -> Self {
        self.tombstones = self.tombstones.merge(other.tombstones);
        self.fixed = self.fixed.merge(other.fixed);
        for (clustering, row) in other.rows {
            let own = self.rows.remove(&clustering).unwrap_or_default();
            self.rows.insert(clustering, own.merge(row));
        }
        if let Some(deletion) = self.tombstones.covering(table, None) {
            self.fixed.shadow(deletion);
        }
        for (clustering, row) in &mut self.rows {
            if let Some(deletion) = self.tombstones.covering(table, Some(clustering)) {
                row.shadow(deletion);
            }
        }
        self
    }

    /// One after another, each once.
    pub(super) fn in_order(table: &TableSchema, changes: &[Change]) -> Self {
        changes.iter().map(Self::of).fold(Self::default(), |merged, change| merged.merge(change, table))
    }

    /// Some twice or more, any two at a time, what is merged already among them.
    pub(super) fn in_any_order(table: &TableSchema, changes: &[Change], rng: &mut ChaCha8Rng) -> Self {
        let mut parts: Vec<_> = changes.iter().map(Self::of).collect();
        for _ in 0..parts.len() / 3 {
            let again = parts[rng.random_range(0..changes.len())].clone();
            parts.push(again);
        }
        parts.shuffle(rng);
        while parts.len() > 1 {
            let first = parts.swap_remove(rng.random_range(0..parts.len()));
            let second = parts.swap_remove(rng.random_range(0..parts.len()));
            if rng.random_bool(0.2) {
                parts.push(second.clone());
            }
            parts.push(first.merge(second, table));
        }
        parts.pop().unwrap_or_default()
    }
}

/// When a change or a part of it expires.
pub(super) fn expiries(change: &Change) -> impl Iterator<Item = LocalTime> {
    let row = match &change.body {
        ChangeBody::Row { row, .. } | ChangeBody::Static(row) => Some(row),
        ChangeBody::DeletePartition(_) | ChangeBody::DeleteRange(_) => None,
    };
    let marker = row.and_then(|row| row.liveness).map(|liveness| liveness.expires);
    let cells = row.into_iter().flat_map(cells).filter(|(_, cell)| cell.value != CellValue::Tombstone);
    cells.map(|(_, cell)| cell.local).chain(marker).filter(|local| *local != LocalTime::NONE)
}

/// Column and, of a collection, path.
type Place = (ColumnId, ValueBytes);

fn cells(row: &RowState) -> impl Iterator<Item = (Place, &Cell)> {
    row.columns.iter().flat_map(|(id, state)| {
        let cells: Vec<_> = match state {
            ColumnState::Simple(cell) => vec![((*id, ValueBytes::EMPTY), cell)],
            ColumnState::Complex(complex) => {
                complex.cells.iter().map(|(path, cell)| ((*id, path.clone()), cell)).collect()
            }
        };
        cells
    })
}

/// Counts what the comparison is about.
pub(super) fn count(
    partitions: &BTreeMap<ValueBytes, Vec<Change>>,
    now: LocalTime,
    met: &mut BTreeMap<&'static str, usize>,
) {
    let mut add = |what, count| *met.entry(what).or_default() += count;
    for changes in partitions.values() {
        let mut written: HashMap<(Option<&Clustering>, Place, WriteTime), Vec<&Cell>> = HashMap::new();
        for change in changes {
            add("expired", expiries(change).filter(|local| *local <= now).count());
            add("expiring", expiries(change).filter(|local| *local > now).count());
            let (clustering, row) = match &change.body {
                ChangeBody::Row { clustering, row } => (Some(clustering), row),
                ChangeBody::Static(row) => (None, row),
                ChangeBody::DeletePartition(_) => {
                    add("deletions of partitions", 1);
                    continue;
                }
                ChangeBody::DeleteRange(_) => {
                    add("deletions of ranges", 1);
                    continue;
                }
            };
            add("deletions of rows", usize::from(row.deletion.is_some()));
            add("counters", cells(row).filter(|(_, cell)| matches!(cell.value, CellValue::Counter(_))).count());
            for (place, cell) in cells(row) {
                written.entry((clustering, place, cell.time)).or_default().push(cell);
            }
        }
        for cells in written.values() {
            let differs =
                |pick: fn(&Cell) -> bool| cells.iter().any(|cell| pick(cell)) && !cells.iter().all(|cell| pick(cell));
            let (first, rest) = (cells[0], &cells[1..]);
            add("values at the same time", usize::from(rest.iter().any(|cell| cell.value != first.value)));
            add("expiring and other at the same time", usize::from(differs(|cell| cell.ttl != 0)));
            add("deleted and other at the same time", usize::from(differs(|cell| cell.value == CellValue::Tombstone)));
        }
    }
}
