//! `cdc reconciler` beside a running pipeline, asked with the lines of the troubleshooting guide, unchanged.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::pipeline::{Process, Servers, connect_postgres, eventually};

const SOON: Duration = Duration::from_secs(60);

pub(crate) const TRIGGER: &str = r#"curl -X POST http://localhost:8080/reconciliation/trigger -H "Content-Type: application/json" -d '{"tables": ["users", "orders"], "validation_strategy": "CHECKSUM"}'"#;
pub(crate) const COMPLETED: &str = "curl http://localhost:8080/reconciliation/jobs?status=COMPLETED | jq .";
pub(crate) const OF_JOB: &str = "curl http://localhost:8080/reconciliation/jobs/{job_id} | jq .mismatches";
pub(crate) const DRIFT: &str = "curl http://localhost:8080/metrics | grep cdc_reconciliation_drift_percentage";
pub(crate) const PENDING: &str = "curl http://localhost:8080/reconciliation/mismatches?resolution_status=PENDING";
pub(crate) const RESOLVE: &str = r#"curl -X POST http://localhost:8080/reconciliation/mismatches/{mismatch_id}/resolve -d '{"resolution_status": "MANUAL_RESOLVED", "resolution_notes": "Backfilled from Cassandra"}'"#;
pub(crate) const REPLAY: &str = r#"curl -X POST http://localhost:8080/dlq/replay -H "Content-Type: application/json" -d '{"error_type": "SCHEMA_MISMATCH", "retry_strategy": "immediate"}'"#;

/// What bash says to a line; curl is told in its own file that 8080 is another port here, and to be quiet.
pub(crate) fn typed(servers: &Servers, line: &str) -> String {
    let port = fs::read_to_string(servers.folder().join("api.port")).unwrap();
    let told = format!("silent\nmax-time = 60\nconnect-to = \"localhost:8080:127.0.0.1:{}\"\n", port.trim());
    fs::write(servers.folder().join(".curlrc"), told).unwrap();
    let output =
        Command::new("bash").args(["-o", "pipefail", "-c", line]).env("CURL_HOME", servers.folder()).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn answer(servers: &Servers, line: &str) -> Value {
    let text = typed(servers, line);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
}

/// Compares both tables and returns their jobs, newest first.
fn compare(servers: &Servers, api: &Process) -> Vec<Value> {
    let asked = answer(servers, TRIGGER);
    assert_eq!((&asked["status"], asked["job_ids"].as_array().unwrap().len()), (&json!("RUNNING"), 2), "{asked}");
    let ids = asked["job_ids"].as_array().unwrap();
    eventually("both comparisons complete", SOON, || {
        let jobs = answer(servers, COMPLETED);
        let jobs: Vec<Value> = jobs["jobs"].as_array().context("a list")?.clone();
        let ours = jobs.into_iter().filter(|job| ids.contains(&job["job_id"])).collect::<Vec<_>>();
        ensure!(ours.len() == 2, "{ours:?}\n{}", api.log());
        Ok(ours)
    })
}

fn of<'j>(jobs: &'j [Value], table: &str) -> &'j Value {
    jobs.iter().find(|job| job["table_name"] == table).unwrap()
}

#[test]
fn the_lines_of_the_guide_compare_tables_show_what_is_wrong_and_settle_it() {
    let servers = Servers::start(false);
    let mut agent = servers.spawn("run", "");
    let config = servers.config("reconciler", "");
    let section =
        format!("reconciler:\n  listen: 127.0.0.1:0\n  port_file: {}\n", servers.folder().join("api.port").display());
    fs::write(&config, fs::read_to_string(&config).unwrap() + &section).unwrap();
    let mut api = Process::spawn("reconciler", config.clone());
    let load = servers.load(11, 300);
    let client = servers.runtime.block_on(connect_postgres(&servers.postgres)).unwrap();
    let sql = |sql: &str| servers.runtime.block_on(client.batch_execute(sql)).unwrap();
    eventually("rows arrive", SOON, || {
        let rows = servers.runtime.block_on(client.query_one("select count(*) from cdc_users", &[]))?.get::<_, i64>(0);
        ensure!(rows > 200, "{rows} rows");
        Ok(())
    });

    // Under load, nothing is wrong.
    let jobs = compare(&servers, &api);
    for job in &jobs {
        assert_eq!((&job["drift_percentage"], &job["mismatch_count"]), (&json!(0), &json!(0)), "{job}");
        assert_eq!((&job["validation_strategy"], &job["coverage"]), (&json!("CHECKSUM"), &json!(1)), "{job}");
    }
    assert!(load.stop(&servers) > 100);
    let passed = answer(&servers, "curl -X POST http://localhost:8080/barrier");
    assert_eq!((&passed["passed"], &passed["nodes"]), (&json!(true), &json!(1)), "{passed}");
    agent.wait_until_idle();
    servers.let_short_ttls_pass();

    // One of each type.
    sql("create table kept as select * from cdc_users where id in (select id from cdc_users order by id limit 3);
         delete from cdc_users where id = (select min(id::text)::uuid from kept);
         update cdc_users set name = 'somebody else' where id = (select max(id::text)::uuid from kept);
         create table extra as select * from cdc_users where id not in (select id from kept) limit 1;
         update extra set id = '00000000-0000-0000-0000-000000000001';
         insert into cdc_users select * from extra");
    let jobs = compare(&servers, &api);
    assert_eq!((&of(&jobs, "users")["mismatch_count"], &of(&jobs, "orders")["mismatch_count"]), (&json!(3), &json!(0)));
    let drift = of(&jobs, "users")["drift_percentage"].as_f64().unwrap();
    let series = format!("cdc_reconciliation_drift_percentage{{keyspace=\"shop\",table=\"users\"}} {drift}\n");
    assert!(drift > 0.0 && typed(&servers, DRIFT).contains(&series), "{series}{}", typed(&servers, DRIFT));
    let id = of(&jobs, "users")["job_id"].as_str().unwrap();
    let found = answer(&servers, &OF_JOB.replace("{job_id}", id));
    let mut types: Vec<&str> =
        found.as_array().unwrap().iter().map(|one| one["mismatch_type"].as_str().unwrap()).collect();
    types.sort_unstable();
    // The row that somebody else has written is newer by no write time, and the extra one is nowhere in Cassandra.
    assert_eq!(types, ["DATA_MISMATCH", "MISSING_IN_CASSANDRA", "MISSING_IN_POSTGRES"], "{found}");
    assert!(!found.to_string().contains("somebody"), "no values: {found}");
    assert_eq!(typed(&servers, OF_JOB), "null\n", "pasted as it stands, it is refused in JSON");

    let pending = answer(&servers, PENDING);
    assert_eq!(pending["total"], 3, "{pending}");
    let mismatch = pending["mismatches"][0]["mismatch_id"].as_str().unwrap();
    let resolved = answer(&servers, &RESOLVE.replace("{mismatch_id}", mismatch));
    assert_eq!(
        (&resolved["mismatch_id"], &resolved["resolution_status"]),
        (&json!(mismatch), &json!("MANUAL_RESOLVED"))
    );
    assert_eq!(answer(&servers, PENDING)["total"], 2);
    let replay = answer(&servers, REPLAY);
    assert_eq!((&replay["matched"], &replay["retry_strategy"]), (&json!(0), &json!("immediate")), "{replay}");

    // It was said to be mended, and is not; killed, the service goes on from where PostgreSQL says. Now it may tell keys.
    assert!(
        pending["mismatches"].as_array().unwrap().iter().all(|one| one["primary_key_value"].is_null()),
        "{pending}"
    );
    fs::write(&config, fs::read_to_string(&config).unwrap() + "  show_keys: true\n").unwrap();
    api.kill_and_start();
    eventually("the service answers again", SOON, || {
        let health = typed(&servers, "curl http://localhost:8080/readyz || true");
        ensure!(health == "ready\n", "{health}");
        Ok(())
    });
    compare(&servers, &api);
    let pending = answer(&servers, PENDING);
    let again = pending["mismatches"].as_array().unwrap().iter().find(|one| one["mismatch_id"] == mismatch).unwrap();
    assert_eq!((&pending["total"], &again["reopened"]), (&json!(3), &json!(1)), "{pending}");
    assert!(again["primary_key_value"]["partition_key"]["id"].is_string(), "{again}");
    assert_eq!(again["previous_resolution"]["resolution_notes"], "Backfilled from Cassandra");

    // Mended, it is proven to be.
    sql("delete from cdc_users where id in (select id from kept) or id in (select id from extra);
         insert into cdc_users select * from kept");
    compare(&servers, &api);
    assert_eq!(answer(&servers, PENDING)["total"], 0);
    let proven =
        answer(&servers, "curl http://localhost:8080/reconciliation/mismatches?resolution_status=AUTO_RESOLVED");
    assert_eq!(proven["total"], 3, "{proven}");
    keeps_to_its_description(&servers);
}

/// Nothing a caller may send makes the service fail, it takes nothing that its description excludes, and answers as that says.
/// What has to exist, or to be said for the first time, no description can tell, so that some of what it allows is refused.
fn keeps_to_its_description(servers: &Servers) {
    let port = fs::read_to_string(servers.folder().join("api.port")).unwrap();
    let url = format!("http://127.0.0.1:{}", port.trim());
    let output = Command::new("schemathesis")
        .args(["run", &format!("{url}/openapi.json"), "--url", &url, "--exclude-checks", "positive_data_acceptance"])
        .args(["--seed", "1", "--max-examples", "20", "--request-timeout", "60", "--no-color"])
        .current_dir(servers.folder())
        .output()
        .expect("scripts/test installs schemathesis");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
