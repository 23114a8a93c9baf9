//! What can go wrong between us and PostgreSQL, and what to do about it.

use crate::StreamName;

/// What the caller of a failed operation should do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disposition {
    /// Try the same again after a pause: the environment failed, not the data.
    Retry,
    /// The data can never be applied; park it and go on.
    Quarantine,
    /// A person must change something first.
    Halt,
}

#[derive(thiserror::Error, Debug)]
pub enum TargetError {
    #[error("unfinished")]
    Unfinished,
}

impl TargetError {
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unfinished => Disposition::Halt,
        }
    }
}

#[derive(thiserror::Error, Debug)]
pub enum ApplyError {
    /// Another process has claimed the stream: stop, do not retry.
    #[error("stream {stream} was claimed by another process")]
    Fenced { stream: StreamName },
    #[error(transparent)]
    Target(#[from] TargetError),
}

impl ApplyError {
    /// [`Disposition::Halt`] for a lost claim: this process must not write the stream any more.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Fenced { .. } => Disposition::Halt,
            Self::Target(error) => error.disposition(),
        }
    }
}
