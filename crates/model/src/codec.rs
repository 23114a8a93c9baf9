//! The persisted form of row states and partition tombstones: what a target keeps beside a row so that later and
//! older changes still merge exactly.
//!
//! Layout, version 1 (big-endian; `len` is u32): u8 version; then, for a row,
//! `flags u8 [liveness] [deletion] u16 columns × (name, u8 kind, simple cell | complex)`; for a partition,
//! `flags u8 [deletion] u32 ranges × (bound, bound, deletion)`. Columns are named, not numbered, because numbers
//! differ between processes; a column the table no longer knows is dropped on reading.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    Bound, Cell, CellValue, ColumnState, ComplexState, DeletionTime, Liveness, LocalTime, PartitionTombstones,
    RangeTombstone, RowState, TableSchema, WriteTime,
};

const VERSION: u8 = 1;
const HAS_LIVENESS: u8 = 1;
const HAS_DELETION: u8 = 2;
const SIMPLE: u8 = 0;
const COMPLEX: u8 = 1;
const TOMBSTONE: u8 = 0;
const LIVE: u8 = 1;
const COUNTER: u8 = 2;
/// Added to the kind of a cell that carries a TTL.
const EXPIRING: u8 = 0x10;

#[derive(thiserror::Error, Debug, PartialEq, Eq)]
pub enum StateError {
    #[error("state has version {0}, this release reads up to {VERSION}")]
    Version(u8),
    #[error("state is cut off or damaged")]
    Damaged,
}

impl From<bytes::TryGetError> for StateError {
    fn from(_: bytes::TryGetError) -> Self {
        Self::Damaged
    }
}

pub fn encode_row(table: &TableSchema, row: &RowState) -> Bytes {
    let mut out = BytesMut::with_capacity(64 + row.weight());
    out.put_u8(VERSION);
    out.put_u8(flag(HAS_LIVENESS, row.liveness.is_some()) | flag(HAS_DELETION, row.deletion.is_some()));
    if let Some(Liveness { time, ttl, expires }) = row.liveness {
        out.put_i64(time.0);
        out.put_i32(ttl);
        out.put_i64(expires.0);
    }
    if let Some(deletion) = row.deletion {
        put_deletion(&mut out, deletion);
    }
    out.put_u16(u16::try_from(row.columns.len()).expect("column ids are u16"));
    for (id, column) in &row.columns {
        put_bytes(&mut out, table.column(*id).name.as_bytes());
        match column {
            ColumnState::Simple(cell) => {
                out.put_u8(SIMPLE);
                put_cell(&mut out, cell);
            }
            ColumnState::Complex(complex) => {
                out.put_u8(COMPLEX);
                out.put_u8(flag(HAS_DELETION, complex.deletion.is_some()));
                if let Some(deletion) = complex.deletion {
                    put_deletion(&mut out, deletion);
                }
                put_length(&mut out, complex.cells.len());
                for (path, cell) in &complex.cells {
                    put_bytes(&mut out, path);
                    put_cell(&mut out, cell);
                }
            }
        }
    }
    out.freeze()
}

pub fn decode_row(table: &TableSchema, mut state: Bytes) -> Result<RowState, StateError> {
    let flags = version_and_flags(&mut state)?;
    let liveness = if flags & HAS_LIVENESS == 0 {
        None
    } else {
        let time = WriteTime(state.try_get_i64()?);
        Some(Liveness { time, ttl: state.try_get_i32()?, expires: LocalTime(state.try_get_i64()?) })
    };
    let deletion = optional_deletion(&mut state, flags)?;
    let mut columns = Vec::new();
    for _ in 0..state.try_get_u16()? {
        let name = get_bytes(&mut state)?;
        let column = match state.try_get_u8()? {
            SIMPLE => ColumnState::Simple(get_cell(&mut state)?),
            COMPLEX => {
                let flags = state.try_get_u8()?;
                let deletion = optional_deletion(&mut state, flags)?;
                let count = state.try_get_u32()?;
                let mut cells = Vec::new();
                for _ in 0..count {
                    cells.push((get_bytes(&mut state)?.into(), get_cell(&mut state)?));
                }
                ColumnState::Complex(ComplexState { deletion, cells })
            }
            _ => return Err(StateError::Damaged),
        };
        if let Some(id) = table.column_id(&name) {
            columns.push((id, column));
        }
    }
    columns.sort_by_key(|(id, _)| *id);
    finished(&state)?;
    Ok(RowState { liveness, deletion, columns })
}

pub fn encode_tombstones(tombstones: &PartitionTombstones) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    out.put_u8(flag(HAS_DELETION, tombstones.partition.is_some()));
    if let Some(deletion) = tombstones.partition {
        put_deletion(&mut out, deletion);
    }
    put_length(&mut out, tombstones.ranges.len());
    for range in &tombstones.ranges {
        for bound in [&range.start, &range.end] {
            out.put_u8(u8::from(bound.inclusive));
            put_length(&mut out, bound.prefix.len());
            for value in &bound.prefix {
                put_bytes(&mut out, value);
            }
        }
        put_deletion(&mut out, range.deletion);
    }
    out.freeze()
}

pub fn decode_tombstones(mut state: Bytes) -> Result<PartitionTombstones, StateError> {
    let flags = version_and_flags(&mut state)?;
    let partition = optional_deletion(&mut state, flags)?;
    let count = state.try_get_u32()?;
    let mut ranges = Vec::new();
    for _ in 0..count {
        let (start, end) = (get_bound(&mut state)?, get_bound(&mut state)?);
        ranges.push(RangeTombstone { start, end, deletion: get_deletion(&mut state)? });
    }
    finished(&state)?;
    Ok(PartitionTombstones { partition, ranges })
}

fn flag(bit: u8, set: bool) -> u8 {
    if set { bit } else { 0 }
}

fn put_length(out: &mut BytesMut, length: usize) {
    out.put_u32(u32::try_from(length).expect("a state is far below 4 GiB"));
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.put_slice(bytes);
}

fn put_deletion(out: &mut BytesMut, deletion: DeletionTime) {
    out.put_i64(deletion.time.0);
    out.put_i64(deletion.local.0);
}

fn put_cell(out: &mut BytesMut, cell: &Cell) {
    let kind = match cell.value {
        CellValue::Tombstone => TOMBSTONE,
        CellValue::Live(_) => LIVE,
        CellValue::Counter(_) => COUNTER,
    };
    let expiring = kind == LIVE && cell.local != LocalTime::NONE;
    out.put_u8(kind | flag(EXPIRING, expiring));
    out.put_i64(cell.time.0);
    if expiring {
        out.put_i32(cell.ttl);
    }
    if expiring || kind == TOMBSTONE {
        out.put_i64(cell.local.0);
    }
    if let CellValue::Live(value) | CellValue::Counter(value) = &cell.value {
        put_bytes(out, value);
    }
}

fn version_and_flags(state: &mut Bytes) -> Result<u8, StateError> {
    match state.try_get_u8()? {
        VERSION => Ok(state.try_get_u8()?),
        other => Err(StateError::Version(other)),
    }
}

fn finished(state: &Bytes) -> Result<(), StateError> {
    if state.is_empty() { Ok(()) } else { Err(StateError::Damaged) }
}

fn get_bytes(state: &mut Bytes) -> Result<Bytes, StateError> {
    let length = usize::try_from(state.try_get_u32()?).map_err(|_| StateError::Damaged)?;
    if length > state.len() { Err(StateError::Damaged) } else { Ok(state.split_to(length)) }
}

fn get_deletion(state: &mut Bytes) -> Result<DeletionTime, StateError> {
    Ok(DeletionTime { time: WriteTime(state.try_get_i64()?), local: LocalTime(state.try_get_i64()?) })
}

fn optional_deletion(state: &mut Bytes, flags: u8) -> Result<Option<DeletionTime>, StateError> {
    (flags & HAS_DELETION != 0).then(|| get_deletion(state)).transpose()
}

fn get_bound(state: &mut Bytes) -> Result<Bound, StateError> {
    let inclusive = state.try_get_u8()? != 0;
    let mut prefix = Vec::new();
    for _ in 0..state.try_get_u32()? {
        prefix.push(get_bytes(state)?.into());
    }
    Ok(Bound { prefix, inclusive })
}

fn get_cell(state: &mut Bytes) -> Result<Cell, StateError> {
    let kind = state.try_get_u8()?;
    let time = WriteTime(state.try_get_i64()?);
    let expiring = kind & EXPIRING != 0;
    let ttl = if expiring { state.try_get_i32()? } else { 0 };
    let kind = kind & !EXPIRING;
    let local = if expiring || kind == TOMBSTONE { LocalTime(state.try_get_i64()?) } else { LocalTime::NONE };
    let value = match kind {
        TOMBSTONE => CellValue::Tombstone,
        LIVE => CellValue::Live(get_bytes(state)?.into()),
        COUNTER => CellValue::Counter(get_bytes(state)?.into()),
        _ => return Err(StateError::Damaged),
    };
    Ok(Cell { time, ttl, local, value })
}
