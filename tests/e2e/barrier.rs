//! `cdc barrier`: it says so once everything written before is there, and never earlier.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use cdc_workload::Session;
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::pipeline::{Process, Servers, cdc, connect_postgres, eventually};

/// Changes of its own beside the load's.
const TABLE: &str = "CREATE TABLE shop.notes (id int PRIMARY KEY, note blob) WITH cdc = true";
const LOAD: u32 = 200;

/// What `cdc barrier` answered.
struct Answer {
    code: Option<i32>,
    text: String,
}

impl Answer {
    fn of(config: &Path, arguments: &[&str]) -> Self {
        let output = cdc().arg("barrier").arg(config).args(arguments).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        Self { code: output.status.code(), text }
    }

    #[track_caller]
    fn passed(&self) {
        assert_eq!(self.code, Some(0), "{}", self.text);
        assert!(self.text.contains("passed"), "{}", self.text);
    }

    /// It timed out, and says whose fault it was and whose not.
    #[track_caller]
    fn missed(&self, these: &[&str], and_not: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.text);
        assert!(these.iter().all(|name| self.text.contains(name)), "{these:?} are to be named: {}", self.text);
        assert!(!and_not.iter().any(|name| self.text.contains(name)), "{and_not:?} are not: {}", self.text);
    }
}

struct Notes<'s> {
    servers: &'s Servers,
    session: Arc<Session>,
    postgres: tokio_postgres::Client,
    next: i32,
}

impl<'s> Notes<'s> {
    fn new(servers: &'s Servers) -> Self {
        let (session, postgres) = servers.runtime.block_on(async {
            let session = cdc_workload::connect(&servers.cassandra.contact_points()).await.unwrap();
            session.query_unpaged(TABLE, ()).await.unwrap();
            (session, connect_postgres(&servers.postgres).await.unwrap())
        });
        Self { servers, session: Arc::new(session), postgres, next: 0 }
    }

    /// Writes rows of so many bytes at once; returns when Cassandra has acknowledged them.
    fn write(&mut self, rows: i32, bytes: usize) -> std::ops::Range<i32> {
        let ids = self.next..self.next + rows;
        self.next = ids.end;
        self.servers.runtime.block_on(async {
            let insert = self.session.prepare("INSERT INTO shop.notes (id, note) VALUES (?, ?)").await.unwrap();
            let mut writes = JoinSet::new();
            for id in ids.clone() {
                let (session, insert) = (Arc::clone(&self.session), insert.clone());
                writes.spawn(async move { session.execute_unpaged(&insert, (id, vec![7u8; bytes])).await.map(drop) });
            }
            while let Some(written) = writes.join_next().await {
                written.unwrap().unwrap();
            }
        });
        ids
    }

    fn found(&self, ids: &std::ops::Range<i32>) -> usize {
        let count = "select count(*) from cdc_notes where id >= $1 and id < $2";
        let row = self.servers.runtime.block_on(self.postgres.query_one(count, &[&ids.start, &ids.end])).unwrap();
        usize::try_from(row.get::<_, i64>(0)).unwrap()
    }

    /// Many rounds of writing, waiting and looking, without a moment in between.
    fn rounds(&mut self, config: &Path) {
        let mut took = Vec::new();
        for round in 0..30 {
            // Every third has rows so large that they are under way when the mark is.
            let (rows, bytes) = if round % 3 == 0 { (120, 64 << 10) } else { (50, 20) };
            let ids = self.write(rows, bytes);
            let asked = Instant::now();
            Answer::of(config, &["--timeout", "100s"]).passed();
            took.push(asked.elapsed().as_millis());
            assert_eq!(self.found(&ids), ids.len(), "round {round}: it passed too early");
        }
        println!("milliseconds of each `cdc barrier`: {took:?}");
    }

    /// Until the closure returns, the row cannot be written in PostgreSQL.
    fn while_locked(&self, id: i32, during: impl FnOnce()) {
        let locker = self.servers.runtime.block_on(async {
            let locker = connect_postgres(&self.servers.postgres).await.unwrap();
            locker.batch_execute(&format!("begin; select from cdc_notes where id = {id} for update")).await.unwrap();
            locker
        });
        during();
        self.servers.runtime.block_on(locker.batch_execute("commit")).unwrap();
    }

    fn overwrite(&self, id: i32) {
        let update = format!("UPDATE shop.notes SET note = 0xfe WHERE id = {id}");
        self.servers.runtime.block_on(self.session.query_unpaged(update, ())).unwrap();
    }

    fn is_overwritten(&self, id: i32) -> bool {
        let query = format!("select note = '\\xfe' from cdc_notes where id = {id}");
        self.servers.runtime.block_on(self.postgres.query_one(&query, &[])).unwrap().get(0)
    }
}

#[test]
fn directly_a_barrier_passes_when_all_is_there_and_not_before() {
    let servers = Servers::start(false);
    let address = servers.cassandra.node(0).ip().to_string();
    let mut notes = Notes::new(&servers);
    let mut agent = servers.spawn("run", "");
    let config = servers.config("barrier", "");
    let load = servers.load(1, LOAD);
    notes.rounds(&config);
    load.stop(&servers);

    // A row that cannot be written holds up its agent's position, and so the mark.
    notes.while_locked(7, || {
        notes.overwrite(7);
        Answer::of(&config, &["--timeout", "2s"]).missed(&[&address, "its agent has not delivered the marker"], &[]);
        assert!(!notes.is_overwritten(7));
    });
    Answer::of(&config, &[]).passed();
    assert!(notes.is_overwritten(7));

    agent.signal(Signal::STOP);
    let ids = notes.write(10, 20);
    Answer::of(&config, &["--timeout", "1s"]).missed(&[&address], &[]);
    agent.signal(Signal::CONT);
    Answer::of(&config, &[]).passed();
    assert_eq!(notes.found(&ids), 10);

    // A mark that waits for an agent is there when it comes back.
    let ids = notes.write(10, 20);
    agent.kill_and_start();
    let answer = Answer::of(&config, &["--output", "json"]);
    answer.passed();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&answer.text).unwrap()["nodes"], 1);
    assert_eq!(notes.found(&ids), 10);

    let tables = "select count(*) from pg_tables where tablename like '%barrier'";
    let tables: i64 = servers.runtime.block_on(notes.postgres.query_one(tables, &[])).unwrap().get(0);
    assert_eq!(tables, 0, "marks have no target table");
    servers.let_short_ttls_pass();
    servers.assert_equal();
}

#[test]
fn through_kafka_a_barrier_passes_when_all_is_there_and_not_before() {
    let servers = Servers::start(true);
    let address = servers.cassandra.node(0).ip().to_string();
    let mut notes = Notes::new(&servers);
    let source = servers.spawn("source", "");
    let mut sink = servers.spawn("sink", "");
    let config = servers.config("barrier", "");
    let load = servers.load(2, LOAD);
    notes.rounds(&config);
    load.stop(&servers);

    // A row that cannot be written holds up its topic, and no other.
    notes.while_locked(7, || {
        notes.overwrite(7);
        let short = ["--timeout", "2s"];
        Answer::of(&config, &short).missed(&["topic cdc-events-notes partition"], &["cdc-events-users", &address]);
        assert!(!notes.is_overwritten(7));
        Answer::of(&config, &["--table", "shop.users"]).passed();
        let answer = Answer::of(&config, &["--table", "crm.users"]);
        assert_eq!(answer.code, Some(2), "{}", answer.text);
    });
    Answer::of(&config, &[]).passed();
    assert!(notes.is_overwritten(7));

    source.signal(Signal::STOP);
    let ids = notes.write(10, 20);
    Answer::of(&config, &["--timeout", "1s"]).missed(&[&address, "its agent has not"], &["partition"]);
    source.signal(Signal::CONT);
    sink.signal(Signal::STOP);
    Answer::of(&config, &["--timeout", "2s"]).missed(&["topic cdc-events-notes partition"], &[&address]);
    sink.signal(Signal::CONT);
    Answer::of(&config, &[]).passed();
    assert_eq!(notes.found(&ids), 10);

    let ids = notes.write(10, 20);
    sink.kill_and_start();
    Answer::of(&config, &["--timeout", "100s"]).passed();
    assert_eq!(notes.found(&ids), 10);
    servers.let_short_ttls_pass();
    servers.assert_equal();
}

/// One agent per node, held and lost in turn.
fn three_nodes(kafka: bool) {
    let servers = Servers::start_nodes(kafka, 3);
    let address = |node: usize| format!(" {}: ", servers.cassandra.node(node).ip());
    let mut notes = Notes::new(&servers);
    let role = if kafka { "source" } else { "run" };
    let mut agents: Vec<Process> =
        (0..3).map(|node| Process::spawn(role, servers.config_of(node, &format!("agent-{node}"), ""))).collect();
    let _sink = kafka.then(|| servers.spawn("sink", ""));
    let config = servers.config("barrier", "");
    let load = servers.load(3, LOAD);
    for _ in 0..10 {
        let ids = notes.write(50, 20);
        let answer = Answer::of(&config, &["--timeout", "100s", "--output", "json"]);
        answer.passed();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&answer.text).unwrap()["nodes"], 3);
        assert_eq!(notes.found(&ids), ids.len(), "it passed too early");
    }
    load.stop(&servers);

    // Killed rather than held: directly, one that is held may hold locks that the others need.
    drop(agents.pop());
    Answer::of(&config, &["--timeout", "10s"]).missed(&[&address(2)], &[&address(0), &address(1)]);
    agents.push(Process::spawn(role, servers.config_of(2, "agent-2", "")));
    Answer::of(&config, &["--timeout", "100s"]).passed();

    // Without a node nothing can be said, and that is another answer than being late.
    servers.cassandra.node(1).stop().unwrap();
    let answer = Answer::of(&config, &[]);
    assert_eq!(answer.code, Some(69), "{}", answer.text);
    assert!(
        answer.text.contains("could not be written at ALL") && answer.text.contains(&address(1)),
        "{}",
        answer.text
    );
    assert!(!answer.text.contains(&address(0)) && !answer.text.contains(&address(2)), "{}", answer.text);
    servers.cassandra.node(1).start().unwrap();
    eventually("the node is back", Duration::from_secs(60), || {
        let answer = Answer::of(&config, &["--timeout", "20s"]);
        anyhow::ensure!(answer.code == Some(0), "{}", answer.text);
        Ok(())
    });
    assert!(agents.iter_mut().all(Process::is_running));
}

#[test]
fn of_three_nodes_the_late_one_is_named_and_a_lost_one_is_another_error() {
    three_nodes(false);
}

#[test]
fn of_three_nodes_through_kafka_too() {
    three_nodes(true);
}
