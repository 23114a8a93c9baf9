use cdc_kafka::KafkaError;
use cdc_postgres::{StreamName, TargetError};

#[derive(thiserror::Error, Debug)]
pub enum SinkError {
    #[error("kafka cannot be used")]
    Kafka(#[from] KafkaError),
    #[error("the target database cannot be used")]
    Target(#[from] TargetError),
    #[error("stream {0} was claimed by another process; only one may write it, so this one ends")]
    Fenced(StreamName),
    #[error("position `{position}` of stream {stream} is not an offset; correct it in PostgreSQL")]
    Position { stream: StreamName, position: String },
    #[error("stopped before the work began")]
    Stopped,
    #[error("thread {name} could not be started")]
    Thread { name: &'static str, source: std::io::Error },
}

/// An error and its causes on one line, for logs.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
