//! What people want of a job that is not done: that it ends, pauses, or goes on.

use serde_json::json;
use uuid::Uuid;

use super::{Ledger, audit, commit, failed};
use crate::TargetError;

/// What became of a wish to cancel a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cancelled {
    Unknown,
    /// It had ended before.
    Ended(String),
    /// It did not run, and will not.
    Now,
    /// It runs, and ends soon.
    Soon,
}

/// What became of a wish to pause a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Paused {
    Unknown,
    /// It had ended before.
    Ended(String),
    /// It does not run until it is resumed.
    Now,
    /// It runs, and stops soon.
    Soon,
}

/// What became of a wish to resume a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resumed {
    Unknown,
    /// It is not paused, but this.
    NotPaused(String),
    Now,
}

impl Ledger {
    /// # Errors
    /// As all of this.
    pub async fn cancel_job(&self, job: Uuid, actor: &str) -> Result<Cancelled, TargetError> {
        let mut transaction = self.begin().await?;
        let status = sqlx::query_scalar!(
            "-- cdc: cancel a job
            update _cdc.reconciliation_jobs set cancel_requested = true,
                status = case status when 'RUNNING' then 'RUNNING' else 'CANCELLED' end,
                completed_at = case when status <> 'RUNNING' then now() end
            where job_id = $1 and status in ('QUEUED', 'RUNNING', 'PAUSED') returning status",
            job,
        );
        let status = status.fetch_optional(&mut *transaction).await.map_err(failed("cancel a job"))?;
        if let Some(status) = status {
            audit(&mut transaction, actor, "cancel", &job.to_string(), json!({})).await?;
            commit(transaction).await?;
            return Ok(if status == "CANCELLED" { Cancelled::Now } else { Cancelled::Soon });
        }
        Ok(self.status_of(job).await?.map_or(Cancelled::Unknown, Cancelled::Ended))
    }

    /// # Errors
    /// As all of this.
    pub async fn pause_job(&self, job: Uuid, actor: &str) -> Result<Paused, TargetError> {
        let mut transaction = self.begin().await?;
        let status = sqlx::query_scalar!(
            "-- cdc: pause a job
            update _cdc.reconciliation_jobs set pause_requested = status = 'RUNNING',
                status = case status when 'QUEUED' then 'PAUSED' else status end
            where job_id = $1 and status in ('QUEUED', 'RUNNING', 'PAUSED') returning status",
            job,
        );
        let Some(status) = status.fetch_optional(&mut *transaction).await.map_err(failed("pause a job"))? else {
            return Ok(self.status_of(job).await?.map_or(Paused::Unknown, Paused::Ended));
        };
        audit(&mut transaction, actor, "pause", &job.to_string(), json!({})).await?;
        commit(transaction).await?;
        Ok(if status == "PAUSED" { Paused::Now } else { Paused::Soon })
    }

    /// One that is about to pause goes on, too.
    ///
    /// # Errors
    /// As all of this.
    pub async fn resume_job(&self, job: Uuid, actor: &str) -> Result<Resumed, TargetError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query!(
            "-- cdc: resume a job
            update _cdc.reconciliation_jobs set pause_requested = false, interruptions = 0,
                status = case status when 'PAUSED' then 'QUEUED' else status end
            where job_id = $1 and (status = 'PAUSED' or (status = 'RUNNING' and pause_requested))",
            job,
        );
        if done.execute(&mut *transaction).await.map_err(failed("resume a job"))?.rows_affected() == 0 {
            return Ok(self.status_of(job).await?.map_or(Resumed::Unknown, Resumed::NotPaused));
        }
        audit(&mut transaction, actor, "resume", &job.to_string(), json!({})).await?;
        commit(transaction).await?;
        Ok(Resumed::Now)
    }

    async fn status_of(&self, job: Uuid) -> Result<Option<String>, TargetError> {
        let status = sqlx::query_scalar!("select status from _cdc.reconciliation_jobs where job_id = $1", job);
        status.fetch_optional(&self.pool).await.map_err(failed("look at a job"))
    }
}
