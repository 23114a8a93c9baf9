//! The live view: one line that is redrawn on a terminal, one line a second elsewhere.

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cdc_workload::{Delays, LoadCounters, shop};
use indicatif::{ProgressBar, ProgressStyle};
use tokio_postgres::NoTls;

use super::pipeline::{Backlog, Statuses};

const PERIOD: Duration = Duration::from_secs(1);

pub(super) struct View {
    counters: Arc<LoadCounters>,
    delays: Arc<Mutex<Delays>>,
    statuses: Statuses,
    postgres: tokio_postgres::Config,
    line: Option<ProgressBar>,
}

impl View {
    pub(super) fn new(
        counters: Arc<LoadCounters>,
        delays: Arc<Mutex<Delays>>,
        statuses: Statuses,
        postgres: tokio_postgres::Config,
    ) -> Self {
        let line = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg}").expect("the template is valid");
            ProgressBar::new_spinner().with_style(style)
        });
        Self { counters, delays, statuses, postgres, line }
    }

    /// Until dropped. What cannot be asked right now is left out: the view never ends the demo.
    pub(super) async fn run(&self) {
        loop {
            let Ok((client, connection)) = self.postgres.connect(NoTls).await else {
                tokio::time::sleep(PERIOD).await;
                continue;
            };
            tokio::select! {
                () = self.draw(&client) => {}
                _ = connection => {}
            }
        }
    }

    async fn draw(&self, client: &tokio_postgres::Client) {
        let started = Instant::now();
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.tick().await;
        let (mut events, mut since) = (self.counters.acknowledged(), Instant::now());
        loop {
            tick.tick().await;
            let (now, acknowledged) = (Instant::now(), self.counters.acknowledged());
            let rate = (acknowledged - events) as f64 / (now - since).as_secs_f64();
            (events, since) = (acknowledged, now);
            let delay = {
                let mut delays = self.delays.lock().expect("no panic while held");
                let [p50, p95, p99] = [50.0, 95.0, 99.0].map(|percentile| delays.recent_percentile_ms(percentile));
                delays.forget_recent();
                format!("{p50:.1} / {p95:.1} / {p99:.1}")
            };
            let backlog = self.statuses.backlog().await.map_or_else(|_| "?".to_owned(), shown);
            let line = format!(
                "{:4.0} s  {rate:6.0} events/s  delay ms p50 / p95 / p99: {delay:<20}  backlog {backlog}  rows: {}",
                started.elapsed().as_secs_f64(),
                rows(client).await,
            );
            match &self.line {
                Some(bar) => bar.set_message(line),
                None => eprintln!("{line}"),
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.finish();
        }
    }
}

fn shown(Backlog { bytes, batches, records }: Backlog) -> String {
    if bytes == 0 && batches == 0 && records == 0 {
        return "none".to_owned();
    }
    let mut parts = vec![format!("{} KiB", bytes.div_ceil(1_024))];
    if batches > 0 {
        parts.push(format!("{batches} batches"));
    }
    if records > 0 {
        parts.push(format!("{records} records"));
    }
    parts.join(" + ")
}

async fn rows(client: &tokio_postgres::Client) -> String {
    let mut shown = Vec::new();
    for table in shop::TABLES {
        let count = client.query_one(&format!("select count(*) from public.cdc_{table}"), &[]).await;
        let count = count.map_or_else(|_| "-".to_owned(), |row| row.get::<_, i64>(0).to_string());
        shown.push(format!("{table} {count}"));
    }
    shown.join(", ")
}
