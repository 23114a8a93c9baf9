//! What is deployed, checked without a cluster or a container engine: the chart rendered by helm for many values, against the
//! API's schemas and by `cdc` itself; alerts and dashboards by promtool, and by the metrics `cdc` exports; the image, the
//! compose file and the units as far as their own tools look at them. `scripts/lib/deploy-tools.sh` obtains the tools.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod chart;
mod dashboards;
mod docker;
mod live;
mod rules;
mod systemd;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension() == Some(OsStr::new(extension)));
    files.sort();
    assert!(!files.is_empty(), "{folder} has no .{extension}");
    files
}

fn stem(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

fn yaml(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The binary that was built with the tests.
fn cdc() -> Command {
    let tests = std::env::current_exe().unwrap();
    Command::new(tests.parent().and_then(Path::parent).unwrap().join("cdc"))
}

struct Said {
    ok: bool,
    text: String,
}

/// Both of its outputs.
fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{:?}: {error}; scripts/lib/deploy-tools.sh obtains what scripts/test needs", command.get_program())
    });
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { ok: output.status.success(), text: text(output.stdout) + &text(output.stderr) }
}

/// Names in an expression of Prometheus that are metrics of ours, without the ending of a histogram's series.
fn metrics_of(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("cdc_"))
        .map(|word| ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_file_that_is_shipped_is_in_the_documentation() {
    let book = read("docs/deploy.md");
    for path in [
        "helm",
        "docker/Dockerfile",
        "docker/compose.yaml",
        "docker/secrets.sh",
        "docker/config",
        "helm/rules",
        "helm/dashboards",
    ] {
        assert!(root().join(path).exists() && book.contains(path), "docs/deploy.md says nothing of {path}");
    }
    for unit in files("systemd", "service") {
        assert!(book.contains(stem(&unit)), "docs/deploy.md says nothing of {}", unit.display());
    }
    let values = yaml(&read("helm/values.yaml"));
    for section in values.as_object().unwrap().keys() {
        assert!(book.contains(&format!("`{section}")), "docs/deploy.md says nothing of the value {section}");
    }
}
