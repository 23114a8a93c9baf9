//! The decoder's half of Avro's binary encoding. Input is foreign: every length is held against the bytes that are
//! left before anything is allocated, and values are slices of the record.

use bytes::Bytes;
use cdc_model::{
    Bound, Cell, CellValue, ChangeBody, Clustering, ColumnId, ColumnState, ComplexState, DeletionTime, Liveness,
    LocalTime, NodeId, Provenance, RangeTombstone, RowState, SegmentId, SegmentPosition, TableSchema, TruncatedAt,
    ValueBytes, WriteTime,
};
use smallvec::SmallVec;
use uuid::Uuid;

use crate::WireError;

pub(crate) struct Reader {
    record: Bytes,
    at: usize,
}

type Result<T> = std::result::Result<T, WireError>;

impl Reader {
    pub(crate) fn new(record: Bytes, at: usize) -> Self {
        Self { record, at }
    }

    fn damaged(&self, reason: &'static str) -> WireError {
        WireError::Malformed { offset: self.at, reason }
    }

    fn remaining(&self) -> usize {
        self.record.len() - self.at
    }

    pub(crate) fn end(&self) -> Result<()> {
        if self.remaining() == 0 { Ok(()) } else { Err(self.damaged("bytes follow the record")) }
    }

    fn byte(&mut self) -> Result<u8> {
        let byte = *self.record.get(self.at).ok_or_else(|| self.damaged("cut off"))?;
        self.at += 1;
        Ok(byte)
    }

    fn long(&mut self) -> Result<i64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err(self.damaged("a number is longer than ten bytes"))
    }

    fn int(&mut self) -> Result<i32> {
        i32::try_from(self.long()?).map_err(|_| self.damaged("a number exceeds 32 bits"))
    }

    fn length(&mut self) -> Result<usize> {
        match usize::try_from(self.long()?) {
            Ok(length) if length <= self.remaining() => Ok(length),
            _ => Err(self.damaged("a length exceeds the record")),
        }
    }

    /// Start and end of a length-prefixed value.
    fn span(&mut self) -> Result<std::ops::Range<usize>> {
        let length = self.length()?;
        let span = self.at..self.at + length;
        self.at = span.end;
        Ok(span)
    }

    fn value(&mut self) -> Result<ValueBytes> {
        let span = self.span()?;
        Ok(ValueBytes::of(&self.record, span))
    }

    pub(crate) fn uuid(&mut self) -> Result<Uuid> {
        let word = self.record.get(self.at..self.at + 16).ok_or_else(|| self.damaged("cut off"))?;
        let uuid = Uuid::from_slice(word).expect("sixteen bytes");
        self.at += 16;
        Ok(uuid)
    }

    fn boolean(&mut self) -> Result<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.damaged("neither true nor false")),
        }
    }

    /// `null` or something, as branch 0 or 1.
    fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        match self.long()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(self.damaged("no such branch of a union")),
        }
    }

    /// Calls `item` for each element, and `block` with the number of elements of each block.
    fn array<S>(
        &mut self,
        state: &mut S,
        block: impl Fn(&mut S, usize),
        mut item: impl FnMut(&mut Self, &mut S) -> Result<()>,
    ) -> Result<()> {
        loop {
            let count = match self.long()? {
                0 => return Ok(()),
                // A negative count is followed by the block's length, which lets readers skip it.
                count @ i64::MIN..0 => {
                    self.length()?;
                    count.unsigned_abs()
                }
                count => count.unsigned_abs(),
            };
            // Every element has at least one byte.
            let count = usize::try_from(count).ok().filter(|count| *count <= self.remaining());
            let count = count.ok_or_else(|| self.damaged("an array is longer than the record"))?;
            block(state, count);
            for _ in 0..count {
                item(self, state)?;
            }
        }
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        // Capped, because an element in memory is far larger than the one byte that claims it.
        let reserve = |items: &mut Vec<T>, count: usize| items.reserve_exact(count.min(64));
        let mut items = Vec::new();
        self.array(&mut items, reserve, |reader, items| {
            items.push(item(reader)?);
            Ok(())
        })?;
        Ok(items)
    }

    pub(crate) fn partition_key(&mut self) -> Result<ValueBytes> {
        self.value()
    }

    pub(crate) fn body(&mut self, table: &TableSchema) -> Result<ChangeBody> {
        match self.long()? {
            0 => Ok(ChangeBody::Row { clustering: self.clustering()?, row: self.row(table)? }),
            1 => Ok(ChangeBody::Static(self.row(table)?)),
            2 => Ok(ChangeBody::DeletePartition(self.deletion()?)),
            3 => Ok(ChangeBody::DeleteRange(RangeTombstone {
                start: self.bound()?,
                end: self.bound()?,
                deletion: self.deletion()?,
            })),
            _ => Err(self.damaged("no such branch of a union")),
        }
    }

    pub(crate) fn provenance(&mut self) -> Result<Provenance> {
        let node = NodeId(self.uuid()?);
        let segment = SegmentId(self.long()?.cast_unsigned());
        Ok(Provenance { node, position: SegmentPosition { segment, offset: self.long()?.cast_unsigned() } })
    }

    pub(crate) fn truncated_at(&mut self) -> Result<TruncatedAt> {
        let positions = self.list(|reader| {
            let Provenance { node, position } = reader.provenance()?;
            Ok((node, position))
        })?;
        Ok(positions.into_iter().collect())
    }

    fn clustering(&mut self) -> Result<Clustering> {
        let mut spans: SmallVec<[Option<std::ops::Range<usize>>; 4]> = SmallVec::new();
        self.array(
            &mut spans,
            |_, _| (),
            |reader, spans| {
                spans.push(reader.optional(Self::span)?);
                Ok(())
            },
        )?;
        if spans.iter().flatten().any(|span| i32::try_from(span.len()).is_err()) {
            return Err(self.damaged("a clustering value is too long"));
        }
        Ok(Clustering::new(spans.into_iter().map(|span| span.map(|span| &self.record[span]))))
    }

    fn local_time(&mut self) -> Result<LocalTime> {
        Ok(self.optional(Self::long)?.map_or(LocalTime::NONE, LocalTime))
    }

    fn deletion(&mut self) -> Result<DeletionTime> {
        Ok(DeletionTime { time: WriteTime(self.long()?), local: LocalTime(self.long()?) })
    }

    fn bound(&mut self) -> Result<Bound> {
        Ok(Bound { prefix: self.list(Self::value)?, inclusive: self.boolean()? })
    }

    fn row(&mut self, table: &TableSchema) -> Result<RowState> {
        let liveness = self.optional(|reader| {
            Ok(Liveness { time: WriteTime(reader.long()?), ttl: reader.int()?, expires: reader.local_time()? })
        })?;
        let deletion = self.optional(Self::deletion)?;
        let mut expected = 0;
        let mut columns = self.list(|reader| {
            let id = reader.column(table, expected)?;
            expected = usize::from(id.0) + 1;
            Ok((id, reader.column_state()?))
        })?;
        // The writer's numbers may differ from ours; only names travel.
        self.sort(&mut columns)?;
        Ok(RowState { liveness, deletion, columns })
    }

    /// The column of this name; writers name columns in the order of the schema, so most often the expected one.
    fn column(&mut self, table: &TableSchema, expected: usize) -> Result<ColumnId> {
        let span = self.span()?;
        let name = &self.record[span];
        if let Some(index) =
            table.columns.get(expected).filter(|c| c.name.as_bytes() == name).and_then(|_| u16::try_from(expected).ok())
        {
            return Ok(ColumnId(index));
        }
        table.column_id(name).ok_or_else(|| WireError::UnknownColumn {
            table: table.full_name(),
            column: String::from_utf8_lossy(name).into_owned(),
        })
    }

    fn column_state(&mut self) -> Result<ColumnState> {
        match self.long()? {
            0 => Ok(ColumnState::Simple(self.cell()?)),
            1 => {
                let deletion = self.optional(Self::deletion)?;
                let mut cells = self.list(|reader| Ok((reader.value()?, reader.cell()?)))?;
                self.sort(&mut cells)?;
                Ok(ColumnState::Complex(ComplexState { deletion, cells }))
            }
            _ => Err(self.damaged("no such branch of a union")),
        }
    }

    fn sort<K: Ord, V>(&self, items: &mut [(K, V)]) -> Result<()> {
        if !items.is_sorted_by(|(a, _), (b, _)| a < b) {
            items.sort_by(|(a, _), (b, _)| a.cmp(b));
            if !items.is_sorted_by(|(a, _), (b, _)| a < b) {
                return Err(self.damaged("a column or element stands twice"));
            }
        }
        Ok(())
    }

    fn cell(&mut self) -> Result<Cell> {
        let time = WriteTime(self.long()?);
        let ttl = self.int()?;
        let local = self.local_time()?;
        let value = match self.long()? {
            0 => CellValue::Tombstone,
            1 => CellValue::Live(self.value()?),
            2 => CellValue::Counter(self.value()?),
            _ => return Err(self.damaged("no such branch of a union")),
        };
        Ok(Cell { time, ttl, local, value })
    }
}
