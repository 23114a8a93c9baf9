//! Connections, and the migrations of schema `_cdc`.

use std::time::Duration;

use cdc_runtime::credentials::{Doubt, Login};
use deadpool_postgres::Runtime;
use sqlx::{ConnectOptions, Connection, PgConnection, Row, postgres::PgConnectOptions};

use crate::{
    Disposition, PostgresConfig, SchemaMode, TargetError,
    error::{Fault, FaultKind},
    layout::quote,
    pool::{Connector, Pool},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// To connect, be refused, wait for another login and connect again.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);
/// For a free connection of the pool: longer than any healthy batch.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of every connection of the apply path. All reads are joins of a batch's keys with an index, so the nested
/// loop is always right; statistics from when a table was empty, or a large batch, must not say otherwise. Waiting for
/// a lock for long means another process hangs, and so does an idle transaction that holds one.
const SETTINGS: &str = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off \
    -c enable_mergejoin=off -c enable_bitmapscan=off -c jit=off -c lock_timeout=15s \
    -c idle_in_transaction_session_timeout=60s";

fn place(config: &PostgresConfig) -> String {
    format!("{}:{}/{} as user {}", config.host, config.port, config.database, config.user())
}

/// Of a connection of the apply path.
pub(crate) fn settings(config: &PostgresConfig, login: &Login) -> tokio_postgres::Config {
    let mut settings = tokio_postgres::Config::new();
    settings
        .host(&config.host)
        .port(config.port)
        .dbname(&config.database)
        .user(&login.username)
        .application_name("cdc")
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives_idle(Duration::from_secs(30))
        .tcp_user_timeout(Duration::from_secs(30))
        .options(SETTINGS);
    if let Some(password) = &login.password {
        settings.password(password.expose());
    }
    settings
}

pub(crate) fn pool(config: &PostgresConfig) -> Result<Pool, TargetError> {
    Pool::builder(Connector::new(config))
        .max_size(config.pool_size.max(1))
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(ACQUIRE_TIMEOUT))
        .create_timeout(Some(CREATE_TIMEOUT))
        .build()
        .map_err(|error| TargetError::Pool(error.to_string()))
}

/// For what is no part of the apply path.
pub(crate) fn options(config: &PostgresConfig, application: &str) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass()
        .host(&config.host)
        .port(config.port)
        .database(&config.database)
        .ssl_mode(sqlx::postgres::PgSslMode::Disable)
        .application_name(application)
        .disable_statement_logging();
    // Before the first login is issued nobody gets in, and that is what is told then.
    let Some(login) = config.login() else { return options };
    let options = options.username(&login.username);
    match &login.password {
        Some(password) => options.password(password.expose()),
        None => options,
    }
}

/// Creates schema `_cdc` and the targets' schema (unless it is the user's) where they are missing, and runs the migrations that are new.
pub(crate) async fn migrate(config: &PostgresConfig) -> Result<(), TargetError> {
    let mut connection = match (connect_once(config).await, &config.credentials, config.login()) {
        (Err(TargetError::Connect { fault, .. }), Some(credentials), Some(login)) if fault.is_login() => {
            // Perhaps it was revoked, and another is to be had.
            if credentials.replaced(&login, Doubt::Refused, CONNECT_TIMEOUT).await.is_none() {
                return Err(TargetError::Login { username: login.username.clone(), fault: Some(fault) });
            }
            connect_once(config).await?
        }
        (connected, ..) => connected?,
    };
    let result = migrate_on(&mut connection, config).await;
    // The session's locks end with it, so it must end.
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "migration connection did not close cleanly");
    }
    result
}

async fn connect_once(config: &PostgresConfig) -> Result<PgConnection, TargetError> {
    let options = options(config, "cdc migrations");
    match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(connected) => connected.map_err(|error| unreachable(config, &error)),
        Err(_) => Err(unreachable(config, &sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
    }
}

async fn migrate_on(connection: &mut PgConnection, config: &PostgresConfig) -> Result<(), TargetError> {
    let failed = |error: sqlx::Error| migration_error(config, sqlx::migrate::MigrateError::Execute(error));
    sqlx::query("select pg_advisory_lock(212664321, 0)").execute(&mut *connection).await.map_err(failed)?;
    let targets = (config.schema_mode == SchemaMode::Manage).then_some(config.schema.as_str());
    for schema in std::iter::once("_cdc").chain(targets) {
        let exists: bool = sqlx::query("select exists (select from pg_namespace where nspname = $1)")
            .bind(schema)
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?
            .get(0);
        if !exists {
            let ddl = sqlx::AssertSqlSafe(format!("create schema {}", quote(schema)));
            sqlx::raw_sql(ddl).execute(&mut *connection).await.map_err(failed)?;
        }
    }
    let mut migrator = sqlx::migrate!("../../migrations");
    migrator.dangerous_set_table_name("_cdc.migrations");
    // Not `run`, whose generic bounds make every future around it not `Send`.
    migrator.run_direct(None, connection, false).await.map_err(|error| migration_error(config, error))
}

fn unreachable(config: &PostgresConfig, error: &sqlx::Error) -> TargetError {
    let fault = Fault::from(error);
    let fix = match (fault.kind, fault.sqlstate.as_deref()) {
        (FaultKind::Access, _) => "check postgres.username, postgres.password and pg_hba.conf",
        (FaultKind::Schema, Some("3D000")) => "create the database or correct postgres.database",
        (FaultKind::Environment, _) => "it should pass by itself; else look at the server's log",
        _ => "check postgres.host and postgres.port, and that the server is up",
    };
    TargetError::Connect { place: place(config), fault, fix }
}

fn migration_error(config: &PostgresConfig, error: sqlx::migrate::MigrateError) -> TargetError {
    use sqlx::migrate::MigrateError;
    let (problem, fix, disposition) = match error {
        MigrateError::VersionMissing(version) => (
            format!("it is at version {version}, which this release does not know"),
            "run the newer release, or restore the database from before its migration",
            Disposition::Halt,
        ),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => match error.as_database_error() {
            Some(db) => {
                let fault = Fault::of_sqlstate(db.code().as_deref().unwrap_or_default(), db.message());
                let fix = match fault.kind {
                    FaultKind::Access => {
                        "grant create on the database to the user, or create the schema and make the user its owner"
                    }
                    _ => "see the server's log",
                };
                (fault.to_string(), fix, fault.disposition())
            }
            None => (error.to_string(), "check the connection", Disposition::Retry),
        },
        other => (other.to_string(), "see docs on upgrades", Disposition::Halt),
    };
    TargetError::Migrate { place: place(config), problem, fix, disposition }
}
