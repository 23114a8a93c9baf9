//! The file as a whole, and which sections which role needs.

use std::path::Path;
use std::time::Duration;

use cdc_cassandra::CassandraConfig;
use cdc_kafka::KafkaConfig;
use cdc_postgres::PostgresConfig;
use cdc_reconciler::service::{self, ReconcilerConfig};
use cdc_runtime::STOP_DEADLINE;
use cdc_runtime::admin::AdminConfig;
use cdc_runtime::config::{ConfigErrors, Fault, load_checked};
use cdc_sink::SinkConfig;
use cdc_source::SourceConfig;
use cdc_vault::VaultConfig;
use serde::Deserialize;

/// One file serves all roles; a role ignores the sections it has no use for, but faults in them are told.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) cassandra: Option<CassandraConfig>,
    pub(crate) source: Option<SourceConfig>,
    pub(crate) kafka: Option<KafkaConfig>,
    pub(crate) postgres: Option<PostgresConfig>,
    pub(crate) vault: Option<VaultConfig>,
    #[serde(default)]
    pub(crate) sink: SinkConfig,
    #[serde(default)]
    pub(crate) reconciler: ReconcilerConfig,
    #[serde(default)]
    pub(crate) admin: AdminConfig,
    #[serde(default)]
    pub(crate) log: LogConfig,
    /// Milliseconds a stop may take to drain before it becomes a hard one.
    pub(crate) stop_timeout_ms: Option<u64>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// A level, or directives as in `info,cdc_source=debug`.
    pub(crate) level: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Role {
    Source,
    Sink,
    Run,
    Reconciler,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Sink => "sink",
            Self::Run => "run",
            Self::Reconciler => "reconciler",
        }
    }

    /// Where its admin server listens unless configured; all roles may share a machine and a file. The reconciler's is its API.
    pub(crate) fn admin_port(self) -> u16 {
        match self {
            Self::Source | Self::Run => 8084,
            Self::Sink => 8085,
            Self::Reconciler => service::PORT,
        }
    }
}

/// Section, what it is needed for, what to write.
const CASSANDRA: (&str, &str, &str) = ("cassandra", "is how the schema is asked for", "  contact_points: [127.0.0.1]");
const SOURCE: (&str, &str, &str) = (
    "source",
    "says what is captured",
    "  cdc_raw_directory: /var/lib/cassandra/cdc_raw\n  state_directory: /var/lib/cdc\n  tables: [keyspace.table]",
);
const KAFKA: (&str, &str, &str) = ("kafka", "is where the changes come from", "  bootstrap_servers: [127.0.0.1:9092]");
const POSTGRES: (&str, &str, &str) = (
    "postgres",
    "is where the rows go",
    "  host: 127.0.0.1\n  database: warehouse\n  username: cdc\n  password_file: /etc/cdc/postgres-password",
);

impl Config {
    /// Reads the file; the sections that `role` needs must be there (`None`: those that belong together).
    pub(crate) fn load(file: &Path, role: Option<Role>) -> Result<Self, ConfigErrors> {
        load_checked(file, |config: &Self| config.faults(role))
    }

    pub(crate) fn stop_deadline(&self) -> Duration {
        self.stop_timeout_ms.map_or(STOP_DEADLINE, Duration::from_millis)
    }

    /// The roles that the sections are enough for, or nearly.
    pub(crate) fn role(&self) -> Role {
        let captures = self.source.is_some() || self.cassandra.is_some();
        match (captures, self.postgres.is_some()) {
            (true, true) => Role::Run,
            (true, false) => Role::Source,
            (false, _) => Role::Sink,
        }
    }

    fn faults(&self, role: Option<Role>) -> Vec<Fault> {
        let mut faults = self.missing_sections(role);
        let sentences = [
            self.cassandra.as_ref().map(CassandraConfig::validate),
            self.source.as_ref().map(SourceConfig::validate),
            self.kafka.as_ref().map(KafkaConfig::validate),
            self.postgres.as_ref().map(PostgresConfig::validate),
            Some(self.sink.validate()),
        ];
        faults.extend(sentences.iter().flatten().flatten().map(|sentence| Fault::of_sentence(sentence)));
        faults.extend(self.reconciler.validate(self.source.as_ref().map(|source| source.tables.as_slice())));
        faults.extend(self.admin.validate());
        faults.extend(self.login_faults());
        faults
    }

    fn missing_sections(&self, role: Option<Role>) -> Vec<Fault> {
        let command = role.map_or_else(|| "a configuration".to_owned(), |role| format!("`cdc {}`", role.name()));
        let needs_kafka = self.postgres.is_none() || self.kafka.is_some();
        let needed: &[_] = match role.unwrap_or_else(|| self.role()) {
            Role::Source if needs_kafka => &[CASSANDRA, SOURCE, KAFKA],
            Role::Source | Role::Run | Role::Reconciler => &[CASSANDRA, SOURCE, POSTGRES],
            Role::Sink => &[KAFKA, POSTGRES],
        };
        let present = [
            ("cassandra", self.cassandra.is_some()),
            ("source", self.source.is_some()),
            ("kafka", self.kafka.is_some()),
            ("postgres", self.postgres.is_some()),
        ];
        let is_missing = |name: &str| present.contains(&(name, false));
        needed
            .iter()
            .filter(|(name, ..)| is_missing(name))
            .map(|(name, what_for, lines)| {
                let lines = lines.replace('\n', "\n  ");
                Fault::new(
                    "",
                    format!(
                        "section {name} is missing, which {command} needs: it {what_for}; add:\n  {name}:\n  {lines}"
                    ),
                )
            })
            .collect()
    }
}
