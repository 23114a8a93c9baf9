//! Whether the target database would take us, without changing it.

use std::time::Duration;

use cdc_model::TableSchema;
use cdc_postgres::{Fault, PostgresConfig, SchemaMode, differences};
use tokio_postgres::{Client, Config, NoTls};

use super::Finding;
use crate::role::chain;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

const PRIVILEGES: &str = "-- cdc validate: may we write here
select pg_is_in_recovery() or current_setting('default_transaction_read_only')::boolean,
       has_database_privilege(current_database(), 'create'),
       (select has_schema_privilege(oid, 'create') from pg_namespace where nspname = '_cdc'),
       (select has_schema_privilege(oid, 'create') from pg_namespace where nspname = $1),
       current_setting('max_connections')::int,
       current_setting('server_version_num')::int,
       current_user = session_user";

/// The oldest release PostgreSQL's authors still maintain.
const OLDEST: i32 = 14;

pub(super) async fn check(config: &PostgresConfig) -> Vec<Finding> {
    let place = format!("{}:{}/{} as {}", config.host, config.port, config.database, config.user());
    let looked = async {
        let (client, connection) = settings(config).connect(NoTls).await?;
        tokio::select! {
            findings = look(&client, config) => findings,
            ended = connection => Ok(ended.map(|()| Vec::new())?),
        }
    };
    match tokio::time::timeout(CONNECT_WITHIN, looked).await {
        Ok(Ok(findings)) => findings.into_iter().map(Finding::unavailable).collect(),
        Ok(Err(error)) => {
            let fix = match error.code().map(tokio_postgres::error::SqlState::code) {
                Some("28P01" | "28000") => "check postgres.username, postgres.password and pg_hba.conf",
                Some("3D000") => "create the database or correct postgres.database",
                Some(_) => "look at the server's log",
                None => "check postgres.host and postgres.port, and that the server runs",
            };
            vec![Finding::unavailable(format!("PostgreSQL at {place} cannot be used: {}; {fix}", Fault::from(&error)))]
        }
        Err(_) => vec![Finding::unavailable(format!(
            "PostgreSQL at {place} did not answer within {CONNECT_WITHIN:?}; check postgres.host and postgres.port"
        ))],
    }
}

/// Whether the tables that are there can take what is captured; a server that does not answer is [`check`]'s to tell.
pub(super) async fn compare(config: &PostgresConfig, tables: &[TableSchema]) -> Vec<Finding> {
    let compared = async {
        let (client, connection) = settings(config).connect(NoTls).await.ok()?;
        tokio::select! {
            found = differences(&client, config, tables) => Some(found),
            _ = connection => None,
        }
    };
    match tokio::time::timeout(CONNECT_WITHIN, compared).await {
        Ok(Some(Ok(found))) => found.into_iter().map(Finding::config).collect(),
        Ok(Some(Err(error))) => vec![Finding::unavailable(chain(&error))],
        Ok(None) | Err(_) => Vec::new(),
    }
}

fn settings(config: &PostgresConfig) -> Config {
    let mut settings = Config::new();
    settings.host(&config.host).port(config.port).dbname(&config.database);
    settings.application_name("cdc validate").connect_timeout(CONNECT_WITHIN);
    if let Some(login) = config.login() {
        settings.user(&login.username);
        if let Some(password) = &login.password {
            settings.password(password.expose());
        }
    }
    settings
}

async fn look(client: &Client, config: &PostgresConfig) -> Result<Vec<String>, tokio_postgres::Error> {
    let row = client.query_one(PRIVILEGES, &[&config.schema]).await?;
    let (read_only, may_create, own, target): (bool, bool, Option<bool>, Option<bool>) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    let (connections, version): (i32, i32) = (row.get(4), row.get(5));
    let acts_as_itself: bool = row.get(6);
    let mut findings = Vec::new();
    if read_only {
        findings.push(format!(
            "postgres.host {} is read-only (a standby?); name the primary, or check default_transaction_read_only",
            config.host
        ));
    }
    let manages = config.schema_mode == SchemaMode::Manage;
    if acts_as_itself && config.credentials.is_some() {
        findings.push(
            "the login from vault.postgres acts as itself, so tables would belong to a role that Vault drops; add to \
             creation_statements: alter role \"{{name}}\" set role = 'cdc_writer'; (docs/credentials.md)"
                .to_owned(),
        );
    }
    for (schema, may_use) in
        [("_cdc", own), (config.schema.as_str(), target)].into_iter().take(1 + usize::from(manages))
    {
        let user = config.user();
        match may_use {
            Some(false) => findings.push(format!(
                "postgres.username {user} may not create tables in schema {schema}; run: GRANT USAGE, CREATE ON SCHEMA \
                 \"{schema}\" TO \"{user}\";"
            )),
            None if !may_create => findings.push(format!(
                "postgres.username {user} may not create schema {schema}, which does not exist; run: GRANT CREATE ON \
                 DATABASE \"{}\" TO \"{user}\";",
                config.database
            )),
            Some(true) | None => {}
        }
    }
    if usize::try_from(connections).is_ok_and(|connections| config.pool_size >= connections) {
        findings.push(format!(
            "postgres.pool_size is {}, but the server takes {connections} connections in all; lower it, or raise \
             max_connections",
            config.pool_size
        ));
    }
    if version / 10_000 < OLDEST {
        findings.push(format!("PostgreSQL at {} is version {}; use {OLDEST} or later", config.host, version / 10_000));
    }
    Ok(findings)
}
