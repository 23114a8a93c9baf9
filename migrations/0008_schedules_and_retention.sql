-- Samples and ranges of time as jobs, schedules by cron expression, numbers that outlive the jobs they are of, and what it takes to
-- forget old jobs and old entries of the audit log.

alter table _cdc.reconciliation_jobs
    add column sample jsonb,
    add column schedule text,
    add column scheduled_for timestamptz;
comment on column _cdc.reconciliation_jobs.sample is 'Of a SAMPLE: what was drawn so far, and what it says of all.';
comment on column _cdc.reconciliation_jobs.schedule is 'The cron expression that asked for it; NULL of those by reconciler.every, and of others.';
comment on column _cdc.reconciliation_jobs.scheduled_for is 'The time of that expression, jitter included.';
create index reconciliation_jobs_scheduled on _cdc.reconciliation_jobs (keyspace, table_name, schedule, scheduled_for)
    where schedule is not null;
create index reconciliation_jobs_mismatch on _cdc.reconciliation_jobs (mismatch_id) where mismatch_id is not null;
create index reconciliation_jobs_completed_at on _cdc.reconciliation_jobs (completed_at);

alter table _cdc.reconciliation_mismatches
    add column cassandra_checksum text,
    add column postgres_checksum text;
comment on column _cdc.reconciliation_mismatches.cassandra_checksum is 'SHA-256 of key and hashes of the columns as PostgreSQL should show them; NULL if Cassandra has no such row, or PostgreSQL cannot hold it.';
comment on column _cdc.reconciliation_mismatches.postgres_checksum is 'The same of what PostgreSQL shows; NULL if that has no such row.';
create index reconciliation_mismatches_job on _cdc.reconciliation_mismatches (job_id);
create index reconciliation_sightings_mismatch on _cdc.reconciliation_sightings (mismatch_id);

-- A sighting is nothing without the job and the mismatch, and a repair remains one without the mismatch.
alter table _cdc.reconciliation_sightings
    drop constraint reconciliation_sightings_job_id_fkey,
    drop constraint reconciliation_sightings_mismatch_id_fkey,
    add foreign key (job_id) references _cdc.reconciliation_jobs on delete cascade,
    add foreign key (mismatch_id) references _cdc.reconciliation_mismatches on delete cascade;
alter table _cdc.reconciliation_jobs
    drop constraint reconciliation_jobs_mismatch_id_fkey,
    add foreign key (mismatch_id) references _cdc.reconciliation_mismatches on delete set null;

create function _cdc.is_whole(job _cdc.reconciliation_jobs) returns boolean language sql immutable as $$
    select coalesce(job.coverage = 1 and job.job_type <> 'REPAIR' and job.strategy not in ('SAMPLE', 'TIMESTAMP_RANGE')
        and job.range_start = -9223372036854775808 and job.range_end = 9223372036854775807, false)
$$;
comment on function _cdc.is_whole is 'Whether a job has read all rows of its table.';

create function _cdc.reconciliation_risk(of_keyspace text, of_table text) returns double precision language sql stable as $$
    select case when exists (select from _cdc.reconciliation_mismatches as known
            where known.keyspace = of_keyspace and known.table_name = of_table and resolution_status = 'PENDING')
            or exists (select from _cdc.dlq where dlq.table_name = of_keyspace || '.' || of_table and status = 'unresolved')
            then 3e12 else 0 end
        + case when exists (select from _cdc.reconciliation_mismatches as known
            where known.keyspace = of_keyspace and known.table_name = of_table and evidence ->> 'how' = 'REPAIRED'
                and resolved_at > now() - interval '1 day') then 2e12 else 0 end
        + coalesce((select case when coverage < 1 or unproven_rows > 0 or status = 'FAILED' then 1e12 else 0 end
            from _cdc.reconciliation_jobs as last where last.keyspace = of_keyspace and last.table_name = of_table
                and job_type <> 'REPAIR' and completed_at is not null order by created_at desc limit 1), 0)
        + coalesce(extract(epoch from now() - (select max(started_at) from _cdc.reconciliation_jobs as proof
            where proof.keyspace = of_keyspace and proof.table_name = of_table and _cdc.is_whole(proof))), 1e11)
$$;
comment on function _cdc.reconciliation_risk is 'Which table to compare first, the greatest: with pending mismatches or dead letters; repaired within a day; not wholly proven by the last job, as when a node was away; never proven; proven longest ago.';
comment on column _cdc.reconciliation_jobs.risk is 'Among scheduled jobs that wait, the greatest goes first: see _cdc.reconciliation_risk.';

create function _cdc.reconciliation_rest(of_keyspace text, of_table text, of_strategy text) returns bigint language sql stable as $$
    select coalesce((select case when status = 'COMPLETED' and strategy = of_strategy and gaps -> -1 ->> 'why' = 'TIME_BOX'
                and of_strategy not in ('SAMPLE', 'TIMESTAMP_RANGE') then (gaps -> -1 ->> 'start')::bigint end
            from _cdc.reconciliation_jobs as last where last.keyspace = of_keyspace and last.table_name = of_table
                and job_type = 'SCHEDULED' order by created_at desc limit 1), -9223372036854775808)
$$;
comment on function _cdc.reconciliation_rest is 'Where a scheduled job of a table begins: where the one before ran out of time.';

create function _cdc.reconciliation_due(of_keyspace text, of_table text, of_strategy text, every bigint) returns timestamptz language sql stable as $$
    select max(created_at + make_interval(secs => case status when 'FAILED' then least(every, 600) else every end))
    from _cdc.reconciliation_jobs as job where job.keyspace = of_keyspace and job.table_name = of_table
        and ((job_type = 'SCHEDULED' and schedule is null) or (strategy = of_strategy and _cdc.is_whole(job)))
$$;
comment on function _cdc.reconciliation_due is 'When a table is to be compared by reconciler.every; NULL if it never was.';

-- Counters must not go back when old jobs are forgotten.
create table _cdc.reconciliation_totals (
    keyspace text not null,
    table_name text not null,
    kind text not null check (kind in ('status', 'type', 'le', 'seconds')),
    label text not null,
    value double precision not null,
    primary key (keyspace, table_name, kind, label)
);
comment on table _cdc.reconciliation_totals is 'Of all jobs of a table that have ended, also those that are forgotten.';
comment on column _cdc.reconciliation_totals.kind is 'status: jobs by how they ended. type: mismatches they saw, by type. le: jobs that took so many seconds or fewer. seconds: how long they took in all.';

create function _cdc.count_job(job _cdc.reconciliation_jobs) returns void language sql as $$
    insert into _cdc.reconciliation_totals as total
    select job.keyspace, job.table_name, kind, label, sum(value) from (
        select 'status' as kind, job.status as label, 1::double precision as value
        union all
        select 'type', case class when 'MISSING_IN_POSTGRES' then class when 'EXTRA' then 'MISSING_IN_CASSANDRA'
            else 'DATA_MISMATCH' end, findings::double precision
        from jsonb_each_text(coalesce(job.classes, '{}')) as found (class, findings) where class <> 'UNPROVEN'
        union all
        select 'le', case bound when 'Infinity' then '+Inf' else bound::text end, (took <= bound)::int
        from (select extract(epoch from job.completed_at - job.started_at)::double precision as took) as duration,
            unnest(array[1, 5, 15, 60, 300, 900, 3600, 14400, 86400, 'Infinity']::double precision[]) as bound
        where took is not null
        union all
        select 'seconds', 'sum', extract(epoch from job.completed_at - job.started_at)::double precision
        where job.completed_at - job.started_at is not null
    ) as counts group by kind, label order by kind, label
    on conflict (keyspace, table_name, kind, label) do update set value = total.value + excluded.value
$$;
comment on function _cdc.count_job(_cdc.reconciliation_jobs) is 'Adds a job that has ended to the totals.';

create function _cdc.count_job() returns trigger language plpgsql as $$
begin
    if new.status in ('COMPLETED', 'FAILED', 'CANCELLED')
        and (tg_op = 'INSERT' or old.status not in ('COMPLETED', 'FAILED', 'CANCELLED')) then
        perform _cdc.count_job(new);
    end if;
    return null;
end
$$;
comment on function _cdc.count_job() is 'Adds a job to the totals when it ends.';
do $$
begin
    perform _cdc.count_job(job) from _cdc.reconciliation_jobs as job where status in ('COMPLETED', 'FAILED', 'CANCELLED');
end
$$;
create trigger count_job after insert or update on _cdc.reconciliation_jobs for each row execute function _cdc.count_job();

create function _cdc.prune_jobs(older_than interval, at_most int) returns bigint language sql as $$
    with gone as (
        delete from _cdc.reconciliation_jobs where job_id in (
            select job_id from _cdc.reconciliation_jobs as job
            where completed_at < now() - older_than and status in ('COMPLETED', 'FAILED', 'CANCELLED')
                and not exists (select from _cdc.reconciliation_mismatches as mismatch where mismatch.job_id = job.job_id)
                and job_id not in (
                    select distinct on (keyspace, table_name) job_id from _cdc.reconciliation_jobs as proof
                    where _cdc.is_whole(proof) order by keyspace, table_name, completed_at desc)
                and job_id not in (
                    select distinct on (keyspace, table_name) job_id from _cdc.reconciliation_jobs
                    where coverage is not null and job_type <> 'REPAIR' order by keyspace, table_name, completed_at desc)
                and job_id not in (
                    select distinct on (keyspace, table_name, schedule) job_id from _cdc.reconciliation_jobs
                    where job_type = 'SCHEDULED' order by keyspace, table_name, schedule, created_at desc)
            order by completed_at limit at_most)
        returning job_id)
    select count(*) from gone
$$;
comment on function _cdc.prune_jobs is 'Forgets jobs that ended so long ago, but for those that saw a mismatch last that is still known, that are the newest proof of a table, or that the schedule goes by.';

create table _cdc.audit_anchor (
    id boolean primary key default true check (id),
    seq bigint not null,
    hash bytea not null
);
comment on table _cdc.audit_anchor is 'The last entry of the audit log that was pruned; an entry of the log says the same.';

-- Entries leave the log in order, and at least a day of them at once: each time adds one.
create function _cdc.prune_audit(older_than interval, at_most int) returns bigint language plpgsql as $$
declare
    oldest _cdc.audit_log;
    last _cdc.audit_log;
begin
    perform pg_advisory_xact_lock(212664321, 1);
    select * into oldest from _cdc.audit_log order by seq limit 1;
    if oldest.at is null or oldest.at >= now() - older_than - interval '1 day' then
        return 0;
    end if;
    select * into last from _cdc.audit_log as entry
    where seq < oldest.seq + at_most
        and seq < coalesce((select min(kept.seq) from _cdc.audit_log as kept where at >= now() - older_than), entry.seq + 1)
    order by seq desc limit 1;
    delete from _cdc.audit_log where seq <= last.seq;
    insert into _cdc.audit_anchor (seq, hash) values (last.seq, last.hash)
    on conflict (id) do update set seq = excluded.seq, hash = excluded.hash;
    perform _cdc.audit('reconciler', 'prune', 'audit log',
        jsonb_build_object('from', oldest.seq, 'through', last.seq, 'hash', encode(last.hash, 'hex')));
    return last.seq - oldest.seq + 1;
end
$$;
comment on function _cdc.prune_audit is 'Removes the oldest entries of the audit log, those older than so much; the rest stays verifiable.';

create or replace function _cdc.audit(actor text, action text, subject text, detail jsonb) returns void language plpgsql as $$
declare
    previous_seq bigint;
    previous_hash bytea;
    entry _cdc.audit_log;
begin
    perform pg_advisory_xact_lock(212664321, 1);
    select seq, hash into previous_seq, previous_hash from (
        select seq, hash from _cdc.audit_log union all select seq, hash from _cdc.audit_anchor) as known
    order by seq desc limit 1;
    entry := (coalesce(previous_seq, 0) + 1, clock_timestamp(), actor, action, subject, detail, '');
    entry.hash := _cdc.audit_hash(previous_hash, entry);
    insert into _cdc.audit_log select entry.*;
end
$$;

create or replace function _cdc.audit_breaks() returns setof bigint language sql stable as $$
    select seq from (
        select entry.seq, entry.hash <> _cdc.audit_hash(coalesce(lag(entry.hash) over (order by entry.seq), anchor.hash), entry)
            or entry.seq <> coalesce(lag(entry.seq) over (order by entry.seq), anchor.seq, 0) + 1 as broken
        from _cdc.audit_log as entry left join _cdc.audit_anchor as anchor on true
        union all
        select anchor.seq, not exists (select from _cdc.audit_log where action = 'prune' and subject = 'audit log'
            and detail ->> 'through' = anchor.seq::text and detail ->> 'hash' = encode(anchor.hash, 'hex'))
        from _cdc.audit_anchor as anchor
    ) as entries where broken order by seq
$$;
comment on function _cdc.audit_breaks is 'Entries of the audit log that do not follow from the ones before them: none, unless someone has changed it. The number of the last pruned entry, if the log does not say that it was pruned.';
