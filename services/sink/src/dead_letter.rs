//! Records that cannot be decoded, kept whole in topic `dlq-events`: one JSON object each.

use std::sync::Arc;

use cdc_kafka::{DEAD_LETTER_SIZE, DEAD_LETTER_TOPIC, KafkaConfig, KafkaError, Publisher, Record};
use cdc_postgres::Disposition;
use cdc_wire::WireError;
use serde::Serialize;
use tokio::sync::Mutex;

use crate::{SinkMetrics, retry::Patience};

/// A dead letter, version 1. Bytes are in hexadecimal.
#[derive(Serialize)]
struct DeadLetter {
    version: u32,
    topic: String,
    partition: i32,
    offset: i64,
    timestamp_ms: Option<i64>,
    code: String,
    message: String,
    key: String,
    payload: String,
}

impl DeadLetter {
    fn new(record: &Record, cause: &WireError) -> Self {
        Self {
            version: 1,
            topic: record.at.topic.to_string(),
            partition: record.at.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            code: cause.code().to_owned(),
            message: cause.to_string(),
            key: hex(&record.key),
            payload: hex(&record.payload),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// The way to the topic; connects with the first letter.
pub(crate) struct DeadLetters {
    config: KafkaConfig,
    publisher: Mutex<Option<Publisher>>,
    metrics: Arc<SinkMetrics>,
}

impl DeadLetters {
    pub(crate) fn new(config: &KafkaConfig, metrics: Arc<SinkMetrics>) -> Self {
        // A letter holds its record in hexadecimal.
        let message_bytes_max = DEAD_LETTER_SIZE * config.message_bytes_max;
        Self { config: KafkaConfig { message_bytes_max, ..config.clone() }, publisher: Mutex::new(None), metrics }
    }

    /// Returns once the letter is acknowledged, however long that takes; until then the position stays before the
    /// record.
    pub(crate) async fn send(&self, record: &Record, cause: &WireError) {
        let letter = serde_json::to_vec(&DeadLetter::new(record, cause)).expect("a dead letter is plain data");
        let key = format!("{}:{}", record.at, record.offset);
        let mut patience = Patience::new("writing to dlq-events");
        let mut publisher = self.publisher.lock().await;
        while let Err(error) = self.try_send(&mut publisher, key.as_bytes(), &letter).await {
            // The producer may be beyond use.
            *publisher = None;
            tokio::time::sleep(patience.failed(Disposition::Retry, &error)).await;
        }
        self.metrics.dead_letter();
        tracing::error!(
            at = %record.at,
            offset = record.offset,
            code = cause.code(),
            "a record cannot be decoded and was set aside in {DEAD_LETTER_TOPIC}: {cause}"
        );
    }

    async fn try_send(&self, publisher: &mut Option<Publisher>, key: &[u8], letter: &[u8]) -> Result<(), KafkaError> {
        let publisher = match publisher {
            Some(publisher) => publisher,
            None => publisher.insert(Publisher::connect(&self.config)?),
        };
        publisher.publish(DEAD_LETTER_TOPIC, key, letter).await
    }
}
