//! `cdc reconcile start`.

use std::process::ExitCode;

use cdc_model::TokenRange;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::client::{Client, ServerArgs};
use super::{OutputArgs, answer, ids, show};
use crate::cli::complain;
use crate::reconcile::literal::micros;
use crate::reconcile::run::{REPAIRED, RepairArg, range, share};

pub(in crate::reconcile) const START_HELP: &str = "\
The jobs run in the service, whatever becomes of this command. Without --mode the service's own policy of repairs holds.
A table that has a job already keeps that one, which is then shown, and with --wait waited for.
Of a sample --sample-percent is 1 unless given; of a timestamp range the times are the last hour.

Exit codes: 0 asked for, or with --wait equal or repaired; 7 with --wait, differences are proven and stay; 1 with --wait, not everything
was proven; 2 the service knows no such table; 69 nothing answers; 78 the token is missing or wrong.

Examples:
  cdc reconcile start --table users --wait
  cdc reconcile start --table shop.orders --mode repair --classes STALE,MISSING_IN_POSTGRES --dry-run
  cdc reconcile start --table users --strategy sample --sample-percent 5 --wait
  cdc reconcile start --table users --strategy timestamp-range --written-from 2026-11-21 --written-to 2026-11-22
  cdc reconcile start --table users --partition 5 --wait
  cdc reconcile start --max-seconds 600 --priority high     all tables, ten minutes each at most";

#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// What to compare, as `table` or `keyspace.table`; may be given several times [default: all]
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// By all values, write times or keys; of all rows, a sample, or those written between two times [default: as the service is
    /// configured]
    #[arg(long, value_enum)]
    strategy: Option<StrategyArg>,
    #[arg(long, value_enum)]
    priority: Option<Priority>,
    /// Only tokens after START up to END
    #[arg(long, value_name = "START:END", value_parser = range, allow_hyphen_values = true)]
    range: Option<TokenRange>,
    /// Only one partition of one table, by its key as CQL or JSON has it: 5, 'a', (5, 'a'), {"p": 5, "q": "a"}
    #[arg(long, value_name = "KEY", conflicts_with = "range", allow_hyphen_values = true)]
    partition: Option<String>,
    /// How much of the ring `sample` draws
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    sample_percent: Option<f64>,
    /// Draws what was drawn before with it, which the job says [default: any]
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// As in 2026-11-21T10:00:00Z, or microseconds since 1970
    #[arg(long, value_name = "TIME", value_parser = micros, allow_hyphen_values = true)]
    written_from: Option<i64>,
    /// The first time that is not among them
    #[arg(long, value_name = "TIME", value_parser = micros, allow_hyphen_values = true)]
    written_to: Option<i64>,
    /// End each comparison after this, with what it has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_seconds: Option<u64>,
    /// Whether rows proven wrong are set right [default: as the service is configured]
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Which of them; `TARGET_AHEAD` only if it is named [default: all others]
    #[arg(long, value_name = "CLASSES", value_enum, ignore_case = true, value_delimiter = ',', requires = "mode")]
    classes: Vec<RepairArg>,
    /// Repair nothing, and say how many rows would be
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum StrategyArg {
    Checksum,
    Version,
    RowCount,
    Sample,
    TimestampRange,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Priority {
    High,
    Normal,
    Low,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Mode {
    Check,
    Repair,
}

/// As the API names what is chosen here.
fn name(value: impl ValueEnum) -> String {
    let name = value.to_possible_value().map(|value| value.get_name().replace('-', "_"));
    name.unwrap_or_default().to_uppercase()
}

pub(in crate::reconcile) fn start(args: &StartArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server)?;
    let mut body = json!({});
    // What is left out is the service's to choose.
    let given = [
        ("tables", (!args.tables.is_empty()).then(|| json!(args.tables))),
        ("validation_strategy", args.strategy.map(|strategy| json!(name(strategy)))),
        ("priority", args.priority.map(|priority| json!(name(priority)))),
        ("range", args.range.map(|range| json!(format!("{}:{}", range.start, range.end)))),
        ("partition", args.partition.as_ref().map(|key| json!(key))),
        ("sample_percent", args.sample_percent.map(|percent| json!(percent))),
        ("seed", args.seed.map(|seed| json!(seed))),
        ("written_from", args.written_from.map(|time| json!(time))),
        ("written_to", args.written_to.map(|time| json!(time))),
        ("max_seconds", args.max_seconds.map(|seconds| json!(seconds))),
        ("repair", args.mode.map(|mode| args.repair(mode))),
        ("repair_dry_run", args.dry_run.then_some(json!(true))),
    ];
    for (field, value) in given {
        if let Some(value) = value {
            body[field] = value;
        }
    }
    let asked = client.post("/reconciliation/trigger", &body)?;
    for job in asked["jobs"].as_array().into_iter().flatten() {
        let (job, table, status) =
            (show::text(&job["job_id"]), show::text(&job["table_name"]), show::text(&job["status"]));
        match status.as_str() {
            "PAUSED" => complain(&format!("{table}: its job {job} is paused; `cdc reconcile resume` or `cancel` it")),
            "ALREADY_RUNNING" => {
                complain(&format!("{table}: has the job {job} already, which stays as it was asked for"))
            }
            _ => {}
        }
    }
    answer(&client, &args.output, &ids(&asked["job_ids"]))
}

impl StartArgs {
    fn repair(&self, mode: Mode) -> Value {
        match mode {
            Mode::Check => json!([]),
            Mode::Repair if self.classes.is_empty() => REPAIRED.split(',').collect(),
            Mode::Repair => self.classes.iter().map(|class| name(*class)).collect(),
        }
    }
}
