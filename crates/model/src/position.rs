//! Where a change stood in a node's commit log, and how far each guarantee has come.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Host id of a Cassandra node (`system.local.host_id`): positions of different nodes are not comparable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct NodeId(pub Uuid);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The number in `CommitLog-<version>-<id>.log`; grows over time and over restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SegmentId(pub u64);

/// End of an entry: logical offset in bytes within a segment (equals the file offset in an uncompressed one).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SegmentPosition {
    pub segment: SegmentId,
    pub offset: u64,
}

impl SegmentPosition {
    /// Before the first entry of any segment.
    pub const START: Self = Self { segment: SegmentId(0), offset: 0 };
}

impl std::fmt::Display for SegmentPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.segment.0, self.offset)
    }
}

/// The four positions of a source, each named by what it guarantees; `received >= sent >= durable >= reclaimable`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    received: SegmentPosition,
    sent: SegmentPosition,
    durable: SegmentPosition,
    reclaimable: SegmentPosition,
}

impl Progress {
    /// Resumes at a position that is on disk, so everything up to it was durable before.
    pub fn resume(at: SegmentPosition) -> Self {
        Self { received: at, sent: at, durable: at, reclaimable: at }
    }

    /// Everything up to here was decoded.
    pub fn received(&self) -> SegmentPosition {
        self.received
    }

    /// Everything up to here was handed to the channel.
    pub fn sent(&self) -> SegmentPosition {
        self.sent
    }

    /// Everything up to here is acknowledged by Kafka (`acks=all`) or committed in PostgreSQL.
    pub fn durable(&self) -> SegmentPosition {
        self.durable
    }

    /// `durable` as the fsynced position file says it: segments that end at or before it may be deleted.
    pub fn reclaimable(&self) -> SegmentPosition {
        self.reclaimable
    }

    pub fn receive(&mut self, to: SegmentPosition) {
        self.received = self.received.max(to);
    }

    pub fn send(&mut self, to: SegmentPosition) {
        self.sent = self.sent.max(to);
        self.check();
    }

    pub fn acknowledge(&mut self, to: SegmentPosition) {
        self.durable = self.durable.max(to);
        self.check();
    }

    pub fn persist(&mut self, to: SegmentPosition) {
        self.reclaimable = self.reclaimable.max(to);
        self.check();
    }

    fn check(&self) {
        assert!(
            self.received >= self.sent && self.sent >= self.durable && self.durable >= self.reclaimable,
            "a position overtook the one it depends on: {self:?}"
        );
    }
}
