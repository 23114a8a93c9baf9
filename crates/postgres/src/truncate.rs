//! `TRUNCATE`: all that is known of a table is forgotten, and what was captured before it is not applied any more.
//!
//! # Why nothing is lost and nothing comes back
//!
//! Cassandra decides by place: on each node, writes that stand in its log at or before the place of the truncation are
//! gone, future write times or not; later ones stay, old write times or not. What is stored of a row has no places, and
//! mixes writes of several nodes. So it cannot be sorted out afterwards: everything goes, and what should have stayed
//! comes again. This is what the agents guarantee (`cdc_source`, module `truncation`):
//!
//! 1. An agent's truncation says of *every* node how far its writes are gone.
//! 2. Behind its truncation an agent sends again what it captured of the table between its node's place and the record of
//!    the truncation in its log; of a Kafka topic, in the partition where it was sent before.
//!
//! The target keeps the places, by the later one of each node (`_cdc.truncations`). A truncation that adds nothing to them
//! changes nothing; one that does empties the table. From then on:
//!
//! - A write that is gone is dropped before it is merged ([`crate::batch::fold`]), because its node's place is known, from
//!   whatever agent it was heard first, however late the write comes, and how often.
//! - A write that stays was either applied before the table was emptied or it is not affected. If it was, the truncation of
//!   its own agent had not been applied (it would have said the same of all nodes, so that nothing could have emptied
//!   the table thereafter), so it is still to come on the same way, and by 2. the write again behind it. Dead letters are
//!   no different from rows in this.
//!
//! # Why no writer gets in between
//!
//! Emptying takes all of the table's buckets exclusively and raises its generation (see [`crate::prepare`]). A transaction
//! that was arranged before finds another generation under its locks, and fails. Its units cannot be mended: a unit is what
//! several changes of one key come to, perhaps one that is gone with one that stays. So such a writer gets
//! [`TargetError::Overtaken`] and folds the changes themselves again, with the new places. A replay of dead letters
//! reads the letter again, too.
//!
//! Claims do not matter here: a truncation is true whoever tells it, and a process that lost its stream tells nothing that the
//! next owner would not.

use cdc_model::{NodeId, SegmentId, SegmentPosition, TableId, TruncatedAt};
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use crate::{
    TargetError,
    error::{Fault, FaultKind},
    layout::Layout,
    prepare::{lock_all, lock_preparing},
};

const READ: &str =
    "-- cdc: truncations\nselect node, segment, segment_offset from _cdc.truncations where table_id = $1";
const GENERATION: &str = "-- cdc: raise the generation\nupdate _cdc.tables set generation = generation + 1 \
    where table_id = $1 and generation = $2";
const NOTE: &str = "-- cdc: note a truncation\ninsert into _cdc.truncations as t (table_id, node, segment, segment_offset) \
    select $1::uuid, * from unnest($2::uuid[], $3::bigint[], $4::bigint[]) \
    on conflict (table_id, node) do update set segment = excluded.segment, segment_offset = excluded.segment_offset, \
    truncated_at = excluded.truncated_at where (excluded.segment, excluded.segment_offset) > (t.segment, t.segment_offset)";
const FORGET_REMAINS: &str = "-- cdc: forget remains\ndelete from _cdc.remains where table_id = $1";
const FORGET_TOMBSTONES: &str = "-- cdc: forget tombstones\ndelete from _cdc.tombstones where table_id = $1";
/// Not discarded: a letter that comes again after the truncation is unresolved again.
const SUPERSEDE_LETTERS: &str = "-- cdc: truncated dead letters\nupdate _cdc.dlq set status = 'resolved', \
    resolution = 'superseded: the table was truncated', resolved_at = now(), \
    history = (case when jsonb_array_length(history) < 20 then history else history - 0 end) || jsonb_build_array(\
    jsonb_build_object('at', now(), 'error_type', error_type, 'code', 'TRUNCATED', \
    'message', 'superseded: the table was truncated')) \
    where table_id = $1 and status = 'unresolved' and state is not null";

/// Up to where a table's writes are gone.
pub(crate) async fn truncated_at(client: &impl GenericClient, table: TableId) -> Result<TruncatedAt, TargetError> {
    let rows = client.query(READ, &[&table.0]).await.map_err(failed)?;
    let position = |row: &tokio_postgres::Row| {
        let (segment, offset) = (row.get::<_, i64>(1).cast_unsigned(), row.get::<_, i64>(2).cast_unsigned());
        (NodeId(row.get(0)), SegmentPosition { segment: SegmentId(segment), offset })
    };
    Ok(rows.iter().map(position).collect())
}

/// Empties the targets of a table; `false` if they are laid out otherwise by now, and nothing was done.
///
/// With PostgreSQL's own `TRUNCATE`: it takes no longer for more rows, while deleting them would stop the table's writers
/// for minutes and leave as much to vacuum. It waits for those who read the table, and they for it.
pub(crate) async fn truncate(client: &mut Client, layout: &Layout, at: &TruncatedAt) -> Result<bool, TargetError> {
    let table = layout.schema.id;
    let transaction = client.transaction().await.map_err(failed)?;
    lock_preparing(&transaction).await?;
    lock_all(&transaction, table).await?;
    if transaction.execute(GENERATION, &[&table.0, &layout.generation]).await.map_err(failed)? == 0 {
        return Ok(false);
    }
    let relations: Vec<&str> =
        std::iter::once(&layout.rows).chain(&layout.statics).map(|relation| relation.name.as_str()).collect();
    transaction
        .batch_execute(&format!("truncate {}", relations.join(", ")))
        .await
        .map_err(|error| refused(layout, error))?;
    for forget in [FORGET_REMAINS, FORGET_TOMBSTONES, SUPERSEDE_LETTERS] {
        transaction.execute(forget, &[&table.0]).await.map_err(failed)?;
    }
    let nodes: Vec<Uuid> = at.iter().map(|(node, _)| node.0).collect();
    let segments: Vec<i64> = at.iter().map(|(_, position)| position.segment.0.cast_signed()).collect();
    let offsets: Vec<i64> = at.iter().map(|(_, position)| position.offset.cast_signed()).collect();
    transaction.execute(NOTE, &[&table.0, &nodes, &segments, &offsets]).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(true)
}

fn refused(layout: &Layout, error: tokio_postgres::Error) -> TargetError {
    match Fault::from(error) {
        // Not a stale plan here.
        fault if fault.kind == FaultKind::Plan => TargetError::Layout {
            table: layout.schema.full_name(),
            problem: format!("truncating {} fails: {fault}", layout.rows.name),
            fix: "drop the foreign keys that refer to it".to_owned(),
        },
        fault => TargetError::Database { doing: "truncate target tables", fault },
    }
}

fn failed(error: tokio_postgres::Error) -> TargetError {
    TargetError::Database { doing: "truncate target tables", fault: Fault::from(error) }
}
