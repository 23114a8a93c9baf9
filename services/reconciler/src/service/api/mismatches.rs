//! Rows proven wrong, and what was done about them.

use axum::extract::State;
use cdc_postgres::ledger::{Mismatch, MismatchFilter, Resolution};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::answer::{Answer, Body, Id, Params, Problem, Slice, names, ok};
use super::jobs::{ACTOR, split};
use crate::service::Shared;

/// Characters of a note.
pub(super) const NOTES_MAX: usize = 1_000;

names!(MismatchType: MissingInPostgres = "MISSING_IN_POSTGRES", MissingInCassandra = "MISSING_IN_CASSANDRA",
    DataMismatch = "DATA_MISMATCH");
names!(Status: Pending = "PENDING", AutoResolved = "AUTO_RESOLVED", ManualResolved = "MANUAL_RESOLVED",
    Ignored = "IGNORED");

pub(super) const QUERY: &[&str] = &[
    "table",
    "mismatch_type",
    "resolution_status",
    "job_id",
    "from_date",
    "to_date",
    super::PAGE[0],
    super::PAGE[1],
    super::PAGE[2],
    super::PAGE[3],
];
pub(super) const RESOLVE: &[(&str, &str)] = &[("resolution_status", "string!"), ("resolution_notes", "string")];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    table: Option<String>,
    mismatch_type: Option<MismatchType>,
    resolution_status: Option<Status>,
    job_id: Option<Uuid>,
    from_date: Option<String>,
    to_date: Option<String>,
    limit: Option<u32>,
    offset: Option<u32>,
    page: Option<u32>,
    page_size: Option<u32>,
}

pub(super) async fn list(State(service): State<Shared>, Params(query): Params<Query>) -> Answer {
    let slice = Slice::of(query.limit, query.offset, query.page, query.page_size)?;
    let (keyspace, table) = split(query.table);
    let filter = MismatchFilter {
        mismatch: None,
        job: query.job_id,
        keyspace,
        table,
        mismatch_type: query.mismatch_type.map(|kind| kind.name().to_owned()),
        resolution_status: query.resolution_status.map(|status| status.name().to_owned()),
        since: query.from_date,
        until: query.to_date,
    };
    let (found, total) = service.ledger.mismatches(&filter, slice.page()).await?;
    ok(&slice.list("mismatches", found.iter().map(describe).collect(), total))
}

/// The members of a mismatch; those about rows' contents are there for older clients, and always empty.
pub(super) fn describe(mismatch: &Mismatch) -> Value {
    let mut value = json!(mismatch);
    for name in ["cassandra_checksum", "postgres_checksum", "cassandra_data", "postgres_data"] {
        value[name] = Value::Null;
    }
    value
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resolve {
    resolution_status: Status,
    resolution_notes: Option<String>,
}

pub(super) async fn resolve(State(service): State<Shared>, Id(id): Id, Body(body): Body<Resolve>) -> Answer {
    if !matches!(body.resolution_status, Status::ManualResolved | Status::Ignored) {
        let message = format!(
            "resolution_status is {}, which only a comparison can say: use MANUAL_RESOLVED or IGNORED",
            body.resolution_status.name()
        );
        return Err(Problem::bad("INVALID_RESOLUTION", message));
    }
    let notes = notes(body.resolution_notes)?;
    let resolution = Resolution { status: body.resolution_status.name(), notes: notes.as_deref(), by: ACTOR };
    match service.ledger.resolve(id, &resolution).await? {
        Some(mismatch) => ok(&describe(&mismatch)),
        None => Err(Problem::unknown("mismatch", id)),
    }
}

/// A note that is not too long to keep.
pub(super) fn notes(notes: Option<String>) -> Result<Option<String>, Problem> {
    let length = notes.as_ref().map_or(0, |notes| notes.chars().count());
    if length > NOTES_MAX || notes.as_ref().is_some_and(|notes| notes.contains('\0')) {
        let message = format!("resolution_notes has {length} characters: use at most {NOTES_MAX}, and no NUL");
        return Err(Problem::bad("INVALID_NOTES", message));
    }
    Ok(notes)
}
