//! One change as the commit log holds it, ready to be merged anywhere.

use std::sync::Arc;

use crate::{
    Clustering, ColumnKind, DeletionTime, NodeId, RangeTombstone, RowState, SegmentPosition, TableSchema, ValueBytes,
};

/// Which row of a table.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RowKey {
    /// As in [`Change::partition_key`].
    pub partition: ValueBytes,
    /// `None` for the static row.
    pub clustering: Option<Clustering>,
}

impl RowKey {
    pub fn kind(&self) -> ColumnKind {
        if self.clustering.is_some() { ColumnKind::Regular } else { ColumnKind::Static }
    }
}

/// Where a change was captured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Provenance {
    pub node: NodeId,
    /// End of the entry the change stood in; several changes share it.
    pub position: SegmentPosition,
}

/// A change of one row, one static row, or a deletion of a range or partition.
///
/// Idempotent and commutative: applying it twice, or in any order with others, leads to the same state.
#[derive(Clone, Debug)]
pub struct Change {
    pub table: Arc<TableSchema>,
    /// As in the log: the one column's value, or for several per component u16 length, bytes, one byte 0.
    pub partition_key: ValueBytes,
    pub body: ChangeBody,
    pub provenance: Provenance,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangeBody {
    Row { clustering: Clustering, row: RowState },
    Static(RowState),
    DeletePartition(DeletionTime),
    DeleteRange(RangeTombstone),
}

impl Change {
    /// Bytes held in memory, roughly: for queues bounded by bytes.
    pub fn weight(&self) -> usize {
        let body = match &self.body {
            ChangeBody::Row { clustering, row } => clustering.as_bytes().len() + row.weight(),
            ChangeBody::Static(row) => row.weight(),
            ChangeBody::DeletePartition(_) => 0,
            ChangeBody::DeleteRange(range) => range.weight(),
        };
        size_of::<Self>() + self.partition_key.len() + body
    }
}
