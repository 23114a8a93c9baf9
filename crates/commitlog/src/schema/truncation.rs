//! `TRUNCATE`, which leaves nothing in the table's own stream.

use cdc_model::{CellValue, Change, ChangeBody, ColumnState, SegmentId, SegmentPosition, TableId};
use uuid::Uuid;

/// A table was emptied on this node: every write to it that was logged up to `at` is gone, whatever its write time;
/// later ones are not.
///
/// Each replica truncates by itself and writes its own record (`SystemKeyspace.saveTruncationRecord`) after it flushed
/// and removed what there was, so writes may stand between `at` and the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Truncation {
    pub table: TableId,
    /// `None`: the node had nothing to remove.
    pub at: Option<SegmentPosition>,
    /// Of the node, milliseconds since 1970.
    pub wall_ms: i64,
}

impl Truncation {
    /// As `system.local` holds it in `truncated_at`.
    pub fn parse(table: TableId, record: &[u8]) -> Option<Self> {
        let (segment, rest) = record.split_first_chunk::<8>()?;
        let (offset, wall) = rest.split_first_chunk::<4>()?;
        let segment = u64::try_from(i64::from_be_bytes(*segment)).ok().map(SegmentId);
        let offset = u64::try_from(i32::from_be_bytes(*offset)).ok();
        let at = segment.zip(offset).map(|(segment, offset)| SegmentPosition { segment, offset });
        Some(Self { table, at, wall_ms: i64::from_be_bytes(wall.try_into().ok()?) })
    }
}

/// What an update of `system.local` says of truncated tables. The deletion of a record, as `DROP TABLE` makes one, is
/// none.
pub(super) fn truncations(change: &Change) -> impl Iterator<Item = Truncation> {
    let row = match &change.body {
        ChangeBody::Row { row, .. } => Some(row),
        _ => None,
    };
    let column = change.table.column_id(b"truncated_at");
    let cells = row.into_iter().flat_map(|row| &row.columns).filter(move |(id, _)| Some(*id) == column);
    cells
        .flat_map(|(_, state)| match state {
            ColumnState::Complex(complex) => complex.cells.as_slice(),
            ColumnState::Simple(_) => &[],
        })
        .filter_map(|(path, cell)| {
            let CellValue::Live(value) = &cell.value else { return None };
            Truncation::parse(TableId(Uuid::from_slice(path).ok()?), value)
        })
}
