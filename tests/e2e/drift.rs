//! Differences of every class, planted by chance in the targets of a cluster of three nodes: all are found and named, and not
//! one other row is. Meanwhile the planted table and the shop are written by clients whose clocks are seconds apart, a node goes
//! down during a comparison, is away and comes back, and tables, PostgreSQL and the pipeline's own processes stand still
//! for moments.

mod plant;
mod trouble;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use cdc_workload::{Consistency, Session, oracle, shop};
use rand::RngExt as _;
use serde_json::Value;

use self::{
    plant::{Place, Round},
    trouble::{Clients, Trouble},
};
use crate::pipeline::{Process, Servers, cdc, connect_postgres, eventually};

/// Of the shop, statements a second, beside those of the planted table.
const LOAD: u32 = 150;
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// Seeds that share an outage.
const AT_A_TIME: usize = 5;
const REPAIR: &str = "--repair=MISSING_IN_POSTGRES,STALE,VALUE_DIFFERS,EXTRA,EXPIRED_NOT_REMOVED,TARGET_AHEAD";
const IN_DLQ: &str = "IN_DLQ";
const UNPROVEN: &str = "UNPROVEN";

struct World {
    servers: Servers,
    session: Arc<Session>,
    /// What it writes is in the log of every node.
    at_all: Session,
    postgres: tokio_postgres::Client,
    agents: Vec<Process>,
    sink: Option<Process>,
}

impl World {
    fn start(kafka: bool, tables: usize) -> Self {
        let servers = Servers::start_nodes(kafka, 3);
        let (session, at_all, postgres) = servers.runtime.block_on(async {
            let nodes = servers.cassandra.contact_points();
            let session = cdc_workload::connect(&nodes).await.unwrap();
            for number in 0..tables {
                session.query_unpaged(plant::table(number), ()).await.unwrap();
            }
            let at_all = cdc_workload::connect_at(&nodes, Consistency::All).await.unwrap();
            (Arc::new(session), at_all, connect_postgres(&servers.postgres).await.unwrap())
        });
        let role = if kafka { "source" } else { "run" };
        let agent = |node| Process::spawn(role, servers.config_of(node, &format!("agent-{node}"), ""));
        let agents = (0..3).map(agent).collect();
        let sink = kafka.then(|| servers.spawn("sink", ""));
        Self { servers, session, at_all, postgres, agents, sink }
    }

    /// Into the logs of all nodes.
    fn cql(&self, statement: &str) {
        let written = self.servers.runtime.block_on(self.at_all.query_unpaged(statement, ()));
        written.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    fn sql(&self, statement: &str) {
        let done = self.servers.runtime.block_on(self.postgres.batch_execute(statement));
        done.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }

    /// Changes one row, neither more nor fewer: nothing is planted in vain.
    fn sql_of_one_row(&self, statement: &str) {
        let done = self.servers.runtime.block_on(self.postgres.execute(statement, &[]));
        assert_eq!(done.unwrap_or_else(|error| panic!("{statement}: {error:?}")), 1, "{statement}");
    }

    /// The file of a client that knows one node alone.
    fn config(&self, node: usize) -> PathBuf {
        self.servers.config_of(node, &format!("client-{node}"), "")
    }

    fn barrier(&self, config: &Path) -> anyhow::Result<()> {
        let output = cdc().arg("barrier").arg(config).args(["--timeout", "100s"]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn compare(&self, config: &Path, tables: &[&str], further: &[&str]) -> Report {
        let mut command = cdc();
        command.args(["reconcile", "run"]).arg(config);
        command.args(["--output", "json", "--show-keys", "--barrier-timeout", "100"]).args(further);
        command.args(tables.iter().map(|table| format!("--table=shop.{table}")));
        let output = command.output().unwrap();
        let tables = serde_json::from_slice(&output.stdout);
        let tables = tables.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        Report { code: output.status.code(), tables }
    }
}

struct Report {
    code: Option<i32>,
    tables: Vec<Value>,
}

impl Report {
    fn of(&self, table: &str) -> &Value {
        self.tables.iter().find(|own| own["table"] == format!("shop.{table}")).unwrap()
    }

    /// Class by place, of one table.
    fn findings(&self, table: &str) -> BTreeMap<Place, String> {
        let findings = self.of(table)["findings"].as_array().unwrap().iter();
        let int = |value: &Value| value.as_i64().and_then(|value| i32::try_from(value).ok());
        let named = findings.map(|finding| {
            let key = &finding["key"];
            let place = (int(&key["partition_key"]["p"]).unwrap(), int(&key["clustering"]["c"]));
            (place, finding["class"].as_str().unwrap().to_owned())
        });
        named.collect()
    }

    fn is_whole(&self) -> bool {
        self.tables.iter().all(|table| table["coverage"]["share"] == 1.0)
    }

    /// Of tables in which nothing was planted.
    fn classes_beside(&self, rounds: &[Round]) -> impl Iterator<Item = &str> {
        let is_other = |own: &&Value| !rounds.iter().any(|round| own["table"] == format!("shop.{}", round.table));
        let others = self.tables.iter().filter(is_other);
        others.flat_map(|other| other["findings"].as_array().unwrap()).map(|finding| finding["class"].as_str().unwrap())
    }

    /// Whatever is said of a row is true of it, or nothing is said.
    #[track_caller]
    fn assert_honest(&self, rounds: &[Round]) {
        for round in rounds {
            for (place, class) in self.findings(&round.table) {
                let is_true = class == UNPROVEN || round.planted.get(&place).is_some_and(|planted| *planted == class);
                let Round { seed, planted, .. } = round;
                assert!(is_true, "seed {seed}: {place:?} is {class}, planted {planted:?}\n{:#?}", self.tables);
            }
        }
        assert!(self.classes_beside(rounds).all(|class| class == UNPROVEN), "{:#?}", self.tables);
    }

    /// Everything is said, and nothing else.
    #[track_caller]
    fn assert_exact(&self, rounds: &[Round]) {
        for Round { seed, table, planted, .. } in rounds {
            let planted: BTreeMap<Place, String> =
                planted.iter().map(|(place, class)| (*place, (*class).to_owned())).collect();
            let found = self.findings(table);
            assert!(found == planted, "seed {seed}: found {found:?}\nplanted {planted:?}\n{:#?}", self.tables);
        }
        assert_eq!(self.classes_beside(rounds).count(), 0, "{:#?}", self.tables);
        assert!(self.is_whole() && self.code == Some(7), "{:?} {:#?}", self.code, self.tables);
    }
}

/// Some seeds, each with a table of its own: plants, takes a node away, compares all the while, repairs.
fn play(world: &World, mut rounds: Vec<Round>) {
    let began = Instant::now();
    let note = |what: &str| println!("  {:4.0} s {what}", began.elapsed().as_secs_f32());
    // The first one says what happens to all.
    let random = &mut rounds[0].random;
    let (away, running) = (random.random_range(0..3), Duration::from_millis(random.random_range(200..2_500)));
    let another = shop::TABLES[random.random_range(0..shop::TABLES.len())];
    let trouble = random.random();
    let node = world.servers.cassandra.node(away);
    // Of a node that stays.
    let config = &world.config((away + 1) % 3);
    let clients: Vec<Clients> = rounds.iter().map(|round| Clients::start(world, round, rounds.len())).collect();
    rounds.iter_mut().for_each(|round| round.plant(world, config));
    rounds.iter().for_each(Round::let_expire);
    let rounds = rounds;
    note(&format!("{} planted", rounds.iter().map(|round| round.planted.len()).sum::<usize>()));
    let planted: Vec<&str> = rounds.iter().map(|round| &*round.table).collect();
    let tables = &[&planted[..], &[another]].concat();
    let trouble = Trouble::new(trouble, tables);
    thread::scope(|scope| {
        let _ends = trouble.ends_with_this();
        scope.spawn(|| trouble.make(world));

        let comparing = scope.spawn(|| world.compare(config, tables, &[]));
        thread::sleep(running);
        node.stop().unwrap();
        let report = comparing.join().unwrap();
        report.assert_honest(&rounds);
        note(&format!("compared while node {away} went down: {:?}", report.code));

        // No row can be proven wrong while nobody can say what all replicas know.
        let report = world.compare(config, &planted, &[]);
        for round in &rounds {
            let own = report.of(&round.table);
            let found = report.findings(&round.table);
            assert!(found.values().all(|class| class == UNPROVEN), "{own:#?}");
            assert!(round.planted.keys().all(|place| found.contains_key(place)), "{own:#?}");
            assert_eq!(own["drift_percentage"], 0.0, "{own:#?}");
        }
        assert_eq!((report.code, report.is_whole()), (Some(1), true), "{:#?}", report.tables);
        note("compared without it");

        node.start().unwrap();
        // What it has missed is still on its way to it.
        world.compare(config, &planted, &[]).assert_honest(&rounds);
        note("compared with it hardly back");
        eventually("the node is back", BACK_WITHIN, || world.barrier(config));
        world.compare(config, tables, &[]).assert_exact(&rounds);
        note("everything found, and nothing else");
    });

    let report = world.compare(config, &planted, &["--max-repair-share", "100", REPAIR]);
    for round in &rounds {
        let own = report.of(&round.table);
        let wrong = round.planted.values().filter(|class| **class != IN_DLQ).count();
        assert_eq!(own["repairs"]["done"], wrong, "{own:#?}");
        round.settle_letters(world);
    }
    let report = world.compare(config, tables, &[]);
    assert_eq!(report.code, Some(0), "{:#?}", report.tables);
    let writes: u64 = clients.into_iter().map(|clients| clients.stop(world)).sum();
    note(&format!("repaired; {writes} writes into the planted tables"));
}

/// `CDC_SEED=7,8,9` names them; else as many as `CDC_DRIFT_ROUNDS` says, by chance; else always the same.
fn seeds(rounds: usize) -> Vec<u64> {
    if let Ok(seeds) = std::env::var("CDC_SEED") {
        return seeds.split(',').map(|seed| seed.trim().parse().expect("CDC_SEED: as in 7,8,9")).collect();
    }
    let Ok(wanted) = std::env::var("CDC_DRIFT_ROUNDS") else { return (1..).take(rounds).collect() };
    let wanted: usize = wanted.parse().expect("CDC_DRIFT_ROUNDS: a number");
    (0..wanted).map(|_| u64::from(rand::random::<u32>())).collect()
}

fn planted_in_three_nodes(kafka: bool, rounds: usize) {
    let seeds = seeds(rounds);
    let mut world = World::start(kafka, seeds.len());
    let load = world.servers.load(seeds[0], LOAD);
    eventually("the pipeline works", BACK_WITHIN, || world.barrier(&world.config(0)));
    let mut rounds: Vec<Round> = seeds.iter().enumerate().map(|(number, seed)| Round::new(number, *seed)).collect();
    while !rounds.is_empty() {
        let rest = rounds.split_off(rounds.len().min(AT_A_TIME));
        let group = std::mem::replace(&mut rounds, rest);
        println!("CDC_SEED={}", group.iter().map(|round| round.seed.to_string()).collect::<Vec<_>>().join(","));
        play(&world, group);
        let processes = world.agents.iter_mut().chain(&mut world.sink);
        processes.for_each(|process| assert!(process.is_running(), "{}", process.log()));
    }
    assert!(load.stop(&world.servers) > 1_000);
    world.servers.let_short_ttls_pass();
    world.barrier(&world.config(0)).unwrap();
    let planted: Vec<String> = (0..seeds.len()).map(plant::name).collect();
    let tables: Vec<&str> = shop::TABLES.into_iter().chain(planted.iter().map(String::as_str)).collect();
    let compared = oracle::compare(&world.session, &world.postgres, "shop", &tables);
    let report = world.servers.runtime.block_on(compared).unwrap();
    assert_eq!(report.differences(), 0, "{report}");
}

#[test]
fn what_is_planted_in_a_cluster_under_load_with_a_node_away_is_found_and_nothing_else() {
    planted_in_three_nodes(false, 1);
}

#[test]
fn what_is_planted_behind_kafka_with_a_node_away_is_found_and_nothing_else() {
    planted_in_three_nodes(true, 1);
}
