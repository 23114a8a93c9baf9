//! Damage to real segments: whatever byte is changed and wherever the file is cut, no change comes out that was not
//! written, and everything before the damage does.

use std::collections::HashMap;

use bytes::Bytes;
use cdc_commitlog::{Decoder, Fence, ReadLimit, ReadOutcome, SegmentFile, SegmentReader};
use cdc_model::{Change, ChangeBody, TableId, ValueBytes};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::{
    fuzz::Image,
    support::{Golden, provenance},
};

/// A change by all that it says.
type Said = (TableId, ValueBytes, ChangeBody);

/// The changes of each entry by the position the entry ends at, in the order they were read.
type Told = Vec<(u64, Vec<Said>)>;

fn tell(golden: &Golden, file: &SegmentFile, fence: Fence) -> Told {
    let mut entries = Vec::new();
    let Ok(Some(mut reader)) = SegmentReader::open(file, 0, 1 << 20) else { return Told::new() };
    let limit = ReadLimit { fence, finished: true, max_bytes: usize::MAX };
    while let Ok(report) = reader.read(limit, &mut |at, payload| entries.push((at.offset, payload.to_bytes()))) {
        if report.outcome != ReadOutcome::More {
            break;
        }
    }
    let mut decoder = Decoder::new();
    let mut said = |payload: &Bytes| {
        let mut out: Vec<Change> = Vec::new();
        decoder.decode(golden.format, payload, provenance(), &golden.tables, &|_| true, &mut out).unwrap();
        out.into_iter().map(|change| (change.table.id, change.partition_key, change.body)).collect()
    };
    entries.iter().map(|(at, payload)| (*at, said(payload))).collect()
}

/// What is wrong with `told`, of a segment that said `written` and was damaged at `damage`.
fn judge(written: &Told, told: &Told, damage: u64) -> Result<(), String> {
    let by_position: HashMap<u64, &Vec<Said>> = written.iter().map(|(at, said)| (*at, said)).collect();
    if let Some((at, _)) = told.iter().find(|(at, said)| by_position.get(at) != Some(&said)) {
        return Err(format!("the changes of the entry that ends at {at} were not written"));
    }
    if !told.is_sorted_by(|a, b| a.0 < b.0) {
        return Err("entries are told twice or out of order".into());
    }
    let kept = written.iter().take_while(|(at, _)| *at <= damage).count();
    match told.get(..kept) == Some(&written[..kept]) {
        true => Ok(()),
        false => Err(format!("{kept} entries stand before the damage at {damage}, not all of them are told")),
    }
}

const FENCES: [Fence; 2] = [Fence::Marker, Fence::Live];

/// A golden segment without the zeros it is padded with, but for some.
fn golden(name: &str) -> (Golden, Vec<u8>, [Told; 2]) {
    let golden = Golden::load(name);
    let mut bytes = std::fs::read(&golden.file.path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes.truncate(end + 64);
    let written = FENCES.map(|fence| tell(&golden, &Image::new(&bytes).file, fence));
    assert!(written.iter().all(|told| told.len() > 40 && told.iter().any(|(_, said)| said.len() > 1)));
    (golden, bytes, written)
}

fn damaged(name: &str, cases: u32, damage: impl Fn(&mut Vec<u8>, usize, u8)) {
    let (golden, bytes, written) = golden(name);
    let mut runner = TestRunner::new(ProptestConfig { cases, ..<_>::default() });
    // Behind the descriptor: one that is damaged is refused as a whole, see `damage.rs`.
    runner
        .run(&(20..bytes.len(), 1u8..), |(at, mask)| {
            let mut bytes = bytes.clone();
            damage(&mut bytes, at, mask);
            let image = Image::new(&bytes);
            for (fence, written) in FENCES.into_iter().zip(&written) {
                judge(written, &tell(&golden, &image.file, fence), at as u64).map_err(TestCaseError::fail)?;
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_changed_byte_of_a_real_segment_invents_nothing_and_costs_nothing_before_it() {
    for name in ["cassandra-5.0-v7", "cassandra-5.0-v8"] {
        damaged(name, 1_000, |bytes, at, mask| bytes[at] ^= mask);
    }
}

#[test]
fn a_cut_real_segment_invents_nothing_and_keeps_what_is_before_the_cut() {
    for name in ["cassandra-5.0-v7", "cassandra-5.0-v8"] {
        damaged(name, 500, |bytes, at, _| bytes.truncate(at));
    }
}

#[test]
fn a_real_segment_that_goes_on_as_zeros_keeps_what_is_before_them() {
    damaged("cassandra-5.0-v8", 500, |bytes, at, _| bytes[at..].fill(0));
}

#[test]
fn the_judge_finds_what_is_missing_invented_or_changed() {
    let (_, bytes, [written, _]) = golden("cassandra-5.0-v8");
    let end = bytes.len() as u64;
    let alter = |change: &dyn Fn(&mut Told)| {
        let mut told = written.clone();
        change(&mut told);
        judge(&written, &told, end)
    };
    assert_eq!(alter(&|_| {}), Ok(()));
    let last = written.len() - 1;
    let rich = written.iter().rposition(|(_, said)| !said.is_empty()).unwrap();
    assert!(alter(&|told| drop(told.pop())).is_err(), "the last is missing");
    assert!(alter(&|told| drop(told.remove(3))).is_err(), "one is missing");
    assert!(alter(&|told| told.swap(3, 4)).is_err(), "order");
    assert!(alter(&|told| told.push(told[last].clone())).is_err(), "twice");
    assert!(alter(&|told| told[last].0 += 1).is_err(), "elsewhere");
    assert!(alter(&|told| drop(told[rich].1.pop())).is_err(), "half a mutation");
    assert!(alter(&|told| told[rich].1[0].1 = b"another key"[..].into()).is_err(), "another key");
    let mut told = written.clone();
    told.pop();
    assert_eq!(judge(&written, &told, written[last].0 - 1), Ok(()), "what is behind the damage may be missing");
}
