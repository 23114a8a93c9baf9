//! `cdc reconcile run`: compares in this process.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cdc_cassandra::checks::Wanted;
use cdc_cassandra::{Cassandra, ClusterReader, Consistency};
use cdc_model::{TableSchema, TokenRange};
use cdc_postgres::Target;
use cdc_reconciler::barrier::{Barrier, BarrierSettings};
use cdc_reconciler::{
    Class, Only, Options, Outcome, PipelineBarrier, Progress, ReconcileError, Reconciler, Repair, Sample, Scope, Stage,
    Strategy, Written,
};
use cdc_runtime::{Exit, Refusal};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::literal::{micros, partition_key};
use super::report::{show, to_json};
use crate::cli::{Output, complain, say};
use crate::config::Config;
use crate::role::chain;

/// Between two looks at the progress.
const TICK: Duration = Duration::from_millis(200);

pub(super) const HELP: &str = "\
FILE is the configuration of an agent: its sections cassandra, source, postgres and, if there is one, kafka. The agents, and with
Kafka the sinks, must run. Nothing is changed in either store, but for the mark of each barrier, and target tables that are
missing are created as at their first change.

With --repair rows that are proven wrong are set to what Cassandra answers at ALL, with its write times, so that newer
changes win. A row is called repaired once it was looked at again after another barrier. Classes:
  MISSING_IN_POSTGRES, STALE, VALUE_DIFFERS, EXTRA, EXPIRED_NOT_REMOVED    with --repair
  TARGET_AHEAD    only if it is named: PostgreSQL may have the only copy of what Cassandra lost

Strategies, all of them by row:
  checksum         all values: finds everything
  version          write times only, which is less to read: finds what is missing, extra or older
  row-count        keys only: finds what is missing or extra
  sample           all values of --sample-percent of the ring, drawn at random; says how much may be wrong in the rest
  timestamp-range  all values of rows last written from --written-from on, before --written-to

Exit codes: 0 everything was compared and is equal or was repaired, 7 differences are proven, 1 no difference, but not
everything could be proven, 69 a server cannot be used.

Examples:
  cdc reconcile run cdc.yaml --table shop.orders --table shop.users
  cdc reconcile run cdc.yaml --table shop.orders --range -9223372036854775808:0 --report first-half.json
  cdc reconcile run cdc.yaml --table shop.orders --strategy sample --sample-percent 1
  cdc reconcile run cdc.yaml --table shop.orders --strategy timestamp-range --written-from 2026-11-21T10:00:00Z \\
    --written-to 2026-11-21T11:00:00Z
  cdc reconcile run cdc.yaml --table shop.orders --partition '{\"customer\": 5, \"year\": 2026}'
  cdc reconcile run cdc.yaml --table shop.orders --consistency all --show-keys
  cdc reconcile run cdc.yaml --table shop.orders --repair --dry-run
  cdc reconcile run cdc.yaml --table shop.orders --repair=STALE,EXTRA --max-repair-share 0.1";

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// Configuration, YAML
    #[arg(value_name = "FILE")]
    config: PathBuf,
    /// What to compare, as `keyspace.table` or `keyspace.*`; may be given several times
    #[arg(long = "table", value_name = "TABLE", required = true, value_parser = table)]
    tables: Vec<Wanted>,
    /// Only tokens after START up to END
    #[arg(long, value_name = "START:END", value_parser = range, allow_hyphen_values = true)]
    range: Option<TokenRange>,
    /// Only one partition, by its key as CQL or JSON has it: 5, 'a', (5, 'a'), {"p": 5, "q": "a"}
    #[arg(long, value_name = "KEY", conflicts_with = "range", allow_hyphen_values = true)]
    partition: Option<String>,
    #[arg(long, value_enum, default_value_t = StrategyArg::Checksum)]
    strategy: StrategyArg,
    /// How much of the ring `sample` draws
    #[arg(long, value_name = "PERCENT", value_parser = share, required_if_eq("strategy", "sample"))]
    sample_percent: Option<f64>,
    /// Draws what was drawn before with it, which the report says [default: any]
    #[arg(long, value_name = "N", requires = "sample_percent")]
    seed: Option<u32>,
    /// As in 2026-11-21T10:00:00Z, or microseconds since 1970
    #[arg(long, value_name = "TIME", value_parser = micros, required_if_eq("strategy", "timestamp-range"),
        allow_hyphen_values = true)]
    written_from: Option<i64>,
    /// The first time that is not among them
    #[arg(long, value_name = "TIME", value_parser = micros, required_if_eq("strategy", "timestamp-range"),
        allow_hyphen_values = true)]
    written_to: Option<i64>,
    /// At which Cassandra is read; what looks wrong is read again at `all`
    #[arg(long, value_enum, default_value_t = ConsistencyArg::LocalQuorum)]
    consistency: ConsistencyArg,
    /// Token ranges read at a time: more is faster, and more load on Cassandra
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// Longest wait for a barrier, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    barrier_timeout: u64,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Write everything into this file, too, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Keys of rows in clear, not only as hashes
    #[arg(long)]
    pub(super) show_keys: bool,
    /// Set rows right that are proven wrong
    #[arg(long, value_name = "CLASSES", value_enum, ignore_case = true, num_args = 0..=1, require_equals = true,
        value_delimiter = ',', default_missing_value = REPAIRED)]
    repair: Vec<RepairArg>,
    /// Repair nothing, and say how many rows would be
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// Repair no more once there are more findings than this, in percent of a table's rows
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, value_parser = percent)]
    pub(super) max_repair_share: f64,
}

/// Unless named.
pub(super) const REPAIRED: &str = "MISSING_IN_POSTGRES,STALE,VALUE_DIFFERS,EXTRA,EXPIRED_NOT_REMOVED";

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum RepairArg {
    MissingInPostgres,
    Stale,
    ValueDiffers,
    Extra,
    ExpiredNotRemoved,
    TargetAhead,
}

impl From<RepairArg> for Class {
    fn from(class: RepairArg) -> Self {
        match class {
            RepairArg::MissingInPostgres => Self::MissingInPostgres,
            RepairArg::Stale => Self::Stale,
            RepairArg::ValueDiffers => Self::ValueDiffers,
            RepairArg::Extra => Self::Extra,
            RepairArg::ExpiredNotRemoved => Self::ExpiredNotRemoved,
            RepairArg::TargetAhead => Self::TargetAhead,
        }
    }
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
#[value(rename_all = "snake_case")]
enum ConsistencyArg {
    One,
    LocalOne,
    Quorum,
    LocalQuorum,
    All,
}

fn table(text: &str) -> Result<Wanted, String> {
    Wanted::parse(text).ok_or_else(|| "use `keyspace.table` or `keyspace.*`".to_owned())
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| "use a number from 0 to 100".to_owned())
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    percent(text).ok().filter(|percent| *percent > 0.0).ok_or_else(|| "use a number above 0, up to 100".to_owned())
}

pub(super) fn range(text: &str) -> Result<TokenRange, String> {
    let wrong = || "use START:END, two tokens, as in -100:100".to_owned();
    let (start, end) = text.split_once(':').ok_or_else(wrong)?;
    let token = |text: &str| text.parse::<i64>().map_err(|_| wrong());
    let range = TokenRange { start: token(start)?, end: token(end)? };
    if range.start < range.end { Ok(range) } else { Err("START must be less than END".to_owned()) }
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let only = args.only()?;
    let config = Config::load(&args.config, None)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let exit = runtime.block_on(Box::pin(compare(config, args, only)));
    runtime.shutdown_background();
    Ok(exit?.into())
}

async fn compare(mut config: Config, args: &RunArgs, only: Only) -> anyhow::Result<Exit> {
    crate::credentials::at_once(&mut config).await?;
    let Config { cassandra: Some(cassandra), source: Some(source), postgres: Some(mut postgres), kafka, .. } = config
    else {
        let message = "`cdc reconcile` needs the sections cassandra, source and postgres, as an agent has them, and kafka if \
                       the pipeline has one";
        return Err(Refusal::config(message).into());
    };
    postgres.pool_size = postgres.pool_size.max(4);
    let unavailable = |error: &dyn std::error::Error| Refusal::unavailable(chain(error));
    let node = Box::pin(Cassandra::connect(&cassandra)).await.map_err(|error| unavailable(&error))?;
    let captured: Vec<Wanted> = source.tables.iter().filter_map(|text| Wanted::parse(text)).collect();
    let schema = node.load_schema().await.map_err(|error| unavailable(&error))?;
    let tables = tables(schema, &captured, &args.tables)?;
    let scopes = tables.iter().map(|table| args.scope(table)).collect::<Result<Vec<_>, _>>()?;
    let reader = ClusterReader::connect(&cassandra).await.map_err(|error| unavailable(&error))?;
    let target = Target::connect(&postgres).await.map_err(|error| unavailable(&error))?;
    let settings = BarrierSettings { marks: source.marks(), captured };
    let barrier = Box::pin(Barrier::connect(node, target.clone(), kafka.as_ref(), settings));
    let barrier = barrier.await.map_err(|error| unavailable(&error))?;
    let barrier = Arc::new(PipelineBarrier::new(barrier, Duration::from_secs(args.barrier_timeout)));
    let options = Options {
        consistency: args.consistency(),
        parallel: args.parallel.into(),
        repair: args.repair(),
        ..Options::default()
    };
    let reconciler = Reconciler::new(reader, target, barrier, options);

    let cancel = CancellationToken::new();
    let mut outcomes = Vec::new();
    for (table, scope) in tables.into_iter().zip(scopes) {
        let scope = scope.only(only);
        let outcome = watched(&reconciler, &scope, args.strategy(), &cancel).await;
        outcomes.push((outcome.map_err(|error| unavailable(&error))?, table));
    }
    finish(args, &outcomes)
}

fn tables(schema: Vec<TableSchema>, captured: &[Wanted], wanted: &[Wanted]) -> Result<Vec<Arc<TableSchema>>, Refusal> {
    let is_captured = |table: &TableSchema| table.cdc && captured.iter().any(|entry| entry.matches(table));
    let tables: BTreeMap<String, TableSchema> =
        schema.into_iter().filter(is_captured).map(|table| (table.full_name(), table)).collect();
    for entry in wanted {
        if !tables.values().any(|table| entry.matches(table)) {
            let name = entry.table.as_deref().unwrap_or("*");
            let message = format!(
                "--table {}.{name} is not captured: it must be among source.tables of the configuration, exist, and have \
                 `cdc = true`",
                entry.keyspace
            );
            return Err(Refusal { exit: Exit::Usage, message });
        }
    }
    let named = |table: &TableSchema| wanted.iter().any(|entry| entry.matches(table));
    Ok(tables.into_values().filter(named).map(Arc::new).collect())
}

impl RunArgs {
    fn strategy(&self) -> Strategy {
        match self.strategy {
            StrategyArg::Checksum | StrategyArg::Sample | StrategyArg::TimestampRange => Strategy::Checksum,
            StrategyArg::Version => Strategy::Version,
            StrategyArg::RowCount => Strategy::RowCount,
        }
    }

    fn only(&self) -> Result<Only, Refusal> {
        let usage = |message: &str| Refusal { exit: Exit::Usage, message: message.to_owned() };
        if self.sample_percent.is_some() && self.strategy != StrategyArg::Sample {
            return Err(usage("--sample-percent goes with --strategy sample: add that, or leave it out"));
        }
        let written = self.written_from.is_some() || self.written_to.is_some();
        if written && self.strategy != StrategyArg::TimestampRange {
            return Err(usage(
                "--written-from and --written-to go with --strategy timestamp-range: add that, or leave them out",
            ));
        }
        if self.partition.is_some() && self.strategy == StrategyArg::Sample {
            return Err(usage("--partition names what is compared, and --strategy sample draws it: use one of them"));
        }
        Ok(match (self.sample_percent, self.written_from.zip(self.written_to)) {
            (Some(percent), _) => Only::Sample(Sample { percent, seed: self.seed.unwrap_or_else(rand::random) }),
            (None, Some((from, to))) if from < to => Only::Written(Written { from, to }),
            (None, Some(_)) => {
                return Err(usage("--written-from must be before --written-to, which is not among the times"));
            }
            (None, None) => Only::All,
        })
    }

    fn scope(&self, table: &Arc<TableSchema>) -> Result<Scope, Refusal> {
        let Some(text) = &self.partition else {
            return Ok(Scope::new(Arc::clone(table), self.range.unwrap_or(TokenRange::RING)));
        };
        match partition_key(table, text) {
            Ok(key) => Ok(Scope::partition(Arc::clone(table), &key)),
            Err(error) => Err(Refusal { exit: Exit::Usage, message: format!("--partition: {error}") }),
        }
    }

    fn repair(&self) -> Option<Repair> {
        (!self.repair.is_empty()).then(|| Repair {
            classes: self.repair.iter().copied().map(Class::from).collect(),
            max_share: self.max_repair_share,
            dry_run: self.dry_run,
        })
    }

    fn consistency(&self) -> Consistency {
        match self.consistency {
            ConsistencyArg::One => Consistency::One,
            ConsistencyArg::LocalOne => Consistency::LocalOne,
            ConsistencyArg::Quorum => Consistency::Quorum,
            ConsistencyArg::LocalQuorum => Consistency::LocalQuorum,
            ConsistencyArg::All => Consistency::All,
        }
    }
}

/// Compares a table under a progress bar. An interrupt ends it with what it has; a second one kills as usual.
async fn watched(
    reconciler: &Reconciler,
    scope: &Scope,
    strategy: Strategy,
    cancel: &CancellationToken,
) -> Result<Outcome, ReconcileError> {
    let progress = Arc::new(Progress::default());
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let style = "{prefix} {wide_bar} {percent:>3}% {msg} ETA {eta}";
    bar.set_style(ProgressStyle::with_template(style).expect("a template that was tried"));
    bar.set_prefix(scope.table.full_name());
    let mut comparing = reconciler.compare(scope, strategy, &progress, cancel);
    let mut tick = tokio::time::interval(TICK);
    let mut stage = Stage::Passes;
    let outcome = loop {
        tokio::select! {
            outcome = &mut comparing => break outcome,
            interrupt = tokio::signal::ctrl_c(), if !cancel.is_cancelled() => {
                interrupt.expect("interrupts can be listened to");
                complain("ending; what was not compared is reported as not proven");
                cancel.cancel();
            }
            _ = tick.tick() => {
                let (done, total) = progress.done();
                if progress.stage() != stage {
                    stage = progress.stage();
                    bar.reset();
                }
                bar.set_length(total);
                bar.set_position(done);
                let seconds = bar.elapsed().as_secs().max(1);
                bar.set_message(format!(
                    "{} {} rows, {}/s, {} suspects, {} findings",
                    if stage == Stage::Passes { "ranges" } else { "leaves" },
                    progress.rows(),
                    progress.rows() / seconds,
                    progress.suspects(),
                    progress.findings()
                ));
            }
        }
    };
    bar.finish_and_clear();
    outcome
}

fn finish(args: &RunArgs, outcomes: &[(Outcome, Arc<TableSchema>)]) -> anyhow::Result<Exit> {
    let report: Vec<Value> = outcomes.iter().map(|(outcome, table)| to_json(outcome, table, args.show_keys)).collect();
    let text = serde_json::to_string_pretty(&report).context("write the outcome")?;
    if let Some(file) = &args.report {
        std::fs::write(file, format!("{text}\n")).with_context(|| format!("write --report {}", file.display()))?;
    }
    match args.output {
        Output::Json => say(&text),
        Output::Table => outcomes.iter().for_each(|(outcome, table)| show(args, outcome, table)),
    }
    let is_complete =
        |outcome: &Outcome| outcome.coverage.gaps.is_empty() && !outcome.classes.contains_key(&Class::Unproven);
    Ok(match outcomes {
        outcomes if outcomes.iter().any(|(outcome, _)| outcome.remaining() > 0) => Exit::Drift,
        outcomes if outcomes.iter().all(|(outcome, _)| is_complete(outcome)) => Exit::Success,
        _ => Exit::Failure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_two_tokens_in_order() {
        assert_eq!(range("-5:7"), Ok(TokenRange { start: -5, end: 7 }));
        for wrong in ["", "5", "7:5", "a:b", "1:1"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }
}
