//! Requests to Vault, and what its refusals mean.

use std::time::Duration;

use cdc_runtime::Secret;
use rustify::endpoint::Endpoint;
use rustify_derive::Endpoint;
use serde::Deserialize;
use vaultrs::api::{EndpointMiddleware, EndpointResult};
use vaultrs::client::{Client as _, VaultClient, VaultClientSettingsBuilder};
use vaultrs::error::ClientError;

use crate::config::{Method, Settings, is_token};

/// Why Vault did not give what was asked for. Displays name the path and what to do, and hold no secret.
#[derive(thiserror::Error, Clone, Debug)]
pub enum VaultError {
    #[error("Vault at {address} is sealed: run `vault operator unseal`")]
    Sealed { address: String },
    #[error("Vault at {address} is not initialised: run `vault operator init`")]
    NotInitialised { address: String },
    #[error("Vault at {address} cannot be reached ({cause}): check vault.address, vault.ca_file and that it runs")]
    Unreachable { address: String, cause: String },
    #[error(
        "Vault does not let us log in at {path} ({cause}): check the role, its secret id or token, and that it has not expired"
    )]
    LoginRefused { path: String, cause: String },
    #[error("Vault denies {path} ({cause}): give the policy of our role the capability for it")]
    Denied { path: String, cause: String },
    #[error("Vault has nothing at {path}: create it, or correct the path")]
    Missing { path: String },
    #[error("the secret at {path} has no text {field}: add it")]
    Incomplete { path: String, field: &'static str },
    #[error("Vault answers {code} at {path} ({cause}): see its log")]
    Failed { path: String, code: u16, cause: String },
    #[error("{what} cannot be read ({cause}): correct its path or rights")]
    File { what: String, cause: String },
    #[error("the token of Vault has expired, and there is no other: put a new one into vault.token_file")]
    Expired,
}

impl VaultError {
    /// Of the metric.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Sealed { .. } => "sealed",
            Self::NotInitialised { .. } => "not_initialised",
            Self::Unreachable { .. } => "unreachable",
            Self::LoginRefused { .. } | Self::Expired => "login_refused",
            Self::Denied { .. } => "denied",
            Self::Missing { .. } | Self::Incomplete { .. } => "missing",
            Self::Failed { .. } => "failed",
            Self::File { .. } => "file",
        }
    }

    /// `None`: it did not answer.
    pub(crate) fn sealed(&self) -> Option<bool> {
        match self {
            Self::Sealed { .. } | Self::NotInitialised { .. } => Some(true),
            Self::Unreachable { .. } => None,
            _ => Some(false),
        }
    }

    /// Our token, or what we would get one for, is of no use.
    pub(crate) fn is_login(&self) -> bool {
        matches!(self, Self::LoginRefused { .. } | Self::Expired)
    }

    /// Vault has answered, and will not do it.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Missing { .. } | Self::Failed { code: 400..500, .. })
    }
}

/// Something granted for a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    /// Zero: for ever.
    pub(crate) ttl: Duration,
    pub(crate) renewable: bool,
}

pub(crate) struct Pair {
    pub(crate) username: String,
    pub(crate) password: Secret,
}

/// A login of a secrets engine.
pub(crate) struct Leased {
    pub(crate) pair: Pair,
    pub(crate) lease_id: String,
    pub(crate) grant: Grant,
}

/// One Vault server, with the token we have there.
pub(crate) struct Client {
    inner: VaultClient,
    address: String,
}

#[derive(Endpoint)]
#[endpoint(path = "sys/leases/renew", method = "PUT")]
struct RenewLease {
    lease_id: String,
    increment: u64,
}

/// What is at a path; of a key-value secret there is another `data` in it.
#[derive(Endpoint)]
#[endpoint(path = "{self.path}", response = "Fields")]
struct Read {
    #[endpoint(skip)]
    path: String,
}

#[derive(Deserialize)]
struct Fields {
    username: Option<String>,
    password: Option<Secret>,
    data: Option<Box<Fields>>,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Result<Self, VaultError> {
        // A second one is refused, and is the same.
        drop(rustls::crypto::ring::default_provider().install_default());
        let file = |what: String| move |cause: String| VaultError::File { what, cause };
        let mut http = reqwest::Client::builder()
            .tls_backend_rustls()
            .timeout(settings.timeout)
            .connect_timeout(settings.timeout)
            // The token would go wherever it is sent.
            .redirect(reqwest::redirect::Policy::none());
        if settings.on_loopback() {
            http = http.no_proxy();
        }
        if let Some(path) = &settings.ca_file {
            let what = || format!("vault.ca_file {}", path.display());
            let pem = std::fs::read(path).map_err(|error| file(what())(error.to_string()))?;
            let certificates =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| file(what())(error.to_string()))?;
            if certificates.is_empty() {
                return Err(file(what())("there is no certificate in it".to_owned()));
            }
            http = http.tls_certs_only(certificates);
        } else if settings.address.scheme() == "http" {
            http = http.tls_certs_only(Vec::new());
        }
        let http = http.build().map_err(|error| file("the system's certificates".to_owned())(chain(&error)))?;
        let address = settings.address.as_str().trim_end_matches('/').to_owned();
        // All that would else come from the environment.
        let rest = VaultClientSettingsBuilder::default()
            .address(&address)
            .ca_certs(Vec::new())
            .identity(None)
            .token("")
            .verify(true)
            .namespace(settings.namespace.clone())
            .build()
            .expect("every field is given");
        let middle = EndpointMiddleware {
            token: String::new(),
            version: "v1".to_owned(),
            wrap: None,
            namespace: settings.namespace.clone(),
        };
        let inner =
            VaultClient { http: rustify::clients::reqwest::Client::new(&address, http), middle, settings: rest };
        Ok(Self { inner, address })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Logs in anew; for a token that was given, looks what it is good for.
    pub(crate) async fn log_in(&mut self, method: &Method) -> Result<Grant, VaultError> {
        let (path, auth) = match method {
            Method::Token(token) => {
                let token = token.now();
                if !is_token(token.expose()) {
                    return Err(VaultError::Expired);
                }
                self.inner.set_token(token.expose());
                return self.look_at_token().await;
            }
            Method::AppRole(role) => {
                let secret_id = role.secret_id.now();
                let auth =
                    vaultrs::auth::approle::login(&self.inner, &role.mount, &role.role_id, secret_id.expose()).await;
                (format!("auth/{}/login", role.mount), auth)
            }
            Method::Kubernetes(role) => {
                let jwt = std::fs::read_to_string(&role.jwt_file).map_err(|error| VaultError::File {
                    what: format!("vault.kubernetes.jwt_file {}", role.jwt_file.display()),
                    cause: error.to_string(),
                })?;
                let auth = vaultrs::auth::kubernetes::login(&self.inner, &role.mount, &role.role, jwt.trim()).await;
                (format!("auth/{}/login", role.mount), auth)
            }
        };
        let auth = auth.map_err(|error| match self.explain(&path, error) {
            VaultError::Denied { path, cause } | VaultError::Failed { path, code: 400..500, cause } => {
                VaultError::LoginRefused { path, cause }
            }
            VaultError::Missing { path } => {
                VaultError::LoginRefused { path, cause: "nothing is mounted there".to_owned() }
            }
            other => other,
        })?;
        if !is_token(&auth.client_token) {
            return Err(VaultError::LoginRefused { path, cause: "the answer holds no token".to_owned() });
        }
        self.inner.set_token(&auth.client_token);
        Ok(Grant { ttl: Duration::from_secs(auth.lease_duration), renewable: auth.renewable })
    }

    pub(crate) fn has_token(&self, token: &Secret) -> bool {
        self.inner.middle.token == token.expose()
    }

    pub(crate) async fn look_at_token(&self) -> Result<Grant, VaultError> {
        let path = "auth/token/lookup-self";
        let found =
            vaultrs::token::lookup_self(&self.inner).await.map_err(|error| match self.explain(path, error) {
                VaultError::Denied { path, cause } => VaultError::LoginRefused { path, cause },
                other => other,
            })?;
        // It counts whole seconds, and 0 is also what one has left that has none.
        let ttl = found.expire_time.map_or(Duration::ZERO, |_| Duration::from_secs(found.ttl.max(1)));
        Ok(Grant { ttl, renewable: found.renewable.unwrap_or(false) })
    }

    pub(crate) async fn renew_token(&self) -> Result<Grant, VaultError> {
        let auth = vaultrs::token::renew_self(&self.inner, None).await;
        let auth = auth.map_err(|error| self.explain("auth/token/renew-self", error))?;
        Ok(Grant { ttl: Duration::from_secs(auth.lease_duration), renewable: auth.renewable })
    }

    /// A key-value secret of version 2, by the path that `vault kv get` takes.
    pub(crate) async fn read_pair(&self, path: &str) -> Result<Pair, VaultError> {
        let (mount, rest) = path.split_once('/').unwrap_or((path, ""));
        let answer = self.ask(path, Read { path: format!("{mount}/data/{rest}") }).await?;
        pair(path, answer.data.and_then(|fields| fields.data).map(|fields| *fields))
    }

    /// Another login with each call.
    pub(crate) async fn issue(&self, path: &str) -> Result<Leased, VaultError> {
        let answer = self.ask(path, Read { path: path.to_owned() }).await?;
        let grant = Grant { ttl: Duration::from_secs(answer.lease_duration.into()), renewable: answer.renewable };
        Ok(Leased { pair: pair(path, answer.data)?, lease_id: answer.lease_id, grant })
    }

    pub(crate) async fn renew_lease(&self, lease_id: &str, wanted: Duration) -> Result<Grant, VaultError> {
        let request = RenewLease { lease_id: lease_id.to_owned(), increment: wanted.as_secs().max(1) };
        let answer: EndpointResult<()> = self.ask("sys/leases/renew", request).await?;
        Ok(Grant { ttl: Duration::from_secs(answer.lease_duration.into()), renewable: answer.renewable })
    }

    /// Whether it works at all; a standby does, as it hands requests on.
    pub(crate) async fn look_at_seal(&self) -> Result<(), VaultError> {
        match vaultrs::sys::status(&self.inner).await {
            Ok(vaultrs::sys::ServerStatus::SEALED) => Err(VaultError::Sealed { address: self.address.clone() }),
            Ok(vaultrs::sys::ServerStatus::UNINITIALIZED) => {
                Err(VaultError::NotInitialised { address: self.address.clone() })
            }
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain("sys/health", error)),
        }
    }

    async fn ask<E: Endpoint>(&self, path: &str, request: E) -> Result<EndpointResult<E::Response>, VaultError>
    where
        E::Response: Send + Sync,
    {
        let answer = request.with_middleware(self.inner.middle()).exec(self.inner.http()).await;
        answer
            .and_then(|answer| answer.wrap::<EndpointResult<E::Response>>())
            .map_err(|error| self.explain(path, ClientError::from(error)))
    }

    fn explain(&self, path: &str, error: ClientError) -> VaultError {
        use rustify::errors::ClientError as Rest;
        let address = self.address.clone();
        let (code, cause) = match &error {
            ClientError::APIError { code, errors } => (*code, errors.join("; ")),
            ClientError::RestClientError { source: Rest::ServerResponseError { code, content } } => {
                (*code, content.as_deref().and_then(errors).unwrap_or_default())
            }
            ClientError::RestClientError { source: Rest::RequestError { source, .. } } => {
                let error: &dyn std::error::Error = source.as_ref();
                return VaultError::Unreachable { address, cause: chain(error) };
            }
            // The content of what was answered is not told: it may hold what was asked for.
            _ => (200, "the answer is of another form than expected".to_owned()),
        };
        let cause = if cause.is_empty() {
            format!("HTTP {code}")
        } else {
            cause.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let path = path.to_owned();
        match code {
            503 => VaultError::Sealed { address },
            501 => VaultError::NotInitialised { address },
            403 => VaultError::Denied { path, cause },
            404 => VaultError::Missing { path },
            code => VaultError::Failed { path, code, cause },
        }
    }
}

fn pair(path: &str, fields: Option<Fields>) -> Result<Pair, VaultError> {
    let missing = |field| VaultError::Incomplete { path: path.to_owned(), field };
    let fields = fields.ok_or_else(|| VaultError::Missing { path: path.to_owned() })?;
    let username = fields.username.ok_or_else(|| missing("username"))?;
    Ok(Pair { username, password: fields.password.ok_or_else(|| missing("password"))? })
}

fn errors(content: &str) -> Option<String> {
    let content: vaultrs::api::EndpointError = serde_json::from_str(content).ok()?;
    Some(content.errors.join("; "))
}

/// An error and its causes in one sentence.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
