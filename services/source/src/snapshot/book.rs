//! Which snapshots there are and how far each is, on disk.
//!
//! **Invariant:** a part's `next` passes a token only once everything of it that was read is acknowledged downstream. So
//! whatever is killed when, a restart reads again what was in flight and leaves nothing out.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use cdc_model::{NodeId, TableId, TokenRange};
use serde::{Deserialize, Serialize};

use crate::state_file::{seal, unseal};

const VERSION: u32 = 1;
/// Ended snapshots that are remembered, to be shown.
const ENDED_MAX: usize = 50;

#[derive(Debug)]
pub(super) struct Book {
    body: Body,
    pub(super) dirty: bool,
    run: Option<Run>,
}

#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Body {
    node: NodeId,
    next_id: u64,
    /// Oldest first.
    jobs: Vec<Job>,
    /// Tables that had an initial snapshot, or need none.
    begun: BTreeSet<TableId>,
}

#[derive(Clone, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) table: String,
    pub(super) table_id: TableId,
    pub(super) cause: Cause,
    /// Milliseconds since 1970.
    pub(super) created_ms: i64,
    ended_ms: Option<i64>,
    state: State,
    why: Option<String>,
    rows: u64,
    /// Of the ring, in percent.
    share: f64,
    width: u64,
    parts_total: usize,
    /// Not yet finished.
    parts: Vec<Part>,
}

/// `next`: up to here everything is acknowledged; `start` in the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    pub(super) next: i64,
    pub(super) end: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    Requested,
    Initial,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Waiting,
    Running,
    Done,
    Cancelled,
    Failed,
}

impl State {
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Failed)
    }
}

/// A snapshot, for `/snapshots` and `/status`.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotStatus {
    pub id: u64,
    pub table: String,
    pub cause: Cause,
    pub state: State,
    /// Why it failed, or what keeps it from going on at present.
    pub why: Option<String>,
    /// What it copies, in percent of the ring.
    pub ring_percent: f64,
    pub rows: u64,
    pub ranges_done: usize,
    pub ranges_total: usize,
    pub done_percent: f64,
    /// Since this process goes on with it.
    pub rows_per_second: f64,
    pub eta_seconds: Option<u64>,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    pub ended_ms: Option<i64>,
}

/// Of the running one, in this process.
#[derive(Debug)]
struct Run {
    id: u64,
    began: Instant,
    rows: u64,
    left: u64,
    trouble: Option<String>,
}

impl Book {
    /// `None`: damaged, or of another node.
    pub(super) fn open(node: NodeId, text: &[u8]) -> Option<Self> {
        let body = unseal(VERSION, text).ok().filter(|body: &Body| body.node == node)?;
        Some(Self { body, dirty: false, run: None })
    }

    pub(super) fn new(node: NodeId) -> Self {
        let body = Body { node, next_id: 1, jobs: Vec::new(), begun: BTreeSet::new() };
        Self { body, dirty: true, run: None }
    }

    pub(super) fn sealed(&mut self) -> Vec<u8> {
        self.dirty = false;
        seal(VERSION, &self.body)
    }

    /// The unfinished one of a table.
    pub(super) fn unfinished(&self, table: &str) -> Option<&Job> {
        self.body.jobs.iter().find(|job| job.table == table && !job.state.has_ended())
    }

    pub(super) fn has_begun(&self, table: TableId) -> bool {
        self.body.begun.contains(&table)
    }

    /// The table needs none.
    pub(super) fn pass_over(&mut self, table: TableId) {
        self.dirty |= self.body.begun.insert(table);
    }

    pub(super) fn add(&mut self, table: (String, TableId), cause: Cause, parts: &[TokenRange], now_ms: i64) -> u64 {
        let id = self.body.next_id;
        let width = parts.iter().map(|part| part.width()).fold(0, u64::saturating_add);
        let job = Job {
            id,
            table: table.0,
            table_id: table.1,
            cause,
            created_ms: now_ms,
            ended_ms: None,
            state: State::Waiting,
            why: None,
            rows: 0,
            share: 100.0 * share(width, u64::MAX),
            width,
            parts_total: parts.len(),
            parts: parts.iter().map(|part| Part { next: part.start, end: part.end }).collect(),
        };
        self.body.next_id += 1;
        self.body.jobs.push(job);
        if cause == Cause::Initial {
            self.body.begun.insert(table.1);
        }
        let ended = self.body.jobs.iter().filter(|job| job.state.has_ended()).count();
        if ended > ENDED_MAX
            && let Some(oldest) = self.body.jobs.iter().position(|job| job.state.has_ended())
        {
            self.body.jobs.remove(oldest);
        }
        self.dirty = true;
        id
    }

    /// The next one to work on, one that was interrupted first; it runs from now on.
    pub(super) fn begin(&mut self) -> Option<Job> {
        let job = self.body.jobs.iter_mut().filter(|job| !job.state.has_ended());
        let job = job.min_by_key(|job| (job.state != State::Running, job.id))?;
        job.state = State::Running;
        self.run = Some(Run { id: job.id, began: Instant::now(), rows: job.rows, left: job.left(), trouble: None });
        self.dirty = true;
        Some(job.clone())
    }

    /// What was read of a part up to `next`, so many rows, is acknowledged.
    pub(super) fn advance(&mut self, id: u64, end: i64, next: i64, rows: u64) {
        let Some(job) = self.body.jobs.iter_mut().find(|job| job.id == id && !job.state.has_ended()) else { return };
        if let Some(part) = job.parts.iter_mut().find(|part| part.end == end) {
            part.next = part.next.max(next);
        }
        job.parts.retain(|part| part.next < part.end);
        job.rows += rows;
        self.dirty = true;
    }

    pub(super) fn trouble(&mut self, trouble: Option<String>) {
        if let Some(run) = &mut self.run {
            run.trouble = trouble;
        }
    }

    /// Ends it for good; one that has ended stays as it is.
    pub(super) fn end(&mut self, id: u64, state: State, why: Option<String>, now_ms: i64) {
        let Some(job) = self.body.jobs.iter_mut().find(|job| job.id == id && !job.state.has_ended()) else { return };
        (job.state, job.why, job.ended_ms) = (state, why, Some(now_ms));
        self.run.take_if(|run| run.id == id);
        self.dirty = true;
    }

    pub(super) fn statuses(&self) -> Vec<SnapshotStatus> {
        self.body.jobs.iter().map(|job| self.status(job)).collect()
    }

    pub(super) fn status_of(&self, id: u64) -> Option<SnapshotStatus> {
        self.body.jobs.iter().find(|job| job.id == id).map(|job| self.status(job))
    }

    fn status(&self, job: &Job) -> SnapshotStatus {
        let run = self.run.as_ref().filter(|run| run.id == job.id);
        let left = job.left();
        let elapsed = run.map_or(Duration::ZERO, |run| run.began.elapsed()).as_secs_f64();
        let eta = run.and_then(|run| {
            let part = 1.0 - share(left, run.left);
            // Tokens are spread evenly, rows over tokens nearly so.
            let seconds = elapsed * (1.0 - part) / part;
            (part > 0.0 && seconds.is_finite()).then(|| Duration::from_secs_f64(seconds.min(1e9)).as_secs())
        });
        SnapshotStatus {
            id: job.id,
            table: job.table.clone(),
            cause: job.cause,
            state: job.state,
            why: job.why.clone().or_else(|| run.and_then(|run| run.trouble.clone())),
            ring_percent: job.share,
            rows: job.rows,
            ranges_done: job.parts_total - job.parts.len(),
            ranges_total: job.parts_total,
            done_percent: 100.0 * (1.0 - share(left, job.width)),
            rows_per_second: run.map_or(0.0, |run| rate(job.rows - run.rows, elapsed)),
            eta_seconds: eta,
            created_ms: job.created_ms,
            ended_ms: job.ended_ms,
        }
    }
}

impl Job {
    pub(super) fn parts(&self) -> Vec<Part> {
        self.parts.clone()
    }

    fn left(&self) -> u64 {
        self.parts.iter().map(|part| part.end.abs_diff(part.next)).fold(0, u64::saturating_add)
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn rate(rows: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { rows as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const NODE: NodeId = NodeId(Uuid::from_u128(1));

    fn table(number: u128) -> (String, TableId) {
        (format!("shop.t{number}"), TableId(Uuid::from_u128(number)))
    }

    fn range(start: i64, end: i64) -> TokenRange {
        TokenRange { start, end }
    }

    /// As after `kill -9` once this much was saved.
    fn restarted(book: &mut Book) -> Book {
        Book::open(NODE, &book.sealed()).unwrap()
    }

    #[test]
    fn a_restart_goes_on_behind_what_was_acknowledged() {
        let mut book = Book::new(NODE);
        let id = book.add(table(1), Cause::Requested, &[range(0, 100), range(100, 200)], 7);
        assert_eq!(book.begin().unwrap().parts().len(), 2);
        book.advance(id, 100, 60, 6);
        book.advance(id, 100, 40, 0);
        book.advance(id, 200, 200, 10);
        let mut book = restarted(&mut book);
        let job = book.begin().unwrap();
        assert_eq!(job.parts(), [Part { next: 60, end: 100 }]);
        let status = book.status_of(id).unwrap();
        assert_eq!((status.rows, status.ranges_done, status.ranges_total), (16, 1, 2));
        assert!((status.done_percent - 80.0).abs() < 1e-9, "{status:?}");
        book.advance(id, 100, 100, 4);
        book.end(id, State::Done, None, 9);
        let mut book = restarted(&mut book);
        assert!(book.begin().is_none());
        let status = book.status_of(id).unwrap();
        assert_eq!((status.state, status.rows, status.ended_ms), (State::Done, 20, Some(9)));
    }

    #[test]
    fn the_interrupted_one_comes_first_and_one_of_a_table_is_unfinished() {
        let mut book = Book::new(NODE);
        let first = book.add(table(1), Cause::Initial, &[range(0, 1)], 0);
        let second = book.add(table(2), Cause::Requested, &[range(0, 1)], 0);
        book.end(first, State::Cancelled, None, 1);
        assert_eq!(book.begin().unwrap().id, second);
        let third = book.add(table(1), Cause::Requested, &[range(0, 1)], 0);
        assert_eq!(restarted(&mut book).begin().unwrap().id, second);
        assert_eq!(book.unfinished("shop.t1").unwrap().id, third);
        // What has ended stays so, whatever was still under way.
        book.end(third, State::Cancelled, None, 1);
        book.advance(third, 1, 1, 1);
        book.end(third, State::Done, None, 2);
        assert_eq!(book.status_of(third).unwrap().state, State::Cancelled);
        assert_eq!(book.status_of(third).unwrap().rows, 0);
        assert!(book.unfinished("shop.t1").is_none());
        assert!(book.has_begun(table(1).1) && !book.has_begun(table(3).1));
    }

    #[test]
    fn few_of_many_ended_ones_are_remembered() {
        let mut book = Book::new(NODE);
        for number in 0..200 {
            let id = book.add(table(number), Cause::Initial, &[range(0, 1)], 0);
            book.end(id, State::Done, None, 0);
        }
        assert!(book.statuses().len() <= ENDED_MAX + 2);
        assert!(book.has_begun(table(0).1));
    }

    #[test]
    fn damage_or_another_node_is_no_book() {
        let mut book = Book::new(NODE);
        book.add(table(1), Cause::Requested, &[range(i64::MIN, i64::MAX)], 7);
        let text = book.sealed();
        assert!(!book.dirty);
        assert!(Book::open(NODE, &text).is_some());
        assert!(Book::open(NodeId(Uuid::from_u128(2)), &text).is_none());
        for at in 0..text.len() {
            let mut flipped = text.clone();
            flipped[at] ^= 1;
            assert!(Book::open(NODE, &flipped).is_none(), "bit flipped at {at}");
        }
    }
}
