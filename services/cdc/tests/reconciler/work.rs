//! Jobs that pause and repair, and requests that come twice.

use serde_json::{Value, json};

use super::service::{Service, eventually};
use super::{finding, job};
use crate::dlq::World;

#[test]
fn jobs_pause_and_resume_and_a_row_is_repaired_only_where_it_can_be() {
    let world = World::new();
    let classes = ["STALE", "EXTRA", "IN_DLQ"];
    let findings: Vec<Value> = classes.iter().map(|class| finding(class, class)).collect();
    job(&world, "orders", &findings);
    let service = Service::start(&world, "  repair: {policy: {EXTRA: ask, STALE: repair}}\n");
    // One that runs elsewhere, is half done, and may repair.
    world.sql(
        r#"insert into _cdc.reconciliation_jobs (job_id, keyspace, table_name, job_type, strategy, status, started_at, lease_until,
                ranges_done, worked_seconds, cassandra_rows, options, progress)
           values ('00000000-0000-0000-0000-000000000007', 'shop', 'orders', 'MANUAL_ONDEMAND', 'CHECKSUM', 'RUNNING', now(),
             now() + interval '1 h', 32, 4, 100, '{"repair": {"classes": ["STALE"], "dry_run": true, "max_share_percent": 1, "rows_per_second": 9}, "max_seconds": 60}',
             '{"rows": 130, "rows_per_second": 20, "eta_seconds": 4}')"#,
    );
    let path = |what: &str| format!("/reconciliation/jobs/00000000-0000-0000-0000-000000000007{what}");
    let shown = service.get(&path(""));
    let progress = &shown["progress"];
    assert_eq!((&progress["ranges_done"], &progress["ranges_total"]), (&json!(32), &json!(64)), "{shown}");
    assert_eq!((&progress["rows"], &progress["eta_seconds"]), (&json!(130), &json!(4)), "{shown}");
    assert_eq!((&shown["repair"]["dry_run"], &shown["max_seconds"]), (&json!(true), &json!(60)), "{shown}");
    assert_eq!(shown["range"], json!({"start": i64::MIN, "end": i64::MAX}));
    service.refused(service.post(&path("/resume"), ""), 409, "NOT_PAUSED");
    let (code, pausing) = service.post(&path("/pause"), "");
    assert_eq!((code, &pausing["status"]), (202, &json!("PAUSING")));
    // It is left by its process, so the pause is noted by this one.
    world.sql("update _cdc.reconciliation_jobs set lease_until = now() where status = 'RUNNING'");
    let paused =
        eventually(|| service.get("/reconciliation/jobs?status=PAUSED")["jobs"].as_array().unwrap().first().cloned());
    assert_eq!(
        (&paused["progress"]["ranges_done"], &paused["progress"]["rows"]),
        (&json!(32), &json!(100)),
        "{paused}"
    );
    assert_eq!((service.post(&path("/pause"), "").0, &paused["progress"]["eta_seconds"]), (200, &Value::Null));
    let (code, asked) = service.post("/reconciliation/trigger", r#"{"tables": ["orders"]}"#);
    assert_eq!((code, &asked["status"], &asked["jobs"][0]["status"]), (202, &json!("PAUSED"), &json!("PAUSED")));
    let (code, resumed) = service.post(&path("/resume"), "");
    assert_eq!((code, &resumed["status"]), (200, &json!("QUEUED")));
    // Nobody is at Cassandra's address; what was done before is not lost.
    let failed =
        eventually(|| service.get("/reconciliation/jobs?status=FAILED")["jobs"].as_array().unwrap().first().cloned());
    assert_eq!((&failed["coverage"], &failed["gaps"][0]["start"]), (&json!(0.5), &json!(-1)), "{failed}");
    for what in ["/pause", "/resume"] {
        service.refused(service.post(&path(what), ""), 409, "JOB_ENDED");
        service.refused(service.post(&format!("/reconciliation/jobs/x{what}"), ""), 400, "UUID");
        let nil = format!("/reconciliation/jobs/00000000-0000-0000-0000-000000000000{what}");
        service.refused(service.post(&nil, ""), 404, "no job");
    }

    let pending = service.get("/reconciliation/mismatches?resolution_status=PENDING");
    let of = |class: &str| {
        let mut found = pending["mismatches"].as_array().unwrap().iter().filter(|one| one["class"] == class);
        format!("/reconciliation/mismatches/{}", found.next().unwrap()["mismatch_id"].as_str().unwrap())
    };
    let awaiting = service.get("/reconciliation/mismatches?awaiting_repair=true");
    assert_eq!((&awaiting["total"], &awaiting["mismatches"][0]["class"]), (&json!(1), &json!("EXTRA")), "{awaiting}");
    let repair = |of: &str| service.post(&format!("{of}/repair"), "");
    service.refused(repair(&of("STALE")), 503, "CASSANDRA_UNAVAILABLE");
    service.refused(repair(&of("IN_DLQ")), 409, "NOT_REPAIRABLE");
    service.refused(repair("/reconciliation/mismatches/00000000-0000-0000-0000-000000000000"), 404, "no mismatch");
    service.post(&format!("{}/resolve", of("EXTRA")), r#"{"resolution_status": "IGNORED"}"#);
    service.refused(repair(&of("EXTRA")), 409, "ALREADY_RESOLVED");
}

#[test]
fn a_request_that_comes_twice_with_a_key_is_carried_out_once() {
    let world = World::new();
    world.plant();
    let service = Service::start(&world, "");
    let ask = |path: &str, key: &str, body: &str| {
        service.ask(&["-X", "POST", path, "-d", body, "-H", &format!("Idempotency-Key: {key}")])
    };
    let body = r#"{"table": "orders", "dry_run": true}"#;
    let (code, first) = ask("/dlq/replay", "one", body);
    assert_eq!((code, &first["matched"]), (202, &json!(150)));
    assert_eq!(ask("/api/v1/dlq/replay", "one", body), (202, first.clone()), "the same replay");
    assert_ne!(ask("/dlq/replay", "two", body).1["replay_id"], first["replay_id"]);
    service.refused(ask("/dlq/replay", "one", r#"{"table": "orders"}"#), 422, "IDEMPOTENCY_KEY_REUSED");
    service.refused(ask("/dlq/discard", "one", body), 422, "IDEMPOTENCY_KEY_REUSED");
    service.refused(ask("/dlq/replay", "a key", body), 400, "INVALID_IDEMPOTENCY_KEY");
    for _ in 0..2 {
        service.refused(ask("/dlq/discard", "three", "{}"), 400, "NO_SELECTOR");
    }
    let discard = || ask("/dlq/discard", "four", r#"{"error_type": "DECODE_ERROR"}"#);
    assert_eq!((discard().1["discarded"].clone(), discard().1["discarded"].clone()), (json!(1), json!(1)));
    world.sql("insert into _cdc.answers (key, request) select 'five', request from _cdc.answers where key = 'four'");
    service.refused(ask("/dlq/discard", "five", r#"{"error_type": "DECODE_ERROR"}"#), 409, "IDEMPOTENCY_IN_PROGRESS");
}
