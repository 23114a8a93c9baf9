//! The `vault:` section.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use cdc_runtime::Secret;
use cdc_runtime::config::Fault;
use serde::Deserialize;
use url::Url;

/// A key-value secret that was changed is used this much later at most; also how often the seal is looked at.
const REFRESH_MS: u64 = 10_000;
const TIMEOUT_MS: u64 = 5_000;
/// Where Kubernetes puts a pod's own token.
const JWT_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How to log in to Vault, and what to read there. Give one of `token`, `approle` and `kubernetes`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultConfig {
    /// As in `https://vault:8200`; `http` only to this machine. Absent: the environment's `VAULT_ADDR`.
    pub address: Option<String>,
    /// Of Vault Enterprise. Absent: the environment's `VAULT_NAMESPACE`.
    pub namespace: Option<String>,
    /// PEM file with the authorities that Vault's certificate is checked against, and no others. Absent: the system's.
    pub ca_file: Option<PathBuf>,
    /// A token; of a `token_file` the one that is there now, so that an agent may replace it. Absent, with no other way to
    /// log in: the environment's `VAULT_TOKEN`.
    pub token: Option<Secret>,
    /// Absent, with no other way to log in: the environment's `VAULT_ROLE_ID` and `VAULT_SECRET_ID`.
    pub approle: Option<AppRole>,
    pub kubernetes: Option<Kubernetes>,
    /// Key-value secret (version 2) with `username` and `password` of Cassandra, as in `secret/cdc/cassandra`.
    pub cassandra: Option<String>,
    /// The same of Kafka, as in `secret/cdc/kafka`: they become `sasl.username` and `sasl.password`.
    pub kafka: Option<String>,
    /// Login of the database engine, as in `database/creds/postgresql-writer`; or a key-value secret.
    pub postgres: Option<String>,
    /// Milliseconds between two looks at key-value secrets and at the seal.
    #[serde(default = "refresh_ms")]
    pub refresh_ms: u64,
    /// Milliseconds until a request is given up.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppRole {
    pub role_id: String,
    pub secret_id: Secret,
    /// Where the method is mounted below `auth/`.
    #[serde(default = "approle")]
    pub mount: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    pub role: String,
    /// The service account's token; read again with each login, because Kubernetes replaces it.
    #[serde(default = "jwt_file")]
    pub jwt_file: PathBuf,
    /// Where the method is mounted below `auth/`.
    #[serde(default = "kubernetes")]
    pub mount: String,
}

fn refresh_ms() -> u64 {
    REFRESH_MS
}
fn timeout_ms() -> u64 {
    TIMEOUT_MS
}
fn approle() -> String {
    "approle".to_owned()
}
fn kubernetes() -> String {
    "kubernetes".to_owned()
}
fn jwt_file() -> PathBuf {
    JWT_FILE.into()
}

/// The configuration, completed from the environment and checked.
pub(crate) struct Settings {
    pub(crate) address: Url,
    pub(crate) namespace: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) method: Method,
    pub(crate) refresh: Duration,
    pub(crate) timeout: Duration,
}

pub(crate) enum Method {
    Token(Secret),
    AppRole(AppRole),
    Kubernetes(Kubernetes),
}

impl Settings {
    pub(crate) fn on_loopback(&self) -> bool {
        is_loopback(&self.address)
    }
}

fn is_loopback(address: &Url) -> bool {
    let host = address.host_str().unwrap_or_default();
    host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

impl VaultConfig {
    /// Every fault at once.
    pub fn validate(&self) -> Vec<Fault> {
        self.resolve(|name| std::env::var(name).ok()).err().unwrap_or_default()
    }

    /// A path such as `database/creds/ROLE` is a login of a secrets engine; any other is a key-value secret.
    pub(crate) fn is_leased(path: &str) -> bool {
        path.split('/').nth(1) == Some("creds")
    }

    pub(crate) fn resolve(&self, environment: impl Fn(&str) -> Option<String>) -> Result<Settings, Vec<Fault>> {
        let environment = |name: &str| environment(name).filter(|value| !value.is_empty());
        let mut faults = Vec::new();
        let address = match self.address.clone().or_else(|| environment("VAULT_ADDR")) {
            None => Err(Fault::new(
                "vault.address",
                "is missing; add it, as in `address: https://vault:8200`, or set VAULT_ADDR",
            )),
            Some(text) => address(&text).map_err(|message| Fault::new("vault.address", message)),
        };
        let paths = [("cassandra", &self.cassandra), ("kafka", &self.kafka), ("postgres", &self.postgres)];
        for (name, path) in paths {
            let Some(path) = path else { continue };
            let parts: Vec<&str> = path.split('/').collect();
            if parts.len() < 2 || parts.iter().any(|part| part.is_empty() || *part == "..") {
                let fix = format!("is {path:?}: write mount and path, as in secret/cdc/{name}");
                faults.push(Fault::new(format!("vault.{name}"), fix));
            } else if parts[1] == "data" {
                let fix =
                    format!("is {path}: leave data/ out, as in `vault kv get {}/{}`", parts[0], parts[2..].join("/"));
                faults.push(Fault::new(format!("vault.{name}"), fix));
            }
        }
        if self.cassandra.is_none() && self.kafka.is_none() && self.postgres.is_none() {
            let fix = "has nothing to read: name a path for one of cassandra, kafka, postgres, or take the section out";
            faults.push(Fault::new("vault", fix));
        }
        for (name, value, least) in [("refresh_ms", self.refresh_ms, 100), ("timeout_ms", self.timeout_ms, 100)] {
            if value < least {
                faults.push(Fault::new(format!("vault.{name}"), format!("is {value}: use {least} or more")));
            }
        }
        let method = self.method(&environment);
        match (address, method) {
            (Ok(address), Ok(method)) if faults.is_empty() => Ok(Settings {
                address,
                namespace: self.namespace.clone().or_else(|| environment("VAULT_NAMESPACE")),
                ca_file: self.ca_file.clone(),
                method,
                refresh: Duration::from_millis(self.refresh_ms),
                timeout: Duration::from_millis(self.timeout_ms),
            }),
            (address, method) => {
                faults.extend(address.err());
                faults.extend(method.err());
                Err(faults)
            }
        }
    }

    fn method(&self, environment: &impl Fn(&str) -> Option<String>) -> Result<Method, Fault> {
        let given = (self.token.clone(), self.approle.clone(), self.kubernetes.clone());
        match given {
            (Some(token), None, None) => token_of(token),
            (None, Some(approle), None) => Ok(Method::AppRole(approle)),
            (None, None, Some(kubernetes)) => Ok(Method::Kubernetes(kubernetes)),
            (None, None, None) => {
                let pair = environment("VAULT_ROLE_ID").zip(environment("VAULT_SECRET_ID"));
                match (environment("VAULT_TOKEN"), pair) {
                    (Some(token), _) => token_of(Secret::new(token)),
                    (None, Some((role_id, secret_id))) => {
                        let secret_id = Secret::new(secret_id);
                        Ok(Method::AppRole(AppRole { role_id, secret_id, mount: approle() }))
                    }
                    (None, None) => Err(Fault::new(
                        "vault",
                        "does not say how to log in: add one of token_file, approle, kubernetes, or set VAULT_TOKEN, or \
                         VAULT_ROLE_ID and VAULT_SECRET_ID",
                    )),
                }
            }
            _ => Err(Fault::new("vault", "has more than one way to log in: give one of token, approle, kubernetes")),
        }
    }
}

/// It goes into a header.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn token_of(token: Secret) -> Result<Method, Fault> {
    match is_token(token.expose()) {
        true => Ok(Method::Token(token)),
        false => Err(Fault::new("vault.token", "is empty or has spaces or line breaks in it: give a token of Vault")),
    }
}

fn address(text: &str) -> Result<Url, String> {
    let example = "write it as https://vault:8200";
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}): {example}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("has a user in it: {example}"));
    }
    match url.scheme() {
        _ if url.host_str().is_none() => Err(format!("names no host: {example}")),
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => {
            Err(format!("is {url}, which would send logins in the clear: use https, with vault.ca_file if need be"))
        }
        other => Err(format!("begins with {other}: {example}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(address: &str) -> VaultConfig {
        VaultConfig {
            address: Some(address.to_owned()),
            namespace: None,
            ca_file: None,
            token: Some(Secret::new("t")),
            approle: None,
            kubernetes: None,
            cassandra: None,
            kafka: None,
            postgres: Some("database/creds/postgresql-writer".to_owned()),
            refresh_ms: refresh_ms(),
            timeout_ms: timeout_ms(),
        }
    }

    fn faults(config: &VaultConfig, environment: &[(&str, &str)]) -> Vec<String> {
        let of =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        config.resolve(of).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn logins_are_not_sent_in_the_clear_to_another_machine() {
        for good in ["https://vault:8200", "http://127.0.0.1:8200", "http://[::1]:8200", "http://localhost:8200"] {
            assert_eq!(faults(&config(good), &[]), Vec::<String>::new(), "{good}");
        }
        let found = faults(&config("http://vault:8200"), &[]);
        assert!(found[0].contains("in the clear") && found[0].contains("vault.ca_file"), "{found:?}");
        for bad in ["vault:8200", "ftp://vault", "https://me:hunter2@vault"] {
            let found = faults(&config(bad), &[]);
            assert!(
                found.len() == 1 && found[0].starts_with("vault.address ") && !found[0].contains("hunter2"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn one_way_to_log_in_is_given_by_the_file_or_else_by_the_environment() {
        let none = VaultConfig { token: None, ..config("https://vault") };
        assert!(faults(&none, &[])[0].contains("VAULT_TOKEN"));
        assert_eq!(faults(&none, &[("VAULT_TOKEN", "t")]), Vec::<String>::new());
        assert_eq!(faults(&none, &[("VAULT_ROLE_ID", "r"), ("VAULT_SECRET_ID", "s")]), Vec::<String>::new());
        let kubernetes = Some(Kubernetes { role: "r".into(), jwt_file: jwt_file(), mount: kubernetes() });
        assert!(faults(&VaultConfig { kubernetes, ..config("https://vault") }, &[])[0].contains("more than one way"));
        let spaced = VaultConfig { token: Some(Secret::new("hunter 2")), ..config("https://vault") };
        let found = faults(&spaced, &[]);
        assert!(found[0].starts_with("vault.token ") && !found[0].contains("hunter"), "{found:?}");
    }

    #[test]
    fn paths_are_those_of_the_vault_command() {
        let wrong = |path: &str| faults(&VaultConfig { cassandra: Some(path.to_owned()), ..config("https://v") }, &[]);
        assert_eq!(wrong("secret/cdc/cassandra"), Vec::<String>::new());
        assert_eq!(
            wrong("secret/data/cdc/cassandra"),
            [
                "vault.cassandra is secret/data/cdc/cassandra: leave data/ out, as in `vault kv get secret/cdc/cassandra`"
            ]
        );
        assert!(wrong("secret")[0].contains("mount and path") && wrong("/x")[0].contains("mount and path"));
        let nothing = VaultConfig { postgres: None, ..config("https://v") };
        assert!(faults(&nothing, &[])[0].contains("nothing to read"));
    }
}
