use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};

use super::state::{CassandraState, KafkaState, NodeState, Phase, PostgresState, State};
use super::{UpOptions, lock_path};
use crate::{Cassandra, Error, Kafka, Postgres, default_version, place};

enum Event {
    Started(usize, Box<Result<Started, Error>>),
    Terminate,
}

enum Started {
    Cassandra(Cassandra),
    Kafka(Kafka),
    Postgres(Postgres),
}

type Launch = Box<dyn FnOnce() -> Result<Started, Error> + Send>;

/// Runs the servers that `options.json` in this folder asks for, until SIGTERM or SIGINT; then stops them in good order.
///
/// # Errors
/// The folder is not one of [`up`](super::up)'s or has a supervisor; a server did not start, and then none is left
/// running and `state.json` says why.
pub fn supervise(dir: &Path) -> Result<(), Error> {
    // Fails where we lead a session already, which is what it is for.
    rustix::process::setsid().ok();
    let lock =
        File::options().create(true).append(true).open(lock_path(dir)).map_err(Error::io("open", lock_path(dir)))?;
    let options_path = dir.join("options.json");
    let options = fs::read(&options_path).map_err(Error::io("read", &options_path))?;
    let options: UpOptions =
        serde_json::from_slice(&options).map_err(io::Error::from).map_err(Error::io("understand", &options_path))?;
    lock.try_lock().map_err(|_| Error::AlreadyUp { name: options.name.clone() })?;

    let mut state = State {
        name: options.name.clone(),
        supervisor_pid: std::process::id(),
        phase: Phase::Starting,
        error: None,
        progress: Vec::new(),
        cassandra: None,
        kafka: None,
        postgres: None,
    };
    let (events, inbox) = sync_channel(8);
    let next = || inbox.recv().expect("this function holds a sender");
    send_terminate(events.clone())?;
    let begun = Instant::now();
    for (index, (name, launch)) in launches(&options).into_iter().enumerate() {
        state.progress.push((name, None));
        let events = events.clone();
        thread::spawn(move || events.send(Event::Started(index, Box::new(launch()))));
    }
    state.write(dir)?;

    let mut servers = Vec::new();
    while servers.len() < state.progress.len() {
        // What is still starting at an early end is killed by its leash as this process ends.
        let Event::Started(index, started) = next() else { return Ok(()) };
        match *started {
            Ok(server) => {
                state.progress[index].1 = Some(begun.elapsed().as_secs_f64());
                describe(&server, dir, &options, &mut state)?;
                servers.push(server);
                state.write(dir)?;
            }
            Err(err) => {
                state.phase = Phase::Failed;
                state.error = Some(err.chain());
                state.write(dir)?;
                return Err(err);
            }
        }
    }
    state.phase = Phase::Ready;
    state.write(dir)?;
    while !matches!(next(), Event::Terminate) {}
    thread::scope(|scope| {
        for server in servers {
            scope.spawn(move || server.stop());
        }
    });
    Ok(())
}

fn send_terminate(events: SyncSender<Event>) -> Result<(), Error> {
    let io = Error::io("watch", "signals");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let watch = runtime.and_then(|runtime| {
        let guard = runtime.enter();
        let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        drop(guard);
        Ok((runtime, signals))
    });
    let (runtime, (mut terminate, mut interrupt)) = watch.map_err(io)?;
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
        });
        events.send(Event::Terminate)
    });
    Ok(())
}

fn launches(options: &UpOptions) -> Vec<(String, Launch)> {
    let mut launches: Vec<(String, Launch)> = Vec::new();
    if let Some(version) = &options.postgres {
        let builder = Postgres::builder().version(version);
        let launch = move || builder.start().map(Started::Postgres);
        launches.push((format!("PostgreSQL {version}"), Box::new(launch)));
    }
    if options.kafka {
        let launch = || Kafka::start().map(Started::Kafka);
        launches.push((format!("Kafka {}", default_version::KAFKA), Box::new(launch)));
    }
    if let Some(version) = &options.cassandra {
        let builder = Cassandra::builder().version(version).nodes(options.nodes);
        let launch = move || builder.start().map(Started::Cassandra);
        let nodes = if options.nodes == 1 { String::new() } else { format!(", {} nodes", options.nodes) };
        launches.push((format!("Cassandra {version}{nodes}"), Box::new(launch)));
    }
    launches
}

fn describe(server: &Started, dir: &Path, options: &UpOptions, state: &mut State) -> Result<(), Error> {
    match server {
        Started::Cassandra(cassandra) => {
            let nodes = cassandra.nodes().iter().map(|node| NodeState {
                address: node.socket_address(),
                pid: node.pid().unwrap_or_default(),
                config_file: node.config_file(),
                cdc_raw_dir: node.cdc_raw_dir(),
                commitlog_dir: node.commitlog_dir(),
                log_file: node.log_file().to_owned(),
            });
            let first = cassandra.node(0).socket_address();
            state.cassandra = Some(CassandraState {
                version: options.cassandra.clone().unwrap_or_default(),
                nodes: nodes.collect(),
                connect: format!("cqlsh {} {}", first.ip(), first.port()),
            });
        }
        Started::Kafka(kafka) => {
            state.kafka = Some(KafkaState {
                version: default_version::KAFKA.to_owned(),
                bootstrap: kafka.address(),
                pid: kafka.pid().unwrap_or_default(),
                log_file: kafka.log_file().to_owned(),
            });
        }
        Started::Postgres(postgres) => {
            let address = postgres.address();
            let url_file = dir.join("postgres.url");
            place::write_secret(&url_file, &postgres.url())?;
            state.postgres = Some(PostgresState {
                version: options.postgres.clone().unwrap_or_default(),
                address,
                database: crate::postgres::DATABASE.to_owned(),
                user: "postgres".to_owned(),
                url_file,
                pid: postgres.pid().unwrap_or_default(),
                log_file: postgres.log_file().to_owned(),
                connect: postgres.psql()?,
            });
        }
    }
    Ok(())
}

impl Started {
    /// One that has ended already needs no stop.
    fn stop(self) {
        match &self {
            Self::Cassandra(cassandra) => {
                thread::scope(|scope| {
                    for node in cassandra.nodes() {
                        scope.spawn(|| node.stop());
                    }
                });
            }
            Self::Kafka(kafka) => drop(kafka.stop()),
            Self::Postgres(postgres) => drop(postgres.stop()),
        }
    }
}
