//! Removes what has expired, because PostgreSQL has no TTL, and forgets deletions that nothing can contradict any more.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use cdc_model::LocalTime;
use cdc_postgres::{Disposition, Target};
use cdc_runtime::Lifecycle;
use tokio::time::MissedTickBehavior;

use crate::{SinkConfig, SinkMetrics, retry::Patience};

/// Runs until the soft stop. Several sinks may sweep the same tables.
pub(crate) fn spawn(target: &Target, config: &SinkConfig, metrics: &Arc<SinkMetrics>, lifecycle: &Lifecycle) {
    let (target, metrics, soft) = (target.clone(), Arc::clone(metrics), lifecycle.soft().clone());
    let interval = Duration::from_millis(config.sweep_interval_ms);
    let (horizon, every) = (config.purge_horizon_s, Duration::from_secs(config.purge_interval_s));
    lifecycle.spawn("sweep expired", async move {
        let work = async {
            adopt(&target).await;
            futures::future::join(sweep(target.clone(), interval, metrics), purge(target.clone(), every, horizon)).await
        };
        soft.run_until_cancelled(work).await;
        anyhow::Ok(())
    });
}

/// Makes the tables known that earlier processes have written, because nothing may ever change in them again.
async fn adopt(target: &Target) {
    let mut patience = Patience::new("looking for the tables there are");
    loop {
        let adopted = async {
            for table in target.known_schemas().await? {
                match target.prepare_table(Arc::clone(&table)).await {
                    Err(error) if error.disposition() == Disposition::Retry => return Err(error),
                    // Its next change says so until it is mended.
                    Err(error) => {
                        tracing::warn!(%error, "what expires in {} stays until it changes", table.full_name())
                    }
                    Ok(()) => {}
                }
            }
            Ok(())
        };
        match adopted.await {
            Ok(()) => return patience.succeeded(),
            Err(error) => tokio::time::sleep(patience.failed(error.disposition(), &error)).await,
        }
    }
}

async fn purge(target: Target, every: Duration, horizon: u32) {
    let mut patience = Patience::new("purging old deletions");
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match target.purge(now(), horizon).await {
            Ok(rows) => {
                patience.succeeded();
                if rows > 0 {
                    tracing::info!(rows, "purged deletions older than gc_grace_seconds and the horizon");
                }
            }
            Err(error) => tokio::time::sleep(patience.failed(error.disposition(), &error)).await,
        }
    }
}

async fn sweep(target: Target, interval: Duration, metrics: Arc<SinkMetrics>) {
    let mut patience = Patience::new("removing expired cells");
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        loop {
            match target.sweep_expired(now()).await {
                Ok(0) => {
                    patience.succeeded();
                    break;
                }
                Ok(rows) => metrics.swept(rows),
                Err(error) => {
                    tokio::time::sleep(patience.failed(error.disposition(), &error)).await;
                    break;
                }
            }
        }
    }
}

fn now() -> LocalTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    LocalTime(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
