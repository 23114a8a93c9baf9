//! CQL access: sessions and schema. The one crate that names the driver.

pub mod checks;
mod config;
mod error;
mod log_in;
mod mark;
mod read;
mod schema;
mod session;
mod settings;

pub use config::CassandraConfig;
pub use error::CassandraError;
pub use mark::{MarkError, MarkTable, MarkedNode, Marks};
pub use read::{ClusterReader, Consistency, Fields, Page, Pages, TableReader, Unread};
pub use session::{Cassandra, Ring, TableStanding};
pub use settings::Settings;
