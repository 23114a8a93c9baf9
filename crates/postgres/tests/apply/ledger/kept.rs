//! What the calendar queues, what is forgotten, and what outlives that.

use std::time::Duration;

use anyhow::{Context, Result};
use cdc_postgres::ledger::{
    JobFilter, JobOptions, JobStrategy, Ledger, MismatchFilter, Pruned, RANGES, ReplayWish, Resolution, Retention,
    SampleWish, Scheduled, Slot, Wish, WrittenWish,
};
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use super::{ALL, ORDERS, finding, found, gist, ledger, of_job, of_key, run};
use crate::support::Database;

const DAY: Duration = Duration::from_secs(86_400);
const RETENTION: Retention = Retention {
    jobs: DAY.saturating_mul(90),
    mismatches: DAY.saturating_mul(60),
    replays: DAY.saturating_mul(30),
    audit: DAY.saturating_mul(365),
};

async fn numbers(client: &Client, sql: &str) -> Result<Vec<i64>> {
    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

async fn breaks(client: &Client) -> Result<Vec<i64>> {
    numbers(client, "select _cdc.audit_breaks()").await
}

#[tokio::test]
async fn a_slot_is_used_once_by_whoever_comes_first_and_waits_while_its_table_has_a_job() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let options = JobOptions {
        sample: Some(SampleWish { percent: 2.5, seed: 7 }),
        written: Some(WrittenWish { from: -1, to: i64::MAX }),
        ..JobOptions::NONE
    };
    let slot = |at| Slot {
        keyspace: "shop",
        table: "orders",
        schedule: "30 3 * * *",
        at,
        strategy: JobStrategy::Sample,
        options: options.clone(),
    };
    let last = |strategy| ledger.last_slot("shop", "orders", "30 3 * * *", strategy);
    assert_eq!(last(JobStrategy::Sample).await?, None);
    assert_eq!(ledger.schedule_slot(&slot(1_000)).await?, Scheduled::New);
    let other = Ledger::new(&database.config);
    assert_eq!(other.schedule_slot(&slot(1_000)).await?, Scheduled::Before);
    assert_eq!(other.schedule_slot(&slot(2_000)).await?, Scheduled::Busy, "nothing piles up");
    let job = ledger.claim_job(false).await?.context("it waits")?;
    assert_eq!(
        (&*job.strategy, serde_json::from_value::<JobOptions>(job.options.clone())?),
        ("SAMPLE", options.clone())
    );
    assert_eq!(other.schedule_slot(&slot(2_000)).await?, Scheduled::Busy);
    ledger.finish_job(&job, &gist("COMPLETED")).await?;
    assert_eq!(other.schedule_slot(&slot(2_000)).await?, Scheduled::New, "and is made up for");
    assert_eq!(ledger.schedule_slot(&slot(1_000)).await?, Scheduled::Before, "an older one is no more");
    assert_eq!((last(JobStrategy::Sample).await?, last(JobStrategy::Checksum).await?), (Some(2_000), None));
    let jobs = ledger.jobs(&JobFilter::default(), ALL).await?;
    let told = (jobs[0].schedule.as_deref(), jobs[0].scheduled_for.as_deref());
    assert_eq!(told, (Some("30 3 * * *"), Some("1970-01-01T00:33:20.000Z")));
    Ok(())
}

#[tokio::test]
async fn every_so_often_means_the_whole_ring_by_the_same_strategy() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let tables = [("shop".to_owned(), "orders".to_owned())];
    let schedule = || ledger.schedule(&tables, JobStrategy::Checksum, 3_600, &JobOptions::NONE);
    let due = async || Ok::<_, anyhow::Error>(ledger.due(&tables, JobStrategy::Checksum, 3_600).await?.pop().flatten());
    assert_eq!(due().await?, None, "at once");
    let half = cdc_model::TokenRange { start: i64::MIN, end: 0 };
    for wish in [
        Wish { strategy: JobStrategy::Sample, ..ORDERS },
        Wish { strategy: JobStrategy::Version, ..ORDERS },
        Wish { range: half, ..ORDERS },
    ] {
        ledger.request(&[wish], "test").await?;
        let job = ledger.claim_job(false).await?.context("it waits")?;
        ledger.advance_job(&job, RANGES, &found(&[], &[])).await?;
        ledger.finish_job(&job, &gist("COMPLETED")).await?;
        assert_eq!(due().await?, None, "{} of {:?}", job.strategy, (job.range_start, job.range_end));
    }
    assert!(
        ledger.table_states().await?[0].whole.as_ref().is_some_and(|whole| whole["validation_strategy"] == "VERSION")
    );
    run(&ledger, &[], &[]).await?;
    assert!(due().await?.is_some());
    assert_eq!(schedule().await?, 0);
    let sql = "update _cdc.reconciliation_jobs set created_at = created_at - interval '2 h'";
    database.client().await?.batch_execute(sql).await?;
    assert_eq!(schedule().await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_is_over_is_forgotten_and_what_is_open_or_counted_is_not() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let client = database.client().await?;
    let first = run(&ledger, &[finding("open", "STALE"), finding("mended", "EXTRA")], &[]).await?;
    let second = run(&ledger, &[finding("ignored", "STALE")], &["EXTRA"]).await?;
    let ignored = of_key(&ledger, second, "ignored").await?;
    let wish = Resolution { status: "IGNORED", notes: None, by: "test" };
    ledger.resolve(ignored.mismatch_id, &wish).await?;
    for _ in 0..3 {
        run(&ledger, &[], &[]).await?;
    }
    let wish =
        ReplayWish { letters: &[], strategy: "immediate", not_before: None, dry_run: false, notes: None, by: "test" };
    ledger.request_replay(&wish).await?;
    let waiting = ledger.request_replay(&ReplayWish { letters: &[Uuid::nil()], ..wish }).await?;
    assert_eq!(ledger.prune(&RETENTION).await?, Pruned::default(), "nothing is old");

    let totals = ledger.table_states().await?[0].totals.clone();
    assert_eq!((&totals["status"], &totals["type"]["DATA_MISMATCH"]), (&json!({"COMPLETED": 5}), &json!(5)));
    assert_eq!((&totals["le"]["+Inf"], &totals["le"]["1"]), (&json!(5), &json!(5)));
    client
        .batch_execute(
            "update _cdc.reconciliation_jobs set created_at = created_at - interval '91 d',
                completed_at = completed_at - interval '91 d';
             update _cdc.reconciliation_mismatches set last_seen_at = last_seen_at - interval '91 d',
                resolved_at = resolved_at - interval '91 d';
             update _cdc.dlq_replays set created_at = now() - interval '31 d', completed_at = completed_at - interval '31 d'",
        )
        .await?;
    // Of the jobs: the first one saw what is open, the second what is ignored, the last one is the newest proof.
    assert_eq!(ledger.prune(&RETENTION).await?, Pruned { mismatches: 1, jobs: 2, replays: 1, audit: 0 });
    assert_eq!(ledger.prune(&RETENTION).await?, Pruned::default());
    let jobs = ledger.jobs(&JobFilter::default(), ALL).await?;
    assert!(jobs.len() == 3 && [first, second].iter().all(|id| jobs.iter().any(|job| job.job_id == *id)), "{jobs:?}");
    let left = ledger.mismatches(&MismatchFilter::default(), ALL).await?.0;
    let left: Vec<(&str, &str)> =
        left.iter().map(|one| (one.key_sha256.as_str(), one.resolution_status.as_str())).collect();
    assert_eq!(left, [("open", "PENDING"), ("ignored", "IGNORED")]);
    assert_eq!(of_job(&ledger, first).await?.len(), 1);
    assert!(ledger.replay(waiting).await?.is_some(), "it is to be done");
    let states = ledger.table_states().await?;
    assert_eq!((&states[0].totals, states[0].whole.is_some()), (&totals, true), "counters do not go back");
    let entry = client.query_one("select detail::text from _cdc.audit_log where action = 'prune'", &[]).await?;
    let entry: Value = serde_json::from_str(entry.get(0))?;
    assert_eq!(entry, json!({"mismatches": 1, "jobs": 2, "replays": 1}));
    assert_eq!(breaks(&client).await?, Vec::<i64>::new());
    Ok(())
}

#[tokio::test]
async fn the_audit_log_stays_verifiable_when_its_oldest_entries_are_pruned() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let client = database.client().await?;
    // Entries of old, chained as they were written then.
    let aged = |from: i32, to: i32, days: i32| {
        format!(
            "do $$ begin for i in {from}..{to} loop
                perform _cdc.audit('test', 'act', i::text, '{{}}');
                update _cdc.audit_log as entry set at = now() - interval '{days} d' where subject = i::text;
                update _cdc.audit_log as entry set hash = _cdc.audit_hash(coalesce(
                    (select hash from _cdc.audit_log as before where before.seq = entry.seq - 1),
                    (select hash from _cdc.audit_anchor where audit_anchor.seq = entry.seq - 1)), entry)
                where subject = i::text; end loop; end $$"
        )
    };
    client.batch_execute(&aged(1, 40, 400)).await?;
    client.batch_execute(&aged(41, 50, 3)).await?;
    assert_eq!(breaks(&client).await?, Vec::<i64>::new());
    assert_eq!(ledger.prune(&RETENTION).await?.audit, 40);
    assert_eq!(numbers(&client, "select seq from _cdc.audit_log order by 1").await?, (41..=51).collect::<Vec<i64>>());
    assert_eq!(breaks(&client).await?, Vec::<i64>::new());
    assert_eq!(ledger.prune(&RETENTION).await?.audit, 0);
    ledger.audit("test", "act", "later", json!({})).await?;
    assert_eq!(breaks(&client).await?, Vec::<i64>::new());

    // Once more: the anchor moves, and the log still says so.
    client.batch_execute("update _cdc.audit_log set at = now() - interval '400 d' where seq between 41 and 45").await?;
    client
        .batch_execute(
            "do $$ declare i bigint; begin for i in 41..52 loop update _cdc.audit_log as entry
                set hash = _cdc.audit_hash(coalesce((select hash from _cdc.audit_log as before where before.seq = i - 1),
                    (select hash from _cdc.audit_anchor)), entry) where seq = i; end loop; end $$",
        )
        .await?;
    assert_eq!(ledger.prune(&RETENTION).await?.audit, 5);
    assert_eq!(breaks(&client).await?, Vec::<i64>::new());

    let broken_by = async |sql: &str| -> Result<Vec<i64>> {
        client.batch_execute("begin").await?;
        client.batch_execute(sql).await?;
        let breaks = breaks(&client).await?;
        client.batch_execute("rollback").await?;
        Ok(breaks)
    };
    assert_eq!(broken_by("delete from _cdc.audit_log where seq = 46").await?, [47]);
    assert_eq!(broken_by("delete from _cdc.audit_anchor").await?.first(), Some(&46));
    let forged = "delete from _cdc.audit_log where seq <= 48;
        update _cdc.audit_anchor set (seq, hash) = (select 48, '\\x00'::bytea)";
    assert_eq!(broken_by(forged).await?, [48, 49], "nobody has said that these were pruned");
    assert!(broken_by("update _cdc.audit_log set detail = '{\"a\": 1}' where action = 'prune'").await?.len() >= 2);
    Ok(())
}

#[tokio::test]
async fn a_repair_that_is_not_proven_is_in_the_audit_log_too_and_checksums_are_kept() -> Result<()> {
    let database = Database::create().await?;
    let ledger = ledger(&database).await?;
    let with = |key: &str, more: Value| {
        let mut finding = finding(key, "STALE");
        finding.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        finding
    };
    let findings = [
        with("right", json!({"attempted": true, "repaired": true})),
        with(
            "wrong",
            json!({"attempted": true, "repaired": false, "cassandra_checksum": "c", "postgres_checksum": "p"}),
        ),
        with("left", json!({"attempted": false, "repaired": false})),
    ];
    let job = run(&ledger, &findings, &[]).await?;
    let wrong = of_key(&ledger, job, "wrong").await?;
    assert_eq!((wrong.cassandra_checksum.as_deref(), wrong.postgres_checksum.as_deref()), (Some("c"), Some("p")));
    assert_eq!(wrong.resolution_status, "PENDING");
    let client = database.client().await?;
    let rows = client
        .query(
            "select action, detail -> 'rows' -> 0 ->> 'key_sha256' from _cdc.audit_log where action like 'repair%'",
            &[],
        )
        .await?;
    let told: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected = [("repaired", "right"), ("repair not proven", "wrong")];
    assert_eq!(told, expected.map(|(action, key)| (action.to_owned(), key.to_owned())));
    Ok(())
}
