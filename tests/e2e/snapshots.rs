//! `cdc snapshot`: rows that were there before the capture began arrive, while others are written.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use cdc_workload::{oracle, shop};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::pipeline::{Servers, cdc, connect_postgres, eventually};

const PARTITIONS: i32 = 400;
const ROWS: i32 = 10;
/// In partitions below this something was deleted before the capture.
const SCARRED: i32 = 20;
const COPIED: Duration = Duration::from_secs(120);

const SCHEMA: [&str; 2] = [
    "create type shop.size (width int, unit text)",
    "create table shop.things (p int, c int, v text, n bigint, d decimal, at timestamp, who uuid, raw blob, host inet, \
     on_day date, lasts duration, big varint, ok boolean, f double, tags set<text>, marks map<text, int>, notes list<text>, \
     size size, frozen_size frozen<size>, pair tuple<int, text>, days frozen<list<int>>, place text static, \
     badges set<text> static, primary key (p, c)) with clustering order by (c desc)",
];

type Session = cdc_workload::Session;

fn session(servers: &Servers) -> Session {
    servers.runtime.block_on(cdc_workload::connect(&servers.cassandra.contact_points())).unwrap()
}

fn cql(servers: &Servers, session: &Session, statement: &str) {
    let done = servers.runtime.block_on(session.query_unpaged(statement, ()));
    done.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// With a value of each column, as it may stand there for years.
fn insert(p: i32, c: i32) -> String {
    let time = 1_600_000_000_000_000_i64 + i64::from(p * ROWS + c);
    let ttl = if c == 3 { " and ttl 86400" } else { "" };
    format!(
        "insert into shop.things (p, c, v, n, d, at, who, raw, host, on_day, lasts, big, ok, f, tags, marks, notes, size, \
         frozen_size, pair, days) values ({p}, {c}, 'v {p}.{c}', {p}, {p}.50, {c}, \
         00000000-0000-4000-8000-{p:012}, 0x00{c:02x}, '10.0.0.{c}', '2020-01-0{day}', {c}h3m, {p}00000000000000000000, \
         true, {c}.25, {{'a', 'b {c}'}}, {{'x': {c}, 'y': 2}}, ['one', 'two', 'two'], {{width: {c}, unit: 'm'}}, \
         {{width: 1, unit: 'cm'}}, ({c}, 'p'), [1, 2, {c}]) using timestamp {time}{ttl}",
        day = c % 9 + 1,
    )
}

/// Rows of all shapes, written before anything is captured.
fn write_before(servers: &Servers, session: &Session) {
    SCHEMA.iter().for_each(|statement| cql(servers, session, statement));
    for p in 0..PARTITIONS {
        (0..ROWS).for_each(|c| cql(servers, session, &insert(p, c)));
        let statics = format!("insert into shop.things (p, place, badges) values ({p}, 'place {p}', {{'s', 't'}})");
        cql(servers, session, &statics);
    }
    // Only keys, only static columns, parts of collections.
    for p in 0..SCARRED {
        cql(servers, session, &format!("insert into shop.things (p, c) values ({p}, 1000)"));
        cql(servers, session, &format!("insert into shop.things (p, place) values ({}, 'alone')", p + 10_000));
        cql(servers, session, &format!("delete tags['a'], v, size.unit from shop.things where p = {p} and c = 1"));
        cql(servers, session, &format!("delete from shop.things where p = {p} and c = 2"));
    }
}

/// Begins new segments of the commit log: nothing that was written is left in those that are captured.
fn forget_the_log(servers: &Servers) -> Session {
    servers.cassandra.node(0).kill().unwrap();
    servers.cassandra.node(0).start().unwrap();
    session(servers)
}

fn capture(servers: &Servers, session: &Session, tables: &[&str], cdc: bool) {
    for table in tables {
        cql(servers, session, &format!("alter table shop.{table} with cdc = {cdc}"));
    }
}

/// What clients do to rows old and new, copied or not: all that a snapshot can be right under. So no single elements of lists,
/// and no row loses all its columns.
fn write(servers: &Servers, session: &Session, random: &mut ChaCha8Rng) {
    let (p, c) = (random.random_range(0..PARTITIONS), random.random_range(0..ROWS + 2));
    let number: u32 = random.random();
    let of = format!("where p = {p} and c = {c}");
    let set = |what: &str| format!("update shop.things set n = {number}, {what} {of}");
    let statement = match random.random_range(0..16) {
        0 => set(&format!("v = 'new {number}'")),
        1 => set(&format!("tags = tags + {{'t {number}'}}")),
        2 => set("tags = tags - {'a'}"),
        3 => set(&format!("marks['x'] = {c}")),
        4 => set("marks = {'z': 1}"),
        5 => set(&format!("size.width = {p}")),
        6 => set(&format!("notes = notes + ['{number}']")),
        7 => set("notes = ['anew']"),
        8 => set("d = null, notes = null"),
        9 => format!("delete v from shop.things {of}"),
        10 => format!("delete from shop.things {of}"),
        11 if number.is_multiple_of(4) => format!("delete from shop.things where p = {p}"),
        12 if number.is_multiple_of(2) => format!("delete from shop.things where p = {p} and c > 6"),
        // Where nothing was deleted before: CQL does not tell of deletions.
        13 if p >= SCARRED => format!("update shop.things using timestamp {number} set v = 'of 1970' {of}"),
        14 => format!("update shop.things set place = '{number}', badges = badges + {{'u'}} where p = {p}"),
        15 => format!("update shop.things using ttl 2 set v = 'short' {of}"),
        _ => format!("insert into shop.things (p, c, v, n, notes) values ({p}, {c}, 'again', 1, ['x'])"),
    };
    cql(servers, session, &statement);
}

struct Answer {
    code: Option<i32>,
    text: String,
    json: Value,
}

fn snapshot(config: &Path, arguments: &[&str]) -> Answer {
    let (command, rest) = arguments.split_first().unwrap();
    let output = cdc().args(["snapshot", command]).arg(config).args(["--output", "json"]).args(rest).output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    Answer { code: output.status.code(), text, json }
}

#[track_caller]
fn copied(config: &Path, arguments: &[&str]) -> Value {
    let answer = snapshot(config, &[&["start", "--wait"], arguments].concat());
    assert_eq!((answer.code, &answer.json["state"]), (Some(0), &"done".into()), "{}", answer.text);
    assert_eq!(answer.json["done_percent"], 100.0, "{}", answer.text);
    assert_eq!(answer.json["ranges_done"], answer.json["ranges_total"], "{}", answer.text);
    answer.json
}

fn count(servers: &Servers, table: &str) -> i64 {
    servers.runtime.block_on(async {
        let postgres = connect_postgres(&servers.postgres).await.unwrap();
        let known = postgres.query_one("select to_regclass($1)::text", &[&table]).await.unwrap();
        if known.get::<_, Option<String>>(0).is_none() {
            return 0;
        }
        postgres.query_one(&format!("select count(*) from {table}"), &[]).await.unwrap().get(0)
    })
}

#[track_caller]
fn assert_equal(servers: &Servers, session: &Session, tables: &[&str]) {
    servers.runtime.block_on(async {
        let postgres = connect_postgres(&servers.postgres).await.unwrap();
        let report = oracle::compare(session, &postgres, "shop", tables).await.unwrap();
        assert_eq!(report.differences(), 0, "{report}");
        assert!(report.tables.iter().all(|table| table.rows > 100), "next to nothing to compare: {report}");
        let letters: i64 = postgres.query_one("select count(*) from _cdc.dlq", &[]).await.unwrap().get(0);
        assert_eq!(letters, 0);
    });
}

/// Everything written before is in PostgreSQL.
#[track_caller]
fn drain(config: &Path) {
    let output = cdc().arg("barrier").arg(config).args(["--timeout", "60s"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn rows_before_the_capture_arrive_under_changes(kafka: bool) {
    let servers = Servers::start(kafka);
    let session = session(&servers);
    capture(&servers, &session, &shop::TABLES, false);
    let load = servers.load(7, 400);
    write_before(&servers, &session);
    assert!(load.stop(&servers) > 500);
    servers.let_short_ttls_pass();
    let session = forget_the_log(&servers);
    let tables = [&shop::TABLES[..], &["things"]].concat();
    capture(&servers, &session, &tables, true);

    let source = "  snapshot:\n    rows_per_second: 700\n    page_rows: 200\n";
    let mut agent = servers.spawn(if kafka { "source" } else { "run" }, source);
    let _sink = kafka.then(|| servers.spawn("sink", ""));
    agent.wait_until_idle();
    let before = count(&servers, "cdc_things");
    assert_eq!(before, 0, "rows were captured that are to be copied");

    let config = agent.config().to_owned();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (servers, session, done) = (&servers, &session, &done);
        scope.spawn(move || {
            let mut random = ChaCha8Rng::seed_from_u64(11);
            while !done.load(Relaxed) {
                write(servers, session, &mut random);
            }
        });
        let things = copied(&config, &["--table", "shop.things"]);
        done.store(true, Relaxed);
        assert!(things["rows"].as_u64().unwrap() > 2000, "{things}");
    });
    for table in shop::TABLES {
        copied(&config, &["--table", &format!("shop.{table}")]);
    }
    let mut random = ChaCha8Rng::seed_from_u64(12);
    (0..500).for_each(|_| write(&servers, &session, &mut random));
    drain(&config);
    assert_equal(&servers, &session, &tables);
    let report = snapshot(&config, &["status", "--table", "shop.things"]);
    assert_eq!(report.json[0]["state"], "done", "{}", report.text);
}

#[test]
fn rows_from_before_the_capture_arrive_while_they_are_changed() {
    rows_before_the_capture_arrive_under_changes(false);
}

#[test]
fn rows_from_before_the_capture_arrive_through_kafka_while_they_are_changed() {
    rows_before_the_capture_arrive_under_changes(true);
}

#[test]
fn a_killed_agent_goes_on_with_a_snapshot_where_it_was() {
    let servers = Servers::start(false);
    let session = session(&servers);
    write_before(&servers, &session);
    let session = forget_the_log(&servers);
    capture(&servers, &session, &["things"], true);
    let source = "  snapshot:\n    rows_per_second: 600\n    page_rows: 50\n";
    let mut agent = servers.spawn("run", source);
    agent.wait_until_idle();
    let config = agent.config().to_owned();
    let answer = snapshot(&config, &["start", "--table", "shop.things"]);
    assert_eq!((answer.code, &answer.json["state"]), (Some(0), &"waiting".into()), "{}", answer.text);
    let again = snapshot(&config, &["start", "--table", "shop.things"]);
    assert_eq!(again.code, Some(2), "one of a table at a time: {}", again.text);

    let mut random = ChaCha8Rng::seed_from_u64(13);
    let mut reached = 0;
    for kill in 0..3 {
        let rows = eventually("a part is copied", COPIED, || {
            (0..20).for_each(|_| write(&servers, &session, &mut random));
            let rows = snapshot(&config, &["status"]).json[0]["rows"].as_u64().unwrap_or_default();
            anyhow::ensure!(rows > reached + 600, "{rows} rows");
            Ok(rows)
        });
        reached = rows;
        let status = snapshot(&config, &["status"]);
        assert_eq!(status.json[0]["state"], "running", "it ended before kill {kill}: {}", status.text);
        agent.kill_and_start();
        agent.wait_until_idle();
        let rows = snapshot(&config, &["status"]).json[0]["rows"].as_u64().unwrap();
        // What was acknowledged since it was saved last is copied again.
        assert!(rows + 1200 > reached, "begun anew: {rows} after {reached}");
    }
    let answer = snapshot(&config, &["status", "--wait"]);
    assert_eq!((answer.code, &answer.json[0]["state"]), (Some(0), &"done".into()), "{}", answer.text);
    agent.wait_until_idle();
    assert_equal(&servers, &session, &["things"]);
}

#[test]
fn a_range_is_copied_alone_a_snapshot_is_cancelled_and_a_table_captured_later_is_copied_by_itself() {
    let servers = Servers::start(false);
    let session = session(&servers);
    write_before(&servers, &session);
    let session = forget_the_log(&servers);
    cql(&servers, &session, "create table shop.counts (p int primary key, n counter) with cdc = true");
    cql(&servers, &session, "update shop.counts set n = n + 1 where p = 1");
    capture(&servers, &session, &["things"], true);
    let mut agent = servers.spawn("run", "");
    agent.wait_until_idle();
    let config = agent.config().to_owned();

    let of_range = |range: &str| {
        let (start, end) = range.split_once(':').unwrap();
        let select = format!("select p from shop.things where token(p) > {start} and token(p) <= {end}");
        let rows = servers.runtime.block_on(session.query_unpaged(select, ())).unwrap().into_rows_result().unwrap();
        i64::try_from(rows.rows_num()).unwrap()
    };
    let range = "-4000000000000000000:1";
    let status = copied(&config, &["--table", "shop.things", "--range", range]);
    let (expected, arrived) = (of_range(range), count(&servers, "cdc_things"));
    assert!(expected > 500, "{expected}");
    // Partitions with static columns alone count in Cassandra.
    assert!((expected - 20..=expected).contains(&arrived), "{arrived} of {expected}: {status}");

    // Slow enough to be caught.
    drop(agent);
    let mut agent = servers.spawn("run", "  snapshot:\n    rows_per_second: 50\n    page_rows: 10\n");
    agent.wait_until_idle();
    let config = agent.config().to_owned();
    assert_eq!(snapshot(&config, &["start", "--table", "shop.things"]).code, Some(0));
    let answer = snapshot(&config, &["cancel", "--table", "shop.things"]);
    assert_eq!((answer.code, &answer.json["state"]), (Some(0), &"cancelled".into()), "{}", answer.text);
    let answer = snapshot(&config, &["cancel", "--table", "shop.things"]);
    assert_eq!(answer.code, Some(2), "{}", answer.text);
    for (arguments, said) in [
        (&["--table", "shop.nothing"][..], "not captured"),
        (&["--table", "shop.users_"], "not captured"),
        (&["--table", "shop.counts"], "counters"),
        (&["--table", "shop.things", "--range", "7:5"], "START:END"),
    ] {
        let answer = snapshot(&config, &[&["start"], arguments].concat());
        assert_eq!(answer.code, Some(2), "{arguments:?}: {}", answer.text);
        assert!(answer.text.contains(said), "{arguments:?}: {}", answer.text);
    }
    let (status, metrics) = (agent.status().unwrap(), agent.ask("/metrics").unwrap());
    assert_eq!(status["source"]["snapshots"], Value::Array(Vec::new()), "{status}");
    assert!(metrics.contains("cdc_snapshot_unfinished 0"), "{metrics}");

    // All tables by themselves, and one that is captured later.
    drop(agent);
    let mut agent = servers.spawn("run", "  snapshot:\n    start: initial\n");
    cql(&servers, &session, "create table shop.late (p int primary key, v text)");
    (0..300).for_each(|p| cql(&servers, &session, &format!("insert into shop.late (p, v) values ({p}, 'late')")));
    agent.wait_until_idle();
    capture(&servers, &session, &["late"], true);
    let config = agent.config().to_owned();
    eventually("the table that came later is copied", COPIED, || {
        let listed = snapshot(&config, &["status", "--table", "shop.late"]);
        anyhow::ensure!(listed.json[0]["state"] == "done", "{}", listed.text);
        Ok(())
    });
    let answer = snapshot(&config, &["status", "--table", "shop.counts"]);
    assert_eq!(answer.json, Value::Array(Vec::new()), "{}", answer.text);
    agent.wait_until_idle();
    assert_equal(&servers, &session, &["late"]);
}
