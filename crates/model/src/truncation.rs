//! `TRUNCATE`, which is decided by places in logs and not by write times.

use std::{collections::BTreeMap, sync::Arc};

use crate::{NodeId, Provenance, SegmentPosition, TableSchema};

/// Up to where in each node's log the writes to a table are gone, whatever their write times; later ones are not.
///
/// What is known of several truncations, or of one from several nodes, is joined by the later place of each node: in any
/// order and any number of times.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TruncatedAt(BTreeMap<NodeId, SegmentPosition>);

impl TruncatedAt {
    pub fn merge(&mut self, other: &Self) {
        for (node, position) in other.iter() {
            let known = self.0.entry(node).or_insert(position);
            *known = position.max(*known);
        }
    }

    /// Whether the other adds nothing to it.
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(node, position)| self.0.get(&node).is_some_and(|known| *known >= position))
    }

    /// Whether what was captured there is gone.
    pub fn removes(&self, at: &Provenance) -> bool {
        self.0.get(&at.node).is_some_and(|position| at.position <= *position)
    }

    pub fn iter(&self) -> impl Iterator<Item = (NodeId, SegmentPosition)> {
        self.0.iter().map(|(node, position)| (*node, *position))
    }
}

impl FromIterator<(NodeId, SegmentPosition)> for TruncatedAt {
    fn from_iter<I: IntoIterator<Item = (NodeId, SegmentPosition)>>(positions: I) -> Self {
        Self(positions.into_iter().filter(|(_, position)| *position > SegmentPosition::START).collect())
    }
}

/// A table was emptied on every node.
#[derive(Clone, Debug)]
pub struct TableTruncation {
    pub table: Arc<TableSchema>,
    pub at: TruncatedAt,
}
