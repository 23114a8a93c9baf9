//! Snapshots over HTTP, on the agent's admin port.
//!
//! | request | does |
//! |---|---|
//! | `GET /snapshots` | all that are remembered |
//! | `POST /snapshots` `{"table": "shop.orders", "range": "-100:100", "ranges": "all"}` | begins one; the last two may be left out |
//! | `DELETE /snapshots?table=shop.orders` | cancels one |
//!
//! Nothing here asks who is asking; the admin server is reached by this machine alone. A web page can make a browser on it
//! ask, so what changes anything must not come from one: no `Origin`, and a loopback `Host`.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, Request, State as Extract},
    http::{Method, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use cdc_model::TokenRange;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{SnapshotError, SnapshotRanges, SnapshotRequest, Snapshots};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    table: String,
    range: Option<String>,
    ranges: Option<SnapshotRanges>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    table: String,
}

impl Snapshots {
    /// The paths above.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new().route("/snapshots", get(list).post(begin).delete(cancel)).layer(from_fn(guard)).with_state(self)
    }
}

async fn list(Extract(snapshots): Extract<Arc<Snapshots>>) -> Json<Value> {
    Json(json!({"snapshots": snapshots.statuses()}))
}

async fn begin(Extract(snapshots): Extract<Arc<Snapshots>>, Json(wish): Json<Wish>) -> Response {
    let range = match wish.range.as_deref().map(range).transpose() {
        Ok(range) => range,
        Err(message) => return problem(StatusCode::BAD_REQUEST, "BAD_RANGE", &message),
    };
    let request = SnapshotRequest { table: wish.table, range, ranges: wish.ranges };
    match snapshots.request(request).await {
        Ok(status) => (StatusCode::ACCEPTED, Json(json!(status))).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn cancel(Extract(snapshots): Extract<Arc<Snapshots>>, Query(named): Query<Named>) -> Response {
    match snapshots.cancel(&named.table).await {
        Ok(status) => Json(json!(status)).into_response(),
        Err(error) => error.into_response(),
    }
}

/// `START:END`.
pub(super) fn range(text: &str) -> Result<TokenRange, String> {
    let range = text
        .split_once(':')
        .and_then(|(start, end)| Some(TokenRange { start: start.parse().ok()?, end: end.parse().ok()? }));
    let wrong =
        || format!("the range is `{text}`: use START:END, two tokens of which the first is less, as in -100:100");
    range.filter(|range| range.start < range.end).ok_or_else(wrong)
}

impl IntoResponse for SnapshotError {
    fn into_response(self) -> Response {
        let (status, code) = match &self {
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "NOT_READY"),
            Self::NotCaptured(_) => (StatusCode::NOT_FOUND, "NOT_CAPTURED"),
            Self::Counters(_) => (StatusCode::UNPROCESSABLE_ENTITY, "COUNTERS"),
            Self::Unfinished { .. } => (StatusCode::CONFLICT, "UNFINISHED"),
            Self::NothingToCancel(_) => (StatusCode::NOT_FOUND, "NOTHING_TO_CANCEL"),
            Self::NoTokens | Self::Cassandra(_) => (StatusCode::BAD_GATEWAY, "CASSANDRA"),
            Self::State(_) => (StatusCode::INTERNAL_SERVER_ERROR, "STATE"),
        };
        if status.is_server_error() {
            tracing::warn!(error = %self, cause = ?std::error::Error::source(&self), "a snapshot cannot be begun");
        }
        problem(status, code, &self.to_string())
    }
}

fn problem(status: StatusCode, code: &str, detail: &str) -> Response {
    let body = json!({"title": code, "status": status.as_u16(), "detail": detail}).to_string();
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
}

async fn guard(request: Request, next: Next) -> Response {
    let changes = *request.method() != Method::GET && *request.method() != Method::HEAD;
    let host = request.headers().get(header::HOST);
    let is_own = host.is_none_or(|host| host.to_str().is_ok_and(is_loopback));
    if changes && (!is_own || request.headers().contains_key(header::ORIGIN)) {
        return problem(StatusCode::FORBIDDEN, "FOREIGN", "ask 127.0.0.1 or localhost, and not from a web page");
    }
    next.run(request).await
}

/// `host` or `host:port`.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use cdc_runtime::Lifecycle;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    #[test]
    fn a_range_is_two_tokens_in_order() {
        assert_eq!(range("-5:7"), Ok(TokenRange { start: -5, end: 7 }));
        for wrong in ["", "5", "7:5", "a:b", "1:1", "1:2:3"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn before_the_agent_has_begun_and_from_web_pages_nothing_is_begun() {
        let (snapshots, lifecycle) = (Arc::new(Snapshots::default()), Lifecycle::new());
        let free = "127.0.0.1:0".parse().unwrap();
        let address = cdc_runtime::admin::answer("admin", free, None, snapshots.router(), &lifecycle).await.unwrap();
        let ask = async |head: &str, body: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let length = body.len();
            let json = "Content-Type: application/json\r\nConnection: close";
            let text = format!("{head}\r\n{json}\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
        };
        let wish = r#"{"table": "shop.orders"}"#;
        assert_eq!(ask("GET /snapshots HTTP/1.1\r\nHost: localhost", "").await, 200);
        assert_eq!(ask("POST /snapshots HTTP/1.1\r\nHost: localhost:8084", wish).await, 503);
        assert_eq!(ask("POST /snapshots HTTP/1.1\r\nHost: evil.example", wish).await, 403);
        assert_eq!(ask("POST /snapshots HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost", wish).await, 403);
        assert_eq!(ask("POST /snapshots HTTP/1.1\r\nHost: [::1]:8084", r#"{"tabel": "t"}"#).await, 422);
        assert_eq!(ask("DELETE /snapshots?table=t HTTP/1.1\r\nHost: 127.0.0.1", "").await, 503);
        lifecycle.stop();
    }
}
