-- TRUNCATE, which removes by places in the nodes' logs and not by write times.

create table _cdc.truncations (
    table_id uuid not null,
    node uuid not null,
    segment bigint not null,
    segment_offset bigint not null,
    truncated_at timestamptz not null default now(),
    primary key (table_id, node)
);
comment on table _cdc.truncations is 'Up to where in each node''s log the writes to a table are gone: what was captured at or before it is not applied any more.';
comment on column _cdc.truncations.table_id is 'Id in Cassandra; a re-created table has a new one.';
comment on column _cdc.truncations.node is 'Host id of the node.';
comment on column _cdc.truncations.segment is 'Number of the commit-log segment.';
comment on column _cdc.truncations.segment_offset is 'Offset within the segment, bytes.';
comment on column _cdc.truncations.truncated_at is 'When the target was emptied for it.';
comment on column _cdc.tables.generation is 'Grows whenever the schema or the target changes, or the table is truncated; a writer that knows another one looks again.';
