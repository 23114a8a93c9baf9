//! Mutations: the payload of an entry, as `Mutation.MutationSerializer` and `UnfilteredSerializer` write it.
//!
//! A mutation holds one update per table of one keyspace for one partition key. Updates carry neither their length nor
//! their columns' types: to get behind one, all of it must be decoded with its table's schema. Deltas against the
//! header's bases wrap, since the bases are hints and not minima.

mod row;

use std::{collections::HashMap, hash::BuildHasher, ops::Range, sync::Arc};

use bytes::Bytes;
use cdc_model::{
    Bound, Change, ChangeBody, Clustering, DeletionTime, LocalTime, Provenance, RangeTombstone, RowState, TableId,
    TableSchema, ValueBytes, WriteTime,
};
use uuid::Uuid;

use crate::{
    Format, Payload,
    cursor::{Cursor, Fault},
    layout::{Columns, ColumnsError, Layout},
};

/// Where the decoder finds schemas: of all tables of the node, dropped columns included.
pub trait Schemas {
    fn table(&self, id: TableId) -> Option<&Arc<TableSchema>>;
}

impl<S: BuildHasher> Schemas for HashMap<TableId, Arc<TableSchema>, S> {
    fn table(&self, id: TableId) -> Option<&Arc<TableSchema>> {
        self.get(&id)
    }
}

#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// Stands before other updates in its mutation, so it cannot be skipped without its schema.
    #[error("table {} is not known and its update cannot be skipped; refresh the schema", .0.0)]
    UnknownTable(TableId),
    #[error("column {column} of table {table} is not known; refresh the schema")]
    UnknownColumn { table: String, column: String },
    #[error("mutation is malformed at byte {offset} (table {}): {what}", .table.as_deref().unwrap_or("unknown"))]
    Malformed { table: Option<String>, offset: usize, what: &'static str },
}

/// Decodes mutations; keeps what it learned of the tables' columns between calls, so use one per thread.
#[derive(Debug, Default)]
pub struct Decoder {
    layouts: Vec<Layout>,
    /// Which of them was used last: most updates are of the same table as the one before.
    last: usize,
    /// By a fast hash, as nobody chooses the ids of tables to collide.
    by_table: HashMap<TableId, usize, foldhash::fast::RandomState>,
    /// Of the row being decoded: the header's columns that are missing, a bit each.
    missing: Vec<u64>,
}

mod update_flag {
    pub(super) const EMPTY: u8 = 0x01;
    pub(super) const DELETION: u8 = 0x04;
    pub(super) const STATIC_ROW: u8 = 0x08;
    pub(super) const ROW_ESTIMATE: u8 = 0x10;
    /// 0x02 is "reversed", which no mutation is.
    pub(super) const KNOWN: u8 = EMPTY | DELETION | STATIC_ROW | ROW_ESTIMATE;
}

mod row_flag {
    pub(super) const END_OF_PARTITION: u8 = 0x01;
    pub(super) const MARKER: u8 = 0x02;
    pub(super) const TIMESTAMP: u8 = 0x04;
    pub(super) const TTL: u8 = 0x08;
    pub(super) const DELETION: u8 = 0x10;
    pub(super) const ALL_COLUMNS: u8 = 0x20;
    pub(super) const COMPLEX_DELETION: u8 = 0x40;
    pub(super) const EXTENSION: u8 = 0x80;
    pub(super) const EXTENDED_STATIC: u8 = 0x01;
}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes one entry's payload and appends the changes of captured tables to `out`, all of them or on error none.
    ///
    /// An update of an uncaptured table is skipped; so is one of an unknown table where the format allows it, and the
    /// table's id is returned: it may be one created since the schema was read.
    pub fn decode<'p>(
        &mut self,
        format: Format,
        payload: impl Into<Payload<'p>>,
        at: Provenance,
        schemas: &impl Schemas,
        captured: &impl Fn(&TableSchema) -> bool,
        out: &mut Vec<Change>,
    ) -> Result<Option<TableId>, DecodeError> {
        let before = out.len();
        let payload = payload.into();
        let mut cursor = payload.cursor();
        let mut current = None;
        let decoded = self.mutation(format, payload.whole, &mut cursor, &at, schemas, captured, out, &mut current);
        decoded.map_err(|stop| {
            out.truncate(before);
            let name = current.and_then(|id| schemas.table(id)).map(|table| table.full_name());
            match stop {
                Stop::Malformed(what) => {
                    DecodeError::Malformed { table: name, offset: cursor.at() - payload.start, what }
                }
                Stop::UnknownColumn(column) => DecodeError::UnknownColumn { table: name.unwrap_or_default(), column },
                Stop::UnknownTable(id) => DecodeError::UnknownTable(id),
            }
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the arguments of `decode` and where it stands")]
    fn mutation<'a>(
        &mut self,
        format: Format,
        whole: &'a Bytes,
        cursor: &mut Cursor<'a>,
        at: &Provenance,
        schemas: &impl Schemas,
        captured: &impl Fn(&TableSchema) -> bool,
        out: &mut Vec<Change>,
        current: &mut Option<TableId>,
    ) -> Result<Option<TableId>, Stop> {
        let updates = cursor.length()?;
        for index in 0..updates {
            let is_last = index + 1 == updates;
            let id = TableId(Uuid::from_bytes(cursor.array()?));
            let Some(table) = schemas.table(id) else {
                return if is_last { Ok(Some(id)) } else { Err(Stop::UnknownTable(id)) };
            };
            let is_captured = captured(table);
            if is_last && !is_captured {
                return Ok(None);
            }
            *current = Some(id);
            if !self.layouts.get(self.last).is_some_and(|layout| Arc::ptr_eq(&layout.table, table)) {
                self.find_layout(table);
            }
            let layout = &mut self.layouts[self.last];
            if is_captured {
                Update::<true>::decode(format, whole, cursor, at, layout, &mut self.missing, out)?;
            } else {
                Update::<false>::decode(format, whole, cursor, at, layout, &mut self.missing, out)?;
            }
        }
        if updates == 0 {
            return Err("it holds no update".into());
        }
        if !cursor.rest().is_empty() {
            return Err("bytes are left behind its last update".into());
        }
        Ok(None)
    }

    fn find_layout(&mut self, table: &Arc<TableSchema>) {
        self.last = *self.by_table.entry(table.id).or_insert(self.layouts.len());
        match self.layouts.get_mut(self.last) {
            Some(layout) if Arc::ptr_eq(&layout.table, table) => {}
            Some(layout) => *layout = Layout::new(Arc::clone(table)),
            None => self.layouts.push(Layout::new(Arc::clone(table))),
        }
    }
}

/// Why decoding stopped; [`DecodeError`] adds where.
enum Stop {
    Malformed(Fault),
    UnknownColumn(String),
    UnknownTable(TableId),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Malformed(fault)
    }
}

impl From<ColumnsError> for Stop {
    fn from(error: ColumnsError) -> Self {
        match error {
            ColumnsError::Malformed(fault) => Self::Malformed(fault),
            ColumnsError::Unknown { column } => Self::UnknownColumn(column),
        }
    }
}

/// A partition update being decoded; one that is not to be kept is only walked through, without an allocation.
struct Update<'a, 'b, const KEEP: bool> {
    format: Format,
    /// The ranges that the cursor answers are of it.
    whole: &'a Bytes,
    cursor: &'b mut Cursor<'a>,
    base: Base,
    clustering: &'b [Option<usize>],
    missing: &'b mut Vec<u64>,
}

/// Where the changes of an update go; nowhere, if it is not to be kept.
struct Changes<'a, const KEEP: bool> {
    whole: &'a Bytes,
    table: &'a Arc<TableSchema>,
    partition_key: Range<usize>,
    at: &'a Provenance,
    out: &'a mut Vec<Change>,
}

impl<const KEEP: bool> Changes<'_, KEEP> {
    #[inline]
    fn push(&mut self, body: ChangeBody) {
        if KEEP {
            self.add(body);
        }
    }

    /// The key is written to where it stays: to load as words what was just stored in smaller parts makes the processor
    /// wait.
    #[inline(always)]
    fn add(&mut self, body: ChangeBody) -> Option<&mut ChangeBody> {
        let table = Arc::clone(self.table);
        self.out.push(Change { table, partition_key: ValueBytes::EMPTY, body, provenance: *self.at });
        let change = self.out.last_mut()?;
        change.partition_key.set(self.whole, self.partition_key.clone());
        Some(&mut change.body)
    }

    /// A row, the static one if it has no clustering, that is read to where it stays, and left out if it says nothing.
    #[inline(always)]
    fn row(
        &mut self,
        clustering: Option<Clustering>,
        read: impl FnOnce(&mut RowState) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        if !KEEP {
            return read(&mut RowState::default());
        }
        let body = match clustering {
            Some(clustering) => self.add(ChangeBody::Row { clustering, row: RowState::default() }),
            None => self.add(ChangeBody::Static(RowState::default())),
        };
        if let Some(ChangeBody::Row { row, .. } | ChangeBody::Static(row)) = body {
            read(row)?;
            if row.is_empty() {
                self.out.pop();
            }
        }
        Ok(())
    }
}

/// What the header's deltas are added to.
#[derive(Clone, Copy, Default)]
struct Base {
    time: i64,
    local: u32,
    ttl: u32,
}

/// 2015-09-22T00:00:00Z.
const EPOCH_SECONDS: u32 = 1_442_880_000;
const EPOCH_MICROS: i64 = 1_442_880_000_000_000;

impl<'a, const KEEP: bool> Update<'a, '_, KEEP> {
    fn decode(
        format: Format,
        whole: &'a Bytes,
        cursor: &mut Cursor<'a>,
        at: &Provenance,
        layout: &mut Layout,
        missing: &mut Vec<u64>,
        out: &mut Vec<Change>,
    ) -> Result<(), Stop> {
        if format >= Format::V9 {
            // Epoch of the table's definition.
            cursor.uvint()?;
        }
        let partition_key = cursor.sized()?;
        let flags = cursor.u8()?;
        if flags & !update_flag::KNOWN != 0 {
            return Err("the update has unknown flags".into());
        }
        if flags & update_flag::EMPTY != 0 {
            return Ok(());
        }
        let base = Base {
            time: EPOCH_MICROS.wrapping_add_unsigned(cursor.uvint()?),
            local: EPOCH_SECONDS.wrapping_add(low(cursor.uvint()?)),
            ttl: low(cursor.uvint()?),
        };
        let has_static_row = flags & update_flag::STATIC_ROW != 0;
        let statics = if has_static_row { Some(layout.columns(cursor)?) } else { None };
        let regulars = layout.columns(cursor)?;
        let table = &layout.table;
        let mut into = Changes::<KEEP> { whole, table, partition_key, at, out };
        let mut update = Update::<KEEP> { format, whole, cursor, base, clustering: &layout.clustering, missing };

        if flags & update_flag::DELETION != 0
            && let Some(deletion) = update.deletion()?
        {
            into.push(ChangeBody::DeletePartition(deletion));
        }
        if let Some(statics) = statics {
            update.static_row(&statics, &mut into)?;
        }
        if flags & update_flag::ROW_ESTIMATE != 0 {
            update.cursor.uvint()?;
        }
        update.unfiltered(&regulars, &mut into)
    }

    fn static_row(&mut self, columns: &Columns, into: &mut Changes<'_, KEEP>) -> Result<(), Stop> {
        let flags = self.cursor.u8()?;
        if flags & row_flag::EXTENSION == 0 || self.cursor.u8()? & row_flag::EXTENDED_STATIC == 0 {
            return Err("the static row is not marked as one".into());
        }
        Ok(into.row(None, |row| self.row(flags, columns, row))?)
    }

    /// Rows and range markers up to the end of the partition.
    fn unfiltered(&mut self, columns: &Columns, into: &mut Changes<'_, KEEP>) -> Result<(), Stop> {
        let mut open: Option<(Bound, Option<DeletionTime>)> = None;
        loop {
            let flags = self.cursor.u8()?;
            if flags & row_flag::END_OF_PARTITION != 0 {
                return if open.is_none() { Ok(()) } else { Err("a range deletion has no end".into()) };
            }
            if flags & row_flag::MARKER != 0 {
                self.marker(&mut open, into)?;
                continue;
            }
            if flags & row_flag::EXTENSION != 0 && self.cursor.u8()? & row_flag::EXTENDED_STATIC != 0 {
                return Err("a static row stands among the rows".into());
            }
            let clustering = self.row_clustering()?;
            into.row(Some(clustering), |row| self.row(flags, columns, row))?;
        }
    }

    fn marker(
        &mut self,
        open: &mut Option<(Bound, Option<DeletionTime>)>,
        into: &mut Changes<'_, KEEP>,
    ) -> Result<(), Fault> {
        // (a range ends here, including the bound's rows; a range starts here, including them)
        let (ends, starts) = match self.cursor.u8()? {
            0 => (Some(false), None),
            1 => (None, Some(true)),
            2 => (Some(false), Some(true)),
            5 => (Some(true), Some(false)),
            6 => (Some(true), None),
            7 => (None, Some(false)),
            _ => return Err("a range marker is of an unknown kind"),
        };
        let prefix = self.bound_prefix()?;
        let bound =
            |inclusive| if prefix.is_empty() { Bound::OPEN } else { Bound { prefix: prefix.clone(), inclusive } };
        if let Some(inclusive) = ends {
            // Says again what the start said.
            self.deletion()?;
            let Some((start, opened)) = open.take() else { return Err("a range deletion has no start") };
            if let Some(deletion) = opened {
                into.push(ChangeBody::DeleteRange(RangeTombstone { start, end: bound(inclusive), deletion }));
            }
        }
        if let Some(inclusive) = starts {
            if open.is_some() {
                return Err("a range deletion starts within another");
            }
            *open = Some((bound(inclusive), self.deletion()?));
        }
        Ok(())
    }

    fn bound_prefix(&mut self) -> Result<Vec<ValueBytes>, Fault> {
        let size = usize::from(u16::from_be_bytes(self.cursor.array()?));
        if size > self.clustering.len() {
            return Err("a range marker has more values than the table has clustering columns");
        }
        let mut prefix = Vec::with_capacity(if KEEP { size } else { 0 });
        let whole = self.whole;
        self.clustering_values(size, |value| {
            let value = value.ok_or("a range marker has a null value")?;
            if KEEP {
                prefix.push(ValueBytes::of(whole, value));
            }
            Ok(())
        })?;
        Ok(prefix)
    }

    fn row_clustering(&mut self) -> Result<Clustering, Fault> {
        if self.clustering.is_empty() {
            return Ok(Clustering::default());
        }
        let bytes: &[u8] = self.whole;
        let mut values: smallvec::SmallVec<[Option<&[u8]>; 4]> = smallvec::SmallVec::new();
        self.clustering_values(self.clustering.len(), |value| {
            match value.map(|range| bytes.get(range).unwrap_or_default()) {
                Some(value) if value.len() > usize::from(u16::MAX) => return Err("a clustering value is too long"),
                value if KEEP => values.push(value),
                _ => {}
            }
            Ok(())
        })?;
        Ok(Clustering::new(values))
    }

    /// The first `size` clustering columns' values, a bitmap of empty and null ones before every 32.
    fn clustering_values(
        &mut self,
        size: usize,
        mut value: impl FnMut(Option<Range<usize>>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut bitmap = 0;
        for (index, fixed) in self.clustering.iter().take(size).enumerate() {
            if index % 32 == 0 {
                bitmap = self.cursor.uvint()?;
            }
            match bitmap >> (2 * (index % 32)) & 0b11 {
                0b00 => value(Some(self.value(*fixed)?))?,
                0b01 => value(Some(self.cursor.take(0)?))?,
                _ => value(None)?,
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn value(&mut self, fixed: Option<usize>) -> Result<Range<usize>, Fault> {
        match fixed {
            Some(length) => self.cursor.take(length),
            None => self.cursor.sized(),
        }
    }

    #[inline]
    fn time(&mut self) -> Result<WriteTime, Fault> {
        Ok(WriteTime(self.base.time.wrapping_add_unsigned(self.cursor.uvint()?)))
    }

    fn ttl(&mut self) -> Result<i32, Fault> {
        Ok(self.base.ttl.wrapping_add(low(self.cursor.uvint()?)).cast_signed())
    }

    fn local(&mut self) -> Result<LocalTime, Fault> {
        let seconds = self.base.local.wrapping_add(low(self.cursor.uvint()?));
        Ok(local_time(self.format, seconds))
    }

    /// `None`: live, as every complex column of a row says that has none of its own while another has.
    fn deletion(&mut self) -> Result<Option<DeletionTime>, Fault> {
        let deletion = DeletionTime { time: self.time()?, local: self.local()? };
        // No write is as old, so whatever its second says it deletes nothing.
        Ok((deletion.time != WriteTime::NONE).then_some(deletion))
    }
}

/// Second at which nothing is deleted or expires any more in a format-7 segment, whose seconds are signed. Cassandra
/// 5 reads an overflown one as this last second but one of its own format.
const INVALID: LocalTime = LocalTime(0xffff_fffe);

fn local_time(format: Format, seconds: u32) -> LocalTime {
    match (format, seconds) {
        (Format::V7, 0x7fff_ffff) | (Format::V8 | Format::V9, u32::MAX) => LocalTime::NONE,
        (Format::V7, 0x8000_0000..) => INVALID,
        (_, seconds) => LocalTime(i64::from(seconds)),
    }
}

/// The low 32 bits: what Cassandra keeps of a delta it wrote as a sign-extended 64-bit number.
#[expect(clippy::cast_possible_truncation, reason = "the high bits are the sign's")]
fn low(delta: u64) -> u32 {
    delta as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_past_2038_are_valid_in_format_8_only() {
        assert_eq!(local_time(Format::V7, 0x7fff_fffe), LocalTime(0x7fff_fffe));
        assert_eq!(local_time(Format::V7, 0x7fff_ffff), LocalTime::NONE);
        assert_eq!(local_time(Format::V7, 0x8000_0000), INVALID);
        assert_eq!(local_time(Format::V8, 0x7fff_ffff), LocalTime(0x7fff_ffff));
        assert_eq!(local_time(Format::V8, 0xffff_fffd), LocalTime(0xffff_fffd));
        assert_eq!(local_time(Format::V8, 0xffff_ffff), LocalTime::NONE);
    }
}
