//! Comparisons: asked for, running, done.

use std::collections::BTreeMap;

use cdc_model::TokenRange;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Ledger, Mismatch, Page, audit, commit, failed};
use crate::{TargetError, mirror::Strategy};

/// Equal parts of a job's tokens, by which its progress is kept.
pub const RANGES: i32 = 64;

/// Who asked for a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobKind {
    Manual,
    Scheduled,
    /// Of a single mismatch, at somebody's wish.
    Repair,
}

impl JobKind {
    pub const ALL: [Self; 3] = [Self::Manual, Self::Scheduled, Self::Repair];

    pub fn name(self) -> &'static str {
        match self {
            Self::Manual => "MANUAL_ONDEMAND",
            Self::Scheduled => "SCHEDULED",
            Self::Repair => "REPAIR",
        }
    }
}

/// How a job compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobStrategy {
    Checksum,
    Version,
    RowCount,
    /// By all values, of leaves that are drawn.
    Sample,
    /// By all values, of rows last written between two times.
    TimestampRange,
}

impl JobStrategy {
    pub const ALL: [Self; 5] = [Self::Checksum, Self::Version, Self::RowCount, Self::Sample, Self::TimestampRange];

    pub fn name(self) -> &'static str {
        match self {
            Self::Checksum | Self::Version | Self::RowCount => self.compares().name(),
            Self::Sample => "SAMPLE",
            Self::TimestampRange => "TIMESTAMP_RANGE",
        }
    }

    /// By what rows are compared.
    pub fn compares(self) -> Strategy {
        match self {
            Self::Checksum | Self::Sample | Self::TimestampRange => Strategy::Checksum,
            Self::Version => Strategy::Version,
            Self::RowCount => Strategy::RowCount,
        }
    }
}

impl From<Strategy> for JobStrategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Checksum => Self::Checksum,
            Strategy::Version => Self::Version,
            Strategy::RowCount => Self::RowCount,
        }
    }
}

/// A comparison that is asked for.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    pub keyspace: &'a str,
    pub table: &'a str,
    pub strategy: JobStrategy,
    /// `HIGH`, `NORMAL` or `LOW`.
    pub priority: &'a str,
    pub range: TokenRange,
    pub options: JobOptions,
}

/// What is asked for beyond the strategy.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct JobOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair: Option<RepairWish>,
    /// It ends after so long, whatever is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<u64>,
    /// Of a [`JobStrategy::Sample`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<SampleWish>,
    /// Of a [`JobStrategy::TimestampRange`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<WrittenWish>,
}

/// What is drawn.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct SampleWish {
    /// Of the leaves.
    pub percent: f64,
    pub seed: u32,
}

/// Write times, microseconds since 1970; the second one is not among them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrittenWish {
    pub from: i64,
    pub to: i64,
}

impl JobOptions {
    pub const NONE: Self = Self { repair: None, max_seconds: None, sample: None, written: None };

    pub(super) fn json(&self) -> Value {
        serde_json::to_value(self).expect("options are plain data")
    }
}

/// What may be repaired.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RepairWish {
    /// As findings name them.
    pub classes: Vec<String>,
    /// In percent of the rows of the job's tokens.
    pub max_share_percent: f64,
    pub rows_per_second: u32,
    pub dry_run: bool,
    /// Only the row whose key has this SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Requested {
    pub job: Uuid,
    /// Not if there was one that is not done.
    pub is_new: bool,
    /// That one is paused.
    pub is_paused: bool,
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
    /// What was repaired, if anything was to be.
    pub repairs: Option<Value>,
    /// The cron expression that asked for it, and its time.
    pub schedule: Option<String>,
    pub scheduled_for: Option<String>,
    /// What was drawn so far, and what it says of all.
    #[serde(skip)]
    pub sample: Option<Value>,
    /// Processes that died in the part that is next.
    pub interruptions: i32,
    pub pause_requested: bool,
    pub cancel_requested: bool,
    #[serde(skip)]
    pub range_start: i64,
    #[serde(skip)]
    pub range_end: i64,
    /// As [`JobOptions`].
    #[serde(skip)]
    pub options: Value,
    /// Of [`RANGES`].
    #[serde(skip)]
    pub ranges_done: i32,
    /// On those.
    #[serde(skip)]
    pub worked_seconds: f64,
    /// Of the part that is being compared.
    #[serde(skip)]
    pub progress: Option<Value>,
}

impl Ledger {
    /// Queues jobs, all or none.
    ///
    /// # Errors
    /// As all of this.
    pub async fn request(&self, wishes: &[Wish<'_>], actor: &str) -> Result<Vec<Requested>, TargetError> {
        let mut transaction = self.begin().await?;
        let mut requested = Vec::with_capacity(wishes.len());
        for Wish { keyspace, table, strategy, priority, range, options } in wishes {
            let id = Uuid::new_v4();
            let job = sqlx::query!(
                r#"-- cdc: request a job
                insert into _cdc.reconciliation_jobs as job (job_id, keyspace, table_name, job_type, strategy, priority,
                    range_start, range_end, options)
                values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                on conflict (keyspace, table_name) where status in ('QUEUED', 'RUNNING', 'PAUSED') and job_type <> 'REPAIR'
                do update set priority = job.priority returning job_id, status = 'PAUSED' as "is_paused!""#,
                id,
                keyspace,
                table,
                JobKind::Manual.name(),
                strategy.name(),
                priority,
                range.start,
                range.end,
                options.json(),
            );
            let job = job.fetch_one(&mut *transaction).await.map_err(failed("request a job"))?;
            requested.push(Requested { job: job.job_id, is_new: job.job_id == id, is_paused: job.is_paused });
        }
        let new: Vec<Uuid> = requested.iter().filter(|one| one.is_new).map(|one| one.job).collect();
        if !new.is_empty() {
            let options: Vec<Value> = wishes.iter().map(|wish| wish.options.json()).collect();
            audit(&mut transaction, actor, "trigger", "jobs", json!({"job_ids": new, "options": options})).await?;
        }
        commit(transaction).await?;
        Ok(requested)
    }

    /// Queues the repair of a single row.
    ///
    /// # Errors
    /// As all of this.
    pub async fn request_repair(
        &self,
        mismatch: &Mismatch,
        wish: RepairWish,
        actor: &str,
    ) -> Result<Requested, TargetError> {
        let id = Uuid::new_v4();
        let mut transaction = self.begin().await?;
        let detail = json!({"mismatch_id": mismatch.mismatch_id, "dry_run": wish.dry_run});
        let options = JobOptions { repair: Some(wish), ..JobOptions::NONE };
        let job = sqlx::query!(
            r#"-- cdc: request a repair
            insert into _cdc.reconciliation_jobs as job (job_id, keyspace, table_name, job_type, strategy, priority,
                range_start, range_end, options, mismatch_id)
            values ($1, $2, $3, $4, $5, 'HIGH', $6, $7, $8, $9)
            on conflict (mismatch_id) where status in ('QUEUED', 'RUNNING', 'PAUSED') and job_type = 'REPAIR'
            do update set priority = job.priority returning job_id, status = 'PAUSED' as "is_paused!""#,
            id,
            mismatch.keyspace,
            mismatch.table_name,
            JobKind::Repair.name(),
            Strategy::Checksum.name(),
            mismatch.token.saturating_sub(1),
            mismatch.token,
            options.json(),
            mismatch.mismatch_id,
        );
        let job = job.fetch_one(&mut *transaction).await.map_err(failed("request a repair"))?;
        let requested = Requested { job: job.job_id, is_new: job.job_id == id, is_paused: job.is_paused };
        if requested.is_new {
            audit(&mut transaction, actor, "repair", &id.to_string(), detail).await?;
        }
        commit(transaction).await?;
        Ok(requested)
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
                coverage, gaps, errors as "validation_errors", repairs, schedule,
                _cdc.utc(scheduled_for) as "scheduled_for?", sample, interruptions, pause_requested, cancel_requested, range_start, range_end, options, ranges_done, worked_seconds, progress
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
