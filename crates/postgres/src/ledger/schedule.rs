//! Jobs nobody asks for one by one.
//!
//! **Invariant:** a table has one job that is not done, at most (`reconciliation_jobs_one_per_table`), so what is scheduled never
//! piles up, whatever the number of processes that schedule.

use super::{JobKind, JobOptions, JobStrategy, Ledger, failed};
use crate::TargetError;

/// A time of a cron expression, for one table.
#[derive(Clone, Debug)]
pub struct Slot<'a> {
    pub keyspace: &'a str,
    pub table: &'a str,
    /// By which it is known that this slot was used.
    pub schedule: &'a str,
    /// Seconds since 1970.
    pub at: i64,
    pub strategy: JobStrategy,
    pub options: JobOptions,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheduled {
    New,
    /// By this process or another.
    Before,
    /// The table has a job that is not done.
    Busy,
}

impl Ledger {
    /// Queues a job for each table whose ring was not compared as a whole, by the schedule or by the same strategy, for so many
    /// seconds; for 10 minutes, if the last attempt failed. One whose last job ran out of time goes on where that ended.
    ///
    /// # Errors
    /// As all of this.
    pub async fn schedule(
        &self,
        tables: &[(String, String)],
        strategy: JobStrategy,
        every: i64,
        options: &JobOptions,
    ) -> Result<u64, TargetError> {
        let (keyspaces, names): (Vec<String>, Vec<String>) = tables.iter().cloned().unzip();
        let done = sqlx::query!(
            "-- cdc: schedule jobs
            insert into _cdc.reconciliation_jobs (job_id, keyspace, table_name, job_type, strategy, priority, options,
                range_start, risk)
            select gen_random_uuid(), keyspace, table_name, $3, $4, 'LOW', $6,
                _cdc.reconciliation_rest(keyspace, table_name, $4), _cdc.reconciliation_risk(keyspace, table_name)
            from unnest($1::text[], $2::text[]) as due (keyspace, table_name)
            where not coalesce(_cdc.reconciliation_due(keyspace, table_name, $4, $5) > now(), false)
            on conflict (keyspace, table_name) where status in ('QUEUED', 'RUNNING', 'PAUSED') and job_type <> 'REPAIR'
            do nothing",
            &keyspaces,
            &names,
            JobKind::Scheduled.name(),
            strategy.name(),
            every,
            options.json(),
        );
        Ok(done.execute(&self.pool).await.map_err(failed("schedule jobs"))?.rows_affected())
    }

    /// When [`Self::schedule`] would queue a job of each table, in UTC; `None`: at once, or as soon as its job is done.
    ///
    /// # Errors
    /// As all of this.
    pub async fn due(
        &self,
        tables: &[(String, String)],
        strategy: JobStrategy,
        every: i64,
    ) -> Result<Vec<Option<String>>, TargetError> {
        let (keyspaces, names): (Vec<String>, Vec<String>) = tables.iter().cloned().unzip();
        let due = sqlx::query_scalar!(
            r#"-- cdc: when jobs are due
            select _cdc.utc(_cdc.reconciliation_due(keyspace, table_name, $3, $4)) as "due?"
            from unnest($1::text[], $2::text[]) with ordinality as due (keyspace, table_name, place) order by place"#,
            &keyspaces,
            &names,
            strategy.name(),
            every,
        );
        due.fetch_all(&self.pool).await.map_err(failed("look at the schedule"))
    }

    /// Queues the job of a slot, once for all processes.
    ///
    /// # Errors
    /// As all of this.
    pub async fn schedule_slot(&self, slot: &Slot<'_>) -> Result<Scheduled, TargetError> {
        #[expect(clippy::cast_precision_loss, reason = "seconds of this age")]
        let at = slot.at as f64;
        let outcome = sqlx::query!(
            r#"-- cdc: schedule a job
            with used as (select exists (select from _cdc.reconciliation_jobs where keyspace = $1 and table_name = $2
                    and schedule = $3 and strategy = $6 and scheduled_for >= to_timestamp($4)) as is_used),
                new as (
                    insert into _cdc.reconciliation_jobs (job_id, keyspace, table_name, job_type, strategy, priority, options,
                        range_start, risk, schedule, scheduled_for)
                    select gen_random_uuid(), $1, $2, $5, $6, 'LOW', $7, _cdc.reconciliation_rest($1, $2, $6),
                        _cdc.reconciliation_risk($1, $2), $3, to_timestamp($4)
                    from used where not is_used
                    on conflict (keyspace, table_name) where status in ('QUEUED', 'RUNNING', 'PAUSED') and job_type <> 'REPAIR'
                    do nothing returning 1)
            select is_used as "is_used!", exists (select from new) as "is_new!" from used"#,
            slot.keyspace,
            slot.table,
            slot.schedule,
            at,
            JobKind::Scheduled.name(),
            slot.strategy.name(),
            slot.options.json(),
        );
        let outcome = outcome.fetch_one(&self.pool).await.map_err(failed("schedule a job"))?;
        Ok(match (outcome.is_new, outcome.is_used) {
            (true, _) => Scheduled::New,
            (false, true) => Scheduled::Before,
            (false, false) => Scheduled::Busy,
        })
    }

    /// The last slot of a schedule that was used for a table, in seconds since 1970.
    ///
    /// # Errors
    /// As all of this.
    pub async fn last_slot(
        &self,
        keyspace: &str,
        table: &str,
        schedule: &str,
        strategy: JobStrategy,
    ) -> Result<Option<i64>, TargetError> {
        let last = sqlx::query_scalar!(
            "-- cdc: last slot
            select extract(epoch from max(scheduled_for))::bigint from _cdc.reconciliation_jobs
            where keyspace = $1 and table_name = $2 and schedule = $3 and strategy = $4",
            keyspace,
            table,
            schedule,
            strategy.name(),
        );
        last.fetch_one(&self.pool).await.map_err(failed("look at the schedule"))
    }
}
