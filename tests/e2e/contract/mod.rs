//! Every command about reconciliation and dead letters of the troubleshooting guide, as it stands there, and what the operator
//! contract says of it beyond that, asked of one running pipeline. Lines between backticks are what somebody types.
//!
//! | row | what is asked | where |
//! |---|---|---|
//! | A-01 | `curl -X POST …/dlq/replay … "retry_strategy": "immediate"`; each other strategy; newer values first; the service killed midway; twice; unknown members; nothing to do | [`letters`] |
//! | A-02 | `curl …/jobs?status=COMPLETED \| jq .`; the fields of a job; each filter, each status, both kinds of paging; `status=DONE` | [`lists`] |
//! | A-03 | `curl …/jobs/{job_id} \| jq .mismatches`, with an id and pasted as it stands; one mismatch of each type; no values; unknown and malformed ids | [`mismatches`] |
//! | A-04 | `curl …/metrics \| grep cdc_reconciliation_drift_percentage` before any job, after one, after a restart | [`mismatches`] |
//! | A-05 | `curl -X POST …/reconciliation/trigger …`; `ALREADY_RUNNING`; `INVALID_TABLE` with `valid_tables`; `RECONCILIATION_DISABLED`; each priority; `users` and `shop.users` | [`mismatches`], [`held`], [`lists`] |
//! | A-06 | `curl …/mismatches?resolution_status=PENDING`; one mismatch however many jobs see it; each filter | [`mismatches`], [`lists`] |
//! | A-07 | `curl -X POST …/resolve -d …`; opened again with its note; back to `PENDING` by hand; notes of 1,001 characters; unknown ids; in the audit log | [`mismatches`] |
//! | A-08 | `curl …/health`, as JSON and as text | [`lists`] |
//! | A-09 | `/dlq/records` with each filter, `/dlq/stats`, `/dlq/replay/{replay_id}`, `/health/{component}` | [`letters`], [`lists`] |
//! | A-10 | every line that reads a second time below `/api/v1`, with the same answer; those that write, too | all |
//! | A-11 | answers arrive while writers and a comparison wait for a table | [`held`] |
//! | N-21, N-34 | tables with and without keyspace; field, gauge and column of drift agree | [`mismatches`] |
//! | N-35, N-36, N-38, N-39 | each member of the four lists, and a 400 that names them | [`letters`], [`lists`], [`mismatches`] |
//! | N-37 | each strategy finds what it can find and no more; single partitions; gone on with after a crash | [`strategies`] |
//! | M-03, M-05 | each figure equals what the jobs say, failed ones counted | [`metrics`] |
//! | M-04 | `cdc_dlq_events_total` counts the letters | [`letters`] |
//!
//! Elsewhere: under load and the bytes of schemathesis in `reconciler_api`; repairs in `reconciler_repair`;
//! 403 and tokens (D-21) in the tests of the command.
//!
//! Not here, because it is not there yet: `vault: sealed=…` of A-08 (no Vault), values for callers with a scope of A-03 (no
//! scopes: always null), `target_topic` of A-01 (a replay goes to PostgreSQL, not to a topic). S-03, `dlq-events`, takes Kafka:
//! `services/sink/tests/kafka.rs`. Members of N-35 are those of docs/dlq.md. A-11 asks for 60 s and a percentile; a test asserts
//! no times.

mod letters;
mod strategies;

use std::cell::Cell;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cdc_testkit::Cassandra;
use serde_json::{Value, json};

use crate::pipeline::{Process, Servers, connect_postgres, eventually};
use crate::reconciler_api::{COMPLETED, DRIFT, OF_JOB, PENDING, RESOLVE, TRIGGER, typed};

const SOON: Duration = Duration::from_secs(120);
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// A pipeline and its reconciler.
struct World {
    servers: Servers,
    agent: Process,
    api: Process,
    client: tokio_postgres::Client,
    session: cdc_workload::Session,
    /// Lines are typed below `/api/v1` in turn with those that are not.
    turn: Cell<bool>,
}

impl World {
    fn start() -> Self {
        let servers = Servers::start(false);
        let session = servers.runtime.block_on(connect_cassandra(&servers.cassandra));
        let client = servers.runtime.block_on(connect_postgres(&servers.postgres)).unwrap();
        let agent = servers.spawn("run", "");
        let api = Process::spawn("reconciler", config(&servers, "reconciler", "api.port", ""));
        let world = Self { servers, agent, api, client, session, turn: Cell::new(false) };
        world.wait_until_ready();
        world
    }

    fn wait_until_ready(&self) {
        eventually("a port", SOON, || Ok(fs::read_to_string(self.servers.folder().join("api.port"))?));
        eventually("the service answers", SOON, || {
            let ready = typed(&self.servers, "curl http://localhost:8080/readyz || true");
            ensure!(ready == "ready\n", "{ready}\n{}", self.api.log());
            Ok(())
        });
    }

    /// Kills the service and starts it again; what it held is free at once.
    fn kill_and_start(&mut self) {
        fs::remove_file(self.servers.folder().join("api.port")).unwrap();
        self.api.kill_and_start();
        self.sql(
            "update _cdc.reconciliation_jobs set lease_until = now() where lease_until is not null;
                  update _cdc.dlq_replays set lease_until = now() where lease_until is not null",
        );
        self.wait_until_ready();
    }

    fn cql(&self, statement: &str) {
        self.servers.runtime.block_on(self.session.query_unpaged(statement, ())).unwrap();
    }

    fn sql(&self, sql: &str) {
        self.servers.runtime.block_on(self.client.batch_execute(sql)).unwrap();
    }

    fn number(&self, sql: &str) -> i64 {
        self.servers.runtime.block_on(self.client.query_one(sql, &[])).unwrap().get(0)
    }

    /// Everything written before is in PostgreSQL.
    fn settle(&self) {
        let passed = self.line("curl -X POST http://localhost:8080/barrier -d '{\"timeout_seconds\": 59}'");
        assert_eq!(passed["passed"], true, "{passed}");
    }

    /// What a line prints, as JSON; every second one is typed below `/api/v1`.
    #[track_caller]
    fn line(&self, line: &str) -> Value {
        let text = typed(&self.servers, &self.in_turn(line));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
    }

    fn in_turn(&self, line: &str) -> String {
        self.turn.set(!self.turn.get());
        if self.turn.get() { line.to_owned() } else { line.replace(":8080/", ":8080/api/v1/") }
    }

    /// Status and body.
    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u64, Value) {
        let body = body.map(|body| format!(" -d '{body}'")).unwrap_or_default();
        let line = format!("curl -X {method} -w '%{{http_code}}' 'http://localhost:8080{path}'{body}");
        let text = typed(&self.servers, &self.in_turn(&line));
        let (body, code) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{path}: no line break at the end: {text}"));
        (code.parse().unwrap(), serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {text}")))
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let (code, body) = self.ask("GET", path, None);
        assert_eq!(code, 200, "{path}: {body}");
        body
    }

    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> Value {
        let (code, answer) = self.ask("POST", path, Some(body));
        assert!((200..300).contains(&code), "{path} {body}: {answer}");
        answer
    }

    /// The call is refused as a problem that has these words.
    #[track_caller]
    fn refused(&self, (code, body): (u64, Value), expected: u64, words: &str) {
        assert!(
            code == expected && body.to_string().contains(words),
            "expected {expected} and `{words}`: {code} {body}"
        );
        assert!(body["code"].is_string() && body["error"] == body["code"] && body["message"].is_string(), "{body}");
    }

    fn trigger(&self, body: &Value) -> String {
        let asked = self.post("/reconciliation/trigger", body);
        assert_eq!(asked["status"], "RUNNING", "{asked}");
        asked["job_ids"][0].as_str().unwrap().to_owned()
    }

    /// A job once it is as wanted.
    fn job(&self, id: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        eventually(what, SOON, || {
            let job = self.get(&format!("/reconciliation/jobs/{id}"));
            ensure!(is_it(&job), "{job:#}\n{}", self.api.log());
            Ok(job)
        })
    }

    fn ended(&self, id: &str, status: &str) -> Value {
        let job = self.job(id, "the job ends", |job| job["completed_at"].is_string());
        assert_eq!(job["status"], status, "{job:#}");
        job
    }

    /// A comparison that runs to its end.
    fn compared(&self, body: &Value) -> Value {
        self.ended(&self.trigger(body), "COMPLETED")
    }

    /// The guide's line; both jobs once they are completed: of `users` and of `orders`.
    fn both(&self) -> [Value; 2] {
        let asked = self.line(TRIGGER);
        let ids: Vec<&str> = asked["job_ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
        assert_eq!((&asked["status"], ids.len()), (&json!("RUNNING"), 2), "{asked}");
        let jobs = [self.ended(ids[0], "COMPLETED"), self.ended(ids[1], "COMPLETED")];
        for (job, table) in jobs.iter().zip(["users", "orders"]) {
            assert_eq!((&job["table_name"], &job["validation_strategy"]), (&json!(table), &json!("CHECKSUM")), "{job}");
        }
        jobs
    }
}

async fn connect_cassandra(cassandra: &Cassandra) -> cdc_workload::Session {
    cdc_workload::connect(&cassandra.contact_points()).await.unwrap()
}

/// The file of a reconciler that writes its port there.
fn config(servers: &Servers, name: &str, port: &str, more: &str) -> std::path::PathBuf {
    let config = servers.config(name, "");
    let port = servers.folder().join(port);
    let section = format!("reconciler:\n  listen: 127.0.0.1:0\n  port_file: {}\n{more}", port.display());
    fs::write(&config, fs::read_to_string(&config).unwrap() + &section).unwrap();
    config
}

#[test]
fn every_command_of_the_operator_contract_about_reconciliation_and_dead_letters_does_what_it_says() {
    let mut world = World::start();
    for statement in [
        "create table shop.items (p int primary key, v text) with cdc = true",
        "create table shop.parcels (id int primary key, v text) with cdc = true",
        "create table shop.retired (id int primary key) with cdc = true",
        "insert into shop.retired (id) values (1)",
    ] {
        world.cql(statement);
    }
    for at in 1..=8 {
        world.cql(&format!(
            "insert into shop.users (id, name) values (00000000-0000-4000-8000-00000000000{at}, 'n{at}')"
        ));
        let order = "insert into shop.orders (user_id, order_id, status) values";
        world.cql(&format!("{order} (00000000-0000-4000-8000-00000000000{at}, now(), 'new')"));
    }
    world.settle();
    // Before any job there is nothing to see, and that is no error.
    assert!(typed(&world.servers, DRIFT).lines().all(|line| line.starts_with('#')));
    assert_eq!(world.line(COMPLETED)["total"], 0);
    mismatches(&mut world);
    held(&world);
    strategies::each_is_really_executed(&mut world);
    letters::are_replayed(&mut world);
    lists(&world);
    metrics(&world);
    assert_eq!(world.number("select count(*) from _cdc.audit_breaks()"), 0);
}

fn mismatches(world: &mut World) {
    let [users, _] = world.both();
    assert_eq!((&users["mismatch_count"], &users["cassandra_row_count"]), (&json!(0), &json!(8)), "{users}");
    world.sql(
        "create table kept as select * from cdc_users;
         delete from cdc_users where id = '00000000-0000-4000-8000-000000000001';
         update cdc_users set name = 'somebody else' where id = '00000000-0000-4000-8000-000000000002';
         create table extra as select * from cdc_users where id = '00000000-0000-4000-8000-000000000003';
         update extra set id = '00000000-0000-4000-8000-0000000000ff';
         insert into cdc_users select * from extra",
    );
    let jobs = [world.both(), world.both(), world.both()].map(|[users, _]| users);
    let (job, id) = (&jobs[2], jobs[2]["job_id"].as_str().unwrap());
    // Eight rows on either side: numbers alone say nothing.
    assert_eq!((&job["mismatch_count"], &job["drift_percentage"]), (&json!(3), &json!(37.5)), "{job}");
    let found = world.line(&OF_JOB.replace("{job_id}", id));
    let of = |kind: &str| found.as_array().unwrap().iter().find(|one| one["mismatch_type"] == kind).unwrap();
    let [data, extra, missing] = ["DATA_MISMATCH", "MISSING_IN_CASSANDRA", "MISSING_IN_POSTGRES"].map(of);
    assert_eq!(found.as_array().unwrap().len(), 3, "{found}");
    let sums = |one: &Value| ["cassandra_checksum", "postgres_checksum"].map(|name| one[name].as_str().map(str::len));
    assert_eq!((sums(data), sums(extra), sums(missing)), ([Some(64); 2], [None, Some(64)], [Some(64), None]));
    assert_ne!(data["cassandra_checksum"], data["postgres_checksum"]);
    for one in [data, extra, missing] {
        let unseen = ["primary_key_value", "cassandra_data", "postgres_data"];
        assert!(unseen.iter().all(|name| one.get(*name).is_some_and(Value::is_null)), "{one}");
        assert_eq!((&one["times_seen"], &one["job_id"]), (&json!(3), &json!(id)), "{one}");
    }
    assert!(!found.to_string().contains("somebody"), "no values: {found}");
    assert_eq!(typed(&world.servers, OF_JOB), "null\n", "pasted as it stands, it is refused in JSON");
    world.refused(world.ask("GET", &format!("/reconciliation/jobs/{NOBODY}"), None), 404, "no job");
    world.refused(world.ask("GET", "/reconciliation/jobs/7", None), 400, "UUID");

    // Field, column and gauge agree, also when the process is another.
    let series = "cdc_reconciliation_drift_percentage{keyspace=\"shop\",table=\"users\"} 37.5\n";
    assert!(typed(&world.servers, DRIFT).contains(series), "{series}{}", typed(&world.servers, DRIFT));
    let column =
        format!("select count(*) from _cdc.reconciliation_jobs where job_id = '{id}' and drift_percentage = 37.5");
    assert_eq!(world.number(&column), 1);
    world.kill_and_start();
    assert!(typed(&world.servers, DRIFT).contains(series), "{}", typed(&world.servers, DRIFT));

    let pending = world.line(PENDING);
    assert_eq!((&pending["total"], &pending["limit"], &pending["offset"]), (&json!(3), &json!(100), &json!(0)));
    let mismatch = data["mismatch_id"].as_str().unwrap();
    let resolved = world.line(&RESOLVE.replace("{mismatch_id}", mismatch));
    let notes = "Backfilled from Cassandra";
    assert_eq!((&resolved["mismatch_id"], &resolved["resolution_notes"]), (&json!(mismatch), &json!(notes)));
    assert_eq!(resolved["resolution_status"], "MANUAL_RESOLVED", "{resolved}");
    assert!(resolved["resolved_at"].is_string() && resolved["resolved_by"].is_string(), "{resolved}");
    assert_eq!(world.line(PENDING)["total"], 2);
    let audited = format!("select count(*) from _cdc.audit_log where action = 'resolve' and subject = '{mismatch}'");
    assert_eq!(world.number(&audited), 1);
    let path = |id: &str| format!("/reconciliation/mismatches/{id}/resolve");
    let resolve = |body: Value| world.ask("POST", &path(mismatch), Some(&body));
    let long = json!({"resolution_status": "IGNORED", "resolution_notes": "x".repeat(1_001)});
    world.refused(resolve(json!({"resolution_status": "PENDING"})), 400, "MANUAL_RESOLVED or IGNORED");
    world.refused(resolve(json!({"resolution_status": "SOLVED"})), 400, "AUTO_RESOLVED");
    world.refused(resolve(long), 400, "1001 characters");
    let ignored = json!({"resolution_status": "IGNORED"});
    world.refused(world.ask("POST", &path(NOBODY), Some(&ignored)), 404, "no mismatch");
    world.refused(world.ask("POST", &path("{mismatch_id}"), Some(&ignored)), 400, "UUID");
    world.post(&path(extra["mismatch_id"].as_str().unwrap()), &ignored);

    // It was said to be mended, and is not; what is to be ignored stays so.
    world.both();
    let again = world.get(&format!("/reconciliation/mismatches?resolution_status=PENDING&job_id={}", newest(world)));
    let again =
        again["mismatches"].as_array().unwrap().iter().find(|one| one["mismatch_id"] == mismatch).unwrap().clone();
    assert_eq!((&again["reopened"], &again["previous_resolution"]["resolution_notes"]), (&json!(1), &json!(notes)));
    assert_eq!(world.get("/reconciliation/mismatches?resolution_status=IGNORED")["total"], 1);
    world.sql("truncate cdc_users; insert into cdc_users select * from kept");
    world.both();
    assert_eq!(world.line(PENDING)["total"], 0);
    let proven = world.get("/reconciliation/mismatches?resolution_status=AUTO_RESOLVED");
    assert_eq!((&proven["total"], &proven["mismatches"][0]["evidence"]["how"]), (&json!(2), &json!("PROVEN_EQUAL")));
}

/// The newest job of `users`.
fn newest(world: &World) -> String {
    world.get("/reconciliation/jobs?table=users&limit=1")["jobs"][0]["job_id"].as_str().unwrap().to_owned()
}

/// While a table is held, so are its writer in the agent and its comparison in the service; the API is not.
fn held(world: &World) {
    let other = world.servers.runtime.block_on(connect_postgres(&world.servers.postgres)).unwrap();
    let execute = |sql: &str| world.servers.runtime.block_on(other.batch_execute(sql)).unwrap();
    execute("begin; lock table cdc_users in access exclusive mode");
    world.cql("insert into shop.users (id, name) values (00000000-0000-4000-8000-00000000000a, 'late')");
    let id = world.trigger(&json!({"tables": ["shop.users"], "priority": "HIGH"}));
    eventually("a comparison and a writer wait", SOON, || {
        let waiting =
            "select count(distinct query like '-- cdc: leaves%') from pg_stat_activity where wait_event_type = 'Lock'";
        let waiting = world.number(waiting);
        ensure!(waiting >= 2, "{waiting}");
        Ok(())
    });
    for _ in 0..20 {
        assert!(world.line(COMPLETED)["total"].is_number());
        assert!(typed(&world.servers, DRIFT).contains("table=\"users\""));
        assert!(world.line(PENDING)["mismatches"].is_array());
    }
    let again = world.line(TRIGGER);
    assert_eq!((&again["job_ids"][0], &again["jobs"][0]["status"]), (&json!(id), &json!("ALREADY_RUNNING")), "{again}");
    let again = world.post("/reconciliation/trigger", &json!({"tables": ["users"]}));
    assert_eq!((&again["job_ids"], &again["status"]), (&json!([id]), &json!("ALREADY_RUNNING")), "{again}");
    assert_eq!(world.get("/reconciliation/jobs?status=RUNNING")["jobs"][0]["job_id"], id);
    execute("commit");
    world.ended(&id, "COMPLETED");
    eventually("what was asked for meanwhile has ended", SOON, || {
        let open = ["RUNNING", "QUEUED"]
            .map(|status| world.get(&format!("/reconciliation/jobs?status={status}"))["total"].clone());
        ensure!(open == [json!(0), json!(0)], "{open:?}");
        Ok(())
    });
}

fn lists(world: &World) {
    // One that fails: the table is not captured any more.
    world.cql("alter table shop.retired with cdc = false");
    let failed = world.ended(&world.trigger(&json!({"tables": ["retired"], "priority": "LOW"})), "FAILED");
    assert!(failed["validation_errors"][0].as_str().unwrap().starts_with("NOT_CAPTURED"), "{failed}");
    let completed = world.line(COMPLETED);
    assert_eq!(completed["other_status_counts"]["FAILED"], 1, "what the filter hides is counted: {completed}");
    let all = COMPLETED.replace("jq .", "jq -e '.jobs|all(.status==\"COMPLETED\")'");
    assert_eq!(typed(&world.servers, &all), "true\n");
    for field in [
        "job_id",
        "table_name",
        "job_type",
        "validation_strategy",
        "started_at",
        "completed_at",
        "duration_seconds",
        "status",
        "cassandra_row_count",
        "postgres_row_count",
        "mismatch_count",
        "drift_percentage",
        "validation_errors",
        "alert_fired",
        "created_at",
    ] {
        assert!(completed["jobs"][0].get(field).is_some(), "{field} is not in {completed}");
    }
    let total = completed["total"].as_u64().unwrap();
    let page = world.get("/reconciliation/jobs?status=COMPLETED&limit=2&offset=1");
    assert_eq!(
        (&page["total"], &page["jobs"][0]["job_id"]),
        (&json!(total), &completed["jobs"][1]["job_id"]),
        "of all, not of the page"
    );
    let page = world.get("/reconciliation/jobs?status=COMPLETED&page=2&page_size=1");
    assert_eq!(
        (&page["jobs"][0]["job_id"], &page["pagination"]["total_pages"]),
        (&completed["jobs"][1]["job_id"], &json!(total))
    );
    for (query, jobs) in
        [("table=retired", 1), ("table=shop.retired", 1), ("job_type=SCHEDULED", 0), ("to_date=yesterday", 0)]
    {
        assert_eq!(world.get(&format!("/reconciliation/jobs?{query}"))["total"], jobs, "{query}");
    }
    for status in ["QUEUED", "RUNNING", "PAUSED", "COMPLETED", "FAILED", "CANCELLED"] {
        let of_status = world.get(&format!("/reconciliation/jobs?status={status}&from_date=yesterday"));
        let all = of_status["jobs"].as_array().unwrap().iter().all(|job| job["status"] == status);
        assert!(all && of_status["other_status_counts"].get(status).is_none(), "{of_status}");
    }
    for (query, words) in [
        ("jobs?status=DONE", "COMPLETED"),
        ("mismatches?resolution_status=OPEN", "MANUAL_RESOLVED"),
        ("mismatches?mismatch_type=ODD", "MISSING_IN_POSTGRES"),
        ("jobs?job_id=7", "job_id"),
    ] {
        world.refused(world.ask("GET", &format!("/reconciliation/{query}"), None), 400, words);
    }
    for status in ["PENDING", "AUTO_RESOLVED", "MANUAL_RESOLVED", "IGNORED"] {
        let list =
            world.get(&format!("/reconciliation/mismatches?resolution_status={status}&table=users&to_date=tomorrow"));
        assert!(list["mismatches"].as_array().unwrap().iter().all(|one| one["resolution_status"] == status), "{list}");
    }
    for kind in ["MISSING_IN_POSTGRES", "MISSING_IN_CASSANDRA", "DATA_MISMATCH"] {
        assert_eq!(world.get(&format!("/reconciliation/mismatches?mismatch_type={kind}&table=users"))["total"], 1);
    }
    let trigger = |body: Value| world.ask("POST", "/reconciliation/trigger", Some(&body));
    let (code, unknown) = trigger(json!({"tables": ["carts"]}));
    assert!(unknown["valid_tables"].as_array().unwrap().contains(&json!("shop.users")), "{unknown}");
    world.refused((code, unknown), 400, "INVALID_TABLE");
    world.refused(trigger(json!({"tables": ["users"], "priority": "URGENT"})), 400, "NORMAL");
    world.refused(trigger(json!({"tables": ["users"], "validation_strategy": "GUESS"})), 400, "TIMESTAMP_RANGE");

    let health = world.line("curl http://localhost:8080/health");
    assert!(health["check_time"].is_number() && health["status"] == "healthy", "{health}");
    for component in ["cassandra", "postgresql", "kafka", "schema_registry", "vault"] {
        let one = world.ask("GET", &format!("/health/{component}"), None).1;
        assert_eq!(one["status"], health["components"][component]["status"], "{one}");
    }
    let text = typed(&world.servers, "curl -H 'Accept: text/plain' http://localhost:8080/health");
    assert!(text.contains("postgresql: healthy\n"), "{text}");
    // The same answer under both names.
    for path in
        ["/reconciliation/jobs", "/reconciliation/mismatches", "/reconciliation/coverage", "/dlq/records", "/dlq/stats"]
    {
        assert_eq!(world.get(path), world.get(path), "{path}");
    }

    let port = world.servers.folder().join("off.api");
    let _off = Process::spawn("reconciler", config(&world.servers, "off", "off.api", "  enabled: false\n"));
    let port = eventually("a port", SOON, || Ok(fs::read_to_string(&port)?));
    let told = TRIGGER.replace("localhost:8080", &format!("127.0.0.1:{}", port.trim()));
    let told = Command::new("bash").args(["-c", &format!("{told} -s -w '%{{http_code}}'")]).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("RECONCILIATION_DISABLED") && told.ends_with("503"), "{told}");
}

/// Every figure of a table says what its jobs say.
fn metrics(world: &World) {
    eventually("the figures are those of the jobs", SOON, || {
        let text = typed(&world.servers, "curl http://localhost:8080/metrics");
        let figure = |name: &str, table: &str, more: &str| -> Option<f64> {
            let start = format!("cdc_reconciliation_{name}{{keyspace=\"shop\",table=\"{table}\"{more}}} ");
            text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
        };
        for table in ["users", "orders", "items", "retired"] {
            let jobs = world.get(&format!("/reconciliation/jobs?table={table}&limit=1000"));
            let jobs = jobs["jobs"].as_array().context("a list")?;
            for status in ["COMPLETED", "FAILED"] {
                let count = jobs.iter().filter(|job| job["status"] == status).count();
                let told = figure("jobs_completed_total", table, &format!(",status=\"{status}\"")).unwrap_or_default();
                ensure!(told == count as f64, "{status} of {table}: {told}, {count} jobs");
            }
            for (kind, classes) in [
                ("MISSING_IN_POSTGRES", &["MISSING_IN_POSTGRES"][..]),
                ("MISSING_IN_CASSANDRA", &["EXTRA"]),
                ("DATA_MISMATCH", &["STALE", "VALUE_DIFFERS", "TARGET_AHEAD", "IN_DLQ", "EXPIRED_NOT_REMOVED"]),
            ] {
                let of = |job: &Value| classes.iter().filter_map(|class| job["classes"][class].as_f64()).sum::<f64>();
                let (count, more) = (jobs.iter().map(of).sum::<f64>(), format!(",type=\"{kind}\""));
                let told = figure("mismatches_total", table, &more).unwrap_or_default();
                ensure!(told == count, "{kind} of {table}: {told}, {count} in the jobs");
            }
            let durations: Vec<f64> = jobs.iter().filter_map(|job| job["duration_seconds"].as_f64()).collect();
            ensure!(
                figure("duration_seconds_count", table, "") == Some(durations.len() as f64),
                "{table}: {durations:?}"
            );
            let sum = figure("duration_seconds_sum", table, "").unwrap_or(f64::NAN);
            ensure!((sum - durations.iter().sum::<f64>()).abs() < 1e-3, "{table}: {sum} of {durations:?}");
            let partial = [json!("SAMPLE"), json!("TIMESTAMP_RANGE")];
            let ring = json!({"start": i64::MIN, "end": i64::MAX});
            let whole = jobs.iter().find(|job| {
                job["coverage"] == 1.0 && job["range"] == ring && !partial.contains(&job["validation_strategy"])
            });
            for (name, field) in [
                ("drift_percentage", "drift_percentage"),
                ("cassandra_rows", "cassandra_row_count"),
                ("postgres_rows", "postgres_row_count"),
            ] {
                let expected = whole.and_then(|job| job[field].as_f64());
                ensure!(figure(name, table, "") == expected, "{name} of {table}: {expected:?} in {whole:?}");
            }
        }
        Ok(())
    });
}
