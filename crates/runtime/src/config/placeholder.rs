//! `${env:NAME}`, `${file:/path}` and `${file:/path:key}` in values.
//!
//! They are resolved after the file was parsed, in texts alone: whatever a variable or file holds, it is a value and never
//! becomes structure.

use std::collections::HashMap;
use std::path::Path;

use serde_yaml_ng::Value;

use super::Fault;

/// Where a text was put together, and the text until it was tried as a number or `true` or `false`.
pub(super) type Resolved = HashMap<Vec<String>, Option<String>>;

/// Resolves all of them, in values only.
pub(super) fn resolve(
    value: &mut Value,
    path: &mut Vec<String>,
    environment: &HashMap<String, String>,
    resolved: &mut Resolved,
    faults: &mut Vec<Fault>,
) {
    match value {
        Value::String(text) if text.contains("${") => match expand(text, environment) {
            Ok(expanded) => {
                resolved.insert(path.clone(), Some(expanded.clone()));
                *text = expanded;
            }
            Err(message) => faults.push(Fault::new(path.join("."), message)),
        },
        Value::Sequence(list) => {
            for (index, value) in list.iter_mut().enumerate() {
                path.push(index.to_string());
                resolve(value, path, environment, resolved, faults);
                path.pop();
            }
        }
        Value::Mapping(map) => {
            for (key, value) in map.iter_mut() {
                path.push(key.as_str().unwrap_or_default().to_owned());
                resolve(value, path, environment, resolved, faults);
                path.pop();
            }
        }
        _ => {}
    }
}

/// What a text may also be, where a type wants no text.
pub(super) fn scalar(text: &str) -> Option<Value> {
    serde_yaml_ng::from_str(text).ok().filter(|value: &Value| value.is_number() || value.is_bool())
}

/// What is said when it cannot be resolved names the placeholder, never a value.
fn expand(text: &str, environment: &HashMap<String, String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        // `$${` is how one writes `${`.
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        let (name, after) = after
            .split_once('}')
            .ok_or("has a placeholder that does not end: write ${env:NAME}, or $${ for ${ itself")?;
        expanded.push_str(before);
        expanded.push_str(&one(name, environment)?);
        rest = after;
    }
    Ok(expanded + rest)
}

fn one(name: &str, environment: &HashMap<String, String>) -> Result<String, String> {
    match name.split_once(':') {
        Some(("env", variable)) => environment.get(variable).cloned().ok_or_else(|| {
            format!("has the placeholder ${{{name}}}, but there is no such environment variable: set it")
        }),
        Some(("file", place)) => file(place).map_err(|message| format!("has the placeholder ${{{name}}}: {message}")),
        _ => Err(format!(
            "has the placeholder ${{{name}}}: use ${{env:NAME}}, ${{file:/path}} or ${{file:/path:key}}; $${{ stands for ${{ \
             itself; for Vault see the section `vault`"
        )),
    }
}

/// A file, a file of a folder (as Kubernetes mounts secrets), or a `key=value` line of a file.
fn file(place: &str) -> Result<String, String> {
    let read =
        |path: &Path| crate::secret::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()));
    let Some((path, key)) = place.split_once(':') else { return read(Path::new(place)) };
    let path = Path::new(path);
    if path.is_dir() {
        return match Path::new(key).components().collect::<Vec<_>>().as_slice() {
            [std::path::Component::Normal(_)] => read(&path.join(key)),
            _ => Err(format!("{key:?} is not the name of a file in {}", path.display())),
        };
    }
    let lines = read(path)?;
    let value = lines.lines().filter_map(|line| line.split_once('=')).find(|(name, _)| name.trim() == key);
    value.map(|(_, value)| value.trim().to_owned()).ok_or_else(|| format!("{} has no line {key}=...", path.display()))
}
