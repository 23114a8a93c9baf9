//! The long-running roles.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use cdc_cassandra::checks::Wanted;
use cdc_kafka::{KafkaError, Publisher};
use cdc_postgres::{Disposition, PostgresConfig, TargetError};
use cdc_reconciler::service::{self, Settings};
use cdc_runtime::admin::{self, AdminConfig, AdminError, Report};
use cdc_runtime::{Lifecycle, Refusal, STOP_DEADLINE, telemetry};
use cdc_sink::{SinkError, SinkMetrics};
use cdc_source::{Outlet, SourceError, SourceMetrics};
use cdc_vault::Vault;
use tracing::info;

use crate::cli::ConfigArgs;
use crate::config::{Config, Role};
use crate::credentials;
use crate::report::ProcessReport;

/// Runs a role until it is stopped or fails.
pub(crate) fn run(role: Role, args: &ConfigArgs, log_level: Option<&str>) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config, Some(role))?;
    telemetry::init(log_level, config.log.level.as_deref()).map_err(|error| Refusal::config(error.to_string()))?;
    info!(role = role.name(), version = env!("CARGO_PKG_VERSION"), config = %args.config.display(), "cdc starts");
    Ok(cdc_runtime::run(config.stop_deadline(), move |lifecycle| start(role, config, lifecycle)))
}

async fn start(role: Role, config: Config, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let mut config = config;
    let vault = credentials::start(&mut config, &lifecycle)?;
    if role == Role::Reconciler {
        return serve(config, vault, lifecycle).await;
    }
    let Config { cassandra, source, kafka, postgres, sink, admin, .. } = config;
    let state = vault.as_ref().map(|vault| vault.state.clone());
    let report = Arc::new(ProcessReport::new(role, kafka.is_some(), state));
    answer(role, &admin, &report, &lifecycle).await?;
    if !issued(vault.as_ref(), &lifecycle).await {
        return Ok(());
    }

    if let Some(((source, cassandra), metrics)) = source.zip(cassandra).zip(report.source.clone()) {
        let sink_metrics = report.sink.clone().unwrap_or_default();
        let outlet = match (&kafka, &postgres) {
            (Some(kafka), _) => Outlet::Kafka(Publisher::connect(kafka).map_err(|error| refuse_kafka(&error))?),
            (None, Some(postgres)) => {
                let connecting = connect(postgres);
                let Some(target) = lifecycle.soft().run_until_cancelled(connecting).await else { return Ok(()) };
                Outlet::Direct { target: target?, config: sink.clone(), metrics: sink_metrics }
            }
            (None, None) => unreachable!("the sections of a role are checked when its configuration is loaded"),
        };
        lifecycle.spawn("source", run_source(source, cassandra, outlet, metrics, lifecycle.clone()));
    }
    if let Some(((kafka, postgres), metrics)) = kafka.zip(postgres).zip(report.sink.clone()) {
        lifecycle.spawn("sink", run_sink(sink, kafka, postgres, metrics, lifecycle.clone()));
    }
    Ok(())
}

/// Waits for the logins that Vault gives; `false` if stopped first.
async fn issued(vault: Option<&Vault>, lifecycle: &Lifecycle) -> bool {
    let Some(vault) = vault else { return true };
    lifecycle.soft().run_until_cancelled(vault.issued()).await.is_some()
}

/// The admin server; an agent's takes snapshots, too.
async fn answer(
    role: Role,
    admin: &AdminConfig,
    report: &Arc<ProcessReport>,
    lifecycle: &Lifecycle,
) -> anyhow::Result<()> {
    let mut router = admin::router(report.clone());
    if let Some(source) = &report.source {
        router = router.merge(Arc::clone(source.snapshots()).router());
    }
    // Nothing asks who is asking.
    if let Some(fault) = admin.validate().into_iter().next() {
        return Err(AdminError::NotLoopback(fault).into());
    }
    let address = admin.address(role.admin_port());
    admin::answer("admin", address, admin.port_file.as_deref(), router, lifecycle).await?;
    answer_elsewhere(admin, report.clone(), lifecycle).await
}

/// Health and metrics for other machines, where the file says so.
async fn answer_elsewhere(admin: &AdminConfig, report: Arc<dyn Report>, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    if let Some(remote) = &admin.remote {
        let router = admin::remote_router(report, remote.token.clone());
        admin::answer("admin.remote", remote.listen, None, router, lifecycle).await?;
    }
    Ok(())
}

/// Brings schema `_cdc` up to date and ends; waits for a server that is not there yet.
pub(crate) fn migrate(args: &ConfigArgs, log_level: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut config = Config::load(&args.config, None)?;
    telemetry::init(log_level, config.log.level.as_deref()).map_err(|error| Refusal::config(error.to_string()))?;
    Ok(cdc_runtime::run(STOP_DEADLINE, move |lifecycle| async move {
        let vault = credentials::start(&mut config, &lifecycle)?;
        let Some(postgres) = config.postgres else {
            return Err(Refusal::config("section postgres is missing, which `cdc migrate` needs".to_owned()).into());
        };
        if !issued(vault.as_ref(), &lifecycle).await {
            anyhow::bail!("stopped before Vault had given a login");
        }
        let connecting = lifecycle.soft().run_until_cancelled(connect(&postgres)).await;
        connecting.context("stopped before schema _cdc was up to date")??;
        info!(database = postgres.database, "schema _cdc is up to date");
        lifecycle.stop();
        Ok(())
    }))
}

async fn serve(config: Config, vault: Option<Vault>, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let Config {
        cassandra: Some(cassandra),
        source: Some(source),
        postgres: Some(mut postgres),
        kafka,
        reconciler,
        admin,
        ..
    } = config
    else {
        unreachable!("the sections of a role are checked when its configuration is loaded")
    };
    // A comparison holds some while a replay holds one.
    postgres.pool_size = postgres.pool_size.max(4);
    let settings = Settings {
        reconciler,
        cassandra,
        postgres: postgres.clone(),
        kafka,
        captured: source.tables.iter().filter_map(|text| Wanted::parse(text)).collect(),
        marks: source.marks(),
        decode: cdc_sink::decode_again,
        show_key: crate::reconcile::key,
        read_key: crate::reconcile::partition_key,
        vault: vault.as_ref().map(|vault| vault.state.clone()),
    };
    let service = service::answer(settings, &lifecycle).await?;
    answer_elsewhere(&admin, service.report(), &lifecycle).await?;
    if !issued(vault.as_ref(), &lifecycle).await {
        return Ok(());
    }
    let Some(target) = lifecycle.soft().run_until_cancelled(connect(&postgres)).await else { return Ok(()) };
    service.work(target?, &lifecycle);
    Ok(())
}

async fn connect(postgres: &PostgresConfig) -> anyhow::Result<cdc_postgres::Target> {
    Box::pin(cdc_sink::connect(postgres)).await.map_err(refuse_sink)
}

async fn run_source(
    source: cdc_source::SourceConfig,
    cassandra: cdc_cassandra::CassandraConfig,
    outlet: Outlet,
    metrics: Arc<SourceMetrics>,
    lifecycle: Lifecycle,
) -> anyhow::Result<()> {
    Box::pin(cdc_source::run(source, cassandra, outlet, metrics, lifecycle)).await.map_err(|error| match error {
        SourceError::Config(_) | SourceError::Directory { .. } | SourceError::Keystore(_) => {
            Refusal::config(chain(&error)).into()
        }
        SourceError::Kafka(error) => refuse_kafka(&error),
        SourceError::Sink(error) => refuse_sink(error),
        other => other.into(),
    })
}

async fn run_sink(
    sink: cdc_sink::SinkConfig,
    kafka: cdc_kafka::KafkaConfig,
    postgres: PostgresConfig,
    metrics: Arc<SinkMetrics>,
    lifecycle: Lifecycle,
) -> anyhow::Result<()> {
    Box::pin(cdc_sink::run(sink, kafka, postgres, metrics, lifecycle)).await.map_err(refuse_sink)
}

fn refuse_sink(error: SinkError) -> anyhow::Error {
    match error {
        SinkError::Kafka(error) => refuse_kafka(&error),
        SinkError::Target(error) if is_refused(&error) => Refusal::unavailable(chain(&error)).into(),
        other => other.into(),
    }
}

/// The server is there and will not have us as it is set up.
fn is_refused(error: &TargetError) -> bool {
    match error {
        TargetError::Connect { .. } | TargetError::Migrate { .. } => error.disposition() == Disposition::Halt,
        _ => false,
    }
}

fn refuse_kafka(error: &KafkaError) -> anyhow::Error {
    match error {
        KafkaError::Settings(_) | KafkaError::SharedTopic { .. } => Refusal::config(chain(error)).into(),
        KafkaError::CreateTopic { .. } => Refusal::unavailable(chain(error)).into(),
        other => anyhow::Error::new(other.clone()),
    }
}

/// An error and its causes in one sentence; drivers repeat the inner ones in the outer.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let sentence = error.to_string();
        if !text.contains(&sentence) {
            text.push_str(": ");
            text.push_str(&sentence);
        }
        cause = error.source();
    }
    text
}
