-- The quarantine becomes the dead letters: error types, attempts, the Kafka record behind a letter, and what became
-- of it. Records that could not even be decoded are kept here, too.

alter table _cdc.quarantine rename to dlq;
alter index _cdc.quarantine_pkey rename to dlq_pkey;
alter index _cdc.quarantine_at rename to dlq_first_failed_at;
alter table _cdc.dlq rename column at to first_failed_at;
alter table _cdc.dlq
    alter column table_id drop not null,
    alter column table_name drop not null,
    alter column node drop not null,
    alter column position drop not null,
    alter column partition_key drop not null,
    alter column state drop not null,
    add column error_type text not null default 'UNKNOWN' check (error_type in (
        'SCHEMA_MISMATCH', 'TYPE_CONVERSION', 'CONSTRAINT_VIOLATION', 'VALUE_OUT_OF_RANGE', 'DECODE_ERROR', 'UNKNOWN')),
    add column source_component text not null default 'SINK_CONNECTOR',
    add column original_topic text,
    add column original_partition int,
    add column original_offset bigint,
    add column original_timestamp_ms bigint,
    add column original_key bytea,
    add column original_value bytea,
    add column original_headers jsonb,
    add column attempts int not null default 1,
    add column last_failed_at timestamptz not null default now(),
    add column history jsonb not null default '[]',
    add column status text not null default 'unresolved' check (status in ('unresolved', 'resolved', 'discarded')),
    add column resolution text,
    add column resolved_at timestamptz,
    add column published_at timestamptz,
    add constraint dlq_is_complete check (state is not null or original_topic is not null);
update _cdc.dlq set
    last_failed_at = first_failed_at,
    error_type = case
        when code in ('KEY_UNREPRESENTABLE', 'KEY_COLLISION') or code like 'SQLSTATE_23%' then 'CONSTRAINT_VIOLATION'
        when code in ('SQLSTATE_22001', 'SQLSTATE_22003', 'SQLSTATE_22008', 'SQLSTATE_54000')
            or message like '%outside PostgreSQL''s range' then 'VALUE_OUT_OF_RANGE'
        when code in ('VALUE_UNREPRESENTABLE', 'SQLSTATE_22021', 'SQLSTATE_22P02', 'SQLSTATE_22P03', 'SQLSTATE_22P05') then 'TYPE_CONVERSION'
        else 'UNKNOWN' end;
update _cdc.dlq set history = jsonb_build_array(
    jsonb_build_object('at', first_failed_at, 'error_type', error_type, 'code', code, 'message', message));
create index dlq_unpublished on _cdc.dlq (first_failed_at) where published_at is null and original_topic is not null;

comment on table _cdc.dlq is 'Dead letters: changes that could not be applied and records that could not be decoded, complete, to be replayed; `cdc dlq` works with them.';
comment on column _cdc.dlq.id is 'Digest of the change or record, so that one that fails again is kept once.';
comment on column _cdc.dlq.first_failed_at is 'When it was first refused.';
comment on column _cdc.dlq.table_id is 'Id in Cassandra; NULL if the record does not tell.';
comment on column _cdc.dlq.table_name is 'keyspace.table in Cassandra; NULL if the record does not tell.';
comment on column _cdc.dlq.node is 'Host id of the node that logged the newest write of the change; NULL for a record.';
comment on column _cdc.dlq.position is 'Where in that node''s commit log, as segment:offset; NULL for a record.';
comment on column _cdc.dlq.code is 'What exactly, at the last attempt; docs/dlq.md lists them.';
comment on column _cdc.dlq.message is 'What is wrong, without values, at the last attempt.';
comment on column _cdc.dlq.partition_key is 'As Cassandra serialises it; NULL for a record that was not decoded.';
comment on column _cdc.dlq.clustering is 'As in remains; NULL if the change deletes a partition or a range, and for a record.';
comment on column _cdc.dlq.state is 'Row state or, where clustering is NULL, partition tombstones; encoding of crate cdc-model. NULL for a record that was not decoded.';
comment on column _cdc.dlq.error_type is 'Kind of the error at the last attempt, a closed list.';
comment on column _cdc.dlq.source_component is 'Who refused it; SINK_CONNECTOR is the applier.';
comment on column _cdc.dlq.original_topic is 'Topic of the record, of the newest one if the change was in several; NULL in direct mode.';
comment on column _cdc.dlq.original_partition is 'The record''s partition.';
comment on column _cdc.dlq.original_offset is 'The record''s offset.';
comment on column _cdc.dlq.original_timestamp_ms is 'The record''s time, milliseconds since 1970.';
comment on column _cdc.dlq.original_key is 'The record''s key; NULL if it has none.';
comment on column _cdc.dlq.original_value is 'The record''s value; NULL if it has none.';
comment on column _cdc.dlq.original_headers is 'The record''s headers in order, each an array of name and value, the value in base64 or null.';
comment on column _cdc.dlq.attempts is 'How often it was refused.';
comment on column _cdc.dlq.last_failed_at is 'When it was last refused.';
comment on column _cdc.dlq.history is 'The attempts, oldest first, the last 20 of them: at, error_type, code, message.';
comment on column _cdc.dlq.status is 'resolved once the target was seen to contain it; discarded by a person.';
comment on column _cdc.dlq.resolution is 'How it was resolved, or why it was discarded.';
comment on column _cdc.dlq.resolved_at is 'When the status left unresolved.';
comment on column _cdc.dlq.published_at is 'When topic dlq-events had it; NULL in direct mode.';
