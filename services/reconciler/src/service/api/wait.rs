//! The barrier as a service.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use cdc_cassandra::checks::Wanted;
use serde::Deserialize;
use serde_json::json;

use super::Field;
use super::answer::{Answer, Body, Problem, ok};
use crate::barrier::BarrierError;
use crate::service::Shared;
use crate::service::engine::{Unavailable, sentence};

/// Seconds, unless the call says otherwise.
const TIMEOUT: f64 = 30.0;
pub(super) const TIMEOUT_MIN: f64 = 1.0;
pub(super) const TIMEOUT_MAX: f64 = 300.0;

pub(super) const BARRIER: &[Field] = &[("tables", "texts"), ("timeout_seconds", "seconds")];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    tables: Option<Vec<String>>,
    timeout_seconds: Option<f64>,
}

pub(super) async fn barrier(State(service): State<Shared>, Body(body): Body<Wait>) -> Answer {
    let seconds = body.timeout_seconds.unwrap_or(TIMEOUT);
    if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&seconds) {
        let message = format!("timeout_seconds is {seconds}: use {TIMEOUT_MIN} to {TIMEOUT_MAX}");
        return Err(Problem::bad("INVALID_BODY", message));
    }
    let captured = &service.settings.captured;
    let table = |text: &String| {
        let table = Wanted::parse(text).ok_or_else(|| {
            Problem::bad("INVALID_TABLE", format!("`{text}` is neither `keyspace.table` nor `keyspace.*`"))
        })?;
        let covers =
            |entry: &Wanted| entry.keyspace == table.keyspace && (entry.table.is_none() || entry.table == table.table);
        match captured.iter().any(covers) {
            true => Ok(table),
            false => Err(Problem::bad("INVALID_TABLE", format!("table `{text}` is not among source.tables"))),
        }
    };
    let tables = body.tables.map(|tables| tables.iter().map(table).collect::<Result<Vec<_>, _>>()).transpose()?;
    let starting = || Problem::unavailable("STARTING", "PostgreSQL has not answered yet");
    let engine = service.engine.get().ok_or_else(starting)?;
    let passing = engine.pass(&service, tables.as_deref(), Duration::from_secs_f64(seconds));
    let unavailable = |Unavailable(why)| Problem::unavailable("BARRIER_UNAVAILABLE", why);
    match Box::pin(passing).await.map_err(unavailable)? {
        Ok(passed) => {
            let milliseconds = passed.round_trip.as_secs_f64() * 1_000.0;
            ok(&json!({"passed": true, "barrier_id": passed.id, "nodes": passed.nodes, "round_trip_ms": milliseconds}))
        }
        Err(BarrierError::TimedOut { after, missing }) => {
            let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
            let message = format!("not everything has arrived within {after:?}: {}", missing.join("; "));
            let problem = Problem::new(StatusCode::GATEWAY_TIMEOUT, "BARRIER_TIMED_OUT", message);
            Err(problem.with("passed", false).with("missing", missing))
        }
        Err(error) => Err(unavailable(Unavailable(sentence(&error)))),
    }
}
