//! A flood of dead letters is not many bad rows but one bad table: it halts instead.
//!
//! Letters are counted per table before they are committed. Once a table has had as many within the window as the limit
//! allows, it trips, and nothing of it is set aside any more: batches that would are refused whole, so their positions
//! stay. The caller's retries probe whether the cause is gone; the first batch of the table that needs no letter
//! closes it again. A limit is each process's own, and a restart begins anew.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use cdc_model::TableSchema;

use crate::TargetError;

/// How many dead letters of one table are single bad rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FloodLimit {
    pub letters: usize,
    pub window: Duration,
}

/// By table, or topic where the table is not known.
#[derive(Default)]
pub(crate) struct Floods(Mutex<HashMap<String, Flood>>);

struct Flood {
    since: Instant,
    letters: usize,
    tripped: bool,
}

impl Floods {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<String, Flood>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts letters about to be written, all or none.
    ///
    /// # Errors
    /// [`TargetError::Flood`] if they are too many; then none may be written.
    pub(crate) fn admit(&self, limit: FloodLimit, letters: &BTreeMap<String, usize>) -> Result<(), TargetError> {
        let now = Instant::now();
        self.with(|floods| {
            for (table, more) in letters {
                let fresh = || Flood { since: now, letters: 0, tripped: false };
                let flood = floods.entry(table.clone()).or_insert_with(fresh);
                if !flood.tripped && now - flood.since > limit.window {
                    *flood = fresh();
                }
                if flood.tripped || flood.letters + more > limit.letters {
                    flood.tripped = true;
                    return Err(TargetError::Flood { table: table.clone(), limit });
                }
            }
            for (table, more) in letters {
                floods.entry(table.clone()).and_modify(|flood| flood.letters += more);
            }
            Ok(())
        })
    }

    /// Admitted, but not written: they will be counted again.
    pub(crate) fn give_back(&self, letters: &BTreeMap<String, usize>) {
        self.with(|floods| {
            for (table, less) in letters {
                floods.entry(table.clone()).and_modify(|flood| flood.letters = flood.letters.saturating_sub(*less));
            }
        });
    }

    /// Those of the tables that have tripped.
    pub(crate) fn halted<'t>(&self, tables: impl Iterator<Item = &'t TableSchema>) -> BTreeSet<String> {
        self.with(|floods| {
            if !floods.values().any(|flood| flood.tripped) {
                return BTreeSet::new();
            }
            tables.map(TableSchema::full_name).filter(|name| floods.get(name).is_some_and(|f| f.tripped)).collect()
        })
    }

    /// A batch with changes of these tables needed no letter.
    pub(crate) fn passed(&self, tables: &BTreeSet<String>) {
        self.with(|floods| floods.retain(|table, _| !tables.contains(table)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tripped_table_admits_nothing_until_a_batch_passes_and_others_are_not_touched() {
        let (floods, limit) = (Floods::default(), FloodLimit { letters: 3, window: Duration::from_secs(3600) });
        let one = |table: &str, letters: usize| BTreeMap::from([(table.to_owned(), letters)]);
        for _ in 0..10 {
            assert!(floods.admit(limit, &one("shop.orders", 2)).is_ok());
            floods.give_back(&one("shop.orders", 2));
        }
        assert!(floods.admit(limit, &one("shop.orders", 3)).is_ok());
        assert!(floods.admit(limit, &one("shop.orders", 1)).is_err());
        assert!(floods.admit(FloodLimit { window: Duration::ZERO, ..limit }, &one("shop.orders", 1)).is_err());
        assert!(floods.admit(limit, &one("shop.users", 3)).is_ok());
        let orders = TableSchema {
            id: cdc_model::TableId(uuid::Uuid::nil()),
            keyspace: "shop".to_owned(),
            name: "orders".to_owned(),
            partition_key: Vec::new(),
            clustering: Vec::new(),
            columns: Vec::new(),
            cdc: true,
            gc_grace_seconds: 0,
        };
        let halted = floods.halted([&orders].into_iter());
        assert_eq!(halted, BTreeSet::from(["shop.orders".to_owned()]));
        floods.passed(&halted);
        assert!(floods.admit(limit, &one("shop.orders", 3)).is_ok());
    }
}
