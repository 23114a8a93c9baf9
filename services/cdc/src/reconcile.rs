//! `cdc reconcile`: proves that PostgreSQL equals Cassandra, or says where it does not.
//!
//! **Invariant:** no value of a row is printed, and no key without `--show-keys`.

mod literal;
mod report;
mod run;
mod service;

use std::process::ExitCode;

use clap::Subcommand;

pub(crate) use self::literal::partition_key;
pub(crate) use self::report::key;
use self::run::RunArgs;
use self::service::{FindingsArgs, JobsArgs, RepairArgs, ReportArgs, StartArgs, StatusArgs};

#[derive(Subcommand, Debug)]
pub(crate) enum ReconcileCommand {
    /// Compare tables while they are written, and say what is proven and what is wrong
    #[command(after_help = run::HELP)]
    Run(RunArgs),
    /// Ask a reconciler to compare tables
    #[command(after_help = service::START_HELP)]
    Start(StartArgs),
    /// Show jobs of a reconciler
    Status(StatusArgs),
    /// Follow jobs until they have ended
    Watch(JobsArgs),
    /// Show rows proven wrong
    Findings(FindingsArgs),
    /// Set rows right that were proven wrong
    #[command(after_help = service::REPAIR_HELP)]
    Repair(RepairArgs),
    /// Let jobs rest, to be resumed where they were
    Pause(JobsArgs),
    /// Let paused jobs go on
    Resume(JobsArgs),
    /// End jobs, with what they have
    Cancel(JobsArgs),
    /// Write down what a job has proven
    #[command(after_help = service::REPORT_HELP)]
    Report(ReportArgs),
}

pub(crate) const HELP: &str = "\
Compares Cassandra with PostgreSQL while writes go on and reports only what is really different: changes under way are told
apart by a barrier through the whole pipeline. docs/reconciliation.md says what is proven and how to read a report.

`run` does it in this process. The others ask a running `cdc reconciler` (docs/api.md), which keeps what it finds.

Examples:
  cdc reconcile run cdc.yaml --table shop.orders
  cdc reconcile run cdc.yaml --table 'shop.*' --strategy version --output json
  cdc reconcile start --table shop.orders --wait
  cdc reconcile findings --table shop.orders
  cdc reconcile report 0b9d5f4e-... --out report.html";

pub(crate) fn run(command: &ReconcileCommand) -> anyhow::Result<ExitCode> {
    match command {
        ReconcileCommand::Run(args) => run::run(args),
        ReconcileCommand::Start(args) => service::start(args),
        ReconcileCommand::Status(args) => service::status(args),
        ReconcileCommand::Watch(args) => service::watch(args),
        ReconcileCommand::Findings(args) => service::findings(args),
        ReconcileCommand::Repair(args) => service::repair(args),
        ReconcileCommand::Pause(args) => service::steer(args, "pause"),
        ReconcileCommand::Resume(args) => service::steer(args, "resume"),
        ReconcileCommand::Cancel(args) => service::steer(args, "cancel"),
        ReconcileCommand::Report(args) => service::report(args),
    }
}
