//! Dead letters, replayed by each strategy while newer values are there, and while the service is killed.

use anyhow::ensure;
use serde_json::{Value, json};

use super::{NOBODY, World};
use crate::pipeline::eventually;
use crate::reconciler_api::REPLAY;

const LETTERS: i64 = 100;

/// What became of a replay.
fn replayed(world: &World, asked: &Value) -> Value {
    let path = format!("/dlq/replay/{}", asked["replay_id"].as_str().unwrap());
    eventually("the replay ends", super::SOON, || {
        let replay = world.get(&path);
        ensure!(replay["completed_at"].is_string(), "{replay}");
        Ok(replay)
    })
}

pub(super) fn are_replayed(world: &mut World) {
    let nothing = world.line(REPLAY);
    assert_eq!((&nothing["matched"], &nothing["status"]), (&json!(0), &json!("completed")), "{nothing}");
    world.cql("insert into shop.parcels (id, v) values (0, 'good')");
    world.settle();
    world.sql("alter table cdc_parcels add constraint good_only check (v = 'good' or v = 'better')");
    for id in 1..=LETTERS {
        world.cql(&format!("insert into shop.parcels (id, v) values ({id}, 'bad{id}')"));
    }
    eventually("all of them are letters", super::SOON, || {
        let letters = world.get("/dlq/records?table=parcels&limit=1")["total"].clone();
        ensure!(letters == LETTERS, "{letters}");
        Ok(())
    });
    let counted = world.agent.ask("/metrics").unwrap();
    let counted =
        counted.lines().find(|line| line.starts_with("cdc_dlq_events_total{") && line.contains("CONSTRAINT_VIOLATION"));
    assert!(counted.is_some_and(|line| line.contains("parcels") && line.ends_with(" 100")), "{counted:?}");
    let stats = world.get("/dlq/stats");
    assert_eq!((&stats["total_records"], &stats["by_table"]), (&json!(LETTERS), &json!({"shop.parcels": LETTERS})));
    // They wait while it is wrong.
    let refused = replayed(world, &world.post("/dlq/replay", &json!({"table": "parcels", "limit": 1})));
    assert_eq!((&refused["status"], &refused["refused"]), (&json!("failed"), &json!(1)), "{refused}");
    let record =
        world.get("/dlq/records?table=shop.parcels&error_type=CONSTRAINT_VIOLATION&limit=1")["records"][0].clone();
    for field in [
        "dlq_id",
        "source_table",
        "error_type",
        "error_message",
        "retry_count",
        "first_failed_at",
        "last_retry_at",
        "dlq_timestamp",
        "source_component",
    ] {
        assert!(record.get(field).is_some_and(|value| !value.is_null()), "{field}: {record}");
    }
    assert!(!record.to_string().contains("bad"), "no values: {record}");

    // Newer values come first, and stay.
    for id in 91..=LETTERS {
        world.cql(&format!("insert into shop.parcels (id, v) values ({id}, 'better')"));
    }
    world.settle();
    world.sql("alter table cdc_parcels drop constraint good_only");
    let ask = |strategy: &str, more: Value| {
        let mut body = json!({"table": "parcels", "limit": 10, "retry_strategy": strategy});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.post("/dlq/replay", &body)
    };
    let of_ten = |replay: &Value| (replay["status"].clone(), replay["applied"].clone(), replay["matched"].clone());
    let ten = (json!("completed"), json!(10), json!(10));
    assert_eq!(of_ten(&replayed(world, &ask("batch", json!({"resolution_notes": "the constraint is gone"})))), ten);
    let scheduled = ask("scheduled", json!({"scheduled_time": "tomorrow"}));
    assert_eq!((&scheduled["status"], &scheduled["matched"]), (&json!("queued"), &json!(10)), "{scheduled}");
    let id = scheduled["replay_id"].as_str().unwrap();
    assert_eq!(world.get(&format!("/dlq/replay/{id}"))["status"], "queued");
    world.sql("update _cdc.dlq_replays set not_before = now() where status = 'queued'");
    assert_eq!(of_ten(&replayed(world, &scheduled)), ten);
    let ids: Vec<Value> = world.get("/dlq/records?resolution_status=PENDING&limit=10")["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|record| record["dlq_id"].clone())
        .collect();
    let by_id = world.post("/dlq/replay", &json!({"dlq_ids": ids}));
    assert_eq!(of_ten(&replayed(world, &by_id)), ten);

    // Ten a second, and the process is killed in between.
    let slowly = ask("rate_limited", json!({"limit": 30}));
    let path = format!("/dlq/replay/{}", slowly["replay_id"].as_str().unwrap());
    eventually("the replay is under way", super::SOON, || {
        let replay = world.get(&path);
        ensure!(replay["done"] != 0, "{replay}");
        Ok(())
    });
    world.kill_and_start();
    let slowly = replayed(world, &slowly);
    let done = slowly["applied"].as_i64().unwrap() + slowly["settled"].as_i64().unwrap();
    assert_eq!((&slowly["status"], done), (&json!("completed"), 30), "{slowly}");

    // The guide's line takes what is left of a type; a sink of records without Kafka has no schema that does not match.
    world.sql("update _cdc.dlq set error_type = 'SCHEMA_MISMATCH' where status = 'unresolved'");
    let rest = world.line(REPLAY);
    assert_eq!((&rest["matched"], &rest["retry_strategy"]), (&json!(40), &json!("immediate")), "{rest}");
    let rest = replayed(world, &rest);
    assert_eq!((&rest["applied"], &rest["superseded"]), (&json!(30), &json!(10)), "{rest}");
    assert_eq!(world.line(REPLAY)["matched"], 0, "twice is harmless");
    assert_eq!(world.get("/dlq/records?resolution_status=AUTO_RESOLVED")["total"], LETTERS);
    assert_eq!(world.get("/dlq/records?resolution_status=PENDING&start_date=yesterday&end_date=tomorrow")["total"], 0);
    let right = "select count(*) from cdc_parcels where v = case when id > 90 then 'better' else 'bad' || id end";
    assert_eq!(world.number(right), LETTERS);
    assert_eq!(world.compared(&json!({"tables": ["parcels"]}))["mismatch_count"], 0, "as Cassandra has it");

    for (body, words) in [
        (json!({"error_type": "ODD"}), "SCHEMA_MISMATCH"),
        (json!({"table": "parcels", "retry_strategy": "later"}), "rate_limited"),
        (json!({"table": "parcels", "retry_strategy": "scheduled"}), "scheduled_time"),
        (json!({"retry_strategy": "immediate"}), "NO_SELECTOR"),
        (json!({"table": "parcels", "resolution_notes": "x".repeat(1_001)}), "1001 characters"),
    ] {
        world.refused(world.ask("POST", "/dlq/replay", Some(&body)), 400, words);
    }
    for (path, code, words) in [
        ("/dlq/records?error_type=ODD", 400, "SCHEMA_MISMATCH"),
        ("/dlq/records?resolution_status=DONE", 400, "AUTO_RESOLVED"),
        ("/dlq/replay/{replay_id}", 400, "UUID"),
        (&format!("/dlq/replay/{NOBODY}"), 404, "no replay"),
    ] {
        world.refused(world.ask("GET", path, None), code, words);
    }
    assert_eq!(world.post("/dlq/discard", &json!({"table": "parcels"}))["discarded"], 0);
}
