//! Whatever the bytes: an answer, no panic, no memory out of proportion.

use bytes::Bytes;
use cdc_commitlog::{Decoder, Fence, Format, SegmentReader};
use cdc_model::Change;
use proptest::prelude::*;

use crate::support::{Golden, Segment, limit, provenance};

fn decode(golden: &Golden, format: Format, payload: Vec<u8>) -> Vec<Change> {
    let mut out = Vec::new();
    let length = payload.len();
    let payload = Bytes::from(payload);
    let result = Decoder::new().decode(format, &payload, provenance(), &golden.tables, &|_| true, &mut out);
    assert!(result.is_ok() || out.is_empty(), "all or nothing");
    let weight: usize = out.iter().map(Change::weight).sum();
    assert!(weight <= 400 * length, "{weight} bytes from {length}");
    out
}

#[test]
fn mutated_real_payloads_never_panic() {
    let golden = Golden::load("cassandra-5.0-v7");
    let entries = golden.entries();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 20_000, ..<_>::default() });
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let formats = prop::sample::select(vec![Format::V7, Format::V8, Format::V9]);
    let input = (any::<prop::sample::Index>(), edits, formats, prop::option::of(any::<prop::sample::Index>()));
    runner
        .run(&input, |(which, edits, format, cut)| {
            let mut payload = entries[which.index(entries.len())].1.to_vec();
            for (at, byte) in edits {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
            if let Some(cut) = cut {
                payload.truncate(cut.index(payload.len()));
            }
            decode(&golden, format, payload);
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_bytes_behind_a_real_table_id_never_panic() {
    let golden = Golden::load("cassandra-5.0-v8");
    let mut ids: Vec<_> = golden.tables.0.values().filter(|table| table.keyspace == "golden").map(|t| t.id).collect();
    ids.sort();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 20_000, ..<_>::default() });
    let input = (prop::sample::select(ids), prop::collection::vec(any::<u8>(), 0..200));
    runner
        .run(&input, |(id, rest)| {
            // An empty key, no deletion, default bases: the random part starts where it can do harm.
            let head = [&[1][..], id.0.as_bytes(), &[0, 0x10, 0, 0, 0]].concat();
            decode(&golden, Format::V8, [head, rest].concat());
            Ok(())
        })
        .unwrap();
}

proptest! {
    #[test]
    fn random_segments_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), finished: bool) {
        let header = crate::support::header(7, crate::support::ID, "{}");
        let segment = Segment::of([header, bytes].concat());
        for fence in [Fence::Live, Fence::Marker, Fence::Durable(100)] {
            if let Ok(Some(mut reader)) = SegmentReader::open(&segment.file, 0, 1 << 20) {
                // An answer or an error, never a panic.
                drop(reader.read(limit(fence, finished), &mut |_, _| panic!("an entry out of nothing")));
            }
        }
    }
}
