//! Jobs as the process sees them that runs them: taken with a lease, done part by part, given back or ended.
//!
//! **Invariant:** the parts of [`RANGES`](super::RANGES) that a job says are done have been compared, and what was found in
//! them is counted and kept: both are written by the transaction that says so. Whoever takes the job up goes on behind them.

use cdc_model::TokenRange;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{JobKind, Ledger, audit, commit, failed, mismatches};
use crate::TargetError;

/// A job this process is to run.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub job: Uuid,
    pub keyspace: String,
    pub table: String,
    /// As in [`super::JobStrategy::name`].
    pub strategy: String,
    pub range_start: i64,
    pub range_end: i64,
    /// As [`super::JobOptions`].
    pub options: Value,
    /// Parts that are done; the others are to be.
    pub ranges_done: i32,
    /// On those.
    pub worked_seconds: f64,
    /// Of those: read from Cassandra.
    pub rows: i64,
    pub unproven_rows: i64,
    pub gaps: Value,
    pub repairs: Option<Value>,
    pub sample: Option<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lease {
    Held,
    /// Held, and somebody wants the job to pause.
    Paused,
    /// Held, and somebody wants the job to end.
    Cancelled,
    /// Another process has taken the job for abandoned.
    Lost,
}

/// What was found in parts of a job that follow each other.
#[derive(Clone, Default, Debug)]
pub struct Found {
    pub cassandra_rows: i64,
    pub postgres_rows: i64,
    pub drift_rows: i64,
    pub unproven_rows: i64,
    pub in_motion: i64,
    /// Findings by class.
    pub classes: Value,
    /// Tokens that were not read, as an array.
    pub gaps: Value,
    /// What was repaired by the whole job so far.
    pub repairs: Option<Value>,
    /// What was drawn by the whole job so far, and what it says of all.
    pub sample: Option<Value>,
    /// Rows with their evidence, as objects of [`super::Mismatch`]'s fields; those that were `repaired` say so, and those
    /// that were `attempted` to be.
    pub findings: Value,
    /// Classes of which a row in `tokens` is proven right if this has not found it.
    pub disproves: Vec<String>,
    pub tokens: Option<TokenRange>,
    pub seconds: f64,
}

/// How a job ends.
#[derive(Clone, Default, Debug)]
pub struct Gist {
    /// `COMPLETED`, `FAILED` or `CANCELLED`.
    pub status: &'static str,
    pub errors: Vec<String>,
    /// Share of the job's tokens that was read, and the others; `None` if it did not begin.
    pub coverage: Option<(f64, Value)>,
    /// Of a sample, with what was not read.
    pub sample: Option<Value>,
}

impl Ledger {
    /// The next job, if any waits; repairs of single rows are asked for on their own, so that they wait for no other.
    ///
    /// # Errors
    /// As all of this.
    pub async fn claim_job(&self, repairs: bool) -> Result<Option<Claimed>, TargetError> {
        sqlx::query_as!(
            Claimed,
            r#"-- cdc: claim a job
            update _cdc.reconciliation_jobs set status = 'RUNNING', worker = $1, started_at = coalesce(started_at, now()),
                lease_until = now() + interval '10 seconds'
            where job_id = (select job_id from _cdc.reconciliation_jobs
                where status = 'QUEUED' and (job_type = $3) = $2
                order by array_position(array['HIGH', 'NORMAL', 'LOW'], priority), risk desc, created_at
                limit 1 for update skip locked)
            returning job_id as "job", keyspace, table_name as "table", strategy, range_start, range_end, options,
                ranges_done, worked_seconds, coalesce(cassandra_rows, 0) as "rows!",
                coalesce(unproven_rows, 0) as "unproven_rows!", coalesce(gaps, '[]') as "gaps!",
                repairs, sample"#,
            self.worker,
            repairs,
            JobKind::Repair.name(),
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("claim a job"))
    }

    /// To be called more often than every 10 seconds while a job runs, with how far it is.
    ///
    /// # Errors
    /// As all of this.
    pub async fn renew_job(&self, job: Uuid, progress: &Value) -> Result<Lease, TargetError> {
        let wishes = sqlx::query!(
            "-- cdc: renew a job's lease
            update _cdc.reconciliation_jobs set lease_until = now() + interval '10 seconds', progress = $3
            where job_id = $1 and worker = $2 and status = 'RUNNING' returning cancel_requested, pause_requested",
            job,
            self.worker,
            progress,
        );
        let wishes = wishes.fetch_optional(&self.pool).await.map_err(failed("renew a lease"))?;
        Ok(match wishes.map(|wishes| (wishes.cancel_requested, wishes.pause_requested)) {
            None => Lease::Lost,
            Some((true, _)) => Lease::Cancelled,
            Some((false, true)) => Lease::Paused,
            Some((false, false)) => Lease::Held,
        })
    }

    /// Lets jobs whose process is gone be taken up again; one that has lost three in the same part has failed. Which they
    /// were, and what they are now.
    ///
    /// # Errors
    /// As all of this.
    pub async fn take_back_jobs(&self) -> Result<Vec<(Uuid, String)>, TargetError> {
        let mut transaction = self.begin().await?;
        let jobs = sqlx::query!(
            "-- cdc: interrupted jobs
            update _cdc.reconciliation_jobs as job set status = now_is.status, interruptions = interruptions + 1,
                pause_requested = false, lease_until = null, progress = null,
                completed_at = case when now_is.status in ('CANCELLED', 'FAILED') then now() end,
                errors = case when now_is.status = 'FAILED' then array['INTERRUPTED: three reconcilers that ran it have ended or lost '
                    || 'PostgreSQL in the same part; their logs may say why'] else errors end
            from (select job_id, case when cancel_requested then 'CANCELLED' when interruptions >= 2 then 'FAILED'
                    when pause_requested then 'PAUSED' else 'QUEUED' end as status
                from _cdc.reconciliation_jobs where status = 'RUNNING' and lease_until < now() for update) as now_is
            where job.job_id = now_is.job_id returning job.job_id, job.status",
        );
        let jobs = jobs.fetch_all(&mut *transaction).await.map_err(failed("look for interrupted jobs"))?;
        for job in &jobs {
            let detail = json!({"interrupted": true, "status": job.status});
            audit(&mut transaction, "reconciler", "job", &job.job_id.to_string(), detail).await?;
        }
        commit(transaction).await?;
        Ok(jobs.into_iter().map(|job| (job.job_id, job.status)).collect())
    }

    /// Notes what was found in the next parts, so that `ranges_done` are: mismatches are added, opened again, or resolved
    /// where they were repaired or are proven right. `false`: the lease was lost, and nothing was written.
    ///
    /// # Errors
    /// As all of this.
    pub async fn advance_job(&self, job: &Claimed, ranges_done: i32, found: &Found) -> Result<bool, TargetError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query!(
            "-- cdc: advance a job
            update _cdc.reconciliation_jobs set
                interruptions = case when ranges_done = $3 then interruptions else 0 end, ranges_done = $3,
                worked_seconds = worked_seconds + $4, lease_until = now() + interval '10 seconds', progress = null,
                cassandra_rows = coalesce(cassandra_rows, 0) + $5, postgres_rows = coalesce(postgres_rows, 0) + $6,
                drift_rows = coalesce(drift_rows, 0) + $7, unproven_rows = coalesce(unproven_rows, 0) + $8,
                in_motion = coalesce(in_motion, 0) + $9,
                drift_percentage = 100.0 * (coalesce(drift_rows, 0) + $7) / greatest(
                    coalesce(cassandra_rows, 0) + $5, coalesce(postgres_rows, 0) + $6, 1),
                classes = (select coalesce(jsonb_object_agg(class, findings), '{}') from (
                    select class, sum(findings::bigint) as findings from (
                        select * from jsonb_each_text(coalesce(classes, '{}'))
                        union all select * from jsonb_each_text($10)) as counts (class, findings) group by 1) as sums),
                gaps = coalesce(gaps, '[]') || $11::jsonb, repairs = coalesce($12, repairs), sample = coalesce($13, sample)
            where job_id = $1 and worker = $2 and status = 'RUNNING'",
            job.job,
            self.worker,
            ranges_done,
            found.seconds,
            found.cassandra_rows,
            found.postgres_rows,
            found.drift_rows,
            found.unproven_rows,
            found.in_motion,
            found.classes,
            found.gaps,
            found.repairs,
            found.sample,
        );
        if done.execute(&mut *transaction).await.map_err(failed("advance a job"))?.rows_affected() == 0 {
            return Ok(false);
        }
        mismatches::record(&mut transaction, job, found).await?;
        mismatches::audit_repairs(&mut transaction, job, found).await?;
        commit(transaction).await?;
        Ok(true)
    }

    /// Gives a job back that is not done: it pauses, or waits for the next process. `None`: the lease was lost.
    ///
    /// # Errors
    /// As all of this.
    pub async fn put_job_back(&self, job: &Claimed) -> Result<Option<String>, TargetError> {
        let mut transaction = self.begin().await?;
        let status = sqlx::query_scalar!(
            "-- cdc: put a job back
            update _cdc.reconciliation_jobs set lease_until = null, progress = null, pause_requested = false,
                status = case when cancel_requested then 'CANCELLED' when pause_requested then 'PAUSED' else 'QUEUED' end,
                completed_at = case when cancel_requested then now() end
            where job_id = $1 and worker = $2 and status = 'RUNNING' returning status",
            job.job,
            self.worker,
        );
        let status = status.fetch_optional(&mut *transaction).await.map_err(failed("put a job back"))?;
        if let Some(status) = &status {
            audit(&mut transaction, "reconciler", "job", &job.job.to_string(), json!({"status": status})).await?;
        }
        commit(transaction).await?;
        Ok(status)
    }

    /// Ends a job. `false`: the lease was lost, and nothing was written.
    ///
    /// # Errors
    /// As all of this.
    pub async fn finish_job(&self, job: &Claimed, gist: &Gist) -> Result<bool, TargetError> {
        let mut transaction = self.begin().await?;
        let (coverage, gaps) = gist.coverage.clone().unzip();
        let done = sqlx::query!(
            r#"-- cdc: finish a job
            update _cdc.reconciliation_jobs set status = $3, completed_at = now(), lease_until = null, progress = null,
                errors = $4, coverage = $5, gaps = $6, sample = coalesce($7, sample)
            where job_id = $1 and worker = $2 and status = 'RUNNING'
            returning classes, repairs, (select count(*) from _cdc.reconciliation_mismatches
                where resolved_by = 'job ' || $1::uuid) as "resolved!""#,
            job.job,
            self.worker,
            gist.status,
            &gist.errors,
            coverage,
            gaps,
            gist.sample,
        );
        let Some(done) = done.fetch_optional(&mut *transaction).await.map_err(failed("finish a job"))? else {
            return Ok(false);
        };
        let detail = json!({"status": gist.status, "table": format!("{}.{}", job.keyspace, job.table),
            "strategy": job.strategy, "coverage": coverage, "classes": done.classes, "repairs": done.repairs,
            "proven_right": done.resolved});
        audit(&mut transaction, "reconciler", "job", &job.job.to_string(), detail).await?;
        commit(transaction).await?;
        Ok(true)
    }
}
