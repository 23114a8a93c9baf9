//! How fast a second of processor time frames and decodes full-row inserts: `cargo run --release -p cdc-commitlog --example decode_throughput`.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use cdc_commitlog::{Decoder, Fence, Format, Payload, ReadLimit, ReadOutcome, Schemas, SegmentFile, SegmentReader};
use cdc_model::{Column, ColumnKind, CqlType, KeyColumn, NodeId, Provenance, SegmentPosition, TableId, TableSchema};
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

const ROWS: usize = 150_000;
/// The best counts: other work on the machine only makes it slower.
const ROUNDS: usize = 20;
const ID: u64 = 1;

struct One(Arc<TableSchema>);

impl Schemas for One {
    fn table(&self, id: TableId) -> Option<&Arc<TableSchema>> {
        (self.0.id == id).then_some(&self.0)
    }
}

fn crc(parts: &[&[u8]]) -> [u8; 4] {
    let mut crc = crc32fast::Hasher::new();
    parts.iter().for_each(|part| crc.update(part));
    crc.finalize().to_be_bytes()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).expect("short")], bytes].concat()
}

/// `t (id uuid, at timestamp, c0..c9, PRIMARY KEY (id, at))`: two ints, two bigints, two doubles, four texts.
fn table() -> anyhow::Result<TableSchema> {
    let key = |name: &str, ty| KeyColumn { name: name.into(), ty, reversed: false };
    let types = [CqlType::Int, CqlType::BigInt, CqlType::Double, CqlType::Text, CqlType::Text];
    let column = |n: usize| Column {
        name: format!("column_{n}"),
        ty: types[n % 5].clone(),
        kind: ColumnKind::Regular,
        dropped: None,
    };
    let table = TableSchema {
        id: TableId(Uuid::from_u128(77)),
        keyspace: "ks".into(),
        name: "t".into(),
        partition_key: vec![key("id", CqlType::Uuid)],
        clustering: vec![key("at", CqlType::Timestamp)],
        columns: (0..10).map(column).collect(),
        cdc: true,
        gc_grace_seconds: 0,
    };
    Ok(table.new()?)
}

fn insert(table: &TableSchema, number: u128) -> Vec<u8> {
    let mut out = [&[1][..], table.id.0.as_bytes(), &sized(&number.to_be_bytes())].concat();
    // Flags, a time stamp of seven bytes, default bases.
    out.extend([0x10, 0xfc, 0xe9, 0x33, 0x0d, 0x89, 0x3d, 0xf0, 0, 0, 10]);
    table.columns.iter().for_each(|column| out.extend(sized(column.name.as_bytes())));
    out.extend([1, 0x24, 0]);
    out.extend(1_700_000_000_000i64.to_be_bytes());
    out.push(0);
    for column in &table.columns {
        out.push(0x08);
        match column.ty.fixed_length() {
            Some(length) => out.extend(vec![7; length]),
            None => out.extend(sized(b"a text of some twenty")),
        }
    }
    out.push(1);
    out
}

fn segment(table: &TableSchema) -> Vec<u8> {
    let (version, id) = (7u32.to_be_bytes(), ID.to_be_bytes());
    let header = crc(&[&version, &id[4..], &id[..4], &[0, 0, 0, 2], b"{}"]);
    let mut out = [&version[..], &id, &[0, 2], b"{}", &header, &[0; 8]].concat();
    for number in 0..ROWS {
        let payload = insert(table, number as u128);
        let size = u32::try_from(payload.len()).expect("short").to_be_bytes();
        out.extend([&size[..], &crc(&[&size]), &payload, &crc(&[&size, &payload])].concat());
    }
    out
}

/// Of this thread: other load on the machine then counts little.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("a thread's clock counts from 0")
}

#[expect(clippy::print_stdout, reason = "that is what it is for")]
fn main() -> anyhow::Result<()> {
    let table = table()?;
    let dir = std::env::temp_dir().join(format!("cdc-throughput-{}", std::process::id()));
    std::fs::create_dir_all(&dir).context("make a folder")?;
    let path = dir.join(format!("CommitLog-7-{ID}.log"));
    std::fs::write(&path, segment(&table)).context("write the segment")?;
    let file = SegmentFile::parse(&path).context("a segment's name")?;
    let schemas = One(Arc::new(table));
    let at = Provenance { node: NodeId(Uuid::nil()), position: SegmentPosition::START };
    let limit = ReadLimit { fence: Fence::Live, finished: true, max_bytes: 1 << 20 };

    let run = |name: &str, decode: &mut dyn FnMut(Payload<'_>) -> anyhow::Result<usize>| -> anyhow::Result<()> {
        let (mut bytes, mut rows, mut seconds) = (0, 0, f64::MAX);
        for _ in 0..ROUNDS {
            let start = processor_time();
            (bytes, rows) = (0, 0);
            let mut reader = SegmentReader::open(&file, 0, 1 << 20)?.context("a header")?;
            loop {
                let mut decoded = Ok(());
                let report = reader.read(limit, &mut |_, payload| match decode(payload) {
                    Ok(count) => rows += count,
                    Err(error) => decoded = Err(error),
                })?;
                decoded?;
                bytes += report.bytes;
                if report.outcome == ReadOutcome::End {
                    break;
                }
            }
            seconds = seconds.min((processor_time() - start).as_secs_f64());
        }
        println!("{name}: {:.0} MB/s, {:.2} M rows/s", bytes as f64 / 1e6 / seconds, rows as f64 / 1e6 / seconds);
        Ok(())
    };
    run("framing", &mut |_| Ok(1))?;
    let mut decoder = Decoder::new();
    let mut out = Vec::new();
    run("framing and decoding", &mut |payload| {
        out.clear();
        decoder.decode(Format::V7, payload, at, &schemas, &|table| table.cdc, &mut out)?;
        Ok(out.len())
    })?;
    std::fs::remove_dir_all(&dir).context("remove the folder")
}
