//! Configuration: one YAML file, then the environment.
//!
//! `CDC__SECTION__KEY=value` overrides `section.key`; the value is read as YAML, or as plain text where a text is
//! expected. Wherever `password`, `salt`, `token` or `secret_id` is a key, `password_file`, `salt_file`, `token_file` or
//! `secret_id_file` may stand instead: the file's content, less a trailing line break, is the secret. `${env:NAME}` and
//! `${file:/path}` may stand in any text ([`placeholder`]).
//!
//! All faults are reported at once. Types only say what serde tells: the first fault. So [`parse`] deserialises again
//! and again: a fault is noted, then an unknown key is taken out, and a wrong or missing value replaced by one that the
//! type accepts, until nothing new is found. Values are shown except under keys that hold secrets.

mod environment;
mod fault;
mod locate;
mod placeholder;

use std::collections::HashMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

pub use fault::{ConfigErrors, Fault, closest};

use fault::Complaint;

/// Reads a file and the process's environment.
///
/// # Errors
/// All faults found; the process should end with [`crate::Exit::Config`].
pub fn load<T: DeserializeOwned>(file: &Path) -> Result<T, ConfigErrors> {
    load_checked(file, |_| Vec::new())
}

/// As [`load`], with further faults, which `check` finds in what was read.
///
/// # Errors
/// All faults found.
pub fn load_checked<T: DeserializeOwned>(file: &Path, check: impl FnOnce(&T) -> Vec<Fault>) -> Result<T, ConfigErrors> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let fault = Fault::new("", format!("cannot be read: {error}; name an existing file with --config"));
        ConfigErrors { file: file.to_owned(), faults: vec![fault] }
    })?;
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value.to_str()?.to_owned())));
    parse(&text, environment, check).map_err(|faults| ConfigErrors { file: file.to_owned(), faults })
}

/// Reads YAML and variables as of the environment; those without the prefix `CDC__` are ignored.
///
/// # Errors
/// All faults found; those of `check` only if the types find none.
pub fn parse<T: DeserializeOwned>(
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
    check: impl FnOnce(&T) -> Vec<Fault>,
) -> Result<T, Vec<Fault>> {
    let mut root = match serde_yaml_ng::from_str::<Value>(text) {
        Ok(Value::Null) => Value::Mapping(Mapping::new()),
        Ok(root @ Value::Mapping(_)) => root,
        Ok(_) => return Err(vec![Fault::new("", "expected sections, as in `source:` with indented keys below")]),
        Err(error) => {
            // The parser's sentence ends with the place, which the fault carries by itself.
            let message = error.to_string();
            let sentence = message.split(" at line ").next().unwrap_or_default();
            let mut fault = Fault::new("", format!("is not valid YAML: {sentence}"));
            fault.line = error.location().map(|at| at.line());
            return Err(vec![fault]);
        }
    };
    let mut faults = Vec::new();
    let environment: HashMap<String, String> = environment.into_iter().collect();
    let overrides = environment::apply(&mut root, &environment, &mut faults);
    let mut resolved = placeholder::Resolved::new();
    placeholder::resolve(&mut root, &mut Vec::new(), &environment, &mut resolved, &mut faults);
    read_secret_files(&mut root, &mut Vec::new(), &mut faults);

    let mut loader = Loader { root, overrides, resolved, stand_ins: HashMap::new(), faults };
    let loaded = loader.load();
    let mut faults = loader.faults;
    if faults.is_empty() {
        let loaded: T = loaded.expect("deserialising ends with a value or a fault");
        faults = check(&loaded);
        if faults.is_empty() {
            return Ok(loaded);
        }
    }
    for fault in &mut faults {
        if let Some(variable) = loader.overrides.iter().find(|(path, _)| **path == fault.segments()) {
            fault.variable = Some(variable.1.name.clone());
        } else {
            fault.line = fault.line.or_else(|| locate::line(text, &fault.segments()));
        }
    }
    faults.sort_by_key(|fault| fault.line);
    Err(faults)
}

/// Tried in place of a value that is wrong or missing, so that the faults after it are found too: first none at all,
/// then one of each type.
fn stand_in(attempt: usize) -> Option<Option<Value>> {
    Some(match attempt {
        0 => None,
        1 => Some(Value::String("x".into())),
        2 => Some(Value::Number(1.into())),
        3 => Some(Value::Bool(true)),
        4 => Some(Value::Sequence(vec![])),
        5 => Some(Value::Mapping(Mapping::new())),
        _ => return None,
    })
}

struct Loader {
    root: Value,
    overrides: HashMap<Vec<String>, environment::Override>,
    resolved: placeholder::Resolved,
    /// By path: how many stand-ins were tried.
    stand_ins: HashMap<Vec<String>, usize>,
    faults: Vec<Fault>,
}

impl Loader {
    fn load<T: DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            let error = match serde_path_to_error::deserialize::<_, T>(self.root.clone()) {
                Ok(value) => return Some(value),
                Err(error) => error,
            };
            let mut path: Vec<String> = error.path().iter().map(segment).collect();
            let complaint = Complaint::parse(&error.inner().to_string());
            if let Complaint::UnknownKey { key, .. } | Complaint::Missing { key } = &complaint
                && path.last() != Some(key)
            {
                path.push(key.clone());
            }
            // A fault inside of what stands in for a faulty value is not the file's.
            if let Some(faulty) =
                (1..=path.len()).map(|n| &path[..n]).find(|prefix| self.stand_ins.contains_key(*prefix))
            {
                let faulty = faulty.to_vec();
                if !self.try_next_stand_in(faulty) {
                    return None;
                }
                continue;
            }
            if let Some(text) = self.overrides.get_mut(&path).and_then(|given| given.text.take())
                && complaint.expects_text()
            {
                set(&mut self.root, &path, Value::String(text));
                continue;
            }
            if let Some(text) = self.resolved.get_mut(&path).and_then(Option::take)
                && let Some(scalar) = placeholder::scalar(&text)
            {
                set(&mut self.root, &path, scalar);
                continue;
            }
            self.faults.push(complaint.into_fault(&path, self.resolved.contains_key(&path)));
            if path.is_empty() {
                return None;
            }
            if let Complaint::UnknownKey { .. } = Complaint::parse(&error.inner().to_string()) {
                remove(&mut self.root, &path);
            } else if !self.try_next_stand_in(path) {
                return None;
            }
        }
    }

    /// Goes up a level when nothing stands in; `false` at the top.
    fn try_next_stand_in(&mut self, mut path: Vec<String>) -> bool {
        while !path.is_empty() {
            let attempt = self.stand_ins.entry(path.clone()).or_insert(0);
            let value = stand_in(*attempt);
            *attempt += 1;
            match value {
                Some(Some(value)) => set(&mut self.root, &path, value),
                Some(None) => remove(&mut self.root, &path),
                None => {
                    path.pop();
                    continue;
                }
            }
            return true;
        }
        false
    }
}

fn segment(segment: &serde_path_to_error::Segment) -> String {
    match segment {
        serde_path_to_error::Segment::Seq { index } => index.to_string(),
        serde_path_to_error::Segment::Map { key } => key.clone(),
        serde_path_to_error::Segment::Enum { variant } => variant.clone(),
        serde_path_to_error::Segment::Unknown => "?".to_owned(),
    }
}

fn child<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    match value {
        Value::Mapping(map) => map.get_mut(key),
        Value::Sequence(list) => list.get_mut(key.parse::<usize>().ok()?),
        _ => None,
    }
}

fn parent<'a>(root: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().take(path.len().saturating_sub(1)).try_fold(root, |value, key| child(value, key))
}

fn set(root: &mut Value, path: &[String], new: Value) {
    let Some((key, parent)) = path.last().zip(parent(root, path)) else { return };
    match child(parent, key) {
        Some(place) => *place = new,
        None => {
            if let Value::Mapping(map) = parent {
                map.insert(Value::String(key.clone()), new);
            }
        }
    }
}

fn remove(root: &mut Value, path: &[String]) {
    if let Some((key, Value::Mapping(map))) = path.last().zip(parent(root, path)) {
        map.remove(key.as_str());
    }
}

/// Keys that hold secrets, and those that name a file with it instead.
const SECRETS: [(&str, &str); 4] =
    [("password", "password_file"), ("salt", "salt_file"), ("token", "token_file"), ("secret_id", "secret_id_file")];

fn read_secret_files(value: &mut Value, path: &mut Vec<String>, faults: &mut Vec<Fault>) {
    let Value::Mapping(map) = value else { return };
    for (secret, in_file) in SECRETS {
        // Below a section of free names, a column's for instance, a section may be called so.
        let Some(file) = map.get(in_file).filter(|file| !file.is_mapping()).cloned() else { continue };
        map.remove(in_file);
        let content = match &file {
            Value::String(_) if map.contains_key(secret) => Err(format!("stands beside {secret}: give only one")),
            Value::String(file) => match crate::secret::read(Path::new(file)) {
                Ok(content) => Ok((file.as_str(), content)),
                Err(error) => Err(format!("cannot read {file}: {error}")),
            },
            _ => Err("expected the path of a file".to_owned()),
        };
        match content {
            Ok((file, content)) => {
                let both = [(crate::secret::FILE, file.to_owned()), (crate::secret::CONTENT, content)];
                let both = both.into_iter().map(|(key, text)| (key.into(), Value::String(text)));
                map.insert(secret.into(), Value::Mapping(both.collect()));
            }
            Err(message) => faults.push(Fault::new(format!("{}.{in_file}", path.join(".")), message)),
        }
    }
    for (key, value) in map.iter_mut() {
        path.push(key.as_str().unwrap_or_default().to_owned());
        read_secret_files(value, path, faults);
        path.pop();
    }
}

#[cfg(test)]
mod tests;
