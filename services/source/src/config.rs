//! The `source:` section.

use std::path::PathBuf;

use cdc_cassandra::{MarkTable, checks::Wanted};
use cdc_commitlog::{CaptureMode, Keystore, KeystoreError};
use cdc_runtime::Secret;
use serde::{Deserialize, Serialize};

use crate::SnapshotConfig;

/// Poll interval while the log is idle: small against the commit a change costs later, and a few percent of a core.
const POLL_INTERVAL_US: u64 = 1_000;
/// Changes between capture and channel. One batch is a sixteenth of it. More drains a backlog no faster, and with this
/// the agent stays below 64 MiB in all (`scripts/bench capture`).
const MEMORY_BYTES: usize = 4 << 20;
/// Below this, batches are too small to be worth sending.
const MIN_MEMORY_BYTES: usize = 1 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Cassandra's `cdc_raw_directory`; the agent needs to read and delete in it.
    pub cdc_raw_directory: PathBuf,
    /// Position file and quarantine, on a disk that survives the machine's restart.
    pub state_directory: PathBuf,
    /// What is captured: `keyspace.table` or `keyspace.*` (every table of the keyspace with `cdc = true`).
    pub tables: Vec<String>,
    /// How far the log is read: `live` to the last complete entry, `marker` to the last sync marker, `durable` to
    /// what Cassandra has synced to disk.
    #[serde(default)]
    pub mode: CaptureMode,
    /// Microseconds between two looks at the log while nothing is written.
    #[serde(default = "poll_interval_us")]
    pub poll_interval_us: u64,
    /// Bytes of changes that may wait between capture and the channel.
    #[serde(default = "memory_bytes")]
    pub memory_bytes: usize,
    /// Where `cdc barrier` writes its marks, as `keyspace.table`; the same for all agents.
    #[serde(default = "barrier_table")]
    pub barrier_table: String,
    /// Of an encrypted commit log.
    #[serde(default)]
    pub keystore: Option<KeystoreConfig>,
    /// How rows are copied that were there before.
    #[serde(default)]
    pub snapshot: SnapshotConfig,
}

/// The keystore in `transparent_data_encryption_options` of the node's `cassandra.yaml`: JCEKS or PKCS#12.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeystoreConfig {
    pub path: PathBuf,
    pub password: Secret,
    /// Of the key, where it has its own.
    #[serde(default)]
    pub key_password: Option<Secret>,
}

impl KeystoreConfig {
    pub fn open(&self) -> Result<Keystore, KeystoreError> {
        Keystore::open(&self.path, self.password.expose(), self.key_password.as_ref().map(Secret::expose))
    }
}

fn poll_interval_us() -> u64 {
    POLL_INTERVAL_US
}

fn barrier_table() -> String {
    MarkTable::default().to_string()
}

fn memory_bytes() -> usize {
    MEMORY_BYTES
}

impl SourceConfig {
    /// Defaults with these folders and tables.
    pub fn new(cdc_raw_directory: PathBuf, state_directory: PathBuf, tables: Vec<String>) -> Self {
        Self {
            cdc_raw_directory,
            state_directory,
            tables,
            mode: CaptureMode::default(),
            poll_interval_us: POLL_INTERVAL_US,
            memory_bytes: MEMORY_BYTES,
            barrier_table: barrier_table(),
            keystore: None,
            snapshot: SnapshotConfig::default(),
        }
    }

    /// The table of [`Self::barrier_table`]; the default's if that is faulty, which [`Self::validate`] tells.
    pub fn marks(&self) -> MarkTable {
        MarkTable::parse(&self.barrier_table).unwrap_or_default()
    }

    /// Every fault at once, each naming its field; empty if there is none.
    pub fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.tables.is_empty() {
            faults.push("source.tables is empty: name what to capture, as `keyspace.table` or `keyspace.*`".to_owned());
        }
        for table in &self.tables {
            if Wanted::parse(table).is_none() {
                faults.push(format!("source.tables: `{table}` is neither `keyspace.table` nor `keyspace.*`"));
            }
        }
        if MarkTable::parse(&self.barrier_table).is_none() {
            faults.push(format!(
                "source.barrier_table is `{}`: use `keyspace.table`, each of small letters, digits and _, such as {}",
                self.barrier_table,
                barrier_table()
            ));
        }
        if !(1..=1_000_000).contains(&self.poll_interval_us) {
            faults.push(format!("source.poll_interval_us is {}: use 1 to 1000000", self.poll_interval_us));
        }
        if self.memory_bytes < MIN_MEMORY_BYTES {
            faults.push(format!("source.memory_bytes is {}: use at least {MIN_MEMORY_BYTES}", self.memory_bytes));
        }
        faults.extend(self.snapshot.validate());
        faults
    }
}
