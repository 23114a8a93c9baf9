//! The target database.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use cdc_model::{
    Change, ColumnKind, LocalTime, NodeId, Provenance, RowState, SegmentPosition, TableId, TableSchema, token,
};
use deadpool_postgres::Pool;
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_postgres::types::Type;

use crate::{
    Advance, ApplyError, Claim, PostgresConfig, StreamName, TargetError,
    array::Array,
    batch::{Body, Refusal, Unit, fold},
    connect,
    error::Fault,
    layout::{Layout, Relation},
    prepare::prepare,
    session::{Call, Frame, Session},
    stream::{CLAIM, FENCE_CLASS, fence_key},
    transact::{Failure, Work, transact},
    value::timestamptz,
};

/// Up to so many units (rows) go into one transaction together with the positions; more are spread over the pool.
const SMALL: usize = 1000;
/// Units and bytes of one transaction of a large batch: throughput grows no further beyond them.
const CHUNK: usize = 2000;
const CHUNK_BYTES: usize = 4 << 20;
/// Rows per step of the sweeper.
const SWEEP: i64 = 1000;
/// The first attempt at a transaction shares its locks; the later ones exclude others, so they fail only by deadlock.
const ATTEMPTS: usize = 6;

/// What an apply did; rows are counted once per batch, however many changes they had.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Applied {
    /// Also those that a deletion of their partition or range changed.
    pub rows_written: usize,
    /// Rows whose changes were all known already.
    pub rows_stale: usize,
    /// Rows or deletions now in `_cdc.quarantine`.
    pub quarantined: usize,
}

impl std::ops::AddAssign for Applied {
    fn add_assign(&mut self, other: Self) {
        self.rows_written += other.rows_written;
        self.rows_stale += other.rows_stale;
        self.quarantined += other.quarantined;
    }
}

/// A connected target database. Clones share the pool.
#[derive(Clone)]
pub struct Target {
    inner: Arc<Inner>,
}

struct Inner {
    config: PostgresConfig,
    pool: Pool,
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
            let inner = Inner { config: config.clone(), pool: connect::pool(config)?, layouts: RwLock::default() };
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
    /// `_cdc.quarantine` and counted; it fails nothing.
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
            let units = self.inner.fold(changes).await?;
            let context = Context { fence: commit.to_vec(), now: now() };
            if units.len() <= SMALL && units.iter().map(Unit::weight).sum::<usize>() <= CHUNK_BYTES {
                return self.inner.write(units, &context, true).await;
            }
            let mut applied = Arc::clone(&self.inner).write_sharded(units, &context).await?;
            applied += self.inner.write(Vec::new(), &context, true).await?;
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
                    let context = Context { fence: Vec::new(), now };
                    let applied = self.inner.write(units, &context, false).await.map_err(|error| match error {
                        ApplyError::Target(error) => error,
                        ApplyError::Fenced { .. } => unreachable!("the sweeper has no claim to lose"),
                    })?;
                    swept += applied.rows_written;
                }
            }
            Ok(swept)
        })
    }
}

/// The current second.
fn now() -> LocalTime {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LocalTime(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX - 1))
}

#[derive(Clone)]
struct Context {
    fence: Vec<Advance>,
    now: LocalTime,
}

impl Inner {
    fn layouts(&self) -> std::sync::RwLockReadGuard<'_, HashMap<TableId, Arc<Layout>>> {
        self.layouts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layout of a table, whose targets exist once this returns.
    async fn layout(&self, table: &Arc<TableSchema>) -> Result<Arc<Layout>, TargetError> {
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

    /// Lays out anew what another writer has changed; whether there was anything.
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

    async fn fold(&self, changes: Vec<Change>) -> Result<Vec<Unit>, TargetError> {
        let mut layouts: HashMap<TableId, Arc<Layout>> = HashMap::new();
        let mut last: Option<&Arc<TableSchema>> = None;
        for table in changes.iter().map(|change| &change.table) {
            if !last.is_some_and(|last| Arc::ptr_eq(last, table)) {
                layouts.insert(table.id, self.layout(table).await?);
                last = Some(table);
            }
        }
        Ok(fold(changes, &layouts))
    }

    /// Shards by bucket over the pool, so that no two of our transactions want the same locks.
    async fn write_sharded(self: Arc<Self>, units: Vec<Unit>, context: &Context) -> Result<Applied, ApplyError> {
        let shards = self.config.pool_size.max(1);
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
    fn write<'a>(
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
                let work = Work { units: &units, fence: &context.fence, positions, now: context.now, exclusive };
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
                    Err(Failure::Other(error)) => return Err(error.into()),
                    Err(Failure::Data(fault)) => match units.as_mut_slice() {
                        [] => return Err(TargetError::Database { doing: "move positions", fault }.into()),
                        // Even the note of it was refused: nothing is left to try.
                        [unit] if unit.refused.is_some() => {
                            return Err(TargetError::Database { doing: "quarantine a change", fault }.into());
                        }
                        [unit] => {
                            let code = format!("SQLSTATE_{}", fault.sqlstate.as_deref().unwrap_or_default());
                            unit.refused = Some(Refusal { code, column: None, message: fault.to_string() });
                            return self.write(units, context, positions).await;
                        }
                        _ => {
                            let rest = units.split_off(units.len() / 2);
                            let mut applied = self.write(units, context, false).await?;
                            applied += self.write(rest, context, false).await?;
                            applied += self.write(Vec::new(), context, positions).await?;
                            return Ok(applied);
                        }
                    },
                }
            }
            Err(TargetError::Contended { attempts: ATTEMPTS }.into())
        })
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

/// Cuts by number and weight.
fn chunks(units: Vec<Unit>) -> Vec<Vec<Unit>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut weight = 0;
    for unit in units {
        weight += unit.weight();
        chunk.push(unit);
        if chunk.len() == CHUNK || weight > CHUNK_BYTES {
            chunks.push(std::mem::take(&mut chunk));
            weight = 0;
        }
    }
    chunks.push(chunk);
    chunks
}
