//! Whether a node and its tables are set up for capture; sentences that name the setting and the fix.

use cdc_model::TableSchema;

use crate::Settings;

/// An entry of `source.tables`; `table: None` is all of the keyspace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub keyspace: String,
    pub table: Option<String>,
}

impl Wanted {
    /// Of `keyspace.table` or `keyspace.*`.
    pub fn parse(text: &str) -> Option<Self> {
        let (keyspace, table) = text.split_once('.')?;
        let valid = !keyspace.is_empty() && !table.is_empty() && !table.contains('.');
        valid.then(|| Self { keyspace: keyspace.to_owned(), table: (table != "*").then(|| table.to_owned()) })
    }

    /// Whether the entry names this table.
    pub fn matches(&self, table: &TableSchema) -> bool {
        self.keyspace == table.keyspace && self.table.as_ref().is_none_or(|name| *name == table.name)
    }
}

/// A node that encrypts its commit log, and no key to read it with.
pub fn keystore_fault(settings: &Settings, configured: bool) -> Option<String> {
    (settings.commitlog_is_encrypted() && !configured).then(|| {
        "source.keystore is not set, but this node encrypts its commit log; set its path and password to those in \
         transparent_data_encryption_options of the node's cassandra.yaml"
            .to_owned()
    })
}

/// What in the node's own configuration stands in the way of capture.
pub fn node_faults(settings: &Settings) -> Vec<String> {
    let mut faults = Vec::new();
    if settings.cdc_enabled() == Some(false) {
        faults.push(
            "cdc_enabled is false in this node's cassandra.yaml, so it logs nothing for capture; set `cdc_enabled: true` \
             and restart the node"
                .to_owned(),
        );
    }
    faults
}

/// What in the schema stands in the way of capturing the wanted tables.
pub fn table_faults(wanted: &[Wanted], tables: &[TableSchema]) -> Vec<String> {
    let mut faults = Vec::new();
    for Wanted { keyspace, table } in wanted {
        let of_keyspace: Vec<&TableSchema> = tables.iter().filter(|known| known.keyspace == *keyspace).collect();
        if of_keyspace.is_empty() {
            let keyspaces = tables.iter().map(|known| known.keyspace.as_str());
            let hint = suggestion(keyspace, keyspaces);
            let entry = table.as_deref().unwrap_or("*");
            faults.push(format!(
                "source.tables has `{keyspace}.{entry}`, but keyspace {keyspace} has no tables{hint}; create them or \
                 correct the entry"
            ));
            continue;
        }
        match table {
            None => {
                if !of_keyspace.iter().any(|table| table.cdc) {
                    let statements: Vec<String> = of_keyspace.iter().map(|table| enable_cdc(table)).collect();
                    faults.push(format!(
                        "source.tables has `{keyspace}.*`, but no table of {keyspace} has cdc = true; run in cqlsh: {}",
                        statements.join(" ")
                    ));
                }
            }
            Some(name) => match of_keyspace.iter().find(|known| known.name == *name) {
                None => {
                    let hint = suggestion(name, of_keyspace.iter().map(|known| known.name.as_str()));
                    faults.push(format!(
                        "source.tables has `{keyspace}.{name}`, which does not exist{hint}; create it or correct the entry"
                    ));
                }
                Some(known) if !known.cdc => faults.push(format!(
                    "source.tables has `{keyspace}.{name}`, which is not logged for capture; run in cqlsh: {}",
                    enable_cdc(known)
                )),
                Some(_) => {}
            },
        }
    }
    faults
}

fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    cdc_runtime::config::closest(name, known).map(|meant| format!(" (did you mean `{meant}`?)")).unwrap_or_default()
}

/// The statement that turns a table's capture on.
pub fn enable_cdc(table: &TableSchema) -> String {
    format!("ALTER TABLE {}.{} WITH cdc = true;", identifier(&table.keyspace), identifier(&table.name))
}

fn identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use cdc_model::{CqlType, KeyColumn, TableId};
    use uuid::Uuid;

    use super::*;

    fn table(keyspace: &str, name: &str, cdc: bool) -> TableSchema {
        TableSchema {
            id: TableId(Uuid::nil()),
            keyspace: keyspace.into(),
            name: name.into(),
            partition_key: vec![KeyColumn { name: "id".into(), ty: CqlType::Int, reversed: false }],
            clustering: vec![],
            columns: vec![],
            cdc,
            gc_grace_seconds: 1,
        }
    }

    fn faults(entry: &str) -> Vec<String> {
        let tables = [table("shop", "users", true), table("shop", "Orders", false), table("dull", "stock", false)];
        table_faults(&[Wanted::parse(entry).unwrap()], &tables)
    }

    #[test]
    fn captured_tables_have_no_faults() {
        assert!(faults("shop.users").is_empty());
        assert!(faults("shop.*").is_empty(), "one table of it is captured");
    }

    #[test]
    fn a_missing_table_or_keyspace_is_named_with_a_suggestion() {
        assert_eq!(
            faults("shop.user"),
            [
                "source.tables has `shop.user`, which does not exist (did you mean `users`?); create it or correct the entry"
            ]
        );
        assert_eq!(
            faults("shopp.*"),
            ["source.tables has `shopp.*`, but keyspace shopp has no tables (did you mean `shop`?); create them or \
              correct the entry"]
        );
    }

    #[test]
    fn a_table_without_cdc_comes_with_the_statement_to_run() {
        assert_eq!(
            faults("shop.Orders"),
            ["source.tables has `shop.Orders`, which is not logged for capture; run in cqlsh: ALTER TABLE \
              shop.\"Orders\" WITH cdc = true;"]
        );
        assert!(faults("dull.*")[0].ends_with("run in cqlsh: ALTER TABLE dull.stock WITH cdc = true;"));
    }

    #[test]
    fn a_node_without_capture_is_refused_and_one_with_a_compressed_log_is_not() {
        let settings = |pairs: &[(&str, &str)]| {
            Settings(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>())
        };
        let compressed = settings(&[("cdc_enabled", "true"), ("commitlog_compression", "LZ4Compressor")]);
        assert!(compressed.commitlog_is_transformed() && node_faults(&compressed).is_empty());
        assert_eq!(node_faults(&settings(&[("cdc_enabled", "false")])).len(), 1);
        assert!(node_faults(&settings(&[])).is_empty(), "a node that says nothing is not accused");
        let encrypted = settings(&[("transparent_data_encryption_options_enabled", "true")]);
        assert!(keystore_fault(&encrypted, false).is_some() && keystore_fault(&encrypted, true).is_none());
        assert!(keystore_fault(&compressed, false).is_none());
    }
}
