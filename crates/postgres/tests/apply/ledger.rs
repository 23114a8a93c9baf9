//! Jobs, mismatches, replays and the audit log that reconcilers share.

use anyhow::{Context, Result};
use cdc_postgres::{
    Disposition, Strategy,
    ledger::{
        Cancelled, Claimed, Found, Gist, JobFilter, Lease, Ledger, Mismatch, MismatchFilter, Page, ReplayWish,
        Requested, Resolution, Tally, Wish,
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::Database;

const ALL: Page = Page { limit: 100, offset: 0 };
const ORDERS: Wish<'_> = Wish { keyspace: "shop", table: "orders", strategy: Strategy::Checksum, priority: "NORMAL" };

fn finding(key: &str, class: &str) -> Value {
    json!({"key_sha256": key, "is_static": false, "token": 7, "class": class, "columns": ["v"], "read_at_all": true,
        "barriers": 2, "cassandra_written_at": 5, "postgres_written_at": null, "cause": null})
}

fn gist(findings: &[Value], disproves: &[&str]) -> Gist {
    let found = Found {
        cassandra_rows: 10,
        drift_rows: 1,
        drift_percentage: 10.0,
        coverage: 1.0,
        gaps: json!([]),
        classes: json!({}),
        findings: Value::from(findings),
        disproves: disproves.iter().map(ToString::to_string).collect(),
        ..Found::default()
    };
    Gist { status: "COMPLETED", errors: Vec::new(), found: Some(found) }
}

async fn ledger(database: &Database) -> Result<Ledger> {
    database.target().await?;
    Ok(Ledger::new(&database.config))
}

/// Runs a job that finds this.
async fn run(ledger: &Ledger, findings: &[Value], disproves: &[&str]) -> Result<Uuid> {
    ledger.request(&[ORDERS], "test").await?;
    let job = ledger.claim_job().await?.context("a job waits")?;
    assert!(ledger.finish_job(&job, &gist(findings, disproves)).await?);
    Ok(job.job)
}

async fn of_job(ledger: &Ledger, job: Uuid) -> Result<Vec<Mismatch>> {
    Ok(ledger.mismatches(&MismatchFilter { job: Some(job), ..MismatchFilter::default() }, ALL).await?.0)
}

/// A mismatch of a job, by its key.
async fn of_key(ledger: &Ledger, job: Uuid, key: &str) -> Result<Mismatch> {
    of_job(ledger, job).await?.into_iter().find(|one| one.key_sha256 == key).context("it is there")
}

async fn assert_audited(database: &Database, entries: i64) -> Result<()> {
    let client = database.client().await?;
    let row = client
        .query_one("select count(*), (select count(*) from _cdc.audit_breaks()) from _cdc.audit_log", &[])
        .await?;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (entries, 0));
    client.batch_execute("update _cdc.audit_log set detail = '{\"a\": 1}' where seq = 2").await?;
    let broken = client.query("select _cdc.audit_breaks()", &[]).await?;
    assert_eq!(broken.iter().map(|row| row.get(0)).collect::<Vec<i64>>(), [2], "a changed entry shows");
    client.batch_execute("delete from _cdc.audit_log where seq = 1").await?;
    assert!(!client.query("select _cdc.audit_breaks()", &[]).await?.is_empty(), "a removed one, too");
    Ok(())
}

#[tokio::test]
async fn a_table_has_one_job_at_a_time_and_the_urgent_one_runs_first() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let asked = ledger.request(&[ORDERS, Wish { table: "users", priority: "HIGH", ..ORDERS }], "test").await?;
    assert!(asked.iter().all(|one| one.is_new));
    assert_eq!(ledger.request(&[ORDERS], "test").await?, [Requested { job: asked[0].job, is_new: false }]);
    let first = ledger.claim_job().await?.context("a job waits")?;
    assert_eq!((first.job, &*first.table, &*first.strategy), (asked[1].job, "users", "CHECKSUM"));
    assert_eq!(ledger.request(&[Wish { table: "users", ..ORDERS }], "test").await?[0].job, first.job, "it runs");
    assert_eq!(ledger.renew_job(first.job).await?, Lease::Held);

    let other = Ledger::new(&database.config);
    assert_eq!(other.renew_job(first.job).await?, Lease::Lost, "another process");
    assert!(!other.finish_job(&first, &gist(&[], &[])).await?);
    let second = other.claim_job().await?.context("the other job")?;
    assert_eq!(second.table, "orders");
    assert!(ledger.claim_job().await?.is_none());

    assert_eq!(ledger.cancel_job(second.job, "test").await?, Cancelled::Soon);
    assert_eq!(other.renew_job(second.job).await?, Lease::Cancelled);
    let cancelled = Gist { status: "CANCELLED", ..Gist::default() };
    assert!(other.finish_job(&second, &cancelled).await?);
    assert_eq!(ledger.cancel_job(second.job, "test").await?, Cancelled::Ended("CANCELLED".to_owned()));
    assert_eq!(ledger.cancel_job(Uuid::nil(), "test").await?, Cancelled::Unknown);
    let waits = ledger.request(&[ORDERS], "test").await?[0].job;
    assert_eq!(ledger.cancel_job(waits, "test").await?, Cancelled::Now);
    assert!(ledger.claim_job().await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_job_whose_process_is_gone_has_failed_and_its_late_answer_is_not_taken() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    ledger.request(&[ORDERS], "test").await?;
    let job = ledger.claim_job().await?.context("a job waits")?;
    assert!(ledger.fail_interrupted().await?.is_empty(), "its lease is held");
    database
        .client()
        .await?
        .batch_execute("update _cdc.reconciliation_jobs set lease_until = now() - interval '1 ms'")
        .await?;
    assert_eq!(ledger.fail_interrupted().await?, [job.job]);
    assert!(!ledger.finish_job(&job, &gist(&[finding("a", "STALE")], &[])).await?);
    let jobs = ledger.jobs(&JobFilter::default(), ALL).await?;
    assert_eq!((&*jobs[0].status, jobs[0].validation_errors[0].starts_with("INTERRUPTED")), ("FAILED", true));
    assert!(ledger.mismatches(&MismatchFilter::default(), ALL).await?.0.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_mismatch_is_kept_once_opened_again_and_resolved_by_proof_alone() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let all = ["STALE", "EXTRA"];
    let [a, b] = [finding("a", "STALE"), finding("b", "EXTRA")];
    let first = run(&ledger, &[a.clone(), b.clone(), finding("c", "UNPROVEN")], &all).await?;
    let second = run(&ledger, &[a.clone(), finding("b", "UNPROVEN")], &all).await?;
    let seen = of_job(&ledger, first).await?;
    assert_eq!(seen.len(), 2, "what is not proven is no mismatch");
    let by_key = |key: &str| seen.iter().find(|one| one.key_sha256 == key).unwrap().clone();
    assert_eq!((by_key("a").times_seen, by_key("a").job_id, &*by_key("a").mismatch_type), (2, second, "DATA_MISMATCH"));
    assert_eq!((&*by_key("b").mismatch_type, &*by_key("b").resolution_status), ("MISSING_IN_CASSANDRA", "PENDING"));
    assert_eq!(of_job(&ledger, second).await?.len(), 1);

    // Found no more, by a job that would have found it.
    run(&ledger, std::slice::from_ref(&a), &["STALE"]).await?;
    assert_eq!(of_key(&ledger, first, "b").await?.resolution_status, "PENDING", "it could not have been found");
    let third = run(&ledger, std::slice::from_ref(&a), &all).await?;
    let resolved = of_key(&ledger, first, "b").await?;
    assert_eq!(
        (&*resolved.resolution_status, resolved.resolved_by.clone()),
        ("AUTO_RESOLVED", Some(format!("job {third}")))
    );

    let id = by_key("a").mismatch_id;
    let resolution = Resolution { status: "MANUAL_RESOLVED", notes: Some("Backfilled"), by: "test" };
    let resolved = ledger.resolve(id, &resolution).await?.context("it is there")?;
    assert_eq!(
        (&*resolved.resolution_status, resolved.resolution_notes.as_deref()),
        ("MANUAL_RESOLVED", Some("Backfilled"))
    );
    assert!(ledger.resolve(Uuid::nil(), &resolution).await?.is_none());
    run(&ledger, std::slice::from_ref(&a), &all).await?;
    let again = of_key(&ledger, first, "a").await?;
    assert_eq!((&*again.resolution_status, again.reopened, again.resolution_notes.clone()), ("PENDING", 1, None));
    assert_eq!(again.previous_resolution.as_ref().unwrap()["resolution_notes"], "Backfilled");

    ledger.resolve(id, &Resolution { status: "IGNORED", ..resolution }).await?;
    run(&ledger, &[a], &all).await?;
    assert_eq!(of_key(&ledger, first, "a").await?.resolution_status, "IGNORED");

    let filter =
        |status: &str| MismatchFilter { resolution_status: Some(status.to_owned()), ..MismatchFilter::default() };
    let (page, total) = ledger.mismatches(&MismatchFilter::default(), Page { limit: 1, offset: 1 }).await?;
    assert_eq!((page.len(), total), (1, 2));
    assert_eq!(ledger.mismatches(&filter("IGNORED"), Page { limit: 1, offset: 9 }).await?.1, 1);
    let wrong = MismatchFilter { since: Some("soon".to_owned()), ..MismatchFilter::default() };
    assert_eq!(ledger.mismatches(&wrong, ALL).await.unwrap_err().disposition(), Disposition::Quarantine);
    // 6 jobs asked for and done, 2 resolutions by hand.
    assert_audited(&database, 14).await
}

#[tokio::test]
async fn tables_are_scheduled_when_they_are_due_and_known_by_their_last_whole_job() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let tables = ["orders", "users"].map(|name| ("shop".to_owned(), name.to_owned()));
    assert_eq!(ledger.schedule(&tables, Strategy::Version, 3_600).await?, 2);
    assert_eq!(ledger.schedule(&tables, Strategy::Version, 3_600).await?, 0);
    let first: Claimed = ledger.claim_job().await?.context("a job waits")?;
    ledger.finish_job(&first, &gist(&[finding("a", "EXTRA")], &[])).await?;
    let second = ledger.claim_job().await?.context("a job waits")?;
    ledger.finish_job(&second, &Gist { status: "FAILED", errors: vec!["no".to_owned()], found: None }).await?;
    let age =
        |minutes: i32| format!("update _cdc.reconciliation_jobs set created_at = now() - interval '{minutes} min'");
    let client = database.client().await?;
    client.batch_execute(&age(11)).await?;
    assert_eq!(ledger.schedule(&tables, Strategy::Version, 3_600).await?, 1, "the one that failed");
    client.batch_execute(&age(61)).await?;
    assert_eq!(ledger.schedule(&tables, Strategy::Version, 3_600).await?, 1, "the other, once the first one waits");

    let states = ledger.table_states().await?;
    let of = |name: &str| states.iter().find(|state| state.table == name).unwrap();
    let done = of(&first.table);
    assert_eq!((&done.jobs["COMPLETED"], &done.pending["MISSING_IN_CASSANDRA"]), (&json!(1), &json!(1)));
    assert_eq!(done.whole.as_ref().unwrap()["drift_percentage"], json!(10));
    assert!(of(&second.table).whole.is_none() && of(&second.table).newest.is_none());
    Ok(())
}

#[tokio::test]
async fn a_replay_goes_on_where_the_process_before_it_was() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let letters: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
    let wish = ReplayWish {
        letters: &letters,
        strategy: "immediate",
        not_before: None,
        dry_run: false,
        notes: None,
        by: "test",
    };
    let later = ledger.request_replay(&ReplayWish { not_before: Some("tomorrow"), ..wish.clone() }).await?;
    let empty = ledger.request_replay(&ReplayWish { letters: &[], ..wish.clone() }).await?;
    assert_eq!(ledger.replay(empty).await?.unwrap().status, "completed");
    let id = ledger.request_replay(&wish).await?;
    let claimed = ledger.claim_replay().await?.context("one is due")?;
    assert_eq!((claimed.replay, &claimed.letters), (id, &letters));
    assert!(ledger.advance_replay(id, Tally { applied: 1, refused: 1, ..Tally::default() }).await?);
    assert!(ledger.claim_replay().await?.is_none());

    let other = Ledger::new(&database.config);
    database.client().await?.batch_execute("update _cdc.dlq_replays set lease_until = now() - interval '1 ms'").await?;
    assert_eq!(other.claim_replay().await?.context("it was left")?.letters, letters[2..]);
    assert!(!ledger.advance_replay(id, Tally::default()).await?, "it is another's now");
    assert!(other.advance_replay(id, Tally { superseded: 1, ..Tally::default() }).await?);
    other.finish_replay(id).await?;
    let replay = other.replay(id).await?.unwrap();
    assert_eq!((&*replay.status, replay.done, replay.matched), ("partially_completed", 3, 3));
    assert_eq!(ledger.replay(later).await?.unwrap().status, "queued");
    let wrong = ledger.request_replay(&ReplayWish { not_before: Some("soon"), ..wish }).await.unwrap_err();
    assert_eq!(wrong.disposition(), Disposition::Quarantine);
    Ok(())
}
