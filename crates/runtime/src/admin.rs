//! Health, status and metrics over HTTP, for probes, Prometheus and `cdc status`.
//!
//! | path | answers |
//! |---|---|
//! | `/healthz` | 200 while the process can answer; never depends on a server we use |
//! | `/readyz` | 200, or 503 and why not |
//! | `/status` | the state as JSON |
//! | `/metrics` | Prometheus' text format |
//!
//! Nothing here asks who is asking, so only loopback addresses are accepted.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use tracing::info;

use crate::Lifecycle;
use crate::config::Fault;

/// The `admin:` section.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port; port 0 takes a free one. Absent: 127.0.0.1 and the role's own port.
    pub listen: Option<SocketAddr>,
    /// Where the port is written once it is known.
    pub port_file: Option<PathBuf>,
}

impl AdminConfig {
    /// Where to listen, or to ask.
    pub fn address(&self, default_port: u16) -> SocketAddr {
        self.listen.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), default_port))
    }

    pub fn validate(&self) -> Vec<Fault> {
        self.listen
            .filter(|address| !address.ip().is_loopback())
            .map(|address| {
                let fix = format!(
                    "is {address}, which others can reach, but requests are not authenticated yet; use 127.0.0.1:{}",
                    address.port()
                );
                Fault::new("admin.listen", fix)
            })
            .into_iter()
            .collect()
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
        let config = AdminConfig { listen: Some("127.0.0.1:0".parse().unwrap()), port_file: Some(port_file.clone()) };
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
        let config = AdminConfig { listen: Some("0.0.0.0:8084".parse().unwrap()), port_file: None };
        let error = serve(&config, 1, Arc::new(Half), &Lifecycle::new()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "admin.listen is 0.0.0.0:8084, which others can reach, but requests are not authenticated yet; use 127.0.0.1:8084"
        );
    }
}
