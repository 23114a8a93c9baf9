//! What the node says about its own configuration.

use std::collections::HashMap;
use std::path::Path;

/// `system_views.settings`: the node's cassandra.yaml as it is in effect. Names differ between versions.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settings(pub(crate) HashMap<String, String>);

impl Settings {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| *value != "null")
    }

    /// `None`: the node does not say.
    pub fn cdc_enabled(&self) -> Option<bool> {
        self.get("cdc_enabled")?.parse().ok()
    }

    pub fn cdc_raw_directory(&self) -> Option<&Path> {
        self.get("cdc_raw_directory").map(Path::new)
    }

    /// Segments are compressed or encrypted: they are written sync by sync, and read in `mode: durable`.
    pub fn commitlog_is_transformed(&self) -> bool {
        self.get("commitlog_compression").is_some_and(|value| !value.is_empty()) || self.commitlog_is_encrypted()
    }

    pub fn commitlog_is_encrypted(&self) -> bool {
        ["transparent_data_encryption_options_enabled", "transparent_data_encryption_options.enabled"]
            .iter()
            .any(|name| self.get(name) == Some("true"))
    }
}
