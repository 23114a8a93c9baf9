//! The pool of the apply path, whose login may be replaced while it is in use.
//!
//! A connection belongs to the login it was opened with. One of an older login finishes what it does and is closed when it
//! comes back, so a replacement fails nothing, and there are never more connections than `pool_size`.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cdc_runtime::credentials::{Credentials, Doubt, Login};
use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use deadpool_postgres::{ClientWrapper, Manager, ManagerConfig, RecyclingMethod};
use tokio_postgres::NoTls;

use crate::{PostgresConfig, connect, error::Fault};

pub(crate) type Pool = managed::Pool<Connector>;
pub(crate) type Object = managed::Object<Connector>;
pub(crate) type PoolError = managed::PoolError<ConnectError>;

/// For another login, when the server refuses the one we have; less than the time to connect.
const REPLACED_WITHIN: Duration = Duration::from_secs(10);

#[derive(thiserror::Error, Debug)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    /// The login was refused, or there is none, and no other came in time.
    #[error("{}", .fault.as_ref().map_or_else(|| "no login has been issued yet".to_owned(), ToString::to_string))]
    Login { username: String, fault: Option<Fault> },
}

/// Opens connections with the login that counts.
pub(crate) struct Connector {
    config: PostgresConfig,
    opened_with: Mutex<Option<Arc<Opener>>>,
}

/// Opens connections with one login.
struct Opener {
    login: Arc<Login>,
    manager: Manager,
}

/// A connection, and what it was opened with.
pub(crate) struct Connection {
    client: ClientWrapper,
    opener: Arc<Opener>,
    credentials: Option<Credentials>,
}

impl Connector {
    pub(crate) fn new(config: &PostgresConfig) -> Self {
        Self { config: config.clone(), opened_with: Mutex::new(None) }
    }

    /// `None`: no login has been issued yet. `fresh`: what is in a file is read again.
    fn opener(&self, fresh: bool) -> Option<Arc<Opener>> {
        let mut held = self.opened_with.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(opener), None, false) = (held.as_ref(), &self.config.credentials, fresh) {
            return Some(Arc::clone(opener));
        }
        let login = self.config.login()?;
        if let Some(opener) = held
            .as_ref()
            .filter(|opener| opener.login.generation == login.generation && opener.login.password == login.password)
        {
            return Some(Arc::clone(opener));
        }
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(connect::settings(&self.config, &login), NoTls, recycling);
        *held = Some(Arc::new(Opener { login, manager }));
        held.clone()
    }

    async fn open(&self, opener: Arc<Opener>) -> Result<Connection, tokio_postgres::Error> {
        let client = managed::Manager::create(&opener.manager).await?;
        Ok(Connection { client, opener, credentials: self.config.credentials.clone() })
    }
}

impl managed::Manager for Connector {
    type Type = Connection;
    type Error = ConnectError;

    async fn create(&self) -> Result<Connection, ConnectError> {
        let Some(credentials) = &self.config.credentials else {
            let opener = self.opener(true).expect("a login that is configured is there");
            return Ok(self.open(opener).await?);
        };
        let Some(opener) = self.opener(true) else {
            return Err(ConnectError::Login { username: String::new(), fault: None });
        };
        let login = Arc::clone(&opener.login);
        let error = match self.open(opener).await {
            Err(error) if is_refusal(&error) => error,
            opened => return Ok(opened?),
        };
        let other = credentials.replaced(&login, Doubt::Refused, REPLACED_WITHIN).await;
        match other.and_then(|_| self.opener(true)) {
            Some(opener) => Ok(self.open(opener).await?),
            None => Err(ConnectError::Login { username: login.username.clone(), fault: Some(Fault::from(&error)) }),
        }
    }

    async fn recycle(&self, connection: &mut Connection, metrics: &Metrics) -> RecycleResult<ConnectError> {
        let counts = self.opener(false);
        if !counts.is_some_and(|opener| Arc::ptr_eq(&opener, &connection.opener)) {
            return Err(RecycleError::message("its login was replaced"));
        }
        let manager = &connection.opener.manager;
        managed::Manager::recycle(manager, &mut connection.client, metrics).await.map_err(|error| match error {
            RecycleError::Message(message) => RecycleError::Message(message),
            RecycleError::Backend(error) => RecycleError::Backend(error.into()),
        })
    }

    fn detach(&self, connection: &mut Connection) {
        managed::Manager::detach(&connection.opener.manager, &mut connection.client);
    }
}

/// Whether the server does not let this login in.
pub(crate) fn is_refusal(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("28"))
}

impl Connection {
    /// The session lacks a privilege; whether its login can have been revoked, so that another session may have it.
    pub(crate) fn doubt(&self) -> bool {
        if let Some(credentials) = &self.credentials {
            credentials.doubt(&self.opener.login, Doubt::Powerless);
        }
        self.credentials.is_some()
    }
}

impl Deref for Connection {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut ClientWrapper {
        &mut self.client
    }
}
