//! Which ranges an agent copies, and in what parts.

use cdc_model::{NodeId, TokenRange};

/// In so many parts a table is copied, roughly: enough for parallel reading to end together, few enough for the file.
const PARTS: u128 = 64;

/// The ranges that a node is the primary replica of: from the token before each of its tokens, without it, to its own.
pub(super) fn primary(ring: &[(NodeId, Vec<i64>)], node: NodeId) -> Vec<TokenRange> {
    let mut tokens: Vec<(i64, NodeId)> =
        ring.iter().flat_map(|(owner, tokens)| tokens.iter().map(|token| (*token, *owner))).collect();
    tokens.sort_unstable();
    let Some(&(last, _)) = tokens.last() else { return Vec::new() };
    let mut ranges = Vec::new();
    let mut start = i64::MIN;
    for (token, owner) in &tokens {
        if *owner == node {
            ranges.push(TokenRange { start, end: *token });
        }
        start = *token;
    }
    // Behind the last token comes the first again.
    if tokens[0].1 == node {
        ranges.push(TokenRange { start: last, end: i64::MAX });
    }
    join(ranges)
}

/// Neighbours become one; empty ones nothing.
fn join(ranges: Vec<TokenRange>) -> Vec<TokenRange> {
    let mut joined: Vec<TokenRange> = Vec::with_capacity(ranges.len());
    for range in ranges.into_iter().filter(|range| range.start < range.end) {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// The same tokens, in parts of about one size.
pub(super) fn parts(ranges: &[TokenRange]) -> Vec<TokenRange> {
    let total: u128 = ranges.iter().map(|range| u128::from(range.width())).sum();
    let count = |range: &TokenRange| (u128::from(range.width()) * PARTS).div_ceil(total.max(1));
    ranges.iter().flat_map(|range| range.parts(u64::try_from(count(range)).unwrap_or(1))).collect()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;
    use uuid::Uuid;

    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number))
    }

    #[test]
    fn every_token_is_copied_by_one_node_and_once() {
        for seed in 0..200 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let nodes = random.random_range(1..5);
            let ring: Vec<_> = (0..nodes)
                .map(|at| (node(at), (0..random.random_range(1..20)).map(|_| random.random()).collect::<Vec<i64>>()))
                .collect();
            let mut all: Vec<TokenRange> = (0..nodes).flat_map(|at| parts(&primary(&ring, node(at)))).collect();
            all.sort_unstable();
            assert_eq!(join(all.clone()), [TokenRange::RING], "seed {seed}: {ring:?}");
            assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start), "seed {seed}");
        }
    }

    #[test]
    fn one_node_copies_the_ring_in_parts_of_one_size() {
        let ring = [(node(1), vec![5, -7, 900])];
        assert_eq!(primary(&ring, node(1)), [TokenRange::RING]);
        let all = parts(&primary(&ring, node(1)));
        assert_eq!(all.len(), 64);
        assert!(all.iter().all(|part| part.width().abs_diff(u64::MAX / 64) < 2));
        assert_eq!(parts(&[TokenRange { start: 1, end: 3 }]).len(), 2, "not finer than tokens");
    }

    #[test]
    fn a_node_that_is_not_in_the_ring_copies_nothing() {
        assert_eq!(primary(&[(node(1), vec![5])], node(2)), []);
        assert_eq!(primary(&[], node(2)), []);
        assert_eq!(parts(&[]), []);
    }
}
