//! What an operator sees: refusals that say what to do, and an end that is in order.

use std::time::{Duration, Instant};

use cdc_testkit::{Cassandra, Postgres};
use rustix::process::Signal;

use crate::pipeline::{Process, Servers, cdc, connect_postgres, eventually};

/// Well below the time after which an orchestrator kills.
const IN_ORDER: Duration = Duration::from_secs(10);
const AT_ONCE: Duration = Duration::from_secs(2);

/// Exit code and what was printed by `cdc validate`.
fn validate(config: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cdc.yaml");
    std::fs::write(&file, config).unwrap();
    let output = cdc().arg("validate").arg(&file).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn validate_names_what_is_wrong_with_a_real_node_and_how_to_mend_it() {
    let servers = Servers::start(false);
    servers.runtime.block_on(async {
        let session = cdc_workload::connect(&servers.cassandra.contact_points()).await.unwrap();
        session.query_unpaged("CREATE TABLE shop.silent (id int PRIMARY KEY)", ()).await.unwrap();
    });
    let config = std::fs::read_to_string(servers.config("validate", "")).unwrap();
    std::fs::create_dir_all(servers.folder().join("state")).unwrap();
    let (code, text) = validate(&config);
    assert_eq!(code, Some(0), "{text}");

    let (code, text) = validate(&config.replace("shop.*", "shop.usres"));
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("shop.usres") && text.contains("mean `users`"), "names the table and the likely one: {text}");

    let (code, text) = validate(&config.replace("shop.*", "shop.silent"));
    assert_eq!(code, Some(78), "{text}");
    assert!(text.to_lowercase().contains("alter table shop.silent with cdc = true"), "{text}");

    let port = servers.postgres.address().port();
    servers.postgres.stop().unwrap();
    let (code, text) = validate(&config);
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");

    servers.cassandra.node(0).stop().unwrap();
    let (code, text) = validate(&config);
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains(&servers.cassandra.node(0).address()), "{text}");
}

#[test]
fn a_node_without_cdc_is_refused_with_the_setting_to_change() {
    let cassandra = Cassandra::builder().setting("cdc_enabled", "false").start().unwrap();
    let postgres = Postgres::start().unwrap();
    let url: tokio_postgres::Config = postgres.url().parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "cassandra:\n  contact_points: [\"{}\"]\n\
         source:\n  cdc_raw_directory: {folder}\n  state_directory: {folder}\n  tables: [\"shop.*\"]\n\
         postgres:\n  host: 127.0.0.1\n  port: {}\n  database: warehouse\n  username: postgres\n  password: {}\n",
        cassandra.node(0).address(),
        postgres.address().port(),
        std::str::from_utf8(url.get_password().unwrap()).unwrap(),
        folder = folder.path().display(),
    );
    let (code, text) = validate(&config);
    assert!(matches!(code, Some(69 | 78)), "{code:?} {text}");
    assert!(text.contains("cdc_enabled: true") && text.contains("cassandra.yaml"), "{text}");
}

#[test]
fn log_shows_what_a_live_node_writes_and_reads_it_with_the_schema_of_that_moment() {
    let cassandra = Cassandra::start().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let session = runtime.block_on(cdc_workload::connect(&cassandra.contact_points())).unwrap();
    let execute = |cql: &str| drop(runtime.block_on(session.query_unpaged(cql, ())).unwrap());
    execute("create keyspace live with replication = {'class': 'SimpleStrategy', 'replication_factor': 1}");
    execute("create table live.seen (id int primary key, note text) with cdc = true");
    let folder = tempfile::tempdir().unwrap();
    let node = cassandra.node(0);
    let mut dump = cdc();
    dump.args(["log", "dump", "--follow", "--from", "end", "--contact-point", &node.address()]).arg(node.cdc_raw_dir());
    let mut dump = Process::run(dump, "log dump", folder.path().join("dump"));
    let is_shown = |dump: &Process, what: &str| {
        let text = dump.log();
        anyhow::ensure!(text.lines().any(|line| line.contains(what)), "{what} is not in {text}");
        Ok(())
    };
    let mut id = 0;
    eventually("a write is shown", Duration::from_secs(30), || {
        id += 1;
        execute(&format!("insert into live.seen (id, note) values ({id}, 'first')"));
        is_shown(&dump, r#""value":"first""#)
    });
    execute("alter table live.seen add more list<int>");
    execute("insert into live.seen (id, more) values (-1, [7])");
    execute("create table live.born (id int primary key, v boolean) with cdc = true");
    execute("insert into live.born (id, v) values (-2, true)");
    eventually("what was altered and created since is shown", Duration::from_secs(30), || {
        is_shown(&dump, r#""value":7"#)?;
        is_shown(&dump, r#""table":"live.born""#)
    });
    dump.signal(Signal::INT);
    assert_eq!(dump.exits_within(AT_ONCE).code(), Some(0));
}

#[test]
fn an_interrupt_drains_and_commits_and_a_second_one_stops_at_once() {
    let servers = Servers::start(false);
    let mut agent = servers.spawn("run", "");
    let load = servers.load(1, 500);
    let client = servers.runtime.block_on(connect_postgres(&servers.postgres)).unwrap();
    eventually("rows arrive", Duration::from_secs(60), || {
        let rows = servers.runtime.block_on(client.query_one("select count(*) from cdc_users", &[]))?.get::<_, i64>(0);
        anyhow::ensure!(rows > 100, "{rows} rows");
        Ok(())
    });

    agent.signal(Signal::INT);
    let asked = Instant::now();
    let status = agent.exits_within(IN_ORDER);
    assert!(status.success(), "{status} after {:?}:\n{}", asked.elapsed(), agent.log());

    // PostgreSQL hangs: a drain cannot end, a second interrupt does not wait for it.
    let mut agent = servers.spawn("run", "");
    eventually("the agent works", Duration::from_secs(30), || {
        anyhow::ensure!(agent.status()?["source"]["changes"].as_u64() > Some(100), "not yet");
        Ok(())
    });
    servers.postgres.pause().unwrap();
    agent.signal(Signal::INT);
    let interrupts = |agent: &Process| agent.log().matches("stopping; a second signal stops at once").count();
    eventually("the interrupt is heard", Duration::from_secs(5), || {
        anyhow::ensure!(interrupts(&agent) == 2, "{} so far, one of them of the first agent", interrupts(&agent));
        Ok(())
    });
    assert!(agent.is_running(), "it drains:\n{}", agent.log());
    agent.signal(Signal::INT);
    agent.exits_within(AT_ONCE);
    servers.postgres.resume().unwrap();

    let mut agent = servers.spawn("run", "");
    assert!(load.stop(&servers) > 100);
    servers.let_short_ttls_pass();
    agent.wait_until_idle();
    servers.assert_equal();
}
