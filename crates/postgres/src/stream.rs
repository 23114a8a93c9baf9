//! Streams of changes, who may write them, and how far each has come.

/// A source of ordered changes: `node:<host-id>` in direct mode, `kafka:<topic>:<partition>` behind Kafka.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamName(pub String);

impl std::fmt::Display for StreamName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The right to write a stream, until the next claim of it by anyone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    pub stream: StreamName,
    pub epoch: i64,
    /// Everything up to here is in PostgreSQL, as the last holder wrote it; `None` if nothing is.
    pub position: Option<String>,
}

/// Moves a claimed stream's position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Advance {
    pub claim: Claim,
    pub position: String,
}
