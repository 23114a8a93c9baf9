//! A session with one node.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cdc_commitlog::{SchemaFile, Truncation};
use cdc_model::{NodeId, TableId, TableSchema};
use cdc_runtime::Lifecycle;
use futures::future::BoxFuture;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::DeserializeRow;
use scylla::policies::host_filter::AllowListHostFilter;
use scylla::statement::{Consistency, Statement};
use tracing::{info, warn};
use uuid::Uuid;

use crate::log_in::LogIn;
use crate::settings::Settings;
use crate::{CassandraConfig, CassandraError, ClusterReader, schema};

/// Between attempts of [`Cassandra::connect_when_ready`]: a node takes tens of seconds to start.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// What can change about a table while it is read, as the node connected to knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableStanding {
    pub schema_version: Uuid,
    /// The last one.
    pub truncation: Option<Truncation>,
}

/// Nodes and their tokens.
pub type Ring = Vec<(NodeId, Vec<i64>)>;

/// Truncations by table, as `system.local` holds them.
type Records = HashMap<Uuid, Vec<u8>>;

/// A session with the first contact point, and with no other node, whatever the cluster: what is asked here is about
/// that node (its host id, its settings) or known to every node alike (the schema). Clones share the connection.
#[derive(Clone)]
pub struct Cassandra {
    session: Arc<Session>,
    config: CassandraConfig,
    host_id: NodeId,
    release_version: String,
    cluster_name: String,
}

impl std::fmt::Debug for Cassandra {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cassandra").field("host_id", &self.host_id).finish_non_exhaustive()
    }
}

impl Cassandra {
    /// One attempt, of at most `connect_timeout_ms`.
    ///
    /// # Errors
    /// If the node cannot be resolved, reached or logged in to; the sentence names the contact point.
    pub async fn connect(config: &CassandraConfig) -> Result<Self, CassandraError> {
        let contact_point = config.contact_points.first().cloned().unwrap_or_default();
        let timeout = Duration::from_millis(config.connect_timeout_ms);
        match tokio::time::timeout(timeout, Self::attempt(config)).await {
            Ok(result) => result,
            Err(_) => Err(CassandraError::Timeout { contact_point, timeout }),
        }
    }

    /// Tries until it succeeds, so that the order in which processes start does not matter; `None` if stopped first.
    /// Each new cause is logged once.
    pub async fn connect_when_ready(config: &CassandraConfig, lifecycle: &Lifecycle) -> Option<Self> {
        let mut logged = String::new();
        let attempts = async {
            loop {
                match Self::connect(config).await {
                    Ok(session) => return session,
                    Err(error) => {
                        let sentence = error.to_string();
                        if sentence != logged {
                            let cause = std::error::Error::source(&error).map(ToString::to_string);
                            warn!(cause, "{sentence}; trying again every {RETRY_INTERVAL:?}");
                            logged = sentence;
                        }
                    }
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        lifecycle.soft().run_until_cancelled(attempts).await
    }

    fn attempt(config: &CassandraConfig) -> BoxFuture<'_, Result<Self, CassandraError>> {
        Box::pin(async move {
            let contact_point = config.contact_points.first().cloned().unwrap_or_default();
            let Some((host, port)) = config.own_node() else { return Err(CassandraError::ContactPoint(contact_point)) };
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
                .await
                .map_err(|source| CassandraError::Resolve { host: host.to_owned(), source })?
                .collect();
            let only_own = AllowListHostFilter::new(addresses.iter().copied())
                .map_err(|source| CassandraError::Resolve { host: host.to_owned(), source })?;
            let mut builder = SessionBuilder::new()
                .known_nodes_addr(&addresses)
                .host_filter(Arc::new(only_own))
                .connection_timeout(Duration::from_millis(config.connect_timeout_ms))
                .fetch_schema_metadata(false);
            if config.credentials.is_some() || config.username.is_some() {
                builder = builder.authenticator_provider(Arc::new(LogIn(config.clone())));
            }
            let session = builder
                .build()
                .await
                .map_err(|source| CassandraError::Connect { contact_point, source: Box::new(source) })?;
            let session = Arc::new(session);
            let table = "system.local";
            let local: Vec<(Uuid, String, String)> =
                rows(&session, table, "select host_id, release_version, cluster_name from system.local").await?;
            let (host_id, release_version, cluster_name) =
                local.into_iter().next().ok_or(CassandraError::NoRow { table })?;
            info!(%host_id, release_version, cluster_name, "connected to Cassandra");
            Ok(Self { session, config: config.clone(), host_id: NodeId(host_id), release_version, cluster_name })
        })
    }

    /// Of the node connected to.
    pub fn host_id(&self) -> NodeId {
        self.host_id
    }

    /// As in `5.0.5`.
    pub fn release_version(&self) -> &str {
        &self.release_version
    }

    pub fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// The driver's session, for what has no method here.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The node's configuration, as far as it shows it.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn settings(&self) -> BoxFuture<'_, Result<Settings, CassandraError>> {
        Box::pin(async move {
            let settings: Vec<(String, Option<String>)> =
                self.rows("system_views.settings", "select name, value from system_views.settings").await?;
            Ok(Settings(settings.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()))
        })
    }

    /// All tables and views of all keyspaces, with dropped columns; what a commit log can contain. Those that cannot be
    /// used are left out with a warning.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn load_schema(&self) -> Result<Vec<TableSchema>, CassandraError> {
        let (tables, faults) = self.load_schema_file().await?.tables();
        for fault in faults {
            warn!(%fault, "a table is not captured");
        }
        Ok(tables)
    }

    /// The same as rows, to be kept in a file or to begin a history with.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn load_schema_file(&self) -> BoxFuture<'_, Result<SchemaFile, CassandraError>> {
        Box::pin(schema::load(self))
    }

    /// Changes with every change of the schema.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn schema_version(&self) -> Result<Uuid, CassandraError> {
        let table = "system.local";
        let versions: Vec<(Uuid,)> = self.rows(table, "select schema_version from system.local").await?;
        versions.into_iter().next().map(|(version,)| version).ok_or(CassandraError::NoRow { table })
    }

    /// The other nodes of the cluster, as this one knows them, and where they speak CQL.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn peers(&self) -> BoxFuture<'_, Result<Vec<(NodeId, SocketAddr)>, CassandraError>> {
        Box::pin(async move {
            let query = "select host_id, native_address, native_port from system.peers_v2";
            let peers: Vec<(Option<Uuid>, Option<IpAddr>, Option<i32>)> = self.rows("system.peers_v2", query).await?;
            let peer = |(id, address, port): (Option<Uuid>, Option<IpAddr>, Option<i32>)| {
                Some((NodeId(id?), SocketAddr::new(address?, u16::try_from(port?).ok()?)))
            };
            Ok(peers.into_iter().filter_map(peer).collect())
        })
    }

    /// Reads tables with this node as coordinator, so that `LOCAL_QUORUM` is of its data centre.
    pub fn reader(&self) -> ClusterReader {
        ClusterReader::of(Arc::clone(&self.session))
    }

    /// The tokens of all nodes, as this one knows them.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn ring(&self) -> BoxFuture<'_, Result<Ring, CassandraError>> {
        Box::pin(async move {
            let local = "select host_id, tokens from system.local";
            let peers = "select host_id, tokens from system.peers_v2";
            let mut nodes: Vec<(Option<Uuid>, Option<Vec<String>>)> = self.rows("system.local", local).await?;
            nodes.extend(self.rows("system.peers_v2", peers).await?);
            let tokens = |texts: Option<Vec<String>>| texts.into_iter().flatten().filter_map(|text| text.parse().ok());
            Ok(nodes.into_iter().filter_map(|(id, texts)| Some((NodeId(id?), tokens(texts).collect()))).collect())
        })
    }

    /// # Errors
    /// If the node does not answer.
    pub fn standing(&self, table: TableId) -> BoxFuture<'_, Result<TableStanding, CassandraError>> {
        Box::pin(async move {
            let query = "select schema_version, truncated_at from system.local";
            let rows: Vec<(Uuid, Option<Records>)> = self.rows("system.local", query).await?;
            let row = rows.into_iter().next().ok_or(CassandraError::NoRow { table: "system.local" })?;
            let (schema_version, records) = row;
            let record = records.and_then(|mut records| records.remove(&table.0));
            let truncation = record.and_then(|record| Truncation::parse(table, &record));
            Ok(TableStanding { schema_version, truncation })
        })
    }

    /// A session with another node, with the same credentials.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_to(&self, node: SocketAddr) -> BoxFuture<'_, Result<Self, CassandraError>> {
        let config = CassandraConfig { contact_points: vec![node.to_string()], ..self.config.clone() };
        Box::pin(async move { Self::connect(&config).await })
    }

    /// The last truncation of each table on the node connected to.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn truncations(&self) -> BoxFuture<'_, Result<Vec<Truncation>, CassandraError>> {
        Box::pin(async move {
            let table = "system.local";
            let query = "select truncated_at from system.local";
            let rows: Vec<(Option<Records>,)> = self.rows(table, query).await?;
            let (records,) = rows.into_iter().next().ok_or(CassandraError::NoRow { table })?;
            let records = records.into_iter().flatten();
            Ok(records.filter_map(|(table, record)| Truncation::parse(TableId(table), &record)).collect())
        })
    }

    pub(crate) async fn rows<R>(&self, table: &'static str, query: &str) -> Result<Vec<R>, CassandraError>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
    {
        rows(&self.session, table, query).await
    }
}

async fn rows<R>(session: &Session, table: &'static str, query: &str) -> Result<Vec<R>, CassandraError>
where
    R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
{
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| CassandraError::Query { table, source };
    let mut statement = Statement::new(query);
    // The tables read here live on every node.
    statement.set_consistency(Consistency::One);
    let result = Box::pin(session.query_unpaged(statement, ())).await.map_err(|error| failed(Box::new(error)))?;
    let result = result.into_rows_result().map_err(|error| failed(Box::new(error)))?;
    result
        .rows::<R>()
        .map_err(|error| failed(Box::new(error)))?
        .collect::<Result<_, _>>()
        .map_err(|error| failed(Box::new(error)))
}
