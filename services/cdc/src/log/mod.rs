//! `cdc log`: commit-log segments as a tool by itself, without a pipeline.
//!
//! **Invariant:** nothing is written anywhere but to standard output and standard error, and values and keys of rows
//! only by `dump`.

mod dump;
mod input;
mod json;
mod reading;
mod schema;
mod stat;
mod text;
mod value;

use std::process::ExitCode;

use clap::Subcommand;
pub(crate) use json::write_change;

#[derive(Subcommand, Debug)]
pub(crate) enum LogCommand {
    /// Show every change, with keys and values
    #[command(after_help = DUMP_HELP)]
    Dump(dump::DumpArgs),
    /// Show what segments hold, in numbers: no keys, no values
    #[command(after_help = STAT_HELP)]
    Stat(stat::StatArgs),
    /// Print a node's schema, to read its segments later or elsewhere: no keys, no values
    #[command(after_help = SCHEMA_HELP)]
    Schema(schema::SchemaArgs),
}

pub(crate) fn run(command: &LogCommand) -> anyhow::Result<ExitCode> {
    match command {
        LogCommand::Dump(args) => dump::run(args),
        LogCommand::Stat(args) => stat::run(args),
        LogCommand::Schema(args) => schema::run(args),
    }
}

pub(crate) const HELP: &str = "\
Reads the commit log of Cassandra 4.0, 4.1 and 5.0 without a running node: plain, compressed and encrypted segments.
Segments lie in commitlog_directory and, of tables with cdc = true, in cdc_raw_directory. They are only read.
Values and keys are shown by `dump` alone.

Examples:
  cdc log stat /var/lib/cassandra/cdc_raw
  cdc log schema --contact-point 127.0.0.1 > schema.json
  cdc log dump --schema schema.json CommitLog-7-1699285478684.log
  cdc log dump --contact-point 127.0.0.1 --follow /var/lib/cassandra/cdc_raw";

const DUMP_HELP: &str = "\
Shows the values and keys of rows. The form of the JSON: docs/specs/log-json.md.

The schema comes from a file, from a node, or else from the segments themselves, which hold every change of it: tables
created before the oldest segment given are then not known, and named at the end. It is followed in the log in any case,
so that what was written before an ALTER TABLE is read as it was written.

A segment that is still written to is shown up to its last sync marker, with --follow up to its last complete entry.

Exit codes:
  0   all was shown, or whoever read the output went away, or Ctrl-C
  1   a segment could not be read, or not be written about
  2   wrong command line, or not a segment
  65  damage: what could not be trusted was skipped, and named on standard error
  69  the node cannot be reached
  78  wrong configuration, schema file or keystore

Examples:
  cdc log dump /var/lib/cassandra/commitlog
  cdc log dump --schema schema.json --table shop.orders CommitLog-7-1699285478684.log | jq .cells
  cdc log dump --contact-point 127.0.0.1 --follow --from end --output text /var/lib/cassandra/cdc_raw
  cdc log dump --config cdc.yaml --from 1699285478684:392 /var/lib/cassandra/cdc_raw
  CDC_KEYSTORE_PASSWORD=... cdc log dump --keystore /etc/cassandra/keystore CommitLog-7-1699285478684.log";

const STAT_HELP: &str = "\
Per segment its version, compression and encryption, length, sections and entries; per table entries, bytes, changes and
the range of write times; and damage. With --output json an object per line and segment.
Exit codes as of `cdc log dump`.

Examples:
  cdc log stat /var/lib/cassandra/cdc_raw
  cdc log stat --contact-point 127.0.0.1 --output json CommitLog-7-1699285478684.log";

const SCHEMA_HELP: &str = "\
Rows of system_schema as JSON, for --schema of `cdc log dump` and `cdc log stat`.

Examples:
  cdc log schema --contact-point 127.0.0.1 > schema.json
  CDC__CASSANDRA__USERNAME=me CDC__CASSANDRA__PASSWORD=... cdc log schema --contact-point db:9042 > schema.json
  cdc log schema --config cdc.yaml > schema.json";
