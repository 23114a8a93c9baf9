//! The servers a person works with: up, status, down.
//!
//! [`up`] starts a *supervisor*, the same executable again in a session of its own, and returns once the servers are
//! ready; the supervisor owns them, so they end with it. It holds a lock on `supervisor.lock` for as long as it lives:
//! that, not a process id in a file, says whether it runs. What it knows is in `state.json`, replaced by rename.
//! The data lives as long as the servers: [`down`] removes it.

mod state;
mod supervisor;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

pub use self::state::{CassandraState, KafkaState, NodeState, Phase, PostgresState, ServerStatus, State, Status};
pub use self::supervisor::supervise;
use crate::{Artifact, Error, default_version, place};

const POLL: Duration = Duration::from_millis(100);
const DOWN_WITHIN: Duration = Duration::from_secs(120);

/// Which servers to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpOptions {
    /// Several stacks run side by side under different names.
    pub name: String,
    /// The version; `None` for no Cassandra.
    pub cassandra: Option<String>,
    /// 1 or 3.
    pub nodes: usize,
    pub kafka: bool,
    /// The version or `system`; `None` for no PostgreSQL.
    pub postgres: Option<String>,
}

impl Default for UpOptions {
    fn default() -> Self {
        Self {
            name: "dev".to_owned(),
            cassandra: Some(default_version::CASSANDRA.to_owned()),
            nodes: 1,
            kafka: true,
            postgres: Some(default_version::POSTGRES.to_owned()),
        }
    }
}

/// Starts the servers, shows progress on standard error, and returns once all are ready. They run on when this process
/// ends, until [`down`]. This executable must run [`supervise`] when called with `dev supervise DIR`.
///
/// # Errors
/// Servers of that name are up; a release could not be obtained; a server did not start, with its last log lines, and
/// then none is left running.
pub fn up(options: &UpOptions) -> Result<State, Error> {
    let executable = std::env::current_exe().map_err(Error::io("find", "this executable"))?;
    let mut command = Command::new(executable);
    command.args(["dev", "supervise"]);
    up_with(options, command)
}

/// As [`up`], with another command that runs [`supervise`] on the folder appended to its arguments.
///
/// # Errors
/// As [`up`].
pub fn up_with(options: &UpOptions, mut supervisor: Command) -> Result<State, Error> {
    if !matches!(options.nodes, 1 | 3) {
        return Err(Error::Nodes { nodes: options.nodes });
    }
    let dir = dir(&options.name)?;
    if is_supervised(&dir) {
        return Err(Error::AlreadyUp { name: options.name.clone() });
    }
    let cache = place::cache_dir();
    let postgres = options.postgres.as_deref().filter(|version| *version != "system");
    let wanted = [
        options.cassandra.as_deref().map(Artifact::cassandra),
        options.kafka.then(|| Artifact::kafka(default_version::KAFKA)),
        postgres.map(Artifact::postgres),
    ];
    for artifact in wanted.into_iter().flatten() {
        artifact.obtain(&cache)?;
    }
    place::remove_dir(&dir)?;
    place::make_dir(&dir, 0o755)?;
    state::write_json(&dir.join("options.json"), options)?;
    let log_path = log_path(&dir);
    let log = File::create(&log_path).map_err(Error::io("create", &log_path))?;
    let errors = log.try_clone().map_err(Error::io("open", &log_path))?;
    supervisor.arg(&dir).current_dir("/").stdin(Stdio::null()).stdout(log).stderr(errors);
    let mut child = supervisor.spawn().map_err(Error::io("start", supervisor.get_program()))?;
    let mut progress = Progress::new();
    loop {
        let ended = child.try_wait().map_err(Error::io("wait for", supervisor.get_program()))?;
        let state = State::read(&dir)?;
        if let Some(state) = &state {
            progress.show(state);
        }
        match (state, ended) {
            (Some(state), None) if state.phase == Phase::Ready => return Ok(state),
            (state, Some(status)) => {
                let said = || format!("the supervisor ended ({status}):\n{}", place::tail(&log_path, 15));
                return Err(Error::Up { reason: state.and_then(|state| state.error).unwrap_or_else(said) });
            }
            _ => thread::sleep(POLL),
        }
    }
}

/// What is up under that name, and what of it really runs.
///
/// # Errors
/// Nothing of that name is up.
pub fn status(name: &str) -> Result<Status, Error> {
    let dir = dir(name)?;
    let state = State::read(&dir)?.ok_or_else(|| Error::NotUp { name: name.to_owned() })?;
    Ok(Status { supervised: is_supervised(&dir), servers: state.servers(), state })
}

/// Stops the servers in good order, waits for them, and removes their data.
///
/// # Errors
/// Nothing of that name is up, or the supervisor does not end in time.
pub fn down(name: &str) -> Result<(), Error> {
    let dir = dir(name)?;
    let not_up = || Error::NotUp { name: name.to_owned() };
    let state = State::read(&dir)?.ok_or_else(not_up)?;
    let pid = state.supervisor_pid;
    if is_supervised(&dir) {
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(not_up)?;
        kill_process(process, Signal::TERM).map_err(io::Error::from).map_err(Error::io("signal", "the supervisor"))?;
    }
    let started = Instant::now();
    while is_supervised(&dir) {
        if started.elapsed() > DOWN_WITHIN {
            return Err(Error::StillUp { pid, after: DOWN_WITHIN, log: log_path(&dir) });
        }
        thread::sleep(POLL);
    }
    place::remove_dir(&dir)
}

fn dir(name: &str) -> Result<PathBuf, Error> {
    // Nothing that is a path, whatever was typed.
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Ok(place::run_dir()?.join("dev").join(name))
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("supervisor.log")
}

fn lock_path(dir: &Path) -> PathBuf {
    dir.join("supervisor.lock")
}

fn is_supervised(dir: &Path) -> bool {
    File::open(lock_path(dir)).is_ok_and(|lock| lock.try_lock().is_err())
}

/// A spinner per server on a terminal, else a line whenever one changes.
struct Progress {
    bars: Option<MultiProgress>,
    shown: Vec<(String, Option<ProgressBar>, bool)>,
    started: Instant,
}

impl Progress {
    fn new() -> Self {
        let bars = io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, shown: Vec::new(), started: Instant::now() }
    }

    fn show(&mut self, state: &State) {
        for (server, ready_after_s) in &state.progress {
            let known = self.shown.iter().position(|(name, ..)| name == server);
            let index = known.unwrap_or_else(|| self.begin(server));
            let (_, bar, done) = &mut self.shown[index];
            let Some(seconds) = ready_after_s.filter(|_| !*done) else { continue };
            *done = true;
            match bar {
                Some(bar) => bar.finish_with_message(format!("{server}: ready after {seconds:.1} s")),
                None => say(&format!("{server}: ready after {seconds:.1} s")),
            }
        }
    }

    fn begin(&mut self, server: &str) -> usize {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("the template is valid");
            let bar = bars.add(ProgressBar::new_spinner().with_style(style).with_elapsed(self.started.elapsed()));
            bar.set_message(format!("{server}: starting"));
            bar.enable_steady_tick(POLL);
            bar
        });
        if bar.is_none() {
            say(&format!("{server}: starting"));
        }
        self.shown.push((server.to_owned(), bar, false));
        self.shown.len() - 1
    }
}

fn say(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}
