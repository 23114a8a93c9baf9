-- What reconcilers share: jobs, what they found, replays of dead letters asked for over the API, and an audit trail.

create function _cdc.utc(at timestamptz) returns text language sql stable parallel safe as $$
    select to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
$$;
comment on function _cdc.utc is 'A time in UTC, so that it sorts as text.';

create table _cdc.reconciliation_jobs (
    job_id uuid primary key,
    keyspace text not null,
    table_name text not null,
    job_type text not null check (job_type in ('MANUAL_ONDEMAND', 'SCHEDULED')),
    strategy text not null check (strategy in ('CHECKSUM', 'VERSION', 'ROW_COUNT')),
    priority text not null default 'NORMAL' check (priority in ('HIGH', 'NORMAL', 'LOW')),
    status text not null default 'QUEUED' check (status in ('QUEUED', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    created_at timestamptz not null default now(),
    started_at timestamptz,
    completed_at timestamptz,
    worker uuid,
    lease_until timestamptz,
    cancel_requested boolean not null default false,
    cassandra_rows bigint,
    postgres_rows bigint,
    drift_rows bigint,
    drift_percentage double precision,
    unproven_rows bigint,
    in_motion bigint,
    classes jsonb,
    coverage double precision,
    gaps jsonb,
    errors text[] not null default '{}'
);
create unique index reconciliation_jobs_one_per_table on _cdc.reconciliation_jobs (keyspace, table_name)
    where status in ('QUEUED', 'RUNNING');
create index reconciliation_jobs_created_at on _cdc.reconciliation_jobs (created_at);
create index reconciliation_jobs_table on _cdc.reconciliation_jobs (keyspace, table_name, created_at);
comment on table _cdc.reconciliation_jobs is 'Comparisons of a table in Cassandra with PostgreSQL: asked for, running, done. At most one of a table waits or runs.';
comment on column _cdc.reconciliation_jobs.keyspace is 'Keyspace in Cassandra.';
comment on column _cdc.reconciliation_jobs.table_name is 'Table in Cassandra.';
comment on column _cdc.reconciliation_jobs.status is 'COMPLETED once all tokens were read; FAILED says why in errors.';
comment on column _cdc.reconciliation_jobs.worker is 'The process that runs it, or ran it last.';
comment on column _cdc.reconciliation_jobs.lease_until is 'The worker renews this; a running job whose lease has ended was interrupted.';
comment on column _cdc.reconciliation_jobs.drift_rows is 'Rows proven wrong.';
comment on column _cdc.reconciliation_jobs.drift_percentage is 'Rows proven wrong among those compared.';
comment on column _cdc.reconciliation_jobs.unproven_rows is 'Rows that could be proven neither right nor wrong.';
comment on column _cdc.reconciliation_jobs.in_motion is 'Rows that never stood still, and whose newest version had always arrived.';
comment on column _cdc.reconciliation_jobs.classes is 'Findings by class.';
comment on column _cdc.reconciliation_jobs.coverage is 'Share of the tokens that was read, 0 to 1.';
comment on column _cdc.reconciliation_jobs.gaps is 'Tokens that were not read, and why.';

create table _cdc.reconciliation_mismatches (
    mismatch_id uuid primary key,
    keyspace text not null,
    table_name text not null,
    key_sha256 text not null,
    is_static boolean not null,
    token bigint not null,
    primary_key jsonb,
    class text not null,
    mismatch_type text not null generated always as (case class when 'MISSING_IN_POSTGRES' then 'MISSING_IN_POSTGRES'
        when 'EXTRA' then 'MISSING_IN_CASSANDRA' else 'DATA_MISMATCH' end) stored,
    cause text,
    columns jsonb not null,
    cassandra_written_at bigint,
    postgres_written_at bigint,
    read_at_all boolean not null,
    barriers int not null,
    job_id uuid not null references _cdc.reconciliation_jobs,
    detected_at timestamptz not null default now(),
    last_seen_at timestamptz not null default now(),
    times_seen int not null default 1,
    reopened int not null default 0,
    resolution_status text not null default 'PENDING'
        check (resolution_status in ('PENDING', 'AUTO_RESOLVED', 'MANUAL_RESOLVED', 'IGNORED')),
    resolution_notes text,
    resolved_at timestamptz,
    resolved_by text,
    previous_resolution jsonb,
    unique (keyspace, table_name, key_sha256, is_static)
);
create index reconciliation_mismatches_status on _cdc.reconciliation_mismatches (resolution_status, detected_at);
comment on table _cdc.reconciliation_mismatches is 'Rows proven wrong, each once for all jobs: found again after it was resolved, it is pending again.';
comment on column _cdc.reconciliation_mismatches.key_sha256 is 'SHA-256 of the row''s key as Cassandra serialises it.';
comment on column _cdc.reconciliation_mismatches.primary_key is 'The key itself, where reconciler.show_keys is set.';
comment on column _cdc.reconciliation_mismatches.columns is 'Columns of the target that differ; empty if the row is missing or extra.';
comment on column _cdc.reconciliation_mismatches.cassandra_written_at is 'Newest write time Cassandra tells, microseconds since 1970.';
comment on column _cdc.reconciliation_mismatches.postgres_written_at is 'Newest write time PostgreSQL knows, deletions included.';
comment on column _cdc.reconciliation_mismatches.job_id is 'The job that saw it last.';
comment on column _cdc.reconciliation_mismatches.resolution_status is 'AUTO_RESOLVED: a later job has proven the row right. IGNORED stays so when it is found again.';
comment on column _cdc.reconciliation_mismatches.resolved_by is 'A person, or the job that proved it.';
comment on column _cdc.reconciliation_mismatches.previous_resolution is 'How it had been resolved before it was found again.';

create table _cdc.reconciliation_sightings (
    job_id uuid not null references _cdc.reconciliation_jobs,
    mismatch_id uuid not null references _cdc.reconciliation_mismatches,
    primary key (job_id, mismatch_id)
);
comment on table _cdc.reconciliation_sightings is 'Which job saw which mismatch.';

create table _cdc.dlq_replays (
    replay_id uuid primary key,
    retry_strategy text not null check (retry_strategy in ('immediate', 'scheduled', 'rate_limited', 'batch')),
    not_before timestamptz not null default now(),
    dry_run boolean not null,
    letters uuid[] not null,
    notes text,
    status text not null default 'queued'
        check (status in ('queued', 'in_progress', 'completed', 'partially_completed', 'failed')),
    done int not null default 0,
    applied int not null default 0,
    superseded int not null default 0,
    refused int not null default 0,
    settled int not null default 0,
    error text,
    created_at timestamptz not null default now(),
    completed_at timestamptz,
    worker uuid,
    lease_until timestamptz
);
create index dlq_replays_open on _cdc.dlq_replays (not_before) where status in ('queued', 'in_progress');
comment on table _cdc.dlq_replays is 'Replays of dead letters that were asked for over the API.';
comment on column _cdc.dlq_replays.letters is 'What matched when it was asked for, oldest first.';
comment on column _cdc.dlq_replays.done is 'So many of the letters are done; a replay that was interrupted goes on there.';
comment on column _cdc.dlq_replays.settled is 'Letters that were no longer unresolved.';
comment on column _cdc.dlq_replays.error is 'Why it could not go on, at the last attempt.';

create table _cdc.audit_log (
    seq bigint primary key,
    at timestamptz not null,
    actor text not null,
    action text not null,
    subject text not null,
    detail jsonb not null,
    hash bytea not null
);
comment on table _cdc.audit_log is 'What was asked for over the API and what came of it; _cdc.audit_breaks() tells whether any entry was changed or removed.';
comment on column _cdc.audit_log.hash is 'SHA-256 of the previous entry''s hash and this entry.';

create function _cdc.audit_hash(previous bytea, entry _cdc.audit_log) returns bytea language sql stable as $$
    select sha256(coalesce(previous, '') || convert_to(jsonb_build_array(entry.seq, extract(epoch from entry.at),
        entry.actor, entry.action, entry.subject, entry.detail)::text, 'UTF8'))
$$;
comment on function _cdc.audit_hash is 'What the hash of an entry must be.';

-- The lock makes a chain of what several transactions add.
create function _cdc.audit(actor text, action text, subject text, detail jsonb) returns void language plpgsql as $$
declare
    previous _cdc.audit_log;
    entry _cdc.audit_log;
begin
    perform pg_advisory_xact_lock(212664321, 1);
    select * into previous from _cdc.audit_log order by seq desc limit 1;
    entry := (coalesce(previous.seq, 0) + 1, clock_timestamp(), actor, action, subject, detail, '');
    entry.hash := _cdc.audit_hash(previous.hash, entry);
    insert into _cdc.audit_log select entry.*;
end
$$;
comment on function _cdc.audit is 'Adds an entry to the audit log.';

create function _cdc.audit_breaks() returns setof bigint language sql stable as $$
    select seq from (
        select entry.seq, entry.hash <> _cdc.audit_hash(lag(entry.hash) over (order by entry.seq), entry)
            or entry.seq <> row_number() over (order by entry.seq) as broken
        from _cdc.audit_log as entry
    ) as entries where broken order by seq
$$;
comment on function _cdc.audit_breaks is 'Entries of the audit log that do not follow from the ones before them: none, unless someone has changed it.';
