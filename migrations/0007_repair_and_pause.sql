-- Jobs are done in parts that are kept, so that they can be paused, and gone on with after a crash; they may repair what they
-- find. Answers to requests with an Idempotency-Key are kept for a day.

alter table _cdc.reconciliation_jobs
    drop constraint reconciliation_jobs_job_type_check,
    add constraint reconciliation_jobs_job_type_check check (job_type in ('MANUAL_ONDEMAND', 'SCHEDULED', 'REPAIR')),
    drop constraint reconciliation_jobs_strategy_check,
    add constraint reconciliation_jobs_strategy_check
        check (strategy in ('CHECKSUM', 'VERSION', 'ROW_COUNT', 'SAMPLE', 'TIMESTAMP_RANGE')),
    drop constraint reconciliation_jobs_status_check,
    add constraint reconciliation_jobs_status_check
        check (status in ('QUEUED', 'RUNNING', 'PAUSED', 'COMPLETED', 'FAILED', 'CANCELLED')),
    add column options jsonb not null default '{}',
    add column range_start bigint not null default -9223372036854775808,
    add column range_end bigint not null default 9223372036854775807,
    add column ranges_done int not null default 0 check (ranges_done between 0 and 64),
    add column worked_seconds double precision not null default 0,
    add column progress jsonb,
    add column repairs jsonb,
    add column interruptions int not null default 0,
    add column pause_requested boolean not null default false,
    add column risk double precision not null default 0,
    add column mismatch_id uuid references _cdc.reconciliation_mismatches;
comment on column _cdc.reconciliation_jobs.job_type is 'REPAIR: of a single mismatch, at somebody''s wish.';
comment on column _cdc.reconciliation_jobs.status is 'COMPLETED once all tokens were read, or its time was up; FAILED says why in errors. PAUSED goes on when it is resumed.';
comment on column _cdc.reconciliation_jobs.options is 'What was asked for beyond the strategy: what may be repaired, how long it may take.';
comment on column _cdc.reconciliation_jobs.range_start is 'Only tokens after this.';
comment on column _cdc.reconciliation_jobs.range_end is 'Only tokens up to this.';
comment on column _cdc.reconciliation_jobs.ranges_done is 'Of 64 equal parts of the range, the first so many are compared, and what was found in them is counted; whoever takes the job up goes on there.';
comment on column _cdc.reconciliation_jobs.worked_seconds is 'Time spent on the parts that are done.';
comment on column _cdc.reconciliation_jobs.progress is 'Of the part that is being compared, as its worker last said.';
comment on column _cdc.reconciliation_jobs.repairs is 'What was repaired, if anything was to be.';
comment on column _cdc.reconciliation_jobs.interruptions is 'How many processes have died in the part that is next; the third time the job fails.';
comment on column _cdc.reconciliation_jobs.pause_requested is 'The worker stops soon.';
comment on column _cdc.reconciliation_jobs.risk is 'Among scheduled jobs that wait, the greatest goes first: tables where something is known to be wrong, then those whose proof is oldest.';
comment on column _cdc.reconciliation_jobs.mismatch_id is 'The mismatch a REPAIR is about.';

drop index _cdc.reconciliation_jobs_one_per_table;
create unique index reconciliation_jobs_one_per_table on _cdc.reconciliation_jobs (keyspace, table_name)
    where status in ('QUEUED', 'RUNNING', 'PAUSED') and job_type <> 'REPAIR';
create unique index reconciliation_jobs_one_per_mismatch on _cdc.reconciliation_jobs (mismatch_id)
    where status in ('QUEUED', 'RUNNING', 'PAUSED') and job_type = 'REPAIR';
comment on table _cdc.reconciliation_jobs is 'Comparisons of a table in Cassandra with PostgreSQL: asked for, running, paused, done. At most one of a table is not done, repairs of single rows aside.';

alter table _cdc.reconciliation_mismatches add column evidence jsonb;
comment on column _cdc.reconciliation_mismatches.evidence is 'How a job has proven that the row is right: whether it was repaired, what had been wrong, barriers.';

create table _cdc.answers (
    key text primary key,
    request bytea not null,
    status int,
    body text,
    at timestamptz not null default now()
);
create index answers_at on _cdc.answers (at);
comment on table _cdc.answers is 'Answers to requests with an Idempotency-Key, for 24 hours.';
comment on column _cdc.answers.request is 'SHA-256 of path and body.';
comment on column _cdc.answers.status is 'HTTP status; NULL while the request is being answered.';

create index audit_log_subject on _cdc.audit_log (subject, seq);
