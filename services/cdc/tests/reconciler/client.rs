//! `cdc reconcile` as the client of a running service.

use std::process::Command;

use serde_json::{Value, json};

use super::service::Service;
use super::{finding, job};
use crate::dlq::World;
use crate::{CONFIG, OK, Said, UNAVAILABLE, USAGE, cdc, said};

const FAILURE: i32 = 1;
const DRIFT: i32 = 7;
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

fn command(service: &Service, arguments: &[&str]) -> Command {
    let (verb, rest) = arguments.split_first().unwrap();
    let mut command = cdc(&["reconcile", verb, "--url", &service.base]);
    command.args(rest).env_remove("CDC__RECONCILER__TOKEN").env_remove("CDC__RECONCILER__TOKEN_FILE");
    command
}

fn reconcile(service: &Service, arguments: &[&str]) -> Said {
    said(&mut command(service, arguments))
}

#[test]
fn jobs_and_findings_are_shown_and_the_exit_code_says_whether_differences_stay() {
    let world = World::new();
    let classes = ["MISSING_IN_POSTGRES", "EXTRA", "STALE"];
    let findings: Vec<Value> = classes.iter().map(|class| finding(class, class)).collect();
    let wrong = job(&world, "orders", &findings);
    let clean = job(&world, "users", &[]);
    let service = Service::start(&world, "");

    let listed = reconcile(&service, &["status"]);
    assert!(
        listed.code == Some(OK) && listed.out.contains(&wrong) && listed.out.contains("shop.users"),
        "{}",
        listed.out
    );
    let one = reconcile(&service, &["status", &wrong, "--output", "json"]);
    let jobs: Value = serde_json::from_str(&one.out).unwrap();
    assert_eq!((&jobs[0]["job_id"], &jobs[0]["mismatch_count"]), (&json!(wrong), &json!(3)));
    let of_table: Value =
        serde_json::from_str(&reconcile(&service, &["status", "--table", "shop.users", "--output", "json"]).out)
            .unwrap();
    assert_eq!((of_table.as_array().unwrap().len(), &of_table[0]["job_id"]), (1, &json!(clean)));

    for (jobs, code) in [(&[&wrong][..], DRIFT), (&[&clean], OK), (&[&clean, &wrong], DRIFT)] {
        let arguments: Vec<&str> = ["watch"].into_iter().chain(jobs.iter().map(|job| job.as_str())).collect();
        let watched = reconcile(&service, &arguments);
        assert_eq!(watched.code, Some(code), "{}{}", watched.out, watched.err);
    }

    let found = reconcile(&service, &["findings"]);
    assert!(found.code == Some(OK) && classes.iter().all(|class| found.out.contains(class)), "{}", found.out);
    let found = reconcile(&service, &["findings", "--job", &wrong, "--limit", "2", "--output", "json"]);
    let found: Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!((found["mismatches"].as_array().unwrap().len(), &found["total"]), (2, &json!(3)));
    let none = reconcile(&service, &["findings", "--table", "users", "--output", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&none.out).unwrap()["mismatches"], json!([]));

    // Nobody is at Cassandra's address.
    let started = reconcile(&service, &["start", "--table", "orders", "--strategy", "version", "--wait"]);
    assert!(started.code == Some(FAILURE) && started.out.contains("127.0.0.1:1"), "{}{}", started.out, started.err);
    assert!(started.out.contains("VERSION") && started.out.contains("FAILED"), "{}", started.out);
    let sample = ["start", "--table", "orders", "--strategy", "sample", "--sample-percent", "2.5", "--seed", "7"];
    let asked: Value =
        serde_json::from_str(&reconcile(&service, &[&sample[..], &["--output", "json"]].concat()).out).unwrap();
    assert_eq!(asked[0]["sample"], json!({"percent": 2.5, "seed": 7}), "{asked}");
    let times = ["--strategy", "timestamp-range", "--written-from", "1970-01-02", "--written-to", "86400000001"];
    let asked = reconcile(&service, &[&["start", "--table", "users", "--output", "json"], &times[..]].concat());
    let asked: Value = serde_json::from_str(&asked.out).unwrap();
    assert_eq!(asked[0]["written"], json!({"from": 86_400_000_000i64, "to": 86_400_000_001i64}), "{asked}");
    for (arguments, code, words) in [
        (&["start", "--strategy", "version", "--seed", "5"][..], USAGE, "belongs to validation_strategy SAMPLE"),
        (&["start", "--partition", "5", "--range", "0:1"], USAGE, "cannot be used with"),
        (&["start", "--table", "nothing"], USAGE, "INVALID_TABLE"),
        (&["status", NOBODY], USAGE, "no job"),
        (&["watch", NOBODY], USAGE, "no job"),
        (&["pause", NOBODY], USAGE, "404"),
        (&["resume", NOBODY], USAGE, "404"),
        (&["repair", NOBODY], USAGE, "404"),
        (&["cancel", &wrong], FAILURE, "JOB_ENDED"),
        (&["findings", "--status", "ODD"], USAGE, "AUTO_RESOLVED"),
        (&["status", "x"], USAGE, "invalid value"),
        (&["start", "--classes", "STALE"], USAGE, "--mode"),
    ] {
        let said = reconcile(&service, arguments);
        assert!(said.code == Some(code) && said.err.contains(words), "{arguments:?}: {:?} {}", said.code, said.err);
    }

    let address = service.base.clone();
    drop(service);
    let said = said(&mut cdc(&["reconcile", "status", "--url", &address]));
    assert!(said.code == Some(UNAVAILABLE) && said.err.contains("no reconciler answers"), "{}", said.err);
}

#[test]
fn a_report_is_one_page_with_every_finding_and_the_hash_of_its_facts() {
    let world = World::new();
    let findings: Vec<Value> = (0..1_200).map(|number| finding(&format!("<i>{number}</i>"), "STALE")).collect();
    let id = job(&world, "orders", &findings);
    let service = Service::start(&world, "");
    let facts = reconcile(&service, &["report", &id, "--format", "json"]);
    let parsed: Value = serde_json::from_str(&facts.out).unwrap();
    assert_eq!(parsed["verdict"], "1200 rows are proven wrong and have not been repaired by this job.");
    assert_eq!(parsed["findings"].as_array().unwrap().len(), 1_200, "more than fit into one answer");
    let files = [world.files.path("report.html"), world.files.path("report.json")];
    for (file, format) in files.iter().zip(["html", "json"]) {
        let said = reconcile(&service, &["report", &id, "--format", format, "--out", file.to_str().unwrap()]);
        assert!(said.code == Some(OK) && said.out.is_empty(), "{}", said.err);
    }
    let [page, json] = files.each_ref().map(|file| std::fs::read_to_string(file).unwrap());
    assert_eq!(json, facts.out);
    assert_eq!(page.matches("&lt;i&gt;").count(), 1_200);
    assert!(page.contains(&id) && page.contains("audit_breaks") && !page.contains("<i>") && !page.contains("<script"));
    let sum = Command::new("sha256sum").arg(&files[1]).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert!(page.contains(sum.split(' ').next().unwrap()), "{sum}");
    let nowhere = reconcile(&service, &["report", &id, "--out", "/nowhere/report.html"]);
    assert!(nowhere.code == Some(FAILURE) && nowhere.err.contains("/nowhere/report.html"), "{}", nowhere.err);
}

#[test]
fn the_token_is_read_from_a_file_or_the_environment_and_never_shown() {
    const TOKEN: &str = "0123456789abcdef";
    let world = World::new();
    let secret = world.files.path("token");
    std::fs::write(&secret, format!("{TOKEN}\n")).unwrap();
    let file = secret.to_str().unwrap();
    let service = Service::start(&world, &format!("  token_file: {file}\n"));
    let without = reconcile(&service, &["status"]);
    assert!(without.code == Some(CONFIG) && without.err.contains("--token-file"), "{}", without.err);
    assert_eq!(reconcile(&service, &["status", "--token-file", file]).code, Some(OK));
    for (name, value) in [("CDC__RECONCILER__TOKEN", TOKEN), ("CDC__RECONCILER__TOKEN_FILE", file)] {
        let said = said(command(&service, &["status"]).env(name, value));
        assert_eq!(said.code, Some(OK), "{name}: {}", said.err);
    }
    let wrong = said(command(&service, &["status"]).env("CDC__RECONCILER__TOKEN", "hunter2"));
    assert!(wrong.code == Some(CONFIG) && !wrong.err.contains("hunter2"), "{}", wrong.err);
    std::fs::write(&secret, "hunter2\r\nX-Evil: 1\n").unwrap();
    let split = reconcile(&service, &["status", "--token-file", file]);
    assert!(
        split.code == Some(CONFIG) && split.err.contains("--token-file") && !split.err.contains("hunter2"),
        "{}",
        split.err
    );
    let missing = reconcile(&service, &["status", "--token-file", "/nowhere/token"]);
    assert!(missing.code == Some(CONFIG) && missing.err.contains("/nowhere/token"), "{}", missing.err);
}
