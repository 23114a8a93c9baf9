//! What can go wrong between us and PostgreSQL, and what to do about it.

use crate::{
    StreamName,
    batch::Refusal,
    dead_letters::{ErrorType, FloodLimit},
    pool::{ConnectError, PoolError},
};

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
    #[error("cannot reach PostgreSQL at {place}: {fault}; {fix}")]
    Connect { place: String, fault: Fault, fix: &'static str },
    /// Another is asked for; it passes when one is there.
    #[error(
        "PostgreSQL does not take the login of {username}, and Vault has given no other: {}; see what Vault says",
        fault.as_ref().map_or_else(|| "there is none yet".to_owned(), ToString::to_string)
    )]
    Login { username: String, fault: Option<Fault> },
    #[error("no connection to PostgreSQL became free in time: {0}")]
    Pool(String),
    #[error("cannot bring schema _cdc of {place} up to date: {problem}; {fix}")]
    Migrate { place: String, problem: String, fix: &'static str, disposition: Disposition },
    #[error("table {table}: {problem}; {fix}")]
    Layout { table: String, problem: String, fix: String },
    #[error("{doing}: {fault}")]
    Database { doing: &'static str, fault: Fault },
    #[error("state of a row of {table}: {error}")]
    State { table: String, error: cdc_model::StateError },
    #[error("rows kept changing under {attempts} attempts to write them")]
    Contended { attempts: usize },
    /// Apply the changes again: those that are gone are left out then.
    #[error("table {table} was truncated while changes of it were written")]
    Overtaken { table: String },
    /// Only where nothing may be set aside, as in a replay.
    #[error("{message}")]
    Refused { error_type: ErrorType, code: String, message: String },
    #[error(
        "more than {} changes of {table} would be set aside within {:?}, so the cause is hardly in single rows: see \
         `cdc dlq stats`, remove the cause, or raise sink.dlq_rows_max and restart",
        limit.letters,
        limit.window
    )]
    Flood { table: String, limit: FloodLimit },
}

impl TargetError {
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Connect { fault, .. } | Self::Database { fault, .. } => fault.disposition(),
            Self::Login { .. } | Self::Pool(_) | Self::Contended { .. } | Self::Overtaken { .. } => Disposition::Retry,
            Self::Migrate { disposition, .. } => *disposition,
            Self::Refused { .. } => Disposition::Quarantine,
            Self::Layout { .. } | Self::State { .. } | Self::Flood { .. } => Disposition::Halt,
        }
    }

    pub(crate) fn from_pool(error: &PoolError) -> Self {
        match error {
            PoolError::Backend(ConnectError::Postgres(error)) => {
                Self::Database { doing: "connect to PostgreSQL", fault: Fault::from(error) }
            }
            PoolError::Backend(ConnectError::Login { username, fault }) => {
                Self::Login { username: username.clone(), fault: fault.clone() }
            }
            other => Self::Pool(other.to_string()),
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

/// Where PostgreSQL's source runs `RAISE`, whose words may quote values.
const RAISE: &str = "exec_stmt_raise";

/// An error of PostgreSQL or of the connection to it, without any value in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub(crate) kind: FaultKind,
    /// SQLSTATE; `None` if PostgreSQL did not answer.
    pub(crate) sqlstate: Option<String>,
    /// What PostgreSQL names beside the message.
    at: Option<Box<Place>>,
    text: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    column: Option<String>,
    /// The violated constraint or unique index.
    constraint: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FaultKind {
    /// No answer, or a connection that is of no more use.
    Connection,
    /// Another writer was first: read again.
    Contention,
    /// A cached plan outlived a change of its table: prepare again on another connection.
    Plan,
    /// Out of connections, disk, time; starting up or shutting down; read-only after a failover.
    Environment,
    /// A value or key that does not fit.
    Data,
    /// A relation or column is missing or of another kind.
    Schema,
    /// Authentication or privilege.
    Access,
    Unknown,
}

impl Fault {
    pub fn disposition(&self) -> Disposition {
        match self.kind {
            FaultKind::Connection | FaultKind::Contention | FaultKind::Plan | FaultKind::Environment => {
                Disposition::Retry
            }
            FaultKind::Data => Disposition::Quarantine,
            FaultKind::Schema | FaultKind::Access | FaultKind::Unknown => Disposition::Halt,
        }
    }

    /// The server does not let the login in.
    pub(crate) fn is_login(&self) -> bool {
        self.sqlstate.as_deref().is_some_and(|sqlstate| sqlstate.starts_with("28"))
    }

    /// Of a row it condemns, without values.
    pub(crate) fn refusal(&self) -> Refusal {
        let sqlstate = self.sqlstate.as_deref().unwrap_or_default();
        Refusal {
            error_type: ErrorType::of_sqlstate(sqlstate),
            code: format!("SQLSTATE_{sqlstate}"),
            column: self.at.as_ref().and_then(|at| at.column.clone()),
            message: match self.at.as_ref().and_then(|at| at.constraint.as_ref()) {
                Some(name) => format!("constraint {name} of the target table does not admit the row"),
                None => "PostgreSQL does not take a value or key of the row".to_owned(),
            },
        }
    }

    pub(crate) fn connection(text: String) -> Self {
        Self { kind: FaultKind::Connection, sqlstate: None, at: None, text }
    }

    /// By SQLSTATE: single codes first, then classes.
    fn kind_of(sqlstate: &str) -> FaultKind {
        match sqlstate {
            // CD001 is ours: a guarded write touched other than the expected rows.
            "CD001" | "40001" | "40P01" | "23505" => FaultKind::Contention,
            "0A000" => FaultKind::Plan,
            "26000" => FaultKind::Connection,
            "42501" => FaultKind::Access,
            // A key longer than an index takes.
            "54000" => FaultKind::Data,
            code => match code.get(..2) {
                Some("08") => FaultKind::Connection,
                Some("25" | "40" | "53" | "55" | "57") => FaultKind::Environment,
                Some("22" | "23") => FaultKind::Data,
                Some("28") => FaultKind::Access,
                Some("3D" | "3F" | "42") => FaultKind::Schema,
                _ => FaultKind::Unknown,
            },
        }
    }

    pub(crate) fn of_sqlstate(sqlstate: &str, message: &str) -> Self {
        let kind = Self::kind_of(sqlstate);
        // Messages about data quote it.
        let text = match kind {
            FaultKind::Data => "the value or key does not fit".to_owned(),
            FaultKind::Contention => "another writer changed the same rows".to_owned(),
            FaultKind::Connection
            | FaultKind::Plan
            | FaultKind::Environment
            | FaultKind::Schema
            | FaultKind::Access
            | FaultKind::Unknown => message.to_owned(),
        };
        Self { kind, sqlstate: Some(sqlstate.to_owned()), at: None, text }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)?;
        self.sqlstate.as_ref().map_or(Ok(()), |sqlstate| write!(f, " (SQLSTATE {sqlstate})"))
    }
}

impl From<&sqlx::Error> for Fault {
    fn from(error: &sqlx::Error) -> Self {
        match error.as_database_error() {
            Some(db) => Self::of_sqlstate(db.code().as_deref().unwrap_or_default(), db.message()),
            None => Self::connection(error.to_string()),
        }
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&tokio_postgres::Error> for Fault {
    fn from(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => Self {
                at: Some(Box::new(Place {
                    column: db.column().map(str::to_owned),
                    constraint: db.constraint().map(str::to_owned),
                })),
                ..Self::of_sqlstate(
                    db.code().code(),
                    match db.routine() {
                        Some(RAISE) => "a function or trigger of the target raised an exception; see PostgreSQL's log",
                        _ => db.message(),
                    },
                )
            },
            None => {
                let source = std::error::Error::source(error);
                let io = source.is_some_and(|source| source.is::<std::io::Error>());
                let lost = error.is_closed() || io || error.to_string().starts_with("timeout");
                let kind = if lost { FaultKind::Connection } else { FaultKind::Unknown };
                let cause = source.map(|cause| format!(": {cause}")).unwrap_or_default();
                Self { kind, sqlstate: None, at: None, text: format!("{error}{cause}") }
            }
        }
    }
}
