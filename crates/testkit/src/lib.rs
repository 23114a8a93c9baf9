//! Obtains, starts and breaks real servers: Cassandra, Kafka, PostgreSQL and Vault.
//!
//! Every server runs as an ordinary process from pinned artefacts ([`Artifact`]), in a folder of its own, on loopback
//! addresses and ports that were free, so that several run side by side. The calls are synchronous; in async code use
//! them through `spawn_blocking`.
//!
//! **Invariant:** nothing outlives its owner. When the process that started a server ends in whatever way, SIGKILL
//! included, the server is killed with it (see the `process` module). The folder of an instance whose owner died is
//! removed by the next one that starts.

mod artifact;
mod cassandra;
pub mod dev;
mod error;
mod instance;
mod java;
mod kafka;
mod place;
mod postgres;
mod process;
mod reader;
mod vault;

pub use artifact::{Artifact, pin};
pub use cassandra::{Cassandra, CassandraBuilder, Node};
pub use error::Error;
pub use kafka::Kafka;
pub use place::cache_dir;
pub use postgres::{Postgres, PostgresBuilder};
pub use process::Server;
pub use reader::cassandra_reader;
pub use vault::Vault;

/// The versions started where none is named.
pub mod default_version {
    /// The release the pipeline is developed against.
    pub const CASSANDRA: &str = "5.0.5";
    /// The only pinned release: clients speak every protocol version to it.
    pub const KAFKA: &str = "4.1.0";
    /// The release the pipeline is developed against.
    pub const POSTGRES: &str = "17.5";
    /// The only one that can be built from its modules here.
    pub const VAULT: &str = "1.21.0";
}
