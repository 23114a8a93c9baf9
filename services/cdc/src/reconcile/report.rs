//! What came out of a comparison, as lines and as JSON.

use std::sync::Arc;

use cdc_model::{Change, ChangeBody, NodeId, Provenance, RowState, SegmentPosition, TableSchema};
use cdc_reconciler::{Class, Finding, Outcome, Repairs, Written};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use uuid::Uuid;

use super::run::RunArgs;
use crate::{cli::say, log::write_change};

/// Findings shown as lines; a report and JSON have all.
const SHOWN: usize = 20;

pub(super) fn to_json(outcome: &Outcome, table: &Arc<TableSchema>, show_keys: bool) -> Value {
    let mut value = serde_json::to_value(outcome).expect("an outcome is plain data");
    value["drift_percentage"] = json!(outcome.drift_percentage());
    if show_keys {
        for (finding, shown) in outcome.findings.iter().zip(value["findings"].as_array_mut().into_iter().flatten()) {
            shown["key"] = key(table, finding);
        }
    }
    value
}

/// As `cdc log dump` shows it.
pub(crate) fn key(table: &Arc<TableSchema>, finding: &Finding) -> Value {
    let body = match finding.key.clustering.clone() {
        Some(clustering) => ChangeBody::Row { clustering, row: RowState::default() },
        None => ChangeBody::Static(RowState::default()),
    };
    let provenance = Provenance { node: NodeId(Uuid::nil()), position: SegmentPosition::START };
    let partition_key = finding.key.partition.clone();
    let mut text = Vec::new();
    write_change(&mut text, &Change { table: Arc::clone(table), partition_key, body, provenance });
    let mut change: Value = serde_json::from_slice(&text).unwrap_or_default();
    json!({"partition_key": change["partition_key"].take(), "clustering": change["clustering"].take()})
}

pub(super) fn show(args: &RunArgs, outcome: &Outcome, table: &Arc<TableSchema>) {
    say(&format!(
        "{} {}: {} rows in Cassandra, {} in PostgreSQL, {:.3} % of the tokens asked for proven, {} rows wrong ({:.4} %), {:.1} s",
        outcome.table,
        outcome.strategy,
        outcome.rows.cassandra,
        outcome.rows.postgres,
        100.0 * outcome.coverage.share,
        outcome.drift(),
        outcome.drift_percentage(),
        outcome.seconds,
    ));
    if let Some(sample) = outcome.sample {
        say(&format!(
            "  a sample of {} % (seed {}): {} of {} leaves, {} with rows, {} with something wrong, {} not proven",
            sample.percent, sample.seed, sample.drawn, sample.leaves, sample.with_rows, sample.wrong, sample.unproven
        ));
        say(&format!(
            "  at {} % confidence, no more than {:.4} % of all leaves with rows have anything wrong",
            100.0 * sample.confidence,
            sample.wrong_percentage_max
        ));
    }
    if let Some(Written { from, to }) = outcome.written {
        say(&format!("  only rows last written from {from} on, before {to} (microseconds since 1970)"));
    }
    for gap in &outcome.coverage.gaps {
        say(&format!("  not proven: tokens {}:{}, {}", gap.range.start, gap.range.end, gap.why));
    }
    if outcome.findings.is_empty() {
        return;
    }
    if let Some(repairs) = outcome.repairs {
        let Repairs { dry_run, wanted, done, allowed, stopped } = repairs;
        say(&match (stopped, dry_run) {
            (false, false) => format!("  {done} of {wanted} rows were repaired"),
            (false, true) => format!("  {wanted} rows would be repaired"),
            (true, _) => format!(
                "  {wanted} rows to repair are more than the {allowed} that --max-repair-share {} allows: {done} were",
                args.max_repair_share
            ),
        });
    }
    for (class, count) in &outcome.classes {
        say(&format!("  {count} {}", name(class)));
    }
    let mut lines = Table::new();
    lines.load_style(presets::NOTHING);
    lines.set_header(["CLASS", "TOKEN", "KEY", "COLUMNS", "CASSANDRA WROTE", "POSTGRESQL KNOWS", "CAUSE", "REPAIRED"]);
    for finding in outcome.findings.iter().take(SHOWN) {
        let time = |time: Option<i64>| time.map_or_else(|| "-".to_owned(), |time| time.to_string());
        let shown_key = if args.show_keys { key(table, finding).to_string() } else { finding.key_sha256.clone() };
        lines.add_row([
            name(&finding.class),
            finding.token.to_string(),
            shown_key,
            finding.columns.join(","),
            time(finding.cassandra_written_at),
            time(finding.postgres_written_at),
            finding.cause.clone().unwrap_or_default(),
            if finding.repaired { "yes" } else { "" }.to_owned(),
        ]);
    }
    say(&lines.to_string());
    if outcome.findings.len() > SHOWN {
        say(&format!("  the first {SHOWN} of {}; --report FILE or --output json has all", outcome.findings.len()));
    }
}

fn name(class: &Class) -> String {
    serde_json::to_value(class).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}
