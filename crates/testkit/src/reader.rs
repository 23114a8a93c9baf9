//! Cassandra's own reader of commit-log segments as a program, for comparison with ours.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::cassandra::jdk_access;
use crate::java::java;
use crate::{Artifact, Error, place};

const SOURCE: &str = include_str!("../../../tests/commitlog-java/CommitLogJson.java");
const CLASS: &str = "CommitLogJson";

/// `tests/commitlog-java` on the jars of a release, compiled on the first call: append its arguments, as in
/// `--schema FILE --table KS.T SEGMENT`.
///
/// It prints the lines of `docs/specs/log-json.md` and exits with 0, or 3 where it met damage. With `--count`, and
/// `--repeat N` to warm it up, it prints what reading took instead.
///
/// # Errors
/// The release or a JDK cannot be had, or the program does not compile against it.
pub fn cassandra_reader(version: &str) -> Result<Command, Error> {
    let artifact = Artifact::cassandra(version);
    let class_path = artifact.class_path()?;
    let java = java()?;
    let classes = compiled(&artifact, &class_path, &java.with_file_name("javac"))?;
    let mut command = Command::new(java);
    command
        .args(["-Xms256m", "-Xmx1g", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Djava.security.manager=allow"])
        // Where it leaves mutations it cannot read.
        .arg(format!("-Djava.io.tmpdir={}", classes.join("tmp").display()))
        .args(jdk_access())
        .args(["-cp", &format!("{}:{class_path}", classes.display()), CLASS]);
    Ok(command)
}

/// The folder of the classes, in the cache by release and by what the source is.
fn compiled(artifact: &Artifact, class_path: &str, javac: &Path) -> Result<PathBuf, Error> {
    let hash: String = Sha256::digest(SOURCE).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let folder = place::cache_dir().join(format!("{artifact}-reader-{hash}"));
    if folder.is_dir() {
        return Ok(folder);
    }
    let lock_path = folder.with_extension("lock");
    let lock = File::options().create(true).append(true).open(&lock_path).map_err(Error::io("open", &lock_path))?;
    lock.lock().map_err(Error::io("lock", &lock_path))?;
    if !folder.is_dir() {
        let part = folder.with_extension("part");
        place::remove_dir(&part)?;
        place::make_dir(&part.join("tmp"), 0o755)?;
        let source = part.join(format!("{CLASS}.java"));
        place::write(&source, SOURCE)?;
        let output = Command::new(javac)
            .args(["-nowarn", "-encoding", "UTF-8", "-cp", class_path, "-d"])
            .args([&part, &source])
            .output()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Error::ToolMissing {
                    tool: "javac",
                    remedy: "install a JDK (apt-get install openjdk-17-jdk-headless)",
                },
                _ => Error::io("start", "javac")(error),
            })?;
        if !output.status.success() {
            let tail = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::Command { command: "javac", status: output.status.to_string(), tail });
        }
        fs::rename(&part, &folder).map_err(Error::io("move into place", &folder))?;
    }
    Ok(folder)
}
