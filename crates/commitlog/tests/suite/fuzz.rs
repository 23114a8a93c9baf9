//! Whatever the bytes: an answer, no panic, no memory out of proportion, and nothing that contradicts itself.
//!
//! The fuzz targets in `../../fuzz` call these functions with what libFuzzer makes up; the tests call them with every
//! input that once failed, by name, and with random ones.

use std::{cell::RefCell, io::Write as _, os::fd::AsRawFd as _, sync::OnceLock};

use bytes::Bytes;
use cdc_commitlog::{
    Damage, DamageKind, Decoder, Fence, Format, ReadError, ReadLimit, ReadOptions, ReadOutcome, SchemaFile,
    SchemaHistory, SegmentFile, SegmentReader,
};
use cdc_model::{
    Change, ChangeBody, ColumnState, CqlType, CqlValue, LocalTime, SegmentId, UdtResolver, compare_values, decode_row,
    encode_row, parse_type,
};

use crate::support::{Golden, crc, provenance};

/// Limit on one entry: a size a damaged segment claims must not be allocated.
const ENTRY_MAX: u64 = 1 << 20;

/// A segment file that exists in memory only.
pub(crate) struct Image {
    pub(crate) file: SegmentFile,
    _memory: std::fs::File,
}

impl Image {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let memory = rustix::fs::memfd_create("segment", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut memory = std::fs::File::from(memory);
        memory.write_all(bytes).unwrap();
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd()).into();
        // The name says the id the header says, or the header alone would be tested.
        let id = bytes.get(4..12).map_or(0, |id| u64::from_be_bytes(id.try_into().unwrap()));
        Self { file: SegmentFile { id: SegmentId(id), version: 7, path }, _memory: memory }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().unwrap()))
}

fn header_length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(12..14)?;
    let end = 18 + usize::from(u16::from_be_bytes(length.try_into().unwrap()));
    (end <= bytes.len()).then_some(end)
}

fn header_crc(bytes: &[u8], end: usize) -> [u8; 4] {
    crc(&[&bytes[..4], &bytes[8..12], &bytes[4..8], &[0, 0], &bytes[12..14], &bytes[14..end - 4]])
}

fn put_crc(bytes: &mut [u8], at: usize, crc: [u8; 4]) {
    if word(bytes, at).is_some_and(|stored| stored != 0) {
        bytes[at..at + 4].copy_from_slice(&crc);
    }
}

/// Makes every CRC hold that is not zero, as far as the lengths lead: most inputs would end at the first one otherwise,
/// and those of zero stay a way to say "torn" or "damaged".
fn repair(bytes: &mut [u8]) {
    let Some(start) = header_length(bytes) else { return };
    let crc_of_header = header_crc(bytes, start);
    bytes[start - 4..start].copy_from_slice(&crc_of_header);
    let is_plain = &bytes[14..start - 4] == b"{}";
    let mut section = start;
    while let Some(next) = word(bytes, section) {
        let at = u32::try_from(section).unwrap().to_be_bytes();
        let own = crc(&[&bytes[8..12], &bytes[4..8], &at]);
        put_crc(bytes, section + 4, own);
        let next = if next == 0 { bytes.len() } else { usize::try_from(next).unwrap() };
        if next < section + 8 || next > bytes.len() {
            return;
        }
        if is_plain {
            repair_entries(&mut bytes[section + 8..next]);
        }
        section = next;
    }
}

fn repair_entries(bytes: &mut [u8]) {
    let mut entry = 0;
    while let Some(size) = word(bytes, entry) {
        put_crc(bytes, entry + 4, crc(&[&size.to_be_bytes()]));
        let payload = entry + 8;
        let end = payload.saturating_add(usize::try_from(size).unwrap());
        if size == 0 || end > bytes.len() {
            return;
        }
        let own = crc(&[&size.to_be_bytes(), &bytes[payload..end]]);
        put_crc(bytes, end, own);
        entry = end + 4;
    }
}

/// A descriptor is taken for one only if its CRC holds and its version is known.
pub(crate) fn header(data: &[u8]) {
    let Some((flags, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if flags & 1 != 0 {
        repair(&mut bytes);
    }
    if let Ok(Some(reader)) = SegmentReader::open(&Image::new(&bytes).file, 0, ENTRY_MAX) {
        let end = header_length(&bytes).expect("a whole header");
        assert_eq!(header_crc(&bytes, end), bytes[end - 4..end]);
        let version = match reader.format() {
            Format::V7 => 7,
            Format::V8 => 8,
            Format::V9 => 9,
        };
        assert_eq!(word(&bytes, 0), Some(version));
    }
}

/// What reading gave: entries with their positions, what was skipped, and how it ended.
#[derive(PartialEq, Debug)]
struct Seen {
    entries: Vec<(u64, Bytes)>,
    damage: Vec<Damage>,
    end: Result<ReadOutcome, String>,
}

fn read(image: &Image, resume: u64, limit: ReadLimit) -> Option<Seen> {
    let options = ReadOptions { entry_bytes_max: ENTRY_MAX, section_bytes_max: ENTRY_MAX, ..ReadOptions::default() };
    let mut reader = match SegmentReader::open_with(&image.file, resume, &options) {
        Ok(Some(reader)) => reader,
        Ok(None) | Err(ReadError::Header { .. } | ReadError::Unsupported { .. }) => return None,
        Err(error) => return Some(Seen { entries: vec![], damage: vec![], end: Err(error.to_string()) }),
    };
    let mut seen = Seen { entries: vec![], damage: vec![], end: Ok(ReadOutcome::More) };
    for _ in 0..100_000 {
        match reader.read(limit, &mut |at, payload| seen.entries.push((at.offset, payload.to_bytes()))) {
            Ok(report) => {
                seen.damage.extend(report.damage);
                if report.outcome != ReadOutcome::More {
                    seen.end = Ok(report.outcome);
                    return Some(seen);
                }
            }
            Err(error) => {
                seen.end = Err(error.to_string());
                return Some(seen);
            }
        }
    }
    panic!("reading does not end");
}

/// A whole segment file in every mode: what is handed out stands there with its CRCs, in order; reading in small steps
/// or on from any position handed out gives the same.
pub(crate) fn segment(data: &[u8]) {
    let Some((flags, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if flags & 1 != 0 {
        repair(&mut bytes);
    }
    let image = Image::new(&bytes);
    let is_plain = header_length(&bytes).is_some_and(|end| &bytes[14..end - 4] == b"{}");
    let ends = if is_plain { section_ends(&bytes) } else { Vec::new() };
    let fences = [Fence::Live, Fence::Marker, Fence::Durable(u64::from(*flags) * 16)];
    for (fence, finished) in fences.into_iter().flat_map(|fence| [(fence, false), (fence, true)]) {
        let limit = ReadLimit { fence, finished, max_bytes: usize::MAX };
        let Some(whole) = read(&image, 0, limit) else { return };
        assert!(whole.entries.is_sorted_by(|a, b| a.0 < b.0), "positions go forward");
        for (at, payload) in whole.entries.iter().filter(|_| is_plain) {
            let end = usize::try_from(*at).unwrap();
            let start = end - payload.len() - 12;
            let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
            let entry = [&size[..], &crc(&[&size]), payload, &crc(&[&size, payload])].concat();
            assert_eq!(bytes[start..end], entry, "an entry is one by its CRCs");
        }
        let stepwise = read(&image, 0, ReadLimit { max_bytes: 1, ..limit });
        assert_eq!(Some(&whole), stepwise.as_ref(), "in small steps");
        for index in (0..whole.entries.len()).step_by(1 + whole.entries.len() / 6) {
            let at = whole.entries[index].0;
            let rest = read(&image, at, limit).expect("the header is the same");
            let left = &whole.entries[index + 1..];
            // Where a marker points is covered by no CRC: who did not read up to it cannot tell that it is wrong, and
            // who did believes it more than an entry that goes beyond.
            let mut cuts = whole.damage.iter().filter(|damage| damage.kind == DamageKind::Size);
            let cut = cuts.find(|cut| rest.entries.iter().any(|entry| starts_at(entry, cut.at.offset)));
            let cut =
                cut.map(|cut| cut.at.offset).or_else(|| rest.entries.iter().find_map(|entry| crossed(entry, &ends)));
            if let Some(cut) = cut {
                let before = left.partition_point(|(end, _)| *end <= cut);
                assert!(rest.entries.starts_with(&left[..before]), "on from {at}, {fence:?} {finished}");
            } else if whole.end.is_err() {
                assert!(rest.entries.starts_with(left), "on from {at}, {fence:?} {finished}");
            } else {
                assert_eq!(left, rest.entries, "on from {at}, {fence:?} {finished}");
                assert_eq!(whole.end, rest.end, "on from {at}, {fence:?} {finished}");
            }
        }
    }
}

/// Where sections end, as far as the markers say.
fn section_ends(bytes: &[u8]) -> Vec<u64> {
    let mut ends = Vec::new();
    let mut section = header_length(bytes).unwrap_or(bytes.len());
    while let (Some(next), Some(stored)) = (word(bytes, section), word(bytes, section + 4)) {
        let at = u32::try_from(section).unwrap().to_be_bytes();
        let own = u32::from_be_bytes(crc(&[&bytes[8..12], &bytes[4..8], &at]));
        let next = usize::try_from(next).unwrap();
        if (stored != 0 && stored != own) || next < section + 8 {
            break;
        }
        ends.push(next as u64);
        section = next;
    }
    ends
}

/// The end of a section that an entry begins at or goes beyond.
fn crossed((end, payload): &(u64, Bytes), ends: &[u64]) -> Option<u64> {
    let start = end - payload.len() as u64 - 12;
    ends.iter().copied().find(|place| (start..*end).contains(place))
}

fn starts_at((end, payload): &(u64, Bytes), offset: u64) -> bool {
    *end == offset + payload.len() as u64 + 12
}

const COMPRESSORS: [&str; 5] =
    ["LZ4Compressor", "SnappyCompressor", "DeflateCompressor", "ZstdCompressor", "NoopCompressor"];

/// What Cassandra's compressors of these names make of the bytes.
fn compress(compressor: &str, plain: &[u8]) -> Vec<u8> {
    match compressor {
        "LZ4Compressor" => lz4_flex::block::compress_prepend_size(plain),
        "SnappyCompressor" => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
        "DeflateCompressor" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        "ZstdCompressor" => zstd::bulk::compress(plain, 1).unwrap(),
        _ => plain.to_vec(),
    }
}

/// A compressed segment of two sections: each half of the bytes is what is compressed, or what stands there instead.
pub(crate) fn sections(data: &[u8]) {
    let Some(([kind, flags], bytes)) = data.split_first_chunk::<2>() else { return };
    let compressor = COMPRESSORS[usize::from(kind % 5)];
    let mut file = crate::support::header(8, 1, &format!(r#"{{"compressionClass":"{compressor}"}}"#));
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for (is_honest, half) in [(flags & 1 == 0, first), (flags & 2 == 0, second)] {
        let stored = if is_honest {
            let mut plain = half.to_vec();
            repair_entries(&mut plain);
            [&u32::try_from(plain.len()).unwrap().to_be_bytes()[..], &compress(compressor, &plain)].concat()
        } else {
            half.to_vec()
        };
        let (at, id) = (u32::try_from(file.len()).unwrap(), 1u64.to_be_bytes());
        let next = at + 8 + u32::try_from(stored.len()).unwrap();
        file.extend(next.to_be_bytes());
        file.extend(crc(&[&id[4..], &id[..4], &at.to_be_bytes()]));
        file.extend(stored);
    }
    if flags & 4 != 0 {
        file.truncate(file.len() - usize::from(flags >> 3).min(bytes.len()));
    }
    segment(&[&[flags & !1], &file[..]].concat());
}

/// Mutations, each behind its length, followed as schema changes: what they lead to survives a restart.
pub(crate) fn schema(data: &[u8]) {
    let mut history = SchemaHistory::new();
    let mut decoder = Decoder::new();
    let mut rest = data;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (payload, tail) = tail.split_at(usize::from(u16::from_be_bytes(*length)).min(tail.len()));
        rest = tail;
        let mut changes = Vec::new();
        let captured = |table: &cdc_model::TableSchema| history.follows(table.id);
        let payload = Bytes::copy_from_slice(payload);
        drop(decoder.decode(Format::V8, &payload, provenance(), &history, &captured, &mut changes));
        let followed = history.apply(&changes);
        assert!(followed.tables.iter().all(|table| !table.partition_key.is_empty()), "a table one can decode");
    }
    let known = |history: &SchemaHistory| {
        let mut tables: Vec<_> = history
            .tables()
            .map(|table| {
                let mut columns: Vec<_> =
                    table.columns.iter().map(|c| (c.name.clone(), c.dropped, c.ty.clone(), c.kind as u8)).collect();
                columns.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
                let keys = [table.partition_key.clone(), table.clustering.clone()];
                (table.id, table.full_name(), keys, columns)
            })
            .collect();
        tables.sort_by_key(|table| table.0);
        tables
    };
    let text = history.to_file().to_json();
    let (again, _) = SchemaHistory::from_file(SchemaFile::parse(text.as_bytes()).expect("what was written"));
    assert_eq!(known(&history), known(&again), "after a restart");
}

fn golden() -> &'static Golden {
    static GOLDEN: OnceLock<Golden> = OnceLock::new();
    GOLDEN.get_or_init(|| Golden::load("cassandra-5.0-v8"))
}

/// A payload against tables with columns of every type.
pub(crate) fn mutation(data: &[u8]) {
    let Some((flags, payload)) = data.split_first() else { return };
    let payload = Bytes::copy_from_slice(payload);
    let format = [Format::V7, Format::V8, Format::V9][usize::from(flags % 3)];
    let tables = &golden().tables;
    thread_local!(static LEARNED: RefCell<Decoder> = RefCell::default());
    let decode = |decoder: &mut Decoder, part: u128| {
        let mut out = Vec::new();
        let captured = |table: &cdc_model::TableSchema| part == 0 || table.id.0.as_u128() % 2 == part - 1;
        let result = decoder.decode(format, &payload, provenance(), tables, &captured, &mut out);
        assert!(result.is_ok() || out.is_empty(), "all or nothing");
        (result, out)
    };
    let (result, changes) = decode(&mut Decoder::new(), 0);
    let weight: usize = changes.iter().map(Change::weight).sum();
    assert!(weight <= 400 * payload.len(), "{weight} bytes from {}", payload.len());
    changes.iter().for_each(check);

    let said = |changes: &[Change]| -> Vec<_> {
        changes.iter().map(|change| (change.table.id, change.partition_key.clone(), change.body.clone())).collect()
    };
    let (again, same) = LEARNED.with_borrow_mut(|decoder| decode(decoder, 0));
    assert_eq!((&result, said(&changes)), (&again, said(&same)), "what it learned changes nothing");
    if result.is_ok() {
        for part in [1, 2] {
            let own: Vec<Change> =
                changes.iter().filter(|change| change.table.id.0.as_u128() % 2 == part - 1).cloned().collect();
            assert_eq!(said(&own), said(&decode(&mut Decoder::new(), part).1), "captured tables alone");
        }
    }
}

/// What the rest of the pipeline does with a change.
fn check(change: &Change) {
    let row = match &change.body {
        ChangeBody::Row { clustering, row } => {
            assert_eq!(clustering.values().count(), change.table.clustering.len());
            row
        }
        ChangeBody::Static(row) => row,
        ChangeBody::DeletePartition(_) | ChangeBody::DeleteRange(_) => return,
    };
    drop(change.table.split_partition_key(&change.partition_key));
    assert!(row.columns.is_sorted_by(|a, b| a.0 < b.0));
    let normal = row.clone().merge(row.clone());
    assert_eq!(normal.clone().merge(normal.clone()), normal, "merging is idempotent");
    let kept = decode_row(&change.table, encode_row(&change.table, row)).expect("what was encoded decodes");
    assert_eq!(&kept, row, "states survive being kept");
    drop(row.visible(LocalTime(1_700_000_000)));
    for (id, state) in &row.columns {
        let ty = &change.table.column(*id).ty;
        let cells = match state {
            ColumnState::Simple(cell) => std::slice::from_ref(cell).iter().collect::<Vec<_>>(),
            ColumnState::Complex(complex) => complex.cells.iter().map(|(_, cell)| cell).collect(),
        };
        for cell in cells {
            if let cdc_model::CellValue::Live(value) = &cell.value {
                drop(CqlValue::decode(ty, value));
            }
        }
    }
}

/// Takes a type off the front of the bytes.
fn take_type(rest: &mut &[u8], depth: usize) -> CqlType {
    let mut byte = || rest.split_off_first().copied().unwrap_or_default();
    let kind = byte();
    let plain = [
        CqlType::Ascii,
        CqlType::BigInt,
        CqlType::Blob,
        CqlType::Boolean,
        CqlType::Counter,
        CqlType::Date,
        CqlType::Decimal,
        CqlType::Double,
        CqlType::Duration,
        CqlType::Empty,
        CqlType::Float,
        CqlType::Inet,
        CqlType::Int,
        CqlType::SmallInt,
        CqlType::Text,
        CqlType::Time,
        CqlType::Timestamp,
        CqlType::TimeUuid,
        CqlType::TinyInt,
        CqlType::Uuid,
        CqlType::Varint,
        CqlType::Custom("a.Class".into()),
    ];
    if depth == 0 || usize::from(kind) % 32 < plain.len() {
        return plain[usize::from(kind) % plain.len()].clone();
    }
    let (count, frozen) = (byte(), kind & 0x80 == 0);
    let inner = |rest: &mut &[u8]| take_type(rest, depth - 1);
    match kind % 6 {
        0 => CqlType::List { element: Box::new(inner(rest)), frozen },
        1 => CqlType::Set { element: Box::new(inner(rest)), frozen },
        2 => CqlType::Map { key: Box::new(inner(rest)), value: Box::new(inner(rest)), frozen },
        3 => CqlType::Tuple((0..count % 5).map(|_| inner(rest)).collect()),
        4 => {
            let fields = (0..count % 5).map(|number| (number.to_string(), inner(rest))).collect();
            CqlType::Udt { keyspace: "ks".into(), name: "udt".into(), fields, frozen }
        }
        _ => {
            let dimension = if count == 255 { u32::MAX } else { u32::from(count) };
            CqlType::Vector { element: Box::new(inner(rest)), dimension }
        }
    }
}

struct OneUdt;

impl UdtResolver for OneUdt {
    fn keyspace(&self) -> &'static str {
        "ks"
    }

    fn fields(&self, _: &str) -> Option<&[(String, String)]> {
        static FIELDS: OnceLock<Vec<(String, String)>> = OnceLock::new();
        Some(FIELDS.get_or_init(|| vec![("f".into(), "frozen<list<int>>".into())]))
    }
}

/// Two values of one type, and the bytes as the name of a type.
pub(crate) fn values(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        drop(parse_type(text, &OneUdt));
    }
    let mut rest = data;
    let ty = take_type(&mut rest, 5);
    let Some((split, rest)) = rest.split_first() else { return };
    let (a, b) = rest.split_at(usize::from(*split).min(rest.len()));
    for value in [a, b] {
        drop(CqlValue::decode(&ty, value));
        assert!(compare_values(&ty, value, value).is_eq(), "a value equals itself");
    }
    assert_eq!(compare_values(&ty, a, b), compare_values(&ty, b, a).reverse(), "an order has one direction");
}

/// Inputs to start from, made from the golden segments.
pub(crate) mod seeds {
    use super::{CqlType, golden};
    use crate::support::{Segment, entry, header as descriptor};

    pub(crate) fn header() -> Vec<Vec<u8>> {
        let params = [
            "{}",
            r#"{"compressionClass":"LZ4Compressor","compressionParameters":null}"#,
            r#"{"compressionClass":"org.apache.cassandra.io.compress.ZstdCompressor","compressionParameters":{"a":"b"}}"#,
            r#"{"encCipher":"AES\/CBC\/PKCS5Padding","encIV":"00112233445566778899aabbccddeeff","encKeyAlias":"testing:1"}"#,
        ];
        let seed = |(version, params): (u32, &&str)| [&[1][..], &descriptor(version, 1, params)].concat();
        (7..10).flat_map(|version| params.iter().map(move |params| (version, params))).map(seed).collect()
    }

    pub(crate) fn segment() -> Vec<Vec<u8>> {
        let payloads: Vec<_> = golden().entries().into_iter().map(|(_, payload)| payload).collect();
        let short: Vec<_> = payloads.iter().filter(|payload| payload.len() < 200).collect();
        let mut seeds = Vec::new();
        for (number, payloads) in short.chunks(4).take(16).enumerate() {
            let mut segment = Segment::new(4096);
            for (index, payload) in payloads.iter().enumerate() {
                segment.append(payload);
                if (index + number) % 3 == 0 {
                    segment.sync();
                }
            }
            // One as it stands in a memory-mapped file, one as it ends in others.
            segment.bytes.truncate(segment.end + number % 2 * 64);
            seeds.push([&[u8::try_from(number * 16 + 1).unwrap()][..], &segment.bytes].concat());
        }
        let mut open = descriptor(8, 3, "{}");
        open.extend([0; 8]);
        open.extend(entry(&[7; 10]));
        open.extend(entry(&[8; 20]));
        seeds.push([&[1][..], &open].concat());
        seeds
    }

    pub(crate) fn sections() -> Vec<Vec<u8>> {
        let payloads: Vec<_> = golden().entries().into_iter().map(|(_, payload)| payload).collect();
        let entries: Vec<_> = payloads.iter().filter(|payload| payload.len() < 200).map(|bytes| entry(bytes)).collect();
        let seed = |(number, entries): (usize, &[Vec<u8>])| {
            let (kind, flags) = (u8::try_from(number % 5).unwrap(), u8::try_from(number / 5 % 4).unwrap());
            [&[kind, flags][..], &entries.concat()].concat()
        };
        entries.chunks(4).take(20).enumerate().map(seed).collect()
    }

    /// What each statement that changes a schema logged, alone and with the next.
    pub(crate) fn schema() -> Vec<Vec<u8>> {
        let changes = |payload: &bytes::Bytes| {
            let known = cdc_commitlog::SchemaHistory::new();
            let id = payload.get(1..17).and_then(|id| uuid::Uuid::from_slice(id).ok());
            id.is_some_and(|id| known.follows(cdc_model::TableId(id)))
        };
        let payloads: Vec<_> = golden().entries().into_iter().map(|(_, payload)| payload).filter(changes).collect();
        let framed = |payload: &bytes::Bytes| {
            let length = u16::try_from(payload.len()).ok()?;
            Some([&length.to_be_bytes()[..], payload].concat())
        };
        let framed: Vec<_> = payloads.iter().filter_map(framed).filter(|payload| payload.len() < 4000).collect();
        framed.iter().cloned().chain(framed.windows(2).map(<[_]>::concat)).collect()
    }

    pub(crate) fn mutation() -> Vec<Vec<u8>> {
        let mut payloads: Vec<_> = golden().entries().into_iter().map(|(_, payload)| payload).collect();
        payloads.retain(|payload| payload.len() < 4000);
        payloads.sort();
        payloads.dedup();
        payloads.iter().map(|payload| [&[1][..], payload].concat()).collect()
    }

    pub(crate) fn values() -> Vec<Vec<u8>> {
        let mut seeds: Vec<Vec<u8>> = [
            "frozen<map<text, frozen<list<int>>>>",
            "tuple<int, frozen<udt>, vector<float, 3>>",
            "'org.apache.cassandra.db.marshal.EmptyType'",
            "set<duration>",
        ]
        .map(|text| text.as_bytes().to_vec())
        .into();
        for kind in 0..=u8::MAX {
            seeds.push([&[kind, 2, 12, 14, 12, 8, 0, 0, 0, 1, 0, 0, 0, 4][..], &[1; 24]].concat());
        }
        // Every golden column's type is native or made of natives.
        debug_assert!(golden().tables.0.values().flat_map(|t| &t.columns).any(|c| c.ty == CqlType::Duration));
        seeds
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_fuzzing_starts_from_holds() {
        seeds::header().iter().for_each(|seed| header(seed));
        seeds::segment().iter().for_each(|seed| segment(seed));
        seeds::sections().iter().for_each(|seed| sections(seed));
        seeds::schema().iter().for_each(|seed| schema(seed));
        seeds::mutation().iter().for_each(|seed| mutation(seed));
        seeds::values().iter().for_each(|seed| values(seed));
    }

    fn golden_table(name: &str) -> Vec<u8> {
        let table = golden().tables.0.values().find(|table| table.name == name && table.keyspace == "golden").unwrap();
        table.id.0.as_bytes().to_vec()
    }

    /// Descriptor, then a marker that was half written and what stands behind it.
    fn behind_torn_marker(next: u32, rest: &[&[u8]]) -> Vec<u8> {
        let descriptor = crate::support::header(8, 1, "{}");
        [&[0][..], &descriptor, &next.to_be_bytes(), &[0; 4], &rest.concat()].concat()
    }

    #[test]
    fn damage_before_an_error_is_reported_whatever_the_budget() {
        let entry = crate::support::entry(&[7; 20]);
        let size_damaged = [&[0, 0, 0, 30, 1, 2, 3, 4][..], &[9; 38]].concat();
        let rest = [&entry[..], &size_damaged, &[0xff; 4], &[0; 4], &[1; 20]];
        let next = u32::try_from(28 + entry.len() + size_damaged.len()).unwrap();
        segment(&behind_torn_marker(next, &rest));
    }

    /// Three entries of which the first is damaged, so that the marker is looked at, which points into the last, or at it.
    #[test]
    fn a_marker_that_points_into_an_entry_is_believed_by_who_looks_at_it() {
        let (first, second) = (crate::support::entry(&[7; 20]), crate::support::entry(&[8; 20]));
        let descriptor = crate::support::header(8, 1, "{}");
        let at = u32::try_from(descriptor.len()).unwrap();
        for next in [at + 8 + 3 * 32 - 1, at + 8 + 2 * 32] {
            let own = crc(&[&1u64.to_be_bytes()[4..], &[0; 4], &at.to_be_bytes()]);
            let marker = [&next.to_be_bytes()[..], &own].concat();
            let mut damaged = first.clone();
            damaged[10] ^= 1;
            let rest = [&marker[..], &damaged, &first, &second, &[0; 16]].concat();
            segment(&[&[0][..], &descriptor, &rest].concat());
        }
    }

    #[test]
    fn reading_on_is_the_same_wherever_the_markers_point() {
        let entry = crate::support::entry(&[7; 20]);
        let descriptor = crate::support::header(8, 1, "{}");
        let (first, second) = (descriptor.len(), descriptor.len() + 8 + entry.len());
        let marker = |at, next, torn| {
            let mut marker = crate::support::marker(at, next);
            marker[4..].iter_mut().filter(|_| torn).for_each(|byte| *byte = 0);
            marker
        };
        let end = second + 8 + 2 * entry.len();
        for (next, torn) in (0..end + 16).flat_map(|next| [(next, false), (next, true)]) {
            let second_markers = [(0, true), (end, true), (end, false), (next, false)];
            let between = second_markers.map(|(next, torn)| marker(second, next, torn).to_vec());
            for between in between.iter().chain([&Vec::new()]) {
                let parts = [&[0][..], &descriptor, &marker(first, next, torn), &entry, between, &entry, &entry];
                segment(&parts.concat());
                segment(&[&parts.concat()[..], &[0; 24]].concat());
            }
        }
    }

    #[test]
    fn a_counter_that_claims_to_expire_is_refused() {
        let head = [&[1, 1][..], &golden_table("counts"), &[0, 0x10, 0, 0, 0, 1, 4], b"hits"].concat();
        // A row of no marker with one cell: expiring, a context of no shards.
        let cell = [0x20, 0, 0, 0, 0, 1, 0x02, 5, 6, 7, 2, 0, 0, 1];
        mutation(&[&head[..], &cell].concat());
    }

    fn check(cases: u32, seeds: Vec<Vec<u8>>, property: fn(&[u8])) {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases, ..<_>::default() });
        let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        let input = (prop::sample::select(seeds), edits, prop::option::of(any::<prop::sample::Index>()));
        runner
            .run(&input, |(mut bytes, edits, cut)| {
                for (at, byte) in edits {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                if let Some(cut) = cut {
                    bytes.truncate(cut.index(bytes.len()));
                }
                property(&bytes);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn edited_headers_hold() {
        check(2_000, seeds::header(), header);
    }

    #[test]
    fn edited_segments_hold() {
        check(2_000, seeds::segment(), segment);
    }

    #[test]
    fn edited_sections_hold() {
        check(2_000, seeds::sections(), sections);
    }

    #[test]
    fn edited_schema_changes_hold() {
        check(1_000, seeds::schema(), schema);
    }

    #[test]
    fn edited_payloads_hold() {
        check(10_000, seeds::mutation(), mutation);
    }

    #[test]
    fn edited_values_hold() {
        check(10_000, seeds::values(), values);
    }
}
