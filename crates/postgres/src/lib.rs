//! Connections, target tables and the apply path; every SQL statement.

mod array;
mod batch;
mod config;
mod connect;
mod error;
mod json;
pub mod layout;
mod prepare;
mod purge;
mod session;
mod stream;
mod target;
mod transact;
mod value;

pub use config::PostgresConfig;
pub use error::{ApplyError, Disposition, Fault, TargetError};
pub use stream::{Advance, Claim, StreamName};
pub use target::{Applied, Target};
