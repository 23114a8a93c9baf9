//! What `/metrics` and `/status` tell: read from storage again and again, so that neither waits and a restart shows the same.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cdc_postgres::ledger::TableState;
use cdc_runtime::admin::Report;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::watch::Watch;
use super::{Service, Shared};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);

pub(super) struct Figures {
    started: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    tables: Vec<TableState>,
    /// Why the last look failed; also before the first one.
    problem: Option<String>,
    /// Jobs this process runs, and of which table.
    running: Vec<(Uuid, String, Arc<Watch>)>,
}

impl Default for Figures {
    fn default() -> Self {
        let problem = Some("PostgreSQL has not answered yet".to_owned());
        Self { started: Instant::now(), inner: Mutex::new(Inner { problem, ..Inner::default() }) }
    }
}

impl Figures {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process runs a job.
    pub(super) fn begin(&self, job: Uuid, table: String, watch: Arc<Watch>) {
        self.inner().running.push((job, table, watch));
    }

    /// It does no longer.
    pub(super) fn end(&self, job: Uuid) {
        self.inner().running.retain(|(own, _, _)| *own != job);
    }
}

/// Looks until it is stopped.
pub(super) async fn keep(service: Shared, stop: CancellationToken) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        look(&service).await;
        stop.run_until_cancelled(tokio::time::sleep(EVERY)).await;
    }
    Ok(())
}

/// Looks now.
pub(super) async fn look(service: &Service) {
    let tables = service.ledger.table_states().await;
    let mut inner = service.figures.inner();
    match tables {
        Ok(tables) => {
            inner.tables = tables;
            inner.problem = None;
        }
        Err(error) => {
            if inner.problem.replace(error.to_string()).is_none() {
                warn!(%error, "what jobs have found cannot be read; trying again");
            }
        }
    }
}

impl Report for Service {
    fn status(&self) -> Value {
        let inner = self.figures.inner();
        let running: Vec<Value> = inner
            .running
            .iter()
            .map(|(job, table, watch)| json!({"job_id": job, "table": table, "progress": watch.progress()}))
            .collect();
        let mut status = json!({
            "role": "reconciler",
            "mode": if self.settings.kafka.is_some() { "kafka" } else { "direct" },
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.figures.started.elapsed().as_secs(),
            "ready": inner.problem.is_none(),
            "reconciler": {
                "enabled": self.settings.reconciler.enabled,
                "every_seconds": self.settings.reconciler.every().map(|every| every.as_secs()),
                "running": running,
                "tables": inner.tables.iter().map(|table| json!({
                    "table": format!("{}.{}", table.keyspace, table.table), "jobs": table.jobs, "pending": table.pending,
                })).collect::<Vec<_>>(),
            },
        });
        if let Some(problem) = &inner.problem {
            status["not_ready_because"] = problem.as_str().into();
        }
        status
    }

    fn ready(&self) -> Result<(), String> {
        self.figures.inner().problem.clone().map_or(Ok(()), Err)
    }

    fn metrics(&self, out: &mut String) {
        write_metrics(out, &self.figures.inner().tables);
    }
}

/// Writes a family of metrics, with what each table has for it.
fn family(
    out: &mut String,
    (name, kind, help): (&str, &str, &str),
    tables: &[TableState],
    of: impl Fn(&TableState) -> Vec<(String, Value)>,
) {
    let text = |error| panic!("writing to a String does not fail: {error}");
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").unwrap_or_else(text);
    for table in tables {
        for (more, value) in of(table).iter().filter_map(|(more, value)| Some((more, value.as_f64()?))) {
            let TableState { keyspace, table, .. } = table;
            writeln!(out, "{name}{{keyspace=\"{keyspace}\",table=\"{table}\"{more}}} {value}").unwrap_or_else(text);
        }
    }
}

fn write_metrics(out: &mut String, tables: &[TableState]) {
    let of_whole = [
        ("drift_percentage", "drift_percentage", "Rows proven wrong among those compared, percent"),
        ("cassandra_rows", "cassandra_row_count", "Rows in Cassandra"),
        ("postgres_rows", "postgres_row_count", "Rows in PostgreSQL"),
        ("proven_at_seconds", "began_at_seconds", "When it began, seconds since 1970"),
    ];
    let of = |gist: &Option<Value>, field: &str| -> Vec<(String, Value)> {
        gist.iter().map(|gist| (String::new(), gist[field].clone())).collect()
    };
    let by = |label: &str, counts: &Value| -> Vec<(String, Value)> {
        let counts = counts.as_object().into_iter().flatten();
        counts.map(|(one, count)| (format!(",{label}=\"{one}\""), count.clone())).collect()
    };
    for (name, field, help) in of_whole {
        let name = format!("cdc_reconciliation_{name}");
        let help = format!("{help}, by the newest job that read the whole table.");
        family(out, (&name, "gauge", &help), tables, |table| of(&table.whole, field));
    }
    let ratio = "Share of the tokens the newest job has read.";
    family(out, ("cdc_reconciliation_coverage_ratio", "gauge", ratio), tables, |table| of(&table.newest, "coverage"));
    let pending = ("cdc_reconciliation_mismatches_pending", "gauge", "Mismatches that are not resolved.");
    family(out, pending, tables, |table| by("type", &table.pending));
    let jobs = ("cdc_reconciliation_jobs_completed_total", "counter", "Jobs that have ended.");
    family(out, jobs, tables, |table| {
        let mut ended = table.jobs.clone();
        if let Some(ended) = ended.as_object_mut() {
            ended.retain(|status, _| !matches!(status.as_str(), "QUEUED" | "RUNNING" | "PAUSED"));
        }
        by("status", &ended)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_there_before_any_table_is_and_has_one_series_of_each() {
        let mut text = String::new();
        write_metrics(&mut text, &[]);
        assert!(text.contains("# TYPE cdc_reconciliation_drift_percentage gauge\n"), "{text}");
        assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
        let table = TableState {
            keyspace: "shop".to_owned(),
            table: "users".to_owned(),
            jobs: json!({"COMPLETED": 2, "RUNNING": 1}),
            pending: json!({"DATA_MISMATCH": 3}),
            newest: Some(json!({"coverage": 0.5})),
            whole: Some(json!({"drift_percentage": 0.00001, "cassandra_row_count": 7})),
        };
        write_metrics(&mut text, &[table]);
        for line in [
            "cdc_reconciliation_drift_percentage{keyspace=\"shop\",table=\"users\"} 0.00001",
            "cdc_reconciliation_cassandra_rows{keyspace=\"shop\",table=\"users\"} 7",
            "cdc_reconciliation_mismatches_pending{keyspace=\"shop\",table=\"users\",type=\"DATA_MISMATCH\"} 3",
            "cdc_reconciliation_jobs_completed_total{keyspace=\"shop\",table=\"users\",status=\"COMPLETED\"} 2",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in {text}");
        }
        assert!(!text.contains("RUNNING") && !text.contains("null"), "{text}");
    }
}
