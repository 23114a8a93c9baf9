//! Leaves drawn at random, and what is known of all from them.
//!
//! # The bound
//!
//! Rows of a leaf are drawn or left together, and what is wrong is often wrong together (a segment that was lost, a range of
//! tokens that was not copied), so rows are no independent witnesses. Leaves are: each of those that have rows is as likely
//! to be drawn as any other. So the exact bound of Clopper and Pearson is of *leaves*: of n leaves with rows, k have
//! something wrong; were the share of such leaves above the bound, so few would come up in less than 5 of 100 draws.
//! Drawing without putting back makes it less still. This takes no assumption about where errors are.
//!
//! It is a bound of the share of *rows*, too, as long as leaves with something wrong have, on average, no more wrong rows
//! than leaves have rows. A leaf with one wrong row of many counts as wrong altogether, so that is mostly far from
//! tight. It does not hold if what is wrong is a few partitions that are larger than all else.

use std::collections::BTreeSet;

use cdc_model::TokenRange;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::scope::{SHIFT, leaves_of};

const CONFIDENCE: f64 = 0.95;

/// Some of the leaves that a range has tokens of: those whose SHA-256, behind the seed, is the smallest.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// Of the leaves, from 0 to 100; one leaf at least.
    pub percent: f64,
    pub seed: u32,
}

impl Sample {
    /// In order. Anybody can draw them again.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a share of a count of at most 65,536"
    )]
    pub(crate) fn leaves(self, range: TokenRange) -> Vec<i64> {
        let digest = |leaf: i64| {
            Sha256::new_with_prefix(self.seed.to_be_bytes()).chain_update(leaf.to_be_bytes()).finalize().to_vec()
        };
        let mut leaves: Vec<(Vec<u8>, i64)> = leaves_of(range).map(|leaf| (digest(leaf), leaf)).collect();
        let count = (leaves.len() as f64 * self.percent / 100.0).ceil().max(1.0) as usize;
        leaves.sort_unstable();
        leaves.truncate(count);
        let mut leaves: Vec<i64> = leaves.into_iter().map(|(_, leaf)| leaf).collect();
        leaves.sort_unstable();
        leaves
    }

    /// Those drawn from the whole that a part of it has tokens of.
    pub(crate) fn leaves_in(self, whole: TokenRange, part: TokenRange) -> Vec<i64> {
        let own = leaves_of(part);
        self.leaves(whole).into_iter().filter(|leaf| own.contains(leaf)).collect()
    }

    /// What was drawn and not read.
    pub(crate) fn unread(self, part: TokenRange, drawn: &[i64]) -> Sampled {
        let tally = Tally { unproven: drawn.iter().copied().collect(), ..Tally::default() };
        tally.sampled(self, part, drawn)
    }
}

/// What was drawn, and what it says of all.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sampled {
    pub percent: f64,
    pub seed: u32,
    /// Leaves there are.
    pub leaves: usize,
    /// Leaves that were drawn.
    pub drawn: usize,
    /// Those of them with rows in any of both stores.
    pub with_rows: usize,
    /// Rows of the largest of them, static ones included.
    pub largest: u64,
    /// Leaves with something proven wrong.
    pub wrong: usize,
    /// Leaves of which not all was proven. The bound takes them for wrong.
    pub unproven: usize,
    /// Of the leaves with rows, drawn or not, no more have anything wrong, in percent; at `confidence`.
    pub wrong_percentage_max: f64,
    pub confidence: f64,
}

impl Sampled {
    /// Of two parts of the ring that share no leaf.
    #[must_use]
    pub(crate) fn join(self, other: Self) -> Self {
        let mut joined = Self {
            leaves: self.leaves + other.leaves,
            drawn: self.drawn + other.drawn,
            with_rows: self.with_rows + other.with_rows,
            largest: self.largest.max(other.largest),
            wrong: self.wrong + other.wrong,
            unproven: self.unproven + other.unproven,
            ..self
        };
        joined.wrong_percentage_max = 100.0 * upper_bound(joined.with_rows, joined.wrong + joined.unproven);
        joined
    }
}

/// What is noted of leaves while they are compared.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) with_rows: BTreeSet<i64>,
    pub(crate) largest: u64,
    wrong: BTreeSet<i64>,
    unproven: BTreeSet<i64>,
}

impl Tally {
    pub(crate) fn found(&mut self, token: i64, is_proven: bool) {
        let leaves = if is_proven { &mut self.wrong } else { &mut self.unproven };
        leaves.insert(token >> SHIFT);
    }

    pub(crate) fn gap(&mut self, range: TokenRange) {
        self.unproven.extend(leaves_of(range));
    }

    pub(crate) fn sampled(&self, sample: Sample, range: TokenRange, drawn: &[i64]) -> Sampled {
        // Whether one that was not read has rows is not known.
        let with_rows = self.with_rows.union(&self.unproven).count();
        let doubtful = self.wrong.union(&self.unproven).count();
        Sampled {
            percent: sample.percent,
            seed: sample.seed,
            leaves: leaves_of(range).count(),
            drawn: drawn.len(),
            with_rows,
            largest: self.largest,
            wrong: self.wrong.len(),
            unproven: self.unproven.difference(&self.wrong).count(),
            wrong_percentage_max: 100.0 * upper_bound(with_rows, doubtful),
            confidence: CONFIDENCE,
        }
    }
}

/// One-sided, by Clopper and Pearson: the share at which `wrong` or fewer of `count` come up in 5 of 100 draws.
fn upper_bound(count: usize, wrong: usize) -> f64 {
    if wrong >= count {
        return 1.0;
    }
    let (mut low, mut high) = (0.0f64, 1.0f64);
    // As fine as the numbers are.
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        match at_most(wrong, count, middle) > 1.0 - CONFIDENCE {
            true => low = middle,
            false => high = middle,
        }
    }
    high
}

/// That `wrong` or fewer of `count` come up where this share of all is wrong. By logarithms, since single terms are tiny.
#[expect(clippy::cast_precision_loss, reason = "counts of at most 65,536")]
fn at_most(wrong: usize, count: usize, share: f64) -> f64 {
    let mut term = count as f64 * (-share).ln_1p();
    let mut sum = term.exp();
    for k in 1..=wrong {
        term += ((count - k + 1) as f64 / k as f64).ln() + share.ln() - (-share).ln_1p();
        sum += term.exp();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Count, wrong ones, bound: the exact sums of Python's `decimal`.
    const BOUNDS: [(usize, usize, f64); 7] = [
        (1, 0, 0.95),
        (7, 6, 0.992_699_168_0),
        (50, 5, 0.198_833_002_5),
        (100, 0, 0.029_513_049_6),
        (100, 1, 0.046_559_811_5),
        (20_000, 0, 0.000_149_775_4),
        (20_000, 37, 0.002_433_063_7),
    ];
    const RANGE: TokenRange = TokenRange { start: (10 << SHIFT) - 1, end: (410 << SHIFT) - 1 };

    #[test]
    fn the_bound_is_that_of_clopper_and_pearson() {
        for (count, wrong, bound) in BOUNDS {
            let own = upper_bound(count, wrong);
            assert!((own - bound).abs() < 1e-9, "{wrong} of {count}: {own} instead of {bound}");
        }
        assert_eq!((upper_bound(0, 0), upper_bound(7, 7)), (1.0, 1.0));
    }

    #[test]
    fn a_seed_draws_the_same_leaves_again_and_another_one_others() {
        let draw = |percent, seed| Sample { percent, seed }.leaves(RANGE);
        assert_eq!(draw(10.0, 1), draw(10.0, 1));
        assert_ne!(draw(10.0, 1), draw(10.0, 2));
        assert_eq!((draw(10.0, 1).len(), draw(0.0, 1).len()), (40, 1));
        assert_eq!(draw(100.0, 1), (10..410).collect::<Vec<i64>>());
        assert_eq!(Sample { percent: 100.0, seed: 1 }.leaves(TokenRange::RING).len(), 65_536);
    }

    /// Errors side by side are the worst for a sample; leaves do not mind.
    #[test]
    fn the_bound_is_right_in_95_of_100_draws_however_many_leaves_are_wrong() {
        for wrong in [1usize, 4, 20, 100, 300] {
            let truth = 100.0 * wrong as f64 / 400.0;
            let draws = 1_000;
            let right = (0..draws).filter(|seed| {
                let sample = Sample { percent: 15.0, seed: *seed };
                let drawn = sample.leaves(RANGE);
                let mut tally = Tally { with_rows: drawn.iter().copied().collect(), ..Tally::default() };
                drawn
                    .iter()
                    .filter(|leaf| **leaf < 10 + wrong as i64)
                    .for_each(|leaf| tally.found(leaf << SHIFT, true));
                tally.sampled(sample, RANGE, &drawn).wrong_percentage_max >= truth
            });
            let right = right.count();
            assert!(right >= 945, "{wrong} wrong leaves: right in {right} of {draws}");
        }
    }

    #[test]
    fn parts_say_together_what_the_whole_says() {
        let sample = Sample { percent: 10.0, seed: 1 };
        let (middle, wrong) = ((200 << SHIFT) - 1, [20i64, 300]);
        let parts = [TokenRange { end: middle, ..RANGE }, TokenRange { start: middle, ..RANGE }];
        let tally = |drawn: &[i64]| {
            let mut tally = Tally { with_rows: drawn.iter().copied().collect(), ..Tally::default() };
            drawn.iter().filter(|leaf| wrong.contains(leaf)).for_each(|leaf| tally.found(leaf << SHIFT, true));
            tally
        };
        let drawn = sample.leaves(RANGE);
        let of_parts = parts.map(|part| sample.leaves_in(RANGE, part));
        assert_eq!(of_parts.concat(), drawn);
        let [first, second] = [0, 1].map(|at| tally(&of_parts[at]).sampled(sample, parts[at], &of_parts[at]));
        assert_eq!(first.join(second), tally(&drawn).sampled(sample, RANGE, &drawn));
        let unread = first.join(sample.unread(parts[1], &of_parts[1]));
        assert_eq!((unread.drawn, unread.with_rows, unread.unproven), (40, 40, of_parts[1].len()));
    }

    #[test]
    fn what_was_not_proven_counts_as_wrong() {
        let sample = Sample { percent: 10.0, seed: 1 };
        let drawn = sample.leaves(RANGE);
        let mut tally = Tally { with_rows: drawn.iter().copied().collect(), ..Tally::default() };
        let clean = tally.sampled(sample, RANGE, &drawn);
        assert_eq!((clean.leaves, clean.drawn, clean.wrong, clean.unproven), (400, 40, 0, 0));
        tally.found(drawn[0] << SHIFT, false);
        tally.gap(TokenRange { start: (drawn[1] << SHIFT) - 1, end: drawn[1] << SHIFT });
        let doubtful = tally.sampled(sample, RANGE, &drawn);
        assert_eq!((doubtful.wrong, doubtful.unproven), (0, 2));
        tally.found(drawn[0] << SHIFT, true);
        let wrong = tally.sampled(sample, RANGE, &drawn);
        assert_eq!((wrong.wrong, wrong.unproven), (1, 1));
        assert!(clean.wrong_percentage_max < doubtful.wrong_percentage_max);
        assert_eq!(wrong.wrong_percentage_max, doubtful.wrong_percentage_max);
    }
}
