//! What the admin server of a role tells.

use std::sync::Arc;
use std::time::Instant;

use cdc_runtime::admin::Report;
use cdc_sink::SinkMetrics;
use cdc_source::SourceMetrics;
use cdc_vault::VaultState;
use serde_json::{Value, json};

use crate::config::Role;

pub(crate) struct ProcessReport {
    role: Role,
    started: Instant,
    through_kafka: bool,
    pub(crate) source: Option<Arc<SourceMetrics>>,
    /// Also of the applier inside the agent in direct mode.
    pub(crate) sink: Option<Arc<SinkMetrics>>,
    vault: Option<VaultState>,
}

impl ProcessReport {
    pub(crate) fn new(role: Role, through_kafka: bool, vault: Option<VaultState>) -> Self {
        let captures = role != Role::Sink;
        let applies = role != Role::Source || !through_kafka;
        Self {
            role,
            started: Instant::now(),
            through_kafka,
            source: captures.then(Arc::default),
            sink: applies.then(Arc::default),
            vault,
        }
    }
}

impl Report for ProcessReport {
    fn status(&self) -> Value {
        let mut status = json!({
            "role": self.role.name(),
            "mode": if self.through_kafka { "kafka" } else { "direct" },
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "ready": self.ready().is_ok(),
        });
        if let Err(reason) = self.ready() {
            status["not_ready_because"] = reason.into();
        }
        if let Some(source) = &self.source {
            status["source"] = json!(source.status());
        }
        if let Some(sink) = &self.sink {
            let mut sink = json!(sink.status());
            // Direct mode has no partitions that could lag.
            if !self.through_kafka
                && let Some(fields) = sink.as_object_mut()
            {
                fields.remove("partitions");
                fields.remove("lag");
            }
            status["sink"] = sink;
        }
        if let Some(vault) = &self.vault {
            status["vault"] = vault.status();
        }
        status
    }

    fn ready(&self) -> Result<(), String> {
        self.vault.as_ref().map_or(Ok(()), VaultState::ready)?;
        if self.source.as_ref().is_some_and(|source| source.status().mode.is_none()) {
            return Err("the capture has not begun: a server it needs is not there yet".to_owned());
        }
        let failing = self.sink.as_ref().map(|sink| sink.status().failing).unwrap_or_default();
        if failing.is_empty() {
            return Ok(());
        }
        let failing: Vec<String> =
            failing.iter().map(|(writer, failing)| format!("{writer}: {}", failing.cause)).collect();
        Err(failing.join("; "))
    }

    fn metrics(&self, out: &mut String) {
        if let Some(source) = &self.source {
            source.render(out);
        }
        if let Some(sink) = &self.sink {
            sink.render(out);
        }
        if let Some(vault) = &self.vault {
            vault.render(out);
        }
    }
}
