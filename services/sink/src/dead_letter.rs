//! Topic `dlq-events`: a copy of every dead letter that came from Kafka, for those who watch topics.
//!
//! `_cdc.dlq` is where letters are kept. They are written there first, and published from there while the positions are
//! still before their records: a process that dies in between leaves letters that are not marked as published, and the
//! next one publishes them. So a letter is in the topic before the position passes its record, and may be there twice
//! (`dlq_id` tells).

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use cdc_kafka::{DEAD_LETTER_SIZE, DEAD_LETTER_TOPIC, Headers, KafkaConfig, KafkaError, Outgoing, Publisher};
use cdc_postgres::{Disposition, Target, UnpublishedLetter};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::{SinkMetrics, retry::Patience};

/// Letters published at once; each may be as large as a record.
const AT_ONCE: i64 = 16;

/// The way to the topic; connects with the first letter.
pub(crate) struct DeadLetters {
    config: KafkaConfig,
    group: String,
    target: Target,
    metrics: Arc<SinkMetrics>,
    publisher: Mutex<Option<Publisher>>,
}

impl DeadLetters {
    pub(crate) fn new(config: &KafkaConfig, group: &str, target: Target, metrics: Arc<SinkMetrics>) -> Self {
        // A letter holds its record in base64, and its headers twice.
        let message_bytes_max = DEAD_LETTER_SIZE * config.message_bytes_max;
        let config = KafkaConfig { message_bytes_max, ..config.clone() };
        Self { config, group: group.to_owned(), target, metrics, publisher: Mutex::new(None) }
    }

    /// Returns once every letter is in the topic, however long that takes.
    pub(crate) async fn publish(&self) {
        let mut patience =
            Patience::new(format!("writing to {DEAD_LETTER_TOPIC}")).shown(&self.metrics, DEAD_LETTER_TOPIC);
        let mut publisher = self.publisher.lock().await;
        loop {
            let delay = match self.target.unpublished_dead_letters(AT_ONCE).await {
                Ok(letters) if letters.is_empty() => break,
                Ok(letters) => match self.send(&mut publisher, &letters).await {
                    Ok(()) => {
                        let ids = letters.iter().map(|letter| letter.id).collect();
                        self.target
                            .dead_letters_published(ids)
                            .await
                            .map_or_else(|error| patience.failed(error.disposition(), &error), |()| Duration::ZERO)
                    }
                    Err(error) => {
                        // The producer may be beyond use.
                        *publisher = None;
                        patience.failed(Disposition::Retry, &error)
                    }
                },
                Err(error) => patience.failed(error.disposition(), &error),
            };
            tokio::time::sleep(delay).await;
        }
        patience.succeeded();
    }

    async fn send(&self, publisher: &mut Option<Publisher>, letters: &[UnpublishedLetter]) -> Result<(), KafkaError> {
        let publisher = match publisher {
            Some(publisher) => publisher,
            None => publisher.insert(Publisher::connect(&self.config)?),
        };
        let sending = letters.iter().map(async |letter| {
            let (payload, headers) = (envelope(letter).to_string(), headers(letter, &self.group));
            let record = Outgoing {
                topic: DEAD_LETTER_TOPIC,
                partition: None,
                key: Some(letter.id.as_bytes()),
                payload: Some(payload.as_bytes()),
                headers: &headers,
            };
            publisher.publish_record(record).await
        });
        try_join_all(sending).await.map(drop)
    }
}

/// One JSON object. The record's own time is in it and not on it: a broker refuses times of the future, and retention
/// would remove a letter with one of long ago.
fn envelope(letter: &UnpublishedLetter) -> Value {
    let base64 = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| BASE64_STANDARD.encode(bytes));
    let original = &letter.original;
    let original_headers: Value =
        original.headers.iter().map(|(name, value)| json!({"name": name, "value": base64(value)})).collect();
    // A change tells where it was captured; a record that is none tells nothing.
    let event = letter.position.as_ref().map(|position| json!({"node": letter.node, "position": position}));
    json!({
        "dlq_id": letter.id,
        "error_type": letter.error_type,
        "error_code": letter.code,
        "error_message": letter.message,
        "source_table": letter.table,
        "source_component": letter.source_component,
        "original_event": event,
        "retry_count": letter.attempts - 1,
        "first_failed_at": letter.first_failed_at,
        "last_retry_at": (letter.attempts > 1).then_some(&letter.last_failed_at),
        "dlq_timestamp": letter.now,
        "original_topic": original.topic,
        "original_partition": original.partition,
        "original_offset": original.offset,
        "original_timestamp_ms": original.timestamp_ms,
        "original_key": base64(&original.key),
        "original_value": base64(&original.value),
        "original_headers": original_headers,
    })
}

/// The record's own, then those Kafka Connect adds, then ours. No value in any of them.
fn headers(letter: &UnpublishedLetter, group: &str) -> Headers {
    let stage = match letter.code.as_str() {
        _ if letter.position.is_some() => "TASK_PUT",
        "NULL_KEY" | "KEY_MISMATCH" | "PARTITION_MISMATCH" => "KEY_CONVERTER",
        _ => "VALUE_CONVERTER",
    };
    let original = &letter.original;
    let context = [
        ("__connect.errors.topic", original.topic.clone()),
        ("__connect.errors.partition", original.partition.to_string()),
        ("__connect.errors.offset", original.offset.to_string()),
        ("__connect.errors.connector.name", group.to_owned()),
        ("__connect.errors.task.id", "0".to_owned()),
        ("__connect.errors.stage", stage.to_owned()),
        ("__connect.errors.class.name", "cdc-sink".to_owned()),
        ("__connect.errors.exception.class.name", letter.error_type.name().to_owned()),
        ("__connect.errors.exception.message", letter.message.clone()),
        ("__connect.errors.exception.stacktrace", String::new()),
        ("cdc-error-code", letter.code.clone()),
    ];
    let context = context.into_iter().map(|(name, value)| (name.to_owned(), Some(Bytes::from(value))));
    original.headers.iter().cloned().chain(context).collect()
}
