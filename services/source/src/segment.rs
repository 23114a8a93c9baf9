//! What may be concluded about a segment from what is on disk. Pure: a snapshot in, a decision out.

use cdc_commitlog::Index;
use cdc_model::SegmentId;

/// A segment as one look at the folder saw it.
///
/// The looks must go from the newest segment to the oldest, index before link count: the rules below conclude
/// from what a newer segment says about an older one, so the older one must have been looked at later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentView {
    pub(crate) id: SegmentId,
    /// `None`: no captured or otherwise CDC-enabled table in it so far, or never synced.
    pub(crate) index: Option<Index>,
    /// Hard links. 1: Cassandra's own name in its commit log folder is gone.
    pub(crate) links: u64,
    pub(crate) bytes: u64,
}

impl SegmentView {
    fn completed(&self) -> bool {
        self.index.is_some_and(|index| index.completed)
    }
}

/// The segments nothing will be written to any more: what a reader finds in them now is all.
///
/// - Its index says `COMPLETED`; or
/// - Cassandra's own name of it is gone (`links == 1`): flushed, or replayed and dropped at a restart, or a reserve
///   that a clean stop left behind. This is how segments of a dead process end that never get `COMPLETED`; or
/// - a newer segment is `COMPLETED`. One sync pass goes through the segments from old to new, and a segment that
///   Cassandra switched away from is closed by the first pass after the switch. So when a newer one is closed, an
///   older one without `COMPLETED` has no table with CDC in it, or belongs to a dead process.
///
/// That a newer segment has entries is not enough: writers may still be finishing in the older one.
pub(crate) fn final_segments(views: &[SegmentView]) -> impl Iterator<Item = SegmentId> + '_ {
    let newest_completed = views.iter().filter(|view| view.completed()).map(|view| view.id).max();
    views
        .iter()
        .filter(move |view| view.completed() || view.links == 1 || newest_completed > Some(view.id))
        .map(|view| view.id)
}

/// Whether a segment whose every change is durable, and recorded so on disk, may be deleted.
///
/// Not before `COMPLETED` while Cassandra has it: its next sync would write the index anew, alone. One without an
/// index that Cassandra still has is not ours to delete: it removes that itself.
pub(crate) fn may_delete(view: &SegmentView) -> bool {
    view.completed() || view.links == 1
}

/// Whether entries may be read before a marker covers them: only from a memory-mapped segment, which has its full
/// length, whole mebibytes, from the beginning. Direct I/O grows block by block, and its last block may hold bytes
/// of an older segment whose CRCs hold.
pub(crate) fn may_read_live(bytes: u64) -> bool {
    bytes > 0 && bytes.is_multiple_of(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Option<Index> = Some(Index { offset: 100, completed: false });
    const DONE: Option<Index> = Some(Index { offset: 100, completed: true });

    fn views(rows: &[(u64, Option<Index>, u64)]) -> Vec<SegmentView> {
        rows.iter().map(|&(id, index, links)| SegmentView { id: SegmentId(id), index, links, bytes: 1 << 20 }).collect()
    }

    #[test]
    fn segments_are_final_once_nothing_can_be_written_to_them() {
        type Case = (&'static str, &'static [(u64, Option<Index>, u64)], &'static [u64]);
        let cases: &[Case] = &[
            ("nothing", &[], &[]),
            ("active and reserve", &[(1, OPEN, 2), (2, None, 2)], &[]),
            ("active without CDC and reserve", &[(1, None, 2), (2, None, 2)], &[]),
            ("switched but not yet closed", &[(1, OPEN, 2), (2, OPEN, 2), (3, None, 2)], &[]),
            ("switched and closed", &[(1, DONE, 2), (2, OPEN, 2), (3, None, 2)], &[1]),
            ("flushed", &[(1, DONE, 1), (2, OPEN, 2)], &[1]),
            ("without CDC, newer one open", &[(1, None, 2), (2, OPEN, 2), (3, None, 2)], &[]),
            ("without CDC, newer one closed", &[(1, None, 2), (2, DONE, 2), (3, OPEN, 2), (4, None, 2)], &[1, 2]),
            ("dead process, skipped by replay", &[(1, OPEN, 1), (5, OPEN, 2), (6, None, 2)], &[1]),
            ("dead process, archived", &[(1, OPEN, 2), (5, DONE, 2), (6, OPEN, 2)], &[1, 5]),
            ("reserve left by a clean stop", &[(1, DONE, 1), (2, None, 1), (5, None, 2), (6, None, 2)], &[1, 2]),
        ];
        for (name, rows, expected) in cases {
            let found: Vec<u64> = final_segments(&views(rows)).map(|id| id.0).collect();
            assert_eq!(found, *expected, "{name}");
        }
    }

    #[test]
    fn only_what_cassandra_is_done_with_is_deleted() {
        let cases = [
            ("completed", (1, DONE, 2), true),
            ("completed and flushed", (1, DONE, 1), true),
            ("open", (1, OPEN, 2), false),
            ("of a dead process", (1, OPEN, 1), true),
            ("reserve or without CDC", (1, None, 2), false),
            ("reserve left by a clean stop", (1, None, 1), true),
        ];
        for (name, row, expected) in cases {
            assert_eq!(may_delete(&views(&[row])[0]), expected, "{name}");
        }
    }

    #[test]
    fn live_needs_a_preallocated_segment() {
        let cases = [(0, false), (4096, false), (1 << 20, true), (32 << 20, true), ((32 << 20) + 4096, false)];
        for (bytes, expected) in cases {
            assert_eq!(may_read_live(bytes), expected, "{bytes}");
        }
    }
}
