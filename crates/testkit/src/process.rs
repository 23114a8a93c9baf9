//! One server process that cannot outlive its owner.
//!
//! The guarantee holds for every death of the owner, SIGKILL included, and needs no cooperation of the server. The server
//! is started through a shell that first leaves a watcher behind and then becomes the server. The watcher reads from a
//! pipe, the *leash*, whose other end only the owner holds; when that end closes, it kills the server, its children in
//! other process groups (PostgreSQL's backends), and the server's process group, itself included.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Error;
use crate::java::ClassArchive;
use crate::place::{self, User};

const LEASH: &str = r#"
exec 3<&0 0</dev/null
{
  read -r _ <&3
  for stat in /proc/[0-9]*/stat; do
    read -r pid name state parent group rest <"$stat" && [ "$parent" = $$ ] && [ "$group" != $$ ] && kill -9 "$pid"
  done
  kill -9 0
} 2>/dev/null &
exec 3<&-
exec "$@"
"#;

const POLL: Duration = Duration::from_millis(20);
const READY_WITHIN: Duration = Duration::from_secs(240);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// What is started, and how to tell that it is ready.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// For messages: `cassandra 5.0.5 on 127.0.0.1:9042`.
    pub(crate) label: String,
    pub(crate) folder: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Takes standard output and error.
    pub(crate) output: PathBuf,
    /// The server's log, where `ready` appears once it is ready; may be `output`.
    pub(crate) log: PathBuf,
    pub(crate) ready: &'static str,
    /// Accept connections once the server is ready.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Asks for an orderly end.
    pub(crate) stop: Signal,
    pub(crate) user: Option<User>,
    /// Recorded by the first orderly end.
    pub(crate) archive: Option<ClassArchive>,
}

/// A handle on one server process; dropping it kills the server.
#[derive(Debug)]
pub struct Server {
    spec: Spec,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    _leash: ChildStdin,
    /// The log's length before this start, bytes: what an earlier run wrote says nothing about this one.
    log_offset: u64,
}

impl Server {
    pub(crate) fn new(spec: Spec) -> Self {
        Self { spec, running: Mutex::new(None) }
    }

    /// Starts the server on its data, where it does not run yet, and waits until it is ready.
    ///
    /// # Errors
    /// It ended or was not ready in time: with its last log lines.
    pub fn start(&self) -> Result<(), Error> {
        if self.is_running() {
            return Ok(());
        }
        self.spawn()?;
        self.wait_until(|log| log.contains(self.spec.ready) && self.spec.addresses.iter().all(accepts))
    }

    /// Asks the server to end in good order and waits for it; one that has not after a minute is killed.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop(&self) -> Result<(), Error> {
        self.end(self.spec.stop)?;
        if let Some(archive) = &self.spec.archive {
            archive.publish();
        }
        Ok(())
    }

    /// Kills the server and its children, as a crash would.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> Result<(), Error> {
        self.end(Signal::KILL)
    }

    /// Stops the server if it runs, then starts it again on the same data and ports.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn restart(&self) -> Result<(), Error> {
        if self.is_running() {
            self.stop()?;
        }
        self.start()
    }

    /// Freezes the server and its children: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self) -> Result<(), Error> {
        self.signal_all(Signal::STOP)
    }

    /// Undoes [`Server::pause`].
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self) -> Result<(), Error> {
        self.signal_all(Signal::CONT)
    }

    /// Whether the process exists; a paused one does.
    pub fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        let mut running = self.lock();
        let server = running.as_mut()?;
        let pid = matches!(server.child.try_wait(), Ok(None)).then(|| server.child.id());
        if pid.is_none() {
            *running = None;
        }
        pid
    }

    /// The file the server logs to.
    pub fn log_file(&self) -> &Path {
        &self.spec.log
    }

    fn spawn(&self) -> Result<(), Error> {
        let spec = &self.spec;
        let output = fs::File::options().create(true).append(true).open(&spec.output);
        let output = output.map_err(Error::io("open", &spec.output))?;
        let errors = output.try_clone().map_err(Error::io("open", &spec.output))?;
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(LEASH).arg("sh").arg(&spec.program).args(&spec.args);
        command.current_dir(&spec.folder).stdin(Stdio::piped()).stdout(output).stderr(errors);
        command.process_group(0);
        if let Some(user) = spec.user {
            command.uid(user.uid).gid(user.gid);
        }
        let log_offset = fs::metadata(&spec.log).map_or(0, |meta| meta.len());
        let mut child = command.spawn().map_err(Error::io("start", &spec.program))?;
        let leash = child.stdin.take().expect("standard input was asked to be a pipe");
        *self.lock() = Some(Running { child, _leash: leash, log_offset });
        Ok(())
    }

    /// Waits until what was logged since the start says so; a server that takes too long is killed.
    pub(crate) fn wait_until(&self, done: impl Fn(&str) -> bool) -> Result<(), Error> {
        let spec = &self.spec;
        let started = Instant::now();
        loop {
            let mut running = self.lock();
            let Some(server) = running.as_mut() else {
                return Err(Error::NotRunning { label: spec.label.clone() });
            };
            let status = server.child.try_wait().map_err(Error::io("wait for", &spec.program))?;
            let log_offset = server.log_offset;
            let (label, folder) = (spec.label.clone(), spec.folder.clone());
            if let Some(status) = status {
                *running = None;
                return Err(Error::Exited { label, status: status.to_string(), folder, tail: self.tail() });
            }
            drop(running);
            if done(&since(&spec.log, log_offset)) {
                return Ok(());
            }
            if started.elapsed() > READY_WITHIN {
                let error = Error::NotReady { label, after: READY_WITHIN, folder, tail: self.tail() };
                return self.kill().and(Err(error));
            }
            thread::sleep(POLL);
        }
    }

    fn end(&self, signal: Signal) -> Result<(), Error> {
        let mut running = self.lock();
        let Some(server) = running.as_mut() else { return self.not_running() };
        let family = children(server.child.id());
        let ended = server.end(signal).map_err(Error::io("end", &self.spec.program))?;
        if ended.is_none() {
            server.end(Signal::KILL).map_err(Error::io("kill", &self.spec.program))?;
        }
        if signal == Signal::KILL || ended.is_none() {
            for child in &family {
                kill_process(*child, Signal::KILL).ok();
            }
        }
        // PostgreSQL does not start while a backend of its last run lives.
        let deadline = Instant::now() + STOPPED_WITHIN;
        while family.iter().any(|child| is_alive(*child)) && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        *running = None;
        Ok(())
    }

    fn signal_all(&self, signal: Signal) -> Result<(), Error> {
        let running = self.lock();
        let Some(server) = running.as_ref() else { return self.not_running() };
        let pid = Pid::from_child(&server.child);
        kill_process(pid, signal).map_err(io::Error::from).map_err(Error::io("signal", &self.spec.program))?;
        for child in children(server.child.id()) {
            // One that has just ended needs no signal.
            kill_process(child, signal).ok();
        }
        Ok(())
    }

    fn not_running(&self) -> Result<(), Error> {
        Err(Error::NotRunning { label: self.spec.label.clone() })
    }

    fn tail(&self) -> String {
        let output = place::tail(&self.spec.output, 25);
        if self.spec.output == self.spec.log { output } else { output + &place::tail(&self.spec.log, 15) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        // A panic elsewhere leaves the process as it was: still ours to end.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

impl Running {
    /// Signals and waits; `None` when the time is up.
    fn end(&mut self, signal: Signal) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(status));
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal)?;
        kill_process(pid, Signal::CONT)?;
        let deadline = Instant::now() + STOPPED_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            thread::sleep(POLL);
        }
        Ok(None)
    }
}

fn since(log: &Path, offset: u64) -> String {
    let mut bytes = Vec::new();
    let read = fs::File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(offset))?;
        file.read_to_end(&mut bytes)
    });
    if read.is_ok() { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() }
}

fn accepts(address: &SocketAddr) -> bool {
    TcpStream::connect_timeout(address, Duration::from_secs(1)).is_ok()
}

/// The children of a process outside its process group: the backends, not the watcher.
fn children(parent: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &i32| stat(*pid).is_some_and(|it| it.parent == parent && it.group != parent);
    pids.filter(is_child).filter_map(Pid::from_raw).collect()
}

pub(crate) fn is_alive(pid: Pid) -> bool {
    stat(pid.as_raw_nonzero().get()).is_some_and(|it| it.state != "Z")
}

struct Stat {
    state: String,
    parent: u32,
    group: u32,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may itself hold spaces and brackets.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?.to_owned();
    Some(Stat { state, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
}
