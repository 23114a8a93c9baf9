//! The `cassandra:` section.

use std::sync::Arc;

use cdc_runtime::Secret;
use cdc_runtime::credentials::{Credentials, Login};
use serde::{Deserialize, Serialize};

/// Long enough for a busy node, short enough for someone who waits for `cdc validate`.
const CONNECT_TIMEOUT_MS: u64 = 5_000;
const DEFAULT_PORT: u16 = 9042;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CassandraConfig {
    /// `host` or `host:port`. The first is the node whose commit log is read: an agent talks to its own node only.
    pub contact_points: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    #[serde(default, skip_serializing)]
    pub password: Option<Secret>,
    /// In place of both, a login that is issued while the process runs.
    #[serde(skip)]
    pub credentials: Option<Credentials>,
    /// Milliseconds until an attempt to connect is given up.
    #[serde(default = "connect_timeout_ms")]
    pub connect_timeout_ms: u64,
}

fn connect_timeout_ms() -> u64 {
    CONNECT_TIMEOUT_MS
}

impl CassandraConfig {
    /// One node, no authentication, everything else as by default.
    pub fn new(contact_point: impl Into<String>) -> Self {
        Self {
            contact_points: vec![contact_point.into()],
            username: None,
            password: None,
            credentials: None,
            connect_timeout_ms: connect_timeout_ms(),
        }
    }

    /// The login that counts now; a password of a file is read again. `None`: there is none, or none yet.
    pub fn login(&self) -> Option<Arc<Login>> {
        if let Some(credentials) = &self.credentials {
            return credentials.current();
        }
        let (username, password) = self.username.clone().zip(self.password.as_ref())?;
        Some(Arc::new(Login { username, password: Some(password.now()), generation: 0 }))
    }

    /// Every fault at once, each naming its field; empty if there is none.
    pub fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match self.contact_points.as_slice() {
            [] => faults.push("cassandra.contact_points is empty: name the node beside this agent, as `host:9042`".into()),
            [_] => {}
            more => faults.push(format!(
                "cassandra.contact_points has {} entries: an agent reads the commit log of one node, name only that one",
                more.len()
            )),
        }
        for point in &self.contact_points {
            if split_host(point).is_none() {
                faults.push(format!("cassandra.contact_points: {point:?} is neither `host` nor `host:port`"));
            }
        }
        if self.username.is_some() != self.password.is_some() {
            let (given, other) =
                if self.username.is_some() { ("username", "password") } else { ("password", "username") };
            faults.push(format!("cassandra.{given} is given without cassandra.{other}: give both or none"));
        }
        if self.connect_timeout_ms == 0 {
            faults.push("cassandra.connect_timeout_ms is 0: use at least 1".into());
        }
        faults
    }

    /// Host and port of the node this process talks to.
    pub fn own_node(&self) -> Option<(&str, u16)> {
        self.contact_points.first().and_then(|point| split_host(point))
    }
}

fn split_host(point: &str) -> Option<(&str, u16)> {
    if let Some(rest) = point.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        return match port.strip_prefix(':') {
            Some(port) => Some((host, port.parse().ok()?)),
            None => port.is_empty().then_some((host, DEFAULT_PORT)),
        };
    }
    match point.split_once(':') {
        // More than one colon: an IPv6 address without a port.
        Some((_, rest)) if rest.contains(':') => Some((point, DEFAULT_PORT)),
        Some((host, port)) => (!host.is_empty()).then_some((host, port.parse().ok()?)),
        None => (!point.is_empty()).then_some((point, DEFAULT_PORT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_contact_point_is_optional() {
        assert_eq!(split_host("db"), Some(("db", 9042)));
        assert_eq!(split_host("10.0.0.1:9043"), Some(("10.0.0.1", 9043)));
        assert_eq!(split_host("::1"), Some(("::1", 9042)));
        assert_eq!(split_host("[::1]:9043"), Some(("::1", 9043)));
        assert_eq!((split_host(""), split_host(":1"), split_host("db:x")), (None, None, None));
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let config = CassandraConfig {
            contact_points: vec!["db:x".into(), "b".into()],
            username: Some("me".into()),
            password: None,
            credentials: None,
            connect_timeout_ms: 0,
        };
        assert_eq!(config.validate().len(), 4, "{:?}", config.validate());
        assert!(CassandraConfig::new("db").validate().is_empty());
    }
}
