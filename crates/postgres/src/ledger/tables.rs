//! Tables: which there are, and what is proven of them.

use serde_json::Value;

use super::{Ledger, failed};
use crate::TargetError;

/// What is known of a table from all its jobs.
#[derive(Clone, Debug)]
pub struct TableState {
    pub keyspace: String,
    pub table: String,
    /// Jobs that are known by status.
    pub jobs: Value,
    /// Of all jobs that have ended: jobs by `status`, mismatches by `type`, jobs that took so many seconds or fewer by `le`, and
    /// the `sum` of their `seconds`.
    pub totals: Value,
    /// Pending mismatches by type.
    pub pending: Value,
    /// Of the newest job that has read anything: its id, when it began, strategy, share of the tokens, and gaps.
    pub newest: Option<Value>,
    /// Of the newest one that has read everything.
    pub whole: Option<Value>,
}

impl Ledger {
    /// `keyspace` and name of every table that any writer of this database has known.
    ///
    /// # Errors
    /// As all of this.
    pub async fn known_tables(&self) -> Result<Vec<(String, String)>, TargetError> {
        let rows = sqlx::query!("select distinct keyspace, name from _cdc.tables order by 1, 2").fetch_all(&self.pool);
        let rows = rows.await.map_err(failed("read the known tables"))?;
        Ok(rows.into_iter().map(|row| (row.keyspace, row.name)).collect())
    }

    /// Of every table that had a job.
    ///
    /// # Errors
    /// As all of this.
    pub async fn table_states(&self) -> Result<Vec<TableState>, TargetError> {
        let states = sqlx::query_as!(
            TableState,
            r#"-- cdc: tables and their jobs
            with gist as (select keyspace, table_name, completed_at, coverage, jsonb_build_object(
                    'job_id', job_id, 'began_at', _cdc.utc(started_at), 'completed_at', _cdc.utc(completed_at),
                    'validation_strategy', strategy, 'coverage', coverage, 'gaps', gaps,
                    'drift_percentage', drift_percentage, 'mismatch_count', drift_rows,
                    'unproven_count', unproven_rows, 'cassandra_row_count', cassandra_rows,
                    'postgres_row_count', postgres_rows, 'range', jsonb_build_object('start', range_start, 'end', range_end),
                    'began_at_seconds', extract(epoch from started_at)) as gist,
                    _cdc.is_whole(job) as is_whole
                from _cdc.reconciliation_jobs as job where coverage is not null and job_type <> 'REPAIR')
            select keyspace, table_name as "table", jsonb_object_agg(status, jobs) as "jobs!",
                coalesce((select jsonb_object_agg(mismatch_type, rows) from (
                    select mismatch_type, count(*) as rows from _cdc.reconciliation_mismatches as mismatch
                    where mismatch.keyspace = job.keyspace and mismatch.table_name = job.table_name
                        and resolution_status = 'PENDING' group by 1) as types), '{}') as "pending!",
                coalesce((select jsonb_object_agg(kind, counts) from (
                    select kind, jsonb_object_agg(label, value) as counts from _cdc.reconciliation_totals as total
                    where total.keyspace = job.keyspace and total.table_name = job.table_name group by kind) as kinds),
                    '{}') as "totals!",
                (select gist from gist where gist.keyspace = job.keyspace and gist.table_name = job.table_name
                    order by completed_at desc limit 1) as "newest",
                (select gist from gist where gist.keyspace = job.keyspace and gist.table_name = job.table_name
                    and is_whole order by completed_at desc limit 1) as "whole"
            from (select keyspace, table_name, status, count(*) as jobs from _cdc.reconciliation_jobs
                group by 1, 2, 3) as job
            group by keyspace, table_name order by 1, 2"#,
        );
        states.fetch_all(&self.pool).await.map_err(failed("read what is proven"))
    }
}
