//! `cdc reconciler` on real servers: what it repairs, and jobs that outlive their process.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::pipeline::{Process, Servers, connect_postgres, eventually};

const SOON: Duration = Duration::from_secs(120);
const ROWS: i32 = 60;

/// A `cdc reconciler` and its port.
struct Api {
    process: Process,
    port: std::path::PathBuf,
}

impl Api {
    fn start(servers: &Servers, name: &str) -> Self {
        let config = servers.config(name, "");
        let port = servers.folder().join(format!("{name}.api"));
        let section = format!(
            "reconciler:\n  listen: 127.0.0.1:0\n  port_file: {}\n  repair: {{max_share_percent: 100, policy: {{STALE: ask}}}}\n",
            port.display()
        );
        fs::write(&config, fs::read_to_string(&config).unwrap() + &section).unwrap();
        Self { process: Process::spawn("reconciler", config), port }
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let port = fs::read_to_string(&self.port).context("no port yet")?;
        let address = format!("http://127.0.0.1:{}/reconciliation/{path}", port.trim());
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "60", "-X", method, &address]);
        if method == "POST" {
            curl.args(["-d", &body.to_string()]);
        }
        Ok(serde_json::from_slice(&curl.output()?.stdout)?)
    }

    fn get(&self, path: &str) -> Value {
        eventually(path, SOON, || self.ask("GET", path, &Value::Null))
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        eventually(path, SOON, || self.ask("POST", path, body))
    }

    fn trigger(&self, more: &Value) -> String {
        let mut body = json!({"tables": ["items"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let asked = self.post("trigger", &body);
        assert_eq!(asked["status"], "RUNNING", "{asked}");
        asked["job_ids"][0].as_str().unwrap().to_owned()
    }

    /// A job once it is as wanted.
    fn job(&self, id: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        eventually(what, SOON, || {
            let job = self.ask("GET", &format!("jobs/{id}"), &Value::Null)?;
            ensure!(is_it(&job), "{job:#}\n{}", self.process.log());
            Ok(job)
        })
    }

    fn completed(&self, id: &str) -> Value {
        self.job(id, "the job completes", |job| job["status"] == "COMPLETED")
    }

    /// A job that waits for a barrier in its last part.
    fn in_the_middle(&self, id: &str) {
        self.job(id, "the job is in the middle", |job| {
            job["progress"]["ranges_done"].as_i64() > Some(0) && job["progress"]["stage"] == "leaves"
        });
    }
}

#[test]
fn rows_are_repaired_over_the_api_and_a_job_outlives_its_process_and_a_pause() {
    let servers = Servers::start(false);
    let session = servers.runtime.block_on(cdc_workload::connect(&servers.cassandra.contact_points())).unwrap();
    let cql = |statement: &str| {
        servers.runtime.block_on(session.query_unpaged(statement, ())).unwrap();
    };
    cql("create table shop.items (p int, c int, v text, primary key (p, c)) with cdc = true");
    let agent = servers.spawn("run", "");
    for p in 0..ROWS {
        cql(&format!("insert into shop.items (p, c, v) values ({p}, 0, 'v{p}')"));
        cql(&format!("insert into shop.items (p, c, v) values ({p}, 1, 'v{p}')"));
    }
    let client = servers.runtime.block_on(connect_postgres(&servers.postgres)).unwrap();
    let sql = |sql: &str| servers.runtime.block_on(client.batch_execute(sql)).unwrap();
    let number = |sql: &str| servers.runtime.block_on(client.query_one(sql, &[])).unwrap().get::<_, i64>(0);
    eventually("rows arrive", SOON, || {
        let arrived = servers.runtime.block_on(client.query_one("select count(*) from cdc_items", &[]))?;
        ensure!(arrived.get::<_, i64>(0) == i64::from(ROWS) * 2, "{arrived:?}");
        Ok(())
    });
    let wrong = "select count(*) from cdc_items where v <> 'v' || p";
    let all_right = || (number("select count(*) from cdc_items"), number(wrong)) == (i64::from(ROWS) * 2, 0);
    assert!(all_right());

    // A job repairs what it is asked to, and proves it.
    let api = Api::start(&servers, "first");
    sql("delete from cdc_items where p = 1 and c = 0; update cdc_items set v = 'x' where p = 2 and c = 0");
    let classes = json!({"repair": ["MISSING_IN_POSTGRES", "VALUE_DIFFERS"]});
    let rehearsed = api.completed(&api.trigger(&json!({"repair": classes["repair"], "repair_dry_run": true})));
    assert_eq!(
        (&rehearsed["repairs"]["wanted"], &rehearsed["repairs"]["done"]),
        (&json!(2), &json!(0)),
        "{rehearsed:#}"
    );
    assert_eq!(api.get("mismatches?resolution_status=PENDING")["total"], 2);
    let id = api.trigger(&classes);
    let repaired = api.completed(&id);
    assert_eq!((&repaired["repairs"]["wanted"], &repaired["repairs"]["done"]), (&json!(2), &json!(2)), "{repaired:#}");
    assert!(all_right(), "{repaired:#}");
    let resolved = api.get("mismatches?resolution_status=AUTO_RESOLVED");
    assert_eq!(resolved["total"], 2, "{resolved:#}");
    for one in resolved["mismatches"].as_array().unwrap() {
        assert_eq!((&one["evidence"]["how"], &one["evidence"]["job_id"]), (&json!("REPAIRED"), &json!(id)), "{one:#}");
        assert!(one["primary_key_value"].is_null(), "{one:#}");
    }
    assert_eq!(number("select count(*) from _cdc.audit_log where action = 'repaired'"), 1);

    // Of two wrong rows of a partition, one is repaired when somebody names it.
    sql("update cdc_items set v = 'x' where p = 3");
    api.completed(&api.trigger(&json!({})));
    let pending = api.get("mismatches?resolution_status=PENDING");
    assert_eq!(pending["total"], 2, "{pending:#}");
    let of = |at: usize| format!("mismatches/{}/repair", pending["mismatches"][at]["mismatch_id"].as_str().unwrap());
    let repair = |at: usize, body: &Value| {
        let asked = api.post(&of(at), body);
        api.completed(asked["job_id"].as_str().unwrap_or_else(|| panic!("{asked}")))
    };
    let rehearsed = repair(0, &json!({"dry_run": true}));
    assert_eq!(
        (&rehearsed["job_type"], &rehearsed["repairs"]["wanted"]),
        (&json!("REPAIR"), &json!(1)),
        "{rehearsed:#}"
    );
    assert_eq!(number(wrong), 2);
    let repaired = repair(0, &json!({}));
    assert_eq!(repaired["repairs"]["done"], 1, "{repaired:#}");
    assert_eq!((number(wrong), &api.get("mismatches?resolution_status=PENDING")["total"]), (1, &json!(1)));
    assert_eq!(api.post(&of(0), &json!({}))["code"], "ALREADY_RESOLVED");
    repair(1, &json!({}));
    assert!(all_right());

    // Nothing passes without the agent, so a wrong row near the end of the ring holds a job up, whose process is killed.
    drop(agent);
    let last = "(select p from cdc_items order by _cdc_token desc limit 1)";
    sql(&format!("update cdc_items set v = 'x' where p = {last} and c = 0"));
    let id = api.trigger(&classes);
    api.in_the_middle(&id);
    let done = api.get(&format!("jobs/{id}"))["progress"]["ranges_done"].clone();
    drop(api);
    let agent = servers.spawn("run", "");
    let other = Api::start(&servers, "second");
    let job = other.completed(&id);
    assert_eq!(
        (&job["coverage"], &job["repairs"]["done"], &job["cassandra_row_count"]),
        (&json!(1.0), &json!(1), &json!(ROWS * 2))
    );
    let log = other.process.log();
    let told = [format!("ranges_done={done}"), format!("\"ranges_done\":{done}")];
    assert!(told.iter().any(|told| log.contains(told)), "{done} {log}");
    assert!(all_right());

    // Out of time, paused and resumed.
    drop(agent);
    sql(&format!("update cdc_items set v = 'x' where p = {last} and c = 1"));
    let job = other.completed(&other.trigger(&json!({"max_seconds": 5})));
    assert!(!job["validation_errors"].as_array().unwrap().is_empty() && job["mismatch_count"] == 0, "{job:#}");
    let id = other.trigger(&classes);
    other.in_the_middle(&id);
    assert_eq!(other.post(&format!("jobs/{id}/pause"), &json!({}))["status"], "PAUSING");
    let paused = other.job(&id, "the job pauses", |job| job["status"] == "PAUSED");
    assert_eq!(paused["progress"]["ranges_done"], done, "{paused:#}");
    let _agent = servers.spawn("run", "");
    assert_eq!(other.post(&format!("jobs/{id}/resume"), &json!({}))["status"], "QUEUED");
    let job = other.completed(&id);
    assert_eq!((&job["coverage"], &job["repairs"]["done"]), (&json!(1.0), &json!(1)), "{job:#}");
    assert!(all_right());

    // Only some tokens, and only for so long.
    let job = other.completed(&other.trigger(&json!({"range": "-9223372036854775808:0"})));
    let rows = number("select count(*) from cdc_items where _cdc_token <= 0");
    assert_eq!((&job["cassandra_row_count"], &job["coverage"]), (&json!(rows), &json!(1.0)), "{job:#}");
}
