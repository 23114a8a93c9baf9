//! Comparisons: ask for them, look at them, end them.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::http::StatusCode;
use cdc_model::TokenRange;
use cdc_postgres::Strategy;
use cdc_postgres::ledger::{Cancelled, Job, JobFilter, MismatchFilter, Page, Paused, RANGES, Resumed, Wish};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Field;
use super::answer::{Answer, Body, Id, Params, Problem, Slice, check_times, json, names, ok};
use crate::Class;
use crate::service::found::name;
use crate::service::{Service, Shared, watch};

/// Who did it, in the audit log.
pub(super) const ACTOR: &str = "api";
/// Of a job, in one answer.
const MISMATCHES: i64 = 1_000;
const SAMPLE: usize = 10;
/// Percent of rows; more than that raises an alert.
const CRITICAL: f64 = 5.0;

names!(Priority: High = "HIGH", Normal = "NORMAL", Low = "LOW");
names!(Status: Queued = "QUEUED", Running = "RUNNING", Paused = "PAUSED", Completed = "COMPLETED", Failed = "FAILED", Cancelled = "CANCELLED");
names!(JobType: Manual = "MANUAL_ONDEMAND", Scheduled = "SCHEDULED", Repair = "REPAIR");

const STRATEGIES: &str = "CHECKSUM|VERSION|ROW_COUNT|";

pub(super) const TRIGGER: &[Field] = &[
    ("tables", "texts"),
    ("validation_strategy", STRATEGIES),
    ("priority", Priority::NAMES),
    ("range", "range"),
    ("max_seconds", "count"),
    ("repair", "classes"),
    ("repair_dry_run", "boolean"),
];
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trigger {
    tables: Option<Vec<String>>,
    validation_strategy: Option<Strategy>,
    priority: Option<Priority>,
    range: Option<String>,
    max_seconds: Option<u64>,
    repair: Option<Vec<Class>>,
    repair_dry_run: Option<bool>,
}

pub(super) fn disabled() -> Problem {
    Problem::unavailable("RECONCILIATION_DISABLED", "comparisons are switched off by reconciler.enabled")
}

/// Two tokens, as `START:END`.
fn range(text: &str) -> Option<TokenRange> {
    let (start, end) = text.split_once(':')?;
    let range = TokenRange { start: start.parse().ok()?, end: end.parse().ok()? };
    (range.start < range.end).then_some(range)
}

pub(super) async fn trigger(State(service): State<Shared>, Body(body): Body<Trigger>) -> Answer {
    let config = &service.settings.reconciler;
    if !config.enabled {
        return Err(disabled());
    }
    if body.max_seconds == Some(0) {
        return Err(Problem::bad("INVALID_BODY", "max_seconds is 0: use 1 or more, or leave it out"));
    }
    if let Some(class) = body.repair.iter().flatten().find(|class| !class.is_repairable()) {
        let classes: Vec<String> = Class::ALL.into_iter().filter(|class| class.is_repairable()).map(name).collect();
        let message = format!("repair has {}, which cannot be repaired: use {}", name(*class), classes.join(", "));
        return Err(Problem::bad("INVALID_REPAIR", message));
    }
    let range = match &body.range {
        None => TokenRange::RING,
        Some(text) => range(text).ok_or_else(|| {
            let message = "range must be START:END, two tokens, the first one less, as in -100:100";
            Problem::bad("INVALID_RANGE", message)
        })?,
    };
    let options = config.job_options(body.repair, body.repair_dry_run, body.max_seconds);
    let known = service.tables().await?;
    let mut tables: Vec<_> = match body.tables {
        None => known,
        Some(names) => names.iter().map(|name| find(&known, name)).collect::<Result<_, _>>()?,
    };
    if tables.is_empty() {
        let message = "there is nothing to compare: name a table, or leave `tables` out once one has had changes";
        return Err(Problem::bad("INVALID_TABLE", message));
    }
    let mut seen = BTreeSet::new();
    tables.retain(|table| seen.insert(table.clone()));
    let strategy = body.validation_strategy.unwrap_or(config.strategy);
    let priority = body.priority.unwrap_or(Priority::Normal).name();
    let wishes: Vec<Wish<'_>> = tables
        .iter()
        .map(|(keyspace, table)| Wish { keyspace, table, strategy, priority, range, options: options.clone() })
        .collect();
    let requested = service.ledger.request(&wishes, ACTOR).await?;
    service.work.notify_waiters();
    let status = |is_new: bool, is_paused: bool| match (is_new, is_paused) {
        (true, _) => "RUNNING",
        (false, true) => "PAUSED",
        (false, false) => "ALREADY_RUNNING",
    };
    let new = requested.iter().filter(|one| one.is_new).count();
    let jobs: Vec<Value> = tables
        .iter()
        .zip(&requested)
        .map(|((keyspace, table), one)| {
            json!({"job_id": one.job, "keyspace": keyspace, "table_name": table, "status": status(one.is_new, one.is_paused)})
        })
        .collect();
    let running = requested.len() - new;
    let answer = json!({
        "job_ids": requested.iter().map(|one| one.job).collect::<Vec<_>>(),
        "status": status(new > 0, requested.iter().all(|one| one.is_paused)),
        "message": format!("{new} comparisons begin, {running} of these tables had one already"),
        "jobs": jobs,
    });
    Ok(json(StatusCode::ACCEPTED, &answer))
}

/// A table by its name, or by keyspace and name.
fn find(known: &[(String, String)], name: &str) -> Result<(String, String), Problem> {
    let is_it = |(keyspace, table): &&(String, String)| match name.split_once('.') {
        Some((wanted, name)) => keyspace == wanted && table == name,
        None => table == name,
    };
    let found: Vec<_> = known.iter().filter(is_it).collect();
    let list: Vec<String> = known.iter().map(|(keyspace, table)| format!("{keyspace}.{table}")).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let message = format!("table `{name}` is not one of those that are compared: {}", list.join(", "));
            Err(Problem::bad("INVALID_TABLE", message).with("valid_tables", list))
        }
        _ => {
            let message = format!("several keyspaces have a table `{name}`: write keyspace.{name}");
            Err(Problem::bad("INVALID_TABLE", message).with("valid_tables", list))
        }
    }
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

#[cfg(test)]
mod tests {
    use cdc_postgres::ledger::JobKind;

    use super::*;

    #[test]
    fn strategies_are_those_of_postgres() {
        assert_eq!(STRATEGIES, Strategy::ALL.map(|strategy| format!("{}|", strategy.name())).concat());
    }

    #[test]
    fn job_types_are_those_of_the_ledger() {
        let names = [JobType::Manual, JobType::Scheduled, JobType::Repair].map(JobType::name);
        assert_eq!(names, JobKind::ALL.map(JobKind::name));
    }

    #[test]
    fn a_range_is_two_tokens_in_order() {
        assert_eq!(range("-9223372036854775808:0"), Some(TokenRange { start: i64::MIN, end: 0 }));
        for wrong in ["", "1", "1:", "2:1", "1:1", "a:b", "1:2:3", "0:9223372036854775808"] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_table_is_found_by_its_name_where_that_is_enough() {
        let known = [("bank", "users"), ("shop", "orders"), ("shop", "users")];
        let known = known.map(|(keyspace, name)| (keyspace.to_owned(), name.to_owned()));
        assert_eq!(find(&known, "orders").ok(), Some(known[1].clone()));
        assert_eq!(find(&known, "bank.users").ok(), Some(known[0].clone()));
        for wrong in ["users", "carts", "bank.orders", ""] {
            assert!(find(&known, wrong).is_err(), "{wrong}");
        }
    }
}
