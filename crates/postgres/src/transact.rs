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
//! # Round trips
//!
//! Two for most batches: `begin`, locks, fence and all reads go out together; so do all writes, the positions and
//! `commit`. Reading whole partitions, which only deletions new to the target need, adds one.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use cdc_model::{
    Cell, Clustering, ColumnKind, ColumnState, Liveness, LocalTime, PartitionTombstones, RowState, StateError, TableId,
    Token, WriteTime, decode_row, decode_tombstones, encode_row, encode_tombstones,
};
use deadpool_postgres::Pool;
use tokio_postgres::{Row, types::Type};

use crate::{
    Advance, Applied, StreamName, TargetError,
    array::{Array, Raw},
    batch::{Body, Refusal, Unit},
    error::{Fault, FaultKind},
    layout::{Layout, Relation, join_key, split_key},
    session::{Call, Frame, Session},
    stream::{FENCE_CLASS, MOVE_POSITIONS, READ_EPOCHS, fence_key},
    value::{Unrepresentable, decode, encode_visible, timestamptz},
};

/// Clustering of a static row in `_cdc.remains`: no serialised clustering is one byte long.
const STATIC_ROW: &[u8] = &[0xff];

const LOCK: &str = "-- cdc: lock\nselect _cdc.lock($1::int[], $2::int[], $3::bool[])";
const READ_TOMBSTONES: &str = "-- cdc: read tombstones\nselect k.i, t.state from unnest($2::bytea[]) with ordinality as \
    k(p, i) join _cdc.tombstones as t on t.table_id = $1 and t.partition_key = k.p";
const WRITE_TOMBSTONES: &str = "-- cdc: write tombstones\ninsert into _cdc.tombstones (table_id, partition_key, state) \
    select $1::uuid, * from unnest($2::bytea[], $3::bytea[]) \
    on conflict (table_id, partition_key) do update set state = excluded.state";
const READ_REMAINS: &str = "-- cdc: read remains\nselect k.i, r.ctid, r.xmin, r.state from unnest($2::bytea[], $3::bytea[]) \
    with ordinality as k(p, c, i) join _cdc.remains as r \
    on r.table_id = $1 and r.partition_key = k.p and r.clustering = k.c";
const READ_PARTITION_REMAINS: &str = "-- cdc: read partitions' remains\nselect k.i, r.ctid, r.xmin, r.state, r.clustering \
    from unnest($2::bytea[]) with ordinality as k(p, i) join _cdc.remains as r \
    on r.table_id = $1 and r.partition_key = k.p";
const INSERT_REMAINS: &str = "-- cdc: insert remains\ninsert into _cdc.remains (table_id, partition_key, clustering, state) \
    select $1::uuid, * from unnest($2::bytea[], $3::bytea[], $4::bytea[])";
const UPDATE_REMAINS: &str = "-- cdc: update remains\nwith written as (update _cdc.remains as t set state = k.s \
    from unnest($1::tid[], $2::xid[], $3::bytea[]) as k(c, x, s) where t.ctid = k.c and t.xmin = k.x returning 1) \
    select _cdc.require((select count(*) from written), cardinality($1))";
const DELETE_REMAINS: &str = "-- cdc: delete remains\nwith written as (delete from _cdc.remains as t \
    using unnest($1::tid[], $2::xid[]) as k(c, x) where t.ctid = k.c and t.xmin = k.x returning 1) \
    select _cdc.require((select count(*) from written), cardinality($1))";
const QUARANTINE: &str = "-- cdc: quarantine\ninsert into _cdc.quarantine (id, table_id, table_name, column_name, node, \
    position, code, message, partition_key, clustering, state) \
    select md5(convert_to($1::uuid::text, 'UTF8') || $8::bytea || coalesce($9::bytea, '\\xfe'::bytea) || $10::bytea)::uuid, \
    $1::uuid, $2::text, $3::text, $4::uuid, $5::text, $6::text, $7::text, $8::bytea, $9::bytea, $10::bytea \
    on conflict (id) do nothing";

/// Why a transaction did not commit.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Do it again, with all buckets exclusive.
    Again,
    /// One of the units, at least, can never be written.
    Data(Fault),
    Fenced(StreamName),
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
    /// Claims that must still hold.
    pub(crate) fence: &'w [Advance],
    /// Whether the positions move too.
    pub(crate) positions: bool,
    pub(crate) now: LocalTime,
    pub(crate) exclusive: bool,
}

/// A version of a stored row.
struct Version {
    ctid: Bytes,
    xmin: Bytes,
}

/// A row that a unit, or the deletion of its partition, may change.
struct Touched<'w> {
    partition: Bytes,
    token: Token,
    /// `None` for the static row.
    clustering: Option<Clustering>,
    key: Vec<Bytes>,
    unit: Option<usize>,
    change: Option<&'w RowState>,
    refresh: bool,
    before: RowState,
    live: Option<Version>,
    remains: Option<Version>,
    collides: bool,
}

/// The units of one table.
struct TableWork<'w> {
    layout: &'w Layout,
    touched: Vec<Touched<'w>>,
    /// Per partition: what the batch deletes, then also what is stored.
    tombstones: BTreeMap<Bytes, Tombstones<'w>>,
}

struct Tombstones<'w> {
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
    match result {
        Ok(applied) => Ok(applied),
        Err(Attempt::Fault(fault)) => {
            session.abandon(&fault).await;
            Err(match fault.kind {
                // With every bucket exclusive no writer of ours can be in the way: another unique index of the table.
                FaultKind::Contention if work.exclusive && fault.sqlstate.as_deref() == Some("23505") => {
                    Failure::Data(fault)
                }
                FaultKind::Contention | FaultKind::Plan => Failure::Again,
                FaultKind::Data => Failure::Data(fault),
                FaultKind::Connection
                | FaultKind::Environment
                | FaultKind::Schema
                | FaultKind::Access
                | FaultKind::Unknown => Failure::Other(TargetError::Database { doing: "apply changes", fault }),
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
    read(session, work, tables, locks).await?;
    read_partitions(session, tables).await?;
    let mut applied = Applied::default();
    let mut calls = Vec::new();
    for table in tables.iter_mut() {
        let mut writes = Writes::new(table.layout);
        table.merge(work, &mut writes, refusals, &mut applied)?;
        let exclusive = |token| locks.get(&(class(table.layout.schema.id), crate::batch::bucket(token))) == Some(&true);
        if writes.inserted_remains.iter().any(|token| !exclusive(*token)) {
            return Err(Attempt::Failure(Failure::Again));
        }
        writes.calls(&mut calls);
        table.write_tombstones(&mut calls);
    }
    applied.quarantined = refusals.len();
    calls.extend(refusals.iter().map(|(unit, refusal)| quarantine(&work.units[*unit], refusal)));
    if work.positions && !work.fence.is_empty() {
        calls.push(
            Call::new(MOVE_POSITIONS)
                .with(work.fence.iter().map(|advance| advance.claim.stream.0.clone()).collect::<Vec<String>>())
                .with(work.fence.iter().map(|advance| advance.claim.epoch).collect::<Vec<i64>>())
                .with(work.fence.iter().map(|advance| advance.position.clone()).collect::<Vec<String>>()),
        );
    }
    session.run(Frame::Commit, calls).await?;
    Ok(applied)
}

/// Sorts units by table and key, and refuses those whose key has no form in PostgreSQL.
fn arrange<'w>(work: &Work<'w>, refusals: &mut Vec<(usize, Refusal)>) -> Vec<TableWork<'w>> {
    let mut tables: BTreeMap<TableId, TableWork<'w>> = BTreeMap::new();
    for (index, unit) in work.units.iter().enumerate().filter(|(_, unit)| unit.refused.is_none()) {
        let layout = &unit.layout;
        let clustering = match &unit.body {
            Body::Row { clustering, .. } => clustering.as_ref(),
            Body::Tombstones(_) => None,
        };
        let key = match layout.encode_key(&unit.partition, clustering) {
            Ok(key) => key,
            Err((column, error)) => {
                let refusal = Refusal { code: "KEY_UNREPRESENTABLE".to_owned(), column, message: error.to_string() };
                refusals.push((index, refusal));
                continue;
            }
        };
        let table = tables.entry(layout.schema.id).or_insert_with(|| TableWork {
            layout,
            touched: Vec::new(),
            tombstones: BTreeMap::new(),
        });
        let tombstones = table.tombstones.entry(unit.partition.clone()).or_insert_with(|| Tombstones {
            token: unit.token,
            unit: None,
            change: None,
            merged: PartitionTombstones::default(),
            changed: false,
        });
        match &unit.body {
            Body::Row { clustering, change, refresh } => {
                let row = Touched::new(unit.partition.clone(), unit.token, clustering.clone(), key);
                table.touched.push(Touched { unit: Some(index), change: Some(change), refresh: *refresh, ..row });
            }
            Body::Tombstones(change) => {
                tombstones.unit = Some(index);
                tombstones.change = Some(change);
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

fn class(table: TableId) -> i32 {
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
            want(row.token, row.refresh || row.change.is_none_or(|change| change.visible(work.now).is_none()));
        }
        for tombstones in table.tombstones.values() {
            want(tombstones.token, tombstones.change.is_some());
        }
    }
    locks
}

async fn read(
    session: &mut Session,
    work: &Work<'_>,
    tables: &mut [TableWork<'_>],
    locks: &Locks,
) -> Result<(), Attempt> {
    let streams: Vec<String> = work.fence.iter().map(|advance| advance.claim.stream.0.clone()).collect();
    let mut fence_keys: Vec<i32> = streams.iter().map(|stream| fence_key(stream)).collect();
    fence_keys.sort_unstable();
    let fences = fence_keys.into_iter().map(|key| (FENCE_CLASS, key, false));
    let all: Vec<_> =
        fences.chain(locks.iter().map(|((class, bucket), exclusive)| (*class, *bucket, *exclusive))).collect();
    let mut calls = Vec::new();
    if !all.is_empty() {
        calls.push(
            Call::new(LOCK)
                .with(all.iter().map(|(class, _, _)| *class).collect::<Vec<_>>())
                .with(all.iter().map(|(_, key, _)| *key).collect::<Vec<_>>())
                .with(all.iter().map(|(_, _, exclusive)| *exclusive).collect::<Vec<_>>()),
        );
    }
    let fenced = !streams.is_empty();
    if fenced {
        calls.push(Call::new(READ_EPOCHS).with(streams));
    }
    let first = calls.len() - usize::from(fenced);
    let mut plan = Vec::new();
    for (index, table) in tables.iter().enumerate() {
        table.plan_reads(index, &mut plan, &mut calls);
    }
    let mut answers = session.run(Frame::Begin, calls).await?.into_iter().skip(first);
    if fenced {
        let epochs = answers.next().unwrap_or_default();
        let epochs: HashMap<String, i64> = epochs.iter().map(|row| (row.get(0), row.get(1))).collect();
        let lost = work.fence.iter().find(|a| epochs.get(&a.claim.stream.0) != Some(&a.claim.epoch));
        if let Some(advance) = lost {
            return Err(Attempt::Failure(Failure::Fenced(advance.claim.stream.clone())));
        }
    }
    for ((index, read), rows) in plan.into_iter().zip(answers) {
        tables[index].take_answer(&read, &rows)?;
    }
    Ok(())
}

/// Loads whole partitions where a deletion is new to the target.
async fn read_partitions(session: &mut Session, tables: &mut [TableWork<'_>]) -> Result<(), Attempt> {
    let mut calls = Vec::new();
    let mut plan = Vec::new();
    for (index, table) in tables.iter_mut().enumerate() {
        let changed: Vec<Bytes> =
            table.tombstones.iter().filter(|(_, t)| t.changed).map(|(partition, _)| partition.clone()).collect();
        if changed.is_empty() {
            continue;
        }
        for relation in std::iter::once(&table.layout.rows).chain(&table.layout.statics) {
            let mut arrays: Vec<Array> =
                relation.key.iter().take(relation.partition_columns).map(|c| Array::new(c.pg.clone())).collect();
            for partition in &changed {
                // Encodes, because it did when the units were arranged.
                for (array, value) in
                    arrays.iter_mut().zip(table.layout.encode_key(partition, None).unwrap_or_default())
                {
                    array.push(Some(value));
                }
            }
            calls.push(arrays.into_iter().fold(Call::new(&relation.sql.select_partitions), Call::with));
            plan.push((index, Some(relation.kind), changed.clone()));
        }
        let keys = Array::collect(Type::BYTEA, changed.iter().cloned());
        calls.push(Call::new(READ_PARTITION_REMAINS).with(table.layout.schema.id.0).with(keys));
        plan.push((index, None, changed));
    }
    if calls.is_empty() {
        return Ok(());
    }
    let answers = session.run(Frame::Inside, calls).await?;
    let mut known: Vec<HashMap<(Bytes, Option<Clustering>), usize>> = tables
        .iter()
        .map(|table| {
            let keys = table.touched.iter().map(|row| (row.partition.clone(), row.clustering.clone()));
            keys.zip(0..).collect()
        })
        .collect();
    for ((index, kind, partitions), rows) in plan.into_iter().zip(answers) {
        for row in &rows {
            tables[index].take_partition_row(kind, &partitions, row, &mut known[index])?;
        }
    }
    Ok(())
}

/// What a read asked for; results come with the position in the list, from 1.
enum Read {
    Tombstones(Vec<Bytes>),
    /// Positions in `touched`.
    Rows(ColumnKind, std::ops::Range<usize>),
    Remains,
}

impl<'w> Touched<'w> {
    fn new(partition: Bytes, token: Token, clustering: Option<Clustering>, key: Vec<Bytes>) -> Self {
        Self {
            partition,
            token,
            clustering,
            key,
            unit: None,
            change: None,
            refresh: false,
            before: RowState::default(),
            live: None,
            remains: None,
            collides: false,
        }
    }

    fn kind(&self) -> ColumnKind {
        if self.clustering.is_some() { ColumnKind::Regular } else { ColumnKind::Static }
    }

    fn remains_key(&self) -> Bytes {
        self.clustering.as_ref().map_or(Bytes::from_static(STATIC_ROW), |clustering| clustering.as_bytes().clone())
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

    fn plan_reads<'s>(&'s self, index: usize, plan: &mut Vec<(usize, Read)>, calls: &mut Vec<Call<'w>>) {
        let id = self.layout.schema.id.0;
        let partitions: Vec<Bytes> = self.tombstones.keys().cloned().collect();
        let keys = Array::collect(Type::BYTEA, partitions.iter().cloned());
        calls.push(Call::new(READ_TOMBSTONES).with(id).with(keys));
        plan.push((index, Read::Tombstones(partitions)));
        let statics = self.touched.partition_point(|row| row.clustering.is_none());
        for (kind, range) in [(ColumnKind::Static, 0..statics), (ColumnKind::Regular, statics..self.touched.len())] {
            let Some(relation) = self.layout.relation(kind).filter(|_| !range.is_empty()) else { continue };
            let mut arrays: Vec<Array> = relation.key.iter().map(|c| Array::new(c.pg.clone())).collect();
            for row in &self.touched[range.clone()] {
                for (array, value) in arrays.iter_mut().zip(&row.key) {
                    array.push(Some(value.clone()));
                }
            }
            calls.push(arrays.into_iter().fold(Call::new(&relation.sql.select_rows), Call::with));
            plan.push((index, Read::Rows(kind, range)));
        }
        if !self.touched.is_empty() {
            let partitions = Array::collect(Type::BYTEA, self.touched.iter().map(|row| row.partition.clone()));
            let clusterings = Array::collect(Type::BYTEA, self.touched.iter().map(Touched::remains_key));
            calls.push(Call::new(READ_REMAINS).with(id).with(partitions).with(clusterings));
            plan.push((index, Read::Remains));
        }
    }

    fn take_answer(&mut self, read: &Read, rows: &[Row]) -> Result<(), TargetError> {
        match read {
            Read::Tombstones(partitions) => {
                for row in rows {
                    let stored = decode_tombstones(bytes(row, 1)).map_err(|error| self.damaged(error))?;
                    let tombstones = self.tombstones.get_mut(&partitions[ordinal(row)]).expect("asked for");
                    tombstones.merged = stored;
                }
                for tombstones in self.tombstones.values_mut() {
                    if let Some(change) = tombstones.change {
                        let merged = tombstones.merged.clone().merge(change.clone());
                        tombstones.changed = merged != tombstones.merged;
                        tombstones.merged = merged;
                    }
                }
            }
            Read::Rows(kind, range) => {
                let relation = self.layout.relation(*kind).expect("was read");
                let key_at = 5 + relation.reversible().count();
                for row in rows {
                    let (version, state) = self.stored(relation, row)?;
                    let touched = &mut self.touched[range.start + ordinal(row)];
                    touched.live = Some(version);
                    touched.learn(state);
                    let key = || join_key(&touched.partition, touched.clustering.as_ref());
                    touched.collides = relation.stores_key && bytes(row, key_at) != key();
                }
            }
            Read::Remains => {
                for row in rows {
                    let state = decode_row(&self.layout.schema, bytes(row, 3)).map_err(|error| self.damaged(error))?;
                    let touched = &mut self.touched[ordinal(row)];
                    touched.remains = Some(Version { ctid: bytes(row, 1), xmin: bytes(row, 2) });
                    touched.learn(self.layout.strip(state));
                }
            }
        }
        Ok(())
    }

    /// A row (or remains, if there is no kind) of a partition that was deleted from.
    fn take_partition_row(
        &mut self,
        kind: Option<ColumnKind>,
        partitions: &[Bytes],
        row: &Row,
        known: &mut HashMap<(Bytes, Option<Clustering>), usize>,
    ) -> Result<(), TargetError> {
        let partition = partitions[ordinal(row)].clone();
        let damaged = |_| self.damaged(StateError::Damaged);
        let (clustering, version, state, live) = match kind {
            None => {
                let key = bytes(row, 4);
                let clustering = if key.as_ref() == STATIC_ROW {
                    None
                } else {
                    Some(Clustering::from_bytes(key).ok_or(()).map_err(damaged)?)
                };
                let state = decode_row(&self.layout.schema, bytes(row, 3)).map_err(|error| self.damaged(error))?;
                let version = Version { ctid: bytes(row, 1), xmin: bytes(row, 2) };
                (clustering, version, self.layout.strip(state), false)
            }
            Some(kind) => {
                let relation = self.layout.relation(kind).expect("was read");
                let (found, clustering) = relation
                    .decode_key(&self.layout.schema, row, 5 + relation.reversible().count())
                    .ok_or(())
                    .map_err(damaged)?;
                if found != partition {
                    return Ok(());
                }
                let (version, state) = self.stored(relation, row)?;
                (clustering, version, state, true)
            }
        };
        let index = match known.entry((partition.clone(), clustering.clone())) {
            std::collections::hash_map::Entry::Occupied(place) => *place.get(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let token = self.tombstones[&partition].token;
                // A key that was written once encodes again.
                let key = self.layout.encode_key(&partition, clustering.as_ref()).unwrap_or_default();
                self.touched.push(Touched::new(partition, token, clustering, key));
                *place.insert(self.touched.len() - 1)
            }
        };
        let touched = &mut self.touched[index];
        touched.learn(state);
        if live {
            touched.live = Some(version);
        } else {
            touched.remains = Some(version);
        }
        Ok(())
    }

    /// Version and state of a row of a target table, as every read of one gives them from column 1 on.
    fn stored(&self, relation: &Relation, row: &Row) -> Result<(Version, RowState), TargetError> {
        let version = Version { ctid: bytes(row, 1), xmin: bytes(row, 2) };
        if let Raw(Some(state)) = row.get(4) {
            let state = decode_row(&self.layout.schema, state).map_err(|error| self.damaged(error))?;
            return Ok((version, self.layout.strip(state)));
        }
        let time = WriteTime(row.get(3));
        let mut columns = Vec::new();
        for (at, (id, column)) in relation.reversible().enumerate() {
            if let Raw(Some(value)) = row.get(5 + at) {
                let value = decode(&column.cql, value).ok_or_else(|| self.damaged(StateError::Damaged))?;
                columns.push((id, ColumnState::Simple(Cell::live(time, value))));
            }
        }
        let marked = relation.kind == ColumnKind::Regular;
        let liveness = marked.then_some(Liveness { time, ttl: 0, expires: LocalTime::NONE });
        Ok((version, RowState { liveness, deletion: None, columns }))
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
    ) -> Result<(), TargetError> {
        let schema = &self.layout.schema;
        for row in &mut self.touched {
            if row.collides {
                refusals.extend(row.unit.map(|unit| (unit, collision())));
                continue;
            }
            let before = std::mem::take(&mut row.before);
            let mut after = match row.change {
                Some(change) => before.clone().merge(change.clone()),
                None => before.clone(),
            };
            let covering = self.tombstones[&row.partition].merged.covering(schema, row.clustering.as_ref());
            if let Some(deletion) = covering {
                after.shadow(deletion);
            }
            let expired = row.refresh && row.live.is_some();
            if after == before && !expired {
                applied.rows_stale += usize::from(row.unit.is_some());
                continue;
            }
            match writes.put(row, &after, work.now) {
                Ok(()) => applied.rows_written += 1,
                Err((column, error)) => match row.unit {
                    Some(unit) => {
                        let code = "VALUE_UNREPRESENTABLE".to_owned();
                        refusals.push((unit, Refusal { code, column: Some(column), message: error.to_string() }));
                    }
                    None => return Err(TargetError::State { table: schema.full_name(), error: StateError::Damaged }),
                },
            }
        }
        Ok(())
    }

    fn write_tombstones(&self, calls: &mut Vec<Call<'w>>) {
        let changed: Vec<_> = self.tombstones.iter().filter(|(_, tombstones)| tombstones.changed).collect();
        if !changed.is_empty() {
            let keys = Array::collect(Type::BYTEA, changed.iter().map(|(partition, _)| (*partition).clone()));
            let states = Array::collect(Type::BYTEA, changed.iter().map(|(_, t)| encode_tombstones(&t.merged)));
            calls.push(Call::new(WRITE_TOMBSTONES).with(self.layout.schema.id.0).with(keys).with(states));
        }
    }
}

/// Columns of the statements that write one relation.
struct RelationWrites<'w> {
    relation: &'w Relation,
    insert: Vec<Array>,
    update: Vec<Array>,
    delete: Vec<Array>,
    inserts: usize,
    updates: usize,
    deletes: usize,
}

struct Writes<'w> {
    layout: &'w Layout,
    relations: Vec<RelationWrites<'w>>,
    insert_remains: [Array; 3],
    update_remains: [Array; 3],
    delete_remains: [Array; 2],
    inserted_remains: Vec<Token>,
    updated_remains: usize,
    deleted_remains: usize,
}

fn versions() -> [Array; 2] {
    [Array::new(Type::TID), Array::new(Type::XID)]
}

impl<'w> RelationWrites<'w> {
    fn new(relation: &'w Relation) -> Self {
        let array = |ty: &Type| Array::new(ty.clone());
        let key = relation.key.iter().map(|c| array(&c.pg));
        let values = || {
            let metas = [Type::INT8, Type::BYTEA, Type::TIMESTAMPTZ];
            relation.values.iter().map(|(_, c)| c.pg.clone()).chain(metas).map(Array::new)
        };
        let fixed = std::iter::once(array(&Type::INT8)).chain(relation.stores_key.then(|| array(&Type::BYTEA)));
        Self {
            insert: key.chain(fixed).chain(values()).collect(),
            update: versions().into_iter().chain(values()).collect(),
            delete: versions().into(),
            relation,
            inserts: 0,
            updates: 0,
            deletes: 0,
        }
    }
}

fn push_all(arrays: &mut [Array], values: impl IntoIterator<Item = Option<Bytes>>) {
    for (array, value) in arrays.iter_mut().zip(values) {
        array.push(value);
    }
}

impl<'w> Writes<'w> {
    fn new(layout: &'w Layout) -> Self {
        let bytea = || Array::new(Type::BYTEA);
        let [c, x] = versions();
        Self {
            layout,
            relations: std::iter::once(&layout.rows).chain(&layout.statics).map(RelationWrites::new).collect(),
            insert_remains: [bytea(), bytea(), bytea()],
            update_remains: [c, x, bytea()],
            delete_remains: versions(),
            inserted_remains: Vec::new(),
            updated_remains: 0,
            deleted_remains: 0,
        }
    }

    /// Puts a row where it belongs by its new state; nothing is put if a value has no form in PostgreSQL.
    fn put(&mut self, row: &Touched<'_>, after: &RowState, now: LocalTime) -> Result<(), (String, Unrepresentable)> {
        let kind = row.kind();
        let writes = self.relations.iter_mut().find(|writes| writes.relation.kind == kind).expect("has such columns");
        let relation = writes.relation;
        let version = |version: &Version| [Some(version.ctid.clone()), Some(version.xmin.clone())];
        let Some(visible) = after.visible(now) else {
            if let Some(live) = &row.live {
                push_all(&mut writes.delete, version(live));
                writes.deletes += 1;
            }
            let state = (!after.is_empty()).then(|| encode_row(&self.layout.schema, after));
            match (&row.remains, state) {
                (None, None) => {}
                (None, Some(state)) => {
                    self.inserted_remains.push(row.token);
                    push_all(&mut self.insert_remains, [row.partition.clone(), row.remains_key(), state].map(Some));
                }
                (Some(remains), Some(state)) => {
                    self.updated_remains += 1;
                    push_all(&mut self.update_remains, version(remains).into_iter().chain([Some(state)]));
                }
                (Some(remains), None) => {
                    self.deleted_remains += 1;
                    push_all(&mut self.delete_remains, version(remains));
                }
            }
            return Ok(());
        };
        let time = after.newest_write();
        let mut uniform = after.deletion.is_none()
            && after.columns.len() == visible.len()
            && match after.liveness {
                None => kind == ColumnKind::Static,
                Some(marker) => marker.time == time && marker.ttl == 0 && marker.expires == LocalTime::NONE,
            }
            && after.columns.iter().all(|(_, column)| match column {
                ColumnState::Simple(cell) => cell.time == time && cell.ttl == 0 && cell.local == LocalTime::NONE,
                ColumnState::Complex(_) => false,
            });
        let mut values = Vec::with_capacity(relation.values.len() + 3);
        let mut shown = visible.iter().peekable();
        for (id, column) in &relation.values {
            while shown.next_if(|(other, _)| other < id).is_some() {}
            let Some((_, value)) = shown.next_if(|(other, _)| other == id) else {
                values.push(None);
                continue;
            };
            let encoded = encode_visible(&column.cql, value).map_err(|error| (column.name.clone(), error))?;
            uniform &= encoded.exact;
            values.push(encoded.bytes);
        }
        values.push(Some(Bytes::copy_from_slice(&time.0.to_be_bytes())));
        values.push((!uniform).then(|| encode_row(&self.layout.schema, after)));
        values.push(after.next_expiry(now).map(|expiry| timestamptz(expiry.0)));
        match &row.live {
            Some(live) => {
                push_all(&mut writes.update, version(live).into_iter().chain(values));
                writes.updates += 1;
            }
            None => {
                let token = Bytes::copy_from_slice(&row.token.0.to_be_bytes());
                let stored = relation.stores_key.then(|| join_key(&row.partition, row.clustering.as_ref()));
                let fixed = std::iter::once(token).chain(stored);
                let key = row.key.iter().cloned().chain(fixed).map(Some);
                push_all(&mut writes.insert, key.chain(values));
                writes.inserts += 1;
            }
        }
        if let Some(remains) = &row.remains {
            self.deleted_remains += 1;
            push_all(&mut self.delete_remains, version(remains));
        }
        Ok(())
    }

    fn calls(self, calls: &mut Vec<Call<'w>>) {
        let id = self.layout.schema.id.0;
        let fill = |call: Call<'w>, arrays: Vec<Array>| arrays.into_iter().fold(call, Call::with);
        // Deletes first: a key may come free for another row of a unique index.
        for writes in self.relations {
            let sql = &writes.relation.sql;
            calls.extend((writes.deletes > 0).then(|| fill(Call::new(&sql.delete), writes.delete)));
            calls.extend((writes.updates > 0).then(|| fill(Call::new(&sql.update), writes.update)));
            calls.extend((writes.inserts > 0).then(|| fill(Call::new(&sql.insert), writes.insert)));
        }
        let remains = |sql, arrays: Vec<Array>| fill(Call::new(sql), arrays);
        calls.extend((self.deleted_remains > 0).then(|| remains(DELETE_REMAINS, self.delete_remains.into())));
        calls.extend((self.updated_remains > 0).then(|| remains(UPDATE_REMAINS, self.update_remains.into())));
        calls.extend(
            (!self.inserted_remains.is_empty())
                .then(|| fill(Call::new(INSERT_REMAINS).with(id), self.insert_remains.into())),
        );
    }
}

fn collision() -> Refusal {
    Refusal {
        code: "KEY_COLLISION".to_owned(),
        column: None,
        message: "another key of the source equals this one in PostgreSQL".to_owned(),
    }
}

fn quarantine(unit: &Unit, refusal: &Refusal) -> Call<'static> {
    let schema = &unit.layout.schema;
    let (clustering, state) = match &unit.body {
        Body::Row { clustering, change, .. } => {
            let clustering = clustering.as_ref().map_or(Bytes::from_static(STATIC_ROW), |c| c.as_bytes().clone());
            (Some(clustering.to_vec()), encode_row(schema, change))
        }
        Body::Tombstones(tombstones) => (None, encode_tombstones(tombstones)),
    };
    Call::new(QUARANTINE)
        .with(schema.id.0)
        .with(schema.full_name())
        .with(refusal.column.clone())
        .with(unit.provenance.node.0)
        .with(unit.provenance.position.to_string())
        .with(refusal.code.clone())
        .with(refusal.message.clone())
        .with(unit.partition.to_vec())
        .with(clustering)
        .with(state.to_vec())
}

impl Layout {
    /// Leaves out what belongs to columns that are gone.
    fn strip(&self, mut state: RowState) -> RowState {
        state.columns.retain(|(id, _)| self.schema.column(*id).dropped.is_none());
        state
    }
}

impl Relation {
    /// Partition key and clustering (`None` in the static relation) from the columns of a row that begin at `at`.
    pub(crate) fn decode_key(
        &self,
        schema: &cdc_model::TableSchema,
        row: &Row,
        at: usize,
    ) -> Option<(Bytes, Option<Clustering>)> {
        let (partition, clustering) = if self.stores_key {
            split_key(row.get::<_, Raw>(at).0?)?
        } else {
            let column = |(index, column): (usize, &crate::layout::TargetColumn)| {
                decode(&column.cql, row.get::<_, Raw>(at + index).0?)
            };
            let mut values: Vec<Bytes> = self.key.iter().enumerate().map(column).collect::<Option<_>>()?;
            let clustering = values.split_off(self.partition_columns);
            debug_assert_eq!(values.len(), schema.partition_key.len());
            (cdc_model::TableSchema::join_partition_key(&values), Clustering::new(clustering.into_iter().map(Some)))
        };
        Some((partition, (self.kind == ColumnKind::Regular).then_some(clustering)))
    }
}

/// The position in the list a read was given, which every read returns first.
fn ordinal(row: &Row) -> usize {
    usize::try_from(row.get::<_, i64>(0) - 1).expect("ordinality begins at 1")
}

fn bytes(row: &Row, at: usize) -> Bytes {
    row.get::<_, Raw>(at).0.unwrap_or_default()
}
