//! Where the target database is and how tables are named in it.

use cdc_runtime::Secret;
use serde::{Deserialize, Serialize};

/// Connections per process, unless configured: enough to keep two PostgreSQL cores busy, few enough that a dozen
/// processes fit the default `max_connections` of 100.
const POOL_SIZE: usize = 8;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Host name, address, or the directory of a unix socket.
    pub host: String,
    #[serde(default = "default_port")]
    pub port: u16,
    pub database: String,
    pub username: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Connections of this process.
    #[serde(default = "default_pool_size")]
    pub pool_size: usize,
    /// Schema of the target tables; created if it is missing.
    #[serde(default = "default_schema")]
    pub schema: String,
    /// Name of a target table; `{table}` and `{keyspace}` are replaced.
    #[serde(default = "default_table_name")]
    pub table_name: String,
}

fn default_port() -> u16 {
    5432
}

fn default_pool_size() -> usize {
    POOL_SIZE
}

fn default_schema() -> String {
    "public".to_owned()
}

fn default_table_name() -> String {
    "cdc_{table}".to_owned()
}

impl PostgresConfig {
    /// The given place, everything else as by default.
    pub fn new(host: impl Into<String>, port: u16, database: impl Into<String>, username: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            port,
            database: database.into(),
            username: username.into(),
            password: None,
            pool_size: default_pool_size(),
            schema: default_schema(),
            table_name: default_table_name(),
        }
    }
}
