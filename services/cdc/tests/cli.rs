//! The binary as an operator meets it: exit codes and sentences.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cdc_runtime::admin::fetch;
use serde_json::Value;

mod dlq;
mod log;
mod reconciler;

const OK: i32 = 0;
const USAGE: i32 = 2;
const UNAVAILABLE: i32 = 69;
const CONFIG: i32 = 78;
/// For a process to start or stop on a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn cdc(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdc"));
    command.args(args).env_remove("CDC_LOG").stdin(Stdio::null());
    command
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn said(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = command.output().expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Said { code: status.code(), out: text(stdout), err: text(stderr) }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, text: &str) -> String {
        let path = self.path("cdc.yaml");
        std::fs::write(&path, text).expect("write a file");
        path.to_str().expect("a plain path").to_owned()
    }

    /// Servers that nobody is; port 1 refuses at once.
    fn nowhere(&self) -> String {
        let raw = self.path("cdc_raw");
        std::fs::create_dir_all(&raw).expect("create a folder");
        format!(
            "cassandra: {{contact_points: ['127.0.0.1:1'], connect_timeout_ms: 300}}\n\
             source:\n  cdc_raw_directory: {}\n  state_directory: {}\n  tables: [shop.users]\n\
             postgres: {{host: 127.0.0.1, port: 1, database: d, username: u, password: hunter2}}\n\
             admin: {{listen: '127.0.0.1:0', port_file: {}}}\n",
            raw.display(),
            self.path("state").display(),
            self.path("port").display(),
        )
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config")
}

#[test]
fn the_example_files_are_valid_for_every_role_they_name() {
    for (file, roles) in [
        ("direct.yaml", &["run", "source", "reconciler"][..]),
        ("kafka.yaml", &["run", "source", "sink", "reconciler"]),
    ] {
        let path = examples().join(file);
        for role in roles {
            let said = said(&mut cdc(&["validate", "--offline", "--role", role, path.to_str().unwrap()]));
            assert_eq!(said.code, Some(OK), "{file} for {role}: {}", said.err);
        }
    }
}

#[test]
fn every_key_of_the_reference_is_known() {
    // The reference's rows are `| `key` |` below `## `section`` or `### `section.part``.
    let reference = std::fs::read_to_string(examples().join("README.md")).unwrap();
    let mut yaml = serde_json::json!({});
    let mut section = String::new();
    for line in reference.lines() {
        if let Some(name) = line.strip_prefix("## ").or(line.strip_prefix("### ")) {
            section = name.trim_matches('`').to_owned();
        }
        let Some(cell) = line.strip_prefix("| `").and_then(|rest| rest.split(" |").next()) else { continue };
        for key in cell.split('`').filter(|key| !key.is_empty() && !key.contains([',', ' '])) {
            let path = if section == "Others" { key.to_owned() } else { format!("{section}.{key}") };
            if !path.contains('.') {
                continue;
            }
            let pointer = path.split('.').fold(&mut yaml, |at, name| &mut at[name]);
            *pointer = serde_json::json!({});
        }
    }
    assert!(yaml.as_object().unwrap().len() >= 7, "the reference was not understood: {yaml:?}");
    let files = Files::new();
    let said = said(&mut cdc(&["validate", "--offline", &files.write(&serde_json::to_string(&yaml).unwrap())]));
    assert_eq!(said.code, Some(CONFIG));
    assert!(!said.err.contains("not a known key"), "{}", said.err);
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    assert_eq!(said(&mut cdc(&["replicate"])).code, Some(USAGE));
    assert_eq!(said(&mut cdc(&["run"])).code, Some(USAGE));
}

#[test]
fn what_reconcile_is_to_compare_is_checked_before_anything_is_read() {
    let refused = |arguments: &[&str], words: &str| {
        let said =
            said(&mut cdc(&[&["reconcile", "run", "/nowhere.yaml", "--table", "shop.users"], arguments].concat()));
        assert_eq!(said.code, Some(USAGE), "{arguments:?}: {}", said.err);
        assert!(said.err.contains(words), "{arguments:?}: {}", said.err);
    };
    let range = "--strategy=timestamp-range";
    refused(&["--strategy", "sample"], "--sample-percent");
    refused(&["--strategy", "sample", "--sample-percent", "0"], "above 0, up to 100");
    refused(&["--sample-percent", "1"], "goes with --strategy sample");
    refused(&["--seed", "1"], "--sample-percent");
    refused(&[range, "--written-from", "2026-11-21"], "--written-to");
    refused(&[range, "--written-from", "soon", "--written-to", "5"], "2026-11-21T10:00:00Z");
    refused(&[range, "--written-from", "5", "--written-to", "5"], "must be before");
    refused(&["--written-from", "5"], "go with --strategy timestamp-range");
    refused(&["--partition", "5", "--range", "0:1"], "cannot be used with");
    refused(&["--partition", "5", "--strategy", "sample", "--sample-percent", "1"], "use one of them");
}

#[test]
fn every_command_explains_itself_with_examples() {
    let help = said(&mut cdc(&["--help"]));
    assert!(help.code == Some(OK) && help.out.contains("Exit codes:"), "{}", help.out);
    let commands = "source sink run reconciler migrate validate status dev log dlq reconcile snapshot";
    for command in commands.split(' ') {
        let help = said(&mut cdc(&[command, "--help"]));
        assert!(help.code == Some(OK) && help.out.contains("Examples:"), "{command}: {}", help.out);
    }
}

#[test]
fn faults_of_a_file_exit_with_78_and_are_told_at_once() {
    let files = Files::new();
    let file = files.write(
        "postgres:\n  host: pg\n  databse: d\n  username: u\n  port: many\nkafka:\n  bootstrap_servers: [a:1]\n",
    );
    for command in [&["validate", &file][..], &["sink", &file]] {
        let said = said(&mut cdc(command));
        assert_eq!(said.code, Some(CONFIG), "{}", said.err);
        for sentence in [
            "has 3 faults",
            "line 3: postgres.databse is not a known key; did you mean `database`?",
            "postgres.database is missing",
            "line 5: postgres.port is the text \"many\", expected a whole number from 0 to 65535",
        ] {
            assert!(said.err.contains(sentence), "{sentence} is not in:\n{}", said.err);
        }
    }
    let missing = said(&mut cdc(&["run", "/nowhere/cdc.yaml"]));
    assert!(missing.code == Some(CONFIG) && missing.err.contains("/nowhere/cdc.yaml"), "{}", missing.err);
}

#[test]
fn faults_in_the_settings_of_tables_are_told_without_the_salt() {
    let files = Files::new();
    let salt = files.path("salt");
    std::fs::write(&salt, "0123456789abcdef\n").unwrap();
    let file = |settings: &str| {
        let settings = settings.replace("SALT", salt.to_str().unwrap());
        files.write(&format!(
            "kafka:\n  bootstrap_servers: [a:1]\npostgres:\n  host: pg\n  database: d\n  username: u\n  tables:\n    \
             shop.users:\n{settings}"
        ))
    };
    let check = |settings: &str| said(&mut cdc(&["validate", "--offline", "--role", "sink", &file(settings)]));
    let good = "      include: [a]\n      columns:\n        a: {mask: null}\n        b: {mask: {hash: {salt_file: SALT}}}\n        \
                password_file: {name: c, unrepresentable: skip}\n";
    assert_eq!(check(good).code, Some(OK), "{}", check(good).err);
    let faulty = "      exlude: [a]\n      columns:\n        a: {mask: {fixd: x}}\n        b: {unrepresentable: skipp}\n        \
                  c: {mask: {hash: {salt: 12345}}}\n";
    let said = check(faulty);
    assert_eq!(said.code, Some(CONFIG), "{}", said.err);
    for sentence in [
        "line 9: postgres.tables.shop.users.exlude is not a known key; did you mean `exclude`?",
        "postgres.tables.shop.users.columns.a.mask.fixd is not a known key; did you mean `fixed`?",
        "postgres.tables.shop.users.columns.b.unrepresentable is `skipp`; did you mean `skip`?",
        "postgres.tables.shop.users.columns.c.mask.hash.salt has a value of the wrong type; expected text",
    ] {
        assert!(said.err.contains(sentence), "{sentence} is not in:\n{}", said.err);
    }
    let short = check("      columns:\n        c: {mask: {hash: {salt: 'tiny'}}}\n");
    assert!(short.err.contains("mask.hash.salt is shorter than 16 bytes"), "{}", short.err);
    assert!(!short.err.contains("tiny") && !said.err.contains("12345"), "{}{}", short.err, said.err);
}

#[test]
fn a_missing_section_names_the_command_and_the_lines_to_add() {
    let files = Files::new();
    let file = files.write("kafka: {bootstrap_servers: [a:1]}\n");
    let sink = said(&mut cdc(&["sink", &file]));
    assert_eq!(sink.code, Some(CONFIG));
    assert!(sink.err.contains("section postgres is missing, which `cdc sink` needs"), "{}", sink.err);
    assert!(sink.err.contains("    postgres:\n      host: 127.0.0.1\n"), "{}", sink.err);
    let source = said(&mut cdc(&["source", &file]));
    assert!(source.err.contains("section cassandra is missing") && source.err.contains("section source is missing"));
}

#[test]
fn values_out_of_range_name_their_line_and_the_variable_that_set_them() {
    let files = Files::new();
    let file = files.write(&(files.nowhere() + "sink:\n  batch_rows: 0\n"));
    let said = said(cdc(&["validate", "--offline", &file]).env("CDC__ADMIN__LISTEN", "0.0.0.0:8084"));
    assert_eq!(said.code, Some(CONFIG));
    assert!(said.err.contains("line 9: sink.batch_rows is 0: use 1 to 100000"), "{}", said.err);
    assert!(said.err.contains("CDC__ADMIN__LISTEN: admin.listen is 0.0.0.0:8084"), "{}", said.err);
}

#[test]
fn validate_names_every_server_that_is_missing_and_exits_with_69() {
    let files = Files::new();
    let file = files.write(&(files.nowhere() + "kafka: {bootstrap_servers: ['127.0.0.1:1']}\n"));
    let said = said(&mut cdc(&["validate", &file]));
    assert_eq!(said.code, Some(UNAVAILABLE), "{}", said.err);
    for sentence in [
        "Cassandra at 127.0.0.1:1",
        "check cassandra.contact_points",
        "PostgreSQL at 127.0.0.1:1/d as u",
        "kafka.bootstrap_servers: no broker answers",
    ] {
        assert!(said.err.contains(sentence), "{sentence} is not in:\n{}", said.err);
    }
    assert!(said.out.contains("3 findings"), "{}", said.out);
    assert!(!said.err.contains("hunter2"), "{}", said.err);
}

#[test]
fn validate_puts_what_the_operator_can_edit_first() {
    let files = Files::new();
    let keystore = "  tables: [shop.users]\n  keystore: {path: /nowhere, password: hunter2}\n";
    let text = files.nowhere().replace("  tables: [shop.users]\n", keystore);
    std::fs::remove_dir(files.path("cdc_raw")).unwrap();
    let said = said(&mut cdc(&["validate", &files.write(&text)]));
    assert_eq!(said.code, Some(CONFIG), "{}", said.err);
    assert!(said.err.contains("source.cdc_raw_directory") && said.err.contains("does not exist; name this node's"));
    assert!(said.err.contains("source.keystore cannot be used: cannot read keystore /nowhere: "), "{}", said.err);
    assert!(!said.err.contains("hunter2"), "{}", said.err);
}

#[test]
fn migrate_brings_the_schema_up_to_date_and_ends() {
    let world = dlq::World::new();
    world.sql("drop schema _cdc cascade");
    for _ in 0..2 {
        let done = said(&mut cdc(&["migrate", &world.file]));
        assert!(done.code == Some(OK) && done.err.contains("up to date"), "{}", done.err);
        world.sql("insert into _cdc.streams select * from _cdc.streams");
    }
    let refused = said(cdc(&["migrate", &world.file]).env("CDC__POSTGRES__PASSWORD", "hunter2"));
    assert_eq!(refused.code, Some(UNAVAILABLE), "{}", refused.err);
    assert!(!refused.err.contains("hunter2"), "{}", refused.err);
}

#[test]
fn status_of_nobody_exits_with_69() {
    let said = said(&mut cdc(&["status", "--url", "http://127.0.0.1:1"]));
    assert_eq!(said.code, Some(UNAVAILABLE));
    assert!(said.err.contains("no process answers at 127.0.0.1:1"), "{}", said.err);
}

#[test]
fn a_role_waits_for_its_servers_says_so_and_stops_cleanly_when_asked() {
    let files = Files::new();
    let file = files.write(&files.nowhere());
    let mut role = cdc(&["run", &file]).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    let port: u16 = loop {
        assert!(started.elapsed() < SOON, "no admin port");
        match std::fs::read_to_string(files.path("port")) {
            Ok(port) => break port.trim().parse().unwrap(),
            Err(_) => std::thread::yield_now(),
        }
    };
    let address = ([127, 0, 0, 1], port).into();
    assert_eq!(fetch(address, "/healthz", SOON).unwrap().0, 200);
    let (code, reason) = fetch(address, "/readyz", SOON).unwrap();
    assert!(code == 503 && reason.contains("capture has not begun"), "{code} {reason}");
    let metrics = fetch(address, "/metrics", SOON).unwrap().1;
    for name in ["cdc_build_info", "cdc_source_idle 0", "cdc_processing_latency_seconds_count"] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }

    let table = said(&mut cdc(&["status", &file]));
    assert_eq!(table.code, Some(OK), "{}", table.err);
    assert!(table.out.contains("not_ready_because"), "{}", table.out);
    let json = said(&mut cdc(&["status", &file, "--output", "json"]));
    let status: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&status["role"], &status["source"]["idle"]), (&"run".into(), &false.into()));
    assert!(status["sink"].get("partitions").is_none(), "direct mode has none");

    let pid = rustix::process::Pid::from_child(&role);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = loop {
        if role.try_wait().unwrap().is_some() {
            break role.wait_with_output().unwrap();
        }
        assert!(started.elapsed() < 2 * SOON, "does not stop");
        std::thread::yield_now();
    };
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(OK), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
    assert!(log.lines().all(|line| line.starts_with('{')), "not on a terminal the log is JSON: {log}");
}
