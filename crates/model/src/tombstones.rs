//! Deletions that outlive the rows they removed: of partitions and of clustering ranges.

use std::cmp::Ordering;

use crate::{Clustering, DeletionTime, LocalTime, TableSchema, ValueBytes, cell::newest, compare_values};

/// One end of a clustering range, in storage order (a DESC column is already turned round).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bound {
    /// Values of the first clustering columns, fewer than all or none (then the range is open on this side).
    pub prefix: Vec<ValueBytes>,
    /// Whether rows that begin with the prefix belong to the range.
    pub inclusive: bool,
}

impl std::fmt::Debug for Bound {
    /// Leaves the values out, because keys must not reach logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bound({} values, {})", self.prefix.len(), if self.inclusive { "inclusive" } else { "exclusive" })
    }
}

impl Bound {
    /// No bound on this side.
    pub const OPEN: Self = Self { prefix: Vec::new(), inclusive: true };

    /// Where a row lies relative to the prefix.
    fn compare(&self, table: &TableSchema, clustering: &Clustering) -> Ordering {
        self.prefix
            .iter()
            .zip(clustering.values())
            .zip(&table.clustering)
            .map(|((bound, value), column)| {
                let order = match value {
                    None => Ordering::Less,
                    Some(value) => compare_values(&column.ty, value, bound),
                };
                if column.reversed { order.reverse() } else { order }
            })
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RangeTombstone {
    pub start: Bound,
    pub end: Bound,
    pub deletion: DeletionTime,
}

impl RangeTombstone {
    pub fn covers(&self, table: &TableSchema, clustering: &Clustering) -> bool {
        let after_start = match self.start.compare(table, clustering) {
            Ordering::Less => false,
            Ordering::Equal => self.start.inclusive,
            Ordering::Greater => true,
        };
        after_start
            && match self.end.compare(table, clustering) {
                Ordering::Less => true,
                Ordering::Equal => self.end.inclusive,
                Ordering::Greater => false,
            }
    }

    pub(crate) fn weight(&self) -> usize {
        self.start.prefix.iter().chain(&self.end.prefix).map(|value| size_of::<ValueBytes>() + value.len()).sum()
    }
}

/// Every deletion of one partition that is not a row's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PartitionTombstones {
    pub partition: Option<DeletionTime>,
    /// Sorted, distinct, each newer than `partition`.
    pub ranges: Vec<RangeTombstone>,
}

impl PartitionTombstones {
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.partition = newest(self.partition, other.partition);
        self.ranges.extend(other.ranges);
        if let Some(partition) = self.partition {
            self.ranges.retain(|range| range.deletion > partition);
        }
        self.ranges.sort();
        // Of the same range only the newest deletion counts; it sorts last.
        self.ranges.dedup_by(|later, earlier| {
            let same = later.start == earlier.start && later.end == earlier.end;
            if same {
                earlier.deletion = later.deletion;
            }
            same
        });
        self
    }

    /// The newest deletion that covers a row; a static row is covered by the partition's alone.
    pub fn covering(&self, table: &TableSchema, clustering: Option<&Clustering>) -> Option<DeletionTime> {
        let ranges = self.ranges.iter().filter(|range| clustering.is_some_and(|row| range.covers(table, row)));
        newest(self.partition, ranges.map(|range| range.deletion).max())
    }

    pub fn is_empty(&self) -> bool {
        self.partition.is_none() && self.ranges.is_empty()
    }

    /// Forgets the deletions of before this second.
    #[must_use]
    pub fn since(mut self, second: LocalTime) -> Self {
        self.partition = self.partition.filter(|deletion| deletion.local >= second);
        self.ranges.retain(|range| range.deletion.local >= second);
        self
    }
}
