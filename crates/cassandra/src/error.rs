use std::time::Duration;

#[derive(thiserror::Error, Debug)]
pub enum CassandraError {
    #[error("cassandra.contact_points: {0:?} is neither `host` nor `host:port`")]
    ContactPoint(String),
    #[error("cassandra.contact_points: host {host:?} does not resolve; check its name")]
    Resolve {
        host: String,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "Cassandra at {contact_point} did not answer within {timeout:?}; check cassandra.contact_points, that the node \
         runs, and that native transport listens there"
    )]
    Timeout { contact_point: String, timeout: Duration },
    #[error(
        "cannot connect to Cassandra at {contact_point}; check cassandra.contact_points, that the node runs, and \
         cassandra.username and password"
    )]
    Connect {
        contact_point: String,
        #[source]
        source: Box<scylla::errors::NewSessionError>,
    },
    /// The query's name, never its values.
    #[error("cannot read {table} from Cassandra")]
    Query {
        table: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{table} has no row: not a Cassandra node of version 4.0 or later")]
    NoRow { table: &'static str },
    #[error("the schema of Cassandra is not usable")]
    Schema(#[from] cdc_model::SchemaError),
}
