use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a server could not be had, started or handled. Messages end with what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{tool} not found: {remedy}")]
    ToolMissing { tool: &'static str, remedy: &'static str },

    #[error(
        "java {wanted} not found among {looked_at}: install it (apt-get install openjdk-17-jre-headless) or set JAVA_HOME"
    )]
    JavaMissing { wanted: u32, looked_at: String },

    #[error("{name} {version} is not pinned: choose one of {known}")]
    NotPinned { name: &'static str, version: String, known: String },

    #[error(
        "cannot obtain {artifact}: mvn failed ({status}): check the network and mvn's settings and retry; mvn said\n{tail}"
    )]
    Download { artifact: String, status: String, tail: String },

    #[error("{file} of {artifact} is not what was pinned ({fault}): delete {} and retry", .folder.display())]
    Tampered { artifact: String, file: String, fault: String, folder: PathBuf },

    #[error("{label} ended ({status}) before it was ready; its files are kept in {}; it said\n{tail}", .folder.display())]
    Exited { label: String, status: String, folder: PathBuf, tail: String },

    #[error(
        "{label} was not ready after {} s; its files are kept in {}; it said\n{tail}", .after.as_secs(), .folder.display()
    )]
    NotReady { label: String, after: Duration, folder: PathBuf, tail: String },

    #[error("{label} does not run: start it first")]
    NotRunning { label: String },

    #[error("{command} failed ({status}): {tail}")]
    Command { command: &'static str, status: String, tail: String },

    #[error("nodes is {nodes}: choose 1 or 3")]
    Nodes { nodes: usize },

    #[error("{} belongs to user {owner}, not to this user ({user}): remove it", .path.display())]
    NotOurs { path: PathBuf, owner: u32, user: u32 },

    #[error("servers named {name} are up already: take them down first, or choose another name")]
    AlreadyUp { name: String },

    #[error("no servers named {name} are up")]
    NotUp { name: String },

    #[error("the servers did not come up: {reason}")]
    Up { reason: String },

    #[error("the supervisor (process {pid}) did not end within {} s: look at {}", .after.as_secs(), .log.display())]
    StillUp { pid: u32, after: Duration, log: PathBuf },

    #[error("cannot {action} {}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    /// Completes an I/O error with what was tried; for `map_err`.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the server lost the race for a port that had been free: choose others and try again.
    pub(crate) fn is_port_taken(&self) -> bool {
        const SIGNS: [&str; 4] = [
            "Address already in use",
            "in use by another process",
            "Failed to bind",
            "could not create any TCP/IP sockets",
        ];
        matches!(self, Self::Exited { tail, .. } if SIGNS.iter().any(|sign| tail.contains(sign)))
    }

    /// The message with those of its sources, on one line each.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        text
    }
}
