//! The API of `cdc reconciler` as far as PostgreSQL alone answers, asked by curl as people do. Nobody is at Cassandra's
//! address.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod client;
mod service;
mod work;

use cdc_model::TokenRange;
use cdc_postgres::ledger::{Found, Gist, JobOptions, JobStrategy, Ledger, RANGES, Wish};
use serde_json::{Value, json};

use self::service::{Service, config, eventually};
use crate::dlq::World;
use crate::{CONFIG, cdc, said};

fn finding(key: &str, class: &str) -> Value {
    json!({"key_sha256": key, "is_static": false, "token": 7, "class": class, "columns": ["v"], "read_at_all": true,
        "barriers": 2, "cassandra_written_at": 5, "cause": null})
}

/// A job that has found this.
fn job(world: &World, table: &str, findings: &[Value]) -> String {
    let ledger = world.runtime.block_on(async { Ledger::new(&world.config) });
    let found = Found {
        cassandra_rows: 40,
        drift_rows: i64::try_from(findings.len()).unwrap(),
        gaps: json!([]),
        classes: json!({"STALE": 1}),
        findings: findings.into(),
        ..Found::default()
    };
    let gist = Gist { status: "COMPLETED", coverage: Some((1.0, json!([]))), ..Gist::default() };
    let (range, options) = (TokenRange::RING, JobOptions::NONE);
    let wish = Wish { keyspace: "shop", table, strategy: JobStrategy::Checksum, priority: "NORMAL", range, options };
    world.runtime.block_on(async {
        ledger.request(&[wish], "test").await.unwrap();
        let claimed = ledger.claim_job(false).await.unwrap().unwrap();
        assert!(ledger.advance_job(&claimed, RANGES, &found).await.unwrap());
        assert!(ledger.finish_job(&claimed, &gist).await.unwrap());
        claimed.job.to_string()
    })
}

#[test]
fn jobs_and_mismatches_are_listed_resolved_and_there_again_after_a_restart() {
    let world = World::new();
    let types = ["MISSING_IN_POSTGRES", "EXTRA", "STALE"];
    let findings: Vec<Value> = types.iter().map(|class| finding(class, class)).collect();
    let of_orders = job(&world, "orders", &findings);
    job(&world, "users", &findings);
    job(&world, "orders", &findings);
    // One that failed, and one that seems to run in a process that is gone.
    world.sql(
        "insert into _cdc.reconciliation_jobs (job_id, keyspace, table_name, job_type, strategy, status, started_at, lease_until)
         values (gen_random_uuid(), 'shop', 'users', 'SCHEDULED', 'VERSION', 'FAILED', now(), null),
                (gen_random_uuid(), 'shop', 'users', 'SCHEDULED', 'VERSION', 'RUNNING', now(), now() + interval '1 h')",
    );
    let mut service = Service::start(&world, "");
    let completed = service.get("/reconciliation/jobs?status=COMPLETED");
    assert_eq!(
        (&completed["total"], &completed["other_status_counts"]),
        (&json!(3), &json!({"FAILED": 1, "RUNNING": 1}))
    );
    let jobs = completed["jobs"].as_array().unwrap();
    assert!(jobs.len() == 3 && jobs.iter().all(|job| job["status"] == "COMPLETED"), "{completed}");
    let newest =
        json!([jobs[0]["table_name"], jobs[0]["mismatch_count"], jobs[0]["alert_fired"], jobs[0]["drift_percentage"]]);
    assert_eq!(newest, json!(["orders", 3, true, 7.5]));
    let page = service.get("/reconciliation/jobs?table=shop.orders&page=2&page_size=1");
    assert_eq!((&page["total"], page["jobs"].as_array().unwrap().len()), (&json!(2), 1));
    assert_eq!(page["jobs"][0]["job_id"], of_orders, "newest first");
    assert_eq!(page["pagination"], json!({"page": 2, "page_size": 1, "total_pages": 2, "total_items": 2}));
    assert_eq!(service.get("/reconciliation/jobs?from_date=tomorrow")["total"], 0);
    assert_eq!(service.get("/reconciliation/jobs?job_type=SCHEDULED&table=users")["total"], 2);
    for (query, words) in [
        ("status=DONE", "COMPLETED"),
        ("limit=0", "limit is 0"),
        ("page=1&limit=1", "not both"),
        ("colour=red", "colour"),
        ("from_date=soon", "form PostgreSQL reads"),
    ] {
        service.refused(service.ask(&[&format!("/reconciliation/jobs?{query}")]), 400, words);
    }

    let shown = service.get(&format!("/reconciliation/jobs/{of_orders}"));
    assert_eq!((shown["mismatches"].as_array().unwrap().len(), &shown["mismatches_truncated"]), (3, &json!(false)));
    service.refused(service.ask(&["/reconciliation/jobs/{job_id}"]), 400, "UUID");
    service.refused(service.ask(&["/reconciliation/jobs/00000000-0000-0000-0000-000000000000"]), 404, "no job");

    let pending = service.get("/reconciliation/mismatches?resolution_status=PENDING");
    assert_eq!(pending["total"], 6, "each once, whatever number of jobs saw it");
    assert_eq!(service.get("/reconciliation/mismatches?mismatch_type=MISSING_IN_CASSANDRA")["total"], 2);
    assert_eq!(service.get(&format!("/reconciliation/mismatches?job_id={of_orders}&table=orders"))["total"], 3);
    let one = &pending["mismatches"][0];
    assert!(one["primary_key_value"].is_null() && one["cassandra_data"].is_null() && one["class"].is_string(), "{one}");
    let id = one["mismatch_id"].as_str().unwrap();
    let resolve = format!("/reconciliation/mismatches/{id}/resolve");
    let body = r#"{"resolution_status": "MANUAL_RESOLVED", "resolution_notes": "Backfilled from Cassandra"}"#;
    let (code, resolved) = service.post(&resolve, body);
    assert_eq!((code, &resolved["mismatch_id"], &resolved["resolved_by"]), (200, &json!(id), &json!("api")));
    assert!(
        resolved["resolved_at"].is_string() && resolved["resolution_notes"] == "Backfilled from Cassandra",
        "{resolved}"
    );
    assert_eq!(service.get("/reconciliation/mismatches?resolution_status=PENDING")["total"], 5);
    let long = format!(r#"{{"resolution_status": "IGNORED", "resolution_notes": "{}"}}"#, "x".repeat(1_001));
    for (body, words) in [
        (r#"{"resolution_status": "PENDING"}"#, "only a comparison"),
        (r#"{"resolution_status": "SOLVED"}"#, "MANUAL_RESOLVED"),
        (r#"{"resolution_notes": "x"}"#, "resolution_status"),
        (r#"{"resolution_status": "IGNORED", "note": "x"}"#, "note"),
        ("resolution_status=IGNORED", "not valid"),
        (&long, "1001"),
    ] {
        service.refused(service.post(&resolve, body), 400, words);
    }
    let nil = "/reconciliation/mismatches/00000000-0000-0000-0000-000000000000/resolve";
    service.refused(service.post(nil, body), 404, "no mismatch");
    let coverage = service.get("/reconciliation/coverage");
    assert_eq!(coverage["tables"][0]["whole"]["coverage"], 1, "{coverage}");

    let drift = "cdc_reconciliation_drift_percentage{keyspace=\"shop\",table=\"users\"} 7.5\n";
    assert!(service.text(&["/metrics"]).contains(drift), "{}", service.text(&["/metrics"]));
    world.sql("update _cdc.reconciliation_jobs set lease_until = now() where status = 'RUNNING'");
    service = {
        drop(service);
        Service::start(&world, "")
    };
    assert!(service.text(&["/metrics"]).contains(drift), "a restart does not blank it");
    let jobs = eventually(|| {
        // Taken up again, and nobody is at Cassandra's address.
        let failed = service.get("/reconciliation/jobs?status=FAILED&table=users");
        (failed["total"] == 2).then_some(failed)
    });
    assert!(jobs["jobs"].to_string().contains("127.0.0.1:1"), "{jobs}");
}

#[test]
fn a_comparison_is_asked_for_once_and_says_why_it_cannot_be_made() {
    let world = World::new();
    let service = Service::start(&world, "  every: 1h\n  tables: [shop.orders]\n");
    // Scheduled by itself, and failed, because nobody is at Cassandra's address.
    let ended = |table: &str, job_type: &str| {
        let path = format!("/reconciliation/jobs?status=FAILED&table={table}&job_type={job_type}");
        eventually(|| service.get(&path)["jobs"].as_array().unwrap().first().cloned())
    };
    let failed = ended("orders", "SCHEDULED");
    assert!(failed["validation_errors"][0].as_str().unwrap().contains("127.0.0.1:1"), "{failed}");

    let body = r#"{"tables": ["orders"], "validation_strategy": "VERSION", "priority": "HIGH"}"#;
    let (code, asked) = service.post("/reconciliation/trigger", body);
    assert_eq!((code, &asked["status"], asked["job_ids"].as_array().unwrap().len()), (202, &json!("RUNNING"), 1));
    let manual = ended("orders", "MANUAL_ONDEMAND");
    assert_eq!((&manual["job_id"], &manual["validation_strategy"]), (&asked["job_ids"][0], &json!("VERSION")));
    let shown = service.get(&format!("/reconciliation/jobs/{}", manual["job_id"].as_str().unwrap()));
    assert_eq!(shown["audit"]["hash"].as_str().map(str::len), Some(64), "how it ended is in the audit log: {shown}");
    let cancel = format!("/reconciliation/jobs/{}/cancel", manual["job_id"].as_str().unwrap());
    service.refused(service.post(&cancel, ""), 409, "FAILED");
    service.refused(service.post("/reconciliation/jobs/x/cancel", ""), 400, "UUID");

    // What was asked for is kept with the job.
    let body = r#"{"tables": ["orders"], "validation_strategy": "SAMPLE", "sample_percent": 2.5, "seed": 7}"#;
    let sample = service.post("/reconciliation/trigger", body).1["job_ids"][0].as_str().unwrap().to_owned();
    let sample = service.get(&format!("/reconciliation/jobs/{sample}"));
    assert_eq!(
        (&sample["validation_strategy"], &sample["sample"]),
        (&json!("SAMPLE"), &json!({"percent": 2.5, "seed": 7}))
    );
    eventually(|| (service.get("/reconciliation/jobs?status=FAILED&table=orders")["total"] == 3).then_some(()));
    let body =
        r#"{"tables": ["orders"], "validation_strategy": "TIMESTAMP_RANGE", "written_to": "1970-01-01T00:00:01Z"}"#;
    let range = service.post("/reconciliation/trigger", body).1["job_ids"][0].as_str().unwrap().to_owned();
    let range = service.get(&format!("/reconciliation/jobs/{range}"));
    assert_eq!(range["written"], json!({"from": -3_599_000_000i64, "to": 1_000_000}), "an hour: {range}");
    eventually(|| (service.get("/reconciliation/jobs?status=FAILED&table=orders")["total"] == 4).then_some(()));
    let partition = service.post("/reconciliation/trigger", r#"{"tables": ["orders"], "partition": 5}"#);
    service.refused(partition, 503, "127.0.0.1:1");

    // One that runs elsewhere.
    world.sql(
        "insert into _cdc.reconciliation_jobs (job_id, keyspace, table_name, job_type, strategy, status, started_at, lease_until)
         values ('00000000-0000-0000-0000-000000000007', 'shop', 'orders', 'MANUAL_ONDEMAND', 'CHECKSUM', 'RUNNING', now(),
             now() + interval '1 h')",
    );
    let (code, again) = service.post("/reconciliation/trigger", r#"{"tables": ["shop.orders"]}"#);
    assert_eq!((code, &again["status"]), (202, &json!("ALREADY_RUNNING")));
    assert_eq!(again["job_ids"], json!(["00000000-0000-0000-0000-000000000007"]));
    let (code, cancelled) = service.post("/reconciliation/jobs/00000000-0000-0000-0000-000000000007/cancel", "");
    assert_eq!((code, &cancelled["status"]), (202, &json!("CANCELLING")));

    for (body, words) in [
        (r#"[["users"]]"#, "JSON object"),
        (r#"{"range": "5"}"#, "START:END"),
        (r#"{"range": "5:-5"}"#, "START:END"),
        (r#"{"max_seconds": 0}"#, "max_seconds"),
        (r#"{"repair": ["IN_DLQ"]}"#, "cannot be repaired"),
        (r#"{"repair": ["OLD"]}"#, "MISSING_IN_POSTGRES"),
        (r#"{"tables": ["users"]}"#, "valid_tables"),
        (r#"{"tables": ["bank.orders"]}"#, "shop.orders"),
        (r#"{"tables": []}"#, "INVALID_TABLE"),
        (r#"{"tables": "orders"}"#, "tables"),
        (r#"{"tables": ["orders"], "validation_strategy": "GUESS"}"#, "TIMESTAMP_RANGE"),
        (r#"{"validation_strategy": "SAMPLE", "sample_percent": 101}"#, "sample_percent is 101"),
        (r#"{"validation_strategy": "SAMPLE", "seed": -1}"#, "seed"),
        (r#"{"validation_strategy": "VERSION", "seed": 1}"#, "belongs to validation_strategy SAMPLE"),
        (r#"{"validation_strategy": "TIMESTAMP_RANGE", "written_from": {}}"#, "expected a time"),
        (r#"{"validation_strategy": "TIMESTAMP_RANGE", "written_to": "-infinity"}"#, "before written_to"),
        (r#"{"partition": 5, "range": "0:1"}"#, "use one of them"),
        (r#"{"tables": ["orders"], "priority": "urgent"}"#, "HIGH"),
        (r#"{"tables": ["orders"], "speed": 9}"#, "speed"),
        ("{\"tables\": [\"orders\"]} x", "not valid"),
    ] {
        service.refused(service.post("/reconciliation/trigger", body), 400, words);
    }
    let (code, barrier) = service.post("/barrier", "");
    service.refused((code, barrier), 503, "127.0.0.1:1");
    service.refused(service.post("/barrier", r#"{"tables": ["bank.*"]}"#), 400, "source.tables");
    service.refused(service.post("/barrier", r#"{"timeout_seconds": 0}"#), 400, "timeout_seconds");

    drop(service);
    let service = Service::start(&world, "  enabled: false\n");
    service.refused(service.post("/reconciliation/trigger", "{}"), 503, "RECONCILIATION_DISABLED");
}

#[test]
fn what_is_scheduled_is_shown_and_comes_when_it_is_due() {
    let world = World::new();
    let section = "  every: 6h\n  jitter: 30s\n  schedules:\n    - {cron: '0 0 1 1 *', tables: [shop.users], strategy: SAMPLE, \
                   sample_percent: 5}\n    - {cron: '* * * * *', tables: [shop.orders], strategy: ROW_COUNT}\n";
    let service = Service::start(&world, section);
    let schedule = || service.get("/reconciliation/schedule")["schedule"].as_array().unwrap().clone();
    let listed = eventually(|| {
        Some(schedule()).filter(|listed| listed.iter().all(|one| one["every"].is_null() || one["is_due"] == false))
    });
    let told: Vec<_> = listed
        .iter()
        .map(|one| (&one["table_name"], &one["every"], &one["cron"], &one["validation_strategy"]))
        .collect();
    let null = Value::Null;
    let (orders, users, checksum) = (json!("orders"), json!("users"), json!("CHECKSUM"));
    let (every, yearly, minutely) = (json!("6h"), json!("0 0 1 1 *"), json!("* * * * *"));
    assert_eq!(
        told,
        [
            (&orders, &every, &null, &checksum),
            (&users, &every, &null, &checksum),
            (&users, &null, &yearly, &json!("SAMPLE")),
            (&orders, &null, &minutely, &json!("ROW_COUNT")),
        ]
    );
    let new_year = listed[2]["next_run_at"].as_str().unwrap();
    assert!(new_year.contains("-01-01T00:00:"), "jitter included: {new_year}");
    let status: Value = serde_json::from_str(&service.text(&["/status"])).unwrap();
    assert_eq!(status["reconciler"]["schedule"].as_array().map(Vec::len), Some(4), "{status}");
    // Both tables by `every` at once; the other when its minute has come, which this does not wait for.
    eventually(|| {
        let jobs = service.get("/reconciliation/jobs?job_type=SCHEDULED&status=FAILED");
        let jobs = jobs["jobs"].as_array().unwrap();
        (jobs.iter().filter(|job| job["schedule"].is_null()).count() == 2).then_some(())
    });
    // A time that nobody was there for is made up for.
    drop(service);
    world.sql(
        "insert into _cdc.reconciliation_jobs (job_id, keyspace, table_name, job_type, strategy, status, schedule, scheduled_for)
         values (gen_random_uuid(), 'shop', 'users', 'SCHEDULED', 'SAMPLE', 'COMPLETED', '0 0 1 1 *', '2020-01-01')",
    );
    let service = Service::start(&world, section);
    let made_up_for = eventually(|| {
        let jobs = service.get("/reconciliation/jobs?job_type=SCHEDULED&table=users&limit=1");
        Some(jobs["jobs"][0].clone()).filter(|job| job["schedule"] == "0 0 1 1 *" && job["status"] == "FAILED")
    });
    assert_eq!(
        (&made_up_for["validation_strategy"], &made_up_for["sample"]["percent"]),
        (&json!("SAMPLE"), &json!(5.0))
    );
    assert!(made_up_for["scheduled_for"].as_str().unwrap() > "2026", "of many, the last one: {made_up_for}");

    drop(service);
    let said = said(&mut cdc(&[
        "validate",
        "--offline",
        &config(&world, "  schedules:\n    - {cron: '61 3 * * *'}\n  retention: {audit: ever}\n"),
    ]));
    assert_eq!(said.code, Some(CONFIG), "{}", said.err);
    for words in [
        "reconciler.schedules.0.cron is `61 3 * * *`",
        "as in `30 3 * * *`",
        "reconciler.retention.audit is `ever`",
        "90d",
    ] {
        assert!(said.err.contains(words), "{words} is not in {}", said.err);
    }
}

#[test]
fn dead_letters_are_replayed_once_and_discarded() {
    let world = World::new();
    world.plant();
    let service = Service::start(&world, "");
    let records = service.get("/dlq/records?table=orders&limit=10&offset=145");
    assert_eq!((&records["total"], records["records"].as_array().unwrap().len()), (&json!(150), 5));
    assert!(!records.to_string().contains("secret") && !records.to_string().contains("key1"), "{records}");
    assert_eq!(service.get("/dlq/records?error_type=DECODE_ERROR&resolution_status=PENDING")["total"], 1);
    assert_eq!(service.get("/dlq/records?resolution_status=IGNORED")["total"], 0);
    service.refused(service.ask(&["/dlq/records?error_type=ODD"]), 400, "SCHEMA_MISMATCH");
    let stats = service.get("/dlq/stats");
    assert_eq!((&stats["total_records"], &stats["by_resolution_status"]), (&json!(151), &json!({"PENDING": 151})));
    assert_eq!(stats["by_table"], json!({"shop.orders": 150, "cdc-events-orders": 1}));

    let guide = r#"{"error_type": "SCHEMA_MISMATCH", "retry_strategy": "immediate"}"#;
    let (code, nothing) = service.post("/dlq/replay", guide);
    assert_eq!((code, &nothing["matched"], &nothing["status"]), (202, &json!(0), &json!("completed")));
    let replayed = |body: &str| {
        let (code, asked) = service.post("/dlq/replay", body);
        assert_eq!(code, 202, "{asked}");
        let path = format!("/dlq/replay/{}", asked["replay_id"].as_str().unwrap());
        eventually(|| Some(service.get(&path)).filter(|replay| replay["completed_at"].is_string()))
    };
    let one = service.get("/dlq/records?table=orders&limit=1")["records"][0]["dlq_id"].clone();
    let rehearsed = replayed(r#"{"table": "shop.orders", "dry_run": true}"#);
    assert_eq!((&rehearsed["refused"], &rehearsed["status"]), (&json!(150), &json!("failed")));
    let refused = replayed(&format!(r#"{{"dlq_ids": [{one}], "retry_strategy": "batch"}}"#));
    assert_eq!((&refused["refused"], &refused["status"]), (&json!(1), &json!("failed")));

    world.sql("alter table cdc_orders drop constraint open_only");
    let some = replayed(r#"{"table": "orders", "limit": 12, "retry_strategy": "rate_limited"}"#);
    assert_eq!((&some["applied"], &some["status"]), (&json!(12), &json!("completed")));
    let later = service
        .post("/dlq/replay", r#"{"table": "orders", "retry_strategy": "scheduled", "scheduled_time": "tomorrow"}"#);
    assert_eq!((later.0, &later.1["matched"]), (202, &json!(138)));
    let all = replayed(r#"{"error_type": "CONSTRAINT_VIOLATION", "retry_strategy": "immediate"}"#);
    assert_eq!((&all["applied"], &all["status"]), (&json!(138), &json!("completed")));
    assert_eq!(replayed(r#"{"error_type": "CONSTRAINT_VIOLATION"}"#)["matched"], 0, "twice is harmless");
    assert_eq!(service.get("/dlq/records?resolution_status=AUTO_RESOLVED")["total"], 150);

    for (body, words) in [
        ("{}", "NO_SELECTOR"),
        (r#"{"retry_strategy": "immediate"}"#, "NO_SELECTOR"),
        (r#"{"error_type": "ODD"}"#, "SCHEMA_MISMATCH"),
        (r#"{"dlq_ids": [7]}"#, "dlq_ids"),
        (r#"{"table": "orders", "retry_strategy": "later"}"#, "immediate"),
        (r#"{"table": "orders", "retry_strategy": "scheduled"}"#, "scheduled_time"),
        (r#"{"table": "orders", "retry_strategy": "scheduled", "scheduled_time": "soon"}"#, "form PostgreSQL reads"),
        (r#"{"table": "orders", "since": "x"}"#, "since"),
    ] {
        service.refused(service.post("/dlq/replay", body), 400, words);
    }
    service.refused(service.ask(&["/dlq/replay/00000000-0000-0000-0000-000000000000"]), 404, "no replay");
    service.refused(service.post("/dlq/discard", "{}"), 400, "NO_SELECTOR");
    let garbage = |more: &str| service.post("/dlq/discard", &format!(r#"{{"error_type": "DECODE_ERROR"{more}}}"#)).1;
    assert_eq!(garbage(r#", "dry_run": true"#), json!({"matched": 1, "discarded": 0, "dry_run": true}));
    assert_eq!(garbage(r#", "resolution_notes": "garbage""#)["discarded"], 1);
    let left = service.get("/dlq/records?resolution_status=IGNORED");
    assert_eq!((&left["total"], &left["records"][0]["resolution_notes"]), (&json!(1), &json!("garbage")));
}

#[test]
fn every_route_is_described_there_twice_and_speaks_json_when_it_refuses() {
    let world = World::new();
    let service = Service::start(&world, "");
    let described = service.get("/openapi.json");
    let paths = described["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 22, "{paths:?}");
    for (path, methods) in paths.iter().filter(|(path, _)| !["/metrics", "/status"].contains(&path.as_str())) {
        for (method, operation) in methods.as_object().unwrap() {
            let address = path.replace("{component}", "postgresql");
            let address = ["{job_id}", "{mismatch_id}", "{replay_id}"]
                .iter()
                .fold(address, |address, id| address.replace(id, "x"));
            let plain = service.ask(&["-X", &method.to_uppercase(), &address]);
            let prefixed = service.ask(&["-X", &method.to_uppercase(), &format!("/api/v1{address}")]);
            assert_eq!(plain.0, prefixed.0, "{path}");
            assert!(
                operation["responses"][plain.0.to_string()].is_object(),
                "{path} answered {}: {}",
                plain.0,
                plain.1
            );
            for parameter in operation["parameters"].as_array().unwrap().iter().filter(|one| one["in"] == "query") {
                let (code, body) = service.ask(&[&format!("{address}?{}=-", parameter["name"].as_str().unwrap())]);
                assert!(code == 400 || code == 200, "{path}: {code}");
                assert!(!body.to_string().contains("unknown field"), "{path}: {body}");
            }
            if method == "post" && !path.contains('{') {
                service.refused(service.post(&address, r#"{"odd": 1}"#), 400, "odd");
            }
            for name in operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
                .as_object()
                .into_iter()
                .flatten()
            {
                let (_, body) = service.post(&address, &format!(r#"{{"{}": {{}}}}"#, name.0));
                assert!(!body.to_string().contains("unknown field"), "{path}: {body}");
            }
        }
    }
    let health = service.get("/health");
    assert_eq!(
        (&health["status"], &health["components"]["cassandra"]["status"]),
        (&json!("degraded"), &json!("unhealthy"))
    );
    assert!(health["components"]["postgresql"]["response_time_ms"].is_number(), "{health}");
    assert!(service.text(&["/health?format=text"]).contains("postgresql: healthy\n"));
    service.refused(service.ask(&["/health/redis"]), 404, "components");
    assert_eq!(service.ask(&["/health/cassandra"]).0, 503);
    assert_eq!(service.ask(&["/health/kafka"]).1["status"], "not_configured");
    let status: Value = serde_json::from_str(&service.text(&["/status"])).unwrap();
    assert_eq!((&status["role"], &status["ready"]), (&json!("reconciler"), &json!(true)));

    service.refused(service.ask(&["/reconciliation/coverage?table=orders"]), 400, "no parameters");
    service.refused(service.ask(&["/reconciliation"]), 404, "NO_SUCH_ROUTE");
    service.refused(service.ask(&["/api/v1/reconciliation"]), 404, "NO_SUCH_ROUTE");
    service.refused(service.ask(&["-X", "DELETE", "/reconciliation/jobs"]), 405, "WRONG_METHOD");
    let form = ["-X", "POST", "/dlq/discard", "-d", r#"{"error_type": "UNKNOWN"}"#];
    service.refused(service.ask(&[&form[..], &["-H", "Origin: http://evil.example"]].concat()), 403, "FOREIGN_ORIGIN");
    service.refused(service.ask(&[&form[..], &["-H", "Host: evil.example"]].concat()), 403, "FOREIGN_HOST");
    let large = format!(r#"{{"tables": ["{}"]}}"#, "x".repeat(2 << 20));
    let file = world.files.path("large.json");
    std::fs::write(&file, large).unwrap();
    let body = format!("@{}", file.display());
    assert_eq!(service.ask(&["-X", "POST", "/reconciliation/trigger", "-d", &body]).0, 413);
}

#[test]
fn others_need_the_token_and_without_one_it_does_not_start() {
    let world = World::new();
    let open = config(&world, "");
    let text = std::fs::read_to_string(&open).unwrap().replace("listen: 127.0.0.1:0", "listen: 0.0.0.0:0");
    std::fs::write(&open, &text).unwrap();
    for command in ["validate", "reconciler"] {
        let said = said(&mut cdc(&[command, &open]));
        assert!(said.code == Some(CONFIG) && said.err.contains("reconciler.listen is 0.0.0.0:0"), "{}", said.err);
    }
    let secret = world.files.path("token");
    std::fs::write(&secret, "0123456789abcdef\n").unwrap();
    let mut service = Service::start(&world, &format!("  token_file: {}\n", secret.display()));
    service.refused(service.ask(&["/reconciliation/jobs"]), 401, "reconciler.token");
    service.refused(service.ask(&["/api/v1/metrics"]), 401, "reconciler.token");
    assert_eq!(service.text(&["/healthz"]), "ok\n");
    service.token = Some("0123456789abcdeX");
    assert_eq!(service.ask(&["/reconciliation/jobs"]).0, 401);
    service.token = Some("0123456789abcdef");
    assert_eq!(service.ask(&["/reconciliation/jobs"]).0, 200);
}

#[test]
fn it_answers_while_postgresql_is_away_and_goes_on_by_itself() {
    let world = World::new();
    let service = Service::start(&world, "");
    world.server.stop().unwrap();
    service.refused(service.ask(&["/reconciliation/jobs"]), 503, "DATABASE_UNAVAILABLE");
    let (code, health) = service.ask(&["/health"]);
    assert_eq!((code, &health["status"]), (503, &json!("unhealthy")));
    assert_eq!(service.text(&["/healthz"]), "ok\n");
    world.server.start().unwrap();
    eventually(|| (service.ask(&["/reconciliation/jobs"]).0 == 200).then_some(()));
    eventually(|| (service.text(&["/readyz"]) == "ready\n").then_some(()));
}
