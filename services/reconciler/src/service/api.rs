//! The REST API. Every route is there twice: as it is, and below `/api/v1`.
//!
//! **Invariants:** every answer of a route below is JSON that ends with a line break, errors too; no value of a row is in any
//! of them, and a key only where `reconciler.show_keys` is set.

mod answer;
mod dlq;
mod guard;
mod health;
mod jobs;
mod mismatches;
mod once;
mod openapi;
mod trigger;
mod wait;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use cdc_runtime::admin;

use self::answer::Problem;
use super::Shared;

/// No body that is meant well is larger.
const BODY_MAX: usize = 1 << 20;

/// What can be asked, and what `OpenAPI` says of it.
struct Route {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    /// Parameters of the query.
    query: &'static [Field],
    /// Fields of the body.
    body: &'static [Field],
    answers: &'static [u16],
    /// Whether it knows an `Idempotency-Key`.
    once: bool,
    handler: MethodRouter<Shared>,
}

/// A name and what it takes, as [`openapi`] says it; what must be there ends with `!`.
type Field = (&'static str, &'static str);

const PAGE: [Field; 4] = [("limit", "size"), ("offset", "offset"), ("page", "count"), ("page_size", "size")];

fn routes() -> Vec<Route> {
    let read = |path, summary, query, answers, handler| Route {
        method: "get",
        path,
        summary,
        query,
        body: &[],
        answers,
        once: false,
        handler,
    };
    let write = |path, summary, body, answers, handler| Route {
        method: "post",
        path,
        summary,
        query: &[],
        body,
        answers,
        once: false,
        handler,
    };
    let once = |route: Route| Route { once: true, ..route };
    vec![
        once(write(
            "/reconciliation/trigger",
            "Compares tables, and repairs what it may",
            trigger::BODY,
            &[202, 400, 503],
            post(trigger::trigger),
        )),
        read("/reconciliation/jobs", "Comparisons, newest first", jobs::QUERY, &[200, 400], get(jobs::list)),
        read(
            "/reconciliation/jobs/{job_id}",
            "A comparison with the mismatches it saw",
            &[],
            &[200, 400, 404],
            get(jobs::show),
        ),
        write(
            "/reconciliation/jobs/{job_id}/cancel",
            "Ends a comparison",
            &[],
            &[200, 202, 400, 404, 409],
            post(jobs::cancel),
        ),
        write(
            "/reconciliation/jobs/{job_id}/pause",
            "Stops a comparison until it is resumed",
            &[],
            &[200, 202, 400, 404, 409],
            post(jobs::pause),
        ),
        write(
            "/reconciliation/jobs/{job_id}/resume",
            "Goes on with a comparison",
            &[],
            &[200, 400, 404, 409],
            post(jobs::resume),
        ),
        read(
            "/reconciliation/mismatches",
            "Rows proven wrong, each once, oldest first",
            mismatches::QUERY,
            &[200, 400],
            get(mismatches::list),
        ),
        write(
            "/reconciliation/mismatches/{mismatch_id}/resolve",
            "Notes what was done about a mismatch",
            mismatches::RESOLVE,
            &[200, 400, 404],
            post(mismatches::resolve),
        ),
        once(write(
            "/reconciliation/mismatches/{mismatch_id}/repair",
            "Sets a row right, by a job",
            mismatches::REPAIR,
            &[202, 400, 404, 409, 503],
            post(mismatches::repair),
        )),
        read("/reconciliation/coverage", "What is proven of each table, and when", &[], &[200], get(jobs::coverage)),
        read("/reconciliation/schedule", "What is compared by itself, and when next", &[], &[200], get(jobs::schedule)),
        write(
            "/barrier",
            "Answers once everything written before is in PostgreSQL",
            wait::BARRIER,
            &[200, 400, 503, 504],
            post(wait::barrier),
        ),
        read("/dlq/records", "Dead letters, oldest first", dlq::QUERY, &[200, 400], get(dlq::records)),
        read("/dlq/stats", "Dead letters in numbers", &[], &[200], get(dlq::stats)),
        once(write("/dlq/replay", "Applies dead letters again", dlq::REPLAY, &[202, 400], post(dlq::replay))),
        read("/dlq/replay/{replay_id}", "What became of a replay", &[], &[200, 400, 404], get(dlq::replayed)),
        once(write("/dlq/discard", "Gives dead letters up", dlq::DISCARD, &[200, 400], post(dlq::discard))),
        read(
            "/health",
            "Whether this service and what it asks answer",
            &[("format", "json|text|")],
            &[200, 400, 503],
            get(health::all),
        ),
        read("/health/{component}", "The same of one of them", &[], &[200, 404, 503], get(health::one)),
        read("/openapi.json", "This description", &[], &[200], get(openapi::describe)),
    ]
}

pub(super) fn router(service: &Shared) -> Router {
    let routes = routes().into_iter().fold(Router::new(), |router, route| {
        let state = Arc::clone(service);
        let handler =
            if route.once { route.handler.layer(from_fn_with_state(state, once::once)) } else { route.handler };
        let handler = if route.query.is_empty() { handler.layer(from_fn(no_query)) } else { handler };
        router.route(route.path, handler)
    });
    let all = routes.with_state(Arc::clone(service)).merge(admin::router(Arc::clone(service) as _));
    Router::new()
        .merge(all.clone())
        .nest("/api/v1", all)
        .fallback(async || {
            Problem::new(StatusCode::NOT_FOUND, "NO_SUCH_ROUTE", "there is no such route; /openapi.json lists all")
        })
        .method_not_allowed_fallback(async || {
            let code = StatusCode::METHOD_NOT_ALLOWED;
            Problem::new(code, "WRONG_METHOD", "the route is asked by another method; /openapi.json says which")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(from_fn_with_state(Arc::new(guard::Guard::new(&service.settings.reconciler)), guard::check))
}

/// Refuses parameters where there are none.
async fn no_query(request: Request, next: Next) -> Response {
    match request.uri().query() {
        None | Some("") => next.run(request).await,
        Some(_) => Problem::bad("INVALID_PARAMETER", "this route takes no parameters in its query").into_response(),
    }
}
