//! Rows proven wrong, and what was done about them.

use axum::extract::State;
use axum::http::StatusCode;
use cdc_postgres::ledger::{Mismatch, MismatchFilter, RepairWish, Resolution};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Field;
use super::answer::{Answer, Body, Id, Params, Problem, Slice, check_times, json, names, ok};
use super::jobs::{ACTOR, disabled, split};
use crate::Class;
use crate::service::config::Policy;
use crate::service::engine::Unavailable;
use crate::service::found::name;
use crate::service::{Service, Shared};

/// Characters of a note.
pub(super) const NOTES_MAX: usize = 1_000;

names!(MismatchType: MissingInPostgres = "MISSING_IN_POSTGRES", MissingInCassandra = "MISSING_IN_CASSANDRA",
    DataMismatch = "DATA_MISMATCH");
names!(Status: Pending = "PENDING", AutoResolved = "AUTO_RESOLVED", ManualResolved = "MANUAL_RESOLVED",
    Ignored = "IGNORED");

pub(super) const QUERY: &[Field] = &[
    ("table", "text"),
    ("mismatch_type", MismatchType::NAMES),
    ("resolution_status", Status::NAMES),
    ("job_id", "uuid"),
    ("awaiting_repair", "boolean"),
    ("from_date", "time"),
    ("to_date", "time"),
    super::PAGE[0],
    super::PAGE[1],
    super::PAGE[2],
    super::PAGE[3],
];
pub(super) const REPAIR: &[Field] = &[("dry_run", "boolean")];
pub(super) const RESOLVE: &[Field] =
    &[("resolution_status", "MANUAL_RESOLVED|IGNORED|!"), ("resolution_notes", "notes")];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    table: Option<String>,
    mismatch_type: Option<MismatchType>,
    resolution_status: Option<Status>,
    job_id: Option<Uuid>,
    awaiting_repair: Option<bool>,
    from_date: Option<String>,
    to_date: Option<String>,
    limit: Option<u32>,
    offset: Option<u32>,
    page: Option<u32>,
    page_size: Option<u32>,
}

pub(super) async fn list(State(service): State<Shared>, Params(query): Params<Query>) -> Answer {
    check_times(&service, [&query.from_date, &query.to_date]).await?;
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
        awaits: query.awaiting_repair.map(|awaits| (awaits, service.settings.reconciler.repair.classes(Policy::Ask))),
    };
    let (found, total) = service.ledger.mismatches(&filter, slice.page()).await?;
    ok(&slice.list("mismatches", found.iter().map(|one| describe(&service, one)).collect(), total))
}

/// The members of a mismatch; rows' contents are there for older clients, and always null: nobody can be told from anybody who
/// may see them.
pub(super) fn describe(service: &Service, mismatch: &Mismatch) -> Value {
    let mut value = json!(mismatch);
    let asked = service.settings.reconciler.repair.classes(Policy::Ask);
    value["awaiting_repair"] = (mismatch.resolution_status == "PENDING" && asked.contains(&mismatch.class)).into();
    for name in ["cassandra_data", "postgres_data"] {
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
        Some(mismatch) => ok(&describe(&service, &mismatch)),
        None => Err(Problem::unknown("mismatch", id)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Repair {
    dry_run: Option<bool>,
}

/// Every class may be repaired, because a person has named the row; the job judges it anew.
pub(super) async fn repair(State(service): State<Shared>, Id(id): Id, Body(body): Body<Repair>) -> Answer {
    let dry_run = body.dry_run.unwrap_or_default();
    let config = &service.settings.reconciler;
    if !config.enabled {
        return Err(disabled());
    }
    let mismatch = service.ledger.mismatch(id).await?.ok_or_else(|| Problem::unknown("mismatch", id))?;
    if mismatch.resolution_status != "PENDING" {
        let status = mismatch.resolution_status;
        let problem = Problem::new(StatusCode::CONFLICT, "ALREADY_RESOLVED", format!("the mismatch is {status}"));
        return Err(problem.with("resolution_status", status));
    }
    if mismatch.class == name(Class::InDlq) {
        let message = "the row's change is a dead letter: replay it by POST /dlq/replay";
        return Err(Problem::new(StatusCode::CONFLICT, "NOT_REPAIRABLE", message));
    }
    let starting = || Problem::unavailable("STARTING", "PostgreSQL has not answered yet");
    let engine = service.engine.get().ok_or_else(starting)?;
    let table = Box::pin(engine.table(&service, &mismatch.keyspace, &mismatch.table_name)).await;
    table.map_err(|Unavailable(why)| Problem::unavailable("CASSANDRA_UNAVAILABLE", why))?;
    let wish = RepairWish {
        classes: Class::ALL.into_iter().filter(|class| class.is_repairable()).map(name).collect(),
        // Of the row's partition, at least the row itself.
        max_share_percent: 100.0,
        rows_per_second: config.repair.rows_per_second,
        dry_run,
        only: Some(mismatch.key_sha256.clone()),
    };
    let requested = service.ledger.request_repair(&mismatch, wish, ACTOR).await?;
    service.work.notify_waiters();
    let status = if requested.is_new { "RUNNING" } else { "ALREADY_RUNNING" };
    let answer = json!({"job_id": requested.job, "mismatch_id": id, "status": status, "dry_run": dry_run});
    Ok(json(StatusCode::ACCEPTED, &answer))
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
