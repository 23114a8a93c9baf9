//! What the sink has done and how far behind it is.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Instant, SystemTime},
};

use cdc_kafka::TopicPartition;
use cdc_model::WriteTime;
use cdc_postgres::{Applied, Disposition, ErrorType};
use serde::Serialize;

/// Upper ends of the latency histogram's buckets, seconds.
const BUCKETS: [f64; 14] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 600.0];

/// Counted since the start; shared by all tasks and read by the admin port.
#[derive(Default, Debug)]
pub struct SinkMetrics {
    pub rows_written: AtomicU64,
    /// Rows whose changes were all known already.
    pub rows_stale: AtomicU64,
    /// Also records that are no changes.
    pub rows_quarantined: AtomicU64,
    pub rows_expired: AtomicU64,
    pub batches: AtomicU64,
    /// Rows and records set aside, by table (or topic) and cause.
    dead_letters: Mutex<BTreeMap<(String, ErrorType), u64>>,
    /// Times a topic was paused because its writer had no room.
    pub pauses: AtomicU64,
    /// Milliseconds since 1970; 0 before the first commit.
    pub last_commit_ms: AtomicI64,
    latency: Histogram,
    /// What fails right now, by the name of its writer.
    failing: Mutex<BTreeMap<String, Failing>>,
    partitions: Mutex<BTreeMap<TopicPartition, Progress>>,
}

#[derive(Debug)]
struct Failing {
    cause: String,
    since: Instant,
    /// `None`: there is none.
    next_try: Option<(Disposition, Instant)>,
}

#[derive(Default, Debug)]
struct Histogram {
    counts: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

#[derive(Clone, Copy, Default, Debug)]
struct Progress {
    /// Offset of the next record to apply, once known.
    next: Option<i64>,
    /// Offset of the next record to be produced, once known.
    end: Option<i64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SinkStatus {
    pub rows_written: u64,
    pub rows_stale: u64,
    pub rows_quarantined: u64,
    pub rows_expired: u64,
    pub batches: u64,
    /// Rows and records set aside, by table (or topic) and cause.
    pub dead_letters: BTreeMap<String, BTreeMap<&'static str, u64>>,
    pub pauses: u64,
    pub last_commit_ms: Option<i64>,
    /// Records behind, over all partitions held.
    pub lag: i64,
    pub partitions: Vec<PartitionStatus>,
    /// What fails right now, and why.
    pub failing: BTreeMap<String, FailingStatus>,
}

#[derive(Clone, Debug, Serialize)]
pub struct FailingStatus {
    pub cause: String,
    /// `waiting` for a server, `halted` until someone has removed the cause, or `stopped` for good.
    pub state: &'static str,
    pub for_seconds: u64,
    pub next_try_in_seconds: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PartitionStatus {
    pub topic: String,
    pub partition: i32,
    pub next: Option<i64>,
    pub end: Option<i64>,
    pub lag: Option<i64>,
}

impl Failing {
    fn status(&self) -> FailingStatus {
        let state = match self.next_try {
            None => "stopped",
            Some((Disposition::Retry, _)) => "waiting",
            Some((Disposition::Quarantine | Disposition::Halt, _)) => "halted",
        };
        let next_try = self.next_try.map(|(_, at)| at.saturating_duration_since(Instant::now()).as_secs());
        let for_seconds = self.since.elapsed().as_secs();
        FailingStatus { cause: self.cause.clone(), state, for_seconds, next_try_in_seconds: next_try }
    }
}

impl Progress {
    fn lag(self) -> Option<i64> {
        Some((self.end? - self.next.unwrap_or(0)).max(0))
    }
}

impl SinkMetrics {
    pub(crate) fn applied(&self, applied: &Applied, written: Option<WriteTime>) {
        self.rows_written.fetch_add(applied.rows_written as u64, Relaxed);
        self.rows_stale.fetch_add(applied.rows_stale as u64, Relaxed);
        self.rows_quarantined.fetch_add(applied.quarantined as u64, Relaxed);
        self.batches.fetch_add(1, Relaxed);
        if !applied.letters.is_empty() {
            let mut dead_letters = lock(&self.dead_letters);
            for (cause, letters) in &applied.letters {
                *dead_letters.entry(cause.clone()).or_default() += *letters as u64;
            }
        }
        let now = now_us();
        self.last_commit_ms.store(now / 1000, Relaxed);
        if let Some(WriteTime(written)) = written {
            // Write times are the writer's choice and may lie anywhere; the future counts as no delay.
            self.latency.observe(u64::try_from(now.saturating_sub(written)).unwrap_or(0));
        }
    }

    pub(crate) fn swept(&self, rows: usize) {
        self.rows_expired.fetch_add(rows as u64, Relaxed);
    }

    pub(crate) fn paused(&self) {
        self.pauses.fetch_add(1, Relaxed);
    }

    pub(crate) fn failing(
        &self,
        name: &str,
        error: &dyn std::error::Error,
        since: Instant,
        next_try: Option<(Disposition, Instant)>,
    ) {
        let failing = Failing { cause: crate::error::chain(error), since, next_try };
        lock(&self.failing).insert(name.to_owned(), failing);
    }

    pub(crate) fn works(&self, name: &str) {
        lock(&self.failing).remove(name);
    }

    pub(crate) fn held(&self, at: &TopicPartition, next: Option<i64>) {
        lock(&self.partitions).insert(at.clone(), Progress { next, end: None });
    }

    pub(crate) fn released(&self, at: &TopicPartition) {
        lock(&self.partitions).remove(at);
    }

    pub(crate) fn reached(&self, at: &TopicPartition, next: i64) {
        if let Some(progress) = lock(&self.partitions).get_mut(at) {
            progress.next = Some(next);
        }
    }

    pub(crate) fn end(&self, at: &TopicPartition, end: i64) {
        if let Some(progress) = lock(&self.partitions).get_mut(at) {
            progress.end = Some(end);
        }
    }

    /// For `/status`; cheap enough to be polled.
    pub fn status(&self) -> SinkStatus {
        let partitions: Vec<PartitionStatus> = lock(&self.partitions)
            .iter()
            .map(|(at, progress)| PartitionStatus {
                topic: at.topic.to_string(),
                partition: at.partition,
                next: progress.next,
                end: progress.end,
                lag: progress.lag(),
            })
            .collect();
        let mut dead_letters: BTreeMap<String, BTreeMap<&'static str, u64>> = BTreeMap::new();
        for ((table, error_type), letters) in &*lock(&self.dead_letters) {
            dead_letters.entry(table.clone()).or_default().insert(error_type.name(), *letters);
        }
        SinkStatus {
            rows_written: self.rows_written.load(Relaxed),
            rows_stale: self.rows_stale.load(Relaxed),
            rows_quarantined: self.rows_quarantined.load(Relaxed),
            rows_expired: self.rows_expired.load(Relaxed),
            batches: self.batches.load(Relaxed),
            dead_letters,
            pauses: self.pauses.load(Relaxed),
            last_commit_ms: Some(self.last_commit_ms.load(Relaxed)).filter(|time| *time != 0),
            lag: partitions.iter().filter_map(|partition| partition.lag).sum(),
            partitions,
            failing: lock(&self.failing).iter().map(|(name, failing)| (name.clone(), failing.status())).collect(),
        }
    }

    /// Appends all metrics in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        // Writing to a string cannot fail.
        self.write(out).expect("a string takes everything");
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let status = self.status();
        writeln!(out, "# HELP cdc_rows_total Rows handed to PostgreSQL, by what became of them.")?;
        writeln!(out, "# TYPE cdc_rows_total counter")?;
        let outcomes = [
            ("written", status.rows_written),
            ("stale", status.rows_stale),
            ("quarantined", status.rows_quarantined),
            ("expired", status.rows_expired),
        ];
        for (outcome, rows) in outcomes {
            writeln!(out, "cdc_rows_total{{role=\"sink\",outcome=\"{outcome}\"}} {rows}")?;
        }
        writeln!(out, "# HELP cdc_batches_total Batches committed in PostgreSQL.\n# TYPE cdc_batches_total counter")?;
        writeln!(out, "cdc_batches_total{{role=\"sink\"}} {}", status.batches)?;
        writeln!(out, "# HELP cdc_dlq_events_total Rows and records set aside.\n# TYPE cdc_dlq_events_total counter")?;
        for (table, causes) in &status.dead_letters {
            for (error_type, letters) in causes {
                let labels = format!("role=\"sink\",table=\"{table}\",error_type=\"{error_type}\"");
                writeln!(out, "cdc_dlq_events_total{{{labels}}} {letters}")?;
            }
        }
        writeln!(out, "# HELP cdc_last_commit_timestamp_seconds When PostgreSQL last committed a batch.")?;
        writeln!(out, "# TYPE cdc_last_commit_timestamp_seconds gauge")?;
        let milliseconds = status.last_commit_ms.unwrap_or(0);
        let (seconds, rest) = (milliseconds.div_euclid(1000), milliseconds.rem_euclid(1000));
        writeln!(out, "cdc_last_commit_timestamp_seconds{{role=\"sink\"}} {seconds}.{rest:03}")?;
        writeln!(out, "# HELP cdc_topic_pauses_total Times a topic was paused because its writer had no room.")?;
        writeln!(out, "# TYPE cdc_topic_pauses_total counter")?;
        writeln!(out, "cdc_topic_pauses_total{{role=\"sink\"}} {}", status.pauses)?;
        writeln!(out, "# HELP cdc_backlog_depth Records not yet applied.\n# TYPE cdc_backlog_depth gauge")?;
        for PartitionStatus { topic, partition, lag, .. } in &status.partitions {
            let labels = format!("role=\"sink\",topic=\"{topic}\",partition=\"{partition}\"");
            writeln!(out, "cdc_backlog_depth{{{labels}}} {}", lag.unwrap_or(0))?;
        }
        writeln!(out, "# HELP cdc_failing Writers that cannot go on at present.\n# TYPE cdc_failing gauge")?;
        writeln!(out, "cdc_failing{{role=\"sink\"}} {}", status.failing.len())?;
        writeln!(out, "# HELP cdc_failing_seconds For how long the first of them has not been able to go on.")?;
        writeln!(out, "# TYPE cdc_failing_seconds gauge")?;
        let longest = status.failing.values().map(|failing| failing.for_seconds).max().unwrap_or(0);
        writeln!(out, "cdc_failing_seconds{{role=\"sink\"}} {longest}")?;
        self.latency.write(out)
    }
}

impl Histogram {
    #[expect(clippy::cast_precision_loss, reason = "a delay for a histogram")]
    fn observe(&self, delay_us: u64) {
        let seconds = delay_us as f64 / 1e6;
        if let Some(index) = BUCKETS.iter().position(|end| seconds <= *end) {
            self.counts[index].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.sum_us.fetch_add(delay_us, Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "a sum for people")]
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let name = "cdc_processing_latency_seconds";
        writeln!(out, "# HELP {name} From the write in Cassandra to the commit in PostgreSQL; one sample per batch.")?;
        writeln!(out, "# TYPE {name} histogram")?;
        let mut total = 0;
        for (end, count) in BUCKETS.iter().zip(&self.counts) {
            total += count.load(Relaxed);
            writeln!(out, "{name}_bucket{{role=\"sink\",le=\"{end}\"}} {total}")?;
        }
        let count = self.count.load(Relaxed);
        writeln!(out, "{name}_bucket{{role=\"sink\",le=\"+Inf\"}} {count}")?;
        writeln!(out, "{name}_sum{{role=\"sink\"}} {}", self.sum_us.load(Relaxed) as f64 / 1e6)?;
        writeln!(out, "{name}_count{{role=\"sink\"}} {count}")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_known_once_the_end_is() {
        let metrics = SinkMetrics::default();
        let at = TopicPartition { topic: "cdc-events-t".into(), partition: 3 };
        metrics.held(&at, Some(10));
        assert_eq!(metrics.status().partitions[0].lag, None);
        metrics.end(&at, 25);
        metrics.reached(&at, 20);
        assert_eq!(metrics.status().lag, 5);
        let mut text = String::new();
        metrics.render(&mut text);
        assert!(text.contains("cdc_backlog_depth{role=\"sink\",topic=\"cdc-events-t\",partition=\"3\"} 5"), "{text}");
    }

    #[test]
    fn buckets_are_cumulative() {
        let metrics = SinkMetrics::default();
        let applied = Applied { rows_written: 2, ..Applied::default() };
        metrics.applied(&applied, Some(WriteTime(now_us())));
        metrics.applied(&applied, Some(WriteTime(now_us() - 3_000_000)));
        let mut text = String::new();
        metrics.render(&mut text);
        assert!(text.contains("le=\"5\"} 2") && text.contains("le=\"2\"} 1"), "{text}");
    }
}
