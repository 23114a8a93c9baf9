//! Compressed and encrypted segments: whole, growing, damaged; and direct I/O. Those of real nodes are made by
//! `crates/cassandra/examples/golden_segments.rs`.

use std::{io::Write as _, ops::Range, path::Path};

use aes::cipher::{BlockModeEncrypt as _, KeyIvInit as _, block_padding::Pkcs7};
use bytes::Bytes;
use cdc_commitlog::{
    DamageKind, Decoder, Fence, Format, Keystore, KeystoreError, ReadError, ReadOptions, ReadOutcome, SegmentFile,
    SegmentReader,
};
use cdc_model::{
    Cell, CellValue, ChangeBody, Column, ColumnKind, ColumnState, CqlType, KeyColumn, TableId, TableSchema,
};
use flate2::read::GzDecoder;
use proptest::prelude::*;

use crate::support::{ID, Segment, Tables, entry, header, limit, marker, payload, provenance, read};

#[derive(Clone, Copy, PartialEq, Debug)]
enum Codec {
    Lz4,
    Snappy,
    Deflate,
    Zstd,
    Noop,
    Encrypted,
}

const ALL: [Codec; 6] = [Codec::Lz4, Codec::Snappy, Codec::Deflate, Codec::Zstd, Codec::Noop, Codec::Encrypted];
const IV: [u8; 16] = [9; 16];
/// Short, so that a few entries make several chunks.
const CHUNK: usize = 64;

fn lz4(plain: &[u8]) -> Vec<u8> {
    lz4_flex::block::compress_prepend_size(plain)
}

impl Codec {
    fn params(self) -> String {
        let class = match self {
            Self::Lz4 => "LZ4Compressor",
            Self::Snappy => "org.apache.cassandra.io.compress.SnappyCompressor",
            Self::Deflate => "DeflateCompressor",
            Self::Zstd => "ZstdCompressor",
            Self::Noop => "NoopCompressor",
            Self::Encrypted => {
                let iv: String = IV.iter().map(|byte| format!("{byte:02x}")).collect();
                // Encryption goes before compression that stands beside it.
                return format!(
                    r#"{{"compressionClass":"X","encCipher":"AES\/CBC\/PKCS5Padding","encIV":"{iv}","encKeyAlias":"K:1"}}"#
                );
            }
        };
        format!(r#"{{"compressionClass":"{class}","compressionParameters":null}}"#)
    }

    /// What stands behind the marker.
    fn section(self, plain: &[u8]) -> Vec<u8> {
        let length = u32::try_from(plain.len()).unwrap().to_be_bytes();
        let stored = match self {
            Self::Lz4 => lz4(plain),
            Self::Snappy => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
            // As in Java.
            Self::Deflate if plain.is_empty() => Vec::new(),
            Self::Deflate => {
                let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
                stream.write_all(plain).unwrap();
                stream.finish().unwrap()
            }
            Self::Zstd => {
                let mut stream = zstd::bulk::Compressor::new(3).unwrap();
                stream.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).unwrap();
                stream.compress(plain).unwrap()
            }
            Self::Noop => plain.to_vec(),
            Self::Encrypted => plain.chunks(CHUNK).flat_map(encrypted).collect(),
        };
        [&length[..], &stored].concat()
    }
}

fn encrypted(chunk: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_be_bytes();
    let compressed = [&length(chunk)[..], &lz4(chunk)].concat();
    let cipher = cbc::Encryptor::<aes::Aes128>::new(&[5; 16].into(), &IV.into());
    let encrypted = cipher.encrypt_padded_vec::<Pkcs7>(&compressed);
    [&length(&encrypted)[..], &length(&compressed), &encrypted].concat()
}

fn options() -> ReadOptions {
    let keystore = Some(Keystore::of_keys([("k:1".into(), vec![5; 16])]));
    ReadOptions { keystore, ..ReadOptions::default() }
}

/// A segment as Cassandra writes one: section by section, to the end of the file.
struct Written {
    bytes: Vec<u8>,
    /// Logical start of the next section's marker.
    logical: usize,
    /// In the file, each with its marker.
    sections: Vec<Range<usize>>,
    /// Logical end of each entry.
    ends: Vec<u64>,
    /// The entry each section begins with, and one behind the last.
    firsts: Vec<usize>,
    codec: Codec,
}

impl Written {
    fn new(codec: Codec) -> Self {
        let bytes = header(7, ID, &codec.params());
        Self { logical: bytes.len(), bytes, sections: vec![], ends: vec![], firsts: vec![0], codec }
    }

    fn sync(&mut self, payloads: &[Vec<u8>]) {
        let mut plain = Vec::new();
        for payload in payloads {
            plain.extend(entry(payload));
            self.ends.push((self.logical + 8 + plain.len()) as u64);
        }
        let section = self.codec.section(&plain);
        let start = self.bytes.len();
        let next = start + 8 + section.len();
        self.bytes.extend(marker(start, next));
        self.bytes.extend(section);
        self.logical += 8 + plain.len();
        self.sections.push(start..next);
        self.firsts.push(self.ends.len());
    }

    /// Sections of two, no, three, one and no entries.
    fn sample(codec: Codec) -> Self {
        let mut written = Self::new(codec);
        let mut number = 0;
        for count in [2, 0, 3, 1, 0] {
            let payloads: Vec<_> = (number..number + count).map(payload).collect();
            number += count;
            written.sync(&payloads);
        }
        written
    }

    fn segment(&self) -> Segment {
        Segment::of(self.bytes.clone())
    }

    /// Entry numbers with their offsets: only true ones are known.
    fn numbers(&self, entries: &[(u64, Bytes)]) -> Vec<usize> {
        let number = |(end, bytes): &(u64, Bytes)| {
            let number = self.ends.iter().position(|own| own == end).expect("a true offset");
            assert_eq!(bytes[..], payload(number));
            number
        };
        entries.iter().map(number).collect()
    }
}

fn open(segment: &Segment, resume: u64) -> SegmentReader {
    SegmentReader::open_with(&segment.file, resume, &options()).unwrap().expect("a header")
}

#[test]
fn offsets_are_those_of_a_plain_segment_and_sections_wait_for_the_index() {
    for codec in ALL {
        let written = Written::sample(codec);
        let segment = written.segment();
        let read = |fence, finished| {
            let mut reader = open(&segment, 0);
            assert!(reader.is_transformed());
            let (entries, report) = read(&mut reader, fence, finished);
            assert_eq!(report.damage, [], "{codec:?}");
            assert_eq!(report.outcome, if finished { ReadOutcome::End } else { ReadOutcome::Waiting });
            written.numbers(&entries)
        };
        for fence in [Fence::Live, Fence::Marker, Fence::Durable(u64::MAX), Fence::Durable(written.logical as u64)] {
            assert_eq!(read(fence, false), [0, 1, 2, 3, 4, 5], "{codec:?}");
        }
        // The index stands at the end of a section, which is not where the file's section ends.
        let third = written.ends[4];
        assert_eq!(read(Fence::Durable(third), false), [0, 1, 2, 3, 4], "{codec:?}");
        assert_eq!(read(Fence::Durable(third - 1), false), [0, 1], "{codec:?}");
        assert_eq!(read(Fence::Durable(0), false), [0; 0], "{codec:?}");
        assert_eq!(read(Fence::Durable(0), true), [0, 1, 2, 3, 4, 5], "{codec:?}");
    }
}

#[test]
fn reading_resumes_at_every_entry_and_knows_its_backlog() {
    for codec in ALL {
        let written = Written::sample(codec);
        let segment = written.segment();
        for (number, end) in written.ends.iter().enumerate() {
            let mut reader = open(&segment, *end);
            // Behind the next marker, if a section ends there.
            let passed = reader.offset() - end;
            assert!(matches!(passed, 0 | 8), "{codec:?} {number}");
            assert_eq!(reader.backlog().unwrap(), written.logical as u64 - end - passed, "{codec:?} {number}");
            let (entries, report) = read(&mut reader, Fence::Durable(u64::MAX), false);
            let rest: Vec<_> = (number + 1..6).collect();
            assert_eq!((written.numbers(&entries), report.damage), (rest, vec![]), "{codec:?}");
            assert_eq!((reader.covered(), reader.backlog().unwrap()), (written.logical as u64, 0), "{codec:?}");
        }
    }
}

#[test]
fn a_section_is_read_once_its_last_byte_is_written() {
    for codec in ALL {
        let written = Written::sample(codec);
        for (section, range) in written.sections.iter().enumerate() {
            let mut segment = Segment::of(written.bytes[..range.start].to_vec());
            let mut reader = open(&segment, 0);
            let known = written.firsts[section];
            assert_eq!(written.numbers(&read(&mut reader, Fence::Live, false).0), (0..known).collect::<Vec<_>>());
            for end in range.clone() {
                segment.bytes = written.bytes[..end].to_vec();
                segment.save();
                let (entries, report) = read(&mut reader, Fence::Live, false);
                assert_eq!((entries.len(), report.damage, report.outcome), (0, vec![], ReadOutcome::Waiting));
            }
            segment.bytes = written.bytes[..range.end].to_vec();
            segment.save();
            let next = written.firsts[section + 1];
            let found = written.numbers(&read(&mut reader, Fence::Live, false).0);
            assert_eq!(found, (known..next).collect::<Vec<_>>(), "{codec:?}");
        }
    }
}

#[test]
fn an_encrypted_section_whose_marker_comes_last_waits_for_it() {
    let written = Written::sample(Codec::Encrypted);
    let mut segment = Segment::of(written.bytes[..written.sections[1].start].to_vec());
    let mut reader = open(&segment, 0);
    assert_eq!(read(&mut reader, Fence::Live, false).0.len(), 2);
    // Chunks first, then marker and length (`EncryptedSegment.write`).
    let third = written.sections[2].clone();
    segment.bytes = written.bytes[..third.end].to_vec();
    segment.bytes[third.start..third.start + 12].fill(0);
    segment.save();
    assert_eq!(read(&mut reader, Fence::Live, false).1.outcome, ReadOutcome::Waiting);
    let (entries, report) = read(&mut open(&segment, 0), Fence::Live, true);
    assert_eq!((entries.len(), report.damage.len()), (2, 1));
    assert_eq!(report.damage[0].kind, DamageKind::TornTail);
    segment.bytes = written.bytes[..third.end].to_vec();
    segment.save();
    assert_eq!(read(&mut reader, Fence::Live, false).0.len(), 3);
}

#[test]
fn a_cut_segment_gives_its_complete_sections_and_nothing_else() {
    for codec in ALL {
        let written = Written::sample(codec);
        for length in written.sections[0].start..written.bytes.len() {
            let segment = Segment::of(written.bytes[..length].to_vec());
            let complete = written.sections.iter().take_while(|section| section.end <= length).count();
            let expected: Vec<_> = (0..written.firsts[complete]).collect();
            let (entries, report) = read(&mut open(&segment, 0), Fence::Marker, false);
            assert_eq!((written.numbers(&entries), report.damage), (expected.clone(), vec![]), "{codec:?} {length}");
            let mut reader = open(&segment, 0);
            let (entries, report) = read(&mut reader, Fence::Durable(0), true);
            assert_eq!((written.numbers(&entries), report.outcome), (expected, ReadOutcome::End), "{codec:?} {length}");
            let part = length - written.sections[complete].start;
            let kinds: Vec<_> = report.damage.iter().map(|damage| damage.kind).collect();
            let whole_marker = if part >= 8 { DamageKind::Truncated } else { DamageKind::TornTail };
            assert_eq!(kinds, if part == 0 { vec![] } else { vec![whole_marker] }, "{codec:?} {length}");
            // The end stays the end, for another reader too.
            let (entries, report) = read(&mut reader, Fence::Durable(0), true);
            assert_eq!((entries.len(), report.damage), (0, vec![]), "{codec:?} {length}");
            let mut again = open(&segment, reader.offset());
            let (entries, report) = read(&mut again, Fence::Durable(0), true);
            assert_eq!((entries.len(), report.outcome), (0, ReadOutcome::End), "{codec:?} {length}");
        }
    }
}

#[test]
fn zeros_to_the_end_cost_the_sections_they_touch() {
    for codec in ALL {
        let written = Written::sample(codec);
        for from in written.sections[0].start..written.bytes.len() {
            let mut bytes = written.bytes.clone();
            bytes[from..].fill(0);
            let segment = Segment::of(bytes);
            let complete = written.sections.iter().take_while(|section| section.end <= from).count();
            let mut seen = Vec::new();
            let result = open(&segment, 0)
                .read(limit(Fence::Marker, true), &mut |at, bytes| seen.push((at.offset, bytes.to_bytes())));
            let found = written.numbers(&seen);
            assert_eq!(found[..written.firsts[complete]], (0..written.firsts[complete]).collect::<Vec<_>>()[..]);
            let lost = found.len() < 6;
            assert!(!lost || result.map_or(true, |report| !report.damage.is_empty()), "{codec:?} {from} silent");
        }
    }
}

#[test]
fn no_flipped_bit_makes_a_false_entry_or_a_silent_loss() {
    for codec in ALL {
        let written = Written::sample(codec);
        let mut segment = written.segment();
        for at in written.sections[0].start..written.bytes.len() {
            let hit = written.sections.iter().position(|section| section.contains(&at)).unwrap();
            let in_marker = at < written.sections[hit].start + 8;
            for bit in 0..8 {
                segment.bytes[at] ^= 1 << bit;
                segment.save();
                segment.bytes[at] ^= 1 << bit;
                let context = format!("{codec:?}, byte {at} bit {bit} of section {hit}");
                let mut seen = Vec::new();
                let result = open(&segment, 0)
                    .read(limit(Fence::Marker, true), &mut |at, bytes| seen.push((at.offset, bytes.to_bytes())));
                // Every offset is right, whatever was lost before it.
                let found = written.numbers(&seen);
                assert!(found.is_sorted_by(|a, b| a < b), "{context}");
                let told = result.as_ref().map_or(true, |report| !report.damage.is_empty());
                assert!(told || found == [0, 1, 2, 3, 4, 5], "{context}: silent");
                let before: Vec<_> = (0..written.firsts[hit]).collect();
                assert!(found.starts_with(&before), "{context}: {found:?}");
                if !in_marker {
                    assert!(result.is_ok(), "{context}: {result:?}");
                    let behind: Vec<_> = (written.firsts[hit + 1]..6).collect();
                    assert!(found.ends_with(&behind), "{context}: {found:?}");
                }
                // A reader that goes on from any entry sees what this one saw behind it.
                if at % 3 == 0 && !in_marker {
                    for (index, (end, _)) in seen.iter().enumerate() {
                        let (rest, _) = read(&mut open(&segment, *end), Fence::Marker, true);
                        assert_eq!(written.numbers(&rest), found[index + 1..], "{context}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_damaged_section_is_skipped_once_the_next_one_is_there() {
    for codec in [Codec::Lz4, Codec::Snappy, Codec::Deflate, Codec::Zstd, Codec::Encrypted] {
        let mut written = Written::new(codec);
        written.sync(&[payload(0)]);
        written.sync(&[payload(1)]);
        let second = written.sections[1].clone();
        let length = written.ends[1] - written.ends[0] - 8;
        // The compressor's own first bytes, or the length of a chunk.
        let broken = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[second.start + 12..second.start + 16].fill(0xee);
            bytes
        };
        let mut segment = Segment::of(broken(&written.bytes));
        let mut reader = open(&segment, 0);
        for _ in 0..3 {
            let (entries, report) = read(&mut reader, Fence::Marker, false);
            assert!(entries.len() <= 1 && report.damage.is_empty() && report.outcome == ReadOutcome::Waiting);
        }
        written.sync(&[payload(2)]);
        segment.bytes = broken(&written.bytes);
        segment.save();
        let (entries, report) = read(&mut reader, Fence::Marker, false);
        assert_eq!(written.numbers(&entries), [2], "{codec:?}");
        let [damage] = report.damage[..] else { panic!("{:?}", report.damage) };
        assert_eq!((damage.kind, damage.at.offset, damage.bytes), (DamageKind::Section, written.ends[0] + 8, length));
    }
}

#[test]
fn a_wrong_length_in_front_costs_nothing() {
    for codec in [Codec::Lz4, Codec::Snappy, Codec::Deflate, Codec::Zstd, Codec::Noop, Codec::Encrypted] {
        let written = Written::sample(codec);
        for length in [0, 7, 1_000_000, u32::MAX] {
            let mut bytes = written.bytes.clone();
            let at = written.sections[2].start + 8;
            bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
            let segment = Segment::of(bytes);
            let (entries, report) = read(&mut open(&segment, 0), Fence::Marker, true);
            assert_eq!(written.numbers(&entries), [0, 1, 2, 3, 4, 5], "{codec:?} {length}");
            assert_eq!((report.damage.len(), report.damage[0].kind), (1, DamageKind::Section));
            assert_eq!(report.damage[0].bytes, 0);
        }
    }
}

#[test]
fn a_section_over_the_limit_is_refused_and_one_at_it_is_read() {
    for codec in ALL {
        let mut written = Written::new(codec);
        written.sync(&[vec![7; 100_000], vec![8; 300_000]]);
        let segment = written.segment();
        let length = 400_024;
        let options = |section_bytes_max| ReadOptions { section_bytes_max, ..options() };
        let mut reader = SegmentReader::open_with(&segment.file, 0, &options(length)).unwrap().unwrap();
        let (entries, _) = read(&mut reader, Fence::Marker, true);
        let lengths: Vec<_> = entries.iter().map(|(end, bytes)| (*end, bytes.len())).collect();
        assert_eq!(lengths, [(written.ends[0], 100_000), (written.ends[1], 300_000)], "{codec:?}");
        assert!(entries[1].1.iter().all(|byte| *byte == 8));
        let mut reader = SegmentReader::open_with(&segment.file, 0, &options(length - 1)).unwrap().unwrap();
        let error = reader.read(limit(Fence::Marker, true), &mut |_, _| panic!()).unwrap_err();
        assert!(matches!(error, ReadError::SectionTooLarge { size, .. } if size >= length), "{codec:?} {error}");
        assert!(error.to_string().contains("raise section_bytes_max"));
    }
}

#[test]
fn a_key_that_opens_nothing_is_not_taken_for_damage() {
    let written = Written::sample(Codec::Encrypted);
    let segment = written.segment();
    let with = |keys: [(&str, Vec<u8>); 1]| ReadOptions {
        keystore: Some(Keystore::of_keys(keys.map(|(alias, key)| (alias.to_owned(), key)))),
        ..ReadOptions::default()
    };
    for key in [vec![6; 16], vec![5; 32]] {
        let mut reader = SegmentReader::open_with(&segment.file, 0, &with([("k:1", key)])).unwrap().unwrap();
        for finished in [false, true] {
            let error = reader.read(limit(Fence::Marker, finished), &mut |_, _| panic!()).unwrap_err();
            assert!(error.to_string().contains("key K:1 of the keystore opens no section"), "{error}");
        }
    }
    for (options, reason) in [
        (with([("other", vec![5; 16])]), "no key K:1, only: other"),
        (with([("K:1", vec![5; 15])]), "K:1 is no key of AES"),
        (ReadOptions::default(), "configure the keystore"),
    ] {
        let error = SegmentReader::open_with(&segment.file, 0, &options).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    // The first section damaged, the key right: another one shows that it is.
    let mut bytes = written.bytes.clone();
    bytes[written.sections[0].start + 20..written.sections[0].end].fill(1);
    let (entries, report) = read(&mut open(&Segment::of(bytes), 0), Fence::Marker, true);
    assert_eq!(written.numbers(&entries), [2, 3, 4, 5]);
    assert_eq!((report.damage.len(), report.damage[0].kind), (1, DamageKind::Section));
}

proptest! {
    #[test]
    fn random_sections_never_panic(
        codec in prop::sample::select(ALL.to_vec()),
        parts in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)), 0..4),
        prefix in 0..40_usize,
        finished: bool,
    ) {
        let mut bytes = header(7, ID, &codec.params());
        let real = codec.section(&entry(&payload(1)));
        for (length, noise) in parts {
            let start = bytes.len();
            let body = [&length.to_be_bytes()[..], real.get(4..4 + prefix).unwrap_or_default(), &noise].concat();
            bytes.extend(marker(start, start + 8 + body.len()));
            bytes.extend(body);
        }
        let segment = Segment::of(bytes);
        for (resume, fence) in [(0, Fence::Live), (100, Fence::Marker), (0, Fence::Durable(100))] {
            if let Ok(Some(mut reader)) = SegmentReader::open_with(&segment.file, resume, &options()) {
                let genuine = payload(1);
                drop(reader.read(limit(fence, finished), &mut |_, bytes| assert_eq!(bytes[..], genuine)));
                drop(reader.backlog());
            }
        }
    }
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// A real segment; where its data ends by the index.
fn golden(name: &str) -> (Segment, u64, SegmentFile) {
    use std::io::Read as _;
    let mut archive = GzDecoder::new(std::fs::File::open(format!("{GOLDEN}/{name}.log.gz")).unwrap());
    let mut bytes = Vec::new();
    archive.read_to_end(&mut bytes).unwrap();
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    let header = archive.header().unwrap();
    let (file, end) = (text(header.filename()), text(header.comment()).parse().unwrap());
    let segment = Segment::of(bytes);
    let path = segment.file.path.with_file_name(file);
    std::fs::rename(&segment.file.path, &path).unwrap();
    (segment, end, SegmentFile::parse(&path).unwrap())
}

fn keystore(name: &str) -> Option<Keystore> {
    let path = format!("{GOLDEN}/{name}.keystore");
    Path::new(&path).exists().then(|| Keystore::open(Path::new(&path), "cassandra", None).unwrap())
}

/// `golden.t (id int PRIMARY KEY, v text)`.
fn tables() -> Tables {
    Tables::of([TableSchema {
        id: TableId("5ea51de5-0000-4000-8000-000000000001".parse().unwrap()),
        keyspace: "golden".into(),
        name: "t".into(),
        partition_key: vec![KeyColumn { name: "id".into(), ty: CqlType::Int, reversed: false }],
        clustering: vec![],
        columns: vec![Column { name: "v".into(), ty: CqlType::Text, kind: ColumnKind::Regular, dropped: None }],
        cdc: true,
        gc_grace_seconds: 864_000,
    }])
}

type Row = (i32, i64, String);

/// The rows of the table, in order, as key, write time and value; and where the last one's entry ends.
fn rows(reader: &mut SegmentReader) -> (Vec<Row>, u64) {
    let format = reader.format();
    let (entries, report) = read(reader, Fence::Durable(0), true);
    assert_eq!((report.damage, report.outcome), (vec![], ReadOutcome::End));
    let tables = tables();
    let (id, table) = tables.0.iter().next().unwrap();
    let (mut rows, mut end) = (Vec::new(), 0);
    for (position, payload) in entries.iter().filter(|(_, payload)| payload[1..17] == *id.0.as_bytes()) {
        let mut changes = Vec::new();
        Decoder::new().decode(format, payload, provenance(), &tables, &|_| true, &mut changes).unwrap();
        let [change] = &changes[..] else { panic!("{changes:?}") };
        let ChangeBody::Row { row, .. } = &change.body else { panic!("{change:?}") };
        let [(column, ColumnState::Simple(Cell { value: CellValue::Live(value), time, .. }))] = &row.columns[..] else {
            panic!("{change:?}")
        };
        assert_eq!(table.column(*column).name, "v");
        let key = i32::from_be_bytes(change.partition_key[..].try_into().unwrap());
        rows.push((key, time.0, String::from_utf8(value.to_vec()).unwrap()));
        end = *position;
    }
    (rows, end)
}

/// What `golden_segments.rs` writes: 20 rows, three times, and one of 150,000 bytes.
fn written() -> Vec<Row> {
    let large: String =
        (0..).flat_map(|n| format!("{} ", n % 1000).into_bytes()).map(char::from).take(150_000).collect();
    let small = (0..60).map(|row| (row, i64::from(row), format!("row {row}")));
    small.chain([(-1, 1000, large)]).collect()
}

/// Name, format, whether it is transformed.
const SEGMENTS: [(&str, Format, bool); 10] = [
    ("lz4-5.0", Format::V7, true),
    ("snappy-4.0", Format::V7, true),
    ("deflate-4.1", Format::V7, true),
    ("zstd-5.0-v8", Format::V8, true),
    ("noop-4.1", Format::V7, true),
    ("direct-5.0-v8", Format::V8, false),
    ("jceks-5.0", Format::V7, true),
    ("pkcs12-5.0-v8", Format::V8, true),
    ("jceks-4.1", Format::V7, true),
    ("pkcs12-4.1", Format::V7, true),
];

#[test]
fn real_segments_of_every_kind_hold_what_was_written() {
    for (name, format, transformed) in SEGMENTS {
        let (_segment, end_of_data, file) = golden(name);
        let options = ReadOptions { keystore: keystore(name), ..ReadOptions::default() };
        let open = |resume| SegmentReader::open_with(&file, resume, &options).unwrap().unwrap();
        let mut reader = open(0);
        assert_eq!((reader.format(), reader.is_transformed()), (format, transformed), "{name}");
        let (found, end) = rows(&mut reader);
        assert_eq!(found, written(), "{name}");
        // Offsets are what Cassandra says in its index.
        assert_eq!(reader.covered(), end_of_data, "{name}");
        let (last, _) = read(&mut open(0), Fence::Durable(end_of_data), false);
        let (before, _) = read(&mut open(0), Fence::Durable(end - 1), false);
        assert!(last.last().is_some_and(|(position, _)| *position >= end), "{name}");
        assert!(before.iter().all(|(position, _)| *position < end) && !before.is_empty(), "{name}");
        let (rest, _) = read(&mut open(end), Fence::Durable(0), true);
        assert!(rest.iter().all(|(position, _)| *position > end), "{name}");
        assert_eq!(rest.len(), last.iter().filter(|(position, _)| *position > end).count(), "{name}");
    }
}

#[test]
fn a_real_segment_cut_anywhere_gives_a_beginning_of_what_was_written() {
    for (name, _, _) in SEGMENTS {
        let (segment, _, file) = golden(name);
        let options = ReadOptions { keystore: keystore(name), ..ReadOptions::default() };
        let whole = {
            let mut reader = SegmentReader::open_with(&file, 0, &options).unwrap().unwrap();
            read(&mut reader, Fence::Durable(0), true).0
        };
        let mut least = 0;
        for length in (200..segment.bytes.len()).step_by(segment.bytes.len() / 25) {
            std::fs::write(&file.path, &segment.bytes[..length]).unwrap();
            let mut reader = SegmentReader::open_with(&file, 0, &options).unwrap().unwrap();
            let (found, report) = read(&mut reader, Fence::Marker, true);
            assert!(whole.starts_with(&found) && found.len() >= least, "{name} {length}");
            assert_eq!(report.outcome, ReadOutcome::End, "{name} {length}");
            least = found.len();
        }
    }
}

#[test]
fn keystores_of_other_passwords_and_forms_are_refused_by_name() {
    for (name, _, _) in SEGMENTS {
        let Ok(bytes) = std::fs::read(format!("{GOLDEN}/{name}.keystore")) else { continue };
        let open = |password, key: Option<&str>| Keystore::parse(&bytes, password, key);
        assert!(matches!(open("casandra", None), Err(KeystoreError::Password)), "{name}");
        let shown = format!("{:?}", open("cassandra", None).unwrap());
        assert!(shown.contains("testing:1") && !shown.contains("cassandra"), "{shown}");
        // The key has its own password: another one does not open it.
        let (_segment, _, file) = golden(name);
        let keystore = open("cassandra", Some("other")).unwrap();
        let options = ReadOptions { keystore: Some(keystore), ..ReadOptions::default() };
        let error = SegmentReader::open_with(&file, 0, &options).unwrap_err().to_string();
        assert!(error.contains("key testing:1 does not open"), "{error}");
        assert!(open("cassandra", Some("")).is_ok(), "an empty one is none");
        for end in 0..bytes.len() {
            assert!(Keystore::parse(&bytes[..end], "cassandra", None).is_err(), "{name} {end}");
        }
    }
    let error = Keystore::parse(&[0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2], "cassandra", None).unwrap_err();
    assert!(error.to_string().starts_with("the keystore is a JKS, which cannot hold"), "{error}");
    let error = Keystore::open(Path::new("/nowhere"), "", None).unwrap_err();
    assert!(matches!(error, KeystoreError::Io { .. }), "{error}");
}
