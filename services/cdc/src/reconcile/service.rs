//! The commands that ask a running `cdc reconciler`.

mod client;
mod document;
mod show;
mod start;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use cdc_runtime::Exit;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use uuid::Uuid;

use self::client::{Client, ServerArgs, encoded};
pub(crate) use self::start::StartArgs;
pub(super) use self::start::{START_HELP, start};
use crate::cli::{Output, say};

/// Of a list, in one answer.
const PAGE: usize = 1_000;

pub(super) const REPAIR_HELP: &str = "\
Each row is looked at again, and set to what Cassandra answers at ALL if it is still wrong.

Exit codes: 0 asked for, or with --wait set right; 7 with --wait, not set right.

Examples:
  cdc reconcile repair 0b9d5f4e-... --dry-run
  cdc reconcile repair 0b9d5f4e-... 7c1e8a10-... --wait";

pub(super) const REPORT_HELP: &str = "\
Everything the service knows of a job and of what it has found: what was compared and when, what is proven and what not, on which
assumptions, each finding with its evidence, and how to check it. No value of a row is in it, and keys only where the service is
set to keep them. html is one file without scripts that needs nothing else, and prints; json has the same facts.

Examples:
  cdc reconcile report 0b9d5f4e-... --out report.html
  cdc reconcile report 0b9d5f4e-... --format json | jq .verdict";

#[derive(Args, Debug)]
pub(crate) struct OutputArgs {
    /// Wait until it has ended
    #[arg(long)]
    wait: bool,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Jobs; if none is named, the newest
    #[arg(value_name = "JOB")]
    jobs: Vec<Uuid>,
    /// Only of this table
    #[arg(long, value_name = "TABLE", conflicts_with = "jobs")]
    table: Option<String>,
    /// Only so many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    limit: u16,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct JobsArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[arg(value_name = "JOB", required = true)]
    jobs: Vec<Uuid>,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct FindingsArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Only those this job has seen
    #[arg(long, value_name = "JOB")]
    job: Option<Uuid>,
    /// Only of this table
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// `PENDING`, `AUTO_RESOLVED`, `MANUAL_RESOLVED` or `IGNORED` [default: PENDING; with --job: all]
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// As `cdc reconcile findings` names them
    #[arg(value_name = "MISMATCH", required = true)]
    mismatches: Vec<Uuid>,
    /// Repair nothing, and say how many rows would be
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[arg(value_name = "JOB")]
    job: Uuid,
    #[arg(long, value_enum, default_value_t = Format::Html)]
    format: Format,
    /// Where to write it [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    Html,
    Json,
}

fn ids(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(show::text).collect()
}

/// Shows jobs that were asked for, once they have ended if that is wanted.
fn answer(client: &Client, args: &OutputArgs, ids: &[String]) -> anyhow::Result<ExitCode> {
    let jobs = match args.wait {
        true => watch::watch(client, ids)?,
        false => ids.iter().map(|id| job(client, id)).collect::<Result<_, _>>()?,
    };
    print(args.output, &jobs)?;
    Ok(if args.wait { watch::exit(&jobs) } else { Exit::Success }.into())
}

fn job(client: &Client, id: &str) -> anyhow::Result<Value> {
    client.get(&format!("/reconciliation/jobs/{id}"))
}

fn print(output: Output, jobs: &[Value]) -> anyhow::Result<()> {
    match output {
        Output::Json => say(&serde_json::to_string_pretty(jobs).context("write the jobs")?),
        Output::Table => {
            show::jobs(jobs);
            jobs.iter().filter(|_| jobs.len() == 1).for_each(show::details);
        }
    }
    Ok(())
}

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server)?;
    let jobs = if args.jobs.is_empty() {
        let table = args.table.as_deref().map(|table| format!("&table={}", encoded(table))).unwrap_or_default();
        let list = client.get(&format!("/reconciliation/jobs?limit={}{table}", args.limit))?;
        list["jobs"].as_array().cloned().unwrap_or_default()
    } else {
        args.jobs.iter().map(|id| job(&client, &id.to_string())).collect::<Result<_, _>>()?
    };
    print(args.output, &jobs)?;
    Ok(Exit::Success.into())
}

pub(super) fn watch(args: &JobsArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server)?;
    let ids: Vec<String> = args.jobs.iter().map(Uuid::to_string).collect();
    answer(&client, &OutputArgs { wait: true, output: args.output }, &ids)
}

/// `pause`, `resume` or `cancel`.
pub(super) fn steer(args: &JobsArgs, action: &str) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server)?;
    let path = |id: &Uuid| format!("/reconciliation/jobs/{id}/{action}");
    let answers: Vec<Value> =
        args.jobs.iter().map(|id| client.post(&path(id), &json!({}))).collect::<Result<_, _>>()?;
    match args.output {
        Output::Json => say(&serde_json::to_string_pretty(&answers).context("write the answers")?),
        Output::Table => {
            answers
                .iter()
                .for_each(|one| say(&format!("{} {}", show::text(&one["job_id"]), show::text(&one["status"]))));
        }
    }
    Ok(Exit::Success.into())
}

/// Page by page; how many there are in all.
fn mismatches(client: &Client, query: &str, limit: Option<usize>) -> anyhow::Result<(Vec<Value>, Value)> {
    let mut found: Vec<Value> = Vec::new();
    loop {
        let wanted = limit.map_or(PAGE, |limit| PAGE.min(limit - found.len()));
        let path = format!("/reconciliation/mismatches?{query}limit={wanted}&offset={}", found.len());
        let mut page = client.get(&path)?;
        let some = page["mismatches"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let is_last = some.len() < wanted;
        found.extend(some);
        if is_last || limit.is_some_and(|limit| found.len() >= limit) {
            return Ok((found, page["total"].take()));
        }
    }
}

pub(super) fn findings(args: &FindingsArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server)?;
    let status = args.status.as_deref().or(args.job.is_none().then_some("PENDING"));
    let parameters = [
        ("job_id", args.job.map(|job| job.to_string())),
        ("table", args.table.clone()),
        ("resolution_status", status.map(str::to_owned)),
    ];
    let query: String = parameters
        .iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}={}&", encoded(value))))
        .collect();
    let limit = args.limit.and_then(|limit| usize::try_from(limit).ok());
    let (found, total) = mismatches(&client, &query, limit)?;
    match args.output {
        Output::Json => {
            let list = json!({"mismatches": found, "total": total});
            say(&serde_json::to_string_pretty(&list).context("write the findings")?);
        }
        Output::Table => {
            show::findings(&found);
            if limit == Some(found.len()) {
                say(&format!("{} of {total}", found.len()));
            }
        }
    }
    Ok(Exit::Success.into())
}

pub(super) fn repair(args: &RepairArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server)?;
    let body = if args.dry_run { json!({"dry_run": true}) } else { json!({}) };
    let mut jobs = Vec::new();
    for mismatch in &args.mismatches {
        let asked = client.post(&format!("/reconciliation/mismatches/{mismatch}/repair"), &body)?;
        jobs.push(show::text(&asked["job_id"]));
    }
    answer(&client, &args.output, &jobs)
}

pub(super) fn report(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server)?;
    let job = job(&client, &args.job.to_string())?;
    let (found, _) = mismatches(&client, &format!("job_id={}&", args.job), None)?;
    let facts = document::facts(&job, found);
    let text = match args.format {
        Format::Html => document::html(&facts),
        Format::Json => document::json(&facts),
    };
    match &args.out {
        Some(file) => std::fs::write(file, text).with_context(|| format!("write --out {}", file.display()))?,
        None => say(&text),
    }
    Ok(Exit::Success.into())
}
