//! The description of the routes, made of the same table as the router.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::answer::{Answer, ok};
use super::{Route, routes};

pub(super) async fn describe() -> Answer {
    ok(&document(&routes()))
}

fn document(routes: &[Route]) -> Value {
    let mut paths = Map::new();
    for route in routes {
        let operation = operation(route);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation;
    }
    for (path, summary) in [("/status", "What this process does, as JSON"), ("/metrics", "Prometheus' text format")] {
        paths
            .insert(path.to_owned(), json!({"get": {"summary": summary, "responses": {"200": {"description": "OK"}}}}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "cdc reconciler",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Every path is also there below /api/v1. Bodies are read as JSON whatever their media type says.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": {
                "type": "object",
                "required": ["type", "title", "status", "detail", "code", "error", "message"],
                "properties": {"type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
                    "detail": {"type": "string"}, "code": {"type": "string"}, "error": {"type": "string"},
                    "message": {"type": "string"}},
            }},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    })
}

fn operation(route: &Route) -> Value {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path.map(|name| {
        let schema =
            if name.ends_with("_id") { json!({"type": "string", "format": "uuid"}) } else { json!({"type": "string"}) };
        json!({"name": name, "in": "path", "required": true, "schema": schema})
    });
    let in_query = route.query.iter().map(|name| {
        let kind = if super::PAGE.contains(name) { "integer" } else { "string" };
        json!({"name": name, "in": "query", "schema": {"type": kind}})
    });
    let in_header = route.once.then(|| {
        json!({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255},
            "description": "The same request with the same key is carried out once, and answered alike for 24 hours."})
    });
    let codes: BTreeSet<u16> =
        route.answers.iter().copied().chain(route.once.then_some([409, 422]).into_iter().flatten()).collect();
    let responses: Map<String, Value> = codes.iter().map(|code| (code.to_string(), response(*code))).collect();
    let parameters: Vec<Value> = in_path.chain(in_query).chain(in_header).collect();
    let mut operation = json!({"summary": route.summary, "parameters": parameters, "responses": responses});
    if !route.body.is_empty() {
        let required: Vec<&str> =
            route.body.iter().filter(|(_, kind)| kind.ends_with('!')).map(|(name, _)| *name).collect();
        let properties: Map<String, Value> =
            route.body.iter().map(|(name, kind)| ((*name).to_owned(), schema(kind.trim_end_matches('!')))).collect();
        let schema = json!({"type": "object", "additionalProperties": false, "required": required,
            "properties": properties});
        operation["requestBody"] =
            json!({"required": !required.is_empty(), "content": {"application/json": {"schema": schema}}});
    }
    operation
}

fn schema(kind: &str) -> Value {
    match kind {
        "array" => json!({"type": "array", "items": {"type": "string"}}),
        kind => json!({"type": kind}),
    }
}

fn response(code: u16) -> Value {
    let problem = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
    match code {
        200 => json!({"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}),
        202 => json!({"description": "Accepted", "content": {"application/json": {"schema": {"type": "object"}}}}),
        400 => json!({"description": "The request is wrong; `detail` says what", "content": problem}),
        404 => json!({"description": "There is no such thing", "content": problem}),
        409 => json!({"description": "Too late, or the same request is being answered", "content": problem}),
        422 => json!({"description": "The Idempotency-Key belongs to another request", "content": problem}),
        503 => json!({"description": "Not now", "content": problem}),
        _ => json!({"description": "Not in time; `missing` says what was waited for", "content": problem}),
    }
}
