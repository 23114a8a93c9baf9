//! The node, its settings and its tables.

use std::path::Path;

use cdc_cassandra::checks::{Wanted, keystore_fault, node_faults, table_faults};
use cdc_cassandra::{Cassandra, CassandraConfig, Settings};
use cdc_model::TableSchema;
use cdc_postgres::PostgresConfig;
use cdc_source::SourceConfig;

use super::Finding;
use crate::role::chain;

/// Also returns the tables that are captured.
pub(super) async fn check(
    config: &CassandraConfig,
    source: &SourceConfig,
    postgres: Option<&PostgresConfig>,
) -> (Vec<Finding>, Vec<TableSchema>) {
    let node = match Cassandra::connect(config).await {
        Ok(node) => node,
        Err(error) => return (vec![Finding::unavailable(chain(&error))], Vec::new()),
    };
    let mut captured = Vec::new();
    let mut findings = Vec::new();
    match node.settings().await {
        Ok(settings) => {
            findings.extend(node_faults(&settings).into_iter().map(Finding::unavailable));
            findings.extend(keystore_fault(&settings, source.keystore.is_some()).map(Finding::config));
            findings.extend(other_directory(&settings, &source.cdc_raw_directory));
        }
        Err(error) => findings.push(Finding::unavailable(chain(&error))),
    }
    match node.load_schema().await {
        Ok(tables) => {
            let wanted: Vec<Wanted> = source.tables.iter().filter_map(|entry| Wanted::parse(entry)).collect();
            findings.extend(table_faults(&wanted, &tables).into_iter().map(Finding::config));
            let is_captured = |table: &TableSchema| table.cdc && wanted.iter().any(|entry| entry.matches(table));
            captured = tables.into_iter().filter(is_captured).collect();
            let settings = postgres.map(|postgres| postgres.validate_with(&captured)).unwrap_or_default();
            findings.extend(settings.into_iter().map(Finding::config));
        }
        Err(error) => findings.push(Finding::unavailable(chain(&error))),
    }
    (findings, captured)
}

/// The folder of another node, or a path that means something else in a container.
fn other_directory(settings: &Settings, configured: &Path) -> Option<Finding> {
    let actual = settings.cdc_raw_directory()?;
    let same = match (actual.canonicalize(), configured.canonicalize()) {
        (Ok(actual), Ok(configured)) => actual == configured,
        // Not visible from here, as in a container with the folder mounted elsewhere: nothing can be said.
        _ => return None,
    };
    (!same).then(|| {
        Finding::config(format!(
            "source.cdc_raw_directory is {}, but this node writes to {}; use that",
            configured.display(),
            actual.display()
        ))
    })
}
