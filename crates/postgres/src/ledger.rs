//! What reconcilers share in schema `_cdc`: jobs, what these found, replays of dead letters, answers that were given, and the
//! audit log.
//!
//! Each statement is checked against the migrations when this is compiled; CONTRIBUTING.md says how. Connections are
//! others than those of the apply path, so neither can starve the other.
//!
//! A job or replay belongs to the process that holds its lease. A process that stops renewing it has lost it, and whatever
//! it still writes about it is not taken.

mod answers;
mod jobs;
mod lease;
mod mismatches;
mod replays;
mod retention;
mod schedule;
mod tables;
mod wishes;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgTransaction},
};
use uuid::Uuid;

pub use answers::Answer;
pub use jobs::{
    Job, JobFilter, JobKind, JobOptions, JobStrategy, RANGES, RepairWish, Requested, SampleWish, Wish, WrittenWish,
};
pub use lease::{Claimed, Found, Gist, Lease};
pub use mismatches::{Mismatch, MismatchFilter, Resolution};
pub use replays::{ClaimedReplay, Replay, ReplayWish, Tally};
pub use retention::{Pruned, Retention};
pub use schedule::{Scheduled, Slot};
pub use tables::TableState;
pub use wishes::{Cancelled, Paused, Resumed};

use crate::{PostgresConfig, TargetError, connect, error::Fault};

const CONNECTIONS: u32 = 4;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// No statement of ours takes long, unless something is wrong.
const STATEMENT_TIMEOUT: &str = "30s";

/// Clones share the pool, and are the same process to others.
#[derive(Clone)]
pub struct Ledger {
    pool: PgPool,
    /// When the login was replaced: older connections are closed before they are used again.
    replaced: Arc<Mutex<Instant>>,
    worker: Uuid,
}

/// An entry of the audit log, by which it can be found there and told from another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Audited {
    pub seq: i64,
    /// UTC.
    pub at: String,
    /// SHA-256, in hexadecimal.
    pub hash: String,
}

/// Of a list.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub limit: i64,
    pub offset: i64,
}

impl Ledger {
    /// Connects when it is first asked; the migrations must have run ([`crate::Target::connect`]).
    pub fn new(config: &PostgresConfig) -> Self {
        let replaced = Arc::new(Mutex::new(Instant::now()));
        let since = Arc::clone(&replaced);
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(ACQUIRE_TIMEOUT).before_acquire(
            move |_, connection| {
                let since = *since.lock().unwrap_or_else(PoisonError::into_inner);
                // One that was being opened while the login was replaced counts as older.
                let is_current = Instant::now().checked_sub(connection.age).is_none_or(|opened| opened >= since);
                Box::pin(async move { Ok(is_current) })
            },
        );
        Self { pool: pool.connect_lazy_with(options(config)), replaced, worker: Uuid::new_v4() }
    }

    /// Uses each new login, until it is stopped; for ever, where there is one that does not change.
    pub async fn follow(&self, config: &PostgresConfig) {
        let Some(credentials) = &config.credentials else { return std::future::pending().await };
        let mut generation = 0;
        loop {
            generation = credentials.after(generation).await.generation;
            self.pool.set_connect_options(options(config));
            *self.replaced.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// # Errors
    /// If PostgreSQL does not answer.
    pub async fn ping(&self) -> Result<(), TargetError> {
        sqlx::query_scalar!("select 1").fetch_one(&self.pool).await.map(drop).map_err(failed("ask PostgreSQL"))
    }

    /// Reads times, which a filter does only once there is a row to look at.
    ///
    /// # Errors
    /// If one is in no form PostgreSQL knows ([`crate::Disposition::Quarantine`]).
    pub async fn check_times(&self, times: &[&str]) -> Result<(), TargetError> {
        let texts: Vec<String> = times.iter().map(|time| (*time).to_owned()).collect();
        sqlx::query_scalar!(
            r#"select count(isfinite(time::timestamptz)) as "count!" from unnest($1::text[]) time"#,
            &texts
        )
        .fetch_one(&self.pool)
        .await
        .map(drop)
        .map_err(failed("read a time"))
    }

    /// A time in any form PostgreSQL knows, as microseconds since 1970; `infinity` is the last one there is.
    ///
    /// # Errors
    /// As [`Self::check_times`].
    pub async fn micros(&self, time: &str) -> Result<i64, TargetError> {
        sqlx::query_scalar!(
            r#"select case when isfinite(time) then (extract(epoch from time) * 1000000)::bigint
                when time > now() then 9223372036854775807 else -9223372036854775808 end as "micros!"
            from (select $1::text::timestamptz as time) as given"#,
            time,
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed("read a time"))
    }

    /// Adds an entry to the audit log.
    ///
    /// # Errors
    /// As all of this.
    pub async fn audit(&self, actor: &str, action: &str, subject: &str, detail: Value) -> Result<(), TargetError> {
        let mut transaction = self.begin().await?;
        audit(&mut transaction, actor, action, subject, detail).await?;
        commit(transaction).await
    }

    /// The newest entry of the audit log about something.
    ///
    /// # Errors
    /// As all of this.
    pub async fn last_audit(&self, subject: &str) -> Result<Option<Audited>, TargetError> {
        sqlx::query_as!(
            Audited,
            r#"select seq, _cdc.utc(at) as "at!", encode(hash, 'hex') as "hash!" from _cdc.audit_log
            where subject = $1 order by seq desc limit 1"#,
            subject
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("read the audit log"))
    }

    async fn begin(&self) -> Result<PgTransaction<'static>, TargetError> {
        self.pool.begin().await.map_err(failed("begin a transaction"))
    }
}

fn options(config: &PostgresConfig) -> PgConnectOptions {
    connect::options(config, "cdc reconciler").options([("statement_timeout", STATEMENT_TIMEOUT)])
}

async fn commit(transaction: PgTransaction<'static>) -> Result<(), TargetError> {
    transaction.commit().await.map_err(failed("commit"))
}

/// Last in a transaction: it holds up others that have something to tell.
async fn audit(
    transaction: &mut PgTransaction<'static>,
    actor: &str,
    action: &str,
    subject: &str,
    detail: Value,
) -> Result<(), TargetError> {
    sqlx::query!(r#"select _cdc.audit($1, $2, $3, $4)::text as "nothing""#, actor, action, subject, detail)
        .fetch_one(&mut **transaction)
        .await
        .map(drop)
        .map_err(failed("write the audit log"))
}

fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> TargetError {
    move |error| TargetError::Database { doing, fault: Fault::from(&error) }
}
