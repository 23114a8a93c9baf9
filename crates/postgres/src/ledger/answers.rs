//! Answers to requests that may come twice.

use super::{Ledger, failed};
use crate::TargetError;

/// What is known of an idempotency key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Nothing: this request is to be answered, and [`Ledger::keep_answer`] or [`Ledger::drop_answer`] called.
    New,
    /// The same request is being answered.
    Pending,
    /// It was answered with this status and body.
    Known(u16, String),
    /// The key belongs to another request.
    Other,
}

impl Ledger {
    /// `request` is a digest of what was asked.
    ///
    /// # Errors
    /// As all of this.
    pub async fn begin_answer(&self, key: &str, request: &[u8]) -> Result<Answer, TargetError> {
        let doing = "look for an answer";
        // What is being answered for minutes was left by a process that is gone.
        sqlx::query!(
            "-- cdc: forget answers
            delete from _cdc.answers where at < now() - interval '24 hours'
                or (key = $1 and status is null and at < now() - interval '2 minutes')",
            key,
        )
        .execute(&self.pool)
        .await
        .map_err(failed(doing))?;
        let is_new = sqlx::query!(
            "insert into _cdc.answers (key, request) values ($1, $2) on conflict do nothing",
            key,
            request,
        );
        if is_new.execute(&self.pool).await.map_err(failed(doing))?.rows_affected() == 1 {
            return Ok(Answer::New);
        }
        let known = sqlx::query!("select request, status, body from _cdc.answers where key = $1", key);
        let known = known.fetch_optional(&self.pool).await.map_err(failed(doing))?;
        Ok(match known {
            Some(known) if known.request != request => Answer::Other,
            Some(known) => match known.status.and_then(|status| u16::try_from(status).ok()).zip(known.body) {
                Some((status, body)) => Answer::Known(status, body),
                None => Answer::Pending,
            },
            // It was dropped this moment.
            None => Answer::Pending,
        })
    }

    /// # Errors
    /// As all of this.
    pub async fn keep_answer(&self, key: &str, status: u16, body: &str) -> Result<(), TargetError> {
        sqlx::query!(
            "update _cdc.answers set status = $2, body = $3 where key = $1 and status is null",
            key,
            i32::from(status),
            body,
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("keep an answer"))
    }

    /// What could not be answered may be asked again.
    ///
    /// # Errors
    /// As all of this.
    pub async fn drop_answer(&self, key: &str) -> Result<(), TargetError> {
        sqlx::query!("delete from _cdc.answers where key = $1 and status is null", key)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("drop an answer"))
    }
}
