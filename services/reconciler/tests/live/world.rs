//! Servers, a pipeline in this process, and load.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use cdc_cassandra::{Cassandra as Node, CassandraConfig, ClusterReader, Consistency, checks::Wanted};
use cdc_model::{TableSchema, TokenRange};
use cdc_postgres::{PostgresConfig, Strategy, Target};
use cdc_reconciler::{
    Options, Outcome, Pass, PipelineBarrier, Reconciler, Scope,
    barrier::{Barrier, BarrierSettings},
};
use cdc_runtime::{Lifecycle, Secret};
use cdc_source::{Outlet, SourceConfig};
use cdc_testkit::{Cassandra, Postgres};
use cdc_workload::{Load, LoadCounters, LoadOptions, every_change::Session, shop};
use futures::future::BoxFuture;
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) session: Arc<Session>,
    pub(crate) postgres: tokio_postgres::Client,
    pub(crate) schema: Vec<TableSchema>,
    pub(crate) config: CassandraConfig,
    target: Target,
    pub(crate) barrier: Arc<PipelineBarrier>,
    pipeline: Lifecycle,
    _cassandra: Cassandra,
    _postgres: Postgres,
    _folder: tempfile::TempDir,
}

impl World {
    /// `prepare` creates tables beside those of the shop, all of them in the keyspaces that are captured.
    pub(crate) async fn start(keyspaces: &[&str], prepare: impl AsyncFnOnce(&Session) -> Result<()>) -> Result<Self> {
        let (cassandra, postgres) = tokio::task::spawn_blocking(|| {
            (Cassandra::builder().commitlog_segment_size_mib(2).start(), Postgres::start())
        })
        .await?;
        let (cassandra, postgres) = (cassandra?, postgres?);
        let session = cdc_workload::connect(&cassandra.contact_points()).await?;
        shop::create_schema(&session, 1).await?;
        prepare(&session).await?;

        let url = postgres.url();
        let password = url.split(['@', ':']).nth(2).context("a password stands between : and @")?;
        let address = postgres.address();
        let mut config = PostgresConfig::new(address.ip().to_string(), address.port(), "warehouse", "postgres");
        config.password = Some(Secret::new(password));
        let target = Target::connect(&config).await?;
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
        #[expect(clippy::disallowed_methods, reason = "the connection ends with its client")]
        tokio::spawn(connection);

        let folder = tempfile::tempdir()?;
        let node = cassandra.node(0);
        let tables: Vec<String> = keyspaces.iter().chain(&["shop"]).map(|keyspace| format!("{keyspace}.*")).collect();
        let captured = tables.iter().filter_map(|table| Wanted::parse(table)).collect();
        let source = SourceConfig::new(node.cdc_raw_dir(), folder.path().to_owned(), tables);
        let settings = BarrierSettings { marks: source.marks(), captured };
        let pipeline = Lifecycle::new();
        let outlet =
            Outlet::Direct { target: target.clone(), config: cdc_sink::SinkConfig::default(), metrics: Arc::default() };
        let config = CassandraConfig::new(node.address());
        pipeline.spawn("source", cdc_source::run(source, config.clone(), outlet, Arc::default(), pipeline.clone()));
        let node = Node::connect(&config).await?;
        let schema = node.load_schema().await?;
        let barrier = Barrier::connect(node, target.clone(), None, settings).await?;
        let world = Self {
            session: Arc::new(session),
            postgres: client,
            schema,
            config,
            target,
            barrier: Arc::new(PipelineBarrier::new(barrier, PATIENCE)),
            pipeline,
            _cassandra: cassandra,
            _postgres: postgres,
            _folder: folder,
        };
        world.settle().await?;
        Ok(world)
    }

    pub(crate) async fn cql(&self, statement: &str) -> Result<()> {
        self.session.query_unpaged(statement, ()).await.with_context(|| statement.to_owned())?;
        Ok(())
    }

    pub(crate) async fn sql(&self, statement: &str) -> Result<()> {
        self.postgres.batch_execute(statement).await.with_context(|| statement.to_owned())
    }

    /// Everything written before is in PostgreSQL.
    pub(crate) async fn settle(&self) -> Result<()> {
        self.barrier.pass(&self.schema[0]).await.map_err(anyhow::Error::msg)
    }

    /// Compares all tables of a keyspace.
    pub(crate) async fn compare(
        &self,
        keyspace: &str,
        strategy: Strategy,
        consistency: Consistency,
    ) -> Result<Vec<Outcome>> {
        self.compare_with(keyspace, strategy, Options { consistency, ..Options::default() }).await
    }

    pub(crate) async fn compare_with(
        &self,
        keyspace: &str,
        strategy: Strategy,
        options: Options,
    ) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for table in self.schema.iter().filter(|table| table.keyspace == keyspace && table.cdc) {
            let scope = Scope::new(Arc::new(table.clone()), TokenRange::RING);
            let barrier: Arc<dyn Pass> = self.barrier.clone();
            outcomes.push(self.compare_scope(scope, strategy, options.clone(), barrier).await?);
        }
        Ok(outcomes)
    }

    pub(crate) async fn compare_scope(
        &self,
        scope: Scope,
        strategy: Strategy,
        options: Options,
        barrier: Arc<dyn Pass>,
    ) -> Result<Outcome> {
        let reader = ClusterReader::connect(&self.config).await?;
        let reconciler = Reconciler::new(reader, self.target.clone(), barrier, options);
        let (progress, cancel) = (Arc::default(), CancellationToken::new());
        let outcome = reconciler.compare(&scope, strategy, &progress, &cancel).await;
        let outcome = outcome.with_context(|| scope.table.full_name())?;
        ensure!(outcome.coverage.share == 1.0 && outcome.hash == "native", "{outcome:?}");
        Ok(outcome)
    }

    pub(crate) fn table(&self, name: &str) -> Result<Arc<TableSchema>> {
        let table = self.schema.iter().find(|table| table.full_name() == name);
        Ok(Arc::new(table.with_context(|| name.to_owned())?.clone()))
    }

    /// By all values.
    pub(crate) async fn compare_only(&self, scope: Scope, options: Options) -> Result<Outcome> {
        self.compare_scope(scope, Strategy::Checksum, options, self.barrier.clone()).await
    }

    /// Compares a table with a barrier of another kind.
    pub(crate) async fn compare_by(&self, table: &str, barrier: Arc<dyn Pass>) -> Result<Outcome> {
        let scope = Scope::new(self.table(table)?, TokenRange::RING);
        self.compare_scope(scope, Strategy::Checksum, Options::default(), barrier).await
    }

    /// The real barrier, given up after a time.
    pub(crate) fn barrier_within(&self, timeout: Duration) -> Arc<dyn Pass> {
        Arc::new(Within { barrier: self.barrier.clone(), timeout })
    }

    /// From now on nothing is replicated.
    pub(crate) async fn stop_replicating(&self) {
        self.pipeline.stop();
        self.pipeline.finish(PATIENCE).await;
    }

    /// Load on the shop until it is stopped.
    pub(crate) fn load(&self, seed: u64, rate: u32) -> Running {
        let session = Arc::clone(&self.session);
        let options = LoadOptions { seed, rate: Some(rate), ..LoadOptions::default() };
        let mut load = Load::new(session, options, None);
        let counters = load.counters();
        let (stop, stopped) = oneshot::channel::<()>();
        #[expect(clippy::disallowed_methods, reason = "it is awaited")]
        let task = tokio::spawn(async move {
            load.run(async { drop(stopped.await) }).await;
            load.counters().acknowledged()
        });
        Running { stop, counters, task }
    }

    pub(crate) async fn stop(self) {
        self.pipeline.stop();
        self.pipeline.finish(PATIENCE).await;
    }
}

struct Within {
    barrier: Arc<PipelineBarrier>,
    timeout: Duration,
}

impl Pass for Within {
    fn pass<'a>(&'a self, table: &'a TableSchema) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let passing = tokio::time::timeout(self.timeout, self.barrier.pass(table));
            passing.await.unwrap_or_else(|_| Err("not in time".to_owned()))
        })
    }
}

pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    counters: Arc<LoadCounters>,
    task: JoinHandle<u64>,
}

impl Running {
    /// Waits for some hundreds of writes.
    pub(crate) async fn writes_on(&self) {
        let enough = self.counters.acknowledged() + 500;
        while self.counters.acknowledged() < enough {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many writes Cassandra acknowledged.
    pub(crate) async fn stop(self) -> Result<u64> {
        drop(self.stop);
        Ok(self.task.await?)
    }
}
