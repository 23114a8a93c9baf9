-- Bookkeeping of the pipeline beside the target tables. The schema itself is created by the connecting process,
-- which also takes the lock that keeps two of them apart.

comment on schema _cdc is 'Bookkeeping of the change data capture pipeline; written by it alone.';

create table _cdc.streams (
    name text primary key,
    epoch bigint not null,
    position text,
    owner text not null,
    updated_at timestamptz not null default now()
) with (fillfactor = 50);
comment on table _cdc.streams is 'Streams of changes: who may write them and how far each has come.';
comment on column _cdc.streams.name is 'node:<host id> when an agent writes directly, kafka:<topic>:<partition> behind Kafka.';
comment on column _cdc.streams.epoch is 'Grows with every claim; a writer with an older one is refused.';
comment on column _cdc.streams.position is 'Everything up to here is in the target tables; NULL until something is.';
comment on column _cdc.streams.owner is 'Process of the last claim, for people.';
comment on column _cdc.streams.updated_at is 'When it was claimed or the position last moved.';

create table _cdc.tables (
    table_id uuid primary key,
    keyspace text not null,
    name text not null,
    target text not null unique,
    gc_grace_seconds bigint not null,
    prepared_at timestamptz not null default now()
);
comment on table _cdc.tables is 'Captured tables and where they are written.';
comment on column _cdc.tables.table_id is 'Id in Cassandra; a re-created table has a new one.';
comment on column _cdc.tables.keyspace is 'Keyspace in Cassandra.';
comment on column _cdc.tables.name is 'Table in Cassandra.';
comment on column _cdc.tables.target is 'Qualified and quoted name of the target table.';
comment on column _cdc.tables.gc_grace_seconds is 'How long Cassandra keeps the table''s tombstones, in seconds.';
comment on column _cdc.tables.prepared_at is 'When the target table was last created or altered.';

create table _cdc.remains (
    table_id uuid not null,
    partition_key bytea not null,
    clustering bytea not null,
    state bytea not null,
    primary key (table_id, partition_key, clustering)
) with (fillfactor = 80);
comment on table _cdc.remains is 'What is known of rows that are not live: deletions and expired cells with their times. A row is here or in its target table, never in both.';
comment on column _cdc.remains.table_id is 'The row''s table.';
comment on column _cdc.remains.partition_key is 'As Cassandra serialises it.';
comment on column _cdc.remains.clustering is 'Clustering values, each as int32 length and bytes; the one byte ff for the static row.';
comment on column _cdc.remains.state is 'Row state, encoding of crate cdc-model.';

create table _cdc.tombstones (
    table_id uuid not null,
    partition_key bytea not null,
    state bytea not null,
    primary key (table_id, partition_key)
) with (fillfactor = 80);
comment on table _cdc.tombstones is 'Deletions of partitions and of clustering ranges.';
comment on column _cdc.tombstones.table_id is 'The partition''s table.';
comment on column _cdc.tombstones.partition_key is 'As Cassandra serialises it.';
comment on column _cdc.tombstones.state is 'Partition tombstones, encoding of crate cdc-model.';

create table _cdc.quarantine (
    id uuid primary key,
    at timestamptz not null default now(),
    table_id uuid not null,
    table_name text not null,
    column_name text,
    node uuid not null,
    position text not null,
    code text not null,
    message text not null,
    partition_key bytea not null,
    clustering bytea,
    state bytea not null
);
create index quarantine_at on _cdc.quarantine (at);
comment on table _cdc.quarantine is 'Changes that could not be applied, complete, to be replayed later.';
comment on column _cdc.quarantine.id is 'Digest of the change, so that a redelivered one is kept once.';
comment on column _cdc.quarantine.at is 'When it was first refused.';
comment on column _cdc.quarantine.table_id is 'Id in Cassandra.';
comment on column _cdc.quarantine.table_name is 'keyspace.table in Cassandra.';
comment on column _cdc.quarantine.column_name is 'The column at fault, where one is known.';
comment on column _cdc.quarantine.node is 'Host id of the node that logged the newest write of the change.';
comment on column _cdc.quarantine.position is 'Where in that node''s commit log, as segment:offset.';
comment on column _cdc.quarantine.code is 'VALUE_UNREPRESENTABLE, KEY_UNREPRESENTABLE, KEY_COLLISION, or SQLSTATE_<code>.';
comment on column _cdc.quarantine.message is 'What is wrong, without values.';
comment on column _cdc.quarantine.partition_key is 'As Cassandra serialises it.';
comment on column _cdc.quarantine.clustering is 'As in remains; NULL if the change deletes a partition or a range.';
comment on column _cdc.quarantine.state is 'Row state or, where clustering is NULL, partition tombstones; encoding of crate cdc-model.';

-- Ends the transaction if a guarded write touched other than the expected rows: the statements after it, the commit
-- included, were sent without waiting for its answer.
create function _cdc.require(actual bigint, expected bigint) returns void language plpgsql as $$
begin
    if actual <> expected then
        raise exception 'a row changed between reading and writing it' using errcode = 'CD001';
    end if;
end
$$;
comment on function _cdc.require is 'Raises CD001 if the numbers differ.';

-- Takes transaction locks in the order given.
create function _cdc.lock(classes int[], keys int[], exclusive bool[]) returns void language plpgsql as $$
begin
    for i in 1 .. coalesce(array_length(classes, 1), 0) loop
        if exclusive[i] then
            perform pg_advisory_xact_lock(classes[i], keys[i]);
        else
            perform pg_advisory_xact_lock_shared(classes[i], keys[i]);
        end if;
    end loop;
end
$$;
comment on function _cdc.lock is 'Advisory locks until the end of the transaction, shared or exclusive.';
