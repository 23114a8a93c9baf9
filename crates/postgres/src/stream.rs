//! Streams of changes, who may write them, and how far each has come.
//!
//! A claim bumps the stream's epoch under an exclusive advisory lock; every transaction that applies changes holds the
//! same lock shared while it compares epochs, until its end. So once a claim has returned, nothing of an earlier
//! holder commits any more, and comparing costs no write.

/// A source of ordered changes: `node:<host-id>` in direct mode, `kafka:<topic>:<partition>` behind Kafka.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamName(pub String);

impl std::fmt::Display for StreamName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The right to write a stream, until the next claim of it by anyone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    pub stream: StreamName,
    pub epoch: i64,
    /// Everything up to here is in PostgreSQL, as the last holder wrote it; `None` if nothing is.
    pub position: Option<String>,
}

/// Moves a claimed stream's position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Advance {
    pub claim: Claim,
    pub position: String,
}

/// First key of the advisory locks of streams.
pub(crate) const FENCE_CLASS: i32 = 0x0cdc_0001;

/// Second key of a stream's advisory lock; two streams that share one merely wait for each other's claims.
pub(crate) fn fence_key(stream: &str) -> i32 {
    // FNV-1a.
    stream.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)).cast_signed()
}

pub(crate) const READ_EPOCHS: &str = "-- cdc: fence\nselect name, epoch from _cdc.streams where name = any($1::text[])";

pub(crate) const CLAIM: &str = "-- cdc: claim\ninsert into _cdc.streams (name, epoch, owner) values ($1, 1, $2) \
    on conflict (name) do update set epoch = streams.epoch + 1, owner = excluded.owner, updated_at = now() \
    returning epoch, position";

pub(crate) const MOVE_POSITIONS: &str = "-- cdc: positions\nupdate _cdc.streams as s set position = k.p, updated_at = now() \
    from unnest($1::text[], $2::bigint[], $3::text[]) as k(n, e, p) where s.name = k.n and s.epoch = k.e \
    and s.position is distinct from k.p";
