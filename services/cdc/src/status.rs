//! `cdc status`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use cdc_runtime::{Exit, Refusal, admin};
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::cli::{Output, StatusArgs, say};
use crate::config::{Config, Role};

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let address = address(args)?;
    let (code, body) = admin::fetch(address, "/status", ANSWER_WITHIN).map_err(|error| {
        Refusal::unavailable(format!(
            "no process answers at {address} ({error}); start one with `cdc run FILE`, or name its address with --url"
        ))
    })?;
    if code != 200 {
        return Err(Refusal::unavailable(format!("{address} answers with HTTP {code}: is it a cdc process?")).into());
    }
    let status: Value = serde_json::from_str(&body).with_context(|| format!("read the status that {address} sent"))?;
    match args.output {
        Output::Json => say(&serde_json::to_string_pretty(&status).context("write the status")?),
        Output::Table => say(&table(&status)),
    }
    Ok(Exit::Success.into())
}

pub(crate) fn address(args: &StatusArgs) -> anyhow::Result<SocketAddr> {
    let Some(url) = &args.url else {
        let Some(file) = &args.config else { return Ok(admin::AdminConfig::default().address(Role::Run.admin_port())) };
        let config = Config::load(file, None)?;
        let mut address = config.admin.address(config.role().admin_port());
        if let Some(path) = config.admin.port_file.filter(|_| address.port() == 0) {
            let port =
                std::fs::read_to_string(&path).with_context(|| format!("read admin.port_file {}", path.display()))?;
            address.set_port(port.trim().parse().with_context(|| format!("understand {}", path.display()))?);
        }
        return Ok(address);
    };
    let place = url.strip_prefix("http://").unwrap_or(url).split('/').next().unwrap_or_default();
    place
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next())
        .with_context(|| format!("--url is {url:?}, expected host and port, as in http://127.0.0.1:8084"))
}

/// A line per field, by dotted name.
fn table(status: &Value) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut rows = Vec::new();
    flatten("", status, &mut rows);
    for (name, value) in rows {
        table.add_row([name, value]);
    }
    table.to_string().lines().map(|line| line.trim().to_owned() + "\n").collect()
}

fn flatten(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(&name, value, rows);
            }
        }
        Value::Array(items) => {
            for item in items {
                let fields = item.as_object().into_iter().flatten();
                let fields: Vec<String> = fields.map(|(key, value)| format!("{key} {}", plain(value))).collect();
                rows.push((name.to_owned(), fields.join(", ")));
            }
        }
        value => rows.push((name.to_owned(), plain(value))),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_becomes_a_line_per_field() {
        let status = json!({
            "ready": true,
            "source": {"mode": null, "entries": 3},
            "sink": {"partitions": [{"topic": "t", "lag": 2}, {"topic": "u", "lag": null}]},
        });
        let lines: Vec<String> =
            table(&status).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "ready true",
                "sink.partitions lag 2, topic t",
                "sink.partitions lag -, topic u",
                "source.entries 3",
                "source.mode -"
            ]
        );
    }
}
