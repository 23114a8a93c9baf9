use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::process::is_alive;
use crate::{Error, place};

/// What the supervisor wrote down about the servers. Holds no secret: it names the files that do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub name: String,
    pub supervisor_pid: u32,
    pub phase: Phase,
    /// Why it failed, with the last log lines of the server that did.
    pub error: Option<String>,
    /// Each server, and after how many seconds it was ready.
    pub progress: Vec<(String, Option<f64>)>,
    pub cassandra: Option<CassandraState>,
    pub kafka: Option<KafkaState>,
    pub postgres: Option<PostgresState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Starting,
    Ready,
    Failed,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CassandraState {
    pub version: String,
    pub nodes: Vec<NodeState>,
    /// The command to type.
    pub connect: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeState {
    pub address: SocketAddr,
    pub pid: u32,
    pub config_file: PathBuf,
    pub cdc_raw_dir: PathBuf,
    pub commitlog_dir: PathBuf,
    pub log_file: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KafkaState {
    pub version: String,
    pub bootstrap: SocketAddr,
    pub pid: u32,
    pub log_file: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PostgresState {
    pub version: String,
    pub address: SocketAddr,
    pub database: String,
    pub user: String,
    /// The URL with its password, readable by its owner only.
    pub url_file: PathBuf,
    pub pid: u32,
    pub log_file: PathBuf,
    /// The command to type.
    pub connect: String,
}

/// What really runs.
#[derive(Debug, Clone)]
pub struct Status {
    pub state: State,
    /// Whether the supervisor lives; without it nothing else does.
    pub supervised: bool,
    pub servers: Vec<ServerStatus>,
}

#[derive(Debug, Clone)]
pub struct ServerStatus {
    /// `cassandra 5.0.5`, for instance.
    pub name: String,
    pub address: SocketAddr,
    pub pid: u32,
    /// Its process lives and its port accepts.
    pub up: bool,
}

impl State {
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join("state.json");
        match fs::read(&path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(Error::io("read", &path)(err)),
            Ok(bytes) => {
                let state = serde_json::from_slice(&bytes).map_err(io::Error::from);
                state.map(Some).map_err(Error::io("understand", &path))
            }
        }
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), Error> {
        write_json(&dir.join("state.json"), self)
    }

    pub(super) fn servers(&self) -> Vec<ServerStatus> {
        let cassandra = self
            .cassandra
            .iter()
            .flat_map(|it| it.nodes.iter().map(|node| (format!("cassandra {}", it.version), node.address, node.pid)));
        let kafka = self.kafka.iter().map(|it| (format!("kafka {}", it.version), it.bootstrap, it.pid));
        let postgres = self.postgres.iter().map(|it| (format!("postgresql {}", it.version), it.address, it.pid));
        let servers = cassandra.chain(kafka).chain(postgres);
        servers.map(|(name, address, pid)| ServerStatus { name, address, pid, up: is_up(address, pid) }).collect()
    }
}

impl fmt::Display for State {
    /// How to get at the servers, a line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cassandra) = &self.cassandra {
            writeln!(f, "Cassandra {}: {}", cassandra.version, cassandra.connect)?;
            for node in &cassandra.nodes {
                writeln!(f, "  {}  cdc_raw {}", node.address, node.cdc_raw_dir.display())?;
            }
        }
        if let Some(kafka) = &self.kafka {
            writeln!(f, "Kafka {}: {}", kafka.version, kafka.bootstrap)?;
        }
        if let Some(postgres) = &self.postgres {
            writeln!(f, "PostgreSQL {}: {}", postgres.version, postgres.connect)?;
        }
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for server in &self.servers {
            let up = if server.up { "up" } else { "DOWN" };
            writeln!(f, "{up:4}  {}  {}  process {}", server.name, server.address, server.pid)?;
        }
        if let Some(error) = &self.state.error {
            writeln!(f, "the servers did not come up: {error}")
        } else if self.supervised {
            write!(f, "{}", self.state)
        } else {
            writeln!(f, "the supervisor (process {}) is gone, and the servers with it", self.state.supervisor_pid)
        }
    }
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_vec_pretty(value).map_err(io::Error::from).map_err(Error::io("write", path))?;
    let part = path.with_extension("part");
    place::write(&part, json)?;
    fs::rename(&part, path).map_err(Error::io("write", path))
}

fn is_up(address: SocketAddr, pid: u32) -> bool {
    let lives = i32::try_from(pid).ok().and_then(Pid::from_raw).is_some_and(is_alive);
    lives && TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}
