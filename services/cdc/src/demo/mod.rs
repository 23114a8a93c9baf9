//! `cdc demo`: real servers, the real pipeline as child processes, a mixed load, and a verdict from code that shares nothing
//! with the pipeline.
//!
//! **Invariant:** the last line on standard output is the result, in a form scripts may rely on; everything for people goes
//! to standard error. Whatever ends the demo, SIGKILL included, ends its children and servers too.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the demo talks to the person at the terminal")]

mod pipeline;
mod servers;
mod verdict;
mod view;

use std::num::NonZeroU32;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cdc_testkit::default_version;
use cdc_workload::{DelayProbe, Load, LoadOptions, oracle, shop};
use scylla::client::session::Session;
use tokio::sync::mpsc;

use pipeline::Pipeline;
use servers::Servers;
use verdict::Verdict;
use view::View;

/// The workload's short TTLs are at most 6 s; the sweeper needs a moment more.
const SHORT_TTLS_ARE_OVER: Duration = Duration::from_secs(8);
/// For samples that are still not visible when the pipeline says that it is idle.
const LAST_SAMPLES_WITHIN: Duration = Duration::from_secs(10);
/// A server that has just started compiles its own code first; the delays of that time are not the pipeline's.
const WARM_UP_OPERATIONS: u64 = 3_000;
const WARM_UP_CONCURRENCY: usize = 16;
const SAMPLES_IN_THE_CHANNEL: usize = 4_096;

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Cassandra to PostgreSQL, source and sink in one process.
    Direct,
    /// Cassandra to Kafka to PostgreSQL, source and sink in processes of their own.
    Kafka,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoArgs {
    #[arg(long, value_enum, default_value_t = Mode::Direct)]
    mode: Mode,
    /// Operations per second.
    #[arg(long, default_value = "1000")]
    rate: NonZeroU32,
    /// How long the load runs.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Leave all running after the verdict, and say how to look around, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Cassandra nodes, each with an agent of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// The same seed writes the same statements in the same order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Version of Cassandra: 5.0, 4.1 or 4.0, or in full.
    #[arg(long, value_name = "VERSION", default_value = default_version::CASSANDRA)]
    cassandra: String,
    /// Version of PostgreSQL: 14 to 18, or in full; or `system`.
    #[arg(long, value_name = "VERSION", default_value = default_version::POSTGRES)]
    postgres: String,
}

/// Runs the demo; succeeds only when both stores are equal and nothing was quarantined.
///
/// # Errors
/// A server or a part of the pipeline did not start, died, or did not come to rest.
pub(crate) fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = Box::pin(demo(&args)) => outcome,
            _ = tokio::signal::ctrl_c() => {
                eprintln!("\ndemo: interrupted, everything is being stopped");
                Ok(ExitCode::from(130))
            }
        }
    });
    // A server that is just starting must not hold up the end; it dies with this process.
    runtime.shutdown_background();
    outcome
}

async fn demo(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let servers = Servers::start(args).await?;
    let contact_points = servers.cassandra.contact_points();
    let session = Arc::new(cdc_workload::connect(&contact_points).await?);
    shop::create_schema(&session, usize::from(args.nodes)).await.context("create the shop")?;
    let mut pipeline = Pipeline::start(args.mode, &servers)?;
    pipeline.ready().await?;
    eprintln!(
        "demo: ready after {:.0} s; warming Cassandra up with {WARM_UP_OPERATIONS} operations",
        started.elapsed().as_secs_f64()
    );
    let warm_up = warm_up(&session, args.seed);
    let warmed_up = tokio::select! {
        events = warm_up => events,
        death = pipeline.death() => return Err(death),
    };
    eprintln!("demo: {} operations/s for {} s", args.rate, args.seconds);

    let (sender, samples) = mpsc::channel(SAMPLES_IN_THE_CHANNEL);
    let probe = DelayProbe::new(servers.postgres_config()?, "public.cdc_users", samples);
    let delays = probe.delays();
    let options = LoadOptions { seed: args.seed, rate: Some(args.rate.get()), ..LoadOptions::default() };
    let mut load = Load::new(session.clone(), options, Some(sender));
    let counters = load.counters();
    let view = View::new(counters.clone(), delays.clone(), pipeline.statuses(), servers.postgres_config()?);

    let statuses = pipeline.statuses();
    let work = async {
        load.run(tokio::time::sleep(Duration::from_secs(args.seconds))).await;
        // The probe ends when the last sender has gone and the last sample is visible.
        drop(load);
        let ttls_over = tokio::time::Instant::now() + SHORT_TTLS_ARE_OVER;
        eprintln!("demo: load stopped; waiting for the backlog and for the short TTLs");
        statuses.idle().await?;
        tokio::time::sleep_until(ttls_over).await;
        anyhow::Ok(())
    };
    let mut probe = pin!(probe.run());
    let work_and_probe = async {
        let mut work = pin!(work);
        tokio::select! {
            done = &mut work => done?,
            () = &mut probe => return work.await,
        }
        tokio::time::timeout(LAST_SAMPLES_WITHIN, probe).await.ok();
        Ok(())
    };
    let done = tokio::select! {
        done = work_and_probe => done,
        death = pipeline.death() => return Err(death),
        () = view.run() => Ok(()),
    };
    drop(view);
    done.map_err(|error| error.context(pipeline.tails()))?;

    eprintln!("demo: comparing every row and cell of both stores");
    let compared = Instant::now();
    let report = servers
        .with_postgres(async |client| oracle::compare(&session, client, shop::KEYSPACE, &shop::TABLES).await)
        .await
        .context("compare both stores")?;
    let verdict = Verdict {
        mode: args.mode,
        events: warmed_up + counters.acknowledged(),
        failed: counters.failed(),
        first_failure: counters.first_failure(),
        report,
        compared_in: compared.elapsed(),
        quarantined: servers.quarantined().await? + statuses.set_aside().await?,
        delays,
        peak_memory: pipeline.peak_memory(),
    };
    eprintln!("{}", verdict.table());
    let passed = verdict.passed();
    if !passed {
        eprintln!("{}", pipeline.tails());
        pipeline.keep_folder();
    }
    println!("{}", verdict.line());
    if args.keep {
        eprintln!("{}", servers.how_to_look_around(args.nodes)?);
        return Err(pipeline.death().await);
    }
    eprintln!("demo: stopping ({:.0} s in all)", started.elapsed().as_secs_f64());
    pipeline.stop().await;
    tokio::task::spawn_blocking(|| drop(servers)).await.context("stop the servers")?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Replicated and compared as everything else, but its delays are not measured. Returns the statements acknowledged.
async fn warm_up(session: &Arc<Session>, seed: u64) -> u64 {
    let options =
        LoadOptions { seed: !seed, rate: None, limit: Some(WARM_UP_OPERATIONS), concurrency: WARM_UP_CONCURRENCY };
    let mut load = Load::new(session.clone(), options, None);
    load.run(std::future::pending()).await;
    load.counters().acknowledged()
}
