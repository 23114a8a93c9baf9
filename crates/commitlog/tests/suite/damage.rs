//! What is broken is skipped by the rules of the format, reported, and never believed.

use std::collections::HashSet;

use bytes::Bytes;
use cdc_commitlog::{DamageKind, Fence, ReadError, ReadOutcome, SegmentReader};

use crate::support::{Segment, entry, limit, payload};

/// Two sections of three entries, and how each byte of them is called.
fn segment() -> (Segment, Vec<usize>) {
    let mut segment = Segment::new(1024);
    let mut starts = Vec::new();
    for number in 0..6 {
        starts.push(segment.end);
        segment.append(&payload(number));
        if number % 3 == 2 {
            segment.sync();
        }
    }
    (segment, starts)
}

fn numbers(entries: &[(u64, Bytes)]) -> Vec<usize> {
    entries.iter().map(|(_, bytes)| (0..6).find(|n| bytes[..] == payload(*n)).expect("a true payload")).collect()
}

fn flipped(at: usize) -> Segment {
    let (mut segment, _) = segment();
    let byte = segment.bytes[at] ^ 0x10;
    segment.put(at, &[byte]);
    segment
}

#[test]
fn a_damaged_payload_costs_its_entry_alone() {
    let (_, starts) = segment();
    let size = payload(1).len();
    for at in [starts[1] + 8, starts[1] + 7 + size, starts[1] + 8 + size] {
        for (fence, finished) in [(Fence::Live, false), (Fence::Live, true), (Fence::Marker, false)] {
            let (entries, report) = flipped(at).read_all(fence, finished);
            assert_eq!(numbers(&entries), [0, 2, 3, 4, 5]);
            let [damage] = report.damage[..] else { panic!("{:?}", report.damage) };
            assert_eq!((damage.kind, damage.at.offset), (DamageKind::Payload, starts[1] as u64));
            assert_eq!(damage.bytes, 12 + size as u64);
        }
    }
}

#[test]
fn a_damaged_size_costs_the_rest_of_its_section() {
    let (segment, starts) = segment();
    for at in [starts[1] + 3, starts[1] + 4] {
        let (entries, report) = flipped(at).read_all(Fence::Live, false);
        assert_eq!(numbers(&entries), [0, 3, 4, 5]);
        assert_eq!(report.damage.len(), 1);
        assert_eq!(report.damage[0].kind, DamageKind::Size);
        assert_eq!(report.damage[0].at.offset + report.damage[0].bytes, starts[3] as u64 - 8);
    }
    drop(segment);
}

#[test]
fn zeros_in_a_section_end_it() {
    let (mut segment, starts) = segment();
    segment.put(starts[1], &vec![0; starts[2] - starts[1]]);
    let (entries, report) = segment.read_all(Fence::Live, false);
    assert_eq!(numbers(&entries), [0, 3, 4, 5]);
    assert_eq!(report.damage.len(), 1);
    assert_eq!((report.damage[0].kind, report.damage[0].at.offset), (DamageKind::Zeros, starts[1] as u64));
}

#[test]
fn a_half_written_marker_waits_while_live_and_is_reported_when_finished() {
    let (mut segment, _) = segment();
    segment.put(24, &[0; 4]);
    assert_eq!(segment.read_all(Fence::Marker, false).0, []);
    assert_eq!(segment.read_all(Fence::Marker, false).1.outcome, ReadOutcome::Waiting);
    let (entries, report) = segment.read_all(Fence::Marker, true);
    assert_eq!(numbers(&entries), [0, 1, 2, 3, 4, 5]);
    assert_eq!((report.damage.len(), report.damage[0].kind), (1, DamageKind::TornMarker));
    // Reading on behind it starts from the torn marker again.
    let resume = entries[3].0;
    let mut reader = segment.open(resume);
    assert_eq!(numbers(&crate::support::read(&mut reader, Fence::Marker, true).0), [4, 5]);
}

#[test]
fn a_damaged_marker_stops_a_finished_segment() {
    let segment = flipped(26);
    let mut reader = segment.open(0);
    let error = reader.read(limit(Fence::Marker, true), &mut |_, _| panic!()).unwrap_err();
    assert!(matches!(error, ReadError::Marker { at, .. } if at.offset == 20), "{error}");
    assert_eq!(segment.read_all(Fence::Marker, false).1.outcome, ReadOutcome::Waiting);
}

#[test]
fn no_flipped_bit_makes_a_false_entry_or_a_silent_loss() {
    let (whole, _) = segment();
    for at in 0..whole.bytes.len() {
        for bit in 0..8 {
            let (mut segment, _) = segment();
            segment.bytes[at] ^= 1 << bit;
            segment.save();
            let Ok(Some(mut reader)) = SegmentReader::open(&segment.file, 0, 1 << 20) else {
                assert!(at < 20, "only the header is judged at opening");
                continue;
            };
            for (fence, finished) in [(Fence::Marker, true), (Fence::Live, true)] {
                let mut seen = Vec::new();
                let result =
                    reader.read(limit(fence, finished), &mut |at, bytes| seen.push((at.offset, bytes.to_bytes())));
                // Live after Marker only reads what no marker covers.
                let found = numbers(&seen);
                assert!(found.is_sorted() && found.iter().collect::<HashSet<_>>().len() == found.len());
                let told = result.as_ref().map_or(true, |report| !report.damage.is_empty());
                if fence == Fence::Marker && !told {
                    assert_eq!(found, [0, 1, 2, 3, 4, 5], "byte {at} bit {bit}");
                }
                if result.is_err() {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_cut_file_gives_its_complete_entries_and_nothing_else() {
    let (whole, starts) = segment();
    let ends: Vec<usize> = (0..6).map(|n| starts[n] + 12 + payload(n).len()).collect();
    for length in 28..whole.bytes.len() {
        let segment = Segment::of(whole.bytes[..length].to_vec());
        let complete = ends.iter().filter(|end| **end <= length).count();
        for fence in [Fence::Marker, Fence::Live] {
            let mut reader = segment.open(0);
            let (entries, report) = crate::support::read(&mut reader, fence, true);
            let marker_of_second_section = starts[3];
            let expected =
                if fence == Fence::Marker && length < marker_of_second_section { complete.min(3) } else { complete };
            assert_eq!(numbers(&entries), (0..expected).collect::<Vec<_>>(), "{fence:?} {length}");
            assert_eq!(report.outcome, ReadOutcome::End);
            assert_eq!(crate::support::read(&mut reader, fence, true).0, [], "the end stays the end");
        }
        let (entries, _) = segment.read_all(Fence::Live, false);
        assert_eq!(numbers(&entries), (0..complete).collect::<Vec<_>>());
    }
}

#[test]
fn the_torn_tail_of_a_dead_node_is_reported_once() {
    let (mut segment, _) = segment();
    let torn = entry(&payload(6));
    let at = segment.end;
    segment.put(at, &torn[..torn.len() - 1]);
    let mut reader = segment.open(0);
    let (entries, report) = crate::support::read(&mut reader, Fence::Live, true);
    assert_eq!(entries.len(), 6);
    assert_eq!((report.damage.len(), report.damage[0].kind), (1, DamageKind::TornTail));
    assert_eq!(report.damage[0].at.offset, at as u64);
    let again = crate::support::read(&mut reader, Fence::Live, true).1;
    assert_eq!((again.outcome, again.damage), (ReadOutcome::End, vec![]));
    // Behind the last marker anything may stand when only markers count.
    assert_eq!(segment.read_all(Fence::Marker, true).1.damage, []);
}
