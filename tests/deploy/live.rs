//! What the binary says of itself, with nobody at the servers' addresses.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::cdc;

/// What stands in the place of every secret.
pub(crate) const TOKEN: &str = "0123456789abcdef0123";

/// A role that runs and waits for its servers.
pub(crate) struct Live {
    process: Child,
    /// Of `admin.remote`.
    pub(crate) remote: SocketAddr,
    _files: tempfile::TempDir,
}

impl Drop for Live {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _gone = self.process.wait();
    }
}

/// Runs a role with a configuration of it, whose addresses become those of nobody and of free ports.
pub(crate) fn run(role: &str, mut config: Value) -> Live {
    let files = tempfile::tempdir().unwrap();
    for (pointer, value) in [
        ("/cassandra/contact_points", json!(["127.0.0.1:1"])),
        ("/kafka/bootstrap_servers", json!(["127.0.0.1:1"])),
        ("/postgres/host", json!("127.0.0.1")),
        ("/postgres/port", json!(1)),
        ("/source/cdc_raw_directory", json!(files.path())),
        ("/source/state_directory", json!(files.path().join("state"))),
        ("/reconciler/listen", json!("127.0.0.1:0")),
        ("/admin/remote/listen", json!("127.0.0.1:0")),
    ] {
        if let Some(place) = config.pointer_mut(pointer) {
            *place = value;
        }
    }
    config["admin"]["listen"] = json!("127.0.0.1:0");
    let file = files.path().join("cdc.yaml");
    std::fs::write(&file, config.to_string()).unwrap();
    let mut process = cdc().arg(role).arg(&file).env_remove("CDC_LOG").stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(process.stderr.take().unwrap());
    let (mut told, mut addresses) = (String::new(), Vec::new());
    // The admin server's, or the API's, comes first.
    while addresses.len() < 2 {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "cdc {role} has ended: {told}");
        told.push_str(&line);
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["message"] == "health, status and metrics are served" {
            addresses.push(line["address"].as_str().unwrap().parse().unwrap());
        }
    }
    // So that it never waits for somebody to read.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    Live { process, remote: addresses[1], _files: files }
}

/// Status code and body.
pub(crate) fn get(address: SocketAddr, path: &str, token: Option<&str>) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let header = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: pod\r\n{header}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The metrics of all roles, by name, with their kinds. They say so of each, also of those that have no series yet.
pub(crate) fn metrics() -> &'static BTreeMap<String, String> {
    static METRICS: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    METRICS.get_or_init(|| {
        let config = json!({
            "cassandra": {"contact_points": []},
            "source": {"cdc_raw_directory": "", "state_directory": "", "tables": ["shop.users"]},
            "postgres": {"host": "", "port": 1, "database": "d", "username": "u"},
            "admin": {"remote": {"listen": "", "token": TOKEN}},
            "reconciler": {"listen": ""},
        });
        let mut metrics = BTreeMap::new();
        for role in ["run", "reconciler"] {
            let live = run(role, config.clone());
            let (code, text) = get(live.remote, "/metrics", Some(TOKEN));
            assert_eq!(code, 200, "{role}: {text}");
            let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
            metrics.extend(kinds.map(|(name, kind)| (name.to_owned(), kind.to_owned())));
        }
        metrics
    })
}
