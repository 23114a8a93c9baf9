//! Who may ask.
//!
//! Any web page can make a browser send a form to a local port, or reach it under a name of its own. So a request that names a
//! foreign `Origin`, or on loopback a foreign `Host`, is refused; `curl` sends no `Origin`. Cookies are never looked at.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cdc_runtime::Secret;
use sha2::{Digest, Sha256};

use super::answer::Problem;
use crate::service::ReconcilerConfig;

/// Probes of a supervisor, which tell nothing.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

pub(super) struct Guard {
    /// Digest of the token, so that what is compared has one length.
    token: Option<[u8; 32]>,
    on_loopback: bool,
}

impl Guard {
    pub(super) fn new(config: &ReconcilerConfig) -> Self {
        let digest = |token: &Secret| Sha256::digest(token.expose()).into();
        Self { token: config.token.as_ref().map(digest), on_loopback: config.address().ip().is_loopback() }
    }

    fn refuse(&self, path: &str, headers: &HeaderMap) -> Option<Problem> {
        let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let host = text(header::HOST);
        if self.on_loopback && host.is_some_and(|host| !is_loopback(host)) {
            let message = "the Host header names another machine; ask 127.0.0.1 or localhost";
            return Some(Problem::new(StatusCode::FORBIDDEN, "FOREIGN_HOST", message));
        }
        let own = |origin: &str| origin.split_once("://").is_some_and(|(_, origin)| Some(origin) == host);
        if text(header::ORIGIN).is_some_and(|origin| !own(origin)) {
            let message = "the Origin header names another site, which may not use this service";
            return Some(Problem::new(StatusCode::FORBIDDEN, "FOREIGN_ORIGIN", message));
        }
        let expected = self.token.filter(|_| !OPEN.contains(&path))?;
        let shown = text(header::AUTHORIZATION).and_then(|value| value.split_once(' '));
        let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
        let given: [u8; 32] = Sha256::digest(shown.unwrap_or_default()).into();
        // Every byte is looked at, whatever the first one says.
        let differs = given.iter().zip(expected).fold(0, |differs, (given, expected)| differs | (given ^ expected));
        (shown.is_none() || differs != 0).then(|| {
            let message = "show the token of reconciler.token, as in `Authorization: Bearer ...`";
            Problem::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
        })
    }
}

/// `host` or `host:port`.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let Some(problem) = guard.refuse(request.uri().path(), request.headers()) else { return next.run(request).await };
    let mut response = problem.into_response();
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(guard: &Guard, path: &str, headers: &[(&'static str, &str)]) -> Option<StatusCode> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        guard.refuse(path, &headers).map(|problem| problem.into_response().status())
    }

    #[test]
    fn a_page_of_another_site_is_refused_and_curl_is_not() {
        let guard = Guard::new(&ReconcilerConfig::default());
        let ask = |headers: &[(&'static str, &str)]| refused(&guard, "/dlq/discard", headers);
        assert_eq!(ask(&[("host", "localhost:8080")]), None);
        for host in ["127.0.0.1:8080", "[::1]:8080", "LOCALHOST", "127.9.9.9"] {
            assert_eq!(ask(&[("host", host)]), None, "{host}");
        }
        assert_eq!(ask(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]), None);
        for origin in ["http://evil.example", "null", "http://localhost:9999", "https://localhost:8080.evil.example"] {
            let answer = ask(&[("host", "localhost:8080"), ("origin", origin)]);
            assert_eq!(answer, Some(StatusCode::FORBIDDEN), "{origin}");
        }
        assert_eq!(ask(&[("host", "evil.example")]), Some(StatusCode::FORBIDDEN), "a name that was made to lead here");
    }

    #[test]
    fn where_there_is_a_token_it_is_shown_everywhere_but_to_probes() {
        let config = ReconcilerConfig {
            listen: Some("0.0.0.0:8080".parse().unwrap()),
            token: Some(Secret::new("0123456789abcdef")),
            ..ReconcilerConfig::default()
        };
        let guard = Guard::new(&config);
        let ask = |header: &str| refused(&guard, "/metrics", &[("host", "cdc.example"), ("authorization", header)]);
        assert_eq!(ask("Bearer 0123456789abcdef"), None);
        assert_eq!(ask("bearer 0123456789abcdef"), None);
        for wrong in ["Bearer 0123456789abcdeg", "Bearer", "Bearer ", "Basic 0123456789abcdef", ""] {
            assert_eq!(ask(wrong), Some(StatusCode::UNAUTHORIZED), "{wrong}");
        }
        assert_eq!(refused(&guard, "/health", &[]), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(refused(&guard, "/healthz", &[]), None);
    }
}
