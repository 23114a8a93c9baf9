//! Changes folded to one unit per row: the merge is done in memory as far as it goes.

use std::{collections::HashMap, sync::Arc};

use cdc_model::{
    Change, ChangeBody, Clustering, PartitionTombstones, Provenance, RowState, TableId, TableSchema, Token, ValueBytes,
    token,
};
use foldhash::quality::RandomState;

use crate::{
    dead_letters::ErrorType,
    layout::{Layout, Translation},
};

/// Number of groups the partitions of a table are locked in. Small enough that the locks of all connections on many
/// tables fit PostgreSQL's lock table (6400 entries by default), large enough that deletions rarely meet.
pub(crate) const BUCKETS: i32 = 64;

/// Everything a batch says of one row, or of one partition's deletions.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) layout: Arc<Layout>,
    pub(crate) partition: ValueBytes,
    pub(crate) token: Token,
    pub(crate) body: Body,
    /// Of the newest change in it.
    pub(crate) provenance: Provenance,
    /// Set once it is known that the target cannot take it.
    pub(crate) refused: Option<Refusal>,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Row {
        /// `None` for the static row.
        clustering: Option<Clustering>,
        change: RowState,
        /// Write the row anew even if nothing is new in it, because something in it expired.
        refresh: bool,
    },
    Tombstones(PartitionTombstones),
}

#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) error_type: ErrorType,
    pub(crate) code: String,
    pub(crate) column: Option<String>,
    /// Without values.
    pub(crate) message: String,
}

impl Unit {
    /// Goes on with a newer layout of its table.
    pub(crate) fn adopt(&mut self, layout: &Arc<Layout>) {
        self.layout = Arc::clone(layout);
        if let Body::Row { change, .. } = &mut self.body {
            layout.forget(change);
        }
    }

    pub(crate) fn bucket(&self) -> i32 {
        bucket(self.token)
    }

    pub(crate) fn weight(&self) -> usize {
        let body = match &self.body {
            Body::Row { clustering, change, .. } => {
                clustering.as_ref().map_or(0, |clustering| clustering.as_bytes().len()) + change.weight()
            }
            Body::Tombstones(tombstones) => 64 * (1 + tombstones.ranges.len()),
        };
        size_of::<Self>() + self.partition.len() + body
    }
}

pub(crate) fn bucket(token: Token) -> i32 {
    i32::try_from(token.0.rem_euclid(i64::from(BUCKETS))).expect("below BUCKETS")
}

#[derive(PartialEq, Eq, Hash)]
enum Slot {
    Row(Clustering),
    Static,
    Tombstones,
}

/// Folds changes, whose tables' layouts are all in the map; those that a truncation has removed are left out. Masks them,
/// unless that was done before they were parked.
pub(crate) fn fold(changes: Vec<Change>, layouts: &HashMap<TableId, Arc<Layout>>, conceal: bool) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::with_capacity(changes.len());
    let mut places: HashMap<(TableId, ValueBytes, Slot), usize, RandomState> =
        HashMap::with_capacity_and_hasher(changes.len(), RandomState::default());
    // Of the last change's table: most batches have long runs of one.
    let mut last: Option<(Arc<TableSchema>, Option<Translation>)> = None;
    for Change { table, partition_key, body, provenance } in changes {
        let layout = &layouts[&table.id];
        if layout.truncated.removes(&provenance) {
            continue;
        }
        if !last.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, &table)) {
            last = Some((Arc::clone(&table), layout.translation(&table)));
        }
        let translation = last.as_ref().and_then(|(_, translation)| translation.as_ref());
        let row = |clustering, mut change: RowState| {
            if let Some(ids) = translation {
                let columns = change.columns.into_iter();
                let columns = columns.filter_map(|(id, state)| Some((ids[usize::from(id.0)]?, state)));
                change.columns = columns.collect();
                change.columns.sort_by_key(|(id, _)| *id);
            }
            layout.forget(&mut change);
            layout.canonical_elements(&mut change);
            if conceal {
                layout.conceal(&mut change);
            }
            Body::Row { clustering, change, refresh: false }
        };
        let (slot, body) = match body {
            ChangeBody::Row { clustering, row: change } => {
                let clustering = layout.canonical(clustering);
                (Slot::Row(clustering.clone()), row(Some(clustering), change))
            }
            ChangeBody::Static(change) => (Slot::Static, row(None, change)),
            ChangeBody::DeletePartition(deletion) => {
                let tombstones = PartitionTombstones { partition: Some(deletion), ranges: Vec::new() };
                (Slot::Tombstones, Body::Tombstones(tombstones))
            }
            ChangeBody::DeleteRange(range) => {
                let tombstones = PartitionTombstones { partition: None, ranges: vec![range] };
                (Slot::Tombstones, Body::Tombstones(tombstones))
            }
        };
        match places.entry((table.id, partition_key.clone(), slot)) {
            std::collections::hash_map::Entry::Occupied(place) => {
                let unit = &mut units[*place.get()];
                unit.body =
                    join(std::mem::replace(&mut unit.body, Body::Tombstones(PartitionTombstones::default())), body);
                unit.provenance = provenance;
            }
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(units.len());
                let token = token(&partition_key);
                let layout = Arc::clone(layout);
                units.push(Unit { layout, partition: partition_key, token, body, provenance, refused: None });
            }
        }
    }
    units
}

fn join(a: Body, b: Body) -> Body {
    match (a, b) {
        (Body::Row { clustering, change, refresh }, Body::Row { change: other, .. }) => {
            Body::Row { clustering, change: change.merge(other), refresh }
        }
        (Body::Tombstones(a), Body::Tombstones(b)) => Body::Tombstones(a.merge(b)),
        (a, _) => unreachable!("a slot holds one kind of body, not {a:?} and another"),
    }
}
