-- What is known of a captured table by all its writers together.

alter table _cdc.tables
    add column newest_schema text,
    add column generation bigint not null default 0;
comment on column _cdc.tables.newest_schema is 'The table''s schema in Cassandra as far as any writer has seen it, as JSON.';
comment on column _cdc.tables.generation is 'Grows whenever the schema or the target changes; a writer that knows another one looks again.';
