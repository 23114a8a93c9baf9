//! The pipeline as its users run it: child processes of this executable, each with a configuration file.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cdc_runtime::admin;
use cdc_workload::shop;
use futures::future::{select_all, try_join_all};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};

use super::{Mode, Servers};

/// A line on standard input asks for an orderly end, its end kills: so no child outlives this process, however that ends.
const LEASH: &str = r#"
exec 3<&0 0</dev/null
{
  read -r _ <&3 && kill -TERM $$ && read -r _ <&3
  kill -KILL $$
} 2>/dev/null &
exec 3<&-
exec "$@"
"#;

const READY_WITHIN: Duration = Duration::from_secs(60);
const IDLE_WITHIN: Duration = Duration::from_secs(120);
/// Looks at the status in a row that must all say idle: what one process hands to the next is nowhere for a moment.
const IDLE_LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
const STOPPED_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const TAIL_LINES: usize = 15;

pub(super) struct Pipeline {
    folder: Folder,
    roles: Vec<Role>,
}

struct Role {
    name: String,
    child: Child,
    /// Kept out of the child: waiting for one closes its standard input, and that kills.
    leash: ChildStdin,
    log: PathBuf,
    port_file: PathBuf,
}

/// Removed at the end, unless something went wrong.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep && !std::thread::panicking() {
            // What cannot be removed lies in the system's folder for such things.
            fs::remove_dir_all(&self.path).ok();
        }
    }
}

impl Pipeline {
    /// An agent per node; in Kafka mode a sink beside them.
    pub(super) fn start(mode: Mode, servers: &Servers) -> anyhow::Result<Self> {
        // Not below /tmp, which is memory on many machines: the agents' positions are synced.
        let path = PathBuf::from(format!("/var/tmp/cdc-demo-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("create {}", path.display()))?;
        let mut pipeline = Self { folder: Folder { path, keep: false }, roles: Vec::new() };

        let url = servers.postgres_config()?;
        let password = url.get_password().map(String::from_utf8_lossy);
        let postgres = json!({
            "host": servers.postgres.address().ip().to_string(),
            "port": servers.postgres.address().port(),
            "database": url.get_dbname(),
            "username": url.get_user(),
            "password": password,
        });
        let kafka = servers.kafka.as_ref().map(|kafka| {
            json!({
                "bootstrap_servers": [kafka.bootstrap()],
                // A thousand events a second over 24 partitions are a thousand requests a second: more than is left of two cores.
                "partitions": 2,
            })
        });
        let tables: Vec<String> = shop::TABLES.iter().map(|table| format!("{}.{table}", shop::KEYSPACE)).collect();

        for (number, node) in (1..).zip(servers.cassandra.nodes()) {
            let role = if mode == Mode::Direct { "run" } else { "source" };
            let name = if servers.cassandra.nodes().len() > 1 { format!("{role}-{number}") } else { role.to_owned() };
            let state = pipeline.folder.path.join(&name).join("state");
            fs::create_dir_all(&state).with_context(|| format!("create {}", state.display()))?;
            let mut config = json!({
                "cassandra": { "contact_points": [node.address()] },
                "source": {
                    "cdc_raw_directory": node.cdc_raw_dir(),
                    "state_directory": state,
                    "tables": tables,
                },
            });
            match &kafka {
                None => config["postgres"] = postgres.clone(),
                Some(kafka) => config["kafka"] = kafka.clone(),
            }
            pipeline.spawn(role, name, config)?;
        }
        if let Some(kafka) = kafka {
            pipeline.spawn("sink", "sink".to_owned(), json!({ "kafka": kafka, "postgres": postgres }))?;
        }
        Ok(pipeline)
    }

    fn spawn(&mut self, role: &str, name: String, mut config: Value) -> anyhow::Result<()> {
        let folder = self.folder.path.join(&name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let (file, log, port_file) = (folder.join("cdc.yaml"), folder.join("log"), folder.join("port"));
        config["admin"] = json!({ "listen": "127.0.0.1:0", "port_file": port_file });
        // It holds a password.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .and_then(|mut out| out.write_all(serde_yaml_ng::to_string(&config).expect("JSON is YAML").as_bytes()))
            .with_context(|| format!("write {}", file.display()))?;
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let errors = output.try_clone().with_context(|| format!("open {}", log.display()))?;
        let executable = std::env::current_exe().context("find this executable")?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", LEASH, "sh"])
            .arg(executable)
            .arg(role)
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            // Ctrl-C at the terminal reaches the demo alone, which ends the others in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start cdc {role}"))?;
        let leash = child.stdin.take().expect("standard input was asked to be a pipe");
        self.roles.push(Role { name, child, leash, log, port_file });
        Ok(())
    }

    pub(super) fn statuses(&self) -> Statuses {
        Statuses(self.roles.iter().map(|role| (role.name.clone(), role.port_file.clone())).collect())
    }

    /// Waits until every role says that it is ready, and every agent that its capture runs.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        let statuses = self.statuses();
        let all_ready = async {
            while !statuses.ready().await {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
        };
        tokio::select! {
            ready = tokio::time::timeout(READY_WITHIN, all_ready) => match ready {
                Ok(()) => Ok(()),
                Err(_) => Err(anyhow::anyhow!("not ready after {} s\n{}", READY_WITHIN.as_secs(), self.tails())),
            },
            death = Self::first_death(&mut self.roles, &mut self.folder) => Err(death),
        }
    }

    /// The first role that ends; none should.
    pub(super) fn death(&mut self) -> impl Future<Output = anyhow::Error> {
        Self::first_death(&mut self.roles, &mut self.folder)
    }

    async fn first_death(roles: &mut [Role], folder: &mut Folder) -> anyhow::Error {
        let ends = roles.iter_mut().map(|role| {
            Box::pin(async {
                let status = role.child.wait().await;
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                anyhow::anyhow!("cdc {} ended by itself ({status}); its log ends\n{}", role.name, tail(&role.log))
            })
        });
        let (death, ..) = select_all(ends).await;
        folder.keep = true;
        death.context(format!("everything it wrote is in {}", folder.path.display()))
    }

    /// The last lines of every log.
    pub(super) fn tails(&self) -> String {
        self.roles.iter().map(|role| format!("log of cdc {}:\n{}", role.name, tail(&role.log))).collect()
    }

    pub(super) fn keep_folder(&mut self) {
        eprintln!("demo: configurations, logs and positions stay in {}", self.folder.path.display());
        self.folder.keep = true;
    }

    /// Name and highest resident size of each role, as the kernel counted it.
    pub(super) fn peak_memory(&self) -> Vec<(String, Option<u64>)> {
        self.roles.iter().map(|role| (role.name.clone(), role.child.id().and_then(peak_memory))).collect()
    }

    /// Asks every role to end and waits; what has not ended then is killed.
    pub(super) async fn stop(mut self) {
        for role in &mut self.roles {
            if let Err(error) = role.leash.write_all(b"stop\n").await {
                eprintln!("demo: cdc {} has gone already: {error}", role.name);
            }
        }
        for role in &mut self.roles {
            match tokio::time::timeout(STOPPED_WITHIN, role.child.wait()).await {
                Ok(Ok(status)) if status.success() => {}
                Ok(Ok(status)) => eprintln!("demo: cdc {} ended with {status}\n{}", role.name, tail(&role.log)),
                Ok(Err(error)) => eprintln!("demo: cdc {} is lost: {error}", role.name),
                Err(_) => eprintln!("demo: cdc {} did not stop in {} s", role.name, STOPPED_WITHIN.as_secs()),
            }
        }
    }
}

/// Bytes.
fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1_024)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("  {line}\n")).collect()
}

/// Asks the roles' admin ports. Cheap to clone; survives restarts, as the port is read anew each time.
#[derive(Clone)]
pub(super) struct Statuses(Arc<[(String, PathBuf)]>);

#[derive(Clone, Copy, Default)]
pub(super) struct Backlog {
    /// In the commit log, synced and not read.
    pub(super) bytes: u64,
    /// Read and not acknowledged.
    pub(super) batches: u64,
    /// In Kafka.
    pub(super) records: u64,
}

impl Statuses {
    pub(super) async fn backlog(&self) -> anyhow::Result<Backlog> {
        let mut backlog = Backlog::default();
        for status in self.all().await? {
            backlog.bytes += status["source"]["backlog_bytes"].as_u64().unwrap_or(0);
            backlog.batches += status["source"]["unacknowledged_batches"].as_u64().unwrap_or(0);
            backlog.records += status["sink"]["lag"].as_u64().unwrap_or(0);
        }
        Ok(backlog)
    }

    /// Waits until the agents have nothing to read and the sink nothing to apply.
    pub(super) async fn idle(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut looks = 0;
        while looks < IDLE_LOOKS {
            let statuses = self.all().await?;
            looks = if statuses.iter().all(is_idle) { looks + 1 } else { 0 };
            anyhow::ensure!(
                started.elapsed() < IDLE_WITHIN,
                "the pipeline still has a backlog {} s after the load stopped: {}",
                IDLE_WITHIN.as_secs(),
                Value::from(statuses)
            );
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Ok(())
    }

    /// What the pipeline could not apply and put aside outside of PostgreSQL: entries, segments.
    pub(super) async fn set_aside(&self) -> anyhow::Result<u64> {
        let statuses = self.all().await?;
        let of_status = |status: &Value| {
            let source = ["quarantined_entries", "damaged_segments", "lost_segments"].map(|key| &status["source"][key]);
            source.into_iter().filter_map(Value::as_u64).sum::<u64>()
        };
        Ok(statuses.iter().map(of_status).sum())
    }

    async fn ready(&self) -> bool {
        try_join_all(self.0.iter().map(|(_, port_file)| get(port_file, "/readyz"))).await.is_ok()
    }

    async fn all(&self) -> anyhow::Result<Vec<Value>> {
        try_join_all(self.0.iter().map(async |(name, port_file)| {
            let body = get(port_file, "/status").await.with_context(|| format!("ask cdc {name} for its status"))?;
            serde_json::from_str(&body).with_context(|| format!("read the status of cdc {name}"))
        }))
        .await
    }
}

fn is_idle(status: &Value) -> bool {
    let agent = status.get("source").is_none_or(|source| source["idle"] == true);
    // Direct mode applies within the agent and has no partitions; a sink of Kafka that holds none yet is not idle.
    let partitions = status["sink"].get("partitions").and_then(Value::as_array);
    let sink = partitions.is_none_or(|held| !held.is_empty() && held.iter().all(|partition| partition["lag"] == 0));
    agent && sink
}

async fn get(port_file: &Path, path: &'static str) -> anyhow::Result<String> {
    let port = fs::read_to_string(port_file).with_context(|| format!("read {}", port_file.display()))?;
    let port: u16 = port.trim().parse().with_context(|| format!("read {}", port_file.display()))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (code, body) = tokio::task::spawn_blocking(move || admin::fetch(address, path, ANSWER_WITHIN)).await??;
    anyhow::ensure!(code == 200, "{path} answers with HTTP {code}: {body}");
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_idle_by_its_own_word_and_a_sink_without_lag_in_partitions_it_holds() {
        assert!(is_idle(&json!({ "source": { "idle": true } })));
        assert!(!is_idle(&json!({ "source": { "idle": false } })));
        assert!(is_idle(&json!({ "source": { "idle": true }, "sink": { "rows_written": 1 } })));
        assert!(!is_idle(&json!({ "sink": { "partitions": [] } })));
        assert!(!is_idle(&json!({ "sink": { "partitions": [{ "lag": 0 }, { "lag": null }] } })));
        assert!(is_idle(&json!({ "sink": { "partitions": [{ "lag": 0 }] } })));
    }
}
