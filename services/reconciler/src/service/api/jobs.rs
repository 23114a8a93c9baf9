//! Comparisons: look at them, end them.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use cdc_postgres::ledger::{Cancelled, Job, JobFilter, MismatchFilter, Page, Paused, RANGES, Resumed};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Field;
use super::answer::{Answer, Id, Params, Problem, Slice, check_times, json, names, ok};
use crate::service::{Service, Shared, schedule, watch};

/// Who did it, in the audit log.
pub(super) const ACTOR: &str = "api";
/// Of a job, in one answer.
const MISMATCHES: i64 = 1_000;
const SAMPLE: usize = 10;
/// Percent of rows; more than that raises an alert.
const CRITICAL: f64 = 5.0;

names!(Status: Queued = "QUEUED", Running = "RUNNING", Paused = "PAUSED", Completed = "COMPLETED", Failed = "FAILED", Cancelled = "CANCELLED");
names!(JobType: Manual = "MANUAL_ONDEMAND", Scheduled = "SCHEDULED", Repair = "REPAIR");

pub(super) const QUERY: &[Field] = &[
    ("table", "text"),
    ("status", Status::NAMES),
    ("job_type", JobType::NAMES),
    ("from_date", "time"),
    ("to_date", "time"),
    super::PAGE[0],
    super::PAGE[1],
    super::PAGE[2],
    super::PAGE[3],
];

pub(super) fn disabled() -> Problem {
    Problem::unavailable("RECONCILIATION_DISABLED", "comparisons are switched off by reconciler.enabled")
}

/// `table` of a filter: `keyspace.table`, or `table` of whatever keyspace.
pub(super) fn split(table: Option<String>) -> (Option<String>, Option<String>) {
    match table.as_deref().and_then(|name| name.split_once('.')) {
        Some((keyspace, name)) => (Some(keyspace.to_owned()), Some(name.to_owned())),
        None => (None, table),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    table: Option<String>,
    status: Option<Status>,
    job_type: Option<JobType>,
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
    let filter = JobFilter {
        job: None,
        keyspace,
        table,
        status: query.status.map(|status| status.name().to_owned()),
        kind: query.job_type.map(|kind| kind.name().to_owned()),
        since: query.from_date,
        until: query.to_date,
    };
    let mut counts = service.ledger.count_jobs(&filter).await?;
    let total = match &filter.status {
        Some(status) => counts.remove(status).unwrap_or_default(),
        None => std::mem::take(&mut counts).values().sum(),
    };
    let jobs = service.ledger.jobs(&filter, slice.page()).await?;
    let mut answer = slice.list("jobs", jobs.iter().map(describe).collect(), total);
    answer["other_status_counts"] = json!(counts);
    ok(&answer)
}

fn describe(job: &Job) -> Value {
    let mut value = json!(job);
    value["range"] = json!({"start": job.range_start, "end": job.range_end});
    value["repair"] = job.options["repair"].clone();
    value["max_seconds"] = job.options["max_seconds"].clone();
    value["written"] = job.options["written"].clone();
    value["sample"] = job.sample.clone().unwrap_or_else(|| job.options["sample"].clone());
    let rows = job.cassandra_row_count.unwrap_or_default().unsigned_abs();
    let is_done = job.completed_at.is_some();
    let mut progress =
        job.progress.clone().unwrap_or_else(|| watch::of(rows, job.worked_seconds, job.ranges_done.into()));
    if is_done || job.status == "PAUSED" {
        progress["eta_seconds"] = Value::Null;
    }
    progress["ranges_done"] = job.ranges_done.into();
    progress["ranges_total"] = RANGES.into();
    value["progress"] = progress;
    value["alert_fired"] = job.drift_percentage.is_some_and(|drift| drift > CRITICAL).into();
    value
}

async fn job(service: &Service, id: Uuid) -> Result<Job, Problem> {
    let filter = JobFilter { job: Some(id), ..JobFilter::default() };
    let found = service.ledger.jobs(&filter, Page { limit: 1, offset: 0 }).await?.pop();
    found.ok_or_else(|| Problem::unknown("job", id))
}

pub(super) async fn show(State(service): State<Shared>, Id(id): Id) -> Answer {
    let mut answer = describe(&job(&service, id).await?);
    let filter = MismatchFilter { job: Some(id), ..MismatchFilter::default() };
    let (found, total) = service.ledger.mismatches(&filter, Page { limit: MISMATCHES, offset: 0 }).await?;
    let mut summary = BTreeMap::<&str, u64>::new();
    for (class, count) in answer["classes"].as_object().into_iter().flatten() {
        let of_type = match class.as_str() {
            "UNPROVEN" => continue,
            "MISSING_IN_POSTGRES" => "MISSING_IN_POSTGRES",
            "EXTRA" => "MISSING_IN_CASSANDRA",
            _ => "DATA_MISMATCH",
        };
        *summary.entry(of_type).or_default() += count.as_u64().unwrap_or_default();
    }
    let summary = json!(summary);
    let mismatches: Vec<Value> = found.iter().map(|one| super::mismatches::describe(&service, one)).collect();
    answer["mismatches_summary"] = summary;
    answer["sample_mismatches"] = mismatches.iter().take(SAMPLE).cloned().collect();
    answer["audit"] = json!(service.ledger.last_audit(&id.to_string()).await?);
    answer["mismatches_truncated"] = (total > MISMATCHES).into();
    if total > MISMATCHES {
        answer["next"] = format!("/reconciliation/mismatches?job_id={id}&limit=1000&offset={MISMATCHES}").into();
    }
    answer["mismatches"] = mismatches.into();
    ok(&answer)
}

pub(super) async fn cancel(State(service): State<Shared>, Id(id): Id) -> Answer {
    let cancelled = service.ledger.cancel_job(id, ACTOR).await?;
    let (code, status) = match cancelled {
        Cancelled::Unknown => return Err(Problem::unknown("job", id)),
        Cancelled::Ended(status) => return Err(ended(status)),
        Cancelled::Now => (StatusCode::OK, "CANCELLED"),
        Cancelled::Soon => (StatusCode::ACCEPTED, "CANCELLING"),
    };
    Ok(json(code, &json!({"job_id": id, "status": status})))
}

pub(super) async fn pause(State(service): State<Shared>, Id(id): Id) -> Answer {
    let (code, status) = match service.ledger.pause_job(id, ACTOR).await? {
        Paused::Unknown => return Err(Problem::unknown("job", id)),
        Paused::Ended(status) => return Err(ended(status)),
        Paused::Now => (StatusCode::OK, "PAUSED"),
        Paused::Soon => (StatusCode::ACCEPTED, "PAUSING"),
    };
    Ok(json(code, &json!({"job_id": id, "status": status})))
}

pub(super) async fn resume(State(service): State<Shared>, Id(id): Id) -> Answer {
    match service.ledger.resume_job(id, ACTOR).await? {
        Resumed::Unknown => Err(Problem::unknown("job", id)),
        Resumed::NotPaused(status) if matches!(status.as_str(), "QUEUED" | "RUNNING") => {
            let message = format!("the job is not paused: it is {status}");
            Err(Problem::new(StatusCode::CONFLICT, "NOT_PAUSED", message).with("job_status", status))
        }
        Resumed::NotPaused(status) => Err(ended(status)),
        Resumed::Now => {
            service.work.notify_waiters();
            ok(&json!({"job_id": id, "status": "QUEUED"}))
        }
    }
}

fn ended(status: String) -> Problem {
    let message = format!("the job has ended already: it is {status}");
    Problem::new(StatusCode::CONFLICT, "JOB_ENDED", message).with("job_status", status)
}

pub(super) async fn coverage(State(service): State<Shared>) -> Answer {
    let states = service.ledger.table_states().await?;
    let mut tables: Vec<Value> = Vec::new();
    for state in &states {
        tables.push(json!({"keyspace": state.keyspace, "table_name": state.table, "newest": state.newest,
            "whole": state.whole, "pending_mismatches": state.pending, "jobs": state.jobs}));
    }
    for (keyspace, name) in service.tables().await? {
        if !states.iter().any(|state| state.keyspace == keyspace && state.table == name) {
            tables.push(json!({"keyspace": keyspace, "table_name": name, "newest": null, "whole": null,
                "pending_mismatches": {}, "jobs": {}}));
        }
    }
    ok(&json!({"tables": tables}))
}

pub(super) async fn schedule(State(service): State<Shared>) -> Answer {
    ok(&json!({"schedule": schedule::list(&service).await?}))
}

#[cfg(test)]
mod tests {
    use cdc_postgres::ledger::JobKind;

    use super::*;

    #[test]
    fn job_types_are_those_of_the_ledger() {
        let names = [JobType::Manual, JobType::Scheduled, JobType::Repair].map(JobType::name);
        assert_eq!(names, JobKind::ALL.map(JobKind::name));
    }
}
