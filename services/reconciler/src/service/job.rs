//! One job, under its lease: part by part of its tokens, each compared, repaired as far as that is wanted, and noted before
//! the next one begins. What is noted survives this process; what is not is done again by whoever takes the job up.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_model::{TableSchema, TokenRange};
use cdc_postgres::TargetError;
use cdc_postgres::ledger::{Claimed, Found, Gist, JobOptions, JobStrategy, Lease, RANGES, SampleWish, WrittenWish};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::engine::Unavailable;
use super::found;
use super::watch::Watch;
use super::{Service, figures};
use crate::scope::{SHIFT, tokens_of};
use crate::{Class, Gap, Only, Outcome, Repairs, Sample, Sampled, Scope, Written};

/// Between two renewals of a lease, and between a wish of somebody and its effect.
const RENEW: Duration = Duration::from_secs(1);
/// Without a renewal for so long, a lease is as good as lost.
const LEASE: Duration = Duration::from_secs(9);
/// A part is so many of [`RANGES`] at first, and twice as many each time one was done quickly: PostgreSQL reads its table once
/// or twice for each part, and a barrier may have to pass.
const FIRST: i32 = 4;
const QUICK: Duration = Duration::from_secs(20);
/// Why tokens were not read.
const CANCELLED: &str = "CANCELLED";
const TIME_BOX: &str = "TIME_BOX";

/// How this process is done with a job.
enum End {
    Finished(Gist),
    /// It is to be gone on with.
    Back,
    Lost,
}

/// What a job has come to.
struct Run<'r> {
    service: &'r Service,
    job: &'r Claimed,
    watch: &'r Arc<Watch>,
    strategy: JobStrategy,
    only: Only,
    options: JobOptions,
    /// Of [`RANGES`].
    done: i32,
    gaps: Vec<Gap>,
    repairs: Option<Repairs>,
    sampled: Option<Sampled>,
    unproven: u64,
}

/// Runs a job until it ends, pauses, or is another's.
pub(super) async fn run(service: &Service, job: &Claimed, stop: &CancellationToken) -> Result<(), TargetError> {
    let name = format!("{}.{}", job.keyspace, job.table);
    info!(job = %job.job, table = name, strategy = job.strategy, ranges_done = job.ranges_done, "a comparison begins");
    let watch = Arc::new(Watch::new(job));
    service.figures.begin(job.job, name.clone(), Arc::clone(&watch));
    let cancel = stop.child_token();
    let end = under_lease(service, job, &watch, &cancel, parts(service, job, &watch, &cancel)).await;
    service.figures.end(job.job);
    let lost =
        || error!(job = %job.job, table = name, "the job was taken for abandoned; another process goes on with it");
    match end? {
        End::Lost => lost(),
        End::Back => match service.ledger.put_job_back(job).await? {
            Some(status) => info!(job = %job.job, table = name, status, "a comparison has stopped, to be gone on with"),
            None => lost(),
        },
        End::Finished(gist) => {
            if !service.ledger.finish_job(job, &gist).await? {
                lost();
                return Ok(());
            }
            match gist.status {
                "COMPLETED" => info!(job = %job.job, table = name, "a comparison has ended"),
                status => {
                    warn!(job = %job.job, table = name, status, errors = ?gist.errors, "a comparison has not ended well")
                }
            }
        }
    }
    figures::look(service).await;
    Ok(())
}

/// Renews the lease while something runs, which is asked to end when the lease is lost or somebody wants it to end.
async fn under_lease<T>(
    service: &Service,
    job: &Claimed,
    watch: &Watch,
    cancel: &CancellationToken,
    running: impl Future<Output = T>,
) -> T {
    let mut running = std::pin::pin!(running);
    let mut tick = interval(RENEW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewed = Instant::now();
    loop {
        tokio::select! {
            done = &mut running => return done,
            _ = tick.tick() => {}
        }
        match service.ledger.renew_job(job.job, &watch.progress()).await {
            Ok(lease) => {
                renewed = Instant::now();
                watch.set_lease(lease);
            }
            Err(_) if renewed.elapsed() < LEASE => {}
            Err(_) => watch.set_lease(Lease::Lost),
        }
        if watch.lease() != Lease::Held {
            cancel.cancel();
        }
    }
}

async fn parts(
    service: &Service,
    job: &Claimed,
    watch: &Arc<Watch>,
    cancel: &CancellationToken,
) -> Result<End, TargetError> {
    let failed = |error: String| Ok(End::Finished(Gist { status: "FAILED", errors: vec![error], ..Gist::default() }));
    let Some(strategy) = JobStrategy::ALL.into_iter().find(|strategy| strategy.name() == job.strategy) else {
        return failed(format!("UNKNOWN_STRATEGY: this release does not know {}", job.strategy));
    };
    let unreadable = |error: serde_json::Error| format!("UNKNOWN_OPTIONS: another release has queued the job: {error}");
    let read = || -> Result<_, serde_json::Error> {
        let options: JobOptions = serde_json::from_value(job.options.clone())?;
        let repairs = job.repairs.clone().map(serde_json::from_value).transpose()?;
        let sampled = job.sample.clone().map(serde_json::from_value).transpose()?;
        Ok((options, serde_json::from_value(job.gaps.clone())?, repairs, sampled))
    };
    let (options, gaps, repairs, sampled) = match read() {
        Ok(read) => read,
        Err(error) => return failed(unreadable(error)),
    };
    let only = match (strategy, options.sample, options.written) {
        (JobStrategy::Checksum | JobStrategy::Version | JobStrategy::RowCount, ..) => Only::All,
        (JobStrategy::Sample, Some(SampleWish { percent, seed }), _) => Only::Sample(Sample { percent, seed }),
        (JobStrategy::TimestampRange, _, Some(WrittenWish { from, to })) => Only::Written(Written { from, to }),
        _ => return failed(format!("UNKNOWN_OPTIONS: a job by {} says not what of", job.strategy)),
    };
    let unproven = u64::try_from(job.unproven_rows).unwrap_or_default();
    let run =
        Run { service, job, watch, strategy, only, options, done: job.ranges_done, gaps, repairs, sampled, unproven };
    Box::pin(run.go_on(cancel)).await
}

impl Run<'_> {
    async fn go_on(mut self, cancel: &CancellationToken) -> Result<End, TargetError> {
        let began = Instant::now();
        let worked = Duration::try_from_secs_f64(self.job.worked_seconds).unwrap_or_default();
        let left = self.options.max_seconds.map(|seconds| Duration::from_secs(seconds).saturating_sub(worked));
        let mut width = FIRST;
        while self.done < RANGES {
            if left.is_some_and(|left| began.elapsed() >= left) {
                return Ok(self.cut_short("COMPLETED", TIME_BOX));
            }
            match self.watch.lease() {
                Lease::Lost => return Ok(End::Lost),
                Lease::Cancelled => return Ok(self.cut_short("CANCELLED", CANCELLED)),
                _ if cancel.is_cancelled() => return Ok(End::Back),
                Lease::Paused | Lease::Held => {}
            }
            // Not a small rest.
            let end = if RANGES - self.done - width < width / 2 { RANGES } else { self.done + width };
            let tokens = self.part(self.done, end);
            if tokens.start >= tokens.end {
                self.done = end;
                continue;
            }
            if self.drawn(tokens).is_some_and(|(_, drawn)| drawn.is_empty()) {
                self.done = end;
                let nothing = Found { gaps: json!([]), classes: json!({}), findings: json!([]), ..Found::default() };
                if !self.service.ledger.advance_job(self.job, self.done, &nothing).await? {
                    return Ok(End::Lost);
                }
                continue;
            }
            let part_began = Instant::now();
            self.watch.begin(self.done, end - self.done);
            let token = cancel.child_token();
            let mut outcome = {
                let mut comparing = std::pin::pin!(self.compare(tokens, &token));
                let time_is_up = async {
                    match left {
                        Some(left) => sleep(left.saturating_sub(began.elapsed())).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    outcome = &mut comparing => outcome,
                    () = time_is_up => {
                        token.cancel();
                        comparing.await
                    }
                }
            };
            let (outcome, table) = match &mut outcome {
                Ok((outcome, table)) => (outcome, table),
                Err(Unavailable(error)) => return Ok(self.failed(error.clone())),
            };
            let is_cut = token.is_cancelled()
                && (!outcome.coverage.gaps.is_empty() || outcome.classes.contains_key(&Class::Unproven));
            if is_cut && self.watch.lease() == Lease::Lost {
                return Ok(End::Lost);
            }
            // What is not whole is done again, but what was changed in it is told now.
            let is_again = is_cut && cancel.is_cancelled() && self.watch.lease() != Lease::Cancelled;
            if is_cut && !cancel.is_cancelled() {
                let cut = outcome.coverage.gaps.iter_mut().filter(|gap| gap.why == CANCELLED);
                cut.for_each(|gap| TIME_BOX.clone_into(&mut gap.why));
            }
            let seconds = part_began.elapsed();
            if is_again {
                found::keep_repaired(outcome);
            } else {
                self.done = end;
            }
            self.repairs = outcome.repairs.or(self.repairs);
            if let Some(sampled) = outcome.sample.filter(|_| !is_again) {
                self.sampled = Some(self.sampled.map_or(sampled, |before| before.join(sampled)));
            }
            self.gaps.extend(outcome.coverage.gaps.iter().cloned());
            self.unproven += outcome.classes.get(&Class::Unproven).copied().unwrap_or_default();
            let show = |finding| (self.service.settings.show_key)(table, finding);
            let keys: Vec<Value> = match self.service.settings.reconciler.show_keys {
                true => outcome.findings.iter().map(show).collect(),
                false => Vec::new(),
            };
            let tokens = Some(tokens).filter(|_| !is_cut);
            let mut found = found::of(outcome, self.strategy, keys, tokens);
            found.seconds = seconds.as_secs_f64();
            found.sample = self.sampled.map(|sampled| json!(sampled));
            if !self.service.ledger.advance_job(self.job, self.done, &found).await? {
                return Ok(End::Lost);
            }
            self.watch.end(self.done, found.cassandra_rows, seconds);
            if seconds < QUICK {
                width = width.saturating_mul(2);
            }
        }
        Ok(self.finished())
    }

    fn tokens(&self) -> TokenRange {
        TokenRange { start: self.job.range_start, end: self.job.range_end }
    }

    /// Some of [`RANGES`]; of a sample, no leaf is of two parts.
    fn part(&self, from: i32, to: i32) -> TokenRange {
        let leaf_bits = if matches!(self.only, Only::Sample(_)) { SHIFT } else { 0 };
        part(self.tokens(), from, to, leaf_bits)
    }

    /// Leaves of some tokens that a sample has drawn.
    fn drawn(&self, tokens: TokenRange) -> Option<(Sample, Vec<i64>)> {
        match self.only {
            Only::Sample(sample) => Some((sample, sample.leaves_in(self.tokens(), tokens))),
            Only::All | Only::Written(_) => None,
        }
    }

    /// Compares some of the job's tokens, and repairs in them what it may.
    async fn compare(
        &self,
        tokens: TokenRange,
        cancel: &CancellationToken,
    ) -> Result<(Outcome, Arc<TableSchema>), Unavailable> {
        let Self { service, job, .. } = self;
        let table = service.engine().table(service, &job.keyspace, &job.table).await?;
        let mut repair = None;
        if let Some(wish) = &self.options.repair {
            let ignored = service.ledger.ignored(&job.keyspace, &job.table, tokens).await;
            let ignored = ignored.map_err(|error| Unavailable(error.to_string()))?;
            #[expect(clippy::cast_precision_loss, reason = "a share")]
            let scale = self.tokens().width() as f64 / tokens.width().max(1) as f64;
            repair = Some(found::repair(wish, ignored, self.repairs, scale)?);
        }
        let progress = self.watch.part();
        let scope = Scope::new(Arc::clone(&table), self.tokens()).only(self.only).part(tokens);
        let outcome =
            service.engine().compare(service, &scope, self.strategy.compares(), repair, &progress, cancel).await?;
        Ok((outcome, table))
    }

    /// Leaves the rest.
    fn cut_short(mut self, status: &'static str, why: &str) -> End {
        self.leave_the_rest(why);
        let gist = self.gist(status, Vec::new());
        End::Finished(gist)
    }

    fn failed(mut self, error: String) -> End {
        if self.done == 0 {
            return End::Finished(Gist { status: "FAILED", errors: vec![error], ..Gist::default() });
        }
        self.leave_the_rest("FAILED");
        let gist = self.gist("FAILED", vec![error]);
        End::Finished(gist)
    }

    fn finished(self) -> End {
        let has = |why: &str| self.gaps.iter().any(|gap| gap.why == why);
        let status = match () {
            () if has(CANCELLED) => "CANCELLED",
            () if self.gaps.iter().all(|gap| gap.why == TIME_BOX) => "COMPLETED",
            () => "FAILED",
        };
        End::Finished(self.gist(status, Vec::new()))
    }

    fn leave_the_rest(&mut self, why: &str) {
        let range = self.part(self.done, RANGES);
        if let Some((sample, drawn)) = self.drawn(range) {
            let unread = sample.unread(range, &drawn);
            self.sampled = Some(self.sampled.map_or(unread, |before| before.join(unread)));
        }
        self.gaps.push(Gap { range, why: why.to_owned() });
    }

    fn gist(&self, status: &'static str, errors: Vec<String>) -> Gist {
        let whole = self.tokens();
        let asked = self.drawn(whole).map_or_else(|| vec![whole], |(_, drawn)| tokens_of(whole, &drawn));
        let sample = self.sampled.map(|sampled| json!(sampled));
        Gist { sample, ..found::gist(&asked, self.gaps.clone(), self.unproven, status, errors) }
    }
}

/// Some of [`RANGES`] equal parts of a range, each up to where the highest bits of its tokens change; empty where there are
/// fewer tokens than parts.
fn part(range: TokenRange, from: i32, to: i32, leaf_bits: u8) -> TokenRange {
    let bound = |at: i32| {
        let share = u128::try_from(at.clamp(0, RANGES)).unwrap_or_default();
        let offset = u128::from(range.width()) * share / u128::from(RANGES.unsigned_abs());
        let bound = range.start.wrapping_add_unsigned(u64::try_from(offset).unwrap_or(u64::MAX));
        match at {
            ..=0 | RANGES.. => bound,
            _ => (((bound.saturating_add(1) >> leaf_bits) << leaf_bits).saturating_sub(1)).max(range.start),
        }
    };
    TokenRange { start: bound(from), end: bound(to) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_of_a_range_and_meet_and_share_no_leaf() {
        for range in [
            TokenRange::RING,
            TokenRange { start: -1, end: 0 },
            TokenRange { start: i64::MAX - 1, end: i64::MAX },
            TokenRange { start: 5, end: 100 },
            TokenRange { start: i64::MIN, end: i64::MIN + 100 },
            TokenRange { start: -(777 << SHIFT) + 5, end: (999 << SHIFT) + 7 },
        ] {
            for leaf_bits in [0, SHIFT] {
                let mut at = range.start;
                for from in 0..RANGES {
                    let one = part(range, from, from + 1, leaf_bits);
                    assert!(one.start == at && one.end >= at, "{range:?} {one:?}");
                    let is_apart = one.end == range.end || one.end == range.start || (one.end + 1) % (1 << SHIFT) == 0;
                    assert!(leaf_bits == 0 || is_apart, "{range:?} {one:?}");
                    at = one.end;
                }
                assert_eq!(at, range.end);
                assert_eq!(part(range, 0, RANGES, leaf_bits), range);
            }
        }
    }
}
