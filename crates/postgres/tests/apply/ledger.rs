//! Jobs, mismatches, replays and the audit log that reconcilers share.

mod kept;
mod parts;

use anyhow::{Context, Result};
use cdc_model::TokenRange;
use cdc_postgres::{
    Disposition,
    ledger::{
        Answer, Cancelled, Claimed, Found, Gist, JobOptions, JobStrategy, Lease, Ledger, Mismatch, MismatchFilter,
        Page, RANGES, ReplayWish, Requested, Resolution, Tally, Wish,
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::Database;

const ALL: Page = Page { limit: 100, offset: 0 };
const ORDERS: Wish<'_> = Wish {
    keyspace: "shop",
    table: "orders",
    strategy: JobStrategy::Checksum,
    priority: "NORMAL",
    range: TokenRange::RING,
    options: JobOptions::NONE,
};

fn finding(key: &str, class: &str) -> Value {
    json!({"key_sha256": key, "is_static": false, "token": 7, "class": class, "columns": ["v"], "read_at_all": true,
        "barriers": 2, "cassandra_written_at": 5, "postgres_written_at": null, "cause": null})
}

/// Of a part that is whole.
fn found(findings: &[Value], disproves: &[&str]) -> Found {
    Found {
        cassandra_rows: 10,
        drift_rows: 1,
        gaps: json!([]),
        classes: json!({"STALE": 1}),
        findings: Value::from(findings),
        disproves: disproves.iter().map(ToString::to_string).collect(),
        tokens: Some(TokenRange::RING),
        seconds: 1.0,
        ..Found::default()
    }
}

fn gist(status: &'static str) -> Gist {
    let coverage = (status == "COMPLETED").then(|| (1.0, json!([])));
    Gist { status, coverage, ..Gist::default() }
}

async fn ledger(database: &Database) -> Result<Ledger> {
    database.target().await?;
    Ok(Ledger::new(&database.config))
}

/// Runs a job that finds this.
async fn run(ledger: &Ledger, findings: &[Value], disproves: &[&str]) -> Result<Uuid> {
    ledger.request(&[ORDERS], "test").await?;
    let job = ledger.claim_job(false).await?.context("a job waits")?;
    assert!(ledger.advance_job(&job, RANGES, &found(findings, disproves)).await?);
    assert!(ledger.finish_job(&job, &gist("COMPLETED")).await?);
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
    let known = Requested { job: asked[0].job, is_new: false, is_paused: false };
    assert_eq!(ledger.request(&[ORDERS], "test").await?, [known]);
    let first = ledger.claim_job(false).await?.context("a job waits")?;
    assert_eq!((first.job, &*first.table, &*first.strategy), (asked[1].job, "users", "CHECKSUM"));
    assert_eq!(ledger.request(&[Wish { table: "users", ..ORDERS }], "test").await?[0].job, first.job, "it runs");
    assert_eq!(ledger.renew_job(first.job, &Value::Null).await?, Lease::Held);

    let other = Ledger::new(&database.config);
    assert_eq!(other.renew_job(first.job, &Value::Null).await?, Lease::Lost, "another process");
    assert!(!other.finish_job(&first, &gist("COMPLETED")).await?);
    let second = other.claim_job(false).await?.context("the other job")?;
    assert_eq!(second.table, "orders");
    assert!(ledger.claim_job(false).await?.is_none());

    assert_eq!(ledger.cancel_job(second.job, "test").await?, Cancelled::Soon);
    assert_eq!(other.renew_job(second.job, &Value::Null).await?, Lease::Cancelled);
    assert!(other.finish_job(&second, &gist("CANCELLED")).await?);
    assert_eq!(ledger.cancel_job(second.job, "test").await?, Cancelled::Ended("CANCELLED".to_owned()));
    assert_eq!(ledger.cancel_job(Uuid::nil(), "test").await?, Cancelled::Unknown);
    let waits = ledger.request(&[ORDERS], "test").await?[0].job;
    assert_eq!(ledger.cancel_job(waits, "test").await?, Cancelled::Now);
    assert!(ledger.claim_job(false).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_request_with_a_key_is_answered_once_and_alike_for_a_day() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    assert_eq!(ledger.begin_answer("k", b"one").await?, Answer::New);
    assert_eq!(ledger.begin_answer("k", b"one").await?, Answer::Pending);
    assert_eq!(ledger.begin_answer("k", b"two").await?, Answer::Other);
    ledger.drop_answer("k").await?;
    assert_eq!(ledger.begin_answer("k", b"two").await?, Answer::New);
    ledger.keep_answer("k", 202, "{}").await?;
    assert_eq!(ledger.begin_answer("k", b"two").await?, Answer::Known(202, "{}".to_owned()));
    ledger.drop_answer("k").await?;
    assert_eq!(ledger.begin_answer("k", b"one").await?, Answer::Other, "what was answered stays");
    let client = database.client().await?;
    client.batch_execute("update _cdc.answers set at = now() - interval '25 hours'").await?;
    assert_eq!(ledger.begin_answer("k", b"one").await?, Answer::New);
    client.batch_execute("update _cdc.answers set at = now() - interval '3 minutes'").await?;
    assert_eq!(ledger.begin_answer("k", b"one").await?, Answer::New, "whoever was to answer is gone");
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
    let schedule = || ledger.schedule(&tables, JobStrategy::Version, 3_600, &JobOptions::NONE);
    assert_eq!((schedule().await?, schedule().await?), (2, 0));
    let first: Claimed = ledger.claim_job(false).await?.context("a job waits")?;
    ledger.advance_job(&first, RANGES, &found(&[finding("a", "EXTRA")], &[])).await?;
    ledger.finish_job(&first, &gist("COMPLETED")).await?;
    let second = ledger.claim_job(false).await?.context("a job waits")?;
    ledger.finish_job(&second, &gist("FAILED")).await?;
    let age =
        |minutes: i32| format!("update _cdc.reconciliation_jobs set created_at = now() - interval '{minutes} min'");
    let client = database.client().await?;
    client.batch_execute(&age(11)).await?;
    assert_eq!(schedule().await?, 1, "the one that failed");
    client.batch_execute(&age(61)).await?;
    assert_eq!(schedule().await?, 1, "the other, once the first one waits");

    let states = ledger.table_states().await?;
    let of = |name: &str| states.iter().find(|state| state.table == name).unwrap();
    let done = of(&first.table);
    assert_eq!((&done.jobs["COMPLETED"], &done.pending["MISSING_IN_CASSANDRA"]), (&json!(1), &json!(1)));
    assert_eq!(done.whole.as_ref().unwrap()["drift_percentage"], json!(10));
    assert!(of(&second.table).whole.is_none() && of(&second.table).newest.is_none());
    Ok(())
}

#[tokio::test]
async fn the_table_at_the_greatest_risk_goes_first_and_one_that_ran_out_of_time_goes_on() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    // Proven an hour ago; proven now, with a row known to be wrong; proven now; never proven.
    let proven = |table| Wish { table, ..ORDERS };
    let client = database.client().await?;
    for (table, findings) in [("old", &[][..]), ("wrong", &[finding("a", "STALE")][..]), ("fresh", &[][..])] {
        ledger.request(&[proven(table)], "test").await?;
        let job = ledger.claim_job(false).await?.context("a job waits")?;
        ledger.advance_job(&job, RANGES, &found(findings, &[])).await?;
        ledger.finish_job(&job, &gist("COMPLETED")).await?;
    }
    client
        .batch_execute(
            "update _cdc.reconciliation_jobs set created_at = now() - interval '2 h',
                started_at = case table_name when 'old' then now() - interval '1 h' else started_at end",
        )
        .await?;
    let tables = ["fresh", "never", "old", "wrong"].map(|name| ("shop".to_owned(), name.to_owned()));
    ledger.schedule(&tables, JobStrategy::Checksum, 3_600, &JobOptions::NONE).await?;
    let mut order = Vec::new();
    while let Some(job) = ledger.claim_job(false).await? {
        let rest =
            json!([{"start": 0, "end": 7, "why": "READ_FAILED"}, {"start": 42, "end": i64::MAX, "why": "TIME_BOX"}]);
        let out_of_time = Gist { coverage: Some((0.5, rest)), ..gist("COMPLETED") };
        ledger.finish_job(&job, &out_of_time).await?;
        order.push(job.table);
    }
    assert_eq!(order, ["wrong", "never", "old", "fresh"]);

    client.batch_execute("update _cdc.reconciliation_jobs set created_at = created_at - interval '2 h'").await?;
    ledger.schedule(&tables[..1], JobStrategy::Checksum, 3_600, &JobOptions::NONE).await?;
    let rest = ledger.claim_job(false).await?.context("a job waits")?;
    assert_eq!((rest.range_start, rest.range_end), (42, i64::MAX));
    ledger.finish_job(&rest, &gist("COMPLETED")).await?;
    client.batch_execute("update _cdc.reconciliation_jobs set created_at = created_at - interval '2 h'").await?;
    ledger.schedule(&tables[..1], JobStrategy::Checksum, 3_600, &JobOptions::NONE).await?;
    assert_eq!(ledger.claim_job(false).await?.context("a job waits")?.range_start, i64::MIN, "and begins anew");
    let whole = &ledger.table_states().await?[0].whole;
    assert_eq!(whole.as_ref().unwrap()["range"]["start"], i64::MIN, "a part of the ring is not the table");
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
