//! `cdc reconcile run` beside a running pipeline, under load.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use crate::pipeline::{Servers, cdc, connect_postgres};

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

#[test]
fn reconcile_proves_equality_under_load_and_names_what_somebody_changed() {
    let servers = Servers::start(false);
    let client = servers.runtime.block_on(connect_postgres(&servers.postgres)).unwrap();
    let session = servers.runtime.block_on(cdc_workload::connect(&servers.cassandra.contact_points())).unwrap();
    let cql = |statement: &str| {
        servers.runtime.block_on(session.query_unpaged(statement, ())).unwrap();
    };
    let sql = |statement: &str| servers.runtime.block_on(client.batch_execute(statement)).unwrap();
    cql(TABLE);
    let agent = servers.spawn("run", "");
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
    assert!(cdc().arg("barrier").arg(&config).status().unwrap().success());
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
    let mut found = BTreeMap::new();
    for table in report.as_array().unwrap() {
        assert_eq!(table["coverage"]["share"], 1.0, "{table}");
        for finding in table["findings"].as_array().unwrap() {
            let key = &finding["key"];
            let key = format!("{}.{}", key["partition_key"]["p"], key["clustering"]["c"]);
            found.insert(key, json!([finding["class"], finding["columns"]]));
        }
    }
    assert_eq!(found, expected(), "{report:#}");
    assert!(load.stop(&servers) > 500);

    // Without the agent nothing comes through, so nothing is proven; and keys are shown to nobody who did not ask.
    drop(agent);
    let answer = reconcile(&config, &["--table", "shop.stock", "--barrier-timeout", "1", "--output", "json"]);
    assert_eq!(answer.code, Some(1), "{}", answer.text);
    let report: Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(report[0]["classes"], json!({"UNPROVEN": expected().len()}), "{report:#}");
    for finding in report[0]["findings"].as_array().unwrap() {
        assert!(finding["cause"].as_str().unwrap().starts_with("BARRIER_FAILED"), "{finding}");
        assert!(finding.get("key").is_none(), "{finding}");
    }

    let answer = reconcile(&config, &["--table", "shop.nothing"]);
    assert_eq!(answer.code, Some(2), "{}", answer.text);
}
