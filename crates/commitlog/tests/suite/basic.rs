use cdc_commitlog::{Fence, ReadError, ReadLimit, ReadOutcome, SegmentFile, SegmentReader};

use crate::support::{ID, Segment, header, limit, payload, read};

fn offsets(entries: &[(u64, bytes::Bytes)]) -> Vec<u64> {
    entries.iter().map(|(offset, _)| *offset).collect()
}

/// Three sections: of two, none, and three entries; then two entries in an open one.
fn segment() -> (Segment, Vec<u64>) {
    let mut segment = Segment::new(4096);
    let mut ends = Vec::new();
    for count in [2, 0, 3] {
        for _ in 0..count {
            let number = ends.len();
            ends.push(segment.append(&payload(number)));
        }
        segment.sync();
    }
    ends.push(segment.append(&payload(5)));
    ends.push(segment.append(&payload(6)));
    (segment, ends)
}

#[test]
fn each_mode_reads_up_to_its_fence() {
    let (segment, ends) = segment();
    let read = |fence| offsets(&segment.read_all(fence, false).0);
    assert_eq!(read(Fence::Live), ends);
    assert_eq!(read(Fence::Marker), ends[..5]);
    assert_eq!(read(Fence::Durable(ends[4])), ends[..5]);
    assert_eq!(read(Fence::Durable(ends[4] - 1)), ends[..2]);
    assert_eq!(read(Fence::Durable(0)), ends[..0]);
    let (entries, report) = segment.read_all(Fence::Durable(0), true);
    assert_eq!((offsets(&entries), report.outcome), (ends[..5].to_vec(), ReadOutcome::End));
    let (entries, report) = segment.read_all(Fence::Live, true);
    assert_eq!((offsets(&entries), report.outcome, report.damage), (ends.clone(), ReadOutcome::End, vec![]));
    for (number, (_, bytes)) in entries.iter().enumerate() {
        assert_eq!(bytes[..], payload(number));
    }
}

#[test]
fn reading_resumes_at_every_entry() {
    let (segment, ends) = segment();
    for (index, end) in ends.iter().enumerate() {
        for fence in [Fence::Live, Fence::Marker] {
            let mut reader = segment.open(*end);
            let until = if fence == Fence::Live { ends.len() } else { 5.max(index + 1) };
            assert_eq!(offsets(&read(&mut reader, fence, false).0), ends[index + 1..until]);
        }
    }
}

#[test]
fn a_reader_that_was_rewound_reads_all_again_though_the_file_is_gone() {
    let (segment, ends) = segment();
    let mut reader = segment.open(ends[3]);
    drop(segment);
    for finished in [false, true] {
        reader.rewind();
        assert_eq!(offsets(&read(&mut reader, Fence::Live, finished).0), ends);
    }
}

#[test]
fn the_budget_stops_after_the_entry_that_reaches_it() {
    let (segment, ends) = segment();
    let mut reader = segment.open(0);
    let budget = ReadLimit { fence: Fence::Live, finished: false, max_bytes: 17 };
    for pair in [&ends[..2], &ends[2..4], &ends[4..6], &ends[6..]] {
        let mut got = Vec::new();
        let report = reader.read(budget, &mut |position, _| got.push(position.offset)).unwrap();
        assert_eq!(got, pair);
        let last = pair.len() == 1;
        assert_eq!(report.outcome, if last { ReadOutcome::Waiting } else { ReadOutcome::More });
        assert_eq!(reader.offset(), *pair.last().unwrap());
    }
}

#[test]
fn an_entry_is_seen_once_its_last_byte_is_written() {
    let mut segment = Segment::new(4096);
    let mut live = segment.open(0);
    let mut marker = segment.open(0);
    for number in 0..20 {
        let at = segment.end;
        let whole = crate::support::entry(&payload(number));
        for end in 1..whole.len() {
            segment.put(at, &whole[..end]);
            assert_eq!(read(&mut live, Fence::Live, false).0, [], "after {end} bytes");
        }
        let position = segment.append(&payload(number));
        let (entries, report) = read(&mut live, Fence::Live, false);
        assert_eq!((offsets(&entries), report.damage), (vec![position], vec![]));
        assert_eq!(read(&mut marker, Fence::Marker, false).0, []);
        if number % 3 == 2 {
            let covered = segment.end as u64;
            segment.sync();
            assert_eq!(marker.backlog().unwrap(), covered - marker.offset());
            assert_eq!(read(&mut marker, Fence::Marker, false).0.len(), 3);
            assert_eq!((marker.covered(), marker.backlog().unwrap()), (covered, 0));
        }
    }
    assert_eq!(read(&mut live, Fence::Live, true).1.outcome, ReadOutcome::End);
}

#[test]
fn what_was_read_before_a_segment_was_finished_is_read_again() {
    let mut segment = Segment::new(4096);
    let first = segment.append(&payload(0));
    let (at, whole) = (segment.end, crate::support::entry(&payload(1)));
    segment.put(at, &whole[..whole.len() / 2]);
    let mut reader = segment.open(0);
    let mut got = Vec::new();
    let stop = ReadLimit { fence: Fence::Live, finished: false, max_bytes: 1 };
    let report = reader.read(stop, &mut |position, _| got.push(position.offset)).unwrap();
    assert_eq!((got, report.outcome), (vec![first], ReadOutcome::More));
    let second = segment.append(&payload(1));
    segment.sync();
    let (entries, report) = read(&mut reader, Fence::Live, true);
    assert_eq!((offsets(&entries), report.outcome, report.damage), (vec![second], ReadOutcome::End, vec![]));
}

#[test]
fn order_is_kept_when_a_later_entry_is_complete_first() {
    let mut segment = Segment::new(4096);
    let (first, second) = (crate::support::entry(&payload(1)), crate::support::entry(&payload(2)));
    let at = segment.end;
    segment.put(at + first.len(), &second);
    let mut reader = segment.open(0);
    assert_eq!(read(&mut reader, Fence::Live, false).0, []);
    segment.put(at, &first);
    let ends = [at + first.len(), at + first.len() + second.len()].map(|end| end as u64);
    assert_eq!(offsets(&read(&mut reader, Fence::Live, false).0), ends);
}

#[test]
fn entries_behind_a_section_whose_marker_is_not_yet_written_wait_for_it() {
    let mut segment = Segment::new(4096);
    segment.append(&payload(1));
    let mut reader = segment.open(0);
    assert_eq!(read(&mut reader, Fence::Live, false).0.len(), 1);
    // The next section's entries can be written before this one's marker, whose place stays zero.
    let next = segment.end;
    segment.put(next + 8, &crate::support::entry(&payload(2)));
    assert_eq!(read(&mut reader, Fence::Live, false).0, []);
    let closing = crate::support::marker(segment.section(), next);
    let at = segment.section();
    segment.put(at, &closing[..4]);
    assert_eq!(read(&mut reader, Fence::Live, false).0, [], "the pointer alone closes nothing");
    segment.put(at, &closing);
    assert_eq!(read(&mut reader, Fence::Live, false).0.len(), 1);
}

#[test]
fn a_segment_without_header_is_not_there_yet() {
    for bytes in [vec![], vec![0; 10], vec![0; 4096], header(7, ID, "{}")[..19].to_vec()] {
        let segment = Segment::of(bytes);
        assert!(SegmentReader::open(&segment.file, 0, 1 << 20).unwrap().is_none());
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_its_reason() {
    let refused = |bytes: Vec<u8>| {
        let segment = Segment::of(bytes);
        SegmentReader::open(&segment.file, 0, 1 << 20).unwrap_err().to_string()
    };
    let compressed = r#"{"compressionClass":"com.acme.LZ4Compressor","compressionParameters":null}"#;
    let cipher = r#"{"encCipher":"DESede\/CBC\/PKCS5Padding","encIV":"00","encKeyAlias":"k"}"#;
    let vector = r#"{"encCipher":"AES\/CBC\/PKCS5Padding","encIV":"0","encKeyAlias":"k"}"#;
    let encrypted = r#"{"encCipher":"AES\/CBC\/PKCS5Padding","encIV":"00","encKeyAlias":"k"}"#;
    for (bytes, reason) in [
        (header(6, ID, "{}"), "version is 6"),
        (header(10, ID, "{}"), "version is 10"),
        (header(680, ID, "{}"), "version is 680"),
        (header(7, ID, compressed), "compressed with \"com.acme.LZ4Compressor\""),
        (header(7, ID, r#"{"compressionClass":1}"#), "compressed with 1"),
        (header(7, ID, cipher), "encrypted with DESede/CBC/PKCS5Padding"),
        (header(7, ID, vector), "encIV"),
        (header(7, ID, encrypted), "configure the keystore"),
        (header(7, ID + 1, "{}"), "belongs to segment 1699285478685"),
        (header(7, ID, "{"), "not JSON"),
    ] {
        let message = refused(bytes);
        assert!(message.contains(reason), "{message}");
    }
    let known = header(8, ID, r#"{"new":1}"#);
    assert!(SegmentReader::open(&Segment::of(known).file, 0, 1 << 20).unwrap().is_some());
}

#[test]
fn an_entry_over_the_limit_is_refused_before_it_is_read_and_one_at_it_is_read() {
    let mut segment = Segment::new(2 << 20);
    let end = segment.append(&vec![7; 1 << 20]);
    let open = |max| SegmentReader::open(&segment.file, 0, max).unwrap().unwrap();
    assert_eq!(offsets(&read(&mut open(1 << 20), Fence::Live, false).0), [end]);
    let error = open((1 << 20) - 1).read(limit(Fence::Live, false), &mut |_, _| panic!()).unwrap_err();
    assert!(matches!(error, ReadError::EntryTooLarge { size: 1_048_576, .. }), "{error}");
}

#[test]
fn a_missing_segment_is_an_io_error() {
    let file = SegmentFile { path: "/nowhere/CommitLog-7-1.log".into(), ..Segment::new(64).file.clone() };
    assert!(matches!(SegmentReader::open(&file, 0, 1), Err(ReadError::Io { .. })));
}
