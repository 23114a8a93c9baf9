//! What each strategy finds of three rows that are wrong in three ways, and that it finds nothing else.

use anyhow::ensure;
use serde_json::{Value, json};

use super::World;
use crate::pipeline::eventually;

const ROWS: i64 = 300;
/// Write time of the row with key 0, microseconds since 1970; the others follow it.
const FIRST: i64 = 1_700_000_000_000_000;

fn asked(strategy: &str, more: &Value) -> Value {
    let mut body = json!({"tables": ["items"], "validation_strategy": strategy});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

pub(super) fn each_is_really_executed(world: &mut World) {
    for p in 0..ROWS {
        world.cql(&format!("insert into shop.items (p, v) values ({p}, 'v') using timestamp {}", FIRST + p));
    }
    world.settle();
    // A value, a row, and a row too many: what is compared decides what is found.
    world.sql(
        "update cdc_items set v = 'x' where p = 7;
         delete from cdc_items where p = 8;
         insert into cdc_items (p, v, _cdc_token, _cdc_written_at)
            select 1000, 'x', _cdc_token + 1, 1700000000000009 from cdc_items where p = 9",
    );
    let compared = |strategy: &str, more: Value| {
        let job = world.compared(&asked(strategy, &more));
        assert_eq!(job["validation_strategy"], strategy, "{job:#}");
        job
    };
    let rows = |job: &Value| (job["cassandra_row_count"].as_i64().unwrap(), job["mismatch_count"].as_i64().unwrap());
    assert_eq!(rows(&compared("ROW_COUNT", json!({}))), (ROWS, 2), "equal numbers notwithstanding");
    assert_eq!(rows(&compared("VERSION", json!({}))), (ROWS, 2));
    assert_eq!(rows(&compared("CHECKSUM", json!({}))), (ROWS, 3));
    let pending = || world.get("/reconciliation/mismatches?resolution_status=PENDING&table=items")["total"].clone();
    assert_eq!(pending(), 3);

    // A part of the leaves, by chance, and the same again by its seed.
    let sample = compared("SAMPLE", json!({"sample_percent": 2, "seed": 4_000_000_000u32}));
    let drawn = &sample["sample"];
    assert_eq!((&drawn["leaves"], &drawn["drawn"]), (&json!(65_536), &json!(1_311)), "{drawn}");
    let (some, _) = rows(&sample);
    assert!((1..40).contains(&some) && drawn["with_rows"].as_i64().unwrap() <= some + 3, "{sample:#}");
    assert!(drawn["wrong_percentage_max"].as_f64().unwrap() > 0.0 && sample["coverage"] == 1.0, "{sample:#}");
    let again = compared("SAMPLE", json!({"sample_percent": 2, "seed": 4_000_000_000u32}));
    assert_eq!((&again["sample"], rows(&again)), (drawn, rows(&sample)));
    let other = compared("SAMPLE", json!({}));
    assert_eq!((&other["sample"]["drawn"], &other["sample"]["percent"]), (&json!(656), &json!(1.0)));
    let all = compared("SAMPLE", json!({"sample_percent": 100}));
    assert_eq!((rows(&all), &all["sample"]["wrong"]), ((ROWS, 3), &json!(3)), "{all:#}");
    assert_eq!(pending(), 3, "a sample proves nothing of what it has not drawn");

    // Rows last written between two times, by what either store says.
    let of = |from: i64, to: i64| {
        compared("TIMESTAMP_RANGE", json!({"written_from": FIRST + from, "written_to": FIRST + to}))
    };
    let some = of(5, 9);
    assert_eq!((rows(&some), &some["written"]), ((4, 2), &json!({"from": FIRST + 5, "to": FIRST + 9})), "{some:#}");
    assert_eq!(rows(&of(9, 12)), (3, 1));
    assert_eq!(rows(&of(20, 30)), (10, 0));
    assert_eq!(rows(&compared("TIMESTAMP_RANGE", json!({}))), (0, 0), "the last hour");
    let from = "2023-11-14T22:13:20.000295Z";
    assert_eq!(rows(&compared("TIMESTAMP_RANGE", json!({"written_from": from, "written_to": "infinity"}))), (5, 0));
    assert_eq!(pending(), 3);

    // Single partitions, as CQL or JSON has them.
    for (key, wrong) in [(json!(7), 1), (json!("8"), 1), (json!({"p": 9}), 0), (json!([10]), 0)] {
        let job = compared("CHECKSUM", json!({"partition": key}));
        let seen = job["cassandra_row_count"].as_i64().unwrap();
        assert_eq!((seen, &job["mismatch_count"]), (1, &json!(wrong)), "{key}: {job:#}");
    }
    let refused =
        |body: Value, words: &str| world.refused(world.ask("POST", "/reconciliation/trigger", Some(&body)), 400, words);
    refused(asked("CHECKSUM", &json!({"partition": "x"})), "column p is of type int");
    refused(asked("CHECKSUM", &json!({"partition": 7, "range": "0:1"})), "use one of them");
    refused(asked("SAMPLE", &json!({"partition": 7})), "use one of them");
    refused(json!({"tables": ["items", "users"], "partition": 7}), "name one");
    refused(asked("SAMPLE", &json!({"sample_percent": 0})), "sample_percent is 0");
    refused(asked("CHECKSUM", &json!({"sample_percent": 5})), "belongs to validation_strategy SAMPLE");
    refused(asked("VERSION", &json!({"written_to": 5})), "belongs to validation_strategy TIMESTAMP_RANGE");
    refused(asked("TIMESTAMP_RANGE", &json!({"written_from": 5, "written_to": 5})), "before written_to");
    refused(asked("TIMESTAMP_RANGE", &json!({"written_from": "soon"})), "form PostgreSQL reads");
    outlives_its_process(world);

    world.sql("delete from cdc_items where p in (8, 1000); update cdc_items set v = 'v'");
    for p in [7, 8] {
        world.cql(&format!("insert into shop.items (p, v) values ({p}, 'v')"));
    }
    world.settle();
    assert_eq!(world.compared(&asked("CHECKSUM", &json!({})))["mismatch_count"], 0);
}

/// What was asked for is kept with the job. No barrier passes while the agent is away, so the job is held at wrong rows.
fn outlives_its_process(world: &mut World) {
    world.sql("update cdc_items set v = 'x'");
    world.agent.signal(rustix::process::Signal::TERM);
    assert!(world.agent.exits_within(super::SOON).success());
    let id = world.trigger(&asked("SAMPLE", &json!({"sample_percent": 2, "seed": 11})));
    let held = |world: &World, id: &str| {
        world.job(id, "the job is held", |job| job["progress"]["stage"] == "leaves" && job["progress"]["suspects"] != 0)
    };
    let before = held(world, &id);
    world.kill_and_start();
    eventually("the job was taken up again", super::SOON, || {
        let log = world.api.log();
        ensure!(log.matches(&id).count() >= 3, "{log}");
        Ok(())
    });
    held(world, &id);
    world.agent = world.servers.spawn("run", "");
    let job = world.ended(&id, "COMPLETED");
    assert_eq!((&job["sample"]["seed"], &job["sample"]["drawn"]), (&json!(11), &json!(1_311)), "{job:#}");
    assert!(job["coverage"] == 1.0 && before["coverage"].is_null(), "{job:#}");
    let anew = world.compared(&asked("SAMPLE", &json!({"sample_percent": 2, "seed": 11})));
    assert_eq!((&anew["sample"], &anew["mismatch_count"]), (&job["sample"], &job["mismatch_count"]));
}
