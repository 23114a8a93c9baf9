//! Logins from Vault, for the sections that use them.

use cdc_runtime::config::Fault;
use cdc_runtime::credentials::Credentials;
use cdc_runtime::{Lifecycle, Refusal};
use cdc_vault::{Logins, Vault};
use tracing::warn;

use crate::config::Config;

/// Begins to keep the logins that the section `vault` names; they go where they are used, and are there once Vault has
/// given them.
pub(crate) fn start(config: &mut Config, lifecycle: &Lifecycle) -> anyhow::Result<Option<Vault>> {
    let Some(section) = &config.vault else { return Ok(None) };
    let refused =
        |faults: Vec<Fault>| Refusal::config(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
    let vault = Vault::start(section, lifecycle).map_err(refused)?;
    let Logins { cassandra, kafka, postgres } = vault.logins.clone();
    if let Some(kafka) = kafka.clone() {
        let soft = lifecycle.soft().clone();
        lifecycle.spawn("login of Kafka", async move {
            soft.run_until_cancelled(warn_of_changes(kafka)).await;
            anyhow::Ok(())
        });
    }
    if let Some(section) = &mut config.cassandra {
        section.credentials = cassandra;
    }
    if let Some(section) = &mut config.kafka {
        section.credentials = kafka;
    }
    if let Some(section) = &mut config.postgres {
        section.credentials = postgres;
    }
    Ok(Some(vault))
}

/// librdkafka keeps the login it was given.
async fn warn_of_changes(kafka: Credentials) {
    let mut generation = kafka.first().await.generation;
    loop {
        generation = kafka.after(generation).await.generation;
        warn!("the login of Kafka has changed in Vault; connections go on with the old one: restart this process");
    }
}

/// The same for a command that does not wait for someone to unseal Vault. Kept valid until the command ends.
pub(crate) async fn at_once(config: &mut Config) -> anyhow::Result<()> {
    if let Some(mut vault) = start(config, &Lifecycle::new())? {
        vault.issued_at_once().await.map_err(Refusal::unavailable)?;
    }
    Ok(())
}

impl Config {
    /// Logins that are given twice, or not at all.
    pub(crate) fn login_faults(&self) -> Vec<Fault> {
        let vault = self.vault.as_ref();
        let mut faults = vault.map(cdc_vault::VaultConfig::validate).unwrap_or_default();
        let mut twice = |path: &str, key: &str| {
            faults.push(Fault::new(path, format!("stands beside vault.{key}, which gives it: take one of them out")));
        };
        if let (Some(postgres), Some(_)) = (&self.postgres, vault.and_then(|vault| vault.postgres.as_ref())) {
            if !postgres.username.is_empty() {
                twice("postgres.username", "postgres");
            }
            if postgres.password.is_some() {
                twice("postgres.password", "postgres");
            }
        }
        if let (Some(cassandra), Some(_)) = (&self.cassandra, vault.and_then(|vault| vault.cassandra.as_ref())) {
            if cassandra.username.is_some() {
                twice("cassandra.username", "cassandra");
            }
            if cassandra.password.is_some() {
                twice("cassandra.password", "cassandra");
            }
        }
        if let (Some(kafka), Some(_)) = (&self.kafka, vault.and_then(|vault| vault.kafka.as_ref())) {
            for name in
                ["sasl.username", "sasl.password"].into_iter().filter(|name| kafka.properties.contains_key(*name))
            {
                twice(&format!("kafka.properties.{name}"), "kafka");
            }
        }
        if let Some(postgres) = &self.postgres
            && postgres.username.is_empty()
            && vault.is_none_or(|vault| vault.postgres.is_none())
        {
            let message =
                "is missing; add it:\n    postgres:\n      username: ...\n  or have Vault give one: vault.postgres";
            faults.push(Fault::new("postgres.username", message));
        }
        faults
    }
}
