//! Nodes that write the segments.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use cdc_testkit::{Cassandra, cassandra_reader};
use cdc_workload::every_change::{self, EveryChange, Options, Variety};
use tokio::runtime::Runtime;

/// How a node writes its commit log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Disk {
    Plain,
    Compressed(&'static str),
    Encrypted,
    /// With direct I/O, in segments of format 8.
    Direct,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Combination {
    pub(crate) version: &'static str,
    pub(crate) disk: Disk,
}

/// Its password, and that of its key, is [`KEYSTORE_PASSWORD`].
const KEYSTORE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/commitlog/tests/golden/jceks-5.0.keystore");
const KEYSTORE_PASSWORD: &str = "cassandra";

/// Between two phases the schema changes; within one it does not, so that one snapshot of it tells Cassandra's reader,
/// which follows no changes, how to read the phase.
pub(crate) const PHASES: usize = 3;
/// A row is written to it at the beginning of each phase.
pub(crate) const MARKER_TABLE: &str = "equality.phases";
const ALTERATIONS: usize = 12;
const OPERATIONS: usize = 150;
/// With the longest row a few blobs of it stay below the largest mutation, which is half a segment.
const LONGEST_BLOB: usize = 150 << 10;
const SEGMENT_MIB: u32 = 2;

/// What the stopped node left behind.
pub(crate) struct Written {
    pub(crate) cassandra: Cassandra,
    /// The schema in force in each phase.
    pub(crate) schemas: Vec<PathBuf>,
}

pub(crate) fn write(combination: &Combination, seeds: &[u64], folder: &Path) -> Written {
    let mut builder = Cassandra::builder()
        .version(combination.version)
        .commitlog_segment_size_mib(SEGMENT_MIB)
        // By the names of 4.0, which later releases take as well.
        .setting("enable_materialized_views", "true")
        .setting("batch_size_fail_threshold_in_kb", "2048")
        .setting("auto_snapshot", "false");
    builder = match combination.disk {
        Disk::Plain => builder,
        Disk::Compressed(compressor) => builder.commitlog_compression(Some(compressor)),
        Disk::Encrypted => builder.commitlog_encryption(KEYSTORE, "JCEKS", KEYSTORE_PASSWORD),
        Disk::Direct => {
            builder.setting("storage_compatibility_mode", "NONE").setting("commitlog_disk_access_mode", "direct")
        }
    };
    let cassandra = builder.start().unwrap();
    let schemas = (0..PHASES).map(|phase| folder.join(format!("schema-{phase}.json"))).collect();
    let written = Written { cassandra, schemas };
    let runtime = Runtime::new().unwrap();
    runtime.block_on(written.fill(combination, seeds)).inspect_err(|_| written.cassandra.keep()).unwrap();
    written.cassandra.node(0).stop().unwrap();
    written
}

impl Written {
    pub(crate) fn segments(&self) -> PathBuf {
        self.cassandra.node(0).cdc_raw_dir()
    }

    /// `cdc log dump` with what was known of the schema at the beginning; the rest it learns in the log.
    pub(crate) fn dump(&self, combination: &Combination) -> Command {
        let mut command = cdc();
        command.args(["log", "dump", "--schema"]).arg(&self.schemas[0]);
        if combination.disk == Disk::Encrypted {
            command.args(["--keystore", KEYSTORE]).env("CDC_KEYSTORE_PASSWORD", KEYSTORE_PASSWORD);
        }
        command.arg(self.segments());
        command
    }

    /// Cassandra's reader with the schema of the phase.
    pub(crate) fn reader(&self, combination: &Combination, phase: usize) -> Command {
        let mut command = cassandra_reader(combination.version).unwrap();
        command.arg("--schema").arg(&self.schemas[phase]);
        if combination.disk == Disk::Encrypted {
            command.arg("--config").arg(self.cassandra.node(0).config_file());
        }
        command.arg(self.segments());
        command
    }

    async fn fill(&self, combination: &Combination, seeds: &[u64]) -> anyhow::Result<()> {
        let session = every_change::connect(&self.cassandra.contact_points()).await?;
        let replication = "{'class': 'SimpleStrategy', 'replication_factor': 1}";
        session.query_unpaged(format!("create keyspace equality with replication = {replication}"), ()).await?;
        session
            .query_unpaged(format!("create table {MARKER_TABLE} (phase int primary key) with cdc = true"), ())
            .await?;
        let options = |seed: &u64| Options {
            seed: *seed,
            keyspace: format!("seed_{seed}"),
            vectors: combination.version.starts_with("5."),
            // Ends before 2038, and with format 8 after it.
            longest_ttl: if combination.disk == Disk::Direct { 630_720_000 } else { 300_000_000 },
            earliest_write: if combination.disk == Disk::Direct { 0 } else { i64::MIN + 1 },
            longest_blob: LONGEST_BLOB,
            variety: Variety::Great,
            representable: false,
            replicas: 1,
        };
        let mut changes: Vec<_> = seeds.iter().map(options).map(EveryChange::new).collect();
        let mark = async |phase: i32| {
            session.query_unpaged(format!("insert into {MARKER_TABLE} (phase) values ({phase})"), ()).await
        };
        for (phase, schema) in (0..).zip(&self.schemas) {
            for (change, seed) in changes.iter_mut().zip(seeds) {
                let context = || format!("seed {seed}, {combination:?}");
                if phase == 0 {
                    change.create(&session).await.with_context(context)?;
                    continue;
                }
                for _ in 0..ALTERATIONS {
                    change.alter(&session).await.with_context(context)?;
                    // Dropping a table begins another segment, and one without a captured write does not stay.
                    mark(-phase).await?;
                }
            }
            self.save_schema(schema)?;
            mark(phase).await?;
            for (change, seed) in changes.iter_mut().zip(seeds) {
                let refused = change.write(&session, OPERATIONS).await;
                let refused = refused.with_context(|| format!("seed {seed}, {combination:?}"))?;
                anyhow::ensure!(refused < OPERATIONS / 10, "seed {seed}: {refused} writes refused");
            }
        }
        Ok(())
    }

    fn save_schema(&self, path: &Path) -> anyhow::Result<()> {
        let file = fs::File::create(path)?;
        let address = self.cassandra.node(0).address();
        let status = cdc().args(["log", "schema", "--contact-point", &address]).stdout(Stdio::from(file)).status()?;
        anyhow::ensure!(status.success(), "cdc log schema: {status}");
        Ok(())
    }
}

pub(crate) fn cdc() -> Command {
    // target/<profile>/deps/equality-… lies one folder below the binary.
    let tests = std::env::current_exe().expect("a test has a path");
    let binary = tests.ancestors().nth(2).expect("deps lies in the profile's folder").join("cdc");
    assert!(binary.exists(), "{} is not there: cargo build --release --bin cdc", binary.display());
    Command::new(binary)
}
