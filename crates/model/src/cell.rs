//! Cells, markers and deletions with Cassandra's reconcile rules (`db/rows/Cells.java`, `db/LivenessInfo.java`,
//! `db/DeletionTime.java`).

use std::{cmp::Ordering, collections::BTreeMap};

use bytes::{BufMut, Bytes, BytesMut};

use crate::ValueBytes;

/// Write time in microseconds since 1970, chosen by the writer (`USING TIMESTAMP`): any value but the minimum.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WriteTime(pub i64);

impl WriteTime {
    /// Cassandra's "no timestamp": older than every write.
    pub const NONE: Self = Self(i64::MIN);
}

/// Server second since 1970 at which something was deleted, or expires (Cassandra's local deletion time).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LocalTime(pub i64);

impl LocalTime {
    /// Neither deleted nor expiring.
    pub const NONE: Self = Self(i64::MAX);
}

/// Row marker: an `INSERT` leaves one, an `UPDATE` does not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Liveness {
    pub time: WriteTime,
    /// Seconds; 0 without TTL.
    pub ttl: i32,
    /// [`LocalTime::NONE`] without TTL.
    pub expires: LocalTime,
}

impl Liveness {
    /// TTL by which materialised views mark a row that is already dead (`LivenessInfo.EXPIRED_LIVENESS_TTL`).
    const EXPIRED_TTL: i32 = i32::MAX;

    pub fn is_live(&self, now: LocalTime) -> bool {
        self.ttl != Self::EXPIRED_TTL && now < self.expires
    }

    /// `LivenessInfo.supersedes`, as an order; equal only for markers that answer alike.
    fn rank(&self) -> impl Ord {
        (self.time, self.ttl == Self::EXPIRED_TTL, self.ttl != 0, self.expires, self.ttl)
    }

    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        if self.rank() >= other.rank() { self } else { other }
    }
}

/// A deletion of a row, a range, a partition or a whole collection: removes what was written at or before `time`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeletionTime {
    pub time: WriteTime,
    pub local: LocalTime,
}

impl DeletionTime {
    pub fn deletes(&self, written: WriteTime) -> bool {
        written <= self.time
    }
}

/// The newer of two deletions, where either may be absent.
pub(crate) fn newest(a: Option<DeletionTime>, b: Option<DeletionTime>) -> Option<DeletionTime> {
    a.max(b)
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub enum CellValue {
    Tombstone,
    /// Serialised as on the CQL wire; may be of length zero ("empty", which is not NULL).
    Live(ValueBytes),
    /// A counter context: shards with their clocks (`db/context/CounterContext.java`).
    Counter(ValueBytes),
}

impl CellValue {
    /// Nothing of a tombstone.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Tombstone => &[],
            Self::Live(value) | Self::Counter(value) => value,
        }
    }
}

impl std::fmt::Debug for CellValue {
    /// Shows lengths only, because values must not reach logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tombstone => f.write_str("Tombstone"),
            Self::Live(value) => write!(f, "Live({} bytes)", value.len()),
            Self::Counter(value) => write!(f, "Counter({} bytes)", value.len()),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cell {
    pub time: WriteTime,
    /// Seconds; 0 without TTL.
    pub ttl: i32,
    /// Second of deletion (tombstone) or of expiry (TTL); [`LocalTime::NONE`] otherwise.
    pub local: LocalTime,
    pub value: CellValue,
}

impl Cell {
    pub fn live(time: WriteTime, value: impl Into<ValueBytes>) -> Self {
        Self { time, ttl: 0, local: LocalTime::NONE, value: CellValue::Live(value.into()) }
    }

    pub fn tombstone(time: WriteTime, local: LocalTime) -> Self {
        Self { time, ttl: 0, local, value: CellValue::Tombstone }
    }

    pub fn is_live(&self, now: LocalTime) -> bool {
        match self.value {
            CellValue::Tombstone => false,
            CellValue::Live(_) | CellValue::Counter(_) => now < self.local,
        }
    }

    /// The winner of two writes to the same cell: later write time; then tombstone over expiring over plain; then
    /// later local time; then the larger value by unsigned bytes. Counters merge by shard, and a counter's
    /// tombstone wins whatever its time (`Cells.resolveRegular`, `Cells.resolveCounter`).
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        match (&self.value, &other.value) {
            (CellValue::Counter(a), CellValue::Counter(b)) => {
                let value = CellValue::Counter(merge_counters(a, b).into());
                Self { time: self.time.max(other.time), ttl: 0, local: LocalTime::NONE, value }
            }
            (CellValue::Counter(_), CellValue::Tombstone) => other,
            (CellValue::Tombstone, CellValue::Counter(_)) => self,
            _ => match self.compare(&other) {
                Ordering::Less => other,
                Ordering::Equal | Ordering::Greater => self,
            },
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        let kind = |cell: &Self| match cell.value {
            CellValue::Tombstone => 2,
            _ if cell.local != LocalTime::NONE => 1,
            _ => 0,
        };
        self.time
            .cmp(&other.time)
            .then_with(|| kind(self).cmp(&kind(other)))
            .then_with(|| self.local.cmp(&other.local))
            .then_with(|| self.value.bytes().cmp(other.value.bytes()))
            // Not in Cassandra, where it cannot be seen: makes the merge commutative to the last bit.
            .then_with(|| self.ttl.cmp(&other.ttl))
    }
}

/// One shard of a counter context.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Shard {
    global: bool,
    clock: i64,
    count: i64,
}

type CounterId = [u8; 16];

/// Shards by counter id. A malformed context yields the shards that are whole.
fn shards(context: &[u8]) -> BTreeMap<CounterId, Shard> {
    let Some((header, _)) = context.split_first_chunk::<2>() else { return BTreeMap::new() };
    let entries = usize::from(i16::from_be_bytes(*header).unsigned_abs());
    let body = context.get(2 + 2 * entries..).unwrap_or_default();
    let global: Vec<usize> = context
        .get(2..2 + 2 * entries)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|entry| i32::from(i16::from_be_bytes([entry[0], entry[1]])))
        .filter(|index| *index < 0)
        .filter_map(|index| usize::try_from(index - i32::from(i16::MIN)).ok())
        .collect();
    let long = |bytes: &[u8]| bytes.first_chunk::<8>().map_or(0, |word| i64::from_be_bytes(*word));
    body.chunks_exact(32)
        .enumerate()
        .map(|(index, shard)| {
            let mut id = CounterId::default();
            id.copy_from_slice(&shard[..16]);
            let value = Shard { global: global.contains(&index), clock: long(&shard[16..]), count: long(&shard[24..]) };
            (id, value)
        })
        .collect()
}

/// Highest clock per shard wins; a global shard beats a non-global one (`CounterContext.merge`).
fn merge_counters(a: &[u8], b: &[u8]) -> Bytes {
    let mut merged = shards(a);
    for (id, shard) in shards(b) {
        merged.entry(id).and_modify(|own| *own = (*own).max(shard)).or_insert(shard);
    }
    let globals: Vec<i16> = (0i16..).zip(merged.values()).filter(|(_, s)| s.global).map(|(i, _)| i).collect();
    let mut out = BytesMut::with_capacity(2 + 2 * globals.len() + 32 * merged.len());
    out.put_i16(i16::try_from(globals.len()).unwrap_or(i16::MAX));
    for index in globals {
        out.put_i16(index.wrapping_add(i16::MIN));
    }
    for (id, shard) in merged {
        out.put_slice(&id);
        out.put_i64(shard.clock);
        out.put_i64(shard.count);
    }
    out.freeze()
}

/// What `SELECT` shows for a counter context: the sum over its shards (`CounterContext.total`).
pub(crate) fn counter_total(context: &[u8]) -> i64 {
    shards(context).values().fold(0, |sum, shard| sum.wrapping_add(shard.count))
}
