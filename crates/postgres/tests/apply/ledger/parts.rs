//! Jobs that are done part by part, paused, taken up again, and repair.

use anyhow::{Context, Result};
use cdc_model::TokenRange;
use cdc_postgres::ledger::{
    Cancelled, Found, Job, JobFilter, JobOptions, Lease, Ledger, Mismatch, MismatchFilter, Paused, RepairWish,
    Requested, Resolution, Resumed,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ALL, ORDERS, finding, found, ledger, of_job, of_key, run};
use crate::support::Database;

async fn lose_leases(database: &Database) -> Result<()> {
    let sql = "update _cdc.reconciliation_jobs set lease_until = now() - interval '1 ms' where status = 'RUNNING'";
    Ok(database.client().await?.batch_execute(sql).await?)
}

async fn only_job(ledger: &Ledger) -> Result<Job> {
    let mut jobs = ledger.jobs(&JobFilter::default(), ALL).await?;
    assert_eq!(jobs.len(), 1);
    jobs.pop().context("there is one")
}

#[tokio::test]
async fn a_job_whose_process_is_gone_goes_on_behind_what_was_noted_and_three_deaths_in_one_part_fail_it() -> Result<()>
{
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    ledger.request(&[ORDERS], "test").await?;
    let first = ledger.claim_job(false).await?.context("a job waits")?;
    assert!(ledger.advance_job(&first, 4, &found(&[finding("a", "STALE")], &[])).await?);
    assert!(ledger.take_back_jobs().await?.is_empty(), "its lease is held");
    lose_leases(&database).await?;
    let other = Ledger::new(&database.config);
    let back = |status: &str| vec![(first.job, status.to_owned())];
    assert_eq!(other.take_back_jobs().await?, back("QUEUED"));
    let second = other.claim_job(false).await?.context("it waits again")?;
    assert_eq!((second.job, second.ranges_done, second.rows), (first.job, 4, 10));
    assert!(!ledger.advance_job(&first, 8, &found(&[finding("b", "STALE")], &[])).await?, "it is another's");
    assert!(ledger.put_job_back(&first).await?.is_none());
    assert!(other.advance_job(&second, 8, &found(&[finding("c", "STALE")], &[])).await?);
    let job = only_job(&ledger).await?;
    assert_eq!((job.cassandra_row_count, job.mismatch_count, job.interruptions), (Some(20), Some(2), 0));
    assert_eq!((job.classes, job.drift_percentage), (Some(json!({"STALE": 2})), Some(10.0)));
    assert_eq!(of_job(&ledger, first.job).await?.len(), 2, "what was found before is kept, what was not noted is not");

    for status in ["QUEUED", "QUEUED", "FAILED"] {
        lose_leases(&database).await?;
        assert_eq!(ledger.take_back_jobs().await?, back(status));
        ledger.claim_job(false).await?;
    }
    let job = only_job(&ledger).await?;
    assert_eq!((&*job.status, job.validation_errors[0].starts_with("INTERRUPTED")), ("FAILED", true));
    assert_eq!(of_job(&ledger, first.job).await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_paused_job_keeps_its_table_and_goes_on_when_it_is_resumed() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let id = ledger.request(&[ORDERS], "test").await?[0].job;
    assert_eq!(ledger.pause_job(Uuid::nil(), "test").await?, Paused::Unknown);
    assert_eq!(ledger.resume_job(id, "test").await?, Resumed::NotPaused("QUEUED".to_owned()));
    assert_eq!(ledger.pause_job(id, "test").await?, Paused::Now);
    assert_eq!(ledger.pause_job(id, "test").await?, Paused::Now, "twice is harmless");
    assert!(ledger.claim_job(false).await?.is_none());
    assert_eq!(ledger.request(&[ORDERS], "test").await?, [Requested { job: id, is_new: false, is_paused: true }]);
    assert_eq!(ledger.resume_job(id, "test").await?, Resumed::Now);

    let job = ledger.claim_job(false).await?.context("it waits")?;
    assert!(ledger.advance_job(&job, 12, &found(&[], &[])).await?);
    assert_eq!(ledger.pause_job(id, "test").await?, Paused::Soon);
    assert_eq!(ledger.renew_job(id, &json!({"rows": 5})).await?, Lease::Paused);
    assert_eq!(only_job(&ledger).await?.progress, Some(json!({"rows": 5})));
    assert_eq!(ledger.put_job_back(&job).await?.as_deref(), Some("PAUSED"));
    assert_eq!(ledger.resume_job(id, "test").await?, Resumed::Now);
    let job = ledger.claim_job(false).await?.context("it goes on")?;
    assert_eq!(job.ranges_done, 12);

    // Resumed before it stood still; paused when its process died; cancelled meanwhile.
    ledger.pause_job(id, "test").await?;
    assert_eq!(ledger.resume_job(id, "test").await?, Resumed::Now);
    assert_eq!(ledger.put_job_back(&job).await?.as_deref(), Some("QUEUED"));
    ledger.claim_job(false).await?.context("it goes on")?;
    ledger.pause_job(id, "test").await?;
    lose_leases(&database).await?;
    assert_eq!(ledger.take_back_jobs().await?, [(id, "PAUSED".to_owned())]);
    assert_eq!(ledger.cancel_job(id, "test").await?, Cancelled::Now);
    assert_eq!(ledger.pause_job(id, "test").await?, Paused::Ended("CANCELLED".to_owned()));
    assert_eq!(ledger.resume_job(id, "test").await?, Resumed::NotPaused("CANCELLED".to_owned()));
    assert!(ledger.request(&[ORDERS], "test").await?[0].is_new);
    Ok(())
}

#[tokio::test]
async fn a_part_resolves_what_it_repaired_and_what_it_disproves_among_its_own_tokens() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let of_token = |key: &str, token: i64| {
        let mut finding = finding(key, "STALE");
        finding["token"] = token.into();
        finding
    };
    let job = run(&ledger, &[of_token("a", 5), of_token("b", 500), of_token("c", 6)], &[]).await?;
    ledger.request(&[ORDERS], "test").await?;
    let claimed = ledger.claim_job(false).await?.context("a job waits")?;
    let mut repaired = of_token("c", 6);
    repaired["repaired"] = true.into();
    let part = Found {
        tokens: Some(TokenRange { start: 0, end: 100 }),
        repairs: Some(json!({"done": 1})),
        ..found(&[repaired], &["STALE"])
    };
    assert!(ledger.advance_job(&claimed, 4, &part).await?);
    let state = |one: &Mismatch| {
        let how = one.evidence.as_ref().map(|evidence| (evidence["how"].clone(), evidence["job_id"].clone()));
        (one.resolution_status.clone(), how)
    };
    let by = |how: &str| ("AUTO_RESOLVED".to_owned(), Some((json!(how), json!(claimed.job))));
    assert_eq!(state(&of_key(&ledger, job, "a").await?), by("PROVEN_EQUAL"));
    assert_eq!(state(&of_key(&ledger, job, "c").await?), by("REPAIRED"));
    assert_eq!(state(&of_key(&ledger, job, "b").await?), ("PENDING".to_owned(), None), "of another part");
    let client = database.client().await?;
    let audited = "select detail::text from _cdc.audit_log where action = 'repaired'";
    let entry: Value = serde_json::from_str(&client.query_one(audited, &[]).await?.get::<_, String>(0))?;
    assert_eq!(entry["rows"], json!([{"key_sha256": "c", "is_static": false, "class": "STALE"}]));

    // Seen again by the same job, whose part was cut short before.
    assert!(ledger.advance_job(&claimed, 8, &found(&[of_token("c", 6)], &[])).await?);
    let again = of_key(&ledger, job, "c").await?;
    assert_eq!((&*again.resolution_status, again.evidence, again.reopened), ("PENDING", None, 1));

    // A single row.
    let mismatch = of_key(&ledger, job, "b").await?;
    let wish = RepairWish {
        classes: vec!["STALE".to_owned()],
        max_share_percent: 100.0,
        rows_per_second: 1,
        dry_run: false,
        only: Some("b".to_owned()),
    };
    let asked = ledger.request_repair(&mismatch, wish.clone(), "test").await?;
    assert!(asked.is_new, "beside the comparison that runs");
    assert_eq!(ledger.request_repair(&mismatch, wish.clone(), "test").await?.job, asked.job);
    assert!(ledger.claim_job(false).await?.is_none());
    let repair = ledger.claim_job(true).await?.context("it waits for no comparison")?;
    assert_eq!((repair.range_start, repair.range_end), (499, 500));
    assert_eq!(serde_json::from_value::<JobOptions>(repair.options)?.repair, Some(wish));

    ledger.resolve(mismatch.mismatch_id, &Resolution { status: "IGNORED", notes: None, by: "test" }).await?;
    let ignored = |start, end| ledger.ignored("shop", "orders", TokenRange { start, end });
    assert_eq!((ignored(499, 500).await?, ignored(500, 600).await?), (vec!["b".to_owned()], vec![]));
    let awaits =
        |awaits| MismatchFilter { awaits: Some((awaits, vec!["STALE".to_owned()])), ..MismatchFilter::default() };
    assert_eq!(
        (ledger.mismatches(&awaits(true), ALL).await?.1, ledger.mismatches(&awaits(false), ALL).await?.1),
        (1, 2)
    );
    Ok(())
}
