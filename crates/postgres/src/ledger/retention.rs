//! What is forgotten, and when. Never a mismatch that is open, or that somebody has decided to leave as it is.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::{Ledger, audit, commit, failed};
use crate::TargetError;

/// Rows of each kind removed in one transaction.
const AT_ONCE: i32 = 1_000;

/// How long what is over is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    pub jobs: Duration,
    /// Resolved ones.
    pub mismatches: Duration,
    pub replays: Duration,
    pub audit: Duration,
}

/// How many were removed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Pruned {
    pub mismatches: u64,
    pub jobs: u64,
    pub replays: u64,
    /// Entries of the audit log.
    pub audit: u64,
}

impl Pruned {
    /// Whether there may be more to remove.
    pub fn is_partial(self) -> bool {
        let most = u64::from(AT_ONCE.unsigned_abs());
        [self.mismatches, self.jobs, self.replays, self.audit].into_iter().any(|count| count >= most)
    }
}

impl Ledger {
    /// Removes some of what is older; [`Pruned::is_partial`] tells whether to call again. Nothing while another process does.
    ///
    /// # Errors
    /// As all of this.
    pub async fn prune(&self, retention: &Retention) -> Result<Pruned, TargetError> {
        let seconds = |duration: Duration| duration.as_secs_f64();
        let count = |rows: i64| u64::try_from(rows).unwrap_or_default();
        let mut transaction = self.begin().await?;
        let is_free = sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock(212664321, 2) as "is_free!""#);
        if !is_free.fetch_one(&mut *transaction).await.map_err(failed("lock the retention"))? {
            return Ok(Pruned::default());
        }
        let mismatches = sqlx::query!(
            "-- cdc: prune mismatches
            delete from _cdc.reconciliation_mismatches where mismatch_id in (
                select mismatch_id from _cdc.reconciliation_mismatches as known
                where resolution_status in ('AUTO_RESOLVED', 'MANUAL_RESOLVED')
                    and greatest(resolved_at, last_seen_at) < now() - make_interval(secs => $1)
                    and not exists (select from _cdc.reconciliation_jobs as job where job.mismatch_id = known.mismatch_id
                        and status in ('QUEUED', 'RUNNING', 'PAUSED'))
                order by resolved_at limit $2)",
            seconds(retention.mismatches),
            i64::from(AT_ONCE),
        );
        let mismatches = mismatches.execute(&mut *transaction).await.map_err(failed("prune mismatches"))?;
        let jobs = sqlx::query_scalar!(
            r#"select _cdc.prune_jobs(make_interval(secs => $1), $2) as "jobs!""#,
            seconds(retention.jobs),
            AT_ONCE,
        );
        let jobs = jobs.fetch_one(&mut *transaction).await.map_err(failed("prune jobs"))?;
        let replays = sqlx::query!(
            "-- cdc: prune replays
            delete from _cdc.dlq_replays where replay_id in (select replay_id from _cdc.dlq_replays
                where completed_at < now() - make_interval(secs => $1) order by completed_at limit $2)",
            seconds(retention.replays),
            i64::from(AT_ONCE),
        );
        let replays = replays.execute(&mut *transaction).await.map_err(failed("prune replays"))?;
        let mut pruned = Pruned {
            mismatches: mismatches.rows_affected(),
            jobs: count(jobs),
            replays: replays.rows_affected(),
            audit: 0,
        };
        if pruned != Pruned::default() {
            let detail = json!({"mismatches": pruned.mismatches, "jobs": pruned.jobs, "replays": pruned.replays});
            audit(&mut transaction, "reconciler", "prune", "history", detail).await?;
        }
        let entries = sqlx::query_scalar!(
            r#"select _cdc.prune_audit(make_interval(secs => $1), $2) as "entries!""#,
            seconds(retention.audit),
            AT_ONCE,
        );
        pruned.audit = count(entries.fetch_one(&mut *transaction).await.map_err(failed("prune the audit log"))?);
        commit(transaction).await?;
        Ok(pruned)
    }
}
