//! Where the target database is and how tables are named in it.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use cdc_model::TableSchema;
use cdc_runtime::{
    Secret,
    config::closest,
    credentials::{Credentials, Login},
};
use serde::Deserialize;

use crate::{
    layout::Layout,
    settings::{Fault, OnUnrepresentable, SchemaMode, TableSettings},
};

/// Connections per process, unless configured: enough to keep two PostgreSQL cores busy, few enough that a dozen
/// processes fit the default `max_connections` of 100.
const POOL_SIZE: usize = 8;

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Host name, address, or the directory of a unix socket.
    pub host: String,
    #[serde(default = "default_port")]
    pub port: u16,
    pub database: String,
    /// With `vault.postgres` neither this nor a password is given.
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password: Option<Secret>,
    /// In place of both, a login that is issued while the process runs.
    #[serde(skip)]
    pub credentials: Option<Credentials>,
    /// Connections of this process.
    #[serde(default = "default_pool_size")]
    pub pool_size: usize,
    /// Schema of the target tables; created if it is missing, where the pipeline manages tables.
    #[serde(default = "default_schema")]
    pub schema: String,
    /// Name of a target table; `{table}` and `{keyspace}` are replaced.
    #[serde(default = "default_table_name")]
    pub table_name: String,
    /// Who creates and alters the target tables.
    #[serde(default)]
    pub schema_mode: SchemaMode,
    /// What to do with values PostgreSQL cannot hold, unless a table or column says otherwise.
    #[serde(default)]
    pub unrepresentable: OnUnrepresentable,
    /// By `keyspace.table`.
    #[serde(default)]
    pub tables: BTreeMap<String, TableSettings>,
}

fn default_port() -> u16 {
    5432
}

fn default_pool_size() -> usize {
    POOL_SIZE
}

fn default_schema() -> String {
    "public".to_owned()
}

fn default_table_name() -> String {
    "cdc_{table}".to_owned()
}

impl PostgresConfig {
    /// The given place, everything else as by default.
    pub fn new(host: impl Into<String>, port: u16, database: impl Into<String>, username: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            port,
            database: database.into(),
            username: username.into(),
            password: None,
            credentials: None,
            pool_size: default_pool_size(),
            schema: default_schema(),
            table_name: default_table_name(),
            schema_mode: SchemaMode::default(),
            unrepresentable: OnUnrepresentable::default(),
            tables: BTreeMap::new(),
        }
    }

    /// The login that counts now; a password of a file is read again. `None`: none has been issued yet.
    pub fn login(&self) -> Option<Arc<Login>> {
        match &self.credentials {
            Some(credentials) => credentials.current(),
            None => Some(Arc::new(Login {
                username: self.username.clone(),
                password: self.password.as_ref().map(Secret::now),
                generation: 0,
            })),
        }
    }

    /// Who logs in now.
    pub fn user(&self) -> String {
        self.login().map_or_else(|| "(none yet)".to_owned(), |login| login.username.clone())
    }

    /// What is wrong with the values by themselves, as sentences.
    pub fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, value) in [("host", &self.host), ("database", &self.database), ("schema", &self.schema)] {
            if value.is_empty() {
                faults.push(format!("postgres.{name} is empty: name one, or leave the key out where it has a default"));
            }
        }
        if !(1..=500).contains(&self.pool_size) {
            faults.push(format!("postgres.pool_size is {}: use 1 to 500", self.pool_size));
        }
        if !self.table_name.contains("{table}") {
            faults.push(format!(
                "postgres.table_name is `{}`, which is the same for all tables: use {{table}} in it, as in `cdc_{{table}}`",
                self.table_name
            ));
        }
        let mut names: BTreeMap<&str, &str> = BTreeMap::new();
        for (table, settings) in &self.tables {
            let path = TableSettings::path(table);
            if table.split('.').filter(|part| !part.is_empty()).count() != 2 {
                faults.push(format!("{path} is not the name of a table: write keyspace.table, in quotes"));
            }
            let clash = settings.name.as_deref().and_then(|name| names.insert(name, table));
            if let Some(other) = clash {
                faults.push(format!("{path}.name is also that of {other}: give one of them another name"));
            }
            faults.extend(settings.faults().into_iter().map(|fault| sentence(table, fault)));
        }
        faults
    }

    /// What is wrong with them for the tables that are captured, as sentences.
    pub fn validate_with(&self, tables: &[TableSchema]) -> Vec<String> {
        let mut faults = Vec::new();
        let names: Vec<String> = tables.iter().map(TableSchema::full_name).collect();
        for table in self.tables.keys().filter(|table| !names.contains(table)) {
            let hint = closest(table, names.iter().map(String::as_str));
            let hint = hint.map(|meant| format!(" (did you mean `{meant}`?)")).unwrap_or_default();
            let path = TableSettings::path(table);
            faults.push(format!("{path} is for a table that is not captured{hint}: correct it or take it out"));
        }
        let mut targets: BTreeMap<String, String> = BTreeMap::new();
        for table in tables {
            let name = table.full_name();
            let settings = self.table(table);
            let found = settings.unknown_columns(table).into_iter().chain(settings.faults_with(table));
            let found: Vec<String> = found.map(|fault| sentence(&name, fault)).collect();
            let layout = match Layout::new(self, table.clone().into()) {
                Ok(layout) => layout,
                Err(error) if found.is_empty() => {
                    faults.push(error.to_string());
                    continue;
                }
                Err(_) => {
                    faults.extend(found);
                    continue;
                }
            };
            faults.extend(found);
            let relations = std::iter::once(&layout.rows).chain(&layout.statics).map(|relation| relation.name.clone());
            for target in relations.chain(layout.statics.is_some().then(|| layout.view.clone())) {
                if let Some(other) = targets.insert(target.clone(), name.clone()) {
                    faults.push(format!(
                        "tables {other} and {name} would both be written to {target}: use {{keyspace}} in \
                         postgres.table_name, or set {}.name",
                        TableSettings::path(&name)
                    ));
                }
            }
        }
        faults
    }

    /// What is set for a table.
    pub(crate) fn table(&self, table: &TableSchema) -> Cow<'_, TableSettings> {
        let settings = self.tables.get(&table.full_name());
        settings.map_or_else(|| Cow::Owned(TableSettings::default()), Cow::Borrowed)
    }

    /// Without schema, not quoted.
    pub(crate) fn target_name(&self, table: &TableSchema) -> String {
        let of_template = || self.table_name.replace("{table}", &table.name).replace("{keyspace}", &table.keyspace);
        self.table(table).name.clone().unwrap_or_else(of_template)
    }
}

fn sentence(table: &str, Fault { key, problem, fix }: Fault) -> String {
    format!("{}.{key} {problem}: {fix}", TableSettings::path(table))
}
