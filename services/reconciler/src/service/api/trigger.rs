//! Comparisons that are asked for.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::http::StatusCode;
use cdc_model::TokenRange;
use cdc_postgres::ledger::{JobOptions, JobStrategy, SampleWish, Wish, WrittenWish};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Field;
use super::answer::{Answer, Body, Problem, json, names};
use super::jobs::{ACTOR, disabled};
use crate::service::config::{SAMPLE_PERCENT, WRITTEN_WITHIN};
use crate::service::engine::Unavailable;
use crate::service::found::name;
use crate::service::schedule::now;
use crate::service::{Service, Shared};
use crate::{Class, Scope};

names!(Priority: High = "HIGH", Normal = "NORMAL", Low = "LOW");

const STRATEGIES: &str = "CHECKSUM|VERSION|ROW_COUNT|SAMPLE|TIMESTAMP_RANGE|";

pub(super) const BODY: &[Field] = &[
    ("tables", "texts"),
    ("validation_strategy", STRATEGIES),
    ("priority", Priority::NAMES),
    ("range", "range"),
    ("partition", "key"),
    ("sample_percent", "share"),
    ("seed", "seed"),
    ("written_from", "moment"),
    ("written_to", "moment"),
    ("max_seconds", "count"),
    ("repair", "classes"),
    ("repair_dry_run", "boolean"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trigger {
    tables: Option<Vec<String>>,
    validation_strategy: Option<JobStrategy>,
    priority: Option<Priority>,
    range: Option<String>,
    partition: Option<Value>,
    sample_percent: Option<f64>,
    seed: Option<u32>,
    written_from: Option<Moment>,
    written_to: Option<Moment>,
    max_seconds: Option<u64>,
    repair: Option<Vec<Class>>,
    repair_dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a time such as 2026-11-21T10:00Z, or microseconds since 1970")]
enum Moment {
    Micros(i64),
    Time(String),
}

impl Moment {
    async fn micros(&self, service: &Service) -> Result<i64, Problem> {
        match self {
            Self::Micros(micros) => Ok(*micros),
            Self::Time(time) => Ok(service.ledger.micros(time).await?),
        }
    }
}

/// Two tokens, as `START:END`.
fn range(text: &str) -> Option<TokenRange> {
    let (start, end) = text.split_once(':')?;
    let range = TokenRange { start: start.parse().ok()?, end: end.parse().ok()? };
    (range.start < range.end).then_some(range)
}

pub(super) async fn trigger(State(service): State<Shared>, Body(mut body): Body<Trigger>) -> Answer {
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
    let strategy = body.validation_strategy.unwrap_or(config.strategy.into());
    let sample = body.sample(strategy)?;
    let written = body.written(&service, strategy).await?;
    let known = service.tables().await?;
    let mut tables: Vec<_> = match &body.tables {
        None => known,
        Some(names) => names.iter().map(|name| find(&known, name)).collect::<Result<_, _>>()?,
    };
    if tables.is_empty() {
        let message = "there is nothing to compare: name a table, or leave `tables` out once one has had changes";
        return Err(Problem::bad("INVALID_TABLE", message));
    }
    let mut seen = BTreeSet::new();
    tables.retain(|table| seen.insert(table.clone()));
    let range = body.range(&service, strategy, &tables).await?;
    let options =
        JobOptions { sample, written, ..config.job_options(body.repair.take(), body.repair_dry_run, body.max_seconds) };
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

impl Trigger {
    fn sample(&self, strategy: JobStrategy) -> Result<Option<SampleWish>, Problem> {
        if strategy != JobStrategy::Sample {
            let given = self.sample_percent.map(|_| "sample_percent").or(self.seed.map(|_| "seed"));
            return given.map_or(Ok(None), |field| Err(only_with(field, JobStrategy::Sample, strategy)));
        }
        let percent = self.sample_percent.unwrap_or(SAMPLE_PERCENT);
        if percent <= 0.0 || percent > 100.0 {
            let message = format!("sample_percent is {percent}: use a number above 0, up to 100");
            return Err(Problem::bad("INVALID_SAMPLE", message));
        }
        Ok(Some(SampleWish { percent, seed: self.seed.unwrap_or_else(rand::random) }))
    }

    async fn written(&self, service: &Service, strategy: JobStrategy) -> Result<Option<WrittenWish>, Problem> {
        if strategy != JobStrategy::TimestampRange {
            let given = self.written_from.as_ref().map(|_| "written_from");
            let given = given.or(self.written_to.as_ref().map(|_| "written_to"));
            return given.map_or(Ok(None), |field| Err(only_with(field, JobStrategy::TimestampRange, strategy)));
        }
        let to = match &self.written_to {
            Some(to) => to.micros(service).await?,
            None => now().saturating_mul(1_000_000),
        };
        let from = match &self.written_from {
            Some(from) => from.micros(service).await?,
            None => to.saturating_sub(i64::try_from(WRITTEN_WITHIN.as_micros()).unwrap_or(i64::MAX)),
        };
        if from >= to {
            let message = "written_from must be before written_to, which is not among the times";
            return Err(Problem::bad("INVALID_TIME", message));
        }
        Ok(Some(WrittenWish { from, to }))
    }

    async fn range(
        &self,
        service: &Service,
        strategy: JobStrategy,
        tables: &[(String, String)],
    ) -> Result<TokenRange, Problem> {
        let Some(partition) = &self.partition else {
            return self.range.as_deref().map_or(Ok(TokenRange::RING), |text| {
                let message = "range must be START:END, two tokens, the first one less, as in -100:100";
                range(text).ok_or_else(|| Problem::bad("INVALID_RANGE", message))
            });
        };
        let invalid = |message: String| Problem::bad("INVALID_PARTITION", message);
        if self.range.is_some() || strategy == JobStrategy::Sample {
            let other = if self.range.is_some() { "range" } else { "strategy SAMPLE" };
            return Err(invalid(format!("partition names what is compared, and so does {other}: use one of them")));
        }
        let [(keyspace, table)] = tables else {
            return Err(invalid(format!("partition is of one table, and there are {}: name one", tables.len())));
        };
        let starting = || Problem::unavailable("STARTING", "PostgreSQL has not answered yet");
        let engine = service.engine.get().ok_or_else(starting)?;
        let table = Box::pin(engine.table(service, keyspace, table)).await;
        let table = table.map_err(|Unavailable(why)| Problem::unavailable("CASSANDRA_UNAVAILABLE", why))?;
        // A text is as on the command line, where JSON is known, too.
        let text = partition.as_str().map_or_else(|| partition.to_string(), str::to_owned);
        let key =
            (service.settings.read_key)(&table, &text).map_err(|problem| invalid(format!("partition: {problem}")))?;
        Ok(Scope::partition(table, &key).range)
    }
}

fn only_with(field: &str, wanted: JobStrategy, strategy: JobStrategy) -> Problem {
    let (wanted, strategy) = (wanted.name(), strategy.name());
    let message =
        format!("{field} belongs to validation_strategy {wanted}, and it is {strategy}: use that, or leave it out");
    Problem::bad("INVALID_BODY", message)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_are_those_of_the_ledger() {
        assert_eq!(STRATEGIES, JobStrategy::ALL.map(|strategy| format!("{}|", strategy.name())).concat());
        for strategy in JobStrategy::ALL {
            assert_eq!(serde_json::from_value::<JobStrategy>(json!(strategy.name())).unwrap(), strategy);
        }
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
