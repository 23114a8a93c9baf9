//! CQL access: sessions and schema. The one crate that names the driver.

pub mod checks;
mod config;
mod error;
mod schema;
mod session;
mod settings;

pub use config::CassandraConfig;
pub use error::CassandraError;
pub use session::Cassandra;
pub use settings::Settings;
