//! Comparisons, repairs of single rows, and replays, one of each at a time; and forgetting what is over.

use std::time::{Duration, Instant};

use cdc_postgres::ledger::{ClaimedReplay, Pruned, Tally};
use cdc_postgres::{Replayed, TargetError};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::engine::Engine;
use super::{Service, Shared, job};

/// Between two looks for work; somebody who asks this process is not kept waiting.
const IDLE: Duration = Duration::from_secs(1);
/// Between two looks for what is older than the retention.
const PRUNE: Duration = Duration::from_secs(6 * 3_600);
/// Letters between two notes of how far a replay is.
const LETTERS: usize = 100;
/// Letters a second of a replay that is `rate_limited`.
const LETTERS_PER_SECOND: usize = 10;

impl Service {
    pub(super) fn engine(&self) -> &Engine {
        self.engine.get().expect("work begins with an engine")
    }
}

/// Runs comparisons until it is stopped.
pub(super) async fn jobs(service: Shared, stop: CancellationToken) -> anyhow::Result<()> {
    let mut failing = false;
    while !stop.is_cancelled() {
        let worked = next_job(&service, &stop).await;
        pause(&service, &stop, worked, &mut failing).await;
    }
    Ok(())
}

/// Repairs single rows until it is stopped; whoever asks for that is not kept waiting by a comparison.
pub(super) async fn repairs(service: Shared, stop: CancellationToken) -> anyhow::Result<()> {
    let mut failing = false;
    while !stop.is_cancelled() {
        let worked = claim(&service, true, &stop).await;
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

/// Forgets what is over, until it is stopped.
pub(super) async fn retention(service: Shared, stop: CancellationToken) -> anyhow::Result<()> {
    let retention = service.settings.reconciler.retention.parsed();
    while !stop.is_cancelled() {
        match service.ledger.prune(&retention).await {
            Ok(pruned) => {
                if pruned != Pruned::default() {
                    info!(?pruned, "what is older than the retention was removed");
                }
                if pruned.is_partial() {
                    continue;
                }
            }
            Err(error) => warn!(%error, "what is older than the retention cannot be removed; trying again later"),
        }
        stop.run_until_cancelled(sleep(PRUNE)).await;
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
    for (job, status) in service.ledger.take_back_jobs().await? {
        warn!(%job, status, "the reconciler that ran it has ended");
    }
    claim(service, false, stop).await
}

async fn claim(service: &Service, repairs: bool, stop: &CancellationToken) -> Result<bool, TargetError> {
    let Some(job) = service.ledger.claim_job(repairs).await? else { return Ok(false) };
    Box::pin(job::run(service, &job, stop)).await.map(|()| true)
}

/// Whether there was one.
async fn next_replay(service: &Service, stop: &CancellationToken) -> Result<bool, TargetError> {
    let Some(replay) = service.ledger.claim_replay().await? else { return Ok(false) };
    Box::pin(go_on(service, &replay, stop)).await.map(|()| true)
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
