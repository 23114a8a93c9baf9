//! Connections, target tables and the apply path; every SQL statement.

mod array;
mod barrier;
mod batch;
mod canonical_json;
mod conceal;
mod config;
mod connect;
mod dead_letters;
mod digest;
mod error;
mod json;
pub mod layout;
pub mod ledger;
mod mirror;
mod number;
mod pool;
mod prepare;
mod purge;
mod session;
mod settings;
mod stream;
mod target;
mod transact;
mod truncate;
mod value;

pub use config::PostgresConfig;
pub use dead_letters::{
    DeadLetter, Decode, ErrorType, FloodLimit, LetterFilter, LetterStatus, LetterSummary, Original, Origins, Replayed,
    Undecodable, Undecoded, UnpublishedLetter,
};
pub use error::{ApplyError, Disposition, Fault, TargetError};
pub use mirror::{Expected, Hashed, Leaf, Mirror, Part, Replacement, Seen, StoredRow, Strategy};
pub use prepare::differences;
pub use settings::{ColumnSettings, Mask, OnUnrepresentable, SchemaMode, TableSettings};
pub use stream::{Advance, Claim, StreamName};
pub use target::{Applied, Delivery, Target};
