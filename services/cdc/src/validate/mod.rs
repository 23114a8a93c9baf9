//! `cdc validate`: everything that would keep a role from working, told before it is started.
//!
//! **Invariant:** nothing is changed: no topic, schema or file is created.

mod cassandra;
mod files;
mod kafka;
mod postgres;

use std::process::ExitCode;

use cdc_runtime::config::ConfigErrors;
use cdc_runtime::{Exit, Refusal};

use crate::cli::{ValidateArgs, complain, say};
use crate::config::{Config, Role};

/// One thing to put right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Finding {
    exit: Exit,
    sentence: String,
}

impl Finding {
    /// The file, a table's definition or this machine must be changed.
    fn config(sentence: impl Into<String>) -> Self {
        Self { exit: Exit::Config, sentence: sentence.into() }
    }

    /// A server is missing or unsuitable.
    fn unavailable(sentence: impl Into<String>) -> Self {
        Self { exit: Exit::Unavailable, sentence: sentence.into() }
    }
}

pub(crate) fn run(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let file = args.config.display();
    let mut config = match Config::load(&args.config, args.role) {
        Ok(config) => config,
        Err(errors) => {
            explain(&errors);
            return Ok(Exit::Config.into());
        }
    };
    let role = args.role.unwrap_or_else(|| config.role());
    if args.offline {
        say(&format!("{file} is valid for `cdc {}`; servers, tables and folders were not looked at", role.name()));
        return Ok(Exit::Success.into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Refusal { exit: Exit::Failure, message: format!("cannot start threads: {error}") })?;
    let findings = runtime.block_on(Box::pin(async {
        match crate::credentials::at_once(&mut config).await {
            Ok(()) => online(role, &config).await,
            // Nothing can be asked without a login.
            Err(error) => vec![Finding { exit: Exit::of(&error), sentence: format!("{error:#}") }],
        }
    }));
    runtime.shutdown_background();
    if findings.is_empty() {
        say(&format!("{file} is valid, and all that `cdc {}` needs is there", role.name()));
        return Ok(Exit::Success.into());
    }
    for finding in &findings {
        complain(&finding.sentence);
    }
    let count = findings.len();
    say(&format!("{file}: {count} finding{}", if count == 1 { "" } else { "s" }));
    // What can be put right by editing comes first: a server may only seem to be missing.
    let config_first = findings.iter().any(|finding| finding.exit == Exit::Config);
    Ok(if config_first { Exit::Config } else { Exit::Unavailable }.into())
}

fn explain(errors: &ConfigErrors) {
    complain(&errors.to_string());
}

/// What is wrong outside of the file, in the order of the data's way.
async fn online(role: Role, config: &Config) -> Vec<Finding> {
    let captures = role != Role::Sink;
    let through_kafka = config.kafka.is_some();
    let applies = role != Role::Source || !through_kafka;
    let ((cassandra, tables), mut postgres, kafka) = tokio::join!(
        async {
            match (&config.cassandra, &config.source) {
                (Some(cassandra), Some(source)) if captures => {
                    cassandra::check(cassandra, source, config.postgres.as_ref()).await
                }
                _ => (Vec::new(), Vec::new()),
            }
        },
        async {
            match &config.postgres {
                Some(postgres) if applies => postgres::check(postgres).await,
                _ => Vec::new(),
            }
        },
        async {
            match &config.kafka {
                Some(kafka) => kafka::check(kafka).await,
                None => Vec::new(),
            }
        },
    );
    if let Some(config) = config.postgres.as_ref().filter(|_| applies) {
        postgres.extend(postgres::compare(config, &tables).await);
    }
    // A reconciler runs elsewhere.
    let reads_log = captures && role != Role::Reconciler;
    let files = config.source.as_ref().filter(|_| reads_log).map(files::check).unwrap_or_default();
    [files, cassandra, kafka, postgres].concat()
}
