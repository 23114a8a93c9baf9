//! Comparisons: asked for, running, done.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Ledger, Page, audit, commit, failed, mismatches};
use crate::{TargetError, mirror::Strategy};

/// Who asked for a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobKind {
    Manual,
    Scheduled,
}

impl JobKind {
    pub const ALL: [Self; 2] = [Self::Manual, Self::Scheduled];

    pub fn name(self) -> &'static str {
        match self {
            Self::Manual => "MANUAL_ONDEMAND",
            Self::Scheduled => "SCHEDULED",
        }
    }
}

/// A comparison that is asked for.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    pub keyspace: &'a str,
    pub table: &'a str,
    pub strategy: Strategy,
    /// `HIGH`, `NORMAL` or `LOW`.
    pub priority: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Requested {
    pub job: Uuid,
    /// Not if the table had one that waits or runs.
    pub is_new: bool,
}

/// A job this process is to run.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub job: Uuid,
    pub keyspace: String,
    pub table: String,
    /// As in [`Strategy::name`].
    pub strategy: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lease {
    Held,
    /// Held, and somebody wants the job to end.
    Cancelled,
    /// Another process has taken the job for abandoned.
    Lost,
}

/// What became of a wish to cancel a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cancelled {
    Unknown,
    /// It had ended before.
    Ended(String),
    /// It did not run yet, and will not.
    Now,
    /// It runs, and ends soon.
    Soon,
}

/// What came out of a job.
#[derive(Clone, Default, Debug)]
pub struct Gist {
    /// `COMPLETED`, `FAILED` or `CANCELLED`.
    pub status: &'static str,
    pub errors: Vec<String>,
    /// What it has found, unless it did not begin.
    pub found: Option<Found>,
}

/// What a comparison has found.
#[derive(Clone, Default, Debug)]
pub struct Found {
    pub cassandra_rows: i64,
    pub postgres_rows: i64,
    pub drift_rows: i64,
    pub drift_percentage: f64,
    pub unproven_rows: i64,
    pub in_motion: i64,
    pub classes: Value,
    pub coverage: f64,
    pub gaps: Value,
    /// Rows with their evidence, as objects of [`super::Mismatch`]'s fields.
    pub findings: Value,
    /// Classes of which a row is proven right if this has not found it.
    pub disproves: Vec<String>,
}

/// Which jobs; what is not set admits all.
#[derive(Clone, Default, Debug)]
pub struct JobFilter {
    pub job: Option<Uuid>,
    pub keyspace: Option<String>,
    pub table: Option<String>,
    pub status: Option<String>,
    pub kind: Option<String>,
    /// Created then or later; in any form PostgreSQL reads.
    pub since: Option<String>,
    pub until: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Job {
    pub job_id: Uuid,
    pub keyspace: String,
    pub table_name: String,
    pub job_type: String,
    pub validation_strategy: String,
    pub priority: String,
    pub status: String,
    pub created_at: String,
    pub started_at: Option<String>,
    pub completed_at: Option<String>,
    pub duration_seconds: Option<f64>,
    pub cassandra_row_count: Option<i64>,
    pub postgres_row_count: Option<i64>,
    /// Rows proven wrong.
    pub mismatch_count: Option<i64>,
    pub drift_percentage: Option<f64>,
    pub unproven_count: Option<i64>,
    pub in_motion: Option<i64>,
    pub classes: Option<Value>,
    pub coverage: Option<f64>,
    pub gaps: Option<Value>,
    pub validation_errors: Vec<String>,
}

impl Ledger {
    /// Queues jobs, all or none.
    ///
    /// # Errors
    /// As all of this.
    pub async fn request(&self, wishes: &[Wish<'_>], actor: &str) -> Result<Vec<Requested>, TargetError> {
        let mut transaction = self.begin().await?;
        let mut requested = Vec::with_capacity(wishes.len());
        for Wish { keyspace, table, strategy, priority } in wishes {
            let id = Uuid::new_v4();
            let job = sqlx::query_scalar!(
                "-- cdc: request a job
                insert into _cdc.reconciliation_jobs as job (job_id, keyspace, table_name, job_type, strategy, priority)
                values ($1, $2, $3, $4, $5, $6)
                on conflict (keyspace, table_name) where status in ('QUEUED', 'RUNNING')
                do update set priority = job.priority returning job_id",
                id,
                keyspace,
                table,
                JobKind::Manual.name(),
                strategy.name(),
                priority,
            );
            let job = job.fetch_one(&mut *transaction).await.map_err(failed("request a job"))?;
            requested.push(Requested { job, is_new: job == id });
        }
        let new: Vec<Uuid> = requested.iter().filter(|one| one.is_new).map(|one| one.job).collect();
        if !new.is_empty() {
            audit(&mut transaction, actor, "trigger", "jobs", json!({"job_ids": new})).await?;
        }
        commit(transaction).await?;
        Ok(requested)
    }

    /// Queues a job for each table that had none for so many seconds; for 10 minutes, if the last one failed.
    ///
    /// # Errors
    /// As all of this.
    pub async fn schedule(
        &self,
        tables: &[(String, String)],
        strategy: Strategy,
        every: i64,
    ) -> Result<u64, TargetError> {
        let (keyspaces, names): (Vec<String>, Vec<String>) = tables.iter().cloned().unzip();
        let done = sqlx::query!(
            "-- cdc: schedule jobs
            insert into _cdc.reconciliation_jobs (job_id, keyspace, table_name, job_type, strategy, priority)
            select gen_random_uuid(), due.keyspace, due.table_name, $3, $4, 'LOW'
            from unnest($1::text[], $2::text[]) as due (keyspace, table_name)
            where not exists (select from _cdc.reconciliation_jobs as job
                where job.keyspace = due.keyspace and job.table_name = due.table_name and job.created_at > now()
                    - make_interval(secs => case job.status when 'FAILED' then least($5::bigint, 600) else $5 end))
            on conflict (keyspace, table_name) where status in ('QUEUED', 'RUNNING') do nothing",
            &keyspaces,
            &names,
            JobKind::Scheduled.name(),
            strategy.name(),
            every,
        );
        Ok(done.execute(&self.pool).await.map_err(failed("schedule jobs"))?.rows_affected())
    }

    /// The next job, if any waits.
    ///
    /// # Errors
    /// As all of this.
    pub async fn claim_job(&self) -> Result<Option<Claimed>, TargetError> {
        sqlx::query_as!(
            Claimed,
            r#"-- cdc: claim a job
            update _cdc.reconciliation_jobs set status = 'RUNNING', worker = $1, started_at = now(),
                lease_until = now() + interval '10 seconds'
            where job_id = (select job_id from _cdc.reconciliation_jobs where status = 'QUEUED'
                order by array_position(array['HIGH', 'NORMAL', 'LOW'], priority), created_at
                limit 1 for update skip locked)
            returning job_id as "job", keyspace, table_name as "table", strategy"#,
            self.worker,
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("claim a job"))
    }

    /// To be called more often than every 10 seconds while a job runs.
    ///
    /// # Errors
    /// As all of this.
    pub async fn renew_job(&self, job: Uuid) -> Result<Lease, TargetError> {
        let cancelled = sqlx::query_scalar!(
            "-- cdc: renew a job's lease
            update _cdc.reconciliation_jobs set lease_until = now() + interval '10 seconds'
            where job_id = $1 and worker = $2 and status = 'RUNNING' returning cancel_requested",
            job,
            self.worker,
        );
        Ok(match cancelled.fetch_optional(&self.pool).await.map_err(failed("renew a lease"))? {
            None => Lease::Lost,
            Some(true) => Lease::Cancelled,
            Some(false) => Lease::Held,
        })
    }

    /// Marks jobs whose process is gone as failed; which they were.
    ///
    /// # Errors
    /// As all of this.
    pub async fn fail_interrupted(&self) -> Result<Vec<Uuid>, TargetError> {
        let mut transaction = self.begin().await?;
        let jobs = sqlx::query_scalar!(
            "-- cdc: interrupted jobs
            update _cdc.reconciliation_jobs set status = 'FAILED', completed_at = now(),
                errors = array['INTERRUPTED: the reconciler that ran it has ended or lost PostgreSQL']
            where status = 'RUNNING' and lease_until < now() returning job_id",
        );
        let jobs = jobs.fetch_all(&mut *transaction).await.map_err(failed("look for interrupted jobs"))?;
        for job in &jobs {
            audit(&mut transaction, "reconciler", "job", &job.to_string(), json!({"status": "FAILED"})).await?;
        }
        commit(transaction).await?;
        Ok(jobs)
    }

    /// Ends a job with what it found: mismatches are added, opened again, or resolved where it has proven them right.
    /// `false`: the lease was lost, and nothing was written.
    ///
    /// # Errors
    /// As all of this.
    pub async fn finish_job(&self, claimed: &Claimed, gist: &Gist) -> Result<bool, TargetError> {
        let mut transaction = self.begin().await?;
        let found = gist.found.as_ref();
        let done = sqlx::query!(
            "-- cdc: finish a job
            update _cdc.reconciliation_jobs set status = $3, completed_at = now(), lease_until = null, errors = $4,
                cassandra_rows = $5, postgres_rows = $6, drift_rows = $7, drift_percentage = $8, unproven_rows = $9,
                in_motion = $10, classes = $11, coverage = $12, gaps = $13
            where job_id = $1 and worker = $2 and status = 'RUNNING'",
            claimed.job,
            self.worker,
            gist.status,
            &gist.errors,
            found.map(|found| found.cassandra_rows),
            found.map(|found| found.postgres_rows),
            found.map(|found| found.drift_rows),
            found.map(|found| found.drift_percentage),
            found.map(|found| found.unproven_rows),
            found.map(|found| found.in_motion),
            found.map(|found| found.classes.clone()),
            found.map(|found| found.coverage),
            found.map(|found| found.gaps.clone()),
        );
        if done.execute(&mut *transaction).await.map_err(failed("finish a job"))?.rows_affected() == 0 {
            return Ok(false);
        }
        let mut detail = json!({"status": gist.status});
        if let Some(found) = found {
            let resolved = mismatches::record(&mut transaction, claimed, found).await?;
            detail = json!({"status": gist.status, "table": format!("{}.{}", claimed.keyspace, claimed.table),
                "strategy": claimed.strategy, "coverage": found.coverage, "classes": found.classes,
                "proven_right": resolved});
        }
        audit(&mut transaction, "reconciler", "job", &claimed.job.to_string(), detail).await?;
        commit(transaction).await?;
        Ok(true)
    }

    /// # Errors
    /// As all of this.
    pub async fn cancel_job(&self, job: Uuid, actor: &str) -> Result<Cancelled, TargetError> {
        let mut transaction = self.begin().await?;
        let status = sqlx::query_scalar!(
            "-- cdc: cancel a job
            update _cdc.reconciliation_jobs set cancel_requested = true,
                status = case status when 'QUEUED' then 'CANCELLED' else status end,
                completed_at = case status when 'QUEUED' then now() end
            where job_id = $1 and status in ('QUEUED', 'RUNNING') returning status",
            job,
        );
        let status = status.fetch_optional(&mut *transaction).await.map_err(failed("cancel a job"))?;
        if let Some(status) = status {
            audit(&mut transaction, actor, "cancel", &job.to_string(), json!({})).await?;
            commit(transaction).await?;
            return Ok(if status == "CANCELLED" { Cancelled::Now } else { Cancelled::Soon });
        }
        let filter = JobFilter { job: Some(job), ..JobFilter::default() };
        let ended = self.jobs(&filter, Page { limit: 1, offset: 0 }).await?.pop();
        Ok(ended.map_or(Cancelled::Unknown, |job| Cancelled::Ended(job.status)))
    }

    /// Newest first.
    ///
    /// # Errors
    /// With [`crate::Disposition::Quarantine`] if `since` or `until` is not a time.
    pub async fn jobs(&self, filter: &JobFilter, page: Page) -> Result<Vec<Job>, TargetError> {
        let jobs = sqlx::query_as!(
            Job,
            r#"-- cdc: list jobs
            select job_id, keyspace, table_name, job_type, strategy as "validation_strategy", priority, status,
                _cdc.utc(created_at) as "created_at!", _cdc.utc(started_at) as "started_at?",
                _cdc.utc(completed_at) as "completed_at?",
                extract(epoch from completed_at - started_at)::float8 as "duration_seconds?",
                cassandra_rows as "cassandra_row_count", postgres_rows as "postgres_row_count",
                drift_rows as "mismatch_count", drift_percentage, unproven_rows as "unproven_count", in_motion, classes,
                coverage, gaps, errors as "validation_errors"
            from _cdc.reconciliation_jobs
            where ($1::uuid is null or job_id = $1) and ($2::text is null or keyspace = $2)
                and ($3::text is null or table_name = $3) and ($4::text is null or status = $4)
                and ($5::text is null or job_type = $5) and ($6::text is null or created_at >= $6::text::timestamptz)
                and ($7::text is null or created_at < $7::text::timestamptz)
            order by reconciliation_jobs.created_at desc, job_id limit $8 offset $9"#,
            filter.job,
            filter.keyspace,
            filter.table,
            filter.status,
            filter.kind,
            filter.since,
            filter.until,
            page.limit,
            page.offset,
        );
        jobs.fetch_all(&self.pool).await.map_err(failed("list jobs"))
    }

    /// By status, whatever the filter's status is.
    ///
    /// # Errors
    /// As [`Self::jobs`].
    pub async fn count_jobs(&self, filter: &JobFilter) -> Result<BTreeMap<String, i64>, TargetError> {
        let counts = sqlx::query!(
            r#"-- cdc: count jobs
            select status, count(*) as "jobs!" from _cdc.reconciliation_jobs
            where ($1::text is null or keyspace = $1) and ($2::text is null or table_name = $2)
                and ($3::text is null or job_type = $3) and ($4::text is null or created_at >= $4::text::timestamptz)
                and ($5::text is null or created_at < $5::text::timestamptz)
            group by status"#,
            filter.keyspace,
            filter.table,
            filter.kind,
            filter.since,
            filter.until,
        );
        let counts = counts.fetch_all(&self.pool).await.map_err(failed("count jobs"))?;
        Ok(counts.into_iter().map(|row| (row.status, row.jobs)).collect())
    }
}
