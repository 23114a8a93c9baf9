//! Where the schema comes from: a file, a node, or the log alone.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cdc_cassandra::{Cassandra, CassandraConfig};
use cdc_commitlog::{SchemaFile, SchemaHistory};
use cdc_runtime::config::{ConfigErrors, Fault, parse};
use cdc_runtime::{Exit, Refusal};
use clap::Args;

use crate::cli::{complain, say};
use crate::config::Config;
use crate::role::chain;

#[derive(Args, Debug)]
pub(crate) struct SchemaArgs {
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Args, Debug)]
pub(super) struct SourceArgs {
    /// Schema of the tables, as `cdc log schema` writes it; without it and without a node, the schema is what the
    /// segments themselves say
    #[arg(long, value_name = "FILE", conflicts_with_all = ["contact_point", "config"])]
    schema: Option<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Args, Debug)]
struct NodeArgs {
    /// Cassandra node to ask for the schema, as `host` or `host:port`
    #[arg(long, value_name = "HOST")]
    contact_point: Option<String>,
    /// Configuration whose section `cassandra` says how to reach the node, with username and password (those may also
    /// come from `CDC__CASSANDRA__USERNAME` and `CDC__CASSANDRA__PASSWORD`)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// `cdc log schema`.
pub(super) fn run(args: &SchemaArgs) -> anyhow::Result<ExitCode> {
    let Some(schema) = args.node.load()? else {
        let message = "no node named: give --contact-point HOST, or --config FILE with a section cassandra".to_owned();
        return Err(Refusal { exit: Exit::Usage, message }.into());
    };
    say(&schema.to_json());
    Ok(Exit::Success.into())
}

impl SourceArgs {
    /// What is known before the first segment is read.
    pub(super) fn history(&self) -> anyhow::Result<SchemaHistory> {
        let file = match &self.schema {
            Some(path) => SchemaFile::read(path).map_err(|error| Refusal::config(chain(&error)))?,
            None => match self.node.load()? {
                Some(file) => file,
                None => return Ok(SchemaHistory::new()),
            },
        };
        let (history, faults) = SchemaHistory::from_file(file);
        for fault in faults {
            complain(&fault.to_string());
        }
        Ok(history)
    }

    /// Whether the segments need not be read from their start to know the tables.
    pub(super) fn is_given(&self) -> bool {
        self.schema.is_some() || self.node.is_given()
    }
}

impl NodeArgs {
    fn is_given(&self) -> bool {
        self.contact_point.is_some() || self.config.is_some()
    }

    fn load(&self) -> anyhow::Result<Option<SchemaFile>> {
        if !self.is_given() {
            return Ok(None);
        }
        let config = self.cassandra()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let schema = runtime.block_on(Box::pin(async {
            let node = Cassandra::connect(&config).await?;
            node.load_schema_file().await
        }));
        runtime.shutdown_background();
        Ok(Some(schema.map_err(|error| Refusal::unavailable(chain(&error)))?))
    }

    fn cassandra(&self) -> anyhow::Result<CassandraConfig> {
        let file = self.config.as_deref().unwrap_or(Path::new("the command line"));
        let errors = |faults| ConfigErrors { file: file.to_owned(), faults };
        let mut text = match &self.config {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| Refusal::config(format!("{} cannot be read: {error}", path.display())))?,
            None => String::new(),
        };
        if let (Some(host), None) = (&self.contact_point, &self.config) {
            // JSON is YAML.
            text = format!("cassandra: {{contact_points: {}}}", serde_json::json!([host]));
        }
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value.to_str()?.to_owned())))
            .filter(|(name, _)| self.config.is_some() || name.starts_with("CDC__CASSANDRA__"));
        let check = |config: &Config| match &config.cassandra {
            Some(cassandra) => cassandra.validate().iter().map(|sentence| Fault::of_sentence(sentence)).collect(),
            None => vec![Fault::of_sentence("cassandra is missing: add the section, or give --contact-point HOST")],
        };
        let config: Config = parse(&text, environment, check).map_err(errors)?;
        let mut cassandra = config.cassandra.expect("it was checked");
        if let Some(host) = &self.contact_point {
            cassandra.contact_points = vec![host.clone()];
        }
        Ok(cassandra)
    }
}
