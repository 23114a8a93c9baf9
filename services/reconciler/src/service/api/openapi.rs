//! The description of the routes, made of the same table as the router.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::answer::{Answer, LIMIT_MAX, ok};
use super::mismatches::NOTES_MAX;
use super::wait::{TIMEOUT_MAX, TIMEOUT_MIN};
use super::{Route, routes};
use crate::Class;
use crate::service::found::name;

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
    let in_query = route.query.iter().map(|(name, kind)| json!({"name": name, "in": "query", "schema": schema(kind)}));
    let in_header = route.once.then(|| {
        json!({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
            "description": "The same request with the same key is carried out once, and answered alike for 24 hours."})
    });
    let codes: BTreeSet<u16> =
        route.answers.iter().copied().chain(route.once.then_some([409, 422]).into_iter().flatten()).collect();
    let mut responses: Map<String, Value> = codes.iter().map(|code| (code.to_string(), response(*code))).collect();
    if route.query.iter().any(|(name, _)| *name == "format") {
        for response in responses.values_mut() {
            response["content"]["text/plain"] = json!({"schema": {"type": "string"}});
        }
    }
    let parameters: Vec<Value> = in_path.chain(in_query).chain(in_header).collect();
    let mut operation = json!({"summary": route.summary, "parameters": parameters, "responses": responses});
    if !route.body.is_empty() {
        let required: Vec<&str> =
            route.body.iter().filter(|(_, kind)| kind.ends_with('!')).map(|(name, _)| *name).collect();
        let properties: Map<String, Value> =
            route.body.iter().map(|(name, kind)| ((*name).to_owned(), field(kind))).collect();
        let schema = json!({"type": "object", "additionalProperties": false, "required": required,
            "properties": properties});
        operation["requestBody"] =
            json!({"required": !required.is_empty(), "content": {"application/json": {"schema": schema}}});
    }
    operation
}

/// A field of a body. What may be left out may be null as well.
fn field(kind: &str) -> Value {
    match kind.strip_suffix('!') {
        Some(kind) => schema(kind),
        None => json!({"anyOf": [schema(kind), {"type": "null"}]}),
    }
}

/// What a [`Field`](super::Field) takes: a kind by its name, or one of several names, each with a `|` behind it.
fn schema(kind: &str) -> Value {
    let one_of = |names: &str| json!({"type": "string", "enum": names.split_terminator('|').collect::<Vec<_>>()});
    match kind {
        "boolean" => json!({"type": "boolean"}),
        "count" => json!({"type": "integer", "minimum": 1, "maximum": u32::MAX}),
        "offset" => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        "size" => json!({"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}),
        "seconds" => json!({"type": "number", "minimum": TIMEOUT_MIN, "maximum": TIMEOUT_MAX}),
        "text" => json!({"type": "string"}),
        "texts" => json!({"type": "array", "items": {"type": "string"}}),
        "notes" => json!({"type": "string", "maxLength": NOTES_MAX}),
        "time" => json!({"type": "string", "format": "date-time"}),
        "uuid" => json!({"type": "string", "format": "uuid"}),
        "uuids" => json!({"type": "array", "items": schema("uuid")}),
        "share" => json!({"type": "number", "exclusiveMinimum": 0, "maximum": 100}),
        "seed" => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        "moment" => json!({"anyOf": [schema("time"), {"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX,
            "description": "Microseconds since 1970."}]}),
        "key" => json!({"type": ["string", "number", "array", "object"],
            "description": "A partition key as CQL or JSON has it: 5, \"'a'\", \"(5, 'a')\", {\"p\": 5, \"q\": \"a\"}."}),
        "range" => json!({"type": "string", "pattern": "^-?[0-9]+:-?[0-9]+$"}),
        "classes" => {
            let classes: String =
                Class::ALL.into_iter().filter(|class| class.is_repairable()).map(|class| name(class) + "|").collect();
            json!({"type": "array", "items": one_of(&classes)})
        }
        names => one_of(names),
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
