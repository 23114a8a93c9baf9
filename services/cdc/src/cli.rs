//! What can be typed.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process;

use cdc_runtime::Exit;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::barrier::{self, BarrierArgs};
use crate::config::Role;
use crate::demo::DemoArgs;
use crate::dlq::{self, DlqCommand};
use crate::log::{self, LogCommand};
use crate::reconcile::{self, ReconcileCommand};
use crate::snapshot::{self, SnapshotCommand};

/// Change data capture from Apache Cassandra into PostgreSQL.
#[derive(Parser, Debug)]
#[command(name = "cdc", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// error, warn, info, debug, trace, or directives as in `info,cdc_source=debug` [environment: `CDC_LOG`]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  cdc demo                      see it work: starts real servers, writes, replicates, compares
  cdc validate cdc.yaml         check the file, the servers and the tables
  cdc run cdc.yaml              replicate, in one process beside the Cassandra node
  cdc status                    what that process is doing
  cdc barrier cdc.yaml          wait until everything written before is there
  cdc snapshot start cdc.yaml --table shop.orders --wait    copy the rows that were there before
  cdc dlq list cdc.yaml         what could not be applied, to be replayed
  cdc reconcile run cdc.yaml --table shop.orders    prove that both stores say the same
  cdc log dump SEGMENT          what stands in Cassandra's commit log

Exit codes:
  0   done, or stopped as asked
  1   failed while running
  2   wrong command line
  7   `cdc reconcile` has proven differences
  65  `cdc log` met damage
  69  a server cannot be reached, or cannot be used as it is set up
  78  wrong configuration";

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Capture a Cassandra node's changes and hand them to Kafka, or straight to PostgreSQL
    #[command(after_help = SOURCE_HELP)]
    Source(ConfigArgs),
    /// Apply changes from Kafka to PostgreSQL
    #[command(after_help = SINK_HELP)]
    Sink(ConfigArgs),
    /// Capture and apply in one process
    #[command(after_help = RUN_HELP)]
    Run(ConfigArgs),
    /// Serve comparisons, barriers and dead letters over HTTP
    #[command(after_help = RECONCILER_HELP)]
    Reconciler(ConfigArgs),
    /// Bring schema `_cdc` of the target database up to date
    #[command(after_help = MIGRATE_HELP)]
    Migrate(ConfigArgs),
    /// Check a configuration, and the servers and tables it names
    #[command(after_help = VALIDATE_HELP)]
    Validate(ValidateArgs),
    /// Show what a running process is doing
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Servers to develop against: Cassandra, PostgreSQL, Kafka
    #[command(subcommand, after_help = DEV_HELP)]
    Dev(DevCommand),
    /// Read Cassandra's commit log by itself
    #[command(subcommand, after_help = log::HELP)]
    Log(LogCommand),
    /// Wait until everything written before is in PostgreSQL
    #[command(after_help = barrier::HELP)]
    Barrier(BarrierArgs),
    /// Look at what could not be applied, replay it, or give it up
    #[command(subcommand, after_help = dlq::HELP)]
    Dlq(DlqCommand),
    /// Copy rows that were there before the capture began
    #[command(subcommand, after_help = snapshot::HELP)]
    Snapshot(SnapshotCommand),
    /// Compare both stores while they are written
    #[command(subcommand, after_help = reconcile::HELP)]
    Reconcile(ReconcileCommand),
    /// Start real servers, replicate a mixed load, and compare both stores
    Demo(DemoArgs),
}

const SOURCE_HELP: &str = "\
Runs on each Cassandra node, as a user who may read and delete in its cdc_raw directory. Needs the sections cassandra
and source, and kafka; without kafka it needs postgres and does the same as `cdc run`.
Waits for servers that are not there yet, in whatever order they start.

Stopping: the first SIGINT or SIGTERM hands on what was read and records the position; a second one, or
stop_timeout_ms, ends at once. Either way nothing is lost: the rest is read again after the next start.

Examples:
  cdc source /etc/cdc/cdc.yaml
  CDC__SOURCE__MODE=durable cdc source cdc.yaml       any key can be set by the environment
  cdc --log-level debug source cdc.yaml";

const SINK_HELP: &str = "\
Runs anywhere, as many as there is work for: sinks of one consumer group (sink.group) share the partitions.
Needs the sections kafka and postgres.

Examples:
  cdc sink cdc.yaml
  CDC__POSTGRES__PASSWORD=... cdc sink cdc.yaml
  CDC__ADMIN__LISTEN=127.0.0.1:0 cdc sink cdc.yaml    a second sink on the same machine";

const RUN_HELP: &str = "\
Without a kafka section: direct mode, from the commit log straight into PostgreSQL, positions committed with the rows.
With one: source and sink in one process, with Kafka between them.
Needs the sections cassandra, source and postgres.

Examples:
  cdc run cdc.yaml
  cdc run docs/config/direct.yaml";

const RECONCILER_HELP: &str = "\
Runs anywhere, once or several times: comparisons are shared. Answers at 127.0.0.1:8080 unless the section reconciler says
otherwise; docs/api.md describes what can be asked. Needs the sections cassandra, source and postgres, as an agent has them,
and kafka if the pipeline has one. No process that moves data needs it.

Examples:
  cdc reconciler cdc.yaml
  CDC__RECONCILER__EVERY=6h cdc reconciler cdc.yaml      compares every table every six hours
  curl -X POST http://localhost:8080/reconciliation/trigger -d '{\"tables\": [\"orders\"]}'
  curl http://localhost:8080/reconciliation/coverage";

const MIGRATE_HELP: &str = "\
Creates or alters what the pipeline keeps in PostgreSQL (schema _cdc, and postgres.schema if it is missing), and ends; waits
for a server that is not there yet. Every role does the same when it starts, one at a time. By itself it is for a job before a
new release is rolled out. Needs the section postgres, and those that the file's role needs.

Examples:
  cdc migrate cdc.yaml";

const VALIDATE_HELP: &str = "\
Checks, all findings at once, nothing is changed anywhere:
  the file      unknown keys, types, ranges, sections that the role needs
  this machine  source.cdc_raw_directory is there, readable and writable, and the node's own;
                source.state_directory can be written
  Cassandra     answers, cdc_enabled, commit log readable, tables exist and have cdc = true
  PostgreSQL    answers, is writable, the user may create what is missing
  Kafka         a broker of bootstrap_servers answers
--offline stops after the file. Each finding names the field, the value and what to do.

Exit codes: 0 all well, 78 the file, a table or this machine must be changed, 69 (only) a server is missing or unsuitable.

Examples:
  cdc validate cdc.yaml
  cdc validate --offline cdc.yaml           in CI, without servers
  cdc validate --role sink cdc.yaml         what `cdc sink` needs and nothing else";

const STATUS_HELP: &str = "\
Reads /status of the process's admin server. The address is that of --url, else of the file's admin section, else
127.0.0.1:8084 (source, run).

Examples:
  cdc status
  cdc status cdc.yaml --output json
  cdc status --url http://127.0.0.1:8085    a sink
  cdc status --url http://127.0.0.1:8080    a reconciler without a token";

const DEV_HELP: &str = "\
The servers run as ordinary processes of this user, on loopback addresses, until `cdc dev down`, which removes their
data. The first start downloads pinned releases.

Examples:
  cdc dev up                    Cassandra and PostgreSQL
  cdc dev up --kafka --nodes 3
  cdc dev status
  cdc dev down";

#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    /// Configuration, YAML; every key is described in docs/config/README.md
    #[arg(value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct ValidateArgs {
    /// Configuration, YAML
    #[arg(value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Look at the file only
    #[arg(long)]
    pub(crate) offline: bool,
    /// Check what this role needs; by default what the file has sections for
    #[arg(long, value_enum)]
    pub(crate) role: Option<Role>,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Configuration of the process, for its admin address
    #[arg(value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Admin address of the process, as in `http://127.0.0.1:8084`
    #[arg(long, conflicts_with = "config")]
    pub(crate) url: Option<String>,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Subcommand, Debug)]
pub(crate) enum DevCommand {
    /// Start the servers and say how to reach them
    Up(UpArgs),
    /// Show what runs
    Status(NameArgs),
    /// Stop the servers and remove their data
    Down(NameArgs),
    /// Own the servers of a folder (what `up` starts)
    #[command(hide = true)]
    Supervise { folder: PathBuf },
}

#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    /// Version of Cassandra: 5.0, 4.1 or 4.0, or in full
    #[arg(long, value_name = "VERSION", default_value = cdc_testkit::default_version::CASSANDRA)]
    pub(crate) cassandra: String,
    /// Cassandra nodes: 1 or 3
    #[arg(long, default_value_t = 1)]
    pub(crate) nodes: usize,
    /// Kafka, too
    #[arg(long)]
    pub(crate) kafka: bool,
    /// Version of PostgreSQL: 14 to 18, or in full; `system` for an installed one
    #[arg(long, value_name = "VERSION", default_value = cdc_testkit::default_version::POSTGRES)]
    pub(crate) postgres: String,
}

#[derive(Args, Debug)]
pub(crate) struct NameArgs {
    /// Stacks of different names run side by side
    #[arg(long, default_value = "dev")]
    pub(crate) name: String,
}

/// What a command came for. Whoever reads it may have enough of it; anything else that keeps it from being written ends
/// the process.
pub(crate) fn say(text: &str) {
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("cannot write to standard output: {error}"));
            process::exit(Exit::Failure as i32)
        }
        _ => {}
    }
}

#[expect(clippy::print_stderr, reason = "errors of a command go to standard error, before or without a log")]
pub(crate) fn complain(text: &str) {
    eprintln!("cdc: {text}");
}
