//! Connections, target tables and the apply path; every SQL statement.

mod config;
mod error;
mod stream;
mod target;

pub use config::{Password, PostgresConfig};
pub use error::{ApplyError, Disposition, TargetError};
pub use stream::{Advance, Claim, StreamName};
pub use target::{Applied, Target};
