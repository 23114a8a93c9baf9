//! Whether a broker answers.

use std::time::Duration;

use cdc_kafka::KafkaConfig;
use tokio::net::TcpStream;

use super::Finding;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// One broker is enough: it knows the others. What it says to our credentials shows only at the first request.
pub(super) async fn check(config: &KafkaConfig) -> Vec<Finding> {
    let mut causes = Vec::new();
    for server in &config.bootstrap_servers {
        match tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(server)).await {
            Ok(Ok(_)) => return Vec::new(),
            Ok(Err(error)) => causes.push(format!("{server}: {error}")),
            Err(_) => causes.push(format!("{server}: no answer within {CONNECT_WITHIN:?}")),
        }
    }
    vec![Finding::unavailable(format!(
        "kafka.bootstrap_servers: no broker answers ({}); start Kafka or correct the addresses",
        causes.join("; ")
    ))]
}
