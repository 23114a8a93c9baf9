//! Dead letters.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use cdc_postgres::ledger::ReplayWish;
use cdc_postgres::{DeadLetter, ErrorType, LetterFilter, LetterStatus, Target};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Field;
use super::answer::{Answer, Body, Id, Params, Problem, Slice, check_times, json, names, ok};
use super::jobs::ACTOR;
use super::mismatches::notes;
use crate::service::{Service, Shared};

names!(Status: Pending = "PENDING", AutoResolved = "AUTO_RESOLVED", Ignored = "IGNORED");
names!(RetryStrategy: Immediate = "immediate", Scheduled = "scheduled", RateLimited = "rate_limited", Batch = "batch");

const ERRORS: &str = "SCHEMA_MISMATCH|TYPE_CONVERSION|CONSTRAINT_VIOLATION|VALUE_OUT_OF_RANGE|DECODE_ERROR|UNKNOWN|";

pub(super) const QUERY: &[Field] = &[
    ("error_type", ERRORS),
    ("resolution_status", Status::NAMES),
    ("table", "text"),
    ("start_date", "time"),
    ("end_date", "time"),
    super::PAGE[0],
    super::PAGE[1],
    super::PAGE[2],
    super::PAGE[3],
];
pub(super) const REPLAY: &[Field] = &[
    ("error_type", ERRORS),
    ("dlq_ids", "uuids"),
    ("table", "text"),
    ("start_date", "time"),
    ("end_date", "time"),
    ("limit", "count"),
    ("retry_strategy", RetryStrategy::NAMES),
    ("scheduled_time", "time"),
    ("dry_run", "boolean"),
    ("resolution_notes", "notes"),
];
pub(super) const DISCARD: &[Field] = &[
    ("error_type", ERRORS),
    ("dlq_ids", "uuids"),
    ("table", "text"),
    ("start_date", "time"),
    ("end_date", "time"),
    ("limit", "count"),
    ("dry_run", "boolean"),
    ("resolution_notes", "notes"),
];

impl Status {
    const ALL: [Self; 3] = [Self::Pending, Self::AutoResolved, Self::Ignored];

    fn of_letter(self) -> LetterStatus {
        match self {
            Self::Pending => LetterStatus::Unresolved,
            Self::AutoResolved => LetterStatus::Resolved,
            Self::Ignored => LetterStatus::Discarded,
        }
    }

    /// By its name in `_cdc.dlq`.
    fn shown(name: &str) -> &str {
        Self::ALL.into_iter().find(|status| status.of_letter().name() == name).map_or(name, |status| status.name())
    }
}

fn target(service: &Service) -> Result<&Target, Problem> {
    let engine = service.engine.get();
    let starting = || Problem::unavailable("STARTING", "PostgreSQL has not answered yet");
    Ok(&engine.ok_or_else(starting)?.letters.target)
}

/// A table by its name alone, where that is enough; else what is given, as the name of a topic.
async fn full_name(service: &Service, table: Option<String>) -> Result<Option<String>, Problem> {
    let Some(name) = table.as_ref().filter(|name| !name.contains('.')) else { return Ok(table) };
    let known = service.tables().await?;
    let mut found = known.iter().filter(|(_, table)| table == name);
    Ok(match (found.next(), found.next()) {
        (Some((keyspace, name)), None) => Some(format!("{keyspace}.{name}")),
        _ => table,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    error_type: Option<ErrorType>,
    resolution_status: Option<Status>,
    table: Option<String>,
    start_date: Option<String>,
    end_date: Option<String>,
    limit: Option<u32>,
    offset: Option<u32>,
    page: Option<u32>,
    page_size: Option<u32>,
}

pub(super) async fn records(State(service): State<Shared>, Params(query): Params<Query>) -> Answer {
    check_times(&service, [&query.start_date, &query.end_date]).await?;
    let slice = Slice::of(query.limit, query.offset, query.page, query.page_size)?;
    let filter = LetterFilter {
        ids: Vec::new(),
        table: full_name(&service, query.table).await?,
        error_type: query.error_type,
        status: query.resolution_status.map(Status::of_letter),
        since: query.start_date,
        until: query.end_date,
        limit: Some(slice.limit),
        offset: slice.offset,
    };
    let target = target(&service)?;
    let letters = target.dead_letters(&filter, false).await?;
    let total = target.count_dead_letters(&filter).await?;
    ok(&slice.list("records", letters.iter().map(describe).collect(), total))
}

fn describe(letter: &DeadLetter) -> Value {
    json!({
        "dlq_id": letter.id,
        "source_table": letter.table,
        "column": letter.column,
        "kind": letter.kind,
        "error_type": letter.error_type,
        "error_code": letter.code,
        "error_message": letter.message,
        "retry_count": letter.attempts,
        "dlq_timestamp": letter.first_failed_at,
        "first_failed_at": letter.first_failed_at,
        "last_retry_at": letter.last_failed_at,
        "resolution_status": Status::shown(&letter.status),
        "resolution_notes": letter.resolution,
        "resolved_at": letter.resolved_at,
        "source_component": letter.source_component,
        "original_topic": letter.original_topic,
        "original_partition": letter.original_partition,
        "original_offset": letter.original_offset,
        "history": letter.history,
    })
}

pub(super) async fn stats(State(service): State<Shared>) -> Answer {
    let summaries = target(&service)?.dead_letter_summary(&LetterFilter::default()).await?;
    let count = |of: &dyn Fn(&cdc_postgres::LetterSummary) -> String| {
        let mut counts = BTreeMap::<String, i64>::new();
        for summary in &summaries {
            *counts.entry(of(summary)).or_default() += summary.letters;
        }
        counts
    };
    ok(&json!({
        "total_records": summaries.iter().map(|summary| summary.letters).sum::<i64>(),
        "by_error_type": count(&|summary| summary.error_type.name().to_owned()),
        "by_resolution_status": count(&|summary| Status::shown(&summary.status).to_owned()),
        "by_table": count(&|summary| summary.table.clone().unwrap_or_default()),
    }))
}

/// Which letters; something must be said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Replay {
    error_type: Option<ErrorType>,
    dlq_ids: Option<Vec<Uuid>>,
    table: Option<String>,
    start_date: Option<String>,
    end_date: Option<String>,
    limit: Option<u32>,
    retry_strategy: Option<RetryStrategy>,
    scheduled_time: Option<String>,
    dry_run: Option<bool>,
    resolution_notes: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Discard {
    error_type: Option<ErrorType>,
    dlq_ids: Option<Vec<Uuid>>,
    table: Option<String>,
    start_date: Option<String>,
    end_date: Option<String>,
    limit: Option<u32>,
    dry_run: Option<bool>,
    resolution_notes: Option<String>,
}

/// The unresolved letters that a call is about, oldest first.
async fn unresolved(service: &Service, filter: LetterFilter, ids: Option<&Vec<Uuid>>) -> Result<Vec<Uuid>, Problem> {
    let LetterFilter { table, error_type, since, until, limit, .. } = &filter;
    let is_open = table.is_none() && error_type.is_none() && since.is_none() && until.is_none() && ids.is_none();
    if is_open {
        let message = "say which dead letters: error_type, dlq_ids, table, start_date or end_date";
        return Err(Problem::bad("NO_SELECTOR", message));
    }
    if *limit == Some(0) {
        return Err(Problem::bad("INVALID_BODY", "limit is 0: use 1 or more, or leave it out"));
    }
    check_times(service, [&filter.since, &filter.until]).await?;
    if ids.is_some_and(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let table = full_name(service, filter.table.clone()).await?;
    let filter = LetterFilter { table, status: Some(LetterStatus::Unresolved), ..filter };
    Ok(target(service)?.dead_letter_ids(&filter).await?)
}

pub(super) async fn replay(State(service): State<Shared>, Body(body): Body<Replay>) -> Answer {
    let strategy = body.retry_strategy.unwrap_or(RetryStrategy::Immediate);
    if (strategy == RetryStrategy::Scheduled) != body.scheduled_time.is_some() {
        let message = "scheduled_time belongs to retry_strategy `scheduled`: give both or neither";
        return Err(Problem::bad("INVALID_BODY", message));
    }
    let notes = notes(body.resolution_notes)?;
    let dry_run = body.dry_run.unwrap_or_default();
    let ids = body.dlq_ids;
    let filter = LetterFilter {
        ids: ids.clone().unwrap_or_default(),
        table: body.table,
        error_type: body.error_type,
        since: body.start_date,
        until: body.end_date,
        limit: body.limit,
        ..LetterFilter::default()
    };
    let letters = unresolved(&service, filter, ids.as_ref()).await?;
    let wish = ReplayWish {
        letters: &letters,
        strategy: strategy.name(),
        not_before: body.scheduled_time.as_deref(),
        dry_run,
        notes: notes.as_deref(),
        by: ACTOR,
    };
    let id = service.ledger.request_replay(&wish).await?;
    service.work.notify_waiters();
    let matched = letters.len();
    let answer = json!({
        "replay_id": id,
        "status": if matched == 0 { "completed" } else { "queued" },
        "matched": matched,
        "retry_strategy": strategy.name(),
        "dry_run": dry_run,
        "message": format!("{matched} dead letters are to be applied again; GET /dlq/replay/{id} says what became of them"),
    });
    Ok(json(StatusCode::ACCEPTED, &answer))
}

pub(super) async fn replayed(State(service): State<Shared>, Id(id): Id) -> Answer {
    match service.ledger.replay(id).await? {
        Some(replay) => ok(&json!(replay)),
        None => Err(Problem::unknown("replay", id)),
    }
}

pub(super) async fn discard(State(service): State<Shared>, Body(body): Body<Discard>) -> Answer {
    let notes = notes(body.resolution_notes)?;
    let dry_run = body.dry_run.unwrap_or_default();
    let ids = body.dlq_ids;
    let filter = LetterFilter {
        ids: ids.clone().unwrap_or_default(),
        table: body.table,
        error_type: body.error_type,
        since: body.start_date,
        until: body.end_date,
        limit: body.limit,
        ..LetterFilter::default()
    };
    let letters = unresolved(&service, filter, ids.as_ref()).await?;
    let matched = letters.len();
    let mut discarded = 0;
    if !dry_run && matched > 0 {
        let reason = notes.as_deref().unwrap_or("discarded over the API");
        discarded = target(&service)?.discard_dead_letters(letters, reason).await?;
        let detail = json!({"matched": matched, "discarded": discarded, "resolution_notes": notes});
        service.ledger.audit(ACTOR, "dlq discard", "dead letters", detail).await?;
    }
    ok(&json!({"matched": matched, "discarded": discarded, "dry_run": dry_run}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_types_are_those_of_dead_letters() {
        assert_eq!(ERRORS, ErrorType::ALL.map(|error_type| format!("{}|", error_type.name())).concat());
    }
}
