//! `cdc snapshot`: asks a running agent to copy the rows of a table.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use cdc_runtime::{Exit, Refusal};
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::{Output, StatusArgs, say};
use crate::status;

pub(crate) const HELP: &str = "\
The agent copies rows over CQL with their write times and expiries, beside the stream, which goes on; what is newer wins,
whichever comes first. A table may be copied again at any time. It survives restarts of the agent. Each agent copies the
ranges of its own node, so with several nodes ask each of them, or one with --ranges all. docs/snapshot.md has the rest.

The agent is found as by `cdc status`: --url, else the admin section of FILE, else 127.0.0.1:8084.

Exit codes: 0 done, 1 failed or cancelled, 2 what was asked for is wrong, 69 no agent answers.

Examples:
  cdc snapshot start cdc.yaml --table shop.orders --wait
  cdc snapshot start --table shop.orders --range -100:100
  cdc snapshot status --output json
  cdc snapshot cancel --table shop.orders";

const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(300);

#[derive(Subcommand, Debug)]
pub(crate) enum SnapshotCommand {
    /// Begin to copy a table
    Start(StartArgs),
    /// Show snapshots and how far they are
    Status(StatusOf),
    /// End an unfinished one; what was copied stays
    Cancel(CancelArgs),
}

#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    /// `keyspace.table`
    #[arg(long, value_name = "TABLE")]
    table: String,
    /// Only these tokens, START:END, whichever node has them
    #[arg(long, value_name = "START:END", allow_hyphen_values = true)]
    range: Option<String>,
    /// Other ranges than configured
    #[arg(long, value_enum, conflicts_with = "range")]
    ranges: Option<RangesArg>,
    /// Until it has ended
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    agent: StatusArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum RangesArg {
    /// Those this node is the primary replica of
    Primary,
    /// The whole ring
    All,
}

#[derive(Args, Debug)]
pub(crate) struct StatusOf {
    /// Of this table alone
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Until none is unfinished
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    agent: StatusArgs,
}

#[derive(Args, Debug)]
pub(crate) struct CancelArgs {
    /// `keyspace.table`
    #[arg(long, value_name = "TABLE")]
    table: String,
    #[command(flatten)]
    agent: StatusArgs,
}

pub(crate) fn run(command: &SnapshotCommand) -> anyhow::Result<ExitCode> {
    let exit = match command {
        SnapshotCommand::Start(args) => start(args),
        SnapshotCommand::Status(args) => show(args),
        SnapshotCommand::Cancel(args) => cancel(args),
    };
    Ok(exit?.into())
}

fn start(args: &StartArgs) -> anyhow::Result<Exit> {
    let agent = status::address(&args.agent)?;
    let mut wish = json!({"table": args.table});
    if let Some(range) = &args.range {
        wish["range"] = range.as_str().into();
    }
    if let Some(ranges) = args.ranges {
        wish["ranges"] = if ranges == RangesArg::All { "all" } else { "primary" }.into();
    }
    let mut snapshot = ask(agent, "POST", "/snapshots", &wish.to_string())?;
    if args.wait {
        snapshot = wait(agent, snapshot)?;
    }
    print(args.agent.output, &snapshot, std::slice::from_ref(&snapshot))?;
    Ok(if args.wait { outcome(&snapshot) } else { Exit::Success })
}

fn show(args: &StatusOf) -> anyhow::Result<Exit> {
    let agent = status::address(&args.agent)?;
    let listed = || -> anyhow::Result<Vec<Value>> {
        let mut answer = ask(agent, "GET", "/snapshots", "")?;
        let all = answer["snapshots"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let is_named = |one: &Value| args.table.as_ref().is_none_or(|table| one["table"] == table.as_str());
        Ok(all.into_iter().filter(is_named).collect())
    };
    let mut snapshots = listed()?;
    if args.wait {
        while let Some(unfinished) = snapshots.iter().find(|one| !has_ended(one)) {
            wait(agent, unfinished.clone())?;
            snapshots = listed()?;
        }
    }
    print(args.agent.output, &json!(snapshots), &snapshots)?;
    let last = snapshots.last().filter(|_| args.wait);
    Ok(last.map_or(Exit::Success, outcome))
}

fn cancel(args: &CancelArgs) -> anyhow::Result<Exit> {
    let agent = status::address(&args.agent)?;
    let path = format!("/snapshots?table={}", percent_encoded(&args.table));
    let snapshot = ask(agent, "DELETE", &path, "")?;
    print(args.agent.output, &snapshot, std::slice::from_ref(&snapshot))?;
    Ok(Exit::Success)
}

fn has_ended(snapshot: &Value) -> bool {
    !matches!(snapshot["state"].as_str(), Some("waiting" | "running"))
}

fn outcome(snapshot: &Value) -> Exit {
    if snapshot["state"] == "done" { Exit::Success } else { Exit::Failure }
}

/// Under a progress bar, until it has ended. An interrupt ends the waiting alone.
fn wait(agent: SocketAddr, begun: Value) -> anyhow::Result<Value> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(1000) } else { ProgressBar::hidden() };
    let style = "{prefix} {wide_bar} {percent:>3}% {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("a template that was tried"));
    let id = begun["id"].clone();
    let mut snapshot = begun;
    while !has_ended(&snapshot) {
        std::thread::sleep(POLL);
        let answer = ask(agent, "GET", "/snapshots", "")?;
        let all = answer["snapshots"].as_array();
        let found = all.and_then(|all| all.iter().find(|one| one["id"] == id));
        snapshot = found.context("the agent has forgotten the snapshot")?.clone();
        bar.set_prefix(snapshot["table"].as_str().unwrap_or_default().to_owned());
        bar.set_position(permille(&snapshot));
        bar.set_message(figures(&snapshot));
    }
    bar.finish_and_clear();
    Ok(snapshot)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bar's length")]
fn permille(snapshot: &Value) -> u64 {
    (snapshot["done_percent"].as_f64().unwrap_or_default().clamp(0.0, 100.0) * 10.0) as u64
}

fn figures(snapshot: &Value) -> String {
    if let Some(why) = snapshot["why"].as_str() {
        return why.to_owned();
    }
    let eta = snapshot["eta_seconds"].as_u64().map_or(String::new(), |seconds| format!(", ETA {seconds} s"));
    format!("{} rows, {:.0}/s{eta}", snapshot["rows"], snapshot["rows_per_second"].as_f64().unwrap_or_default())
}

fn print(output: Output, whole: &Value, snapshots: &[Value]) -> anyhow::Result<()> {
    match output {
        Output::Json => say(&serde_json::to_string_pretty(whole).context("write the answer")?),
        Output::Table if snapshots.is_empty() => say("no snapshots"),
        Output::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            table.set_header(["id", "table", "state", "done", "ranges", "of the ring", ""]);
            for one in snapshots {
                let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
                let percent = |field: &str| format!("{:.1} %", one[field].as_f64().unwrap_or_default());
                table.add_row([
                    one["id"].to_string(),
                    text("table"),
                    text("state"),
                    percent("done_percent"),
                    format!("{}/{}", one["ranges_done"], one["ranges_total"]),
                    percent("ring_percent"),
                    figures(one),
                ]);
            }
            say(&table.to_string());
        }
    }
    Ok(())
}

/// The agent's answer, or what it says is wrong.
fn ask(agent: SocketAddr, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
    let (code, answer) = exchange(agent, method, path, body).map_err(|error| {
        Refusal::unavailable(format!(
            "no agent answers at {agent} ({error}); start one with `cdc run FILE`, or name its address with --url"
        ))
    })?;
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    if (200..300).contains(&code) {
        return Ok(answer);
    }
    let detail = answer["detail"].as_str().map_or_else(
        || format!("{agent} answers with HTTP {code}: is it an agent, `cdc source` or `cdc run`, of this release?"),
        ToOwned::to_owned,
    );
    let exit = match code {
        400 | 409 | 422 => Exit::Usage,
        404 if !answer["detail"].is_null() => Exit::Usage,
        500 => Exit::Failure,
        _ => Exit::Unavailable,
    };
    Err(Refusal { exit, message: detail }.into())
}

/// In version 1.0, so that the body ends with the connection, in no chunks.
fn exchange(agent: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&agent, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {agent}\r\nContent-Type: application/json");
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let not_http = || std::io::Error::new(std::io::ErrorKind::InvalidData, "the answer is not HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(not_http)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(not_http)?;
    Ok((code, body.to_owned()))
}

fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let encoded = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encoded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_fit_into_a_path() {
        assert_eq!(percent_encoded("shop.orders"), "shop.orders");
        assert_eq!(percent_encoded("shop.Ü &x"), "shop.%C3%9C%20%26x");
    }

    #[test]
    fn figures_tell_what_keeps_it_from_going_on() {
        let running = json!({"rows": 5, "rows_per_second": 2.5, "eta_seconds": 7, "why": null});
        assert_eq!(figures(&running), "5 rows, 2/s, ETA 7 s");
        let troubled = json!({"rows": 5, "why": "Cassandra is asked again"});
        assert_eq!(figures(&troubled), "Cassandra is asked again");
    }
}
