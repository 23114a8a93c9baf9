//! `cdc barrier`: waits until PostgreSQL has what Cassandra acknowledged before.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use cdc_cassandra::checks::Wanted;
use cdc_cassandra::{Cassandra, MarkError};
use cdc_kafka::KafkaError;
use cdc_postgres::Target;
use cdc_reconciler::barrier::{Barrier, BarrierError, BarrierSettings};
use cdc_runtime::{Exit, Refusal};
use clap::Args;
use serde_json::json;

use crate::cli::{Output, complain, say};
use crate::config::Config;
use crate::role::chain;

pub(crate) const HELP: &str = "\
Answers once every write that Cassandra acknowledged before the call, on any node, is visible in PostgreSQL: to read what was
just written, to compare, to cut over. What was set aside (`cdc dlq`) counts as delivered.
FILE is the configuration of an agent; its sections cassandra, source, postgres and, if there is one, kafka say where to ask.
A mark goes through Cassandra into the commit log of every node and must come through the whole pipeline, so the agents,
and with Kafka the sinks, must run. docs/barrier.md says how it works and how long it takes.

Exit codes: 0 passed, 1 not within the time: what was missing is said, 69 a server cannot be used, or a node could not take
the mark.

Examples:
  cdc barrier cdc.yaml
  cdc barrier cdc.yaml --timeout 2m --output json
  cdc barrier cdc.yaml --table shop.orders      through Kafka, without waiting for other tables";

#[derive(Args, Debug)]
pub(crate) struct BarrierArgs {
    /// Configuration, YAML
    #[arg(value_name = "FILE")]
    config: PathBuf,
    /// Give up after this, as in 500ms, 30s or 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// Only of this table, as `keyspace.table` or `keyspace.*`; may be given several times. Directly, all tables of a node have
    /// one position and are waited for together
    #[arg(long = "table", value_name = "TABLE", value_parser = table)]
    tables: Vec<Wanted>,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

fn duration(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.strip_prefix(number).unwrap_or_default();
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err("use a number and its unit, as in 500ms, 30s or 5m".to_owned()),
    };
    let milliseconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale));
    milliseconds.map(Duration::from_millis).ok_or_else(|| "use a whole number, as in 500ms, 30s or 5m".to_owned())
}

fn table(text: &str) -> Result<Wanted, String> {
    Wanted::parse(text).ok_or_else(|| "use `keyspace.table` or `keyspace.*`".to_owned())
}

pub(crate) fn run(args: &BarrierArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config, None)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let exit = runtime.block_on(Box::pin(wait(config, args)));
    runtime.shutdown_background();
    Ok(exit?.into())
}

async fn wait(mut config: Config, args: &BarrierArgs) -> anyhow::Result<Exit> {
    crate::credentials::at_once(&mut config).await?;
    let Config { cassandra: Some(cassandra), source: Some(source), postgres: Some(mut postgres), kafka, .. } = config
    else {
        let message = "`cdc barrier` needs the sections cassandra, source and postgres, as an agent has them, and kafka if the \
                       pipeline has one";
        return Err(Refusal::config(message).into());
    };
    let captured: Vec<Wanted> = source.tables.iter().filter_map(|text| Wanted::parse(text)).collect();
    for table in &args.tables {
        let covers = |wanted: &Wanted| {
            wanted.keyspace == table.keyspace && (wanted.table.is_none() || wanted.table == table.table)
        };
        if !captured.iter().any(covers) {
            let name = table.table.as_deref().unwrap_or("*");
            let message = format!("--table {}.{name} is not among source.tables of the configuration", table.keyspace);
            return Err(Refusal { exit: Exit::Usage, message }.into());
        }
    }
    postgres.pool_size = 1;
    let connecting = async {
        let cassandra = Cassandra::connect(&cassandra).await.map_err(MarkError::from)?;
        let target = Target::connect(&postgres).await?;
        let settings = BarrierSettings { marks: source.marks(), captured };
        Barrier::connect(cassandra, target, kafka.as_ref(), settings).await
    };
    let barrier = Box::pin(connecting).await.map_err(|error| refuse(&error))?;
    let tables = (!args.tables.is_empty()).then_some(args.tables.as_slice());
    match Box::pin(barrier.pass_for(tables, args.timeout)).await {
        Ok(passed) => {
            let milliseconds = passed.round_trip.as_millis();
            match args.output {
                Output::Table => say(&format!(
                    "passed: what was written before is in PostgreSQL (nodes {}, {milliseconds} ms)",
                    passed.nodes
                )),
                Output::Json => {
                    let (id, nodes) = (passed.id, passed.nodes);
                    let answer = json!({"passed": true, "id": id, "nodes": nodes, "round_trip_ms": milliseconds});
                    say(&serde_json::to_string_pretty(&answer).context("write the answer")?);
                }
            }
            Ok(Exit::Success)
        }
        Err(error @ BarrierError::TimedOut { .. }) => {
            complain(&error.to_string());
            if let (BarrierError::TimedOut { missing, .. }, Output::Json) = (&error, args.output) {
                let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
                let answer = json!({"passed": false, "missing": missing});
                say(&serde_json::to_string_pretty(&answer).context("write the answer")?);
            }
            Ok(Exit::Failure)
        }
        Err(error) => Err(refuse(&error).into()),
    }
}

fn refuse(error: &BarrierError) -> Refusal {
    match error {
        BarrierError::Kafka(KafkaError::Settings(_)) | BarrierError::Mark(MarkError::NothingCaptured) => {
            Refusal::config(chain(error))
        }
        _ => Refusal::unavailable(chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_needs_its_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["30", "s", "", "-1s", "1.5s", "1h", "18446744073709551615m"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
