//! Logging in, with each connection anew.

use async_trait::async_trait;
use scylla::authentication::{AuthError, AuthenticatorProvider, AuthenticatorSession};

use crate::CassandraConfig;

/// Says who we are by the login that counts when a connection is opened: a session outlives many of them.
pub(crate) struct LogIn(pub(crate) CassandraConfig);

/// Everything was said at the beginning.
struct Said;

#[async_trait]
impl AuthenticatorProvider for LogIn {
    async fn start_authentication_session(
        &self,
        _authenticator: &str,
    ) -> Result<(Option<Vec<u8>>, Box<dyn AuthenticatorSession>), AuthError> {
        let login = self.0.login().ok_or_else(|| AuthError::from("no login for Cassandra has been issued yet"))?;
        let password = login.password.as_ref().map(|password| password.expose()).unwrap_or_default();
        let response = [b"\0", login.username.as_bytes(), b"\0", password.as_bytes()].concat();
        Ok((Some(response), Box::new(Said)))
    }
}

#[async_trait]
impl AuthenticatorSession for Said {
    async fn evaluate_challenge(&mut self, _token: Option<&[u8]>) -> Result<Option<Vec<u8>>, AuthError> {
        Err("Cassandra asks for more than a user name and a password".into())
    }

    async fn success(&mut self, _token: Option<&[u8]>) -> Result<(), AuthError> {
        Ok(())
    }
}
