//! Follows jobs until they have ended.

use std::io::IsTerminal as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cdc_runtime::Exit;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::client::Client;
use super::show::text;
use crate::cli::complain;

const POLL: Duration = Duration::from_millis(500);
/// Between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(10);
/// A service that is started anew goes on with its jobs.
const GRACE: Duration = Duration::from_secs(30);

/// Waits until the jobs have ended, or one is paused; returns them as they then are.
pub(super) fn watch(client: &Client, ids: &[String]) -> anyhow::Result<Vec<Value>> {
    let is_terminal = std::io::stderr().is_terminal();
    let bars = MultiProgress::new();
    let style =
        ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3}% {msg}").expect("a template that was tried");
    let mut open: Vec<(&String, ProgressBar)> = Vec::new();
    for id in ids {
        let bar = if is_terminal { bars.add(ProgressBar::new(0)) } else { ProgressBar::hidden() };
        bar.set_style(style.clone());
        open.push((id, bar));
    }
    let (mut answered, mut told) = (Instant::now(), Instant::now());
    let mut done: Vec<Value> = Vec::new();
    while !open.is_empty() {
        let mut jobs = Vec::new();
        for (id, bar) in &open {
            match client.get(&format!("/reconciliation/jobs/{id}")) {
                Ok(job) => jobs.push(job),
                Err(error) if Exit::of(&error) == Exit::Unavailable && answered.elapsed() < GRACE => {
                    bar.set_message("no answer, trying again");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if jobs.len() == open.len() {
            answered = Instant::now();
            let speaks = !is_terminal && told.elapsed() >= LINE;
            for ((_, bar), job) in open.iter().zip(&jobs) {
                show(bar, job);
                if speaks {
                    complain(&line(job));
                }
            }
            if speaks {
                told = Instant::now();
            }
            let (ended, rest): (Vec<_>, Vec<_>) = open.into_iter().zip(jobs).partition(|(_, job)| has_ended(job));
            for ((_, bar), job) in ended {
                bar.finish_and_clear();
                done.push(job);
            }
            open = rest.into_iter().map(|(place, _)| place).collect();
        }
        if !open.is_empty() {
            sleep(POLL);
        }
    }
    Ok(done)
}

fn has_ended(job: &Value) -> bool {
    !matches!(job["status"].as_str(), Some("QUEUED" | "RUNNING"))
}

fn show(bar: &ProgressBar, job: &Value) {
    let number = |name: &str| job["progress"][name].as_u64().unwrap_or_default();
    bar.set_prefix(format!("{}.{}", text(&job["keyspace"]), text(&job["table_name"])));
    bar.set_length(number("ranges_total"));
    bar.set_position(number("ranges_done"));
    bar.set_message(message(job));
}

fn message(job: &Value) -> String {
    let progress = &job["progress"];
    let Some(stage) = progress["stage"].as_str() else { return text(&job["status"]) };
    let rate = progress["rows_per_second"].as_f64().unwrap_or_default();
    let remaining = match progress["eta_seconds"].as_u64() {
        Some(seconds) => format!("{}:{:02}", seconds / 60, seconds % 60),
        None => "unknown".to_owned(),
    };
    format!(
        "{stage} {}/{}, {} rows, {rate:.0}/s, {} suspects, {} findings, ETA {remaining}",
        progress["ranges_done"], progress["ranges_total"], progress["rows"], progress["suspects"], progress["findings"]
    )
}

fn line(job: &Value) -> String {
    format!("{}.{}: {}", text(&job["keyspace"]), text(&job["table_name"]), message(job))
}

/// Of jobs that have ended.
pub(super) fn exit(jobs: &[Value]) -> Exit {
    if jobs.iter().any(|job| remaining(job) > 0) {
        return Exit::Drift;
    }
    if jobs.iter().all(is_proven) { Exit::Success } else { Exit::Failure }
}

/// Rows proven wrong that were not repaired.
pub(super) fn remaining(job: &Value) -> u64 {
    let repaired = match job["repairs"]["dry_run"].as_bool() {
        Some(false) => job["repairs"]["done"].as_u64().unwrap_or_default(),
        _ => 0,
    };
    job["mismatch_count"].as_u64().unwrap_or_default().saturating_sub(repaired)
}

/// All that it was asked for was compared, and nothing is left open.
pub(super) fn is_proven(job: &Value) -> bool {
    let is_whole = job["coverage"].as_f64().is_none_or(|share| share >= 1.0);
    job["status"] == "COMPLETED" && is_whole && job["unproven_count"].as_u64().unwrap_or_default() == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_code_is_about_differences_that_stay() {
        let clean = json!({"status": "COMPLETED", "mismatch_count": 0, "unproven_count": 0, "coverage": 1.0});
        let with = |more: Value| {
            let mut job = clean.clone();
            job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            job
        };
        for (more, expected) in [
            (json!({}), Exit::Success),
            (json!({"mismatch_count": 2}), Exit::Drift),
            (json!({"mismatch_count": 2, "repairs": {"dry_run": false, "done": 2}}), Exit::Success),
            (json!({"mismatch_count": 2, "repairs": {"dry_run": false, "done": 1}}), Exit::Drift),
            (json!({"mismatch_count": 2, "repairs": {"dry_run": true, "done": 2}}), Exit::Drift),
            (json!({"mismatch_count": 2, "status": "FAILED"}), Exit::Drift),
            (json!({"unproven_count": 1}), Exit::Failure),
            (json!({"coverage": 0.5}), Exit::Failure),
            (json!({"status": "PAUSED"}), Exit::Failure),
            (json!({"status": "FAILED", "mismatch_count": null, "coverage": null}), Exit::Failure),
        ] {
            assert_eq!(exit(&[clean.clone(), with(more.clone())]), expected, "{more}");
        }
    }

    #[test]
    fn progress_says_ranges_rate_and_what_is_left() {
        let progress = json!({"ranges_done": 12, "ranges_total": 64, "rows": 100_000, "rows_per_second": 5_321.4,
            "eta_seconds": 91, "stage": "ranges", "suspects": 4, "findings": 1});
        let job = json!({"keyspace": "shop", "table_name": "users", "status": "RUNNING", "progress": progress});
        let said = "shop.users: ranges 12/64, 100000 rows, 5321/s, 4 suspects, 1 findings, ETA 1:31";
        assert_eq!(line(&job), said);
        assert_eq!(message(&json!({"status": "QUEUED"})), "QUEUED");
    }
}
