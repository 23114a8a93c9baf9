//! The passes over both stores, and what they leave to be settled.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_cassandra::{CassandraError, ClusterReader, Consistency, Fields, TableReader};
use cdc_model::{ColumnKind, RowKey, TableSchema, TokenRange, WriteTime, token};
use cdc_postgres::{Hashed, Leaf, Mirror, Part, StoredRow, Strategy, Target, TargetError};
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::progress::{Progress, Stage};
use crate::sample::Tally;
use crate::scope::{SHIFT, Written, is_in, joined, runs};
use crate::settle::{Settling, now};
use crate::{Class, Coverage, Finding, Gap, Only, Outcome, Repair, RepairBounds, Repairs, Rows, Scope};

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
struct Folded {
    leaves: Vec<(ColumnKind, i64, Leaf)>,
    /// Rows PostgreSQL cannot hold.
    misfits: Vec<RowKey>,
}

/// Of a table, while it is compared.
struct Comparison<'c> {
    reader: TableReader,
    mirror: Mirror,
    scope: &'c Scope,
    /// Of a sample.
    drawn: Option<Vec<i64>>,
    strategy: Strategy,
    progress: &'c Arc<Progress>,
    cancel: &'c CancellationToken,
    gaps: Vec<Gap>,
    findings: Vec<Finding>,
    classes: BTreeMap<Class, u64>,
    suspects: u64,
    in_motion: u64,
    repairs: Option<Repairs>,
    tally: Tally,
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
            let fields = match (strategy, scope.written()) {
                (Strategy::Checksum, None) => Fields::Values,
                (Strategy::Checksum, Some(_)) => Fields::All,
                (Strategy::RowCount, None) => Fields::Nothing,
                (Strategy::Version, _) | (Strategy::RowCount, Some(_)) => Fields::Times,
            };
            let reader = self.cassandra.table(Arc::clone(mirror.schema()), fields, self.options.consistency).await?;
            let mut comparison = Comparison {
                reader,
                mirror,
                scope,
                drawn: scope.drawn(),
                strategy,
                progress,
                cancel,
                gaps: Vec::new(),
                findings: Vec::new(),
                classes: BTreeMap::new(),
                suspects: 0,
                in_motion: 0,
                repairs: None,
                tally: Tally::default(),
            };
            let (rows, unequal, misfits) = comparison.passes(self.options.parallel).await?;
            comparison.repairs = self.options.repair.map(|repair| repair.of(rows, &self.options.bounds));
            comparison.rows(self, unequal, misfits).await?;
            Ok(comparison.outcome(began_at, began.elapsed(), rows))
        })
    }
}

impl Comparison<'_> {
    /// Reads both stores. Returns leaves that differ with the rows they have, and rows PostgreSQL cannot hold.
    async fn passes(&mut self, parallel: usize) -> Result<(Rows, BTreeMap<i64, u64>, Vec<RowKey>), ReconcileError> {
        let parts = self.scope.parts(self.drawn.as_deref());
        self.progress.begin(Stage::Passes, parts.len());
        let written = self.scope.written().map(|Written { from, to }| (from, to));
        let part = Part { range: self.scope.range, leaves: self.drawn.as_deref(), written };
        let stored = async {
            let mut leaves = Leaves::new();
            for kind in self.mirror.kinds() {
                let of_kind = self.mirror.leaves(self.strategy, kind, part, SHIFT).await?;
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
        for key in &misfits {
            self.tally.with_rows.insert(token(&key.partition).0 >> SHIFT);
        }
        let mut unequal: BTreeMap<i64, u64> = BTreeMap::new();
        for key in source.keys().chain(stored.keys()).collect::<BTreeSet<_>>() {
            let of = |leaves: &Leaves| leaves.get(key).copied().unwrap_or_default();
            let (source, stored) = (of(&source), of(&stored));
            self.tally.with_rows.insert(key.1);
            self.tally.largest = self.tally.largest.max(source.rows).max(stored.rows);
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
                let (progress, cancel) = (Arc::clone(self.progress), self.cancel.clone());
                let (strategy, written) = (self.strategy, self.scope.written());
                running.spawn(async move {
                    (range, read_part(&reader, &mirror, (strategy, written), range, &progress, &cancel).await)
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
                let gaps = batch.iter().filter_map(|leaf| self.scope.tokens(*leaf, *leaf));
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
            repair.carry_out(&reconciler.options.bounds, &settling, repairs, &mut settled.findings).await;
        }
        self.in_motion += settled.in_motion;
        self.progress.add_findings(settled.findings.iter().filter(|finding| finding.class.is_drift()).count());
        for finding in settled.findings {
            self.tally.found(finding.token, finding.class.is_drift());
            *self.classes.entry(finding.class).or_default() += 1;
            // What was changed is told in any case.
            if self.findings.len() < reconciler.options.findings_max || finding.repaired || finding.attempted {
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
        let written = self.scope.written();
        // Either store may be the one that knows of the write.
        let is_wanted = |time| written.is_none_or(|written| written.admits(time));
        let mut suspects = Vec::new();
        for run in runs(leaves) {
            let Some(range) = self.scope.tokens(run.0, run.1) else { continue };
            let (mirror, strategy, progress) = (&self.mirror, self.strategy, self.progress);
            let mut differing = Vec::new();
            let scanned = self.reader.scan(
                range,
                |rows| {
                    progress.add_rows(rows);
                    true
                },
                |key, state| {
                    let version = state.newest_write();
                    let Some(hashed) = mirror.hash(strategy, key.clone(), state) else { return };
                    let row = stored.remove(&(key.kind(), hashed.key));
                    let is_same = row.as_ref().is_some_and(|row| match strategy {
                        Strategy::Checksum => row.hashed == hashed,
                        // Deletions make it newer than anything that can be read.
                        Strategy::Version => row.written_at >= version.0,
                        Strategy::RowCount => true,
                    });
                    if !is_same && (is_wanted(version) || row.is_some_and(|row| is_wanted(WriteTime(row.written_at)))) {
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
        let extra = stored.into_values().filter(|row| is_wanted(WriteTime(row.written_at)));
        suspects.extend(extra.map(|row| row.key));
        Ok(suspects)
    }

    fn outcome(mut self, began_at: i64, took: Duration, rows: Rows) -> Outcome {
        let gaps = joined(self.gaps);
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let width = |range: TokenRange| range.width() as f64;
        let missing: f64 = gaps.iter().map(|gap| width(gap.range)).sum();
        let asked: f64 = self.scope.parts(self.drawn.as_deref()).into_iter().map(width).sum();
        let share = (1.0 - missing / asked.max(1.0)).clamp(0.0, 1.0);
        gaps.iter().for_each(|gap| self.tally.gap(gap.range));
        let (sample, strategy) = match (self.scope.only, &self.drawn) {
            (Only::Sample(sample), Some(drawn)) => {
                (Some(self.tally.sampled(sample, self.scope.range, drawn)), "SAMPLE")
            }
            (Only::Written(_), _) => (None, "TIMESTAMP_RANGE"),
            (Only::All | Only::Sample(_), _) => (None, self.strategy.name()),
        };
        Outcome {
            table: self.scope.table.full_name(),
            strategy,
            range: self.scope.range,
            sample,
            written: self.scope.written(),
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
    (strategy, written): (Strategy, Option<Written>),
    range: TokenRange,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Folded, String> {
    let mut part = Folded::default();
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
            if written.is_some_and(|written| !written.admits(state.newest_write())) {
                return;
            }
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

fn describe(error: &CassandraError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("READ_FAILED: {error}{}", cause.unwrap_or_default())
}
