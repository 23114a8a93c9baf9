//! `cdc dlq`: dead letters, for the person who deals with them.
//!
//! **Invariant:** keys and values of rows are printed by `show --values` alone.

mod act;
mod look;

use std::path::PathBuf;
use std::process::ExitCode;

use cdc_postgres::{Disposition, ErrorType, LetterFilter, LetterStatus, Target, TargetError};
use cdc_reconciler::service::Letters;
use cdc_runtime::{Exit, Refusal};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Subcommand, ValueEnum};
use uuid::Uuid;

use crate::cli::Output;
use crate::config::Config;
use crate::role::chain;

#[derive(Subcommand, Debug)]
pub(crate) enum DlqCommand {
    /// Show dead letters, a line each, oldest first: no keys, no values
    #[command(after_help = LIST_HELP)]
    List(ListArgs),
    /// Show everything about some letters, with their attempts
    #[command(after_help = SHOW_HELP)]
    Show(ShowArgs),
    /// Count letters by table, cause and status
    #[command(after_help = STATS_HELP)]
    Stats(ListArgs),
    /// Apply unresolved letters again
    #[command(after_help = REPLAY_HELP)]
    Replay(ReplayArgs),
    /// Give unresolved letters up
    #[command(after_help = DISCARD_HELP)]
    Discard(DiscardArgs),
}

pub(crate) const HELP: &str = "\
What could not be applied to PostgreSQL, or not even be decoded, is kept in its table _cdc.dlq. docs/dlq.md says what each error
type means and what to do. FILE is the configuration of the pipeline; its section postgres says where the letters are.
No process of the pipeline is disturbed by any of these.

Examples:
  cdc dlq stats cdc.yaml
  cdc dlq list cdc.yaml --table shop.orders --error-type CONSTRAINT_VIOLATION
  cdc dlq show cdc.yaml --id 0b9d5f4e-...
  cdc dlq replay cdc.yaml --table shop.orders --dry-run
  cdc dlq discard cdc.yaml --id 0b9d5f4e-... --reason 'a test row'";

const LIST_HELP: &str = "\
Examples:
  cdc dlq list cdc.yaml
  cdc dlq list cdc.yaml --status all --since 2026-11-01 --output json";

const SHOW_HELP: &str = "\
Examples:
  cdc dlq show cdc.yaml --id 0b9d5f4e-...
  cdc dlq show cdc.yaml --id 0b9d5f4e-... --values         with keys and values of the row";

const STATS_HELP: &str = "\
Letters of every status, unless --status says which.

Examples:
  cdc dlq stats cdc.yaml
  cdc dlq stats cdc.yaml --status unresolved --output json";

const REPLAY_HELP: &str = "\
Each letter goes through the same merge as every change, so newer data in PostgreSQL wins, the order does not matter, and a
replay that was interrupted is simply run again. A letter is resolved once its row was read back; one that fails again
stays, with one attempt more in its history. --dry-run tries all and writes nothing.

Exit codes: 0 all matching letters are resolved (or would be), 1 some were refused again, 69 PostgreSQL cannot be used.

Examples:
  cdc dlq replay cdc.yaml --dry-run
  cdc dlq replay cdc.yaml --error-type SCHEMA_MISMATCH
  cdc dlq replay cdc.yaml --table shop.orders --until 2026-11-21T10:00Z --limit 1000";

const DISCARD_HELP: &str = "\
The letters stay in _cdc.dlq as discarded, with the reason, and are not replayed any more. Asks first; --yes answers.

Examples:
  cdc dlq discard cdc.yaml --id 0b9d5f4e-... --reason 'a test row'
  cdc dlq discard cdc.yaml --table shop.tests --dry-run
  cdc dlq discard cdc.yaml --table shop.tests --yes";

#[derive(Args, Debug)]
struct FilterArgs {
    /// Configuration, YAML
    #[arg(value_name = "FILE")]
    config: PathBuf,
    /// Only of this table, as `keyspace.table`; of a record that tells none, its topic
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Only of this type
    #[arg(long, value_name = "TYPE", value_parser = error_type())]
    error_type: Option<ErrorType>,
    /// Only of this status; if it is not given: unresolved (`stats`, and where --id is given: all)
    #[arg(long, value_enum)]
    status: Option<Status>,
    /// Only those first refused then or later, in any form PostgreSQL reads, such as 2026-11-21T10:00Z or yesterday
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only those first refused before
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only this one; may be given several times
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<Uuid>,
    /// Only so many, the oldest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Status {
    Unresolved,
    Resolved,
    Discarded,
    All,
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Keys and values, too
    #[arg(long)]
    values: bool,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Try, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct DiscardArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Say how many, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Kept with the letters
    #[arg(long, default_value = "discarded by cdc dlq")]
    reason: String,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

fn error_type() -> impl clap::builder::TypedValueParser<Value = ErrorType> {
    PossibleValuesParser::new(ErrorType::ALL.map(ErrorType::name)).map(|name| ErrorType::named(&name))
}

impl FilterArgs {
    fn filter(&self, default: Status) -> LetterFilter {
        let status = match self.status.unwrap_or(if self.ids.is_empty() { default } else { Status::All }) {
            Status::Unresolved => Some(LetterStatus::Unresolved),
            Status::Resolved => Some(LetterStatus::Resolved),
            Status::Discarded => Some(LetterStatus::Discarded),
            Status::All => None,
        };
        LetterFilter {
            ids: self.ids.clone(),
            table: self.table.clone(),
            error_type: self.error_type,
            status,
            since: self.since.clone(),
            until: self.until.clone(),
            limit: self.limit,
            offset: 0,
        }
    }
}

pub(crate) fn run(command: &DlqCommand) -> anyhow::Result<ExitCode> {
    let filter = match command {
        DlqCommand::List(args) | DlqCommand::Stats(args) => &args.filter,
        DlqCommand::Show(args) => &args.filter,
        DlqCommand::Replay(args) => &args.filter,
        DlqCommand::Discard(args) => &args.filter,
    };
    let mut config = Config::load(&filter.config, None)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let exit = runtime.block_on(Box::pin(async {
        crate::credentials::at_once(&mut config).await?;
        let letters = connect(config).await?;
        match command {
            DlqCommand::List(args) => look::list(&letters, args).await,
            DlqCommand::Show(args) => look::show(&letters, args).await,
            DlqCommand::Stats(args) => look::stats(&letters, args).await,
            DlqCommand::Replay(args) => act::replay(&letters, args).await,
            DlqCommand::Discard(args) => act::discard(&letters, args).await,
        }
    }));
    runtime.shutdown_background();
    Ok(exit?.into())
}

async fn connect(config: Config) -> anyhow::Result<Letters> {
    let Some(mut postgres) = config.postgres else {
        let message = "section postgres is missing, which `cdc dlq` needs: it says where the letters are".to_owned();
        return Err(Refusal::config(message).into());
    };
    // A replay holds one for the length of a batch.
    postgres.pool_size = postgres.pool_size.max(2);
    let target = Target::connect(&postgres).await.map_err(refuse)?;
    Ok(Letters { target, kafka: config.kafka, decode: cdc_sink::decode_again })
}

fn refuse(error: TargetError) -> Refusal {
    match error.disposition() {
        Disposition::Quarantine => Refusal {
            exit: Exit::Usage,
            message: "--since and --until take a time in a form PostgreSQL reads, such as 2026-11-21T10:00Z".to_owned(),
        },
        Disposition::Retry | Disposition::Halt => Refusal::unavailable(chain(&error)),
    }
}
