//! How requests are read and answered.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use cdc_postgres::{Disposition, TargetError, ledger};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tracing::warn;
use uuid::Uuid;

use crate::service::Service;

/// For a body to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);
const LIMIT: u32 = 100;
pub(super) const LIMIT_MAX: u32 = 1_000;

/// Names that stand in requests and answers.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident: $($variant:ident = $text:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Deserialize)]
        pub(super) enum $name { $(#[serde(rename = $text)] $variant),+ }

        impl $name {
            /// All of them, for the description.
            pub(super) const NAMES: &'static str = concat!($($text, "|"),+);

            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}
pub(super) use names;

/// An error, as RFC 9457 has it, and with the members `error` and `message` for older clients.
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    message: String,
    more: Map<String, Value>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), more: Map::new() }
    }

    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// There is no such thing.
    pub(super) fn unknown(what: &str, id: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", format!("there is no {what} {id}"))
    }

    /// With a member of its own.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, code, message, mut more } = self;
        let title = status.canonical_reason().unwrap_or_default();
        let members = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": message,
            "code": code, "error": code, "message": message});
        more.extend(members.as_object().cloned().unwrap_or_default());
        (status, [(CONTENT_TYPE, "application/problem+json")], line(&Value::Object(more))).into_response()
    }
}

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        if error.disposition() == Disposition::Quarantine {
            let message = "from_date, to_date, start_date, end_date and scheduled_time must be in a form PostgreSQL reads, such \
                           as 2026-11-21T10:00Z, and no text may have a NUL";
            return Self::bad("INVALID_TIME", message);
        }
        warn!(%error, "a request could not be answered");
        Self::unavailable("DATABASE_UNAVAILABLE", format!("PostgreSQL did not answer: {error}"))
    }
}

pub(super) type Answer = Result<Response, Problem>;

/// Refuses times PostgreSQL cannot read, of those that are given.
pub(super) async fn check_times(service: &Service, times: [&Option<String>; 2]) -> Result<(), Problem> {
    let times: Vec<&str> = times.into_iter().flatten().map(String::as_str).collect();
    if times.is_empty() {
        return Ok(());
    }
    Ok(service.ledger.check_times(&times).await?)
}

/// JSON, with a line break at its end.
pub(super) fn json(status: StatusCode, value: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], line(value)).into_response()
}

pub(super) fn ok(value: &Value) -> Answer {
    Ok(json(StatusCode::OK, value))
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// Parameters of the query, every one of them known.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                let text = rejection.body_text();
                let what = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                Err(Problem::bad("INVALID_PARAMETER", format!("the query is not valid: {what}")))
            }
        }
    }
}

/// A body: JSON whatever its media type says, because `curl -d` calls everything a form. None is `{}`.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = bytes(request, state).await?;
        let text: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { &bytes };
        // What reads a struct would take its fields from an array, too, in their order.
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(Problem::bad("INVALID_BODY", "the body is not valid: it must be a JSON object, such as {}"));
        }
        let mut reader = serde_json::Deserializer::from_slice(text);
        let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { String::new() } else { format!("{path}: ") };
            Problem::bad("INVALID_BODY", format!("the body is not valid: {field}{}", error.inner()))
        })?;
        reader.end().map_err(|error| Problem::bad("INVALID_BODY", format!("the body is not valid: {error}")))?;
        Ok(Self(read))
    }
}

/// All of a body, if it arrives.
pub(super) async fn bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let late = || Problem::new(StatusCode::REQUEST_TIMEOUT, "BODY_TOO_SLOW", "the body did not arrive in time");
    let reading = tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, state));
    let invalid = |rejection: BytesRejection| Problem::new(rejection.status(), "INVALID_BODY", rejection.body_text());
    reading.await.map_err(|_| late())?.map_err(invalid)
}

/// The id in the path.
pub(super) struct Id(pub(super) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await.map(|Path(id)| id).unwrap_or_default();
        let id = id.parse().map_err(|_| Problem::bad("INVALID_ID", "the id in the path is not a UUID"))?;
        Ok(Self(id))
    }
}

/// Which part of a list is asked for, in either of two ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slice {
    pub(super) limit: u32,
    pub(super) offset: u32,
}

impl Slice {
    pub(super) fn of(
        limit: Option<u32>,
        offset: Option<u32>,
        page: Option<u32>,
        page_size: Option<u32>,
    ) -> Result<Self, Problem> {
        let by_page = page.is_some() || page_size.is_some();
        if by_page && (limit.is_some() || offset.is_some()) {
            return Err(Problem::bad("INVALID_PARAMETER", "give limit and offset, or page and page_size, not both"));
        }
        let limit_name = if by_page { "page_size" } else { "limit" };
        let limit = limit.or(page_size).unwrap_or(LIMIT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            let message = format!("{limit_name} is {limit}: use 1 to {LIMIT_MAX}");
            return Err(Problem::bad("INVALID_PARAMETER", message));
        }
        let pages = page.unwrap_or(1).checked_sub(1);
        let pages = pages.ok_or_else(|| Problem::bad("INVALID_PARAMETER", "page is 0: the first one is 1"))?;
        Ok(Self { limit, offset: offset.unwrap_or_else(|| pages.saturating_mul(limit)) })
    }

    pub(super) fn page(self) -> ledger::Page {
        ledger::Page { limit: self.limit.into(), offset: self.offset.into() }
    }

    /// A list with what it is a part of.
    pub(super) fn list(self, name: &str, items: Vec<Value>, total: i64) -> Value {
        let size = i64::from(self.limit);
        let pagination = json!({"page": i64::from(self.offset) / size + 1, "page_size": size,
            "total_pages": (total + size - 1) / size, "total_items": total});
        json!({name: items, "total": total, "limit": self.limit, "offset": self.offset, "pagination": pagination})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_list_is_asked_for_in_one_of_two_ways() {
        let slice = |limit, offset, page, size| Slice::of(limit, offset, page, size).ok();
        assert_eq!(slice(None, None, None, None), Some(Slice { limit: 100, offset: 0 }));
        assert_eq!(slice(Some(10), Some(5), None, None), Some(Slice { limit: 10, offset: 5 }));
        assert_eq!(slice(None, None, Some(3), Some(20)), Some(Slice { limit: 20, offset: 40 }));
        assert_eq!(slice(None, None, Some(2), None), Some(Slice { limit: 100, offset: 100 }));
        for wrong in [
            slice(Some(0), None, None, None),
            slice(Some(1_001), None, None, None),
            slice(None, None, Some(0), None),
            slice(Some(1), None, Some(1), None),
        ] {
            assert_eq!(wrong, None);
        }
        let list = Slice { limit: 2, offset: 2 }.list("jobs", vec![], 5);
        assert_eq!(list["pagination"], json!({"page": 2, "page_size": 2, "total_pages": 3, "total_items": 5}));
    }
}
