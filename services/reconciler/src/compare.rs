//! The passes over both stores, and what they leave to be settled.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_cassandra::{CassandraError, ClusterReader, Consistency, Fields, TableReader};
use cdc_model::{ColumnKind, RowKey, TableSchema, TokenRange, token};
use cdc_postgres::{Hashed, Leaf, Mirror, StoredRow, Strategy, Target, TargetError};
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::progress::{Progress, Stage};
use crate::settle::{Settling, now};
use crate::{Class, Coverage, Finding, Gap, Outcome, Repair, RepairBounds, Repairs, Rows};

/// The ring has 65,536 leaves.
const SHIFT: u8 = 48;
/// Parts of the ring that are read on their own, so that one that fails does not cost the others, and progress shows; of a
/// scope that is a share of it there are as many fewer, but for this many.
const RANGES: u64 = 1_024;
const RANGES_MIN: u64 = 16;
/// Rows of PostgreSQL held at a time while leaves are read row by row; a single leaf may have more.
const ROWS_AT_A_TIME: u64 = 200_000;
/// Suspects that share barriers.
const SUSPECTS_AT_A_TIME: usize = 1_000;

/// Tells when everything that was written before is in PostgreSQL.
pub trait Pass: Send + Sync {
    /// Returns once everything of the table that Cassandra acknowledged, or answered, before the call is in PostgreSQL; else
    /// says why not.
    fn pass<'a>(&'a self, table: &'a TableSchema) -> BoxFuture<'a, Result<(), String>>;
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Of the passes and of the first look at a suspect.
    pub consistency: Consistency,
    /// Token ranges read from Cassandra at a time.
    pub parallel: usize,
    /// Findings kept with their evidence; the rest is counted.
    pub findings_max: usize,
    /// What is done about findings, if anything.
    pub repair: Option<Repair>,
    /// What else bounds repairs.
    pub bounds: RepairBounds,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            consistency: Consistency::LocalQuorum,
            parallel: 4,
            findings_max: 10_000,
            repair: None,
            bounds: RepairBounds::default(),
        }
    }
}

/// What to compare.
#[derive(Clone, Debug)]
pub struct Scope {
    pub table: Arc<TableSchema>,
    pub range: TokenRange,
}

#[derive(thiserror::Error, Debug)]
pub enum ReconcileError {
    #[error(transparent)]
    Cassandra(#[from] CassandraError),
    #[error(transparent)]
    Target(#[from] TargetError),
}

pub struct Reconciler {
    cassandra: ClusterReader,
    target: Target,
    barrier: Arc<dyn Pass>,
    options: Options,
}

type Leaves = HashMap<(ColumnKind, i64), Leaf>;

/// Of a part of the ring in Cassandra.
#[derive(Default)]
struct Part {
    leaves: Vec<(ColumnKind, i64, Leaf)>,
    /// Rows PostgreSQL cannot hold.
    misfits: Vec<RowKey>,
}

/// Of a table, while it is compared.
struct Comparison<'c> {
    reader: TableReader,
    mirror: Mirror,
    scope: &'c Scope,
    strategy: Strategy,
    progress: &'c Arc<Progress>,
    cancel: &'c CancellationToken,
    gaps: Vec<Gap>,
    findings: Vec<Finding>,
    classes: BTreeMap<Class, u64>,
    suspects: u64,
    in_motion: u64,
    repairs: Option<Repairs>,
}

impl Reconciler {
    pub fn new(cassandra: ClusterReader, target: Target, barrier: Arc<dyn Pass>, options: Options) -> Self {
        Self { cassandra, target, barrier, options }
    }

    /// Compares a table, or a part of it. Cancelled, it returns what it has, with the rest as gaps of the coverage.
    ///
    /// # Errors
    /// If a store cannot be used at all. A part of Cassandra that cannot be read is a gap.
    pub fn compare<'a>(
        &'a self,
        scope: &'a Scope,
        strategy: Strategy,
        progress: &'a Arc<Progress>,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Outcome, ReconcileError>> {
        Box::pin(async move {
            let (began_at, began) = (now().0, Instant::now());
            let mirror = self.target.mirror(Arc::clone(&scope.table)).await?;
            let fields = match strategy {
                Strategy::Checksum => Fields::Values,
                Strategy::Version => Fields::Times,
                Strategy::RowCount => Fields::Nothing,
            };
            let reader = self.cassandra.table(Arc::clone(mirror.schema()), fields, self.options.consistency).await?;
            let mut comparison = Comparison {
                reader,
                mirror,
                scope,
                strategy,
                progress,
                cancel,
                gaps: Vec::new(),
                findings: Vec::new(),
                classes: BTreeMap::new(),
                suspects: 0,
                in_motion: 0,
                repairs: None,
            };
            let (rows, unequal, misfits) = comparison.passes(self.options.parallel).await?;
            comparison.repairs = self.options.repair.map(|repair| repair.of(rows, &self.options.bounds));
            comparison.rows(self, unequal, misfits).await?;
            Ok(comparison.outcome(began_at, began.elapsed(), rows))
        })
    }
}

impl Comparison<'_> {
    /// Reads both stores whole. Returns leaves that differ with the rows they have, and rows PostgreSQL cannot hold.
    async fn passes(&mut self, parallel: usize) -> Result<(Rows, BTreeMap<i64, u64>, Vec<RowKey>), ReconcileError> {
        let parts: Vec<TokenRange> = self.scope.range.parts(parts(self.scope.range)).collect();
        self.progress.begin(Stage::Passes, parts.len());
        let stored = async {
            let mut leaves = Leaves::new();
            for kind in self.mirror.kinds() {
                let of_kind = self.mirror.leaves(self.strategy, kind, self.scope.range, SHIFT).await?;
                leaves.extend(of_kind.into_iter().map(|(leaf, sums)| ((kind, leaf), sums)));
            }
            Ok::<_, ReconcileError>(leaves)
        };
        let (read, stored) = tokio::join!(self.read_parts(parts, parallel), stored);
        let (source, misfits, gaps) = read;
        let stored = stored?;
        let count = |leaves: &Leaves| leaves.values().map(|leaf| leaf.rows).sum::<u64>();
        let rows = Rows { cassandra: count(&source) + misfits.len() as u64, postgres: count(&stored) };
        self.gaps.extend(gaps);
        let mut unequal: BTreeMap<i64, u64> = BTreeMap::new();
        for key in source.keys().chain(stored.keys()).collect::<BTreeSet<_>>() {
            let of = |leaves: &Leaves| leaves.get(key).copied().unwrap_or_default();
            let (source, stored) = (of(&source), of(&stored));
            if source != stored {
                *unequal.entry(key.1).or_default() += stored.rows;
            }
        }
        Ok((rows, unequal, misfits))
    }

    async fn read_parts(&self, parts: Vec<TokenRange>, parallel: usize) -> (Leaves, Vec<RowKey>, Vec<Gap>) {
        let mut waiting = parts.into_iter();
        let mut running = JoinSet::new();
        let (mut leaves, mut misfits, mut gaps) = (Leaves::new(), Vec::new(), Vec::new());
        loop {
            while running.len() < parallel.max(1) {
                let Some(range) = waiting.next() else { break };
                if self.cancel.is_cancelled() {
                    gaps.push(Gap { range, why: "CANCELLED".to_owned() });
                    continue;
                }
                let (reader, mirror) = (self.reader.clone(), self.mirror.clone());
                let (progress, cancel, strategy) = (Arc::clone(self.progress), self.cancel.clone(), self.strategy);
                running.spawn(async move {
                    (range, read_part(&reader, &mirror, strategy, range, &progress, &cancel).await)
                });
            }
            let Some(done) = running.join_next().await else { return (leaves, misfits, gaps) };
            let (range, part) = done.expect("a part neither panics nor is aborted");
            self.progress.add_done(1);
            match part {
                Ok(part) => {
                    for (kind, leaf, sums) in part.leaves {
                        leaves.entry((kind, leaf)).or_default().join(sums);
                    }
                    misfits.extend(part.misfits);
                }
                Err(why) => gaps.push(Gap { range, why }),
            }
        }
    }

    /// Reads leaves row by row, batch by batch, and settles what differs.
    async fn rows(
        &mut self,
        reconciler: &Reconciler,
        unequal: BTreeMap<i64, u64>,
        misfits: Vec<RowKey>,
    ) -> Result<(), ReconcileError> {
        self.progress.begin(Stage::Rows, unequal.len());
        let mut suspects: BTreeSet<RowKey> = misfits.into_iter().collect();
        let mut waiting = unequal.into_iter().peekable();
        loop {
            let mut batch = Vec::new();
            let mut size = 0;
            while let Some((leaf, rows)) =
                waiting.next_if(|(_, rows)| batch.is_empty() || size + rows <= ROWS_AT_A_TIME)
            {
                batch.push(leaf);
                size += rows;
            }
            if self.cancel.is_cancelled() {
                let gaps = batch.iter().filter_map(|leaf| self.tokens(*leaf, *leaf));
                let gaps: Vec<Gap> = gaps.map(|range| Gap { range, why: "CANCELLED".to_owned() }).collect();
                self.gaps.extend(gaps);
            } else if !batch.is_empty() {
                suspects.extend(self.differing(&batch).await?);
                self.progress.add_done(batch.len());
            }
            while suspects.len() >= SUSPECTS_AT_A_TIME || (!suspects.is_empty() && batch.is_empty()) {
                let rest = suspects.iter().nth(SUSPECTS_AT_A_TIME).cloned();
                let rest = rest.map(|first| suspects.split_off(&first)).unwrap_or_default();
                let keys: Vec<RowKey> = std::mem::replace(&mut suspects, rest).into_iter().collect();
                self.settle(reconciler, keys).await?;
            }
            if batch.is_empty() {
                return Ok(());
            }
        }
    }

    async fn settle(&mut self, reconciler: &Reconciler, keys: Vec<RowKey>) -> Result<(), ReconcileError> {
        self.suspects += keys.len() as u64;
        self.progress.add_suspects(keys.len());
        let settling =
            Settling { reader: &self.reader, mirror: &self.mirror, barrier: &*reconciler.barrier, cancel: self.cancel };
        let mut settled = settling.settle(keys).await?;
        if let (Some(repair), Some(repairs)) = (reconciler.options.repair, &mut self.repairs) {
            repair.carry_out(&reconciler.options.bounds, &settling, repairs, &mut settled.findings).await?;
        }
        self.in_motion += settled.in_motion;
        self.progress.add_findings(settled.findings.iter().filter(|finding| finding.class.is_drift()).count());
        for finding in settled.findings {
            *self.classes.entry(finding.class).or_default() += 1;
            // What was changed is told in any case.
            if self.findings.len() < reconciler.options.findings_max || finding.repaired {
                self.findings.push(finding);
            }
        }
        Ok(())
    }

    /// Rows of some leaves that are not the same on both sides.
    async fn differing(&mut self, leaves: &[i64]) -> Result<Vec<RowKey>, ReconcileError> {
        let mut stored: HashMap<(ColumnKind, i64), StoredRow> = HashMap::new();
        for kind in self.mirror.kinds() {
            let rows = self.mirror.rows(self.strategy, kind, self.scope.range, SHIFT, leaves).await?;
            stored.extend(rows.into_iter().map(|row| ((kind, row.hashed.key), row)));
        }
        let mut suspects = Vec::new();
        for run in runs(leaves) {
            let Some(range) = self.tokens(run.0, run.1) else { continue };
            let (mirror, strategy, progress) = (&self.mirror, self.strategy, self.progress);
            let mut differing = Vec::new();
            let scanned = self.reader.scan(
                range,
                |rows| {
                    progress.add_rows(rows);
                    true
                },
                |key, state| {
                    let version = state.newest_write().0;
                    let Some(hashed) = mirror.hash(strategy, key.clone(), state) else { return };
                    let is_same = stored.remove(&(key.kind(), hashed.key)).is_some_and(|row| match strategy {
                        Strategy::Checksum => row.hashed == hashed,
                        // Deletions make it newer than anything that can be read.
                        Strategy::Version => row.written_at >= version,
                        Strategy::RowCount => true,
                    });
                    if !is_same {
                        differing.push(mirror.canonical_key(key));
                    }
                },
            );
            match scanned.await {
                Ok(()) => suspects.extend(differing),
                Err(error) => {
                    self.gaps.push(Gap { range, why: describe(&error) });
                    stored.retain(|_, row| !is_in(range, token(&row.key.partition).0));
                }
            }
        }
        suspects.extend(stored.into_values().map(|row| row.key));
        Ok(suspects)
    }

    /// What leaves from one to another have of the scope.
    fn tokens(&self, first: i64, last: i64) -> Option<TokenRange> {
        let start = (first << SHIFT).saturating_sub(1).max(self.scope.range.start);
        let end = ((last << SHIFT) | ((1 << SHIFT) - 1)).min(self.scope.range.end);
        (start < end).then_some(TokenRange { start, end })
    }

    fn outcome(self, began_at: i64, took: Duration, rows: Rows) -> Outcome {
        let gaps = joined(self.gaps);
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let width = |range: TokenRange| range.width() as f64;
        let missing: f64 = gaps.iter().map(|gap| width(gap.range)).sum();
        let share = (1.0 - missing / width(self.scope.range).max(1.0)).clamp(0.0, 1.0);
        Outcome {
            table: self.scope.table.full_name(),
            strategy: self.strategy.name(),
            began_at,
            seconds: took.as_secs_f64(),
            rows,
            coverage: Coverage { share, gaps },
            classes: self.classes,
            findings: self.findings,
            suspects: self.suspects,
            in_motion: self.in_motion,
            repairs: self.repairs,
            hash: if self.mirror.is_native() { "native" } else { "portable" },
        }
    }
}

async fn read_part(
    reader: &TableReader,
    mirror: &Mirror,
    strategy: Strategy,
    range: TokenRange,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Part, String> {
    let mut part = Part::default();
    // Rows come in the order of their tokens, so one leaf of each kind is open at a time.
    let mut open: [Option<(i64, Leaf)>; 2] = [None, None];
    let kinds = [ColumnKind::Regular, ColumnKind::Static];
    let scanned = reader.scan(
        range,
        |rows| {
            progress.add_rows(rows);
            !cancel.is_cancelled()
        },
        |key, state| {
            let leaf = token(&key.partition).0 >> SHIFT;
            let place = usize::from(key.kind() == ColumnKind::Static);
            match mirror.hash(strategy, key.clone(), state) {
                None => part.misfits.push(mirror.canonical_key(key)),
                Some(hashed) => add(&mut open[place], leaf, hashed, |closed, sums| {
                    part.leaves.push((kinds[place], closed, sums));
                }),
            }
        },
    );
    scanned.await.map_err(|error| describe(&error))?;
    if cancel.is_cancelled() {
        return Err("CANCELLED".to_owned());
    }
    for (kind, open) in kinds.into_iter().zip(open) {
        part.leaves.extend(open.map(|(leaf, sums)| (kind, leaf, sums)));
    }
    Ok(part)
}

fn add(open: &mut Option<(i64, Leaf)>, leaf: i64, row: Hashed, mut close: impl FnMut(i64, Leaf)) {
    if let Some((known, sums)) = open.take_if(|(known, _)| *known != leaf) {
        close(known, sums);
    }
    open.get_or_insert_with(|| (leaf, Leaf::default())).1.add(row);
}

fn parts(range: TokenRange) -> u64 {
    let share = u128::from(RANGES) * u128::from(range.width()) / u128::from(TokenRange::RING.width());
    u64::try_from(share).unwrap_or(RANGES).max(RANGES_MIN)
}

fn is_in(range: TokenRange, token: i64) -> bool {
    range.start < token && token <= range.end
}

/// First and last of leaves that follow each other.
fn runs(leaves: &[i64]) -> Vec<(i64, i64)> {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for leaf in leaves {
        match runs.last_mut().filter(|(_, last)| last + 1 == *leaf) {
            Some((_, last)) => *last = *leaf,
            None => runs.push((*leaf, *leaf)),
        }
    }
    runs
}

/// Gaps in order, those that meet for the same reason as one.
fn joined(mut gaps: Vec<Gap>) -> Vec<Gap> {
    gaps.sort_by_key(|gap| gap.range);
    let mut joined: Vec<Gap> = Vec::new();
    for gap in gaps {
        match joined.last_mut().filter(|last| last.why == gap.why && last.range.end >= gap.range.start) {
            Some(last) => last.range.end = last.range.end.max(gap.range.end),
            None => joined.push(gap),
        }
    }
    joined
}

fn describe(error: &CassandraError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("READ_FAILED: {error}{}", cause.unwrap_or_default())
}
