//! How far the agent is, segment by segment.
//!
//! Cassandra writes to one segment at a time, but a segment may stay open long after the next one has begun: one
//! without captured tables is never marked `COMPLETED`, and at a switch the last writes to the old and the first to
//! the new one overlap. So the agent reads every segment that is not final, and its position is one offset per open
//! segment plus the set of finished ones; merges commute, so the order between segments means nothing.
//! **Invariant:** a segment is in exactly one of three states: open (an offset), finished, or not begun.

use std::{collections::BTreeMap, fmt, str::FromStr};

use cdc_model::{SegmentId, SegmentPosition};
use serde::{Deserialize, Serialize};

/// For each open segment with anything read, the end of the last entry read.
///
/// Its text, `segment:offset` joined by commas, is what PostgreSQL keeps in direct mode.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offsets(BTreeMap<SegmentId, u64>);

impl Offsets {
    pub(crate) fn get(&self, segment: SegmentId) -> Option<u64> {
        self.0.get(&segment).copied()
    }

    pub(crate) fn set(&mut self, at: SegmentPosition) {
        self.0.insert(at.segment, at.offset);
    }

    pub(crate) fn remove(&mut self, segment: SegmentId) {
        self.0.remove(&segment);
    }

    /// The lowest open segment: everything in segments before it is finished. `None` if nothing is open.
    pub fn low(&self) -> Option<SegmentPosition> {
        self.0.first_key_value().map(|(&segment, &offset)| SegmentPosition { segment, offset })
    }
}

impl fmt::Display for Offsets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (segment, offset)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}:{offset}", segment.0)?;
        }
        Ok(())
    }
}

#[derive(thiserror::Error, Debug)]
#[error("`{0}` is not a position (segment:offset, joined by commas)")]
pub struct OffsetsError(String);

impl FromStr for Offsets {
    type Err = OffsetsError;

    fn from_str(text: &str) -> Result<Self, OffsetsError> {
        let pair = |pair: &str| {
            let (segment, offset) = pair.split_once(':')?;
            Some((SegmentId(segment.parse().ok()?), offset.parse().ok()?))
        };
        let pairs = text.split(',').filter(|part| !part.is_empty());
        pairs.map(pair).collect::<Option<_>>().map(Self).ok_or_else(|| OffsetsError(text.to_owned()))
    }
}

/// Finished segments, as ranges: ids are given out one by one, so a few ranges hold years of them.
///
/// Remembered because a segment may come back: Cassandra links it again when it replays its log after a crash. One
/// that was forgotten would be read again, which costs time and changes nothing.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Finished(Vec<(u64, u64)>);

impl Finished {
    const MAX_RANGES: usize = 1024;

    pub(crate) fn contains(&self, segment: SegmentId) -> bool {
        let index = self.0.partition_point(|&(_, last)| last < segment.0);
        self.0.get(index).is_some_and(|&(first, _)| first <= segment.0)
    }

    pub(crate) fn insert(&mut self, segment: SegmentId) {
        if self.contains(segment) {
            return;
        }
        let id = segment.0;
        let index = self.0.partition_point(|&(_, last)| last < id);
        let joins_next = self.0.get(index).is_some_and(|&(first, _)| first.checked_sub(1) == Some(id));
        let joins_last = index > 0 && self.0[index - 1].1.checked_add(1) == Some(id);
        match (joins_last, joins_next) {
            (true, true) => {
                self.0[index - 1].1 = self.0[index].1;
                self.0.remove(index);
            }
            (true, false) => self.0[index - 1].1 = id,
            (false, true) => self.0[index].0 = id,
            (false, false) => self.0.insert(index, (id, id)),
        }
        if self.0.len() > Self::MAX_RANGES {
            self.0.remove(0);
        }
    }

    /// Forgets `segment` and everything above it.
    pub(crate) fn forget_from(&mut self, segment: SegmentId) {
        self.0.retain(|&(first, _)| first < segment.0);
        if let Some((_, last)) = self.0.last_mut() {
            *last = (*last).min(segment.0 - 1);
        }
    }
}

/// Where to resume.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Position {
    pub(crate) offsets: Offsets,
    pub(crate) finished: Finished,
}

impl Position {
    /// Direct mode: PostgreSQL's offsets were committed with the rows, the file only follows them. If the file has
    /// finished a segment that PostgreSQL still has open, PostgreSQL was set back (restored from a backup), and
    /// whatever is left of the log from there on is read again. Returns whether that is so.
    pub(crate) fn follow(&mut self, committed: Option<Offsets>) -> bool {
        let Some(committed) = committed else {
            let had_any = *self != Self::default();
            *self = Self::default();
            return had_any;
        };
        let set_back = committed.low().filter(|low| self.finished.contains(low.segment));
        if let Some(low) = set_back {
            self.finished.forget_from(low.segment);
        }
        self.offsets = committed;
        set_back.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(text: &str) -> Offsets {
        text.parse().unwrap()
    }

    fn finished(ids: &[u64]) -> Finished {
        let mut finished = Finished::default();
        ids.iter().for_each(|&id| finished.insert(SegmentId(id)));
        finished
    }

    #[test]
    fn offsets_survive_their_text() {
        for text in ["", "7:20", "7:20,9:4096"] {
            assert_eq!(offsets(text).to_string(), text);
        }
        for text in ["7", "7:", ":7", "7:x", "7:1;8:2"] {
            assert!(text.parse::<Offsets>().is_err(), "{text}");
        }
    }

    #[test]
    fn finished_ids_fold_into_ranges() {
        let set = finished(&[5, 7, 6, 10, 1, 6]);
        assert_eq!(set.0, [(1, 1), (5, 7), (10, 10)]);
        let contained: Vec<u64> = (0..12).filter(|&id| set.contains(SegmentId(id))).collect();
        assert_eq!(contained, [1, 5, 6, 7, 10]);
    }

    #[test]
    fn forgetting_cuts_a_range() {
        for (from, left) in [(6, vec![1, 5]), (1, vec![]), (8, vec![1, 5, 6, 7]), (11, vec![1, 5, 6, 7, 10])] {
            let mut set = finished(&[1, 5, 6, 7, 10]);
            set.forget_from(SegmentId(from));
            assert_eq!(set, finished(&left), "from {from}");
        }
    }

    #[test]
    fn finished_ids_are_bounded_and_the_oldest_go_first() {
        let ids: Vec<u64> = (0..3000).map(|id| id * 2).collect();
        let set = finished(&ids);
        assert_eq!(set.0.len(), Finished::MAX_RANGES);
        assert!(set.contains(SegmentId(5998)) && !set.contains(SegmentId(0)));
    }

    #[test]
    fn postgres_decides_where_direct_mode_resumes() {
        let file = || Position { offsets: offsets("8:100"), finished: finished(&[5, 6, 7]) };

        let mut ahead = file();
        assert!(!ahead.follow(Some(offsets("8:200,9:20"))));
        assert_eq!(ahead, Position { offsets: offsets("8:200,9:20"), finished: finished(&[5, 6, 7]) });

        let mut restored = file();
        assert!(restored.follow(Some(offsets("6:50"))));
        assert_eq!(restored, Position { offsets: offsets("6:50"), finished: finished(&[5]) });

        let mut empty = file();
        assert!(empty.follow(None), "the target was replaced");
        assert_eq!(empty, Position::default());
    }
}
