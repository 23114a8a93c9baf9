//! A real Vault that gives logins of a real PostgreSQL, set up as docs/credentials.md says.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(dead_code, reason = "each test file uses some of it")]

use std::time::Duration;

use cdc_runtime::Secret;
use cdc_runtime::credentials::Login;
use cdc_testkit::{Postgres, Vault as Server};
use cdc_vault::{AppRole, Vault, VaultConfig};

pub(crate) const DOCS: &str = include_str!("../../../../docs/credentials.md");
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// What must be nowhere.
pub(crate) const CANARY: &str = "canary-7f3a";

pub(crate) struct World {
    pub(crate) vault: Server,
    pub(crate) postgres: Postgres,
    pub(crate) role_id: String,
    pub(crate) secret_id: String,
}

/// The first block of a language.
pub(crate) fn block(language: &str) -> &'static str {
    let (_, rest) = DOCS.split_once(&format!("```{language}\n")).expect("the page has such a block");
    rest.split("```").next().unwrap()
}

impl World {
    pub(crate) fn start(variables: &[(&str, &str)]) -> Self {
        Self::with(Server::start().unwrap(), variables)
    }

    pub(crate) fn with(vault: Server, variables: &[(&str, &str)]) -> Self {
        let postgres = Postgres::start().unwrap();
        sql(&postgres, block("sql"));
        let address = postgres.address().to_string();
        let variables = [&[("POSTGRES", address.as_str()), ("SSLMODE", "disable")], variables].concat();
        vault.script(block("sh"), &variables).unwrap();
        vault.run(&["kv", "put", "secret/cdc/cassandra", "username=me", &format!("password={CANARY}-1")]).unwrap();
        let id = |args: &[&str]| vault.run(args).unwrap().trim().to_owned();
        let role_id = id(&["read", "-field=role_id", "auth/approle/role/cdc-pipeline/role-id"]);
        let secret_id = id(&["write", "-force", "-field=secret_id", "auth/approle/role/cdc-pipeline/secret-id"]);
        Self { vault, postgres, role_id, secret_id }
    }

    pub(crate) fn config(&self) -> VaultConfig {
        let approle = AppRole {
            role_id: self.role_id.clone(),
            secret_id: Secret::new(&self.secret_id),
            mount: "approle".to_owned(),
        };
        VaultConfig {
            address: Some(self.vault.url().to_owned()),
            namespace: None,
            ca_file: self.vault.ca_file().map(Into::into),
            token: None,
            approle: Some(approle),
            kubernetes: None,
            cassandra: Some("secret/cdc/cassandra".to_owned()),
            kafka: None,
            postgres: Some("database/creds/postgresql-writer".to_owned()),
            refresh_ms: 500,
            timeout_ms: 5_000,
        }
    }

    /// Whether PostgreSQL lets this login in, and as whom it acts there.
    pub(crate) fn acts_as(&self, login: &Login) -> Result<String, String> {
        let address = self.postgres.address();
        let place = format!("host={} port={} dbname=warehouse user={}", address.ip(), address.port(), login.username);
        let psql = std::process::Command::new("psql")
            .args(["-AtXqw", "-c", "select current_user", &place])
            .env("PGPASSWORD", login.password.as_ref().map(Secret::expose).unwrap_or_default())
            .output()
            .unwrap();
        match psql.status.success() {
            true => Ok(String::from_utf8(psql.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8_lossy(&psql.stderr).into_owned()),
        }
    }

    pub(crate) fn number(&self, query: &str) -> i64 {
        sql(&self.postgres, query).lines().next().unwrap().trim().parse().unwrap()
    }
}

/// As superuser; what it prints.
pub(crate) fn sql(postgres: &Postgres, statements: &str) -> String {
    let psql = std::process::Command::new("psql")
        .args(["-v", "ON_ERROR_STOP=1", "-AtXq", "-c", statements, &postgres.url()])
        .output()
        .unwrap();
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    String::from_utf8(psql.stdout).unwrap()
}

pub(crate) async fn within<T>(what: &str, wait: Duration, done: impl Future<Output = T>) -> T {
    tokio::time::timeout(wait, done).await.unwrap_or_else(|_| panic!("{what} within {wait:?}"))
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(what, PATIENCE, waiting).await;
}

pub(crate) fn replacements(vault: &Vault, name: &str) -> u64 {
    vault.state.status()["credentials"][name]["replacements"].as_u64().unwrap()
}
