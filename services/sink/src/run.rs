//! Kafka mode.

use std::sync::Arc;

use cdc_kafka::{KafkaConfig, Publisher, SchemaFollower};
use cdc_postgres::{Disposition, PostgresConfig, Target};
use cdc_runtime::Lifecycle;
use futures::future::BoxFuture;
use tokio::runtime::Handle;

use crate::{SinkConfig, SinkError, SinkMetrics, dead_letter::DeadLetters, reader::Reader, retry::Patience, sweeper};

/// Applies a group's share of all event topics until `lifecycle` stops it; returns at the soft stop, while the tasks
/// it spawned drain. Waits for PostgreSQL and Kafka as long as it takes, in whatever order they come.
///
/// # Errors
/// If PostgreSQL refuses us for a reason that waiting does not remove, or librdkafka refuses its settings.
pub fn run(
    config: SinkConfig,
    kafka: KafkaConfig,
    postgres: PostgresConfig,
    metrics: Arc<SinkMetrics>,
    lifecycle: Lifecycle,
) -> BoxFuture<'static, Result<(), SinkError>> {
    Box::pin(async move {
        let soft = lifecycle.soft().clone();
        let prepared = async {
            let target = connect(&postgres).await?;
            prepare_topics(&kafka).await?;
            Ok::<_, SinkError>(target)
        };
        let Some(target) = soft.run_until_cancelled(prepared).await else { return Ok(()) };
        let target = target?;
        sweeper::spawn(&target, &config, &metrics, &lifecycle);
        let dead_letters = Arc::new(DeadLetters::new(&kafka, &config.group, target.clone(), Arc::clone(&metrics)));
        // Those of a process that died before it could.
        let left = Arc::clone(&dead_letters);
        lifecycle.spawn_finite("publish dead letters", {
            let soft = soft.clone();
            async move {
                soft.run_until_cancelled(left.publish()).await;
                anyhow::Ok(())
            }
        });
        let reader = Reader {
            config,
            target,
            schemas: SchemaFollower::start(&kafka)?,
            dead_letters,
            kafka,
            metrics,
            lifecycle: lifecycle.clone(),
            runtime: Handle::current(),
        };
        lifecycle
            .spawn_thread("kafka reader", move |_| reader.run())
            .map_err(|source| SinkError::Thread { name: "kafka reader", source })?;
        soft.cancelled().await;
        Ok(())
    })
}

/// Connects to PostgreSQL; waits for it while it is not there.
///
/// # Errors
/// Whatever waiting does not remove, such as a wrong password.
pub fn connect(config: &PostgresConfig) -> BoxFuture<'_, Result<Target, SinkError>> {
    Box::pin(async move {
        let mut patience = Patience::new("connecting to PostgreSQL");
        loop {
            match Target::connect(config).await {
                Ok(target) => {
                    patience.succeeded();
                    return Ok(target);
                }
                Err(error) => match error.disposition() {
                    Disposition::Retry => tokio::time::sleep(patience.failed(Disposition::Retry, &error)).await,
                    Disposition::Quarantine | Disposition::Halt => return Err(error.into()),
                },
            }
        }
    })
}

/// Creates the topics every sink needs; those of tables are created by the agents.
async fn prepare_topics(config: &KafkaConfig) -> Result<(), SinkError> {
    let publisher = Publisher::connect(config)?;
    let mut patience = Patience::new("connecting to Kafka");
    while let Err(error) = publisher.ensure_topics(&[]).await {
        tokio::time::sleep(patience.failed(Disposition::Retry, &error)).await;
    }
    patience.succeeded();
    Ok(())
}
