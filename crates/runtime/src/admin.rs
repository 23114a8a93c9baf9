//! Health, status and metrics over HTTP, for probes, Prometheus and `cdc status`.
//!
//! | path | answers |
//! |---|---|
//! | `/healthz` | 200 while the process can answer; never depends on a server we use |
//! | `/readyz` | 200, or 503 and why not |
//! | `/status` | the state as JSON |
//! | `/metrics` | Prometheus' text format |
//!
//! Nothing here asks who is asking, so only loopback addresses are accepted. For others there is `admin.remote`, where
//! `/healthz` and `/readyz` are open, `/metrics` wants a token, and nothing else is.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use tracing::info;

use crate::config::Fault;
use crate::{Lifecycle, Secret};

/// A shorter token can be found by trying.
const TOKEN_MIN: usize = 16;

/// The `admin:` section.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port; port 0 takes a free one. Absent: 127.0.0.1 and the role's own port.
    pub listen: Option<SocketAddr>,
    /// Where the port is written once it is known.
    pub port_file: Option<PathBuf>,
    pub remote: Option<RemoteConfig>,
}

/// For a supervisor and a Prometheus on other machines.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteConfig {
    /// Any address and port.
    pub listen: SocketAddr,
    /// What callers of `/metrics` must show as `Authorization: Bearer ...`.
    pub token: Secret,
}

impl AdminConfig {
    /// Where to listen, or to ask.
    pub fn address(&self, default_port: u16) -> SocketAddr {
        self.listen.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), default_port))
    }

    pub fn validate(&self) -> Vec<Fault> {
        let reachable = self.listen.filter(|address| !address.ip().is_loopback()).map(|address| {
            let port = address.port();
            let fix = format!(
                "is {address}, which others can reach, but requests there are not authenticated; use 127.0.0.1:{port}, \
                 and admin.remote for health and metrics"
            );
            Fault::new("admin.listen", fix)
        });
        let token = self.remote.as_ref().map(|remote| remote.token.expose());
        let unusable = token.filter(|token| token.len() < TOKEN_MIN || !token.bytes().all(|b| b.is_ascii_graphic()));
        let unusable = unusable.map(|_| {
            let fix = format!(
                "is shorter than {TOKEN_MIN} bytes or has a space or non-ASCII character: use a long random one"
            );
            Fault::new("admin.remote.token", fix)
        });
        reachable.into_iter().chain(unusable).collect()
    }
}

/// What a process tells about itself. Called for each request, so it must be cheap and must not wait.
pub trait Report: Send + Sync + 'static {
    /// For `/status`.
    fn status(&self) -> serde_json::Value;

    /// `Err`: why the process does not do its work at present.
    fn ready(&self) -> Result<(), String>;

    /// Appends Prometheus' text format.
    fn metrics(&self, out: &mut String);
}

#[derive(thiserror::Error, Debug)]
pub enum AdminError {
    #[error("{0}")]
    NotLoopback(Fault),
    #[error("{section}.listen: cannot listen on {address}; choose a free port, or 0 to have one chosen")]
    Bind { section: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("{section}.port_file: cannot write {path}")]
    PortFile { section: &'static str, path: PathBuf, source: std::io::Error },
}

/// Starts answering, until all tasks of the process have ended; returns the address that was taken.
///
/// # Errors
/// If the address is not a loopback address or not free, or the port file cannot be written.
pub async fn serve(
    config: &AdminConfig,
    default_port: u16,
    report: Arc<dyn Report>,
    lifecycle: &Lifecycle,
) -> Result<SocketAddr, AdminError> {
    if let Some(fault) = config.validate().into_iter().next() {
        return Err(AdminError::NotLoopback(fault));
    }
    let address = config.address(default_port);
    answer("admin", address, config.port_file.as_deref(), router(report), lifecycle).await
}

/// The paths above.
pub fn router(report: Arc<dyn Report>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/status", get(async |State(report): State<Arc<dyn Report>>| Json(report.status())))
        .route("/metrics", get(metrics))
        .with_state(report)
}

/// The paths of `admin.remote`.
pub fn remote_router(report: Arc<dyn Report>, token: Secret) -> Router {
    let guarded = Router::new().route("/metrics", get(metrics)).layer(from_fn_with_state(token, show_token));
    let open = Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready));
    open.merge(guarded).with_state(report)
}

async fn show_token(State(token): State<Secret>, request: Request, next: Next) -> Response {
    if shows(request.headers(), &token) {
        return next.run(request).await;
    }
    let why = "show the token of admin.remote.token, as in `Authorization: Bearer ...`\n";
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], why).into_response()
}

fn shows(headers: &HeaderMap, token: &Secret) -> bool {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|text| text.split_once(' '));
    let Some((_, shown)) = header.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else { return false };
    let (shown, expected) = (shown.trim().as_bytes(), token.expose().as_bytes());
    // Every byte is looked at, whatever the first one says.
    shown.len() == expected.len() && shown.iter().zip(expected).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Answers whatever the router knows, until all tasks of the process have ended; `section` says where the address was
/// configured. Returns the address that was taken. Who may ask is the router's business.
///
/// # Errors
/// If the address is not free, or the port file cannot be written.
pub async fn answer(
    section: &'static str,
    address: SocketAddr,
    port_file: Option<&Path>,
    router: Router,
    lifecycle: &Lifecycle,
) -> Result<SocketAddr, AdminError> {
    let failed = |source| AdminError::Bind { section, address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    let taken = listener.local_addr().map_err(failed)?;
    if let Some(path) = port_file {
        let failed = |source| AdminError::PortFile { section, path: path.to_owned(), source };
        write_port(path, taken.port()).map_err(failed)?;
    }
    info!(address = %taken, "health, status and metrics are served");
    lifecycle.spawn_last(async move {
        // Only ends with the process; its accept loop survives errors of single connections.
        let _ended = axum::serve(listener, router).await;
    });
    Ok(taken)
}

/// Readers never see half a number.
fn write_port(path: &Path, port: u16) -> std::io::Result<()> {
    let unfinished = path.with_extension("tmp");
    std::fs::write(&unfinished, format!("{port}\n"))?;
    std::fs::rename(unfinished, path)
}

async fn ready(State(report): State<Arc<dyn Report>>) -> impl IntoResponse {
    match report.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(State(report): State<Arc<dyn Report>>) -> impl IntoResponse {
    let mut text = String::new();
    writeln!(text, "# HELP cdc_build_info Which version runs.\n# TYPE cdc_build_info gauge")
        .and_then(|()| writeln!(text, "cdc_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")))
        .expect("writing to a String does not fail");
    report.metrics(&mut text);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// Asks a process's admin server; blocks for at most `timeout` per step. The answer's status code and body.
///
/// # Errors
/// If nothing answers, or not in HTTP.
pub fn fetch(address: SocketAddr, path: &str, timeout: Duration) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    // Version 1.0: the body ends with the connection, in no chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let not_http = || std::io::Error::new(std::io::ErrorKind::InvalidData, "the answer is not HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(not_http)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(not_http)?;
    Ok((code, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Exit;

    struct Half;

    impl Report for Half {
        fn status(&self) -> serde_json::Value {
            json!({"rows": 3})
        }

        fn ready(&self) -> Result<(), String> {
            Err("PostgreSQL does not answer".to_owned())
        }

        fn metrics(&self, out: &mut String) {
            out.push_str("cdc_rows_total 3\n");
        }
    }

    #[tokio::test]
    async fn a_free_port_is_taken_written_down_and_answers_until_all_tasks_have_ended() {
        let directory = tempfile::tempdir().unwrap();
        let port_file = directory.path().join("port");
        let config = AdminConfig {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            port_file: Some(port_file.clone()),
            remote: None,
        };
        let lifecycle = Lifecycle::new();
        let address = serve(&config, 1, Arc::new(Half), &lifecycle).await.unwrap();
        assert_eq!(std::fs::read_to_string(port_file).unwrap(), format!("{}\n", address.port()));

        let ask =
            move |path: &'static str| tokio::task::spawn_blocking(move || fetch(address, path, Duration::from_secs(5)));
        assert_eq!(ask("/healthz").await.unwrap().unwrap(), (200, "ok\n".to_owned()));
        assert_eq!(ask("/readyz").await.unwrap().unwrap(), (503, "PostgreSQL does not answer\n".to_owned()));
        assert_eq!(ask("/status").await.unwrap().unwrap(), (200, "{\"rows\":3}".to_owned()));
        let (code, text) = ask("/metrics").await.unwrap().unwrap();
        assert!(code == 200 && text.contains("cdc_build_info") && text.ends_with("cdc_rows_total 3\n"), "{text}");

        lifecycle.stop();
        assert_eq!(ask("/healthz").await.unwrap().unwrap().0, 200, "still answers while tasks drain");
        assert_eq!(lifecycle.finish(Duration::from_secs(5)).await, Exit::Success);
    }

    #[tokio::test]
    async fn an_address_that_others_can_reach_is_refused() {
        let config = AdminConfig { listen: Some("0.0.0.0:8084".parse().unwrap()), ..AdminConfig::default() };
        let error = serve(&config, 1, Arc::new(Half), &Lifecycle::new()).await.unwrap_err();
        let told = error.to_string();
        assert!(told.starts_with("admin.listen is 0.0.0.0:8084, which others can reach"), "{told}");
        assert!(told.contains("use 127.0.0.1:8084, and admin.remote"), "{told}");
    }

    #[test]
    fn a_token_that_can_be_guessed_is_refused_and_not_shown() {
        let remote = |token: &str| AdminConfig {
            remote: Some(RemoteConfig { listen: "0.0.0.0:9464".parse().unwrap(), token: Secret::new(token) }),
            ..AdminConfig::default()
        };
        for token in ["hunter2", "sixteen or more bytes", ""] {
            let faults = remote(token).validate();
            assert_eq!(faults.len(), 1, "{token}");
            assert!(!faults[0].to_string().contains("hunter2"), "{}", faults[0]);
        }
        assert!(remote("0123456789abcdef").validate().is_empty());
    }

    #[tokio::test]
    async fn from_elsewhere_health_is_open_metrics_want_the_token_and_nothing_else_is_there() {
        let lifecycle = Lifecycle::new();
        let router = remote_router(Arc::new(Half), Secret::new("0123456789abcdef"));
        let address = answer("admin.remote", "127.0.0.1:0".parse().unwrap(), None, router, &lifecycle).await.unwrap();
        let ask = async |path: &'static str, header: &'static str| {
            let asking = move || {
                let mut stream = TcpStream::connect(address).unwrap();
                write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n{header}\r\n").unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                (text.split(' ').nth(1).unwrap().parse::<u16>().unwrap(), text)
            };
            tokio::task::spawn_blocking(asking).await.unwrap()
        };
        assert_eq!(ask("/healthz", "").await.0, 200);
        assert_eq!(ask("/readyz", "").await.0, 503);
        assert_eq!(ask("/status", "Authorization: Bearer 0123456789abcdef\r\n").await.0, 404);
        for wrong in ["", "Authorization: Bearer 0123456789abcdeg\r\n", "Authorization: Basic 0123456789abcdef\r\n"] {
            let (code, text) = ask("/metrics", wrong).await;
            assert!(code == 401 && !text.contains("cdc_rows_total"), "{wrong}: {text}");
        }
        let (code, text) = ask("/metrics", "Authorization: bearer 0123456789abcdef\r\n").await;
        assert!(code == 200 && text.contains("cdc_rows_total 3"), "{text}");
        lifecycle.stop();
        assert_eq!(lifecycle.finish(Duration::from_secs(5)).await, Exit::Success);
    }
}
