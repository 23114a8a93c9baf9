//! Answers of the service as lines.

use comfy_table::{Table, presets};
use serde_json::Value;

use crate::cli::say;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    table
}

/// As people read it.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

pub(super) fn jobs<'j>(jobs: impl IntoIterator<Item = &'j Value>) {
    let mut lines = table(&[
        "JOB", "TABLE", "TYPE", "STRATEGY", "STATUS", "PROVEN", "ROWS", "WRONG", "REPAIRED", "UNPROVEN", "CREATED",
    ]);
    for job in jobs {
        let share = job["coverage"].as_f64().map(|share| format!("{:.3} %", 100.0 * share));
        let progress = &job["progress"];
        let running =
            progress["stage"].as_str().map(|_| format!("{}/{}", progress["ranges_done"], progress["ranges_total"]));
        lines.add_row([
            text(&job["job_id"]),
            format!("{}.{}", text(&job["keyspace"]), text(&job["table_name"])),
            text(&job["job_type"]),
            text(&job["validation_strategy"]),
            text(&job["status"]),
            share.or(running).unwrap_or_else(|| "-".to_owned()),
            text(&job["cassandra_row_count"]),
            text(&job["mismatch_count"]),
            text(&job["repairs"]["done"]),
            text(&job["unproven_count"]),
            text(&job["created_at"]),
        ]);
    }
    say(&lines.to_string());
}

/// What a line has no room for.
pub(super) fn details(job: &Value) {
    for (class, count) in job["classes"].as_object().into_iter().flatten() {
        say(&format!("  {count} {class}"));
    }
    for gap in job["gaps"].as_array().into_iter().flatten() {
        say(&format!("  not proven: tokens {}:{}, {}", gap["start"], gap["end"], text(&gap["why"])));
    }
    for error in job["validation_errors"].as_array().into_iter().flatten() {
        say(&format!("  {}", text(error)));
    }
}

pub(super) fn findings(found: &[Value]) {
    let mut lines = table(&["MISMATCH", "TABLE", "CLASS", "TOKEN", "KEY", "COLUMNS", "STATUS", "SEEN", "LAST SEEN"]);
    for one in found {
        lines.add_row([
            text(&one["mismatch_id"]),
            format!("{}.{}", text(&one["keyspace"]), text(&one["table_name"])),
            text(&one["class"]),
            text(&one["token"]),
            key(one),
            columns(one),
            text(&one["resolution_status"]),
            text(&one["times_seen"]),
            text(&one["last_seen_at"]),
        ]);
    }
    say(&lines.to_string());
}

/// The key where the service shows it, else its hash.
pub(super) fn key(mismatch: &Value) -> String {
    match &mismatch["primary_key_value"] {
        Value::Null => text(&mismatch["key_sha256"]),
        key => key.to_string(),
    }
}

pub(super) fn columns(mismatch: &Value) -> String {
    let names: Vec<String> = mismatch["columns"].as_array().into_iter().flatten().map(text).collect();
    names.join(",")
}
