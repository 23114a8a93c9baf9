//! The side of who waits for a barrier: the marks that agents have published, and the ends of event topics.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cdc_model::Marker;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError as Driver,
};

use crate::{
    BARRIER_TOPIC, KafkaConfig, KafkaError, Publisher, TopicPartition, TopicTemplate, consumer::to_list, context::Quiet,
};

const POLL: Duration = Duration::from_millis(100);
/// A broker that is up answers within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads topic [`BARRIER_TOPIC`] without being of any group.
pub struct BarrierReader {
    consumer: Arc<BaseConsumer<Quiet>>,
    template: TopicTemplate,
}

/// What a partition holds: offset of its first record, and that of the next one to be appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    pub low: i64,
    pub high: i64,
}

impl BarrierReader {
    /// Creates the topic if it is missing.
    pub async fn connect(config: &KafkaConfig) -> Result<Self, KafkaError> {
        Publisher::connect(config)?.ensure_topics(&[]).await?;
        // As for the schemas: a group's name is demanded, and none is joined.
        let consumer = config
            .consumer(BARRIER_TOPIC, None)
            .set("statistics.interval.ms", "0")
            .create_with_context(Quiet)
            .map_err(KafkaError::Settings)?;
        Ok(Self { consumer: Arc::new(consumer), template: config.template() })
    }

    /// From now on [`Self::next`] gives every marker that is published after this was called.
    pub async fn follow(&self) -> Result<(), KafkaError> {
        self.ask(|consumer| {
            let (_, end) = consumer.fetch_watermarks(BARRIER_TOPIC, 0, ANSWER_TIMEOUT)?;
            let mut partition = TopicPartitionList::new();
            partition.add_partition_offset(BARRIER_TOPIC, 0, Offset::Offset(end))?;
            consumer.assign(&partition)
        })
        .await
    }

    /// The next marker, if one comes within a moment.
    pub async fn next(&self) -> Result<Option<Marker>, KafkaError> {
        self.ask(|consumer| {
            Ok(match consumer.poll(POLL) {
                None => None,
                Some(Ok(record)) => record.payload().and_then(|payload| serde_json::from_slice(payload).ok()),
                Some(Err(error)) => {
                    // Repaired by the client itself.
                    tracing::info!(%error, "reading of {BARRIER_TOPIC} is interrupted");
                    None
                }
            })
        })
        .await
    }

    /// What the topics of these tables, as keyspace and name, hold now; those that do not exist are left out.
    pub async fn extents(&self, tables: &[(String, String)]) -> Result<BTreeMap<TopicPartition, Extent>, KafkaError> {
        let topics: Vec<String> = tables.iter().map(|(keyspace, table)| self.template.name(keyspace, table)).collect();
        self.ask(move |consumer| {
            let metadata = consumer.fetch_metadata(None, ANSWER_TIMEOUT)?;
            let partitions: Vec<TopicPartition> = metadata
                .topics()
                .iter()
                .filter(|topic| topics.iter().any(|name| name == topic.name()))
                .flat_map(|topic| topic.partitions().iter().map(|partition| (topic.name(), partition.id())))
                .map(|(topic, partition)| TopicPartition { topic: topic.into(), partition })
                .collect();
            let all = |offset| -> Result<Vec<i64>, Driver> {
                if partitions.is_empty() {
                    return Ok(Vec::new());
                }
                let list = to_list(partitions.iter().map(|at| (at, offset)))?;
                let found = consumer.offsets_for_times(list, ANSWER_TIMEOUT)?;
                let offset = |at: &TopicPartition| {
                    let element = found.find_partition(&at.topic, at.partition).ok_or(Driver::Canceled)?;
                    element.error()?;
                    element.offset().to_raw().ok_or(Driver::Canceled)
                };
                partitions.iter().map(offset).collect()
            };
            let (low, high) = (all(Offset::Beginning)?, all(Offset::End)?);
            let extents = low.into_iter().zip(high).map(|(low, high)| Extent { low, high });
            Ok(partitions.iter().cloned().zip(extents).collect())
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&BaseConsumer<Quiet>) -> Result<T, Driver> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let consumer = Arc::clone(&self.consumer);
        let answer = tokio::task::spawn_blocking(move || question(&consumer)).await;
        answer.map_err(|_| KafkaError::Thread(BARRIER_TOPIC))?.map_err(KafkaError::Consume)
    }
}
