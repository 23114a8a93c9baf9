-- Barriers: the marks that agents have met in the commit logs of their nodes.

create table _cdc.barriers (
    id uuid,
    node uuid,
    at timestamptz not null default now(),
    primary key (id, node)
);
comment on table _cdc.barriers is 'Marks of `cdc barrier` that came through in direct mode: everything the node had logged before is in the target tables.';
comment on column _cdc.barriers.id is 'The barrier''s id.';
comment on column _cdc.barriers.node is 'Host id of the Cassandra node in whose commit log the mark stood.';
comment on column _cdc.barriers.at is 'When the node''s position moved past it; forgotten after a day.';
