//! What is known of the rows that a transaction may change.

use std::{collections::HashMap, ops::Range};

use cdc_model::{
    Cell, Clustering, ColumnKind, ColumnState, Liveness, LocalTime, RowState, StateError, ValueBytes, WriteTime,
    decode_row, decode_tombstones,
};
use tokio_postgres::{Row, types::Type};

use super::{Attempt, Failure, Locks, STATIC_ROW, TableWork, Touched, Version, Work};
use crate::{
    TargetError,
    array::{Array, Raw},
    layout::{Layout, Relation, join_key, split_key},
    session::{Call, Frame, Session},
    stream::{FENCE_CLASS, READ_EPOCHS, fence_key},
    value::decode,
};

pub(crate) const LOCK: &str = "-- cdc: lock\nselect _cdc.lock($1::int[], $2::int[], $3::bool[])";
const READ_GENERATIONS: &str = "-- cdc: generations\nselect table_id, generation from _cdc.tables \
    where table_id = any($1::uuid[])";
// `offset 0` keeps each key's lookup to itself. Without it PostgreSQL, which plans a prepared statement while the table is
// empty, may join all that is found by `table_id` with all keys: quadratic once the table has grown. `exists` spares the
// lookups while nothing of the table was ever deleted.
const READ_TOMBSTONES: &str = "-- cdc: read tombstones\nselect k.i, t.* from unnest(\
    case when exists (select from _cdc.tombstones where table_id = $1) then $2::bytea[] end) \
    with ordinality as k(p, i) cross join lateral \
    (select t.state from _cdc.tombstones as t where t.table_id = $1 and t.partition_key = k.p offset 0) as t";
const READ_REMAINS: &str = "-- cdc: read remains\nselect k.i, r.* from unnest(\
    case when exists (select from _cdc.remains where table_id = $1) then $2::bytea[] end, \
    case when exists (select from _cdc.remains where table_id = $1) then $3::bytea[] end) \
    with ordinality as k(p, c, i) cross join lateral (select r.ctid, r.xmin, r.state from _cdc.remains as r \
    where r.table_id = $1 and r.partition_key = k.p and r.clustering = k.c offset 0) as r";
const READ_PARTITION_REMAINS: &str = "-- cdc: read partitions' remains\nselect k.i, r.* from unnest($2::bytea[]) with \
    ordinality as k(p, i) cross join lateral (select r.ctid, r.xmin, r.state, r.clustering from _cdc.remains as r \
    where r.table_id = $1 and r.partition_key = k.p offset 0) as r";

/// New rows from which on a copy is faster than an insert, although it waits once more for PostgreSQL.
const COPY_MIN: usize = 100;
/// Of so many rows of a table that only grows one is looked up.
const SAMPLE: usize = 16;

pub(super) async fn read(
    session: &mut Session,
    frame: Frame,
    work: &Work<'_>,
    tables: &mut [TableWork<'_>],
    locks: &Locks,
) -> Result<(), Attempt> {
    let streams: Vec<String> = work.context.fence.iter().map(|advance| advance.claim.stream.0.clone()).collect();
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
    if !tables.is_empty() {
        let ids: Vec<uuid::Uuid> = tables.iter().map(|table| table.layout.schema.id.0).collect();
        calls.push(Call::new(READ_GENERATIONS).with(ids));
    }
    let mut plan = Vec::new();
    for (index, table) in tables.iter().enumerate() {
        table.plan_reads(index, work, &mut plan, &mut calls);
    }
    let mut answers = session.run(frame, calls).await?.into_iter().skip(first);
    if fenced {
        let epochs = answers.next().unwrap_or_default();
        let epochs: HashMap<String, i64> = epochs.iter().map(|row| (row.get(0), row.get(1))).collect();
        let lost = work.context.fence.iter().find(|a| epochs.get(&a.claim.stream.0) != Some(&a.claim.epoch));
        if let Some(advance) = lost {
            return Err(Attempt::Failure(Failure::Fenced(advance.claim.stream.clone())));
        }
    }
    if !tables.is_empty() {
        let generations = answers.next().unwrap_or_default();
        let generations: HashMap<uuid::Uuid, i64> = generations.iter().map(|row| (row.get(0), row.get(1))).collect();
        let known =
            |table: &&TableWork<'_>| generations.get(&table.layout.schema.id.0) == Some(&table.layout.generation);
        if !tables.iter().all(|table| known(&table)) {
            return Err(Attempt::Failure(Failure::Stale));
        }
    }
    for ((index, read), rows) in plan.into_iter().zip(answers) {
        tables[index].take_answer(&read, &rows)?;
    }
    for table in tables {
        table.read_rest(session).await?;
    }
    Ok(())
}

/// Loads whole partitions where a deletion is new to the target.
pub(super) async fn read_partitions(session: &mut Session, tables: &mut [TableWork<'_>]) -> Result<(), Attempt> {
    let mut calls = Vec::new();
    let mut plan = Vec::new();
    for (index, table) in tables.iter_mut().enumerate() {
        let changed: Vec<usize> =
            (0..).zip(&table.tombstones).filter(|(_, t)| t.changed).map(|(place, _)| place).collect();
        if changed.is_empty() {
            continue;
        }
        for relation in std::iter::once(&table.layout.rows).chain(&table.layout.statics) {
            let mut arrays: Vec<Array> =
                relation.key.iter().take(relation.partition_columns).map(|c| Array::new(c.pg.clone())).collect();
            for place in &changed {
                let partition = table.tombstones[*place].partition;
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
        let keys = Array::collect(Type::BYTEA, changed.iter().map(|place| table.tombstones[*place].partition));
        calls.push(Call::new(READ_PARTITION_REMAINS).with(table.layout.schema.id.0).with(keys));
        plan.push((index, None, changed));
    }
    if calls.is_empty() {
        return Ok(());
    }
    let answers = session.run(Frame::Inside, calls).await?;
    let mut known: Vec<HashMap<(ValueBytes, Option<Clustering>), usize>> = tables
        .iter()
        .map(|table| {
            let keys = table.touched.iter().map(|row| (row.partition.clone(), row.clustering.clone()));
            keys.zip(0..).collect()
        })
        .collect();
    for ((index, kind, places), rows) in plan.into_iter().zip(answers) {
        for row in &rows {
            tables[index].take_partition_row(kind, &places, row, &mut known[index])?;
        }
    }
    Ok(())
}

/// What a read asked for; results come with the position in the list, from 1.
enum Read {
    MayCopy(ColumnKind),
    Tombstones,
    /// Every so many of a range of `touched`.
    Rows(ColumnKind, Range<usize>, usize),
    /// These were to supersede older ones, among a range of `touched`.
    Superseded(Vec<usize>, Range<usize>),
    Remains,
}

impl<'w> TableWork<'w> {
    fn plan_reads(&self, index: usize, work: &Work<'_>, plan: &mut Vec<(usize, Read)>, calls: &mut Vec<Call<'w>>) {
        let id = self.layout.schema.id.0;
        let keys = Array::collect(Type::BYTEA, self.tombstones.iter().map(|tombstones| tombstones.partition));
        calls.push(Call::new(READ_TOMBSTONES).with(id).with(keys));
        plan.push((index, Read::Tombstones));
        let statics = self.touched.partition_point(|row| row.clustering.is_none());
        for (kind, range) in [(ColumnKind::Static, 0..statics), (ColumnKind::Regular, statics..self.touched.len())] {
            let Some(relation) = self.layout.relation(kind).filter(|_| !range.is_empty()) else { continue };
            let large = range.len() >= COPY_MIN && work.writes && !work.exclusive;
            if large
                && work.in_place_of.is_none()
                && relation.superseding.is_steady()
                && let Some((call, rows)) = self.supersede_rows(relation, range.clone(), work)
            {
                calls.push(call);
                plan.push((index, Read::Superseded(rows, range)));
                continue;
            }
            let step = if large && relation.growth.is_steady() && self.only_shows(work) { SAMPLE } else { 1 };
            calls.push(self.select_rows(relation, range.clone().step_by(step)));
            plan.push((index, Read::Rows(kind, range, step)));
            // After the rows, so that it is known how many of them are new.
            if large {
                calls.push(Call::new(&relation.sql.may_copy));
                plan.push((index, Read::MayCopy(kind)));
            }
        }
        if !self.touched.is_empty() {
            let partitions = Array::collect(Type::BYTEA, self.touched.iter().map(|row| &row.partition));
            let clusterings = Array::collect(Type::BYTEA, self.touched.iter().map(Touched::remains_key));
            calls.push(Call::new(READ_REMAINS).with(id).with(partitions).with(clusterings));
            plan.push((index, Read::Remains));
        }
    }

    fn select_rows(&self, relation: &'w Relation, rows: impl Iterator<Item = usize>) -> Call<'w> {
        let mut arrays: Vec<Array> = relation.key.iter().map(|c| Array::new(c.pg.clone())).collect();
        for row in rows {
            for (array, value) in arrays.iter_mut().zip(&self.touched[row].key) {
                array.push(Some(value));
            }
        }
        arrays.into_iter().fold(Call::new(&relation.sql.select_rows), Call::with)
    }

    /// Whether no unit deletes anything, or may leave a row that does not show.
    pub(super) fn only_shows(&self, work: &Work<'_>) -> bool {
        let shows = |row: &Touched<'_>| {
            !row.refresh
                && row.change.is_some_and(|change| change.deletion.is_none() && change.is_visible(work.context.now))
        };
        self.touched.iter().all(shows) && self.tombstones.iter().all(|tombstones| tombstones.change.is_none())
    }

    /// Reads the rows that superseded none, and those of which only a sample was read, unless the sample says that all of
    /// them are new.
    async fn read_rest(&mut self, session: &mut Session) -> Result<(), Attempt> {
        let known = |row: &Touched<'_>| row.live.is_some() || row.remains.is_some();
        let all_new = !self.touched.iter().any(known) && self.tombstones.iter().all(|t| t.merged.is_empty());
        for (kind, range) in std::mem::take(&mut self.sampled) {
            let relation = self.layout.relation(kind).expect("was read");
            if all_new {
                self.touched[range.clone()].iter_mut().for_each(|row| row.guessed = true);
                continue;
            }
            let call = self.select_rows(relation, range.clone());
            let rows = session.run(Frame::Inside, vec![call]).await?.remove(0);
            self.take_answer(&Read::Rows(kind, range, 1), &rows)?;
            relation.growth.saw(false);
        }
        let left = std::mem::take(&mut self.left);
        if !left.is_empty() {
            let relation = &self.layout.rows;
            let call = self.select_rows(relation, left.iter().copied());
            let rows = session.run(Frame::Inside, vec![call]).await?.remove(0);
            self.take_rows(relation, &rows, |place| left[place])?;
        }
        Ok(())
    }

    fn take_answer(&mut self, read: &Read, rows: &[Row]) -> Result<(), TargetError> {
        match read {
            Read::MayCopy(kind) => {
                // Where few of the rows are new, the wait for a copy to be granted is not worth it.
                let new = self.touched.iter().filter(|row| row.kind() == *kind && row.live.is_none()).count();
                if new >= COPY_MIN && rows.first().is_some_and(|row| row.get(0)) {
                    self.may_copy.push(*kind);
                }
            }
            Read::Tombstones => {
                for row in rows {
                    let stored = decode_tombstones(bytes(row, 1).to_bytes()).map_err(|error| self.damaged(error))?;
                    self.tombstones[ordinal(row)].merged = stored;
                }
                for tombstones in &mut self.tombstones {
                    if let Some(change) = tombstones.change {
                        let merged = tombstones.merged.clone().merge(change.clone());
                        tombstones.changed = merged != tombstones.merged;
                        tombstones.merged = merged;
                    }
                }
            }
            Read::Rows(kind, range, step) => {
                let relation = self.layout.relation(*kind).expect("was read");
                if range.len() >= COPY_MIN || !rows.is_empty() {
                    relation.growth.saw(rows.is_empty());
                }
                if *step > 1 {
                    self.sampled.push((*kind, range.clone()));
                }
                if *kind == ColumnKind::Regular && range.len() >= COPY_MIN && *step == 1 {
                    relation.superseding.saw(self.might_supersede(rows, range));
                }
                self.take_rows(relation, rows, |place| range.start + step * place)?;
            }
            Read::Superseded(given, range) => {
                rows.iter().for_each(|row| self.touched[given[ordinal(row)]].superseded = true);
                self.left = range.clone().filter(|row| !self.touched[*row].superseded).collect();
                self.layout.rows.superseding.saw(2 * rows.len() >= given.len());
            }
            Read::Remains => {
                for row in rows {
                    let state = decode_row(&self.layout.schema, bytes(row, 3).to_bytes())
                        .map_err(|error| self.damaged(error))?;
                    let touched = &mut self.touched[ordinal(row)];
                    touched.remains = Some(Version { ctid: bytes(row, 1), xmin: bytes(row, 2) });
                    touched.learn(self.layout.strip(state));
                }
            }
        }
        Ok(())
    }

    /// Rows of a target table; `place` says which of `touched` was asked for there.
    fn take_rows(
        &mut self,
        relation: &Relation,
        rows: &[Row],
        place: impl Fn(usize) -> usize,
    ) -> Result<(), TargetError> {
        let key_at = 5 + relation.reversible().count();
        for row in rows {
            let (version, state) = self.stored(relation, row)?;
            let touched = &mut self.touched[place(ordinal(row))];
            touched.live = Some(version);
            touched.learn(state);
            let key = || join_key(&touched.partition, touched.clustering.as_ref());
            touched.collides = relation.stores_key && *bytes(row, key_at) != *key();
        }
        Ok(())
    }

    /// A row (or remains, if there is no kind) of a partition that was deleted from.
    fn take_partition_row(
        &mut self,
        kind: Option<ColumnKind>,
        places: &[usize],
        row: &Row,
        known: &mut HashMap<(ValueBytes, Option<Clustering>), usize>,
    ) -> Result<(), TargetError> {
        let tombstones = places[ordinal(row)];
        let partition = self.tombstones[tombstones].partition.clone();
        let damaged = |_| self.damaged(StateError::Damaged);
        let (clustering, version, state, live) = match kind {
            None => {
                let key = bytes(row, 4);
                let clustering = if key.as_ref() == STATIC_ROW {
                    None
                } else {
                    Some(Clustering::from_bytes(key).ok_or(()).map_err(damaged)?)
                };
                let state =
                    decode_row(&self.layout.schema, bytes(row, 3).to_bytes()).map_err(|error| self.damaged(error))?;
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
                let token = self.tombstones[tombstones].token;
                // A key that was written once encodes again.
                let key = self.layout.encode_key(&partition, clustering.as_ref()).unwrap_or_default();
                self.touched.push(Touched::new(partition, tombstones, token, clustering, key));
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
            let state = decode_row(&self.layout.schema, state.to_bytes()).map_err(|error| self.damaged(error))?;
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
        Ok((version, self.layout.strip(RowState { liveness, deletion: None, columns })))
    }
}

impl Layout {
    /// Leaves out what belongs to columns that are gone.
    fn strip(&self, mut state: RowState) -> RowState {
        self.forget(&mut state);
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
    ) -> Option<(ValueBytes, Option<Clustering>)> {
        let (partition, clustering) = if self.stores_key {
            split_key(row.get::<_, Raw>(at).0?.to_bytes())?
        } else {
            let column = |(index, column): (usize, &crate::layout::TargetColumn)| {
                decode(&column.cql, row.get::<_, Raw>(at + index).0?)
            };
            let mut values: Vec<ValueBytes> = self.key.iter().enumerate().map(column).collect::<Option<_>>()?;
            let clustering = values.split_off(self.partition_columns);
            debug_assert_eq!(values.len(), schema.partition_key.len());
            (cdc_model::TableSchema::join_partition_key(&values), Clustering::new(clustering.into_iter().map(Some)))
        };
        Some((partition, (self.kind == ColumnKind::Regular).then_some(clustering)))
    }
}

/// The position in the list a read was given, which every read returns first.
pub(super) fn ordinal(row: &Row) -> usize {
    usize::try_from(row.get::<_, i64>(0) - 1).expect("ordinality begins at 1")
}

fn bytes(row: &Row, at: usize) -> ValueBytes {
    row.get::<_, Raw>(at).0.unwrap_or_default()
}
