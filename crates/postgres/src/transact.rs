//! One transaction: read what is known, merge, write what is new.
//!
//! # Why concurrent writers lose nothing
//!
//! Several processes may write the same rows at once (in direct mode each replica's agent does). A row is in its
//! target table if it is live, else in `_cdc.remains` if anything is known of it, never in both; deletions of
//! partitions and ranges are in `_cdc.tombstones`.
//!
//! Reading takes no row locks, because a lock is a write and stale redelivery must write nothing. Instead:
//!
//! 1. The partitions of a table fall into 64 buckets, each an advisory lock held to the end of the transaction. Shared,
//!    it allows to write rows. Exclusive, it also allows to write `_cdc.tombstones` and to *insert* into `_cdc.remains`.
//! 2. Updates and deletes name the row version that was read (`ctid` and `xmin`); inserts rely on the primary key. Where
//!    another version is found the transaction fails (CD001 or 23505) and is done again from the reading, then with
//!    all its buckets exclusive, so that the second attempt meets no one.
//!
//! So, under a shared lock: of two that change the same version, one fails. Of two that insert the same row, one fails.
//! A row that was found nowhere stays out of `_cdc.remains` and uncovered by new tombstones until the commit, because
//! both need the lock exclusively. A row that was found and not written may change afterwards, but only grows: what was
//! stale stays stale. Locks are taken in order, exclusive buckets only where a deletion is at hand (or something
//! expires); a transaction that finds out later that it needs one starts over.
//!
//! All of it relies on READ COMMITTED: the locks come first, and every later statement sees what was committed before
//! they were granted.
//!
//! The shards of one process own disjoint buckets and never wait for each other.
//!
//! # New rows
//!
//! Many new rows of a table are written by `COPY`, which is an insert in all that matters here: within the transaction,
//! under its locks, with every index and constraint checked, so that one of two that insert the same row fails. What it
//! does not do is cast, and know row-level security; so the transaction first asks whether the columns have the very
//! types that are sent (`Sql::may_copy`), by a statement that holds the table fast until the
//! commit, and inserts if not. A second attempt inserts in any case.
//!
//! While a table only grows (`Growth` in `layout/relation.rs`), just a sample of the keys is looked up in it, and
//! all of them in `_cdc.remains` and `_cdc.tombstones`. If anything at all is found, the rest is read as well. If not,
//! the rows are *guessed* to be new, which is no risk but for time: a row that is live after all is in the table, so
//! inserting it again fails (23505), and the second attempt reads everything. For that it has to be inserted; hence
//! nothing is guessed of a batch that deletes, and a guessed row that would not be inserted (it does not show, or it
//! cannot be held) starts the transaction over. Rows that are known, as all of a redelivery are, show in the sample, so
//! that what is stale still writes nothing.
//!
//! # Rows that supersede what is stored
//!
//! A row with a value of each column and one write time for all of it leaves nothing of a uniform row (one without a
//! state: live, all of one write time) that is older, whatever that holds. While most rows of a table's large batches
//! are such (`Relation::superseding`), they are not read: one statement updates those that are uniform and older, and says
//! which it were; the others are read and merged as ever. It updates none if any tombstone of the table is stored. What
//! holds for updates holds for it: a row that another writer has changed meanwhile has another `ctid` by then and is
//! left out; and a row that is live is not in `_cdc.remains`.
//!
//! # Round trips
//!
//! Two for most batches: `begin`, locks, fence and all reads go out together; so do all writes, the positions and
//! `commit`. Reading whole partitions, which only deletions new to the target need, adds one; so does a sample in which
//! something is found, and a row that superseded nothing; and a copy, which has to be granted before its rows are sent, and waits for what goes before it.

mod look;
mod read;
mod supersede;
mod write;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use cdc_model::{
    Clustering, ColumnKind, DeletionTime, PartitionTombstones, RowState, StateError, TableId, Token, ValueBytes,
    encode_tombstones,
};
use foldhash::quality::RandomState;
use tokio_postgres::types::Type;

pub(crate) use self::{
    look::{Stored, look},
    read::LOCK,
};
use self::{
    read::{read, read_partitions},
    write::Writes,
};
use crate::{
    Applied, StreamName, TargetError,
    array::Array,
    barrier::record,
    batch::{Body, Refusal, Unit},
    dead_letters::{ErrorType, Floods, park_change},
    error::{Fault, FaultKind},
    layout::Layout,
    pool::Pool,
    session::{Call, Frame, Session},
    stream::MOVE_POSITIONS,
    target::{Context, Purpose},
    value::Unrepresentable,
};

/// Bytes written at once. PostgreSQL ends the connection on a message of 1 GiB, and no row may be as large: such a batch
/// is cut, a row of its own parked.
const STATEMENTS_MAX: usize = 800 << 20;

/// Clustering of a static row in `_cdc.remains`: no serialised clustering is one byte long.
pub(crate) const STATIC_ROW: &[u8] = &[0xff];

const WRITE_TOMBSTONES: &str = "-- cdc: write tombstones\ninsert into _cdc.tombstones (table_id, partition_key, state) \
    select $1::uuid, * from unnest($2::bytea[], $3::bytea[]) \
    on conflict (table_id, partition_key) do update set state = excluded.state";

/// Why a transaction did not commit.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Do it again, with all buckets exclusive.
    Again,
    /// One of the units, at least, can never be written.
    Data(Fault),
    Fenced(StreamName),
    /// A unit was refused where nothing may be set aside.
    Refused(Refusal),
    /// A table is laid out otherwise by now.
    Stale,
    /// A relation or column is not what it was, perhaps because of that.
    Schema(Fault),
    Other(TargetError),
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        Self::Other(error)
    }
}

/// What to do in one transaction.
pub(crate) struct Work<'w> {
    pub(crate) units: &'w [Unit],
    pub(crate) context: &'w Context,
    /// Whether the positions move too, provided that nothing is set aside.
    pub(crate) positions: bool,
    pub(crate) floods: &'w Floods,
    pub(crate) exclusive: bool,
    /// Whether it is to be written, not only looked at.
    pub(crate) writes: bool,
    /// By unit. If there are such, a unit is no change but what takes the place of all that is known of its row, provided
    /// that this is all.
    pub(crate) in_place_of: Option<&'w [RowState]>,
}

/// A version of a stored row.
struct Version {
    ctid: ValueBytes,
    xmin: ValueBytes,
}

/// A row that a unit, or the deletion of its partition, may change.
struct Touched<'w> {
    partition: ValueBytes,
    /// Of the partition, in [`TableWork::tombstones`].
    tombstones: usize,
    token: Token,
    /// `None` for the static row.
    clustering: Option<Clustering>,
    key: Vec<ValueBytes>,
    unit: Option<usize>,
    change: Option<&'w RowState>,
    refresh: bool,
    before: RowState,
    live: Option<Version>,
    remains: Option<Version>,
    /// Taken for new without a look.
    guessed: bool,
    /// Written already, in place of an older one.
    superseded: bool,
    collides: bool,
}

/// The units of one table.
struct TableWork<'w> {
    layout: &'w Layout,
    touched: Vec<Touched<'w>>,
    /// Per partition: what the batch deletes, then also what is stored.
    tombstones: Vec<Tombstones<'w>>,
    /// Relations that may be copied to.
    may_copy: Vec<ColumnKind>,
    /// What was read only a sample of.
    sampled: Vec<(ColumnKind, Range<usize>)>,
    /// What superseded nothing, and is to be read therefore.
    left: Vec<usize>,
}

struct Tombstones<'w> {
    partition: &'w ValueBytes,
    token: Token,
    unit: Option<usize>,
    change: Option<&'w PartitionTombstones>,
    merged: PartitionTombstones,
    changed: bool,
}

pub(crate) async fn transact(pool: &Pool, work: &Work<'_>) -> Result<Applied, Failure> {
    let mut refusals: Vec<(usize, Refusal)> =
        (0..).zip(work.units).filter_map(|(i, unit)| Some((i, unit.refused.clone()?))).collect();
    let mut tables = arrange(work, &mut refusals);
    let locks = locks(work, &tables);
    let mut session = Session::acquire(pool).await?;
    let result = attempt(&mut session, work, &mut tables, &mut refusals, &locks).await;
    if result.is_err() {
        tables.iter().for_each(TableWork::stop_guessing);
    }
    match result {
        Ok(applied) => {
            if work.context.purpose == Purpose::Rehearse {
                session.rollback().await;
            }
            Ok(applied)
        }
        Err(Attempt::Fault(fault)) => {
            session.abandon(&fault).await;
            Err(match fault.kind {
                // With every bucket exclusive no writer of ours can be in the way: another unique index of the table.
                FaultKind::Contention if work.exclusive && fault.sqlstate.as_deref() == Some("23505") => {
                    Failure::Data(fault)
                }
                FaultKind::Contention | FaultKind::Plan => Failure::Again,
                FaultKind::Data => Failure::Data(fault),
                FaultKind::Schema => Failure::Schema(fault),
                FaultKind::Connection | FaultKind::Environment | FaultKind::Access | FaultKind::Unknown => {
                    Failure::Other(TargetError::Database { doing: "apply changes", fault })
                }
            })
        }
        Err(Attempt::Failure(failure)) => {
            session.rollback().await;
            Err(failure)
        }
    }
}

enum Attempt {
    Fault(Fault),
    Failure(Failure),
}

impl From<Fault> for Attempt {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<TargetError> for Attempt {
    fn from(error: TargetError) -> Self {
        Self::Failure(Failure::Other(error))
    }
}

type Locks = BTreeMap<(i32, i32), bool>;

async fn attempt(
    session: &mut Session,
    work: &Work<'_>,
    tables: &mut [TableWork<'_>],
    refusals: &mut Vec<(usize, Refusal)>,
    locks: &Locks,
) -> Result<Applied, Attempt> {
    let mut applied = Applied::default();
    let mut calls = Vec::new();
    for (table, writes) in merge(session, work, tables, refusals, locks, &mut applied).await? {
        let exclusive = |token| locks.get(&(class(table.layout.schema.id), crate::batch::bucket(token))) == Some(&true);
        if writes.inserted_remains.iter().any(|token| !exclusive(*token)) {
            return Err(Attempt::Failure(Failure::Again));
        }
        if writes.bytes > STATEMENTS_MAX {
            return Err(Attempt::Fault(Fault::of_sqlstate("54000", "")));
        }
        writes.calls(&mut calls);
        table.write_tombstones(&mut calls);
    }
    match work.context.purpose {
        Purpose::Park => calls.extend(park(work, refusals, &mut applied)?),
        Purpose::Refuse | Purpose::Rehearse => {
            if let Some((_, refusal)) = refusals.pop() {
                return Err(Attempt::Failure(Failure::Refused(refusal)));
            }
        }
    }
    if work.context.purpose == Purpose::Rehearse {
        session.run(Frame::Inside, calls).await?;
        return Ok(applied);
    }
    if work.positions && refusals.is_empty() && !work.context.fence.is_empty() {
        calls.push(
            Call::new(MOVE_POSITIONS)
                .with(work.context.fence.iter().map(|advance| advance.claim.stream.0.clone()).collect::<Vec<String>>())
                .with(work.context.fence.iter().map(|advance| advance.claim.epoch).collect::<Vec<i64>>())
                .with(work.context.fence.iter().map(|advance| advance.position.clone()).collect::<Vec<String>>()),
        );
        calls.extend((!work.context.markers.is_empty()).then(|| record(&work.context.markers)));
    }
    session.run(Frame::Commit, calls).await.inspect_err(|_| work.floods.give_back(&applied.letters_by_table()))?;
    Ok(applied)
}

/// Reads what is known of the units' rows, and finds out what is to be written.
async fn merge<'t, 'w>(
    session: &mut Session,
    work: &Work<'_>,
    tables: &'t mut [TableWork<'w>],
    refusals: &mut Vec<(usize, Refusal)>,
    locks: &Locks,
    applied: &mut Applied,
) -> Result<Vec<(&'t TableWork<'w>, Writes<'w>)>, Attempt> {
    read(session, Frame::Begin, work, tables, locks).await?;
    read_partitions(session, tables).await?;
    let mut merged = Vec::with_capacity(tables.len());
    for table in tables {
        let mut writes = Writes::new(table.layout, &table.may_copy);
        table.merge(work, &mut writes, refusals, applied)?;
        merged.push((&*table, writes));
    }
    Ok(merged)
}

/// Whether merging the units would change nothing, as one transaction sees it; writes nothing.
pub(crate) async fn contains(pool: &Pool, work: &Work<'_>) -> Result<bool, Failure> {
    let mut refusals = Vec::new();
    let mut tables = arrange(work, &mut refusals);
    let locks = locks(work, &tables);
    let mut session = Session::acquire(pool).await?;
    let mut applied = Applied::default();
    let result = match merge(&mut session, work, &mut tables, &mut refusals, &locks, &mut applied).await {
        Ok(merged) => {
            let deletes = |table: &TableWork<'_>| table.tombstones.iter().any(|tombstones| tombstones.changed);
            Ok(applied.rows_written == 0 && refusals.is_empty() && !merged.iter().any(|(table, _)| deletes(table)))
        }
        Err(Attempt::Fault(fault)) => Err(Failure::Other(TargetError::Database { doing: "look for a change", fault })),
        Err(Attempt::Failure(failure)) => Err(failure),
    };
    session.rollback().await;
    result
}

/// Counts and writes dead letters.
fn park(
    work: &Work<'_>,
    refusals: &[(usize, Refusal)],
    applied: &mut Applied,
) -> Result<Vec<Call<'static>>, TargetError> {
    for (unit, refusal) in refusals {
        applied.set_aside(work.units[*unit].layout.schema.full_name(), refusal.error_type);
    }
    if let Some(limit) = work.context.flood.filter(|_| !refusals.is_empty()) {
        work.floods.admit(limit, &applied.letters_by_table())?;
    }
    let origins = work.context.origins.as_deref();
    Ok(refusals.iter().map(|(unit, refusal)| park_change(&work.units[*unit], refusal, origins)).collect())
}

/// Sorts units by table and key, and refuses those whose key has no form in PostgreSQL.
fn arrange<'w>(work: &Work<'w>, refusals: &mut Vec<(usize, Refusal)>) -> Vec<TableWork<'w>> {
    let mut tables: BTreeMap<TableId, TableWork<'w>> = BTreeMap::new();
    let mut places: HashMap<(TableId, &ValueBytes), usize, RandomState> =
        HashMap::with_capacity_and_hasher(work.units.len(), RandomState::default());
    for (index, unit) in work.units.iter().enumerate().filter(|(_, unit)| unit.refused.is_none()) {
        let layout = &unit.layout;
        let clustering = match &unit.body {
            Body::Row { clustering, .. } => clustering.as_ref(),
            Body::Tombstones(_) => None,
        };
        let key = match layout.encode_key(&unit.partition, clustering) {
            Ok(key) => key,
            Err((column, error)) => {
                refusals.push((index, unrepresentable("KEY_UNREPRESENTABLE", column, error)));
                continue;
            }
        };
        let table = tables.entry(layout.schema.id).or_insert_with(|| TableWork {
            layout,
            touched: Vec::new(),
            tombstones: Vec::new(),
            may_copy: Vec::new(),
            sampled: Vec::new(),
            left: Vec::new(),
        });
        let place = *places.entry((layout.schema.id, &unit.partition)).or_insert_with(|| {
            table.tombstones.push(Tombstones {
                partition: &unit.partition,
                token: unit.token,
                unit: None,
                change: None,
                merged: PartitionTombstones::default(),
                changed: false,
            });
            table.tombstones.len() - 1
        });
        match &unit.body {
            Body::Row { clustering, change, refresh } => {
                let row = Touched::new(unit.partition.clone(), place, unit.token, clustering.clone(), key);
                table.touched.push(Touched { unit: Some(index), change: Some(change), refresh: *refresh, ..row });
            }
            Body::Tombstones(change) => {
                table.tombstones[place].unit = Some(index);
                table.tombstones[place].change = Some(change);
            }
        }
    }
    let mut tables: Vec<TableWork<'w>> = tables.into_values().collect();
    for table in &mut tables {
        table.touched.sort_by(|a, b| (a.clustering.is_some(), &a.key).cmp(&(b.clustering.is_some(), &b.key)));
        table.refuse_collisions(refusals);
    }
    tables
}

/// First key of the advisory locks of a table's buckets.
pub(crate) fn class(table: TableId) -> i32 {
    let (a, b) = table.0.as_u64_pair();
    let folded = (a ^ b).to_be_bytes();
    let word = |at: usize| i32::from_be_bytes([folded[at], folded[at + 1], folded[at + 2], folded[at + 3]]);
    word(0) ^ word(4)
}

/// Buckets, and whether each is needed exclusively.
fn locks(work: &Work<'_>, tables: &[TableWork<'_>]) -> Locks {
    let mut locks = Locks::new();
    for table in tables {
        let class = class(table.layout.schema.id);
        let mut want = |token: Token, exclusive: bool| {
            *locks.entry((class, crate::batch::bucket(token))).or_default() |= exclusive || work.exclusive;
        };
        for row in &table.touched {
            // What shows no row by itself deletes something, so it may leave remains.
            want(row.token, row.refresh || row.change.is_none_or(|change| !change.is_visible(work.context.now)));
        }
        for tombstones in &table.tombstones {
            want(tombstones.token, tombstones.change.is_some());
        }
    }
    locks
}

impl<'w> Touched<'w> {
    fn new(
        partition: ValueBytes,
        tombstones: usize,
        token: Token,
        clustering: Option<Clustering>,
        key: Vec<ValueBytes>,
    ) -> Self {
        Self {
            partition,
            tombstones,
            token,
            clustering,
            key,
            unit: None,
            change: None,
            refresh: false,
            before: RowState::default(),
            live: None,
            remains: None,
            guessed: false,
            superseded: false,
            collides: false,
        }
    }

    fn kind(&self) -> ColumnKind {
        if self.clustering.is_some() { ColumnKind::Regular } else { ColumnKind::Static }
    }

    fn remains_key(&self) -> ValueBytes {
        self.clustering.as_ref().map_or(STATIC_ROW.into(), |clustering| clustering.as_bytes().clone())
    }

    fn learn(&mut self, state: RowState) {
        self.before = std::mem::take(&mut self.before).merge(state);
    }
}

impl<'w> TableWork<'w> {
    /// Keys that differ in Cassandra and not in PostgreSQL: the first one stays.
    fn refuse_collisions(&mut self, refusals: &mut Vec<(usize, Refusal)>) {
        if !self.layout.rows.stores_key {
            return;
        }
        self.touched.dedup_by(|later, earlier| {
            let same = later.kind() == earlier.kind() && later.key == earlier.key;
            if same && let Some(unit) = later.unit {
                refusals.push((unit, collision()));
            }
            same
        });
    }

    /// If anything was guessed.
    fn stop_guessing(&self) {
        for row in self.touched.iter().filter(|row| row.guessed) {
            self.layout.relation(row.kind()).expect("was read").growth.saw(false);
        }
    }

    fn damaged(&self, error: StateError) -> TargetError {
        TargetError::State { table: self.layout.schema.full_name(), error }
    }

    fn merge(
        &mut self,
        work: &Work<'_>,
        writes: &mut Writes<'w>,
        refusals: &mut Vec<(usize, Refusal)>,
        applied: &mut Applied,
    ) -> Result<(), Attempt> {
        let schema = &self.layout.schema;
        for row in &mut self.touched {
            if row.superseded {
                applied.rows_written += 1;
                continue;
            }
            if row.collides {
                refusals.extend(row.unit.map(|unit| (unit, collision())));
                continue;
            }
            let before = std::mem::take(&mut row.before);
            let covering = self.tombstones[row.tombstones].merged.covering(schema, row.clustering.as_ref());
            let known = work.in_place_of.zip(row.unit).map(|(known, unit)| &known[unit]);
            if known.is_some_and(|known| *known != covered(before.clone(), covering)) {
                applied.rows_stale += 1;
                continue;
            }
            let after = match (row.change, covering) {
                (Some(change), covering) if known.is_some() => {
                    let mut after = change.clone();
                    covering.into_iter().for_each(|deletion| after.shadow(deletion));
                    Cow::Owned(after)
                }
                // Nothing that a merge with nothing would alter.
                (Some(change), None) if before.is_empty() && change.deletion.is_none() => Cow::Borrowed(change),
                (change, covering) => {
                    let mut after = match change {
                        Some(change) => before.clone().merge(change.clone()),
                        None => before.clone(),
                    };
                    if let Some(deletion) = covering {
                        after.shadow(deletion);
                    }
                    Cow::Owned(after)
                }
            };
            // It would be put elsewhere than where the key keeps it from being there twice.
            if row.guessed && !after.is_visible(work.context.now) {
                return Err(Attempt::Failure(Failure::Again));
            }
            let expired = row.refresh && row.live.is_some();
            if *after == before && !expired && known.is_none() {
                applied.rows_stale += usize::from(row.unit.is_some());
                continue;
            }
            match writes.put(row, &after, work.context.now) {
                Ok(()) => applied.rows_written += 1,
                Err(_) if row.guessed => return Err(Attempt::Failure(Failure::Again)),
                Err((column, error)) => match row.unit {
                    Some(unit) => {
                        refusals.push((unit, unrepresentable("VALUE_UNREPRESENTABLE", Some(column), error)));
                    }
                    None => {
                        return Err(TargetError::State { table: schema.full_name(), error: StateError::Damaged }.into());
                    }
                },
            }
        }
        Ok(())
    }

    fn write_tombstones(&self, calls: &mut Vec<Call<'w>>) {
        let changed: Vec<_> = self.tombstones.iter().filter(|tombstones| tombstones.changed).collect();
        if !changed.is_empty() {
            let keys = Array::collect(Type::BYTEA, changed.iter().map(|tombstones| tombstones.partition));
            let states = Array::collect(Type::BYTEA, changed.iter().map(|t| encode_tombstones(&t.merged)));
            calls.push(Call::new(WRITE_TOMBSTONES).with(self.layout.schema.id.0).with(keys).with(states));
        }
    }
}

/// A row with what its partition's tombstones say of it.
fn covered(mut row: RowState, covering: Option<DeletionTime>) -> RowState {
    if let Some(deletion) = covering {
        row.shadow(deletion);
        row.deletion = row.deletion.max(Some(deletion));
    }
    row
}

fn unrepresentable(code: &str, column: Option<String>, error: Unrepresentable) -> Refusal {
    Refusal { error_type: ErrorType::of_value(error), code: code.to_owned(), column, message: error.to_string() }
}

fn collision() -> Refusal {
    Refusal {
        error_type: ErrorType::ConstraintViolation,
        code: "KEY_COLLISION".to_owned(),
        column: None,
        message: "another key of the source equals this one in PostgreSQL".to_owned(),
    }
}
