//! How far a job is, as its process sees it, and what others want of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cdc_postgres::ledger::{Claimed, Lease, RANGES};
use serde_json::{Value, json};

use crate::{Progress, Stage};

pub(super) struct Watch(Mutex<Inner>);

struct Inner {
    lease: Lease,
    /// Of [`RANGES`]: those that are done, and those that are being compared.
    done: i32,
    width: i32,
    /// Of those that are done.
    rows: u64,
    worked: Duration,
    part: Arc<Progress>,
    part_began: Instant,
}

impl Watch {
    pub(super) fn new(job: &Claimed) -> Self {
        Self(Mutex::new(Inner {
            lease: Lease::Held,
            done: job.ranges_done,
            width: 0,
            rows: u64::try_from(job.rows).unwrap_or_default(),
            worked: Duration::try_from_secs_f64(job.worked_seconds).unwrap_or_default(),
            part: Arc::default(),
            part_began: Instant::now(),
        }))
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lease(&self) -> Lease {
        self.inner().lease
    }

    pub(super) fn set_lease(&self, lease: Lease) {
        self.inner().lease = lease;
    }

    /// The part that is being compared.
    pub(super) fn part(&self) -> Arc<Progress> {
        Arc::clone(&self.inner().part)
    }

    /// A part begins.
    pub(super) fn begin(&self, done: i32, width: i32) {
        let mut inner = self.inner();
        (inner.done, inner.width) = (done, width);
        (inner.part, inner.part_began) = (Arc::default(), Instant::now());
    }

    /// It is noted.
    pub(super) fn end(&self, done: i32, rows: i64, took: Duration) {
        let mut inner = self.inner();
        (inner.done, inner.width) = (done, 0);
        inner.rows += u64::try_from(rows).unwrap_or_default();
        inner.worked += took;
        (inner.part, inner.part_began) = (Arc::default(), Instant::now());
    }

    pub(super) fn progress(&self) -> Value {
        let inner = self.inner();
        let part = &inner.part;
        let (done, total) = part.done();
        let is_passing = part.stage() == Stage::Passes;
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = if is_passing { done as f64 / total.max(1) as f64 } else { 1.0 };
        let ranges = f64::from(inner.done) + f64::from(inner.width) * share;
        let rows = inner.rows + part.rows();
        let seconds = (inner.worked + inner.part_began.elapsed()).as_secs_f64();
        let mut progress = of(rows, seconds, ranges);
        progress["stage"] = if is_passing { "ranges" } else { "leaves" }.into();
        progress["suspects"] = part.suspects().into();
        progress["findings"] = part.findings().into();
        progress
    }
}

/// Of so many rows in so many seconds, for so many of [`RANGES`].
pub(super) fn of(rows: u64, seconds: f64, ranges: f64) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = if seconds > 0.0 { rows as f64 / seconds } else { 0.0 };
    let left = seconds * (f64::from(RANGES) - ranges) / ranges;
    json!({"rows": rows, "rows_per_second": (rate * 10.0).round() / 10.0, "eta_seconds": left.is_finite().then(|| left.ceil()),
        "stage": null, "suspects": null, "findings": null})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_what_was_before() {
        let progress = of(1_000, 10.0, 16.0);
        assert_eq!((&progress["rows_per_second"], &progress["eta_seconds"]), (&json!(100.0), &json!(30.0)));
        assert_eq!(of(0, 0.0, 0.0)["eta_seconds"], Value::Null);
        assert_eq!(of(5, 1.0, 64.0)["eta_seconds"], 0.0);
    }
}
