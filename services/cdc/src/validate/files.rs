//! Folders and keystore of the agent.

use std::io;
use std::path::Path;

use cdc_source::{KeystoreConfig, SourceConfig, SourceError};
use rustix::fs::{Access, access};

use super::Finding;
use crate::role::chain;

pub(super) fn check(source: &SourceConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    let raw = &source.cdc_raw_directory;
    let fix =
        "name this node's cdc_raw_directory, and run the agent as Cassandra's user or in its group with group write";
    if let Err(error) = usable(raw) {
        findings.push(format!("source.cdc_raw_directory {} {}; {fix}", raw.display(), reason(&error)));
    }
    let state = &source.state_directory;
    // The agent creates it.
    let nearest = state.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if let Err(error) = usable(nearest) {
        findings.push(format!(
            "source.state_directory {} {}; create it and give it to the agent's user",
            state.display(),
            reason(&error)
        ));
    }
    if let Some(Err(error)) = source.keystore.as_ref().map(KeystoreConfig::open) {
        findings.push(chain(&SourceError::from(error)));
    }
    findings.into_iter().map(Finding::config).collect()
}

/// Can be listed, and files in it created and deleted.
fn usable(folder: &Path) -> io::Result<()> {
    std::fs::read_dir(folder)?;
    access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?;
    Ok(())
}

fn reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "does not exist",
        io::ErrorKind::NotADirectory => "is not a directory",
        io::ErrorKind::PermissionDenied => "cannot be read and written by this user",
        io::ErrorKind::ReadOnlyFilesystem => "is on a read-only file system",
        _ => "cannot be used",
    }
}
