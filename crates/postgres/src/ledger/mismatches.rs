//! Rows that were proven wrong, each once for all jobs.

use cdc_model::TokenRange;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::postgres::PgTransaction;
use uuid::Uuid;

use super::{
    Ledger, Page, audit, commit, failed,
    lease::{Claimed, Found},
};
use crate::TargetError;

#[derive(Clone, Debug, Serialize)]
pub struct Mismatch {
    pub mismatch_id: Uuid,
    /// The job that saw it last.
    pub job_id: Uuid,
    pub keyspace: String,
    pub table_name: String,
    pub key_sha256: String,
    /// The key, where `reconciler.show_keys` is set.
    pub primary_key_value: Option<Value>,
    pub is_static: bool,
    pub token: i64,
    pub mismatch_type: String,
    pub class: String,
    pub cause: Option<String>,
    pub columns: Value,
    /// SHA-256 of what each store shows, or PostgreSQL would of it.
    pub cassandra_checksum: Option<String>,
    pub postgres_checksum: Option<String>,
    pub cassandra_written_at: Option<i64>,
    pub postgres_written_at: Option<i64>,
    pub read_at_all: bool,
    pub barriers: i32,
    pub detected_at: String,
    pub last_seen_at: String,
    pub times_seen: i32,
    pub reopened: i32,
    pub resolution_status: String,
    pub resolution_notes: Option<String>,
    pub resolved_at: Option<String>,
    pub resolved_by: Option<String>,
    pub previous_resolution: Option<Value>,
    /// How a job has proven it right.
    pub evidence: Option<Value>,
    #[serde(skip)]
    total: i64,
}

/// Which mismatches; what is not set admits all.
#[derive(Clone, Default, Debug)]
pub struct MismatchFilter {
    pub mismatch: Option<Uuid>,
    /// Seen by this job.
    pub job: Option<Uuid>,
    pub keyspace: Option<String>,
    pub table: Option<String>,
    pub mismatch_type: Option<String>,
    pub resolution_status: Option<String>,
    /// First seen then or later; in any form PostgreSQL reads.
    pub since: Option<String>,
    pub until: Option<String>,
    /// Whether it is pending and of these classes.
    pub awaits: Option<(bool, Vec<String>)>,
}

/// What a person says about a mismatch.
#[derive(Clone, Debug)]
pub struct Resolution<'a> {
    /// Not `PENDING`.
    pub status: &'a str,
    pub notes: Option<&'a str>,
    pub by: &'a str,
}

/// Notes what a job has found.
pub(super) async fn record(
    transaction: &mut PgTransaction<'static>,
    job: &Claimed,
    found: &Found,
) -> Result<(), TargetError> {
    sqlx::query!(
        "-- cdc: record mismatches
        with seen as (
            insert into _cdc.reconciliation_mismatches as known (mismatch_id, keyspace, table_name, key_sha256, is_static,
                token, primary_key, class, cause, columns, cassandra_written_at, postgres_written_at, read_at_all,
                barriers, cassandra_checksum, postgres_checksum, job_id, resolution_status, resolution_notes, resolved_at,
                resolved_by, evidence)
            select distinct on (key_sha256, is_static) gen_random_uuid(), $2, $3, key_sha256, is_static, token,
                nullif(primary_key_value, 'null'), class, cause, columns, cassandra_written_at, postgres_written_at,
                read_at_all, barriers, cassandra_checksum, postgres_checksum, $1, case when repaired then 'AUTO_RESOLVED' else 'PENDING' end,
                case when repaired then 'repaired, and proven equal' end, case when repaired then now() end,
                case when repaired then 'job ' || $1::uuid end,
                case when repaired then jsonb_build_object('how', 'REPAIRED', 'job_id', $1, 'class', class,
                    'columns', columns, 'cassandra_written_at', cassandra_written_at,
                    'postgres_written_at', postgres_written_at, 'read_at_all', read_at_all, 'barriers', barriers) end
            from jsonb_to_recordset($4::jsonb) as finding (key_sha256 text, is_static boolean, token bigint,
                primary_key_value jsonb, class text, cause text, columns jsonb, cassandra_written_at bigint,
                postgres_written_at bigint, read_at_all boolean, barriers int, cassandra_checksum text,
                postgres_checksum text, repaired boolean)
            where class <> 'UNPROVEN'
            on conflict (keyspace, table_name, key_sha256, is_static) do update set
                primary_key = excluded.primary_key, class = excluded.class, cause = excluded.cause,
                columns = excluded.columns, cassandra_written_at = excluded.cassandra_written_at,
                postgres_written_at = excluded.postgres_written_at, read_at_all = excluded.read_at_all,
                barriers = excluded.barriers, cassandra_checksum = excluded.cassandra_checksum,
                postgres_checksum = excluded.postgres_checksum, job_id = excluded.job_id, last_seen_at = now(),
                times_seen = known.times_seen + 1, evidence = excluded.evidence,
                reopened = known.reopened + (known.resolution_status in ('AUTO_RESOLVED', 'MANUAL_RESOLVED'))::int,
                previous_resolution = case when known.resolution_status in ('AUTO_RESOLVED', 'MANUAL_RESOLVED')
                    then jsonb_build_object('resolution_status', known.resolution_status,
                        'resolution_notes', known.resolution_notes, 'resolved_at', _cdc.utc(known.resolved_at),
                        'resolved_by', known.resolved_by)
                    else known.previous_resolution end,
                (resolution_status, resolution_notes, resolved_at, resolved_by) = (
                    select kept.* from (select known.resolution_status, known.resolution_notes, known.resolved_at,
                            known.resolved_by
                        where known.resolution_status = 'IGNORED' and excluded.resolution_status = 'PENDING'
                        union all
                        select excluded.resolution_status, excluded.resolution_notes, excluded.resolved_at,
                            excluded.resolved_by
                        where known.resolution_status <> 'IGNORED' or excluded.resolution_status <> 'PENDING') as kept)
            returning mismatch_id)
        insert into _cdc.reconciliation_sightings (job_id, mismatch_id) select $1, mismatch_id from seen
        on conflict do nothing",
        job.job,
        job.keyspace,
        job.table,
        found.findings,
    )
    .execute(&mut **transaction)
    .await
    .map_err(failed("record mismatches"))?;
    let Some(tokens) = found.tokens else { return Ok(()) };
    sqlx::query!(
        "-- cdc: resolve mismatches
        update _cdc.reconciliation_mismatches as known set resolution_status = 'AUTO_RESOLVED', resolved_at = now(),
            resolved_by = 'job ' || $1::uuid, resolution_notes = 'proven equal',
            evidence = jsonb_build_object('how', 'PROVEN_EQUAL', 'job_id', $1, 'class', class, 'strategy', $8::text)
        where keyspace = $2 and table_name = $3 and resolution_status = 'PENDING' and class = any($5)
            and token > $6 and token <= $7
            and not exists (select from jsonb_to_recordset($4::jsonb) as finding (key_sha256 text, is_static boolean)
                where finding.key_sha256 = known.key_sha256 and finding.is_static = known.is_static)",
        job.job,
        job.keyspace,
        job.table,
        found.findings,
        &found.disproves,
        tokens.start,
        tokens.end,
        job.strategy,
    )
    .execute(&mut **transaction)
    .await
    .map(drop)
    .map_err(failed("resolve mismatches"))
}

/// Rows of one entry of the audit log.
const AUDITED: usize = 1_000;

/// Notes which rows a job has changed, by their hashes: those that were then proven right, and those that were not.
pub(super) async fn audit_repairs(
    transaction: &mut PgTransaction<'static>,
    job: &Claimed,
    found: &Found,
) -> Result<(), TargetError> {
    for (action, is_proven) in [("repaired", true), ("repair not proven", false)] {
        let is_it = |one: &&Value| match is_proven {
            true => one["repaired"] == true,
            false => one["attempted"] == true && one["repaired"] != true,
        };
        let rows = found.findings.as_array().into_iter().flatten().filter(is_it);
        let rows: Vec<Value> = rows
            .map(|one| json!({"key_sha256": one["key_sha256"], "is_static": one["is_static"], "class": one["class"]}))
            .collect();
        for rows in rows.chunks(AUDITED) {
            let detail = json!({"table": format!("{}.{}", job.keyspace, job.table), "rows": rows});
            audit(transaction, "reconciler", action, &job.job.to_string(), detail).await?;
        }
    }
    Ok(())
}

impl Ledger {
    /// Oldest first, and how many there are in all.
    ///
    /// # Errors
    /// With [`crate::Disposition::Quarantine`] if `since` or `until` is not a time.
    pub async fn mismatches(&self, filter: &MismatchFilter, page: Page) -> Result<(Vec<Mismatch>, i64), TargetError> {
        let found = self.list(filter, page).await?;
        let total = match found.first() {
            Some(first) => first.total,
            None if page.offset == 0 => 0,
            None => self.list(filter, Page { limit: 1, offset: 0 }).await?.first().map_or(0, |first| first.total),
        };
        Ok((found, total))
    }

    async fn list(&self, filter: &MismatchFilter, page: Page) -> Result<Vec<Mismatch>, TargetError> {
        let found = sqlx::query_as!(
            Mismatch,
            r#"-- cdc: list mismatches
            select mismatch_id, job_id, keyspace, table_name, key_sha256, primary_key as "primary_key_value", is_static, token,
                mismatch_type, class, cause, columns, cassandra_checksum, postgres_checksum, cassandra_written_at,
                postgres_written_at, read_at_all, barriers, _cdc.utc(detected_at) as "detected_at!", _cdc.utc(last_seen_at) as "last_seen_at!", times_seen, reopened,
                resolution_status, resolution_notes, _cdc.utc(resolved_at) as "resolved_at?", resolved_by,
                previous_resolution, evidence, count(*) over () as "total!"
            from _cdc.reconciliation_mismatches as mismatch
            where ($1::uuid is null or mismatch_id = $1)
                and ($2::uuid is null or exists (select from _cdc.reconciliation_sightings as sighting
                    where sighting.job_id = $2 and sighting.mismatch_id = mismatch.mismatch_id))
                and ($3::text is null or keyspace = $3) and ($4::text is null or table_name = $4)
                and ($5::text is null or mismatch_type = $5) and ($6::text is null or resolution_status = $6)
                and ($7::text is null or detected_at >= $7::text::timestamptz)
                and ($8::text is null or detected_at < $8::text::timestamptz)
                and ($9::boolean is null or (resolution_status = 'PENDING' and class = any($10)) = $9)
            order by mismatch.detected_at, mismatch_id limit $11 offset $12"#,
            filter.mismatch,
            filter.job,
            filter.keyspace,
            filter.table,
            filter.mismatch_type,
            filter.resolution_status,
            filter.since,
            filter.until,
            filter.awaits.as_ref().map(|(awaits, _)| *awaits),
            filter.awaits.as_ref().map_or(&[][..], |(_, classes)| classes),
            page.limit,
            page.offset,
        );
        found.fetch_all(&self.pool).await.map_err(failed("list mismatches"))
    }

    /// Keys that are wrong, and may stay so for all a person cares, by their hashes.
    ///
    /// # Errors
    /// As all of this.
    pub async fn ignored(&self, keyspace: &str, table: &str, range: TokenRange) -> Result<Vec<String>, TargetError> {
        let keys = sqlx::query_scalar!(
            "-- cdc: ignored mismatches
            select key_sha256 from _cdc.reconciliation_mismatches where keyspace = $1 and table_name = $2
                and resolution_status = 'IGNORED' and token > $3 and token <= $4",
            keyspace,
            table,
            range.start,
            range.end,
        );
        keys.fetch_all(&self.pool).await.map_err(failed("list what is ignored"))
    }

    /// # Errors
    /// As all of this.
    pub async fn mismatch(&self, id: Uuid) -> Result<Option<Mismatch>, TargetError> {
        let filter = MismatchFilter { mismatch: Some(id), ..MismatchFilter::default() };
        Ok(self.list(&filter, Page { limit: 1, offset: 0 }).await?.pop())
    }

    /// Notes what a person says; `None` if there is no such mismatch.
    ///
    /// # Errors
    /// As all of this.
    pub async fn resolve(&self, id: Uuid, resolution: &Resolution<'_>) -> Result<Option<Mismatch>, TargetError> {
        let Resolution { status, notes, by } = *resolution;
        let mut transaction = self.begin().await?;
        let done = sqlx::query!(
            "-- cdc: resolve a mismatch
            update _cdc.reconciliation_mismatches
            set resolution_status = $2, resolution_notes = $3, resolved_at = now(), resolved_by = $4
            where mismatch_id = $1",
            id,
            status,
            notes,
            by,
        );
        if done.execute(&mut *transaction).await.map_err(failed("resolve a mismatch"))?.rows_affected() == 0 {
            return Ok(None);
        }
        let detail = json!({"resolution_status": status, "resolution_notes": notes});
        audit(&mut transaction, by, "resolve", &id.to_string(), detail).await?;
        commit(transaction).await?;
        self.mismatch(id).await
    }
}
