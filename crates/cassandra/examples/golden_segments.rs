//! Makes the golden segments of compressed, encrypted and direct-I/O commit logs, with real nodes:
//! `cargo run --release -p cdc-cassandra --example golden_segments [NAME…]`.
//!
//! Each is the segment with a table's writes, a few syncs apart, of a node that was then stopped; it and the keystore
//! it was encrypted with are written to `crates/commitlog/tests/golden`. What they must decode to is written down in
//! `crates/commitlog/tests/suite/transformed.rs`. The plain ones are made by `make.py` there.

use std::{fs, io::Write as _, path::Path, process::Command, time::Duration, time::Instant};

use anyhow::{Context as _, ensure};
use cdc_cassandra::{Cassandra, CassandraConfig};
use cdc_commitlog::{Index, list_segments, read_index};
use cdc_runtime::Lifecycle;
use flate2::{Compression, write::GzEncoder};

/// File name, release, and what is set in `cassandra.yaml`.
const SEGMENTS: [(&str, &str, Setting); 10] = [
    ("lz4-5.0", "5.0.5", Setting::Compressor("LZ4Compressor")),
    ("snappy-4.0", "4.0.17", Setting::Compressor("SnappyCompressor")),
    ("deflate-4.1", "4.1.9", Setting::Compressor("org.apache.cassandra.io.compress.DeflateCompressor")),
    ("zstd-5.0-v8", "5.0.5", Setting::Compressor("ZstdCompressor")),
    ("noop-4.1", "4.1.9", Setting::Compressor("NoopCompressor")),
    ("direct-5.0-v8", "5.0.5", Setting::Direct),
    ("jceks-5.0", "5.0.5", Setting::Keystore("JCEKS", "128", &[])),
    ("pkcs12-5.0-v8", "5.0.5", Setting::Keystore("PKCS12", "256", &[])),
    ("jceks-4.1", "4.1.9", Setting::Keystore("JCEKS", "256", &[])),
    // As Java wrote them before 16.
    ("pkcs12-4.1", "4.1.9", Setting::Keystore("PKCS12", "192", &["-J-Dkeystore.pkcs12.legacy"])),
];

enum Setting {
    Compressor(&'static str),
    Direct,
    /// Its type, the key's length in bits, and flags for keytool.
    Keystore(&'static str, &'static str, &'static [&'static str]),
}

const ALIAS: &str = "testing:1";
const PASSWORD: &str = "cassandra";
/// Written and synced one after another: rows of some bytes, and last one of more than two chunks of 64 KiB.
const SYNCS: usize = 3;
const ROWS: usize = 20;
const LARGE: usize = 150_000;
/// Rows of 100,000 bytes that are more than a segment.
const FILLER: usize = 12;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../commitlog/tests/golden");
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for (name, release, setting) in SEGMENTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            make(&golden, name, release, &setting).await.with_context(|| format!("make {name}"))?;
        }
    }
    Ok(())
}

async fn make(golden: &Path, name: &str, release: &str, setting: &Setting) -> anyhow::Result<()> {
    let mut builder =
        cdc_testkit::Cassandra::builder().version(release).commitlog_segment_size_mib(1).commitlog_sync_period_ms(200);
    if name.ends_with("-v8") {
        builder = builder.setting("storage_compatibility_mode", "NONE");
    }
    builder = match setting {
        Setting::Compressor(class) => builder.commitlog_compression(Some(class)),
        Setting::Direct => builder.setting("commitlog_disk_access_mode", "direct"),
        Setting::Keystore(form, bits, flags) => {
            let keystore = golden.join(format!("{name}.keystore"));
            if keystore.exists() {
                fs::remove_file(&keystore)?;
            }
            let done = Command::new("keytool")
                .args(*flags)
                .args(["-genseckey", "-alias", ALIAS, "-keyalg", "AES", "-keysize", bits, "-storetype", form])
                .args(["-storepass", PASSWORD, "-keypass", PASSWORD, "-keystore"])
                .arg(&keystore)
                .status()
                .context("run keytool")?;
            ensure!(done.success(), "keytool failed");
            let at = keystore.canonicalize()?;
            builder.commitlog_encryption(&at.display().to_string(), form, PASSWORD)
        }
    };
    let server = tokio::task::spawn_blocking(move || builder.start()).await??;
    let config = CassandraConfig::new(server.node(0).address());
    let node = Cassandra::connect_when_ready(&config, &Lifecycle::new()).await.context("nothing stops it")?;
    let directory = server.node(0).cdc_raw_dir();
    let run = async |statement: String| node.session().query_unpaged(statement, ()).await;
    run("create keyspace golden with replication = {'class': 'SimpleStrategy', 'replication_factor': 1}".into())
        .await?;
    // Known by its id, the table needs no schema beside the segment.
    run("create table golden.t (id int primary key, v text) with cdc = true and \
         id = 5ea51de5-0000-4000-8000-000000000001"
        .into())
    .await?;
    // A node's first segment is full of its system tables: past it, with bytes that compress well.
    run("create table golden.filler (id int primary key, v text)".into()).await?;
    for row in 0..FILLER {
        run(format!("insert into golden.filler (id, v) values ({row}, '{}')", "0".repeat(100_000))).await?;
    }
    for sync in 0..SYNCS {
        for row in (0..ROWS).map(|row| sync * ROWS + row) {
            run(format!("insert into golden.t (id, v) values ({row}, 'row {row}') using timestamp {row}")).await?;
        }
        if sync == SYNCS - 1 {
            let large: String =
                (0..).flat_map(|n| format!("{} ", n % 1000).into_bytes()).map(char::from).take(LARGE).collect();
            run(format!("insert into golden.t (id, v) values (-1, '{large}') using timestamp 1000")).await?;
        }
        let before = synced(&directory)?;
        let deadline = Instant::now() + Duration::from_secs(120);
        while synced(&directory)? <= before {
            ensure!(Instant::now() < deadline, "no sync");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    server.node(0).stop()?;
    let mut found = Vec::new();
    for segment in list_segments(&directory)? {
        if let Some(index) = read_index(&segment)? {
            found.push((segment, index));
        }
    }
    let [(segment, Index { offset, completed: true })] = found.as_slice() else {
        anyhow::bail!("the writes are not in one completed segment, run again: {found:?}");
    };
    let bytes = fs::read(&segment.path)?;
    let file = segment.path.file_name().and_then(|name| name.to_str()).context("its name")?;
    // The name and the end of data by the index go into the archive's header.
    let comment = format!("{offset}");
    let mut archive = flate2::GzBuilder::new()
        .filename(file)
        .comment(comment)
        .write(fs::File::create(golden.join(format!("{name}.log.gz")))?, Compression::best());
    archive.write_all(&bytes)?;
    let _: fs::File = GzEncoder::finish(archive)?;
    writeln!(std::io::stdout(), "{name}: {file}, {} bytes, data ends at {offset}", bytes.len())?;
    Ok(())
}

/// The furthest a segment is synced.
fn synced(directory: &Path) -> anyhow::Result<(u64, u64)> {
    let mut furthest = (0, 0);
    for segment in list_segments(directory)? {
        if let Some(index) = read_index(&segment)? {
            furthest = furthest.max((segment.id.0, index.offset));
        }
    }
    Ok(furthest)
}
