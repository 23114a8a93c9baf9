//! What the demo found out.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cdc_workload::Delays;
use cdc_workload::oracle::Report;
use comfy_table::{Table, presets};

use super::Mode;

pub(super) struct Verdict {
    pub(super) mode: Mode,
    /// Statements acknowledged by Cassandra.
    pub(super) events: u64,
    pub(super) failed: u64,
    pub(super) first_failure: Option<String>,
    pub(super) report: Report,
    pub(super) compared_in: Duration,
    pub(super) quarantined: u64,
    pub(super) delays: Arc<Mutex<Delays>>,
    /// Bytes by role.
    pub(super) peak_memory: Vec<(String, Option<u64>)>,
}

impl Verdict {
    /// Both stores are equal, hold something, and nothing was put aside.
    pub(super) fn passed(&self) -> bool {
        self.report.differences() == 0 && self.quarantined == 0 && self.report.rows() > 0
    }

    /// The line that scripts read.
    pub(super) fn line(&self) -> String {
        let (mode, delays) = (self.mode_name(), self.delays.lock().expect("no panic while held"));
        let (events, rows, differences) = (self.events, self.report.rows(), self.report.differences());
        let (p50, p99) = (delays.percentile_ms(50.0), delays.percentile_ms(99.0));
        if self.passed() {
            format!(
                "demo: ok mode={mode} events={events} rows={rows} differences=0 delay_ms_p50={p50:.1} delay_ms_p99={p99:.1}"
            )
        } else {
            format!(
                "demo: failed mode={mode} events={events} rows={rows} differences={differences} quarantined={} \
                 delay_ms_p50={p50:.1} delay_ms_p99={p99:.1}",
                self.quarantined
            )
        }
    }

    pub(super) fn table(&self) -> String {
        let mut compared = Table::new();
        compared.load_style(presets::UTF8_HORIZONTAL_ONLY);
        compared.set_header(["table", "rows", "static rows", "missing", "extra", "differing"]);
        for table in &self.report.tables {
            let figures = [table.rows, table.static_rows, table.missing, table.extra, table.differing];
            compared.add_row(std::iter::once(table.table.clone()).chain(figures.iter().map(ToString::to_string)));
        }
        let mut text = format!("\n{compared}\n");
        for example in self.report.examples() {
            text += &format!("  {example}\n");
        }
        let delays = self.delays.lock().expect("no panic while held");
        let [p50, p95, p99, max] = [50.0, 95.0, 99.0, 100.0].map(|percentile| delays.percentile_ms(percentile));
        text += &format!(
            "compared in {:.1} s; {} statements acknowledged by Cassandra, {} failed; {} quarantined\n\
             delay from acknowledgement to visibility over {} rows, ms: p50 {p50:.1}, p95 {p95:.1}, p99 {p99:.1}, max {max:.1}",
            self.compared_in.as_secs_f64(),
            self.events,
            self.failed,
            self.quarantined,
            delays.count(),
        );
        if delays.pending() > 0 || delays.skipped() > 0 {
            text += &format!("; {} never became visible, {} not measured", delays.pending(), delays.skipped());
        }
        text += "\npeak resident memory:";
        for (role, bytes) in &self.peak_memory {
            let shown = bytes.map_or_else(|| "?".to_owned(), |bytes| format!("{:.0} MiB", bytes as f64 / 1_048_576.0));
            text += &format!(" cdc {role} {shown}");
        }
        if let Some(failure) = &self.first_failure {
            text += &format!("\nfirst failed statement: {failure}");
        }
        text
    }

    fn mode_name(&self) -> &'static str {
        match self.mode {
            Mode::Direct => "direct",
            Mode::Kafka => "kafka",
        }
    }
}
