//! `cdc dev`.

use std::process::ExitCode;

use cdc_runtime::Exit;
use cdc_testkit::dev::{self, UpOptions};

use crate::cli::{DevCommand, say};

pub(crate) fn run(command: DevCommand) -> anyhow::Result<ExitCode> {
    match command {
        DevCommand::Up(args) => {
            let state = dev::up(&UpOptions {
                name: args.name.name,
                cassandra: Some(args.cassandra),
                nodes: args.nodes,
                kafka: args.kafka,
                postgres: Some(args.postgres),
            })?;
            say(&state.to_string());
        }
        DevCommand::Status(args) => {
            let status = dev::status(&args.name)?;
            say(&status.to_string());
            if !status.servers.iter().all(|server| server.up) {
                return Ok(Exit::Failure.into());
            }
        }
        DevCommand::Down(args) => dev::down(&args.name)?,
        DevCommand::Supervise { folder } => dev::supervise(&folder)?,
    }
    Ok(Exit::Success.into())
}
