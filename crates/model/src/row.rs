//! The merge: a row's state is everything known of it, deletions included, and joining two states is the same
//! whatever the order, the grouping or the number of repetitions (`db/rows/Row.Merger`, `db/rows/BTreeRow.java`).

use std::borrow::Cow;

use crate::{
    Cell, CellValue, ColumnId, CqlType, DeletionTime, Liveness, LocalTime, ValueBytes, WriteTime,
    canonical::canonical_value,
    cell::{counter_total, newest},
};

/// What is known of one row (or one static row). Also the content of a change: a change is a state that knows little.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RowState {
    pub liveness: Option<Liveness>,
    pub deletion: Option<DeletionTime>,
    /// Sorted by id.
    pub columns: Vec<(ColumnId, ColumnState)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ColumnState {
    Simple(Cell),
    Complex(ComplexState),
}

/// A non-frozen collection or UDT.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ComplexState {
    pub deletion: Option<DeletionTime>,
    /// Path (element of a set, key of a map, timeuuid of a list, field number of a UDT) and cell; sorted by path bytes.
    pub cells: Vec<(ValueBytes, Cell)>,
}

impl std::fmt::Debug for ComplexState {
    /// Leaves the paths out, because they are values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cells: Vec<&Cell> = self.cells.iter().map(|(_, cell)| cell).collect();
        f.debug_struct("ComplexState").field("deletion", &self.deletion).field("cells", &cells).finish()
    }
}

/// What `SELECT` would show of a column.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VisibleColumn {
    Simple(ValueBytes),
    Counter(i64),
    /// Path and value of each live element, sorted by path bytes; never empty.
    Complex(Vec<(ValueBytes, ValueBytes)>),
}

impl RowState {
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let liveness = match (self.liveness, other.liveness) {
            (Some(a), Some(b)) => Some(a.merge(b)),
            (a, b) => a.or(b),
        };
        let mut merged = Self {
            liveness,
            deletion: newest(self.deletion, other.deletion),
            columns: merge_sorted(self.columns, other.columns, ColumnState::merge),
        };
        if let Some(deletion) = merged.deletion {
            merged.drop_deleted(deletion);
        }
        merged
    }

    /// Applies a deletion of the range or partition this row lies in. The deletion itself is kept elsewhere.
    pub fn shadow(&mut self, deletion: DeletionTime) {
        self.deletion = self.deletion.filter(|own| *own > deletion);
        self.drop_deleted(deletion);
    }

    fn drop_deleted(&mut self, deletion: DeletionTime) {
        self.liveness = self.liveness.filter(|liveness| !deletion.deletes(liveness.time));
        self.columns.retain_mut(|(_, column)| match column {
            ColumnState::Simple(cell) => !deletion.deletes(cell.time),
            ColumnState::Complex(complex) => {
                complex.deletion = complex.deletion.filter(|own| !deletion.deletes(own.time));
                complex.cells.retain(|(_, cell)| !deletion.deletes(cell.time));
                complex.deletion.is_some() || !complex.cells.is_empty()
            }
        });
    }

    /// Nothing is known: neither data nor deletions.
    pub fn is_empty(&self) -> bool {
        self.liveness.is_none() && self.deletion.is_none() && self.columns.is_empty()
    }

    /// All it knows are deletions and expired cells of before this second. Cassandra drops such a row `gc_grace_seconds`
    /// later (`db/partitions/PurgeFunction.java`).
    pub fn is_gone_before(&self, second: LocalTime) -> bool {
        let deletion = |deletion: &DeletionTime| deletion.local < second;
        let cell = |cell: &Cell| cell.local < second;
        self.liveness.is_none_or(|liveness| liveness.expires < second)
            && self.deletion.iter().all(deletion)
            && self.columns.iter().all(|(_, column)| match column {
                ColumnState::Simple(simple) => cell(simple),
                ColumnState::Complex(complex) => {
                    complex.deletion.iter().all(deletion) && complex.cells.iter().all(|(_, element)| cell(element))
                }
            })
    }

    /// The columns `SELECT` would show at this second, or `None` if it would show no row. A static row has no marker,
    /// so it shows while it has a live cell.
    pub fn visible(&self, now: LocalTime) -> Option<Vec<(ColumnId, VisibleColumn)>> {
        let columns = || self.columns.iter().filter_map(|(id, c)| Some((*id, c.visible(now)?))).collect();
        self.is_visible(now).then(columns)
    }

    /// Whether [`Self::visible`] would show a row.
    pub fn is_visible(&self, now: LocalTime) -> bool {
        let marked = self.liveness.is_some_and(|liveness| liveness.is_live(now));
        marked || self.columns.iter().any(|(_, column)| column.is_visible(now))
    }

    /// The next second at which something live expires.
    pub fn next_expiry(&self, now: LocalTime) -> Option<LocalTime> {
        let marker = self.liveness.map(|liveness| liveness.expires);
        self.cells()
            .filter(|cell| cell.value != CellValue::Tombstone)
            .map(|cell| cell.local)
            .chain(marker)
            .filter(|local| *local != LocalTime::NONE && *local > now)
            .min()
    }

    /// The newest write time of anything known here; [`WriteTime::NONE`] of nothing.
    pub fn newest_write(&self) -> WriteTime {
        let complex = self.columns.iter().filter_map(|(_, column)| match column {
            ColumnState::Complex(complex) => complex.deletion,
            ColumnState::Simple(_) => None,
        });
        let deletions = self.deletion.into_iter().chain(complex).map(|deletion| deletion.time);
        let marker = self.liveness.map(|liveness| liveness.time);
        self.cells().map(|cell| cell.time).chain(deletions).chain(marker).max().unwrap_or(WriteTime::NONE)
    }

    fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.columns.iter().flat_map(|(_, column)| {
            let (simple, complex) = match column {
                ColumnState::Simple(cell) => (Some(cell), None),
                ColumnState::Complex(complex) => (None, Some(complex.cells.iter().map(|(_, cell)| cell))),
            };
            simple.into_iter().chain(complex.into_iter().flatten())
        })
    }

    /// Bytes held in memory, roughly.
    pub fn weight(&self) -> usize {
        let column = |column: &ColumnState| match column {
            ColumnState::Simple(cell) => cell.value.bytes().len(),
            ColumnState::Complex(complex) => complex
                .cells
                .iter()
                .map(|(path, cell)| size_of::<(ValueBytes, Cell)>() + path.len() + cell.value.bytes().len())
                .sum(),
        };
        self.columns.iter().map(|(_, state)| size_of::<(ColumnId, ColumnState)>() + column(state)).sum()
    }
}

impl ColumnState {
    fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Simple(a), Self::Simple(b)) => Self::Simple(a.merge(b)),
            (Self::Complex(a), Self::Complex(b)) => Self::Complex(a.merge(b)),
            // One name, two kinds: dropped and added again, which Cassandra allows only within a kind.
            (complex @ Self::Complex(_), Self::Simple(_)) | (Self::Simple(_), complex @ Self::Complex(_)) => complex,
        }
    }

    /// Whether [`Self::visible`] would show anything.
    pub fn is_visible(&self, now: LocalTime) -> bool {
        match self {
            Self::Simple(cell) => cell.is_live(now),
            Self::Complex(complex) => {
                complex.cells.iter().any(|(_, cell)| matches!(cell.value, CellValue::Live(_)) && cell.is_live(now))
            }
        }
    }

    /// What `SELECT` would show of the column at this second, if anything.
    pub fn visible(&self, now: LocalTime) -> Option<VisibleColumn> {
        match self {
            Self::Simple(cell) if !cell.is_live(now) => None,
            Self::Simple(cell) => match &cell.value {
                CellValue::Tombstone => None,
                CellValue::Live(value) => Some(VisibleColumn::Simple(value.clone())),
                CellValue::Counter(context) => Some(VisibleColumn::Counter(counter_total(context))),
            },
            Self::Complex(complex) => {
                let live = |(path, cell): &(ValueBytes, Cell)| match &cell.value {
                    CellValue::Live(value) if cell.is_live(now) => Some((path.clone(), value.clone())),
                    _ => None,
                };
                let elements: Vec<_> = complex.cells.iter().filter_map(live).collect();
                (!elements.is_empty()).then_some(VisibleColumn::Complex(elements))
            }
        }
    }
}

impl ComplexState {
    /// Elements that Cassandra takes for one are one, under the [`canonical_value`] of their paths.
    #[must_use]
    pub fn with_canonical_paths(mut self, path: &CqlType) -> Self {
        for (bytes, _) in &mut self.cells {
            if let Cow::Owned(canonical) = canonical_value(path, bytes) {
                *bytes = canonical.into();
            }
        }
        self.cells.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut cells: Vec<(ValueBytes, Cell)> = Vec::with_capacity(self.cells.len());
        for (path, cell) in self.cells {
            match cells.last_mut().filter(|(last, _)| *last == path) {
                Some((_, last)) => *last = last.clone().merge(cell),
                None => cells.push((path, cell)),
            }
        }
        Self { cells, ..self }
    }

    fn merge(self, other: Self) -> Self {
        let deletion = newest(self.deletion, other.deletion);
        let mut cells = merge_sorted(self.cells, other.cells, Cell::merge);
        if let Some(deletion) = deletion {
            cells.retain(|(_, cell)| !deletion.deletes(cell.time));
        }
        Self { deletion, cells }
    }
}

fn merge_sorted<K: Ord, V>(a: Vec<(K, V)>, b: Vec<(K, V)>, merge: impl Fn(V, V) -> V) -> Vec<(K, V)> {
    if a.is_empty() || b.is_empty() {
        return if a.is_empty() { b } else { a };
    }
    let mut merged = Vec::with_capacity(a.len().max(b.len()));
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    while let (Some((left, _)), Some((right, _))) = (a.peek(), b.peek()) {
        let order = left.cmp(right);
        let left = if order.is_le() { a.next() } else { None };
        let right = if order.is_ge() { b.next() } else { None };
        merged.extend(match (left, right) {
            (Some((key, left)), Some((_, right))) => Some((key, merge(left, right))),
            (left, right) => left.or(right),
        });
    }
    merged.extend(a);
    merged.extend(b);
    merged
}
