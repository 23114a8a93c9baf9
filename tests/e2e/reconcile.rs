//! `cdc reconcile run` beside a running pipeline, under load.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::pipeline::{Process, Servers, cdc, connect_postgres, eventually};

const SOON: Duration = Duration::from_secs(60);

const TABLE: &str = "create table shop.stock (p int, c int, name text, n int, tags set<text>, place text static, \
                     primary key (p, c)) with cdc = true";

/// What somebody does in PostgreSQL.
const PLANTED: &str = "
    delete from cdc_stock where p = 1 and c = 0;
    insert into cdc_stock (p, c, name, _cdc_token, _cdc_written_at) values (1000, 0, 'somebody''s', 0, 1);
    update cdc_stock set n = -n where p = 3 and c = 1;
    update cdc_stock set tags = '[\"a\"]' where p = 4 and c = 0;
    update cdc_stock set name = case c when 0 then 'item 5.1' else 'item 5.0' end where p = 5;
    delete from cdc_stock where p = 6 and c = 0;
    insert into cdc_stock select * from saved;
    update cdc_stock__static set place = 'somebody else' where p = 7;
    update cdc_stock set _cdc_written_at = _cdc_written_at + 1000000000000, name = 'somebody''s' where p = 8 and c = 0";

/// And what is to be said of it: partition and clustering key, class, columns.
fn expected() -> BTreeMap<String, Value> {
    let of = |key: &str, class: &str, columns: &[&str]| (key.to_owned(), json!([class, columns]));
    BTreeMap::from([
        of("1.0", "MISSING_IN_POSTGRES", &[]),
        of("1000.0", "EXTRA", &[]),
        of("3.1", "VALUE_DIFFERS", &["n"]),
        of("4.0", "VALUE_DIFFERS", &["tags"]),
        of("5.0", "VALUE_DIFFERS", &["name"]),
        of("5.1", "VALUE_DIFFERS", &["name"]),
        of("6.0", "STALE", &["name"]),
        of("7.null", "VALUE_DIFFERS", &["place"]),
        of("8.0", "TARGET_AHEAD", &["name"]),
    ])
}

struct Answer {
    code: Option<i32>,
    text: String,
}

fn reconcile(config: &Path, arguments: &[&str]) -> Answer {
    let output = cdc().args(["reconcile", "run"]).arg(config).args(arguments).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    Answer { code: output.status.code(), text }
}

/// By key, class and columns; `--show-keys` must have been given.
fn findings(report: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for table in report.as_array().unwrap() {
        assert_eq!(table["coverage"]["share"], 1.0, "{table}");
        for finding in table["findings"].as_array().unwrap() {
            let key = &finding["key"];
            let key = format!("{}.{}", key["partition_key"]["p"], key["clustering"]["c"]);
            found.insert(key, json!([finding["class"], finding["columns"]]));
        }
    }
    found
}

/// The same by a service and its client.
fn ask_the_service(servers: &Servers) {
    let config = servers.config("service", "");
    let port = servers.folder().join("api.port");
    let section = format!("reconciler:\n  listen: 127.0.0.1:0\n  port_file: {}\n", port.display());
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap() + &section).unwrap();
    let service = Process::spawn("reconciler", config);
    let port = eventually("the service answers", SOON, || Ok(std::fs::read_to_string(&port)?));
    let url = format!("http://127.0.0.1:{}", port.trim());
    let ask = |arguments: &[&str]| {
        let output = cdc().arg("reconcile").args(arguments).args(["--url", &url]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    // It connects to PostgreSQL by itself.
    eventually("the service works", SOON, || {
        let (code, _, error) = ask(&["status"]);
        ensure!(code == Some(0), "{error}");
        Ok(())
    });
    let (code, text, error) = ask(&["start", "--table", "shop.stock", "--wait", "--output", "json"]);
    assert_eq!(code, Some(7), "{text}{error}{}", service.log());
    let jobs: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&jobs[0]["status"], &jobs[0]["mismatch_count"]), (&json!("COMPLETED"), &json!(9)), "{jobs:#}");
    let (code, page, error) = ask(&["report", jobs[0]["job_id"].as_str().unwrap()]);
    assert!(code == Some(0) && page.matches("VALUE_DIFFERS").count() >= 5, "{page}{error}");
    assert!(!page.contains("somebody else") && !page.contains("somebody&#39;s"), "{page}");
    let (code, _, error) = ask(&["start", "--table", "shop.users", "--wait"]);
    assert_eq!(code, Some(0), "{error}{}", service.log());
}

#[test]
fn reconcile_proves_equality_under_load_names_what_somebody_changed_and_repairs_it() {
    let servers = Servers::start(false);
    let client = servers.runtime.block_on(connect_postgres(&servers.postgres)).unwrap();
    let session = servers.runtime.block_on(cdc_workload::connect(&servers.cassandra.contact_points())).unwrap();
    let cql = |statement: &str| {
        servers.runtime.block_on(session.query_unpaged(statement, ())).unwrap();
    };
    let sql = |statement: &str| servers.runtime.block_on(client.batch_execute(statement)).unwrap();
    cql(TABLE);
    let mut agent = servers.spawn("run", "");
    let config = servers.config("reconcile", "");
    let load = servers.load(3, 300);
    for p in 0..40 {
        for c in 0..2 {
            let values = format!("{p}, {c}, 'item {p}.{c}', {}", p + 1);
            cql(&format!("insert into shop.stock (p, c, name, n) values ({values})"));
        }
        cql(&format!("insert into shop.stock (p, place) values ({p}, 'place {p}')"));
    }
    cql("update shop.stock set tags = {'a', 'b'} where p = 4 and c = 0");
    assert!(cdc().arg("barrier").arg(&config).output().unwrap().status.success());
    sql("create table saved as select * from cdc_stock where p = 6 and c = 0");
    cql("update shop.stock set name = 'newer' where p = 6 and c = 0");

    let answer = reconcile(&config, &["--table", "shop.*"]);
    assert_eq!(answer.code, Some(0), "{}\n{}", answer.text, agent.log());

    sql(PLANTED);
    let file = servers.folder().join("report.json");
    let path = file.to_str().unwrap();
    let answer = reconcile(&config, &["--table", "shop.*", "--report", path, "--show-keys"]);
    assert_eq!(answer.code, Some(7), "{}", answer.text);
    assert!(answer.text.contains("VALUE_DIFFERS") && !answer.text.contains("somebody"), "{}", answer.text);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let found = findings(&report);
    assert_eq!(found, expected(), "{report:#}");

    // Parts of it, and all of it by other ways.
    let part = |arguments: &[&str]| {
        let answer =
            reconcile(&config, &[&["--table", "shop.stock", "--output", "json", "--show-keys"], arguments].concat());
        let report: Value = serde_json::from_str(&answer.text).unwrap_or_else(|_| panic!("{}", answer.text));
        (answer.code, findings(&report), report)
    };
    let fourth = BTreeMap::from([("4.0".to_owned(), expected()["4.0"].clone())]);
    for (key, code, found) in [("4", 7, &fourth), ("{\"p\": 4}", 7, &fourth), ("(0)", 0, &BTreeMap::new())] {
        let (own, own_found, report) = part(&["--partition", key]);
        assert_eq!(
            (own, &own_found, &report[0]["rows"]["cassandra"]),
            (Some(code), found, &json!(3)),
            "{key} {report:#}"
        );
    }
    let wrong = reconcile(&config, &["--table", "shop.stock", "--partition", "'four'"]);
    assert!(wrong.code == Some(2) && wrong.text.contains("column p is of type int"), "{}", wrong.text);
    let (code, found, report) = part(&["--strategy", "sample", "--sample-percent", "100", "--seed", "3"]);
    assert_eq!((code, found, &report[0]["sample"]["seed"]), (Some(7), expected(), &json!(3)), "{report:#}");
    let times =
        ["--strategy", "timestamp-range", "--written-from", "1970-01-01", "--written-to", "2100-01-01T00:00:00Z"];
    let (code, found, report) = part(&times);
    assert_eq!((code, found, &report[0]["strategy"]), (Some(7), expected(), &json!("TIMESTAMP_RANGE")), "{report:#}");
    let (code, found, _) = part(&[&times[..3], &["0", "--written-to", "1"]].concat());
    assert_eq!((code, found), (Some(0), BTreeMap::new()));
    ask_the_service(&servers);

    // Repaired is what was asked for, if it is not too much, and only then.
    let repair = |arguments: &[&str]| {
        let answer =
            reconcile(&config, &[&["--table", "shop.stock", "--output", "json", "--show-keys"], arguments].concat());
        let report: Value = serde_json::from_str(&answer.text).unwrap_or_else(|_| panic!("{}", answer.text));
        (answer.code, report)
    };
    for arguments in [&["--repair", "--dry-run", "--max-repair-share", "100"][..], &["--repair"]] {
        let (code, report) = repair(arguments);
        assert_eq!((code, findings(&report)), (Some(7), expected()), "{arguments:?} {report:#}");
    }
    let (code, report) = repair(&["--repair", "--max-repair-share", "100"]);
    assert_eq!((code, findings(&report)), (Some(7), expected()), "{report:#}");
    let repairs = &report[0]["repairs"];
    assert_eq!((&repairs["wanted"], &repairs["done"]), (&json!(8), &json!(8)), "{report:#}");
    let (code, report) = repair(&["--repair=target_ahead", "--max-repair-share", "100"]);
    assert_eq!(code, Some(0), "{report:#}");
    let ahead = BTreeMap::from([("8.0".to_owned(), expected()["8.0"].clone())]);
    assert_eq!(findings(&report), ahead, "{report:#}");
    // What is written afterwards is newer than any repair.
    cql("delete from shop.stock where p = 1 and c = 0");
    cql("update shop.stock set n = 33, tags = tags + {'c'} where p = 3 and c = 1");
    cql("update shop.stock set tags = tags - {'a'} where p = 4 and c = 0");
    cql("update shop.stock set name = null, n = 0 where p = 8 and c = 0");
    cql("insert into shop.stock (p, c, n) values (1000, 0, 1)");
    assert!(load.stop(&servers) > 500);
    servers.let_short_ttls_pass();
    agent.wait_until_idle();
    servers.assert_equal();
    let report =
        servers.runtime.block_on(cdc_workload::oracle::compare(&session, &client, "shop", &["stock"])).unwrap();
    assert_eq!(report.differences(), 0, "{report}");

    // Without the agent nothing comes through, so nothing is proven; and keys are shown to nobody who did not ask.
    sql("update cdc_stock set n = -1");
    drop(agent);
    let answer = reconcile(&config, &["--table", "shop.stock", "--barrier-timeout", "1", "--output", "json"]);
    assert_eq!(answer.code, Some(1), "{}", answer.text);
    let report: Value = serde_json::from_str(&answer.text).unwrap();
    assert!(report[0]["classes"]["UNPROVEN"].as_i64().unwrap() > 50, "{report:#}");
    for finding in report[0]["findings"].as_array().unwrap() {
        assert_eq!(finding["class"], "UNPROVEN", "{finding}");
        assert!(finding["cause"].as_str().unwrap().starts_with("BARRIER_FAILED"), "{finding}");
        assert!(finding.get("key").is_none(), "{finding}");
    }

    let answer = reconcile(&config, &["--table", "shop.nothing"]);
    assert_eq!(answer.code, Some(2), "{}", answer.text);
}
