//! Replays of dead letters that were asked for.

use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::{Ledger, audit, commit, failed};
use crate::TargetError;

/// A replay that is asked for.
#[derive(Clone, Debug)]
pub struct ReplayWish<'a> {
    pub letters: &'a [Uuid],
    /// `immediate`, `scheduled`, `rate_limited` or `batch`.
    pub strategy: &'a str,
    /// In any form PostgreSQL reads; `None`: at once.
    pub not_before: Option<&'a str>,
    pub dry_run: bool,
    pub notes: Option<&'a str>,
    pub by: &'a str,
}

/// A replay this process is to go on with.
#[derive(Clone, Debug)]
pub struct ClaimedReplay {
    pub replay: Uuid,
    pub strategy: String,
    pub dry_run: bool,
    /// Those that are not done yet.
    pub letters: Vec<Uuid>,
}

/// What became of letters.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    pub applied: i32,
    pub superseded: i32,
    pub refused: i32,
    pub settled: i32,
}

#[derive(Clone, Debug, Serialize)]
pub struct Replay {
    pub replay_id: Uuid,
    /// `queued`, `in_progress`, `completed`, `partially_completed` or `failed`.
    pub status: String,
    pub retry_strategy: String,
    pub dry_run: bool,
    pub matched: i32,
    pub done: i32,
    pub applied: i32,
    pub superseded: i32,
    pub refused: i32,
    /// No longer unresolved.
    pub settled: i32,
    pub resolution_notes: Option<String>,
    pub error: Option<String>,
    pub scheduled_time: String,
    pub created_at: String,
    pub completed_at: Option<String>,
}

impl Ledger {
    /// Queues a replay.
    ///
    /// # Errors
    /// With [`crate::Disposition::Quarantine`] if `not_before` is not a time.
    pub async fn request_replay(&self, wish: &ReplayWish<'_>) -> Result<Uuid, TargetError> {
        let id = Uuid::new_v4();
        let mut transaction = self.begin().await?;
        sqlx::query!(
            "-- cdc: request a replay
            insert into _cdc.dlq_replays (replay_id, retry_strategy, not_before, dry_run, letters, notes, status, completed_at)
            values ($1, $2, coalesce($3::text::timestamptz, now()), $4, $5, $6,
                case when cardinality($5::uuid[]) = 0 then 'completed' else 'queued' end,
                case when cardinality($5::uuid[]) = 0 then now() end)",
            id,
            wish.strategy,
            wish.not_before,
            wish.dry_run,
            wish.letters,
            wish.notes,
        )
        .execute(&mut *transaction)
        .await
        .map_err(failed("request a replay"))?;
        let detail = json!({"matched": wish.letters.len(), "retry_strategy": wish.strategy, "dry_run": wish.dry_run,
            "resolution_notes": wish.notes});
        audit(&mut transaction, wish.by, "dlq replay", &id.to_string(), detail).await?;
        commit(transaction).await?;
        Ok(id)
    }

    /// The next replay that is due, or was left by a process that is gone.
    ///
    /// # Errors
    /// As all of this.
    pub async fn claim_replay(&self) -> Result<Option<ClaimedReplay>, TargetError> {
        sqlx::query_as!(
            ClaimedReplay,
            r#"-- cdc: claim a replay
            update _cdc.dlq_replays set status = 'in_progress', worker = $1, lease_until = now() + interval '30 seconds'
            where replay_id = (select replay_id from _cdc.dlq_replays
                where (status = 'queued' and not_before <= now()) or (status = 'in_progress' and lease_until < now())
                order by not_before limit 1 for update skip locked)
            returning replay_id as "replay", retry_strategy as "strategy", dry_run, letters[done + 1:] as "letters!""#,
            self.worker,
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("claim a replay"))
    }

    /// Notes what became of the next letters, and renews the lease; `false` if that was lost.
    ///
    /// # Errors
    /// As all of this.
    pub async fn advance_replay(&self, replay: Uuid, tally: Tally) -> Result<bool, TargetError> {
        let done = sqlx::query!(
            "-- cdc: advance a replay
            update _cdc.dlq_replays set done = done + $3 + $4 + $5 + $6, applied = applied + $3, superseded = superseded + $4,
                refused = refused + $5, settled = settled + $6, error = null, lease_until = now() + interval '30 seconds'
            where replay_id = $1 and worker = $2 and status = 'in_progress'",
            replay,
            self.worker,
            tally.applied,
            tally.superseded,
            tally.refused,
            tally.settled,
        );
        Ok(done.execute(&self.pool).await.map_err(failed("advance a replay"))?.rows_affected() == 1)
    }

    /// Ends a replay; it must have nothing left to do.
    ///
    /// # Errors
    /// As all of this.
    pub async fn finish_replay(&self, replay: Uuid) -> Result<(), TargetError> {
        sqlx::query!(
            "-- cdc: finish a replay
            update _cdc.dlq_replays set completed_at = now(), lease_until = null, status = case
                when refused = 0 then 'completed' when refused = done then 'failed' else 'partially_completed' end
            where replay_id = $1 and worker = $2 and status = 'in_progress'",
            replay,
            self.worker,
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("finish a replay"))
    }

    /// Leaves a replay to whoever comes next, in some seconds.
    ///
    /// # Errors
    /// As all of this.
    pub async fn put_replay_back(&self, replay: Uuid, error: &str) -> Result<(), TargetError> {
        sqlx::query!(
            "-- cdc: put a replay back
            update _cdc.dlq_replays set error = $3, lease_until = now() + interval '5 seconds'
            where replay_id = $1 and worker = $2 and status = 'in_progress'",
            replay,
            self.worker,
            error,
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("put a replay back"))
    }

    /// # Errors
    /// As all of this.
    pub async fn replay(&self, replay: Uuid) -> Result<Option<Replay>, TargetError> {
        sqlx::query_as!(
            Replay,
            r#"-- cdc: read a replay
            select replay_id, status, retry_strategy, dry_run, cardinality(letters) as "matched!", done, applied, superseded,
                refused, settled, notes as "resolution_notes", error, _cdc.utc(not_before) as "scheduled_time!",
                _cdc.utc(created_at) as "created_at!", _cdc.utc(completed_at) as "completed_at?"
            from _cdc.dlq_replays where replay_id = $1"#,
            replay,
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("read a replay"))
    }
}
