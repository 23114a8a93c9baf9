//! Rows and their cells (`UnfilteredSerializer.serializeRowBody`, `Cell.Serializer`).

use cdc_model::{
    Cell, CellValue, ColumnId, ColumnState, ComplexState, Liveness, LocalTime, RowState, ValueBytes, WriteTime,
};

use super::{Update, row_flag};
use crate::{
    cursor::Fault,
    layout::{Columns, HeaderColumn, Kind},
};

mod cell_flag {
    pub(super) const DELETED: u8 = 0x01;
    pub(super) const EXPIRING: u8 = 0x02;
    pub(super) const EMPTY_VALUE: u8 = 0x04;
    pub(super) const ROW_TIMESTAMP: u8 = 0x08;
    pub(super) const ROW_TTL: u8 = 0x10;
    pub(super) const KNOWN: u8 = 0x1f;
}

/// The place of a cell that is about to be read.
const VACANT: Cell =
    Cell { time: WriteTime::NONE, ttl: 0, local: LocalTime::NONE, value: CellValue::Live(ValueBytes::EMPTY) };
const VACANT_COLUMN: (ColumnId, ColumnState) = (ColumnId(0), ColumnState::Simple(VACANT));
const VACANT_ELEMENT: (ValueBytes, Cell) = (ValueBytes::EMPTY, VACANT);

impl<const KEEP: bool> Update<'_, '_, KEEP> {
    /// What follows a row's flags and clustering, into a row that is empty.
    pub(super) fn row(&mut self, flags: u8, columns: &Columns, row: &mut RowState) -> Result<(), Fault> {
        let mut liveness = None;
        if flags & row_flag::TIMESTAMP != 0 {
            let time = self.time()?;
            let (ttl, expires) =
                if flags & row_flag::TTL != 0 { (self.ttl()?, self.local()?) } else { (0, LocalTime::NONE) };
            liveness = Some(Liveness { time, ttl, expires });
        } else if flags & row_flag::TTL != 0 {
            return Err("a row has a TTL and no write time");
        }
        // A shadowable deletion (of a view's row) counts as an ordinary one.
        let deletion = if flags & row_flag::DELETION != 0 { self.deletion()? } else { None };
        let has_all = flags & row_flag::ALL_COLUMNS != 0 || self.read_missing(columns.list.len())?;
        (row.liveness, row.deletion) = (liveness, deletion);
        let has_complex_deletion = flags & row_flag::COMPLEX_DELETION != 0;
        let plain = match liveness {
            Some(Liveness { time, ttl: 0, .. }) if KEEP && has_all => {
                row.columns = Vec::with_capacity(columns.list.len());
                self.plain_cells(&columns.list, time, &mut row.columns)
            }
            _ => 0,
        };
        for (index, column) in columns.list.iter().enumerate().skip(plain) {
            if !has_all && self.missing[index / 64] >> (index % 64) & 1 == 1 {
                continue;
            }
            if KEEP && row.columns.is_empty() {
                row.columns.reserve_exact(columns.list.len() - index);
            }
            match column.kind {
                Kind::Complex => {
                    let state = self.complex(column, has_complex_deletion, liveness.as_ref())?;
                    row.columns.extend(state.map(|state| (column.id, ColumnState::Complex(state))));
                }
                Kind::Simple(_) | Kind::Counter => {
                    let mut aside = VACANT;
                    let cell = if KEEP {
                        row.columns.push(VACANT_COLUMN);
                        match row.columns.last_mut() {
                            Some((id, ColumnState::Simple(cell))) => {
                                *id = column.id;
                                cell
                            }
                            _ => unreachable!("just pushed"),
                        }
                    } else {
                        &mut aside
                    };
                    self.cell(column.kind, liveness.as_ref(), cell, |_| Ok(()))?;
                    if KEEP && column.is_dropped(cell.time) {
                        row.columns.pop();
                    }
                }
            }
        }
        if !columns.sorted {
            row.columns.sort_unstable_by_key(|(id, _)| *id);
        }
        Ok(())
    }

    /// Simple cells from the first of `columns` on, as long as they are live, without a TTL and as old as their row: nearly
    /// all there are, so they get a way of their own, and the first that is otherwise is left to [`Self::cell`]. Returns
    /// how many they are.
    fn plain_cells(
        &mut self,
        columns: &[HeaderColumn],
        time: WriteTime,
        into: &mut Vec<(ColumnId, ColumnState)>,
    ) -> usize {
        let end = self.cursor.end();
        let mut at = self.cursor.at();
        let mut count = 0;
        for column in columns {
            let Kind::Simple(fixed) = column.kind else { break };
            let Some([cell_flag::ROW_TIMESTAMP, first]) = self.whole[at..end].first_chunk() else { break };
            let range = match fixed {
                Some(length) => at + 1..at + 1 + length,
                None if *first < 0x80 => at + 2..at + 2 + usize::from(*first),
                None => break,
            };
            if range.end > end || column.is_dropped(time) {
                break;
            }
            at = range.end;
            into.push(VACANT_COLUMN);
            if let Some((id, ColumnState::Simple(Cell { time: written, value: CellValue::Live(value), .. }))) =
                into.last_mut()
            {
                (*id, *written) = (column.id, time);
                value.set(self.whole, range);
            }
            count += 1;
        }
        self.cursor.go_on_at(at);
        count
    }

    /// As [`Self::plain_cells`], of a complex column.
    fn plain_elements(&mut self, count: usize, time: WriteTime, into: &mut Vec<(ValueBytes, Cell)>) -> usize {
        const EMPTY: u8 = cell_flag::ROW_TIMESTAMP | cell_flag::EMPTY_VALUE;
        let bytes = &self.whole[..self.cursor.end()];
        let sized = |at: usize| match bytes.get(at) {
            Some(length @ ..0x80) => Some(at + 1..at + 1 + usize::from(*length)),
            _ => None,
        };
        let mut at = self.cursor.at();
        let mut done = 0;
        while done < count {
            let Some(path) = sized(at + 1) else { break };
            let value = match bytes[at] {
                EMPTY => Some(path.end..path.end),
                cell_flag::ROW_TIMESTAMP => sized(path.end),
                _ => None,
            };
            let Some(value) = value.filter(|value| value.end <= bytes.len()) else { break };
            at = value.end;
            done += 1;
            into.push(VACANT_ELEMENT);
            if let Some((to_path, Cell { time: written, value: CellValue::Live(to_value), .. })) = into.last_mut() {
                *written = time;
                to_path.set(self.whole, path);
                to_value.set(self.whole, value);
            }
        }
        self.cursor.go_on_at(at);
        done
    }

    /// Fills `missing` for a header of `count` columns; true if none is.
    fn read_missing(&mut self, count: usize) -> Result<bool, Fault> {
        const TOO_MANY: Fault = "a row names more columns than its header";
        let encoded = self.cursor.uvint()?;
        if encoded == 0 {
            return Ok(true);
        }
        self.missing.clear();
        if count < 64 {
            if encoded >> count != 0 {
                return Err(TOO_MANY);
            }
            self.missing.push(encoded);
            return Ok(false);
        }
        let absent = usize::try_from(encoded).ok().filter(|absent| *absent <= count).ok_or(TOO_MANY)?;
        let present = count - absent;
        let lists_present = present < count / 2;
        self.missing.resize(count.div_ceil(64), if lists_present { u64::MAX } else { 0 });
        for _ in 0..if lists_present { present } else { absent } {
            let index = usize::try_from(self.cursor.uvint()?).ok().filter(|index| *index < count).ok_or(TOO_MANY)?;
            self.missing[index / 64] ^= 1 << (index % 64);
        }
        Ok(false)
    }

    fn complex(
        &mut self,
        column: &HeaderColumn,
        has_deletion: bool,
        liveness: Option<&Liveness>,
    ) -> Result<Option<ComplexState>, Fault> {
        let deletion = if has_deletion { self.deletion()? } else { None };
        let deletion = deletion.filter(|deletion| !column.is_dropped(deletion.time));
        let count = self.cursor.length()?;
        // A cell is at least flags and the length of its path.
        let capacity = if KEEP { count.min(self.cursor.rest().len() / 2).min(4096) } else { 0 };
        let mut cells = Vec::with_capacity(capacity);
        let plain = match liveness {
            Some(Liveness { time, ttl: 0, .. }) if KEEP && !column.is_dropped(*time) => {
                self.plain_elements(count, *time, &mut cells)
            }
            _ => 0,
        };
        for _ in plain..count {
            let mut aside = (ValueBytes::EMPTY, VACANT);
            let (path, cell) = if KEEP {
                cells.push(VACANT_ELEMENT);
                cells.last_mut().expect("just pushed")
            } else {
                &mut aside
            };
            self.cell(column.kind, liveness, cell, |update| {
                let range = update.cursor.sized()?;
                if KEEP {
                    path.set(update.whole, range);
                }
                Ok(())
            })?;
            if KEEP && column.is_dropped(cell.time) {
                cells.pop();
            }
        }
        // They come in the order of the path's type.
        if !cells.is_sorted_by(|a, b| a.0 < b.0) {
            cells.sort_by(|a, b| a.0.cmp(&b.0));
            cells.dedup_by(|later, earlier| {
                let same = later.0 == earlier.0;
                if same {
                    earlier.1 = earlier.1.clone().merge(later.1.clone());
                }
                same
            });
        }
        Ok((deletion.is_some() || !cells.is_empty()).then_some(ComplexState { deletion, cells }))
    }

    /// Reads a cell to where it stays, which is [`VACANT`]; its path stands before the value. A cell is never moved right
    /// after it was made: to load as words what was just stored in smaller parts makes the processor wait.
    #[inline(always)]
    fn cell(
        &mut self,
        kind: Kind,
        liveness: Option<&Liveness>,
        into: &mut Cell,
        path: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let flags = self.cursor.u8()?;
        if flags & !cell_flag::KNOWN != 0 {
            return Err("a cell has unknown flags");
        }
        let row = || liveness.ok_or("a cell refers to the row's times, which has none");
        let time = if flags & cell_flag::ROW_TIMESTAMP != 0 { row()?.time } else { self.time()? };
        let is_deleted = flags & cell_flag::DELETED != 0;
        let is_expiring = flags & cell_flag::EXPIRING != 0;
        let (local, ttl) = if flags & cell_flag::ROW_TTL != 0 {
            row().map(|row| (row.expires, row.ttl))?
        } else if is_deleted || is_expiring {
            (self.local()?, if is_expiring { self.ttl()? } else { 0 })
        } else {
            (LocalTime::NONE, 0)
        };
        path(self)?;
        let range = match kind {
            _ if flags & cell_flag::EMPTY_VALUE != 0 => self.cursor.take(0)?,
            Kind::Simple(fixed) => self.value(fixed)?,
            Kind::Counter | Kind::Complex => self.value(None)?,
        };
        if kind == Kind::Counter && !is_deleted && (local != LocalTime::NONE || ttl != 0) {
            return Err("a counter expires");
        }
        into.time = time;
        into.ttl = if is_deleted { 0 } else { ttl };
        into.local = local;
        match &mut into.value {
            value if is_deleted => *value = CellValue::Tombstone,
            CellValue::Live(value) if kind != Kind::Counter => {
                if KEEP {
                    value.set(self.whole, range);
                }
            }
            value => *value = CellValue::Counter(ValueBytes::of(self.whole, range)),
        }
        Ok(())
    }
}
