//! What a chunk carries, and the way from a change back to its record.

use std::sync::Arc;

use cdc_kafka::Record;
use cdc_model::{Change, TableTruncation};
use cdc_postgres::{Original, Origins, Undecoded};

use crate::poison::original;

/// Changes of one stream, in order.
#[derive(Default)]
pub(crate) struct Lot {
    pub(crate) changes: Vec<Change>,
    /// The record of each change; none in direct mode. A record's bytes live as long as its change anyway, which is
    /// made of slices of them.
    pub(crate) records: Vec<Record>,
    /// Not in order with the changes, and need not be.
    pub(crate) truncations: Vec<TableTruncation>,
    /// Records that are no changes.
    pub(crate) undecoded: Vec<Undecoded>,
}

impl Lot {
    pub(crate) fn len(&self) -> usize {
        self.changes.len() + self.truncations.len() + self.undecoded.len()
    }
}

/// All lots of a batch.
pub(crate) struct Lots(pub(crate) Vec<Arc<Lot>>);

impl Origins for Lots {
    fn find(&self, is: &dyn Fn(&Change) -> bool) -> Option<Original> {
        let pairs = |lot: &'_ Arc<Lot>| {
            let lot = Arc::clone(lot);
            (0..lot.records.len()).rev().find(|i| is(&lot.changes[*i])).map(|i| original(&lot.records[i]))
        };
        self.0.iter().rev().find_map(pairs)
    }
}
