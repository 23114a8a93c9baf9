//! What `/metrics` and `/status` tell: read from storage again and again, so that neither waits and a restart shows the same.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cdc_postgres::TargetError;
use cdc_postgres::ledger::TableState;
use cdc_runtime::admin::Report;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::watch::Watch;
use super::{Service, Shared, schedule};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);

pub(super) struct Figures {
    started: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    tables: Vec<TableState>,
    schedule: Vec<Value>,
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
    let looking =
        async { Ok::<_, TargetError>((service.ledger.table_states().await?, schedule::list(service).await?)) };
    let looked = looking.await;
    let mut inner = service.figures.inner();
    match looked {
        Ok((tables, schedule)) => {
            (inner.tables, inner.schedule) = (tables, schedule);
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
                "schedule": inner.schedule,
                "tables": inner.tables.iter().map(|table| json!({
                    "table": format!("{}.{}", table.keyspace, table.table), "jobs": table.jobs, "pending": table.pending,
                })).collect::<Vec<_>>(),
            },
        });
        if let Some(vault) = &self.settings.vault {
            status["vault"] = vault.status();
        }
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
        if let Some(vault) = &self.settings.vault {
            vault.render(out);
        }
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
    family(out, jobs, tables, |table| by("status", &table.totals["status"]));
    let mismatches = ("cdc_reconciliation_mismatches_total", "counter", "Rows that jobs have proven wrong, each time.");
    family(out, mismatches, tables, |table| by("type", &table.totals["type"]));
    write_durations(out, tables);
}

fn write_durations(out: &mut String, tables: &[TableState]) {
    let name = "cdc_reconciliation_duration_seconds";
    let text = |error| panic!("writing to a String does not fail: {error}");
    writeln!(out, "# HELP {name} How long jobs took, pauses included.\n# TYPE {name} histogram").unwrap_or_else(text);
    for TableState { keyspace, table, totals, .. } in tables {
        let labels = format!("keyspace=\"{keyspace}\",table=\"{table}\"");
        let number = |label: &str| label.trim_start_matches('+').parse().unwrap_or(f64::INFINITY);
        let mut buckets: Vec<(&String, &Value)> = totals["le"].as_object().into_iter().flatten().collect();
        buckets.sort_by(|(one, _), (other, _)| number(one).total_cmp(&number(other)));
        for (bound, jobs) in &buckets {
            writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {jobs}").unwrap_or_else(text);
        }
        if let Some((_, jobs)) = buckets.last() {
            let seconds = &totals["seconds"]["sum"];
            writeln!(out, "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {jobs}").unwrap_or_else(text);
        }
    }
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
            jobs: json!({"COMPLETED": 1, "RUNNING": 1}),
            totals: json!({"status": {"COMPLETED": 2}, "type": {"DATA_MISMATCH": 9}, "seconds": {"sum": 6.5},
                "le": {"+Inf": 2, "5": 2, "15": 2, "1": 0}}),
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
            "cdc_reconciliation_mismatches_total{keyspace=\"shop\",table=\"users\",type=\"DATA_MISMATCH\"} 9",
            "cdc_reconciliation_duration_seconds_sum{keyspace=\"shop\",table=\"users\"} 6.5",
            "cdc_reconciliation_duration_seconds_count{keyspace=\"shop\",table=\"users\"} 2",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in {text}");
        }
        let bounds: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_once(",le=\"")?.1.split_once('"'))
            .map(|(bound, _)| bound)
            .collect();
        assert_eq!(bounds, ["1", "5", "15", "+Inf"]);
        assert!(!text.contains("RUNNING") && !text.contains("null"), "{text}");
    }
}
