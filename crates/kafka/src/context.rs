//! librdkafka's own words, in our log.

use rdkafka::{config::RDKafkaLogLevel, error::KafkaError};

pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!(facility, "kafka client: {message}");
        }
        RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => tracing::info!(facility, "kafka client: {message}"),
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => tracing::debug!(facility, "kafka client: {message}"),
    }
}

/// A lost connection is repaired by librdkafka itself, so it is no more than a remark.
pub(crate) fn error(error: &KafkaError, reason: &str) {
    tracing::info!(%error, "kafka client: {reason}");
}
