//! Servers, processes of the binary under test, and the load, as the tests need them.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use cdc_testkit::{Cassandra, Kafka, Postgres};
use cdc_workload::{Load, LoadOptions, oracle, shop};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};

/// Long enough for a slow machine, short enough that a stuck pipeline fails the test.
const DEADLINE: Duration = Duration::from_secs(120);
/// Of all tables of the shop together, by default.
const PARTITIONS: usize = 8 * shop::TABLES.len();
/// Short TTLs of the shop's load end within this.
const SHORT_TTLS: Duration = Duration::from_secs(8);

/// Polls until `check` holds; its last complaint is the error.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, deadline: Duration, mut check: impl FnMut() -> anyhow::Result<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        match check() {
            Ok(value) => return value,
            Err(error) if Instant::now() > end => panic!("{what}: not within {deadline:?}: {error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

pub(crate) struct Servers {
    pub(crate) cassandra: Cassandra,
    pub(crate) kafka: Option<Kafka>,
    pub(crate) postgres: Postgres,
    pub(crate) runtime: Runtime,
    folder: tempfile::TempDir,
}

impl Servers {
    /// Small segments, so that a test sees many of them begin and end.
    pub(crate) fn start(kafka: bool) -> Self {
        Self::start_nodes(kafka, 1)
    }

    /// 1 or 3, each with all rows.
    pub(crate) fn start_nodes(kafka: bool, nodes: usize) -> Self {
        // Several are patient with each other, because they share what cores there are.
        let timeouts = ["read_request_timeout", "range_request_timeout", "write_request_timeout", "request_timeout"];
        let builder = Cassandra::builder().nodes(nodes).commitlog_segment_size_mib(2);
        let builder = timeouts.iter().filter(|_| nodes > 1).fold(builder, |all, timeout| all.setting(timeout, "25s"));
        let servers = Self {
            cassandra: builder.start().unwrap(),
            kafka: kafka.then(|| Kafka::start().unwrap()),
            postgres: Postgres::start().unwrap(),
            runtime: Runtime::new().unwrap(),
            folder: tempfile::tempdir().unwrap(),
        };
        servers.runtime.block_on(async {
            let session = cdc_workload::connect(&servers.cassandra.contact_points()).await.unwrap();
            shop::create_schema(&session, nodes).await.unwrap();
        });
        servers
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One file for every role; `source` holds further lines of that section.
    pub(crate) fn config(&self, name: &str, source: &str) -> PathBuf {
        self.config_of(0, name, source)
    }

    /// The same beside one of several nodes.
    pub(crate) fn config_of(&self, node: usize, name: &str, source: &str) -> PathBuf {
        let state = self.folder().join(if node == 0 { "state".to_owned() } else { format!("state-{node}") });
        let node = self.cassandra.node(node);
        let postgres: tokio_postgres::Config = self.postgres.url().parse().unwrap();
        let password = self.folder().join("postgres-password");
        // Once: a process started with another file may be reading it.
        if !password.exists() {
            fs::write(&password, postgres.get_password().unwrap()).unwrap();
        }
        let kafka = self.kafka.as_ref().map_or(String::new(), |kafka| {
            format!("kafka:\n  bootstrap_servers: [\"{}\"]\n  replication_factor: 1\n", kafka.bootstrap())
        });
        let text = format!(
            "cassandra:\n  contact_points: [\"{contact}\"]\n\
             source:\n  cdc_raw_directory: {raw}\n  state_directory: {state}\n  tables: [\"shop.*\"]\n{source}\
             {kafka}\
             postgres:\n  host: 127.0.0.1\n  port: {port}\n  database: {database}\n  username: postgres\n  password_file: {password}\n\
             admin:\n  listen: 127.0.0.1:0\n  port_file: {port_file}\n",
            contact = node.address(),
            raw = node.cdc_raw_dir().display(),
            state = state.display(),
            port = self.postgres.address().port(),
            database = postgres.get_dbname().unwrap(),
            password = password.display(),
            port_file = self.folder().join(format!("{name}.port")).display(),
        );
        let path = self.folder().join(format!("{name}.yaml"));
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn spawn(&self, role: &'static str, source: &str) -> Process {
        self.spawn_as(role, role, source)
    }

    /// Under a name of its own, so that two of one role can run side by side.
    pub(crate) fn spawn_as(&self, name: &str, role: &'static str, source: &str) -> Process {
        Process::spawn(role, self.config(name, source))
    }

    /// `cdc run` beside each node.
    pub(crate) fn spawn_agents(&self) -> Vec<Process> {
        let agent = |index| Process::spawn("run", self.config_of(index, &format!("run-{index}"), ""));
        (0..self.cassandra.nodes().len()).map(agent).collect()
    }

    /// After this nothing expires any more, and what Cassandra acknowledged is readable in every capture mode.
    pub(crate) fn let_short_ttls_pass(&self) {
        self.runtime.block_on(async { tokio::time::sleep(SHORT_TTLS).await });
    }

    /// Load on the shop that goes on until stopped, failed writes included: servers are restarted under it.
    pub(crate) fn load(&self, seed: u64, rate: u32) -> RunningLoad {
        let contact_points = self.cassandra.contact_points();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = self.runtime.spawn(async move {
            let session = Arc::new(cdc_workload::connect(&contact_points).await.unwrap());
            let options = LoadOptions { seed, rate: Some(rate), ..LoadOptions::default() };
            let mut load = Load::new(session, options, None);
            load.run(async { drop(stopped.await) }).await;
            load.counters().acknowledged()
        });
        RunningLoad { stop, task }
    }

    /// Compares every row and cell of both stores.
    pub(crate) fn assert_equal(&self) {
        self.runtime.block_on(async {
            let session = cdc_workload::connect(&self.cassandra.contact_points()).await.unwrap();
            let postgres = connect_postgres(&self.postgres).await.unwrap();
            let report = oracle::compare(&session, &postgres, "shop", &shop::TABLES).await.unwrap();
            assert_eq!(report.differences(), 0, "{report}");
            assert!(report.rows() > 100, "the load left next to nothing to compare: {report}");
            let quarantined: i64 = postgres.query_one("select count(*) from _cdc.dlq", &[]).await.unwrap().get(0);
            assert_eq!(quarantined, 0);
        });
    }
}

pub(crate) async fn connect_postgres(postgres: &Postgres) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(&postgres.url(), tokio_postgres::NoTls).await?;
    #[expect(clippy::disallowed_methods, reason = "a test's connection; it ends with the client")]
    tokio::spawn(connection);
    Ok(client)
}

pub(crate) struct RunningLoad {
    stop: oneshot::Sender<()>,
    task: JoinHandle<u64>,
}

impl RunningLoad {
    /// Ends the load and says how many writes Cassandra acknowledged.
    pub(crate) fn stop(self, servers: &Servers) -> u64 {
        self.stop.send(()).expect("the load runs until stopped");
        servers.runtime.block_on(self.task).expect("the load does not panic")
    }
}

/// A running `cdc ROLE FILE`; killed when dropped.
pub(crate) struct Process {
    role: &'static str,
    config: PathBuf,
    child: Child,
}

pub(crate) fn cdc() -> Command {
    // target/<profile>/deps/e2e-… lies one folder below the binary.
    let tests = std::env::current_exe().expect("a test has a path");
    let binary = tests.ancestors().nth(2).expect("deps lies in the profile's folder").join("cdc");
    assert!(binary.exists(), "{} is not there: cargo build --release --bin cdc", binary.display());
    Command::new(binary)
}

impl Process {
    pub(crate) fn spawn(role: &'static str, config: PathBuf) -> Self {
        let mut command = cdc();
        command.arg(role).arg(&config);
        Self::run(command, role, config)
    }

    /// What it prints stands beside the configuration, or where that would be.
    pub(crate) fn run(mut command: Command, role: &'static str, config: PathBuf) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(config.with_extension("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self { role, config, child }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.config.with_extension("log")).unwrap_or_default()
    }

    /// As `kill -9`, and the same again from its files.
    pub(crate) fn kill_and_start(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        *self = Self::spawn(self.role, self.config.clone());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    #[track_caller]
    pub(crate) fn exits_within(&mut self, deadline: Duration) -> ExitStatus {
        let log = self.log();
        eventually(&format!("{} ends\n{log}", self.role), deadline, || self.child.try_wait()?.context("it still runs"))
    }

    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// What the admin port answers.
    pub(crate) fn status(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.ask("/status")?)?)
    }

    pub(crate) fn ask(&self, path: &str) -> anyhow::Result<String> {
        let port = fs::read_to_string(self.config.with_extension("port")).context("no port file yet")?;
        let mut stream = TcpStream::connect(("127.0.0.1", port.trim().parse()?))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        ensure!(head.contains(" 200 "), "{head}");
        Ok(body.to_owned())
    }

    /// Waits until the agent has read and made durable all there is.
    #[track_caller]
    pub(crate) fn wait_until_idle(&mut self) {
        self.wait_until(|status| status["source"]["idle"] == true);
    }

    /// Waits until this sink holds every partition, those of killed ones too, and has applied all there is.
    #[track_caller]
    pub(crate) fn wait_until_applied(&mut self) {
        self.wait_until(|status| {
            let partitions = status["sink"]["partitions"].as_array();
            partitions.is_some_and(|all| all.len() == PARTITIONS && all.iter().all(|one| one["lag"] == 0))
        });
    }

    /// Waits until this sink holds the share of all partitions that falls to one of so many.
    #[track_caller]
    pub(crate) fn wait_until_it_has_its_share(&mut self, sinks: usize) {
        self.wait_until(|status| {
            status["sink"]["partitions"].as_array().is_some_and(|held| held.len() == PARTITIONS / sinks)
        });
    }

    #[track_caller]
    fn wait_until(&mut self, done: impl Fn(&serde_json::Value) -> bool) {
        let role = self.role;
        eventually(
            &format!("{role} is done; its log: {}", self.config.with_extension("log").display()),
            DEADLINE,
            || {
                if let Some(status) = self.child.try_wait()? {
                    panic!("{role} ended with {status}:\n{}", self.log());
                }
                let status = self.status()?;
                if !done(&status) {
                    bail!("{status}");
                }
                Ok(())
            },
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            println!("--- end of the log of cdc {}", self.role);
            for line in tail.iter().rev() {
                println!("{line}");
            }
        }
        if self.is_running() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}
