//! When tables are compared without anybody asking: by `reconciler.every`, the whole ring of each; by `reconciler.schedules`, at the
//! times of cron expressions.
//!
//! Any number of processes keep the same calendar: the time of a table is the expression's and a delay that follows from both their
//! names, and PostgreSQL knows which of these times were used. A time that passes while the table has a job waits for the end of
//! that; of several that pass, one is left. So nothing piles up, and nothing is missed for good.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdc_postgres::TargetError;
use cdc_postgres::ledger::{JobOptions, JobStrategy, SampleWish, Scheduled, Slot, WrittenWish};
use chrono::{DateTime, Utc};
use croner::Cron;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::config::ScheduleConfig;
use super::{Service, Shared};

/// Between two looks.
const TICK: Duration = Duration::from_secs(1);

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

pub(super) fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// As the API writes times.
fn shown(seconds: i64) -> String {
    time(seconds).format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Times of an expression for one table, seconds since 1970.
struct Times<'c> {
    cron: &'c Cron,
    delay: i64,
}

impl<'c> Times<'c> {
    fn new(cron: &'c Cron, text: &str, table: &str, jitter: Duration) -> Self {
        let digest = Sha256::new_with_prefix(text).chain_update([0]).chain_update(table).finalize();
        let number = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let delay = number % (jitter.as_secs() + 1);
        Self { cron, delay: i64::try_from(delay).unwrap_or_default() }
    }

    fn after(&self, seconds: i64) -> Option<i64> {
        let next = self.cron.find_next_occurrence(&time(seconds - self.delay), false).ok()?;
        Some(next.timestamp() + self.delay)
    }

    /// The last one that is not after now, if any is since then.
    fn due(&self, since: i64, now: i64) -> Option<i64> {
        let last = self.cron.find_previous_occurrence(&time(now - self.delay), true).ok()?;
        Some(last.timestamp() + self.delay).filter(|last| *last > since)
    }
}

/// For each schedule and table the last time that was used, or from when on its times count.
#[derive(Default)]
pub(super) struct Calendar(Mutex<HashMap<(usize, String), i64>>);

impl Calendar {
    fn get(&self, schedule: usize, table: &str) -> Option<i64> {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.get(&(schedule, table.to_owned())).copied()
    }

    fn set(&self, schedule: usize, table: &str, used: i64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((schedule, table.to_owned()), used);
    }
}

/// Queues what is due until it is stopped.
pub(super) async fn keep(service: Shared, stop: CancellationToken) -> anyhow::Result<()> {
    if !service.settings.reconciler.enabled {
        stop.cancelled().await;
    }
    let mut failing = false;
    while !stop.is_cancelled() {
        match tick(&service).await {
            Ok(()) => failing = false,
            Err(error) if failing => tracing::debug!(%error, "trying again"),
            Err(error) => {
                warn!(%error, "what is scheduled cannot be queued; trying again");
                failing = true;
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(TICK)).await;
    }
    Ok(())
}

async fn tick(service: &Service) -> Result<(), TargetError> {
    let config = &service.settings.reconciler;
    let mut new = 0;
    if let Some(every) = config.every() {
        let every = i64::try_from(every.as_secs()).unwrap_or(i64::MAX);
        let options = config.job_options(None, None, None);
        new += service.ledger.schedule(&service.tables().await?, config.strategy.into(), every, &options).await?;
    }
    for (at, schedule) in config.schedules.iter().enumerate() {
        let Some(cron) = schedule.parsed() else { continue };
        for (keyspace, table) in service.scheduled(schedule).await? {
            new += u64::from(queue(service, (at, schedule, &cron), &keyspace, &table).await?);
        }
    }
    if new > 0 {
        service.work.notify_waiters();
    }
    Ok(())
}

/// Whether a job was queued.
async fn queue(
    service: &Service,
    (at, schedule, cron): (usize, &ScheduleConfig, &Cron),
    keyspace: &str,
    table: &str,
) -> Result<bool, TargetError> {
    let config = &service.settings.reconciler;
    let (name, strategy) = (format!("{keyspace}.{table}"), config.strategy_of(schedule));
    let used = match service.calendar.get(at, &name) {
        Some(used) => used,
        // A time that no process was there for is made up for, once; times before it was scheduled at all are not.
        None => {
            let last = service.ledger.last_slot(keyspace, table, &schedule.cron, strategy).await?;
            let used = last.unwrap_or_else(now);
            service.calendar.set(at, &name, used);
            used
        }
    };
    let times = Times::new(cron, &schedule.cron, &name, config.jitter());
    let Some(due) = times.due(used, now()) else { return Ok(false) };
    let options = options(service, schedule, strategy, due);
    let slot = Slot { keyspace, table, schedule: &schedule.cron, at: due, strategy, options };
    let scheduled = service.ledger.schedule_slot(&slot).await?;
    if scheduled == Scheduled::Busy {
        return Ok(false);
    }
    service.calendar.set(at, &name, due);
    if scheduled == Scheduled::New {
        info!(table = name, cron = schedule.cron, strategy = strategy.name(), "a comparison is due");
    }
    Ok(scheduled == Scheduled::New)
}

fn options(service: &Service, schedule: &ScheduleConfig, strategy: JobStrategy, due: i64) -> JobOptions {
    let within = i64::try_from(schedule.written_within().as_secs()).unwrap_or(i64::MAX);
    let micros = |seconds: i64| seconds.saturating_mul(1_000_000);
    JobOptions {
        sample: (strategy == JobStrategy::Sample)
            .then(|| SampleWish { percent: schedule.sample_percent(), seed: rand::random() }),
        written: (strategy == JobStrategy::TimestampRange)
            .then(|| WrittenWish { from: micros(due.saturating_sub(within)), to: micros(due) }),
        ..service.settings.reconciler.job_options(None, None, schedule.max_seconds)
    }
}

/// What is scheduled, and when each of it comes next.
pub(super) async fn list(service: &Service) -> Result<Vec<Value>, TargetError> {
    let config = &service.settings.reconciler;
    let mut list = Vec::new();
    if !config.enabled {
        return Ok(list);
    }
    let line =
        |(keyspace, table): &(String, String), every: Option<&str>, cron: Option<&str>, strategy: JobStrategy| {
            json!({"keyspace": keyspace, "table_name": table, "every": every, "cron": cron,
            "validation_strategy": strategy.name()})
        };
    if let Some((every, text)) = config.every().zip(config.every.as_deref()) {
        let (tables, strategy) = (service.tables().await?, config.strategy.into());
        let every = i64::try_from(every.as_secs()).unwrap_or(i64::MAX);
        let due = service.ledger.due(&tables, strategy, every).await?;
        for (table, due) in tables.iter().zip(due) {
            let now = shown(now());
            let mut line = line(table, Some(text), None, strategy);
            line["is_due"] = due.as_ref().is_none_or(|due| *due <= now).into();
            line["next_run_at"] = due.unwrap_or(now).into();
            list.push(line);
        }
    }
    for (at, schedule) in config.schedules.iter().enumerate() {
        let Some(cron) = schedule.parsed() else { continue };
        for table in service.scheduled(schedule).await? {
            let name = format!("{}.{}", table.0, table.1);
            let times = Times::new(&cron, &schedule.cron, &name, config.jitter());
            let due = service.calendar.get(at, &name).and_then(|used| times.due(used, now()));
            let mut line = line(&table, None, Some(&schedule.cron), config.strategy_of(schedule));
            line["is_due"] = due.is_some().into();
            line["next_run_at"] = due.or_else(|| times.after(now())).map(shown).into();
            list.push(line);
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(text: &str) -> Cron {
        let schedule: ScheduleConfig = serde_json::from_value(json!({"cron": text})).unwrap();
        schedule.parsed().unwrap()
    }

    /// 2026-11-22T10:00:00Z, a Sunday.
    const TEN: i64 = 1_795_341_600;
    const DAY: i64 = 86_400;

    #[test]
    fn the_next_time_is_after_now_and_the_one_that_is_due_not() {
        let nightly = cron("30 3 * * *");
        let times = Times::new(&nightly, "30 3 * * *", "shop.orders", Duration::ZERO);
        let half_past_three = TEN - 6 * 3_600 - 1_800;
        assert_eq!(shown(half_past_three), "2026-11-22T03:30:00.000Z");
        assert_eq!(times.after(TEN), Some(half_past_three + DAY));
        assert_eq!(times.after(half_past_three), Some(half_past_three + DAY), "it is not after itself");
        assert_eq!(times.due(half_past_three - 1, half_past_three), Some(half_past_three));
        assert_eq!(times.due(half_past_three, TEN), None, "it was used");
        assert_eq!(times.due(TEN - 10 * DAY, TEN), Some(half_past_three), "of many, the last one");
        let weekly = cron("0 12 * * mon");
        let times = Times::new(&weekly, "0 12 * * mon", "shop.orders", Duration::ZERO);
        assert_eq!(times.after(TEN).map(shown), Some("2026-11-23T12:00:00.000Z".to_owned()));
    }

    #[test]
    fn jitter_delays_each_table_by_a_time_of_its_own_that_does_not_change() {
        let nightly = cron("30 3 * * *");
        let jitter = Duration::from_secs(3_600);
        let after = |table: &str| Times::new(&nightly, "30 3 * * *", table, jitter).after(TEN).unwrap();
        let exact = Times::new(&nightly, "30 3 * * *", "", Duration::ZERO).after(TEN).unwrap();
        let all: std::collections::BTreeSet<i64> = (0..50).map(|number| after(&format!("shop.t{number}"))).collect();
        assert!(all.len() > 40 && all.iter().all(|at| (exact..=exact + 3_600).contains(at)), "{all:?}");
        assert_eq!(after("shop.t1"), after("shop.t1"));
        // While one is delayed it is not due, and then it is.
        let times = Times::new(&nightly, "30 3 * * *", "shop.t1", jitter);
        let at = after("shop.t1");
        assert_eq!((times.due(TEN, at - 1), times.due(TEN, at)), (None, Some(at)));
        assert_eq!(times.after(at), Some(at + DAY));
    }
}
