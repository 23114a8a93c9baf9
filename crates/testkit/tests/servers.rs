//! Real servers are started, broken and abandoned.
//!
//! Tests named `as_…` do nothing by themselves: another test runs this executable again with one of them as its task.

#![expect(clippy::unwrap_used, reason = "helpers fail the test that called them")]
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "figures of the starts; a task's answer to its test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cdc_testkit::dev::{self, Phase, UpOptions};
use cdc_testkit::{Artifact, Cassandra, Error, Kafka, Node, Postgres, cache_dir};

const TASK: &str = "CDC_TESTKIT_TASK";

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// This executable again, to run one of the `as_…` tests.
fn task(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(TASK, name);
    command
}

fn is_task(name: &str) -> bool {
    std::env::var(TASK).is_ok_and(|task| task == name)
}

fn psql(postgres: &Postgres, sql: &str) -> String {
    let output = Command::new("psql").arg(postgres.url()).args(["-Atqc", sql]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn sstables(node: &Node) -> usize {
    let tables = fs::read_dir(node.data_dir().join("system")).unwrap().flatten();
    tables.map(|table| fs::read_dir(table.path()).unwrap().count()).sum()
}

/// Processes whose command line names the folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let lines = fs::read_dir("/proc").unwrap().flatten().filter_map(|it| fs::read(it.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(folder)).collect()
}

#[test]
fn cassandra_is_ready_when_start_returns_and_keeps_its_data_over_kill_and_restart() {
    let started = Instant::now();
    let cassandra = Cassandra::builder().commitlog_segment_size_mib(1).start().unwrap();
    eprintln!("cassandra ready after {:?}", started.elapsed());
    let node = cassandra.node(0);
    TcpStream::connect(node.address()).unwrap();
    assert!(fs::read_to_string(node.config_file()).unwrap().contains("cdc_enabled: true"));
    assert!(fs::read_dir(node.cdc_raw_dir()).unwrap().count() > 0, "segments are linked at their creation");
    let before = sstables(node);

    node.kill().unwrap();
    assert!(!node.is_running());
    TcpStream::connect(node.address()).unwrap_err();
    let started = Instant::now();
    node.restart().unwrap();
    eprintln!("cassandra ready again after {:?}", started.elapsed());
    TcpStream::connect(node.address()).unwrap();
    assert!(sstables(node) >= before);
    let log = fs::read_to_string(node.log_file()).unwrap();
    assert!(log.contains("Log replay complete"), "the killed node's commit log is replayed");
    node.stop().unwrap();

    let folder = node.config_file().parent().unwrap().to_owned();
    drop(cassandra);
    assert!(!folder.exists());
}

#[test]
fn kafka_answers_and_comes_back_on_the_same_port() {
    let started = Instant::now();
    let kafka = Kafka::start().unwrap();
    eprintln!("kafka ready after {:?}", started.elapsed());
    TcpStream::connect(kafka.bootstrap()).unwrap();
    kafka.restart().unwrap();
    TcpStream::connect(kafka.bootstrap()).unwrap();
}

#[test]
fn two_postgres_servers_run_side_by_side_and_survive_crashes_with_their_rows() {
    let started = Instant::now();
    let [a, b] = [Postgres::start().unwrap(), Postgres::builder().setting("max_connections", "20").start().unwrap()];
    eprintln!("two postgres ready after {:?}", started.elapsed());
    assert_ne!(a.address(), b.address());
    assert_eq!(psql(&b, "show max_connections"), "20");
    assert_eq!(psql(&a, "show fsync"), "on");
    psql(&a, "create table t (id int); insert into t values (7)");
    a.kill().unwrap();
    assert!(!a.is_running());
    assert_eq!(psql(&b, "select current_database()"), "warehouse", "the other one goes on");
    a.start().unwrap();
    assert_eq!(psql(&a, "select id from t"), "7");
    a.restart().unwrap();
    assert_eq!(psql(&a, "select id from t"), "7");
    assert!(!format!("{a:?}").contains(a.url().split([':', '@']).nth(2).unwrap()), "no password in Debug");
}

#[test]
fn a_paused_postgres_does_not_answer_until_it_is_resumed() {
    let postgres = Postgres::start().unwrap();
    postgres.pause().unwrap();
    let mut client = Command::new("psql").arg(postgres.url()).args(["-c", "select 1"]).spawn().unwrap();
    assert!(postgres.is_running());
    assert!(client.try_wait().unwrap().is_none());
    postgres.resume().unwrap();
    assert!(client.wait().unwrap().success());
}

#[test]
fn nothing_is_left_of_a_server_whose_owner_was_killed() {
    let mut owner = task("as_owner").stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let folder = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("folder ").map(PathBuf::from)).unwrap();
    assert!(processes_of(&folder).len() > 1, "the server and its watcher");
    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("the server ends with its owner", || processes_of(&folder).is_empty());
    drop(Postgres::start().unwrap());
    assert!(!folder.exists(), "the next instance removes an orphan's files");
}

#[test]
fn as_owner() {
    if is_task("as_owner") {
        let postgres = Postgres::start().unwrap();
        // Frozen backends do not notice that the server is gone: the worst case for what has to end.
        postgres.pause().unwrap();
        println!("\nfolder {}", postgres.log_file().ancestors().nth(2).unwrap().display());
        std::thread::park();
    }
}

#[test]
fn a_tampered_file_is_refused_with_its_name_and_the_remedy() {
    let artifact = Artifact::postgres("17.5");
    let real = artifact.obtain(&cache_dir()).unwrap().remove(0);
    let cache = std::env::temp_dir().join(format!("cdc-tampered-{}", std::process::id()));
    let folder = cache.join(artifact.to_string());
    fs::create_dir_all(&folder).unwrap();
    let file = real.file_name().unwrap().to_str().unwrap();
    let mut bytes = fs::read(&real).unwrap();
    bytes[1000] ^= 1;
    fs::write(folder.join(file), bytes).unwrap();
    let err = artifact.obtain(&cache).unwrap_err();
    fs::remove_dir_all(&cache).unwrap();
    assert!(matches!(err, Error::Tampered { .. }));
    let text = err.to_string();
    assert!(text.contains(file) && text.contains(&format!("delete {}", folder.display())), "{text}");
}

#[test]
fn a_version_that_is_not_pinned_is_refused_with_those_that_are() {
    let err = Cassandra::builder().version("3.11.0").start().unwrap_err();
    assert_eq!(err.to_string(), "cassandra 3.11.0 is not pinned: choose one of 5.0.5, 4.1.9, 4.0.17");
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let err = Postgres::builder().setting("shared_buffers", "nonsense").start().unwrap_err();
    assert!(err.to_string().contains("invalid value for parameter \"shared_buffers\""), "{err}");
}

#[test]
fn servers_for_people_outlive_the_command_that_started_them_and_end_with_down() {
    let name = format!("test-{}", std::process::id());
    let options = UpOptions { name: name.clone(), cassandra: None, kafka: false, ..UpOptions::default() };
    let state = dev::up_with(&options, task("as_supervisor")).unwrap();
    assert_eq!(state.phase, Phase::Ready);
    assert!(matches!(dev::up_with(&options, task("as_supervisor")), Err(Error::AlreadyUp { .. })));
    let status = dev::status(&name).unwrap();
    assert!(status.supervised && status.servers.iter().all(|server| server.up));
    let postgres = state.postgres.unwrap();
    let connect = format!("{} -Atc 'select 1'", postgres.connect);
    let output = Command::new("sh").args(["-c", &connect]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n", "{}", String::from_utf8_lossy(&output.stderr));
    dev::down(&name).unwrap();
    TcpStream::connect(postgres.address).unwrap_err();
    assert!(matches!(dev::status(&name), Err(Error::NotUp { .. })));

    let broken = UpOptions { postgres: Some("0.1".to_owned()), ..options };
    let err = dev::up_with(&broken, task("as_supervisor")).unwrap_err();
    assert!(err.to_string().contains("0.1 is not pinned"), "{err}");
}

#[test]
fn as_supervisor() {
    if is_task("as_supervisor") {
        dev::supervise(Path::new(&std::env::args().next_back().unwrap())).unwrap();
    }
}
