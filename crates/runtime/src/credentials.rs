//! Logins that may be replaced while they are in use.
//!
//! Who issues them (Vault, say) holds the [`Issuer`]; who connects holds [`Credentials`], asks for the login that counts now
//! with each new connection, and tells when a server no longer takes it. Neither knows of the other.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::Secret;

/// Who connects, and how it proves that.
#[derive(Clone, Debug)]
pub struct Login {
    pub username: String,
    pub password: Option<Secret>,
    /// Counted from 1 by the issuer.
    pub generation: u64,
}

/// Why a login is called into question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// A server did not let it in.
    Refused,
    /// It got in, and lacks a privilege: perhaps it was revoked since.
    Powerless,
}

/// The login that counts now, for those who use it. Clones share it.
#[derive(Clone)]
pub struct Credentials {
    current: watch::Receiver<Option<Arc<Login>>>,
    doubts: watch::Sender<Option<(u64, Doubt)>>,
    wake: Arc<Notify>,
}

/// The other end of [`Credentials`].
pub struct Issuer {
    current: watch::Sender<Option<Arc<Login>>>,
    doubts: watch::Receiver<Option<(u64, Doubt)>>,
}

/// Both ends; no login has been issued yet. `wake` is told of each doubt.
pub fn credentials(wake: Arc<Notify>) -> (Issuer, Credentials) {
    let (current, logins) = watch::channel(None);
    let (doubts, doubted) = watch::channel(None);
    (Issuer { current, doubts: doubted }, Credentials { current: logins, doubts, wake })
}

impl Issuer {
    /// Replaces the login, unless it is the same; whether it did.
    pub fn publish(&self, username: String, password: Secret) -> bool {
        self.current.send_if_modified(|current| {
            let generation = current.as_ref().map_or(0, |login| login.generation);
            let is_same = current
                .as_ref()
                .is_some_and(|login| login.username == username && login.password.as_ref() == Some(&password));
            if !is_same {
                *current = Some(Arc::new(Login { username, password: Some(password), generation: generation + 1 }));
            }
            !is_same
        })
    }

    /// Whether someone doubts the login that counts; told once.
    pub fn take_doubt(&mut self) -> Option<Doubt> {
        if !self.doubts.has_changed().unwrap_or(false) {
            return None;
        }
        let generation = self.current.borrow().as_ref().map_or(0, |login| login.generation);
        self.doubts.borrow_and_update().filter(|(doubted, _)| *doubted == generation).map(|(_, doubt)| doubt)
    }
}

impl Credentials {
    /// `None` before the first was issued.
    pub fn current(&self) -> Option<Arc<Login>> {
        self.current.borrow().clone()
    }

    /// Waits for the first.
    pub async fn first(&self) -> Arc<Login> {
        self.after(0).await
    }

    /// Waits for one that is newer than the given generation.
    pub async fn after(&self, generation: u64) -> Arc<Login> {
        let mut current = self.current.clone();
        let is_newer = |login: &Option<Arc<Login>>| login.as_ref().is_some_and(|login| login.generation > generation);
        let login = current.wait_for(is_newer).await.ok().and_then(|login| login.clone());
        match login {
            Some(login) => login,
            // The issuer has ended, with the process.
            None => std::future::pending().await,
        }
    }

    /// Tells the issuer, and waits for another for so long.
    pub async fn replaced(&self, login: &Login, doubt: Doubt, within: Duration) -> Option<Arc<Login>> {
        self.doubt(login, doubt);
        tokio::time::timeout(within, self.after(login.generation)).await.ok()
    }

    /// Tells the issuer; of a login that was replaced already, nothing is to be told.
    pub fn doubt(&self, login: &Login, doubt: Doubt) {
        self.doubts.send_replace(Some((login.generation, doubt)));
        self.wake.notify_one();
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// Of the same issuer.
impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.current.same_channel(&other.current)
    }
}

impl Eq for Credentials {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_login_counts_until_another_is_issued_and_the_same_is_no_other() {
        let (issuer, credentials) = credentials(Arc::default());
        assert!(credentials.current().is_none());
        issuer.publish("a".into(), Secret::new("1"));
        let first = credentials.first().await;
        issuer.publish("a".into(), Secret::new("1"));
        assert_eq!(credentials.current().unwrap().generation, first.generation);
        issuer.publish("a".into(), Secret::new("2"));
        assert_eq!(credentials.after(first.generation).await.generation, 2);
    }

    #[tokio::test]
    async fn only_a_doubt_in_the_login_that_counts_reaches_the_issuer_and_once() {
        let wake = Arc::<Notify>::default();
        let (mut issuer, credentials) = credentials(Arc::clone(&wake));
        issuer.publish("a".into(), Secret::new("1"));
        let first = credentials.first().await;
        issuer.publish("a".into(), Secret::new("2"));
        credentials.doubt(&first, Doubt::Refused);
        wake.notified().await;
        assert_eq!(issuer.take_doubt(), None, "the first is history");
        credentials.doubt(&credentials.current().unwrap(), Doubt::Powerless);
        assert_eq!((issuer.take_doubt(), issuer.take_doubt()), (Some(Doubt::Powerless), None));
    }
}
