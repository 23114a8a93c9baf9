//! A segment writer for what no real server can be made to write on demand, and the golden segments.

use std::{collections::HashMap, io::Read as _, path::Path, sync::Arc};

use bytes::Bytes;
use cdc_commitlog::{Fence, Format, ReadLimit, ReadReport, Schemas, SegmentFile, SegmentReader};
use cdc_model::{
    Column, ColumnKind, CqlType, KeyColumn, NodeId, Provenance, SegmentPosition, TableId, TableSchema, UdtResolver,
    parse_type,
};
use serde_json::Value;
use uuid::Uuid;

pub(crate) const ID: u64 = 1_699_285_478_684;

pub(crate) fn crc(parts: &[&[u8]]) -> [u8; 4] {
    let mut crc = crc32fast::Hasher::new();
    parts.iter().for_each(|part| crc.update(part));
    crc.finalize().to_be_bytes()
}

/// The descriptor of a plain segment, or of one with parameters.
pub(crate) fn header(version: u32, id: u64, params: &str) -> Vec<u8> {
    let (version, id) = (version.to_be_bytes(), id.to_be_bytes());
    let length = u16::try_from(params.len()).unwrap().to_be_bytes();
    let crc = crc(&[&version, &id[4..], &id[..4], &[0, 0], &length, params.as_bytes()]);
    [&version[..], &id, &length, params.as_bytes(), &crc].concat()
}

pub(crate) fn marker(at: usize, next: usize) -> [u8; 8] {
    let id = ID.to_be_bytes();
    let crc = crc(&[&id[4..], &id[..4], &u32::try_from(at).unwrap().to_be_bytes()]);
    [u32::try_from(next).unwrap().to_be_bytes(), crc].concat().try_into().unwrap()
}

pub(crate) fn entry(payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&size[..], &crc(&[&size]), payload, &crc(&[&size, payload])].concat()
}

pub(crate) fn payload(number: usize) -> Vec<u8> {
    vec![u8::try_from(number % 250).unwrap() + 1; 10 + number % 40]
}

/// A segment file that is written as Cassandra's memory-mapped one is: all its length at once, then in place.
pub(crate) struct Segment {
    _dir: tempfile::TempDir,
    pub(crate) file: SegmentFile,
    pub(crate) bytes: Vec<u8>,
    /// Marker of the open section.
    section: usize,
    pub(crate) end: usize,
}

impl Segment {
    pub(crate) fn new(length: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("CommitLog-7-{ID}.log"));
        let mut bytes = header(7, ID, "{}");
        let section = bytes.len();
        bytes.resize(length, 0);
        let segment = Self { _dir: dir, file: SegmentFile::parse(&path).unwrap(), bytes, section, end: section + 8 };
        segment.save();
        segment
    }

    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        let mut segment = Self::new(28);
        segment.bytes = bytes;
        segment.save();
        segment
    }

    pub(crate) fn save(&self) {
        std::fs::write(&self.file.path, &self.bytes).unwrap();
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        use std::os::unix::fs::FileExt as _;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        let file = std::fs::File::options().write(true).open(&self.file.path).unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
    }

    /// Appends to the open section; the position to resume from behind it.
    pub(crate) fn append(&mut self, payload: &[u8]) -> u64 {
        let entry = entry(payload);
        self.put(self.end, &entry);
        self.end += entry.len();
        self.end as u64
    }

    /// Closes the open section, as a sync does.
    pub(crate) fn sync(&mut self) {
        let bytes = marker(self.section, self.end);
        self.put(self.section, &bytes);
        self.section = self.end;
        self.end += 8;
    }

    pub(crate) fn section(&self) -> usize {
        self.section
    }

    pub(crate) fn open(&self, resume: u64) -> SegmentReader {
        SegmentReader::open(&self.file, resume, SegmentReader::ENTRY_BYTES_MAX).unwrap().expect("a header")
    }

    /// Reads the file as it is from the start: payloads with their end positions, and how it ended.
    pub(crate) fn read_all(&self, fence: Fence, finished: bool) -> (Vec<(u64, Bytes)>, ReadReport) {
        read(&mut self.open(0), fence, finished)
    }
}

pub(crate) fn limit(fence: Fence, finished: bool) -> ReadLimit {
    ReadLimit { fence, finished, max_bytes: usize::MAX }
}

pub(crate) fn read(reader: &mut SegmentReader, fence: Fence, finished: bool) -> (Vec<(u64, Bytes)>, ReadReport) {
    let mut entries = Vec::new();
    let report = reader
        .read(limit(fence, finished), &mut |position, payload| entries.push((position.offset, payload.to_bytes())))
        .expect("readable");
    (entries, report)
}

pub(crate) fn provenance() -> Provenance {
    Provenance { node: NodeId(Uuid::nil()), position: SegmentPosition::START }
}

#[derive(Default)]
pub(crate) struct Tables(pub(crate) HashMap<TableId, Arc<TableSchema>>);

impl Schemas for Tables {
    fn table(&self, id: TableId) -> Option<&Arc<TableSchema>> {
        self.0.get(&id)
    }
}

impl Tables {
    pub(crate) fn of(tables: impl IntoIterator<Item = TableSchema>) -> Self {
        Self(tables.into_iter().map(|table| (table.id, Arc::new(table.new().unwrap()))).collect())
    }
}

/// A real segment and the schema of its node, made by `golden/make.py`.
pub(crate) struct Golden {
    pub(crate) file: SegmentFile,
    pub(crate) format: Format,
    pub(crate) tables: Tables,
    _dir: tempfile::TempDir,
}

impl Golden {
    pub(crate) fn load(name: &str) -> Self {
        let mut bytes = unpack(&format!("{name}.log.gz"));
        let schema: Value = serde_json::from_slice(&unpack(&format!("{name}.schema.json.gz"))).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(schema["segment"].as_str().unwrap());
        // As on disk: zeros up to the segment size.
        bytes.resize(1 << 20, 0);
        std::fs::write(&path, bytes).unwrap();
        let file = SegmentFile::parse(&path).unwrap();
        let format = if file.version == 8 { Format::V8 } else { Format::V7 };
        Self { file, format, tables: schemas(&schema), _dir: dir }
    }

    pub(crate) fn entries(&self) -> Vec<(u64, Bytes)> {
        let mut reader = SegmentReader::open(&self.file, 0, SegmentReader::ENTRY_BYTES_MAX).unwrap().unwrap();
        let (entries, report) = read(&mut reader, Fence::Marker, true);
        assert_eq!(report.damage, []);
        entries
    }
}

pub(crate) fn unpack(name: &str) -> Vec<u8> {
    // From the fuzz crate as well, which lies within this one.
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("tests/golden"));
    let path = folders.find(|folder| folder.is_dir()).unwrap().join(name);
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

struct Udts<'a>(&'a str, &'a HashMap<(String, String), Vec<(String, String)>>);

impl UdtResolver for Udts<'_> {
    fn keyspace(&self) -> &str {
        self.0
    }

    fn fields(&self, name: &str) -> Option<&[(String, String)]> {
        self.1.get(&(self.0.to_owned(), name.to_owned())).map(Vec::as_slice)
    }
}

/// Schemas from rows of `system_schema`.
fn schemas(dump: &Value) -> Tables {
    let rows = |table: &str| dump[table].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let texts = |value: &Value| value.as_array().unwrap().iter().map(text).collect::<Vec<_>>();
    let udts = rows("types")
        .iter()
        .map(|row| {
            let fields = texts(&row["field_names"]).into_iter().zip(texts(&row["field_types"])).collect();
            ((text(&row["keyspace_name"]), text(&row["type_name"])), fields)
        })
        .collect();
    let of = |rows: &[Value], table: &Value| -> Vec<Value> {
        let same = |row: &&Value, key| row[key] == table[key];
        rows.iter().filter(|row| same(row, "keyspace_name") && same(row, "table_name")).cloned().collect()
    };
    let (columns, dropped) = (rows("columns"), rows("dropped_columns"));
    Tables::of(rows("tables").iter().map(|table| {
        let keyspace = text(&table["keyspace_name"]);
        let ty =
            |row: &Value| -> CqlType { parse_type(row["type"].as_str().unwrap(), &Udts(&keyspace, &udts)).unwrap() };
        let mut own = of(&columns, table);
        own.sort_by_key(|row| row["position"].as_i64());
        let keys = |kind: &str| -> Vec<KeyColumn> {
            let key = |row: &Value| {
                let reversed = row["clustering_order"] == "desc";
                KeyColumn { name: text(&row["column_name"]), ty: ty(row), reversed }
            };
            own.iter().filter(|row| row["kind"] == kind).map(key).collect()
        };
        let kind = |row: &Value| match row["kind"].as_str() {
            Some("static") => Some(ColumnKind::Static),
            Some("regular") => Some(ColumnKind::Regular),
            _ => None,
        };
        let dropped = of(&dropped, table);
        let column = |row: &Value| {
            let gone = dropped.iter().find(|gone| gone["column_name"] == row["column_name"]);
            let dropped = gone.map(|gone| gone["dropped_time_ms"].as_i64().unwrap().saturating_mul(1000));
            Some(Column { name: text(&row["column_name"]), ty: ty(row), kind: kind(row)?, dropped })
        };
        TableSchema {
            id: TableId(table["id"].as_str().unwrap().parse().unwrap()),
            name: text(&table["table_name"]),
            partition_key: keys("partition_key"),
            clustering: keys("clustering"),
            columns: own.iter().filter_map(column).collect(),
            cdc: table["cdc"] == true,
            gc_grace_seconds: table["gc_grace_seconds"].as_i64().unwrap(),
            keyspace: keyspace.clone(),
        }
    }))
}
