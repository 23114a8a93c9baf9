//! What is told about Vault and what came from it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::VaultError;

/// Shared by the task that keeps the logins and by who tells about them.
#[derive(Clone, Default)]
pub struct VaultState(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    address: String,
    /// `None` before it has answered, and while it does not.
    sealed: Option<bool>,
    /// Why it is of no use just now.
    problem: Option<String>,
    /// `vault` is our token; the others are named as in the configuration.
    credentials: BTreeMap<&'static str, Credential>,
    errors: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct Credential {
    path: String,
    issued: bool,
    /// `None`: never.
    expires: Option<Instant>,
    renewals: u64,
    replacements: u64,
    problem: Option<String>,
    next_try: Option<Instant>,
}

/// What is new about a login.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    Issued,
    Renewed,
    Same,
}

impl VaultState {
    pub(crate) fn new(address: &str) -> Self {
        Self(Arc::new(Mutex::new(Inner { address: address.to_owned(), ..Inner::default() })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn expect(&self, name: &'static str, path: &str) {
        self.inner().credentials.entry(name).or_default().path = path.to_owned();
    }

    pub(crate) fn looked(&self, error: Option<&VaultError>) {
        let mut inner = self.inner();
        inner.sealed = error.map_or(Some(false), VaultError::sealed);
        inner.problem = error.map(ToString::to_string);
        if let Some(error) = error {
            *inner.errors.entry(error.kind()).or_default() += 1;
        }
    }

    pub(crate) fn granted(&self, name: &'static str, expires: Option<Instant>, news: News) {
        let mut inner = self.inner();
        let credential = inner.credentials.entry(name).or_default();
        match news {
            News::Issued => credential.replacements += u64::from(credential.issued),
            News::Renewed => credential.renewals += 1,
            News::Same => {}
        }
        (credential.issued, credential.expires) = (true, expires);
        (credential.problem, credential.next_try) = (None, None);
    }

    pub(crate) fn failed(&self, name: &'static str, error: &VaultError, next_try: Instant) {
        let mut inner = self.inner();
        *inner.errors.entry(error.kind()).or_default() += 1;
        let credential = inner.credentials.entry(name).or_default();
        credential.problem = Some(error.to_string());
        credential.next_try = Some(next_try);
    }

    /// `Err`: a login that is needed is not there, or is valid no longer, and why.
    ///
    /// # Errors
    /// See above.
    pub fn ready(&self) -> Result<(), String> {
        let inner = self.inner();
        let now = Instant::now();
        let lacking = inner
            .credentials
            .values()
            .find(|credential| !credential.issued || credential.expires.is_some_and(|expires| expires <= now));
        let Some(credential) = lacking else { return Ok(()) };
        let of_token = || inner.credentials.get("vault").and_then(|token| token.problem.as_ref());
        let problem = inner.problem.as_ref().or(credential.problem.as_ref()).or_else(of_token);
        let problem = problem.map_or("Vault has not answered yet", String::as_str);
        Err(format!("no valid login from {}: {problem}", credential.path))
    }

    /// Whether Vault is sealed; `None` while it does not answer.
    pub fn sealed(&self) -> Option<bool> {
        self.inner().sealed
    }

    /// What is wrong with Vault, or with what it should give us; logins may be valid nevertheless.
    pub fn problem(&self) -> Option<String> {
        let inner = self.inner();
        let of_one = || inner.credentials.values().find_map(|credential| credential.problem.clone());
        inner.problem.clone().or_else(of_one)
    }

    /// For `/status`.
    pub fn status(&self) -> Value {
        let inner = self.inner();
        let now = Instant::now();
        let until = |at: Instant| at.saturating_duration_since(now).as_secs();
        let credentials: serde_json::Map<String, Value> = inner
            .credentials
            .iter()
            .map(|(name, credential)| {
                let described = json!({
                    "path": credential.path,
                    "issued": credential.issued,
                    "expires_in_seconds": credential.expires.map(until),
                    "renewals": credential.renewals,
                    "replacements": credential.replacements,
                    "problem": credential.problem,
                    "next_try_in_seconds": credential.next_try.map(until),
                });
                ((*name).to_owned(), described)
            })
            .collect();
        json!({"address": inner.address, "sealed": inner.sealed, "problem": inner.problem, "credentials": credentials})
    }

    /// Appends Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        let inner = self.inner();
        let mut family = |name: &str, kind: &str, help: &str, values: &[(String, f64)]| {
            let text = |error| panic!("writing to a String does not fail: {error}");
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").unwrap_or_else(text);
            for (labels, value) in values {
                writeln!(out, "{name}{labels} {value}").unwrap_or_else(text);
            }
        };
        let flag = |is: bool| f64::from(u8::from(is));
        family(
            "cdc_vault_up",
            "gauge",
            "1 while Vault answers and is not sealed.",
            &[(String::new(), flag(inner.sealed == Some(false)))],
        );
        family(
            "cdc_vault_sealed",
            "gauge",
            "1 while Vault says that it is sealed.",
            &[(String::new(), flag(inner.sealed == Some(true)))],
        );
        let errors: Vec<_> =
            inner.errors.iter().map(|(kind, count)| (format!("{{kind=\"{kind}\"}}"), *count as f64)).collect();
        family("vault_connection_errors_total", "counter", "Requests to Vault that failed, by cause.", &errors);
        let of = |value: &dyn Fn(&Credential) -> Option<f64>| -> Vec<(String, f64)> {
            let values = inner.credentials.iter();
            values.filter_map(|(name, one)| Some((format!("{{credential=\"{name}\"}}"), value(one)?))).collect()
        };
        let left = |one: &Credential| match (one.issued, one.expires) {
            (false, _) => Some(0.0),
            (true, expires) => expires.map(|at| at.saturating_duration_since(Instant::now()).as_secs_f64()),
        };
        family(
            "cdc_credential_ttl_seconds",
            "gauge",
            "For how long a login from Vault is valid; absent for one that does not expire.",
            &of(&left),
        );
        family(
            "cdc_credential_renewals_total",
            "counter",
            "Times a login was prolonged.",
            &of(&|one| Some(one.renewals as f64)),
        );
        family(
            "cdc_credential_replacements_total",
            "counter",
            "Times a login was replaced by another.",
            &of(&|one| Some(one.replacements as f64)),
        );
    }
}

/// When something granted ends; `None` if never.
pub(crate) fn end_of(ttl: Duration) -> Option<Instant> {
    (!ttl.is_zero()).then(|| Instant::now() + ttl)
}
