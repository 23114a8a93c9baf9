//! Requests that may come twice, because their first answer was lost: with the same `Idempotency-Key` they are carried out
//! once, and answered alike for a day. What could not be answered (5xx) is carried out when it comes again.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cdc_postgres::ledger;
use sha2::{Digest, Sha256};
use tracing::warn;

use super::answer::{Answer, Problem, bytes};
use crate::service::{Service, Shared};

pub(super) const KEY: &str = "idempotency-key";
const REPLAYED: &str = "idempotency-replayed";
const KEY_MAX: usize = 255;
/// No answer of ours is larger.
const ANSWER_MAX: usize = 16 << 20;

pub(super) async fn once(State(service): State<Shared>, request: Request, next: Next) -> Response {
    if !request.headers().contains_key(KEY) {
        return next.run(request).await;
    }
    answer(&service, request, next).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(service: &Service, request: Request, next: Next) -> Answer {
    let key = request.headers().get(KEY).and_then(|key| key.to_str().ok()).unwrap_or_default().to_owned();
    if !(1..=KEY_MAX).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("Idempotency-Key must be 1 to {KEY_MAX} visible ASCII characters, such as a UUID");
        return Err(Problem::bad("INVALID_IDEMPOTENCY_KEY", message));
    }
    let (parts, body) = request.into_parts();
    let body = bytes(Request::from_parts(parts.clone(), body), &()).await?;
    let asked = Sha256::new_with_prefix(parts.uri.path()).chain_update("\n").chain_update(&body).finalize();
    match service.ledger.begin_answer(&key, &asked).await? {
        ledger::Answer::New => {}
        ledger::Answer::Pending => {
            let message = "the same request is being answered: ask again in some seconds";
            return Err(Problem::new(StatusCode::CONFLICT, "IDEMPOTENCY_IN_PROGRESS", message));
        }
        ledger::Answer::Other => {
            let message = "this Idempotency-Key was used for another request within the last 24 hours: use a new one";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "IDEMPOTENCY_KEY_REUSED", message));
        }
        ledger::Answer::Known(status, body) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
            let kind = if status.is_success() { "application/json" } else { "application/problem+json" };
            return Ok((status, [(CONTENT_TYPE, kind), (axum::http::HeaderName::from_static(REPLAYED), "true")], body)
                .into_response());
        }
    }
    let (mut parts, body) = next.run(Request::from_parts(parts, Body::from(body))).await.into_parts();
    let body = to_bytes(body, ANSWER_MAX).await.unwrap_or_default();
    let kept = match std::str::from_utf8(&body) {
        Ok(text) if !parts.status.is_server_error() => {
            service.ledger.keep_answer(&key, parts.status.as_u16(), text).await
        }
        _ => service.ledger.drop_answer(&key).await,
    };
    if let Err(error) = kept {
        warn!(%error, "an answer could not be kept: the request must not be repeated for two minutes");
    }
    parts.headers.entry(REPLAYED).or_insert(HeaderValue::from_static("false"));
    Ok(Response::from_parts(parts, Body::from(body)))
}
