//! `cdc reconciler`: comparisons as a service, and its REST API (docs/api.md).
//!
//! - *API* ([`api`]): answers from PostgreSQL alone, over connections of its own, so it is there while a comparison runs, and
//!   while Cassandra is not.
//! - *Jobs* ([`work`], [`job`]): one at a time in a process, and beside it one repair of a single row. Several processes share
//!   them: each is run by whoever has its lease, part by part, and gone on with by another where it was left.
//! - *Schedule* ([`schedule`]): queues jobs when their time has come.
//! - *Replays* ([`work`]) of dead letters that were asked for.
//! - *Retention* ([`work`]): what is over is forgotten after a while.
//! - *Figures* ([`figures`]): what `/metrics` and `/status` tell, read again every few seconds, so that a restart shows the
//!   same.
//!
//! No process that moves data needs this one.

mod api;
mod config;
mod engine;
mod figures;
mod found;
mod job;
mod letters;
mod schedule;
mod watch;
mod work;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cdc_cassandra::{CassandraConfig, MarkTable, checks::Wanted};
use cdc_kafka::KafkaConfig;
use cdc_model::{TableSchema, ValueBytes};
use cdc_postgres::{PostgresConfig, Target, ledger::Ledger};
use cdc_runtime::{Lifecycle, admin};
use cdc_vault::VaultState;
use serde_json::Value;
use tokio::sync::Notify;

pub use config::{PORT, ReconcilerConfig, RetentionConfig, ScheduleConfig};
pub use letters::{DecodeAgain, Letters};

use crate::Finding;

/// Everything it takes, as the file has it.
pub struct Settings {
    pub reconciler: ReconcilerConfig,
    pub cassandra: CassandraConfig,
    pub postgres: PostgresConfig,
    pub kafka: Option<KafkaConfig>,
    /// `source.tables` and `source.barrier_table`, as the agents have them.
    pub captured: Vec<Wanted>,
    pub marks: MarkTable,
    pub decode: DecodeAgain,
    /// A key for those who may see it.
    pub show_key: fn(&Arc<TableSchema>, &Finding) -> Value,
    /// A partition key as somebody has written it, serialised as Cassandra does; else what is wrong with it.
    pub read_key: fn(&TableSchema, &str) -> Result<ValueBytes, String>,
    /// Where logins come from Vault.
    pub vault: Option<VaultState>,
}

/// What all parts share.
struct Service {
    settings: Settings,
    ledger: Ledger,
    /// Once PostgreSQL has answered.
    engine: OnceLock<engine::Engine>,
    figures: figures::Figures,
    calendar: schedule::Calendar,
    /// Work was added.
    work: Notify,
}

/// Part of the service, as its tasks and handlers hold it.
type Shared = Arc<Service>;

/// The service that answers already, and does not work yet.
pub struct Answering(Shared);

/// Starts answering.
///
/// # Errors
/// If the address is not free, or the port file cannot be written.
pub async fn answer(settings: Settings, lifecycle: &Lifecycle) -> Result<Answering, admin::AdminError> {
    let ledger = Ledger::new(&settings.postgres);
    let service = Arc::new(Service {
        ledger,
        engine: OnceLock::new(),
        figures: figures::Figures::default(),
        calendar: schedule::Calendar::default(),
        work: Notify::new(),
        settings,
    });
    let config = &service.settings.reconciler;
    let router = api::router(&service);
    admin::answer("reconciler", config.address(), config.port_file.as_deref(), router, lifecycle).await?;
    let (following, soft) = (Arc::clone(&service), lifecycle.soft().clone());
    lifecycle.spawn("login of the API", async move {
        soft.run_until_cancelled(following.ledger.follow(&following.settings.postgres)).await;
        anyhow::Ok(())
    });
    Ok(Answering(service))
}

impl Answering {
    /// Its health and metrics, to be served elsewhere, too.
    pub fn report(&self) -> Arc<dyn admin::Report> {
        self.0.clone()
    }

    /// Starts working with what it works on.
    pub fn work(self, target: Target, lifecycle: &Lifecycle) {
        let service = self.0;
        let engine = engine::Engine::new(target, &service.settings);
        assert!(service.engine.set(engine).is_ok(), "a service begins to work once");
        lifecycle.spawn("figures", figures::keep(Arc::clone(&service), lifecycle.soft().clone()));
        lifecycle.spawn("schedule", schedule::keep(Arc::clone(&service), lifecycle.soft().clone()));
        lifecycle.spawn("retention", work::retention(Arc::clone(&service), lifecycle.soft().clone()));
        lifecycle.spawn("jobs", work::jobs(Arc::clone(&service), lifecycle.soft().clone()));
        lifecycle.spawn("repairs", work::repairs(Arc::clone(&service), lifecycle.soft().clone()));
        lifecycle.spawn("replays", work::replays(service, lifecycle.soft().clone()));
    }
}

impl Service {
    /// What may be compared, as far as it is known by name: named in the configuration, or met by a writer.
    async fn tables(&self) -> Result<Vec<(String, String)>, cdc_postgres::TargetError> {
        self.tables_of(&self.settings.reconciler.tables(&self.settings.captured)).await
    }

    /// Those of them that may be compared.
    async fn tables_of(&self, wanted: &[Wanted]) -> Result<Vec<(String, String)>, cdc_postgres::TargetError> {
        let is_wanted = |(keyspace, name): &(String, String)| {
            let matches = |table: &Wanted| table.table.as_ref().is_none_or(|wanted| wanted == name);
            wanted.iter().any(|table| table.keyspace == *keyspace && matches(table))
        };
        let named = wanted.iter().filter_map(|table| Some((table.keyspace.clone(), table.table.clone()?)));
        let known = self.ledger.known_tables().await?.into_iter().filter(is_wanted);
        let mut tables: Vec<(String, String)> = named.chain(known).collect();
        tables.sort();
        tables.dedup();
        Ok(tables)
    }

    /// Those of a schedule.
    async fn scheduled(&self, schedule: &ScheduleConfig) -> Result<Vec<(String, String)>, cdc_postgres::TargetError> {
        let all = self.settings.reconciler.tables(&self.settings.captured);
        self.tables_of(&schedule.tables(&all)).await
    }

    fn barrier_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.reconciler.barrier_timeout_ms)
    }
}
