//! `CDC__SECTION__KEY` variables.

use std::collections::HashMap;

use serde_yaml_ng::{Mapping, Value};

use super::Fault;

const PREFIX: &str = "CDC__";

pub(super) struct Override {
    pub(super) name: String,
    /// The value as it was given, until it was used as text: `CDC__POSTGRES__PASSWORD=12345` is a text, too.
    pub(super) text: Option<String>,
}

/// Sets what the variables say; returns by path where each value came from.
pub(super) fn apply(
    root: &mut Value,
    environment: &HashMap<String, String>,
    faults: &mut Vec<Fault>,
) -> HashMap<Vec<String>, Override> {
    let mut overrides = HashMap::new();
    for (name, text) in environment {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let (name, text) = (name.clone(), text.clone());
        let path: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
        if path.iter().any(String::is_empty) {
            faults.push(Fault::new(&name, "is not a key: write it as CDC__SECTION__KEY"));
            continue;
        }
        let value = serde_yaml_ng::from_str(&text).unwrap_or_else(|_| Value::String(text.clone()));
        if insert(root, &path, value) {
            overrides.insert(path, Override { name, text: Some(text) });
        } else {
            faults.push(Fault::new(&name, "names a key below one that is not a section in the file"));
        }
    }
    overrides
}

fn insert(root: &mut Value, path: &[String], value: Value) -> bool {
    let mut at = root;
    for key in path {
        if at.is_null() {
            *at = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(map) = at else { return false };
        at = map.entry(Value::String(key.clone())).or_insert(Value::Null);
    }
    *at = value;
    true
}
