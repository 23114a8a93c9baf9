//! What users may say about single target tables and columns.

use std::collections::BTreeMap;

use cdc_model::{CqlType, TableSchema};
use cdc_runtime::{Secret, config::closest};
use serde::{Deserialize, Deserializer, de::Error};

use crate::layout::{IDENTIFIER_MAX, OWN_PREFIX, STATIC_SUFFIX};

/// A shorter salt can be found by trying.
const SALT_MIN: usize = 16;

/// Who creates and alters target tables.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SchemaMode {
    /// The pipeline.
    #[default]
    Manage,
    /// The user; the pipeline says what is missing.
    Validate,
}

/// What to do with a value PostgreSQL cannot hold.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnrepresentable {
    /// Park the change.
    #[default]
    Quarantine,
    /// Write the nearest value there is.
    Replace,
    /// Write NULL.
    Skip,
}

/// Of one table of the source.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TableSettings {
    /// Instead of what `table_name` makes of it.
    pub name: Option<String>,
    /// Only these columns and the key.
    pub include: Option<Vec<String>>,
    /// All columns but these.
    pub exclude: Vec<String>,
    /// By name in the source.
    pub columns: BTreeMap<String, ColumnSettings>,
    pub unrepresentable: Option<OnUnrepresentable>,
}

/// Of one column.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColumnSettings {
    /// Name in the target.
    pub name: Option<String>,
    #[serde(deserialize_with = "mask")]
    pub mask: Option<Mask>,
    pub unrepresentable: Option<OnUnrepresentable>,
}

/// What is shown, and kept, instead of values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mask {
    Null,
    /// This text, where there is a value.
    Fixed(String),
    /// HMAC-SHA-256 with this key, as hexadecimal text.
    Hash(Secret),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MaskForm {
    hash: Option<HashForm>,
    fixed: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HashForm {
    salt: Secret,
}

/// `mask: null` is a mask, unlike no `mask` at all.
fn mask<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mask>, D::Error> {
    Ok(Some(match Option::<MaskForm>::deserialize(deserializer)? {
        None => Mask::Null,
        Some(MaskForm { hash: None, fixed: Some(text) }) => Mask::Fixed(text),
        Some(MaskForm { hash: Some(HashForm { salt }), fixed: None }) => Mask::Hash(salt),
        Some(_) => return Err(D::Error::custom("use `null`, `{fixed: text}` or `{hash: {salt_file: path}}`")),
    }))
}

/// Something that cannot be done as it is written, and what to write instead.
pub(crate) struct Fault {
    /// Below the table's settings, as in `columns.email.mask`.
    pub(crate) key: String,
    pub(crate) problem: String,
    pub(crate) fix: String,
}

fn fault(key: impl Into<String>, problem: impl Into<String>, fix: impl Into<String>) -> Fault {
    Fault { key: key.into(), problem: problem.into(), fix: fix.into() }
}

impl TableSettings {
    /// Where the settings of a table stand.
    pub(crate) fn path(table: &str) -> String {
        format!("postgres.tables.{table}")
    }

    pub(crate) fn excludes(&self, column: &str) -> bool {
        let has = |list: &[String]| list.iter().any(|name| name == column);
        self.include.as_deref().map_or_else(|| has(&self.exclude), |include| !has(include))
    }

    pub(crate) fn target_name<'n>(&'n self, column: &'n str) -> &'n str {
        self.columns.get(column).and_then(|settings| settings.name.as_deref()).unwrap_or(column)
    }

    pub(crate) fn mask(&self, column: &str) -> Option<&Mask> {
        self.columns.get(column)?.mask.as_ref()
    }

    /// What is wrong whatever the table looks like.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.include.is_some() && !self.exclude.is_empty() {
            faults.push(fault("exclude", "stands beside include", "give only one"));
        }
        if let Some(name) = &self.name {
            faults.extend(identifier_fault("name", name, IDENTIFIER_MAX - STATIC_SUFFIX.len()));
        }
        for (column, settings) in &self.columns {
            if let Some(name) = &settings.name {
                faults.extend(identifier_fault(&format!("columns.{column}.name"), name, IDENTIFIER_MAX));
            }
            if self.exclude.contains(column) {
                faults.push(fault(
                    format!("columns.{column}"),
                    "is set for a column that exclude names",
                    "take one of them out",
                ));
            }
            if let Some(Mask::Hash(salt)) = &settings.mask
                && salt.expose().len() < SALT_MIN
            {
                faults.push(fault(
                    format!("columns.{column}.mask.hash.salt"),
                    format!("is shorter than {SALT_MIN} bytes, so it could be found by trying"),
                    "use a long random text, as `openssl rand -hex 32` writes",
                ));
            }
        }
        faults
    }

    /// What cannot be done with this table.
    pub(crate) fn faults_with(&self, schema: &TableSchema) -> Vec<Fault> {
        let mut faults = Vec::new();
        for key in schema.partition_key.iter().chain(&schema.clustering).map(|column| &column.name) {
            if self.exclude.contains(key) {
                faults.push(fault(
                    "exclude",
                    format!("names `{key}`, a column of the primary key, without which rows cannot be told apart"),
                    "take it out of the list",
                ));
            }
            let Some(settings) = self.columns.get(key) else { continue };
            if settings.mask.is_some() {
                faults.push(fault(
                    format!("columns.{key}.mask"),
                    "is set for a column of the primary key, which deletions and late writes are found by",
                    "take it out, or leave the table out of source.tables",
                ));
            }
            if matches!(settings.unrepresentable, Some(OnUnrepresentable::Replace | OnUnrepresentable::Skip)) {
                faults.push(fault(
                    format!("columns.{key}.unrepresentable"),
                    "is set for a column of the primary key, which can only be quarantined",
                    "take it out",
                ));
            }
        }
        for column in schema.columns.iter().filter(|column| column.dropped.is_none()) {
            let keyed = matches!(column.ty, CqlType::Set { frozen: false, .. } | CqlType::Map { frozen: false, .. });
            let problem = match self.mask(&column.name) {
                Some(Mask::Hash(_)) if column.ty == CqlType::Counter => {
                    "hashes a counter, whose sum is not what is written"
                }
                Some(Mask::Null | Mask::Fixed(_)) if keyed => {
                    "hides a set or map whose elements merge one by one, so something of each must be kept"
                }
                _ => continue,
            };
            let fix = if keyed { "use {hash: …}, or exclude the column" } else { "use null or {fixed: …}" };
            faults.push(fault(format!("columns.{}.mask", column.name), problem, fix));
        }
        let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
        for column in live_names(schema).filter(|column| is_key(schema, column) || !self.excludes(column)) {
            let name = self.target_name(column);
            if let Some(other) = taken.insert(name, column) {
                faults.push(fault(
                    format!("columns.{column}.name"),
                    format!("makes `{name}` the name of both `{other}` and `{column}`"),
                    "give one of them another name",
                ));
            }
        }
        faults
    }

    /// Columns that are named and that the table never had.
    pub(crate) fn unknown_columns(&self, schema: &TableSchema) -> Vec<Fault> {
        let keys = schema.partition_key.iter().chain(&schema.clustering).map(|column| column.name.as_str());
        let known: Vec<&str> = keys.chain(schema.columns.iter().map(|column| column.name.as_str())).collect();
        let named = self.exclude.iter().map(|name| ("exclude", name));
        let named = named.chain(self.include.iter().flatten().map(|name| ("include", name)));
        named
            .chain(self.columns.keys().map(|name| ("columns", name)))
            .filter(|(_, name)| !known.contains(&name.as_str()))
            .map(|(key, name)| {
                let hint = closest(name, known.iter().copied());
                let hint = hint.map(|meant| format!(" (did you mean `{meant}`?)")).unwrap_or_default();
                let problem = format!("names `{name}`, a column {} does not have{hint}", schema.full_name());
                fault(key, problem, "correct it")
            })
            .collect()
    }
}

fn live_names(schema: &TableSchema) -> impl Iterator<Item = &str> {
    let keys = schema.partition_key.iter().chain(&schema.clustering).map(|column| column.name.as_str());
    let live = schema.columns.iter().filter(|column| column.dropped.is_none());
    keys.chain(live.map(|column| column.name.as_str()))
}

fn is_key(schema: &TableSchema, name: &str) -> bool {
    schema.partition_key.iter().chain(&schema.clustering).any(|column| column.name == name)
}

fn identifier_fault(key: &str, name: &str, longest: usize) -> Option<Fault> {
    let problem = match name {
        "" => "is empty".to_owned(),
        name if name.len() > longest => format!("is `{name}`, which is longer than {longest} bytes"),
        name if name.starts_with(OWN_PREFIX) => {
            format!("is `{name}`, but names that begin with {OWN_PREFIX} are the pipeline's")
        }
        name if name.contains('\0') => "holds a NUL character".to_owned(),
        _ => return None,
    };
    Some(fault(key, problem, "use another name"))
}
