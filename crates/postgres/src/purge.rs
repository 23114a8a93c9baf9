//! Forgetting deletions, as Cassandra does after `gc_grace_seconds`.
//!
//! A deletion is kept so that an older write which comes late does not bring its row back. Once no such write can come
//! any more it only takes room. Purging needs no lock: what is removed or rewritten is named by the version that was
//! read, so a writer's newer version stays, and a writer whose version was purged finds out and starts over (see
//! [`crate::transact`]). A state may hold cells of a column that this process has not heard of, so nothing is read of a
//! table whose generation is another one; the next change of the table brings the layout up to date.

use bytes::Bytes;
use cdc_model::{LocalTime, StateError, ValueBytes, decode_row, decode_tombstones, encode_tombstones};
use tokio_postgres::{Row, types::Type};

use crate::{
    TargetError,
    array::{Array, Raw},
    layout::Layout,
    pool::Pool,
    session::{Call, Frame, Session},
};

/// Rows of a page; a page is held in memory.
const PAGE: u32 = 1_000;

const READ_REMAINS: &str = "-- cdc: read old remains\nselect ctid, xmin, partition_key, state, clustering from _cdc.remains \
    where table_id = $1 and (partition_key, clustering) > ($2, $3) \
    and exists (select from _cdc.tables where table_id = $1 and generation = $5) \
    order by table_id, partition_key, clustering limit $4";
const READ_TOMBSTONES: &str = "-- cdc: read old tombstones\nselect ctid, xmin, partition_key, state from _cdc.tombstones \
    where table_id = $1 and partition_key > $2 \
    and exists (select from _cdc.tables where table_id = $1 and generation = $4) \
    order by table_id, partition_key limit $3";
const PURGE_REMAINS: &str = "-- cdc: purge remains\nwith purged as (delete from _cdc.remains as t \
    using unnest($1::tid[], $2::xid[]) as k(c, x) where t.ctid = k.c and t.xmin = k.x returning 1) \
    select count(*) from purged";
const PURGE_TOMBSTONES: &str = "-- cdc: purge tombstones\nwith purged as (delete from _cdc.tombstones as t \
    using unnest($1::tid[], $2::xid[]) as k(c, x) where t.ctid = k.c and t.xmin = k.x returning 1) \
    select count(*) from purged";
const SHORTEN_TOMBSTONES: &str = "-- cdc: shorten tombstones\nwith shortened as (update _cdc.tombstones as t set state = k.s \
    from unnest($1::tid[], $2::xid[], $3::bytea[]) as k(c, x, s) where t.ctid = k.c and t.xmin = k.x returning 1) \
    select count(*) from shortened";

/// Purges what one table keeps of deletions before `second`; returns how many rows of `_cdc` were removed or shortened.
pub(crate) async fn purge(pool: &Pool, layout: &Layout, second: LocalTime) -> Result<u64, TargetError> {
    Ok(remains(pool, layout, second).await? + tombstones(pool, layout, second).await?)
}

async fn remains(pool: &Pool, layout: &Layout, second: LocalTime) -> Result<u64, TargetError> {
    let mut purged = 0;
    let mut after = (Bytes::new(), Bytes::new());
    loop {
        let (partition, clustering) = after;
        let page = Call::new(READ_REMAINS)
            .with(layout.schema.id.0)
            .with(partition.to_vec())
            .with(clustering.to_vec())
            .with(i64::from(PAGE))
            .with(layout.generation);
        let rows = run(pool, page).await?;
        let mut old = versions();
        for row in &rows {
            let state = decode_row(&layout.schema, bytes(row, 3).to_bytes()).map_err(|error| damaged(layout, error))?;
            if state.is_gone_before(second) {
                push(&mut old, row);
            }
        }
        purged += write(pool, PURGE_REMAINS, old.into()).await?;
        let Some(last) = rows.last().filter(|_| rows.len() as u64 == u64::from(PAGE)) else { return Ok(purged) };
        after = (bytes(last, 2).to_bytes(), bytes(last, 4).to_bytes());
    }
}

async fn tombstones(pool: &Pool, layout: &Layout, second: LocalTime) -> Result<u64, TargetError> {
    let mut purged = 0;
    let mut after = Bytes::new();
    loop {
        let page = Call::new(READ_TOMBSTONES)
            .with(layout.schema.id.0)
            .with(after.to_vec())
            .with(i64::from(PAGE))
            .with(layout.generation);
        let rows = run(pool, page).await?;
        let (mut old, mut shorter, mut states) = (versions(), versions(), Array::new(Type::BYTEA));
        for row in &rows {
            let stored = decode_tombstones(bytes(row, 3).to_bytes()).map_err(|error| damaged(layout, error))?;
            let kept = stored.clone().since(second);
            if kept.is_empty() {
                push(&mut old, row);
            } else if kept != stored {
                push(&mut shorter, row);
                states.push(Some(encode_tombstones(&kept)));
            }
        }
        let [ctid, xmin] = shorter;
        purged += write(pool, PURGE_TOMBSTONES, old.into()).await?;
        purged += write(pool, SHORTEN_TOMBSTONES, vec![ctid, xmin, states]).await?;
        let Some(last) = rows.last().filter(|_| rows.len() as u64 == u64::from(PAGE)) else { return Ok(purged) };
        after = bytes(last, 2).to_bytes();
    }
}

async fn run(pool: &Pool, call: Call<'_>) -> Result<Vec<Row>, TargetError> {
    let mut session = Session::acquire(pool).await?;
    match session.run(Frame::Whole, vec![call]).await {
        Ok(mut answers) => Ok(answers.remove(0)),
        Err(fault) => {
            session.abandon(&fault).await;
            Err(TargetError::Database { doing: "purge old deletions", fault })
        }
    }
}

/// Runs a statement on versions of rows, unless there are none; returns how many were still there.
async fn write(pool: &Pool, sql: &str, arrays: Vec<Array>) -> Result<u64, TargetError> {
    if arrays[0].is_empty() {
        return Ok(0);
    }
    let rows = run(pool, arrays.into_iter().fold(Call::new(sql), Call::with)).await?;
    Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs()))
}

fn versions() -> [Array; 2] {
    [Array::new(Type::TID), Array::new(Type::XID)]
}

fn push(versions: &mut [Array; 2], row: &Row) {
    for (at, array) in versions.iter_mut().enumerate() {
        array.push(Some(bytes(row, at)));
    }
}

fn bytes(row: &Row, at: usize) -> ValueBytes {
    row.get::<_, Raw>(at).0.unwrap_or_default()
}

fn damaged(layout: &Layout, error: StateError) -> TargetError {
    TargetError::State { table: layout.schema.full_name(), error }
}
