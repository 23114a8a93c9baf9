//! The `cdc` command.

mod barrier;
mod cli;
mod config;
mod credentials;
mod demo;
mod dev;
mod dlq;
mod log;
mod reconcile;
mod report;
mod role;
mod snapshot;
mod status;
mod validate;

use std::process::ExitCode;

use cdc_runtime::Exit;
use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Source(args) => role::run(config::Role::Source, &args, cli.log_level.as_deref()),
        Command::Sink(args) => role::run(config::Role::Sink, &args, cli.log_level.as_deref()),
        Command::Run(args) => role::run(config::Role::Run, &args, cli.log_level.as_deref()),
        Command::Reconciler(args) => role::run(config::Role::Reconciler, &args, cli.log_level.as_deref()),
        Command::Migrate(args) => role::migrate(&args, cli.log_level.as_deref()),
        Command::Validate(args) => validate::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Dev(command) => dev::run(command),
        Command::Log(command) => log::run(&command),
        Command::Barrier(args) => barrier::run(&args),
        Command::Dlq(command) => dlq::run(&command),
        Command::Snapshot(command) => snapshot::run(&command),
        Command::Reconcile(command) => reconcile::run(&command),
        Command::Demo(args) => demo::run(args),
    };
    done.unwrap_or_else(|error| {
        cli::complain(&format!("{error:#}"));
        Exit::of(&error).into()
    })
}
