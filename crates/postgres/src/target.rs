//! The target database.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use cdc_model::{
    Change, ColumnKind, LocalTime, Marker, NodeId, Provenance, RowState, SegmentPosition, TableId, TableSchema,
    TableTruncation, token,
};
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_postgres::types::Type;

use crate::{
    Advance, ApplyError, Claim, ErrorType, FloodLimit, Origins, PostgresConfig, StreamName, TargetError, Undecoded,
    array::Array,
    batch::{Body, Refusal, Unit, fold},
    connect,
    dead_letters::{Floods, park_record},
    error::Fault,
    layout::{Layout, Relation},
    pool::Pool,
    prepare::prepare,
    purge::purge,
    session::{Call, Frame, Session},
    stream::{CLAIM, FENCE_CLASS, fence_key},
    transact::{Failure, Work, contains, transact},
    truncate::truncate,
    value::timestamptz,
};

/// Up to so many units (rows) go into one transaction together with the positions; more are spread over the pool.
const SMALL: usize = 1000;
/// Units of a large batch that are worth another connection: a transaction has its price, too.
const SHARD: usize = 1250;
/// Units and bytes of one transaction of a large batch: throughput grows no further beyond them.
const CHUNK: usize = 2000;
const CHUNK_BYTES: usize = 4 << 20;
/// Rows per step of the sweeper.
const SWEEP: i64 = 1000;
/// The first attempt at a transaction shares its locks; the later ones exclude others, so they fail only by deadlock.
pub(crate) const ATTEMPTS: usize = 6;

/// What an apply did; rows are counted once per batch, however many changes they had.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Applied {
    /// Also those that a deletion of their partition or range changed.
    pub rows_written: usize,
    /// Rows whose changes were all known already.
    pub rows_stale: usize,
    /// Rows, deletions or records now in `_cdc.dlq`.
    pub quarantined: usize,
    /// The same by table (or topic) and cause.
    pub letters: BTreeMap<(String, ErrorType), usize>,
}

impl Applied {
    pub(crate) fn set_aside(&mut self, table: String, error_type: ErrorType) {
        self.quarantined += 1;
        *self.letters.entry((table, error_type)).or_default() += 1;
    }

    pub(crate) fn letters_by_table(&self) -> BTreeMap<String, usize> {
        self.letters.iter().fold(BTreeMap::new(), |mut tables, ((table, _), letters)| {
            *tables.entry(table.clone()).or_default() += letters;
            tables
        })
    }
}

impl std::ops::AddAssign for Applied {
    fn add_assign(&mut self, other: Self) {
        self.rows_written += other.rows_written;
        self.rows_stale += other.rows_stale;
        self.quarantined += other.quarantined;
        for (cause, letters) in other.letters {
            *self.letters.entry(cause).or_default() += letters;
        }
    }
}

/// Changes, what came with them, and how far they reach.
#[derive(Default)]
pub struct Delivery<'a> {
    pub changes: Vec<Change>,
    /// Applied first, wherever they stood: what they remove is told by its place.
    pub truncations: Vec<TableTruncation>,
    pub undecoded: Vec<Undecoded>,
    /// The records of the changes; direct mode has none.
    pub origins: Option<Arc<dyn Origins>>,
    pub commit: &'a [Advance],
    /// Passed by these positions, and recorded with them.
    pub markers: Vec<Marker>,
    /// Where dead letters become a halt.
    pub flood: Option<FloodLimit>,
}

/// A connected target database. Clones share the pool.
#[derive(Clone)]
pub struct Target {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: PostgresConfig,
    pub(crate) pool: Pool,
    pub(crate) floods: Floods,
    /// Tables whose targets exist, by the newest version seen.
    layouts: RwLock<HashMap<TableId, Arc<Layout>>>,
}

impl Target {
    /// Connects, and brings schema `_cdc` up to date.
    ///
    /// # Errors
    /// [`TargetError::Connect`] and [`TargetError::Migrate`] name the place, the user and what to do.
    pub fn connect(config: &PostgresConfig) -> BoxFuture<'_, Result<Self, TargetError>> {
        Box::pin(async move {
            connect::migrate(config).await?;
            let inner = Inner {
                config: config.clone(),
                pool: connect::pool(config)?,
                floods: Floods::default(),
                layouts: RwLock::default(),
            };
            Ok(Self { inner: Arc::new(inner) })
        })
    }

    /// Creates the target tables of a source table, or adds what they lack. Idempotent; `apply` does it by itself.
    ///
    /// # Errors
    /// [`TargetError::Layout`] if an existing table is in the way.
    pub fn prepare_table(&self, table: Arc<TableSchema>) -> BoxFuture<'_, Result<(), TargetError>> {
        Box::pin(async move { self.inner.layout(&table).await.map(|_| ()) })
    }

    /// Takes a stream over: from now on every earlier claim of it is fenced.
    pub fn claim<'a>(&'a self, stream: &'a StreamName) -> BoxFuture<'a, Result<Claim, TargetError>> {
        Box::pin(async move {
            let owner = format!("process {}", std::process::id());
            let lock = Call::new("-- cdc: lock a stream\nselect pg_advisory_xact_lock($1, $2)")
                .with(FENCE_CLASS)
                .with(fence_key(&stream.0));
            let claim = Call::new(CLAIM).with(stream.0.clone()).with(owner);
            let mut session = Session::acquire(&self.inner.pool).await?;
            match session.run(Frame::Whole, vec![lock, claim]).await {
                Ok(answers) => {
                    let row = &answers[1][0];
                    Ok(Claim { stream: stream.clone(), epoch: row.get(0), position: row.get(1) })
                }
                Err(fault) => {
                    session.abandon(&fault).await;
                    Err(TargetError::Database { doing: "claim a stream", fault })
                }
            }
        })
    }

    /// Merges changes into the target and moves positions. Rows are durable no later than positions: together in one
    /// transaction if they are few, else rows first, over all connections. What the target cannot hold is put into
    /// `_cdc.dlq` and counted; it fails nothing.
    ///
    /// # Errors
    /// [`ApplyError::Fenced`] if a stream was claimed anew; then nothing more of this batch was or will be written.
    /// After any other error some rows may be written, and the same batch may be applied again.
    pub fn apply<'a>(
        &'a self,
        changes: Vec<Change>,
        commit: &'a [Advance],
    ) -> BoxFuture<'a, Result<Applied, ApplyError>> {
        Box::pin(async move {
            let applied = self.deliver(Delivery { changes, commit, ..Delivery::default() }).await?;
            if applied.quarantined > 0 {
                self.deliver(Delivery { commit, ..Delivery::default() }).await?;
            }
            Ok(applied)
        })
    }

    /// As [`Self::apply`], but if anything was put into `_cdc.dlq` the positions stay where they are, so that the
    /// caller can tell others before it delivers nothing but the positions.
    ///
    /// # Errors
    /// As [`Self::apply`]; and [`TargetError::Flood`] if a table has too many dead letters, when those of this delivery
    /// that exceed the limit were not written. [`TargetError::Overtaken`] may be tried again at once.
    pub fn deliver<'a>(&'a self, delivery: Delivery<'a>) -> BoxFuture<'a, Result<Applied, ApplyError>> {
        Box::pin(async move {
            let Delivery { changes, truncations, undecoded, origins, commit, markers, flood } = delivery;
            for truncation in &truncations {
                self.inner.truncate(truncation).await?;
            }
            let units = self.inner.fold(changes, true).await?;
            let context = Context { fence: commit.to_vec(), markers, origins, flood, ..Context::new(Purpose::Park) };
            let halted = self.inner.floods.halted(units.iter().map(|unit| &*unit.layout.schema));
            let together = units.len() <= SMALL && units.iter().map(Unit::weight).sum::<usize>() <= CHUNK_BYTES;
            let mut applied = if together {
                self.inner.write(units, &context, undecoded.is_empty()).await?
            } else {
                Arc::clone(&self.inner).write_sharded(units, &context).await?
            };
            applied += self.inner.park(undecoded, &context).await?;
            if applied.quarantined == 0 {
                self.inner.floods.passed(&halted);
                if !together {
                    applied += self.inner.write(Vec::new(), &context, true).await?;
                }
            }
            Ok(applied)
        })
    }

    /// Rewrites or removes rows in which something has expired by `now`; returns how many. Call until it returns 0.
    /// Covers the tables that were prepared or applied to through this target.
    pub fn sweep_expired(&self, now: LocalTime) -> BoxFuture<'_, Result<usize, TargetError>> {
        Box::pin(async move {
            let layouts: Vec<_> = self.inner.layouts().values().cloned().collect();
            let mut swept = 0;
            for layout in layouts {
                for relation in std::iter::once(&layout.rows).chain(&layout.statics) {
                    let units = self.inner.expired(&layout, relation, now).await?;
                    let context = Context { now, ..Context::new(Purpose::Park) };
                    match self.inner.write(units, &context, false).await {
                        Ok(applied) => swept += applied.rows_written,
                        // The rows are gone; those that came since are found the next time.
                        Err(ApplyError::Target(TargetError::Overtaken { .. })) => {}
                        Err(ApplyError::Target(error)) => return Err(error),
                        Err(ApplyError::Fenced { .. }) => unreachable!("the sweeper has no claim to lose"),
                    }
                }
            }
            Ok(swept)
        })
    }

    /// Forgets old barriers, and deletions older than `horizon` seconds beyond their table's `gc_grace_seconds`; returns how many rows of
    /// `_cdc.remains` and `_cdc.tombstones` were removed or shortened. The horizon must be longer than any change may
    /// be under way: an older one that comes later brings deleted data back.
    pub fn purge(&self, now: LocalTime, horizon: u32) -> BoxFuture<'_, Result<u64, TargetError>> {
        Box::pin(async move {
            let layouts: Vec<_> = self.inner.layouts().values().cloned().collect();
            let mut purged = 0;
            self.inner.forget_barriers().await?;
            for layout in layouts {
                let second = LocalTime(now.0 - layout.schema.gc_grace_seconds - i64::from(horizon));
                purged += purge(&self.inner.pool, &layout, second).await?;
            }
            Ok(purged)
        })
    }
}

/// The current second.
fn now() -> LocalTime {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LocalTime(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX - 1))
}

/// What becomes of the units that cannot be written, and of the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// They become dead letters.
    Park,
    /// They are an error, and nothing is written.
    Refuse,
    /// As [`Self::Refuse`], but nothing is written in any case.
    Rehearse,
}

#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) purpose: Purpose,
    /// Claims that must still hold.
    pub(crate) fence: Vec<Advance>,
    pub(crate) markers: Vec<Marker>,
    pub(crate) now: LocalTime,
    pub(crate) origins: Option<Arc<dyn Origins>>,
    pub(crate) flood: Option<FloodLimit>,
}

impl Context {
    pub(crate) fn new(purpose: Purpose) -> Self {
        Self { purpose, fence: Vec::new(), markers: Vec::new(), now: now(), origins: None, flood: None }
    }
}

impl Inner {
    fn layouts(&self) -> std::sync::RwLockReadGuard<'_, HashMap<TableId, Arc<Layout>>> {
        self.layouts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layout of a table, whose targets exist once this returns.
    pub(crate) async fn layout(&self, table: &Arc<TableSchema>) -> Result<Arc<Layout>, TargetError> {
        let known = self.layouts().get(&table.id).cloned();
        if let Some(layout) = known.clone().filter(|layout| layout.covers(table)) {
            return Ok(layout);
        }
        for fault in self.config.table(table).unknown_columns(table) {
            // It may be added yet, and then its mask must be there already: no reason to stop.
            tracing::warn!(table = table.full_name(), key = fault.key, "{}; {}", fault.problem, fault.fix);
        }
        let known = known.map_or_else(|| Arc::clone(table), |layout| Arc::clone(&layout.schema));
        self.prepare(&known, table).await
    }

    async fn prepare(&self, known: &TableSchema, table: &Arc<TableSchema>) -> Result<Arc<Layout>, TargetError> {
        let mut client = self.pool.get().await.map_err(|error| TargetError::from_pool(&error))?;
        let layout = Arc::new(prepare(&mut client, &self.config, known, table).await?);
        self.layouts.write().unwrap_or_else(PoisonError::into_inner).insert(table.id, Arc::clone(&layout));
        Ok(layout)
    }

    /// Empties a table, unless that was done already.
    async fn truncate(&self, truncation: &TableTruncation) -> Result<(), TargetError> {
        let mut layout = self.layout(&truncation.table).await?;
        while !layout.truncated.covers(&truncation.at) {
            let mut client = self.pool.get().await.map_err(|error| TargetError::from_pool(&error))?;
            if truncate(&mut client, &layout, &truncation.at).await? {
                tracing::info!(table = layout.schema.full_name(), "the target was emptied, as the table was truncated");
            }
            drop(client);
            layout = self.prepare(&layout.schema, &layout.source).await?;
        }
        Ok(())
    }

    /// Lays out anew what another writer has changed; whether there was anything.
    ///
    /// # Errors
    /// [`TargetError::Overtaken`] if a table was truncated: what of the units is gone only the changes tell.
    async fn renew(&self, units: &mut [Unit]) -> Result<bool, TargetError> {
        let mut layouts: HashMap<TableId, Arc<Layout>> = HashMap::new();
        let mut renewed = false;
        for unit in units {
            let id = unit.layout.schema.id;
            let layout = match layouts.get(&id) {
                Some(layout) => Arc::clone(layout),
                None => {
                    let layout = match self.generation(id).await? == Some(unit.layout.generation) {
                        true => Arc::clone(&unit.layout),
                        false => self.prepare(&unit.layout.schema, &unit.layout.source).await?,
                    };
                    layouts.insert(id, Arc::clone(&layout));
                    layout
                }
            };
            if layout.truncated != unit.layout.truncated {
                return Err(TargetError::Overtaken { table: layout.schema.full_name() });
            }
            if !Arc::ptr_eq(&layout, &unit.layout) {
                renewed = true;
                unit.adopt(&layout);
            }
        }
        Ok(renewed)
    }

    async fn generation(&self, table: TableId) -> Result<Option<i64>, TargetError> {
        let client = self.pool.get().await.map_err(|error| TargetError::from_pool(&error))?;
        let sql = "-- cdc: generation\nselect generation from _cdc.tables where table_id = $1";
        let row = client.query_opt(sql, &[&table.0]).await;
        let failed = |error| TargetError::Database { doing: "look at a table's generation", fault: Fault::from(error) };
        Ok(row.map_err(failed)?.map(|row| row.get(0)))
    }

    pub(crate) async fn fold(&self, changes: Vec<Change>, conceal: bool) -> Result<Vec<Unit>, TargetError> {
        let mut layouts: HashMap<TableId, Arc<Layout>> = HashMap::new();
        let mut last: Option<&Arc<TableSchema>> = None;
        for table in changes.iter().map(|change| &change.table) {
            if !last.is_some_and(|last| Arc::ptr_eq(last, table)) {
                layouts.insert(table.id, self.layout(table).await?);
                last = Some(table);
            }
        }
        Ok(fold(changes, &layouts, conceal))
    }

    /// Shards by bucket over the pool, so that no two of our transactions want the same locks.
    async fn write_sharded(self: Arc<Self>, units: Vec<Unit>, context: &Context) -> Result<Applied, ApplyError> {
        let shards = units.len().div_ceil(SHARD).clamp(1, self.config.pool_size.max(1));
        let mut sharded: Vec<Vec<Unit>> = (0..shards).map(|_| Vec::new()).collect();
        for unit in units {
            let shard = usize::try_from(unit.bucket()).expect("never negative") % shards;
            sharded[shard].push(unit);
        }
        let mut tasks = JoinSet::new();
        for shard in sharded.into_iter().filter(|shard| !shard.is_empty()) {
            let (inner, context) = (Arc::clone(&self), context.clone());
            tasks.spawn(async move {
                let mut applied = Applied::default();
                for chunk in chunks(shard) {
                    applied += inner.write(chunk, &context, false).await?;
                }
                Ok::<_, ApplyError>(applied)
            });
        }
        let mut applied = Applied::default();
        let mut failed = None;
        // All of them end, also after a failure: an aborted one would cost its connection.
        while let Some(done) = tasks.join_next().await {
            match done.expect("a shard neither panics nor is aborted") {
                Ok(shard) => applied += shard,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(applied), Err)
    }

    /// Writes units in one transaction, or in as many as it takes to find those that can never be written.
    pub(crate) fn write<'a>(
        &'a self,
        mut units: Vec<Unit>,
        context: &'a Context,
        positions: bool,
    ) -> BoxFuture<'a, Result<Applied, ApplyError>> {
        Box::pin(async move {
            if units.is_empty() && (!positions || context.fence.is_empty()) {
                return Ok(Applied::default());
            }
            for attempt in 0..ATTEMPTS {
                let exclusive = attempt > 0;
                let work = Work {
                    units: &units,
                    context,
                    positions,
                    floods: &self.floods,
                    exclusive,
                    writes: true,
                    in_place_of: None,
                };
                match transact(&self.pool, &work).await {
                    Ok(applied) => return Ok(applied),
                    Err(Failure::Again) => {}
                    Err(Failure::Stale) => drop(self.renew(&mut units).await?),
                    Err(Failure::Schema(fault)) => {
                        if !self.renew(&mut units).await? {
                            return Err(TargetError::Database { doing: "apply changes", fault }.into());
                        }
                    }
                    Err(Failure::Fenced(stream)) => return Err(ApplyError::Fenced { stream }),
                    Err(Failure::Refused(Refusal { error_type, code, message, .. })) => {
                        return Err(TargetError::Refused { error_type, code, message }.into());
                    }
                    Err(Failure::Other(error)) => return Err(error.into()),
                    Err(Failure::Data(fault)) => match units.as_mut_slice() {
                        [] => return Err(TargetError::Database { doing: "move positions", fault }.into()),
                        // Even the note of it was refused: nothing is left to try.
                        [unit] if unit.refused.is_some() => {
                            return Err(TargetError::Database { doing: "set a change aside", fault }.into());
                        }
                        [unit] => {
                            unit.refused = Some(fault.refusal());
                            return self.write(units, context, positions).await;
                        }
                        _ => {
                            let rest = units.split_off(units.len() / 2);
                            let mut applied = self.write(units, context, false).await?;
                            applied += self.write(rest, context, false).await?;
                            applied += self.write(Vec::new(), context, positions && applied.quarantined == 0).await?;
                            return Ok(applied);
                        }
                    },
                }
            }
            Err(TargetError::Contended { attempts: ATTEMPTS }.into())
        })
    }

    /// Writes records that are no changes; anyone may, because it is harmless to do twice.
    async fn park(&self, undecoded: Vec<Undecoded>, context: &Context) -> Result<Applied, TargetError> {
        let mut applied = Applied::default();
        if undecoded.is_empty() {
            return Ok(applied);
        }
        for record in &undecoded {
            applied.set_aside(record.name().to_owned(), record.error_type);
        }
        if let Some(limit) = context.flood {
            self.floods.admit(limit, &applied.letters_by_table())?;
        }
        let mut session = Session::acquire(&self.pool).await?;
        match session.run(Frame::Whole, undecoded.into_iter().map(park_record).collect()).await {
            Ok(_) => Ok(applied),
            Err(fault) => {
                self.floods.give_back(&applied.letters_by_table());
                session.abandon(&fault).await;
                Err(TargetError::Database { doing: "set records aside", fault })
            }
        }
    }

    /// Whether the target has what the units say, or newer data.
    pub(crate) async fn contains(&self, mut units: Vec<Unit>, now: LocalTime) -> Result<bool, TargetError> {
        let context = Context { now, ..Context::new(Purpose::Refuse) };
        for _ in 0..ATTEMPTS {
            let work = Work {
                units: &units,
                context: &context,
                positions: false,
                floods: &self.floods,
                exclusive: false,
                writes: false,
                in_place_of: None,
            };
            match contains(&self.pool, &work).await {
                Ok(contains) => return Ok(contains),
                Err(Failure::Stale) => drop(self.renew(&mut units).await?),
                Err(Failure::Other(error)) => return Err(error),
                Err(
                    Failure::Again | Failure::Data(_) | Failure::Fenced(_) | Failure::Refused(_) | Failure::Schema(_),
                ) => unreachable!("reading has no claim to lose, and writes and refuses nothing"),
            }
        }
        Err(TargetError::Contended { attempts: ATTEMPTS })
    }

    /// Rows in which something has expired, as units that know nothing new.
    async fn expired(
        &self,
        layout: &Arc<Layout>,
        relation: &Relation,
        now: LocalTime,
    ) -> Result<Vec<Unit>, TargetError> {
        let mut session = Session::acquire(&self.pool).await?;
        let mut until = Array::new(Type::TIMESTAMPTZ);
        until.push(Some(timestamptz(now.0)));
        let call = Call::new(&relation.sql.select_expired).with(until).with(SWEEP);
        let rows = match session.run(Frame::Whole, vec![call]).await {
            Ok(mut answers) => answers.remove(0),
            Err(fault) => {
                session.abandon(&fault).await;
                return Err(TargetError::Database { doing: "find expired rows", fault });
            }
        };
        let nowhere = Provenance { node: NodeId(uuid::Uuid::nil()), position: SegmentPosition::START };
        let unit = |row: &tokio_postgres::Row| {
            let (partition, clustering) = relation.decode_key(&layout.schema, row, 0)?;
            debug_assert_eq!(clustering.is_some(), relation.kind == ColumnKind::Regular);
            Some(Unit {
                layout: Arc::clone(layout),
                token: token(&partition),
                partition,
                body: Body::Row { clustering, change: RowState::default(), refresh: true },
                provenance: nowhere,
                refused: None,
            })
        };
        rows.iter().map(unit).collect::<Option<_>>().ok_or_else(|| TargetError::State {
            table: layout.schema.full_name(),
            error: cdc_model::StateError::Damaged,
        })
    }
}

/// Cuts by number, evenly, and by weight.
fn chunks(units: Vec<Unit>) -> Vec<Vec<Unit>> {
    let size = units.len().div_ceil(units.len().div_ceil(CHUNK).max(1));
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut weight = 0;
    for unit in units {
        weight += unit.weight();
        chunk.push(unit);
        if chunk.len() == size || weight > CHUNK_BYTES {
            chunks.push(std::mem::take(&mut chunk));
            weight = 0;
        }
    }
    chunks.push(chunk);
    chunks
}
