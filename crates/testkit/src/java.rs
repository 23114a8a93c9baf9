use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::{Artifact, Error, place};

/// The only release that every server here runs on.
const MAJOR: u32 = 17;

/// The `java` of a JDK 17: `$JAVA_HOME`, the search path, then the system's folder of JVMs.
///
/// # Errors
/// Where there is none, with what was looked at.
pub(crate) fn java() -> Result<&'static Path, Error> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(java) = FOUND.get() {
        return Ok(java);
    }
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    let system = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let candidates = home.into_iter().chain(["java".into()]).chain(system.map(|entry| entry.path().join("bin/java")));
    let mut looked_at = Vec::new();
    for candidate in candidates {
        match major(&candidate) {
            Some(MAJOR) => return Ok(FOUND.get_or_init(|| candidate)),
            Some(other) => looked_at.push(format!("{} (java {other})", candidate.display())),
            None => looked_at.push(format!("{} (does not run)", candidate.display())),
        }
    }
    Err(Error::JavaMissing { wanted: MAJOR, looked_at: looked_at.join(", ") })
}

fn major(java: &Path) -> Option<u32> {
    let output = Command::new(java).arg("-version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // openjdk version "17.0.15" 2025-04-15
    text.split('"').nth(1)?.split(['.', '-', '+']).next()?.parse().ok()
}

/// The classes a server loads, parsed once and mapped by every later start, which takes a third off the time to ready.
///
/// The first server that has no archive records one as it ends in good order; the JVM ignores one that does not fit.
#[derive(Debug, Clone)]
pub(crate) struct ClassArchive {
    shared: PathBuf,
    recorded: PathBuf,
}

impl ClassArchive {
    /// `folder` is the instance's, where a recording lies until it is complete.
    pub(crate) fn new(artifact: &Artifact, folder: &Path) -> Self {
        Self { shared: place::cache_dir().join(format!("{artifact}.jsa")), recorded: folder.join("classes.jsa") }
    }

    /// Uses the archive, or records it.
    pub(crate) fn flag(&self) -> String {
        self.use_flag().unwrap_or_else(|| format!("-XX:ArchiveClassesAtExit={}", self.recorded.display()))
    }

    /// Uses the archive, where there is one.
    pub(crate) fn use_flag(&self) -> Option<String> {
        self.shared.exists().then(|| format!("-XX:SharedArchiveFile={}", self.shared.display()))
    }

    /// Moves a recording into the cache. Without one the next start is slower and nothing else, hence no error.
    pub(crate) fn publish(&self) {
        if self.recorded.exists() {
            let part = self.shared.with_extension(format!("{}.part", std::process::id()));
            let moved = fs::copy(&self.recorded, &part).and_then(|_| fs::rename(&part, &self.shared));
            drop(moved.or_else(|_| fs::remove_file(&part)));
            drop(fs::remove_file(&self.recorded));
        }
    }
}
