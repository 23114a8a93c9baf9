//! Nodes that write the segments.

use cdc_testkit::Cassandra;
use cdc_workload::every_change::{self, EveryChange, Options};
use tokio::runtime::Runtime;

/// How a node writes its commit log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Combination {
    pub(crate) version: &'static str,
    pub(crate) compressor: Option<&'static str>,
    /// Segments of format 8, written with direct I/O.
    pub(crate) direct: bool,
}

pub(crate) struct Node {
    pub(crate) cassandra: Cassandra,
    runtime: Runtime,
    combination: Combination,
}

impl Node {
    pub(crate) fn start(combination: &Combination) -> Self {
        let mut builder = Cassandra::builder()
            .version(combination.version)
            .commitlog_segment_size_mib(2)
            .commitlog_compression(combination.compressor)
            // By the names 4.0 knows, which later releases take as well.
            .setting("enable_materialized_views", "true")
            .setting("batch_size_fail_threshold_in_kb", "2048")
            .setting("auto_snapshot", "false");
        if combination.direct {
            builder = builder.setting("storage_compatibility_mode", "NONE").setting("commitlog_disk_access_mode", "direct");
        }
        let cassandra = builder.start().unwrap();
        Self { cassandra, runtime: Runtime::new().unwrap(), combination: *combination }
    }

    pub(crate) fn write(&self, seed: u64, statements: usize) -> anyhow::Result<usize> {
        let options = Options {
            seed,
            keyspace: format!("seed_{seed}"),
            vectors: self.combination.version.starts_with("5."),
            longest_ttl: if self.combination.direct { 630_720_000 } else { 300_000_000 },
            longest_blob: 150 << 10,
        };
        self.runtime.block_on(async {
            let session = every_change::connect(&self.cassandra.contact_points()).await?;
            let mut c = EveryChange::new(options);
            c.create(&session).await?;
            let mut refused = c.write(&session, statements).await?;
            c.alter(&session, 15).await?;
            refused += c.write(&session, statements).await?;
            Ok(refused)
        })
    }
}
