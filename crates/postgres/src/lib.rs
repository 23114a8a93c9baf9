//! Connections, target tables and the apply path; every SQL statement.

mod array;
mod batch;
mod config;
mod connect;
mod dead_letters;
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
pub use dead_letters::{
    DeadLetter, Decode, ErrorType, FloodLimit, LetterFilter, LetterStatus, LetterSummary, Original, Origins, Replayed,
    Undecodable, Undecoded, UnpublishedLetter,
};
pub use error::{ApplyError, Disposition, Fault, TargetError};
pub use stream::{Advance, Claim, StreamName};
pub use target::{Applied, Delivery, Target};
