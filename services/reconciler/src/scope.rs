//! What of a table is compared, and how it is cut into leaves.

use std::sync::Arc;

use cdc_model::{TableSchema, TokenRange, WriteTime, token};

use crate::{Gap, sample::Sample};

/// The ring has 65,536 leaves.
pub(crate) const SHIFT: u8 = 48;
/// Parts of the ring that are read on their own, so that one that fails does not cost the others, and progress shows; of a
/// scope that is a share of it there are as many fewer, but for this many.
const RANGES: u64 = 1_024;
const RANGES_MIN: u64 = 16;

/// What to compare.
#[derive(Clone, Debug)]
pub struct Scope {
    pub table: Arc<TableSchema>,
    pub range: TokenRange,
    pub only: Only,
    /// What a sample is drawn from; the range may be a part of it.
    pub whole: TokenRange,
}

/// Which rows of the range.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub enum Only {
    #[default]
    All,
    /// Those of leaves that are drawn; nothing else is read from Cassandra.
    Sample(Sample),
    /// Those last written then, by what either store says.
    Written(Written),
}

/// Write times from one to another, which is not among them: microseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Written {
    pub from: i64,
    pub to: i64,
}

impl Written {
    pub(crate) fn admits(self, time: WriteTime) -> bool {
        (self.from..self.to).contains(&time.0)
    }
}

impl Scope {
    pub fn new(table: Arc<TableSchema>, range: TokenRange) -> Self {
        Self { table, range, only: Only::All, whole: range }
    }

    /// One partition, by its key as Cassandra serialises it; and others of the same token, of which there are hardly any.
    pub fn partition(table: Arc<TableSchema>, key: &[u8]) -> Self {
        let end = token(key).0;
        // No partition has the token `i64::MIN`.
        Self::new(table, TokenRange { start: end.saturating_sub(1), end })
    }

    /// # Example
    /// ```
    /// # use cdc_reconciler::{Only, Sample, Scope};
    /// # fn of(scope: Scope) -> Scope {
    /// scope.only(Only::Sample(Sample { percent: 1.0, seed: 7 }))
    /// # }
    /// ```
    #[must_use]
    pub fn only(self, only: Only) -> Self {
        Self { only, ..self }
    }

    /// A part of the scope, of which a sample has what was drawn from all of it.
    #[must_use]
    pub(crate) fn part(self, range: TokenRange) -> Self {
        Self { range, ..self }
    }

    pub(crate) fn written(&self) -> Option<Written> {
        match self.only {
            Only::Written(written) => Some(written),
            Only::All | Only::Sample(_) => None,
        }
    }

    /// Leaves that were drawn, in order.
    pub(crate) fn drawn(&self) -> Option<Vec<i64>> {
        match self.only {
            Only::Sample(sample) => Some(sample.leaves_in(self.whole, self.range)),
            Only::All | Only::Written(_) => None,
        }
    }

    /// What is read from Cassandra in the first pass.
    pub(crate) fn parts(&self, drawn: Option<&[i64]>) -> Vec<TokenRange> {
        match drawn {
            None => self.range.parts(parts(self.range)).collect(),
            Some(leaves) => tokens_of(self.range, leaves),
        }
    }

    /// What leaves from one to another have of the range.
    pub(crate) fn tokens(&self, first: i64, last: i64) -> Option<TokenRange> {
        tokens(self.range, first, last)
    }
}

fn tokens(range: TokenRange, first: i64, last: i64) -> Option<TokenRange> {
    let start = (first << SHIFT).saturating_sub(1).max(range.start);
    let end = ((last << SHIFT) | ((1 << SHIFT) - 1)).min(range.end);
    (start < end).then_some(TokenRange { start, end })
}

/// What some leaves, in order, have of a range.
pub(crate) fn tokens_of(range: TokenRange, leaves: &[i64]) -> Vec<TokenRange> {
    runs(leaves).into_iter().filter_map(|(first, last)| tokens(range, first, last)).collect()
}

fn parts(range: TokenRange) -> u64 {
    let share = u128::from(RANGES) * u128::from(range.width()) / u128::from(TokenRange::RING.width());
    u64::try_from(share).unwrap_or(RANGES).max(RANGES_MIN)
}

/// The first and the last leaf that a range has tokens of.
pub(crate) fn leaves_of(range: TokenRange) -> std::ops::RangeInclusive<i64> {
    range.start.saturating_add(1) >> SHIFT..=range.end >> SHIFT
}

pub(crate) fn is_in(range: TokenRange, token: i64) -> bool {
    range.start < token && token <= range.end
}

/// First and last of leaves that follow each other.
pub(crate) fn runs(leaves: &[i64]) -> Vec<(i64, i64)> {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for leaf in leaves {
        match runs.last_mut().filter(|(_, last)| last + 1 == *leaf) {
            Some((_, last)) => *last = *leaf,
            None => runs.push((*leaf, *leaf)),
        }
    }
    runs
}

/// Gaps in order, those that meet for the same reason as one.
pub(crate) fn joined(mut gaps: Vec<Gap>) -> Vec<Gap> {
    gaps.sort_by_key(|gap| gap.range);
    let mut joined: Vec<Gap> = Vec::new();
    for gap in gaps {
        match joined.last_mut().filter(|last| last.why == gap.why && last.range.end >= gap.range.start) {
            Some(last) => last.range.end = last.range.end.max(gap.range.end),
            None => joined.push(gap),
        }
    }
    joined
}
