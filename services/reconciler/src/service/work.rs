//! Jobs and replays, one of each at a time.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdc_postgres::ledger::{Claimed, ClaimedReplay, Found, Gist, Lease, Ledger, Tally};
use cdc_postgres::{Replayed, Strategy, TargetError};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::engine::{Engine, Unavailable};
use super::{Service, Shared, figures};
use crate::{Class, Outcome, Progress};

/// Between two looks for work; somebody who asks this process is not kept waiting.
const IDLE: Duration = Duration::from_secs(1);
/// Between two renewals of a lease, and between a wish to cancel and its effect.
const RENEW: Duration = Duration::from_secs(1);
/// Without a renewal for so long, a lease is as good as lost.
const LEASE: Duration = Duration::from_secs(9);
/// Letters between two notes of how far a replay is.
const LETTERS: usize = 100;
/// Letters a second of a replay that is `rate_limited`.
const LETTERS_PER_SECOND: usize = 10;

impl Service {
    fn engine(&self) -> &Engine {
        self.engine.get().expect("work begins with an engine")
    }
}

/// Runs jobs until it is stopped.
pub(super) async fn jobs(service: Shared, stop: CancellationToken) -> anyhow::Result<()> {
    let mut failing = false;
    while !stop.is_cancelled() {
        let worked = next_job(&service, &stop).await;
        pause(&service, &stop, worked, &mut failing).await;
    }
    Ok(())
}

/// Replays dead letters until it is stopped.
pub(super) async fn replays(service: Shared, stop: CancellationToken) -> anyhow::Result<()> {
    let mut failing = false;
    while !stop.is_cancelled() {
        let worked = next_replay(&service, &stop).await;
        pause(&service, &stop, worked, &mut failing).await;
    }
    Ok(())
}

/// Waits for more work, unless there may be more already. What PostgreSQL did not take is tried again.
async fn pause(service: &Service, stop: &CancellationToken, worked: Result<bool, TargetError>, failing: &mut bool) {
    match worked {
        Ok(true) => return,
        Ok(false) if std::mem::take(failing) => info!("PostgreSQL answers again"),
        Ok(false) => {}
        Err(error) if *failing => tracing::debug!(%error, "trying again"),
        Err(error) => {
            warn!(%error, "work cannot be looked for, or not be noted as done; trying again");
            *failing = true;
        }
    }
    tokio::select! {
        () = stop.cancelled() => {}
        () = service.work.notified() => {}
        () = sleep(IDLE) => {}
    }
}

/// Whether there was one.
async fn next_job(service: &Service, stop: &CancellationToken) -> Result<bool, TargetError> {
    for job in service.ledger.fail_interrupted().await? {
        warn!(%job, "the reconciler that ran it has ended; the job has failed");
    }
    let config = &service.settings.reconciler;
    if let Some(every) = config.every().filter(|_| config.enabled) {
        let every = i64::try_from(every.as_secs()).unwrap_or(i64::MAX);
        service.ledger.schedule(&service.tables().await?, config.strategy, every).await?;
    }
    let Some(job) = service.ledger.claim_job().await? else { return Ok(false) };
    Box::pin(run(service, &job, stop)).await.map(|()| true)
}

/// Whether there was one.
async fn next_replay(service: &Service, stop: &CancellationToken) -> Result<bool, TargetError> {
    let Some(replay) = service.ledger.claim_replay().await? else { return Ok(false) };
    Box::pin(go_on(service, &replay, stop)).await.map(|()| true)
}

/// Runs a job under its lease and notes what came out of it.
async fn run(service: &Service, job: &Claimed, stop: &CancellationToken) -> Result<(), TargetError> {
    let name = format!("{}.{}", job.keyspace, job.table);
    info!(job = %job.job, table = name, strategy = job.strategy, "a comparison begins");
    let progress = Arc::new(Progress::default());
    service.figures.running(Some((job.job, name.clone(), Arc::clone(&progress))));
    let cancel = stop.child_token();
    let comparing = compare(service, job, &progress, &cancel);
    let (gist, lease) = under_lease(&service.ledger, job, &cancel, comparing).await;
    service.figures.running(None);
    let mut gist = gist;
    if lease == Lease::Cancelled && gist.status == "FAILED" {
        gist.status = "CANCELLED";
    } else if stop.is_cancelled() && gist.status == "FAILED" {
        gist.errors.insert(0, "INTERRUPTED: the reconciler was stopped".to_owned());
    }
    if lease == Lease::Lost || !service.ledger.finish_job(job, &gist).await? {
        error!(job = %job.job, table = name, "the job was taken for abandoned; what it has found is not kept");
        return Ok(());
    }
    figures::look(service).await;
    let drift = gist.found.as_ref().map_or(0, |found| found.drift_rows);
    match gist.status {
        "COMPLETED" if drift == 0 => info!(job = %job.job, table = name, "a comparison has ended, nothing is wrong"),
        "COMPLETED" => warn!(job = %job.job, table = name, rows = drift, "a comparison has ended, rows are wrong"),
        status => warn!(job = %job.job, table = name, status, errors = ?gist.errors, "a comparison has not ended well"),
    }
    Ok(())
}

/// Renews the lease while something runs, which is asked to end when the lease is lost or somebody wants it to end.
async fn under_lease(
    ledger: &Ledger,
    job: &Claimed,
    cancel: &CancellationToken,
    running: impl Future<Output = Gist>,
) -> (Gist, Lease) {
    let mut running = std::pin::pin!(running);
    let mut tick = interval(RENEW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewed = Instant::now();
    let mut lease = Lease::Held;
    loop {
        tokio::select! {
            gist = &mut running => return (gist, lease),
            _ = tick.tick() => {}
        }
        match ledger.renew_job(job.job).await {
            // A wish is not taken back.
            Ok(Lease::Held) => renewed = Instant::now(),
            Ok(other) => {
                renewed = Instant::now();
                lease = other;
            }
            Err(_) if renewed.elapsed() < LEASE => {}
            Err(_) => lease = Lease::Lost,
        }
        if lease != Lease::Held {
            cancel.cancel();
        }
    }
}

async fn compare(service: &Service, job: &Claimed, progress: &Arc<Progress>, cancel: &CancellationToken) -> Gist {
    let failed = |error: String| Gist { status: "FAILED", errors: vec![error], found: None };
    let Some(strategy) = Strategy::ALL.into_iter().find(|strategy| strategy.name() == job.strategy) else {
        return failed(format!("UNKNOWN_STRATEGY: this release does not know {}", job.strategy));
    };
    let asked = async {
        let table = service.engine().table(service, &job.keyspace, &job.table).await?;
        let outcome = service.engine().compare(service, &table, strategy, progress, cancel).await?;
        let keys: Vec<Value> = match service.settings.reconciler.show_keys {
            true => outcome.findings.iter().map(|one| (service.settings.show_key)(&table, one)).collect(),
            false => Vec::new(),
        };
        Ok(gist(&outcome, strategy, keys))
    };
    match Box::pin(asked).await {
        Ok(gist) => gist,
        Err(Unavailable(error)) => failed(error),
    }
}

/// What is kept of an outcome.
fn gist(outcome: &Outcome, strategy: Strategy, keys: Vec<Value>) -> Gist {
    let count = |rows: u64| i64::try_from(rows).unwrap_or(i64::MAX);
    let unproven = outcome.classes.get(&Class::Unproven).copied().unwrap_or_default();
    let mut errors: Vec<String> = outcome
        .coverage
        .gaps
        .iter()
        .map(|gap| format!("NOT_PROVEN: tokens {}:{}: {}", gap.range.start, gap.range.end, gap.why))
        .collect();
    if unproven > 0 {
        errors.push(format!("UNPROVEN: {unproven} rows could be proven neither right nor wrong"));
    }
    let is_whole = outcome.coverage.gaps.is_empty();
    let all_kept = u64::try_from(outcome.findings.len()) == Ok(outcome.classes.values().sum());
    // Of a row that never stood still it is not known which one it was.
    let disproves = if is_whole && all_kept && outcome.in_motion == 0 { disproved_by(strategy) } else { &[] };
    let mut findings = serde_json::to_value(&outcome.findings).expect("findings are plain data");
    for (finding, key) in findings.as_array_mut().into_iter().flatten().zip(keys) {
        finding["primary_key_value"] = key;
    }
    Gist {
        status: if is_whole { "COMPLETED" } else { "FAILED" },
        errors,
        found: Some(Found {
            cassandra_rows: count(outcome.rows.cassandra),
            postgres_rows: count(outcome.rows.postgres),
            drift_rows: count(outcome.drift()),
            drift_percentage: outcome.drift_percentage(),
            unproven_rows: count(unproven),
            in_motion: count(outcome.in_motion),
            classes: json!(outcome.classes),
            coverage: outcome.coverage.share,
            gaps: json!(outcome.coverage.gaps),
            findings,
            disproves: disproves.iter().map(|class| name(*class)).collect(),
        }),
    }
}

/// Classes of which a row is right if the strategy finds nothing wrong with it.
fn disproved_by(strategy: Strategy) -> &'static [Class] {
    use Class::{ExpiredNotRemoved, Extra, InDlq, MissingInPostgres, Stale, TargetAhead, ValueDiffers};
    match strategy {
        Strategy::Checksum => &[MissingInPostgres, Extra, Stale, ValueDiffers, InDlq, ExpiredNotRemoved, TargetAhead],
        // The newest write time alone does not tell of an older cell that was lost.
        Strategy::Version | Strategy::RowCount => &[MissingInPostgres, Extra],
    }
}

/// As it is serialised.
fn name(class: Class) -> String {
    json!(class).as_str().unwrap_or_default().to_owned()
}

/// Goes on with a replay until it is done, stopped, or another's.
async fn go_on(service: &Service, replay: &ClaimedReplay, stop: &CancellationToken) -> Result<(), TargetError> {
    let limited = replay.strategy == "rate_limited";
    for ids in replay.letters.chunks(if limited { LETTERS_PER_SECOND } else { LETTERS }) {
        if stop.is_cancelled() {
            return service.ledger.put_replay_back(replay.replay, "the reconciler was stopped").await;
        }
        let began = Instant::now();
        let mut tally = Tally::default();
        let complain = |problem| warn!(replay = %replay.replay, problem, "dead letters");
        let replaying = service.engine().letters.replay(ids, replay.dry_run, complain, |_, outcome| match outcome {
            Replayed::Applied => tally.applied += 1,
            Replayed::Superseded => tally.superseded += 1,
            Replayed::Refused(_) => tally.refused += 1,
            Replayed::Settled => tally.settled += 1,
        });
        let replayed = Box::pin(replaying).await;
        if !service.ledger.advance_replay(replay.replay, tally).await? {
            return Ok(());
        }
        if let Err(error) = replayed {
            warn!(replay = %replay.replay, %error, "a replay cannot go on; trying again");
            return service.ledger.put_replay_back(replay.replay, &error.to_string()).await;
        }
        if limited {
            stop.run_until_cancelled(sleep(Duration::from_secs(1).saturating_sub(began.elapsed()))).await;
        }
    }
    service.ledger.finish_replay(replay.replay).await?;
    info!(replay = %replay.replay, letters = replay.letters.len(), "a replay of dead letters has ended");
    Ok(())
}
