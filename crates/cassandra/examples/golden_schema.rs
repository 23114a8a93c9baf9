//! Makes the golden segments of `crates/commitlog/tests/golden/{schema,order}`: runs the statements there against each
//! release of Cassandra and keeps the segments they were logged in, with the schema as CQL shows it at the end:
//! `cargo run --release -p cdc-cassandra --example golden_schema [FOLDER…]`.
#![expect(clippy::print_stdout, reason = "says what it made")]

use std::{fs, io::Write as _, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use cdc_cassandra::{Cassandra, CassandraConfig};

const FOLDERS: [(&str, &[&str]); 2] = [("schema", &["4.0.17", "4.1.9", "5.0.5"]), ("order", &["5.0.5"])];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../commitlog/tests/golden");
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for (name, versions) in FOLDERS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            make(&golden.join(name), versions).await.with_context(|| format!("make {name}"))?;
        }
    }
    Ok(())
}

async fn make(folder: &Path, versions: &'static [&str]) -> anyhow::Result<()> {
    let statements = fs::read_to_string(folder.join("statements.cql")).context("read the statements")?;
    for version in versions {
        let start = move || {
            let builder = cdc_testkit::Cassandra::builder().version(version).commitlog_segment_size_mib(4);
            builder.setting("enable_drop_compact_storage", "true").start()
        };
        let server = tokio::task::spawn_blocking(start).await??;
        let config = CassandraConfig::new(server.node(0).address());
        let cassandra = Cassandra::connect(&config).await.context("connect")?;
        let lines = statements.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("--"));
        for line in lines {
            let statement = line.trim_end_matches(';');
            cassandra.session().query_unpaged(statement, ()).await.with_context(|| format!("run {statement}"))?;
        }
        // Markers are written every 100 ms.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let schema = cassandra.load_schema_file().await?;
        let into = folder.join(version);
        fs::remove_dir_all(&into).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        fs::create_dir_all(&into)?;
        pack(&into.join("schema.json.gz"), schema.to_json().as_bytes())?;
        let mut kept = 0;
        for entry in fs::read_dir(server.node(0).cdc_raw_dir())? {
            let entry = entry?;
            let name = entry.file_name().into_string().expect("Cassandra's names are ASCII");
            let mut bytes = fs::read(entry.path())?;
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(used);
            // The header alone is the reserve segment.
            if name.ends_with(".log") && used > 20 {
                pack(&into.join(format!("{name}.gz")), &bytes)?;
                kept += 1;
                println!("{version}: {name}, {used} bytes");
            }
        }
        ensure!(kept > 0, "no segment was kept");
    }
    Ok(())
}

fn pack(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = flate2::write::GzEncoder::new(fs::File::create(path)?, flate2::Compression::best());
    out.write_all(bytes)?;
    out.finish()?;
    Ok(())
}
