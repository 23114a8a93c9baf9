//! What the agent has done and how far behind it is.

use std::sync::atomic::AtomicU64;

use serde::Serialize;

#[derive(Default, Debug)]
pub struct SourceMetrics {
    pub(crate) entries: AtomicU64,
}

impl SourceMetrics {
    /// For `/status`; cheap enough to be polled.
    pub fn status(&self) -> SourceStatus {
        SourceStatus { idle: false }
    }

    /// Appends all metrics in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        let _ = out;
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct SourceStatus {
    /// Everything readable was read, and everything read is durable.
    pub idle: bool,
}
