//! What nodes have logged.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use cdc_commitlog::{Decoder, Fence, ReadLimit, ReadOutcome, SchemaHistory, SegmentReader, list_segments};
use cdc_model::{Change, NodeId, Provenance, TableId, TableSchema, ValueBytes};
use cdc_testkit::Node;
use uuid::Uuid;

/// Changes by table and partition, each partition's in the order of the log, one node's after another's.
pub(super) type Logged = Vec<(Arc<TableSchema>, Partitions)>;
type Partitions = BTreeMap<ValueBytes, Vec<Change>>;

/// Of keyspaces whose names begin so. The schema is what each log itself says; everything acknowledged is there.
pub(super) fn changes(nodes: &[Node], prefix: &str) -> anyhow::Result<Logged> {
    let mut logged = BTreeMap::new();
    for node in nodes {
        read(&node.cdc_raw_dir(), prefix, &mut logged)?;
    }
    Ok(logged.into_values().collect())
}

fn read(
    cdc_raw: &Path,
    prefix: &str,
    logged: &mut BTreeMap<TableId, (Arc<TableSchema>, Partitions)>,
) -> anyhow::Result<()> {
    let (mut history, mut decoder) = (SchemaHistory::new(), Decoder::new());
    let segments = list_segments(cdc_raw)?;
    for (index, segment) in segments.iter().enumerate() {
        let reader = SegmentReader::open(segment, 0, SegmentReader::ENTRY_BYTES_MAX)?;
        let Some(mut reader) = reader else { continue };
        let format = reader.format();
        let limit = ReadLimit { fence: Fence::Live, finished: index + 1 < segments.len(), max_bytes: 1 << 20 };
        loop {
            let mut failed = None;
            let mut changes = Vec::new();
            let report = reader.read(limit, &mut |position, payload| {
                let at = Provenance { node: NodeId(Uuid::nil()), position };
                changes.clear();
                let captured = |table: &TableSchema| table.keyspace.starts_with(prefix) || history.follows(table.id);
                if let Err(error) = decoder.decode(format, payload, at, &history, &captured, &mut changes) {
                    failed.get_or_insert((position, error));
                }
                history.apply(&changes);
                for change in changes.drain(..).filter(|change| change.table.keyspace.starts_with(prefix)) {
                    let table = (Arc::clone(&change.table), BTreeMap::new());
                    let (_, partitions) = logged.entry(change.table.id).or_insert(table);
                    partitions.entry(change.partition_key.clone()).or_default().push(change);
                }
            })?;
            if let Some((position, error)) = failed {
                return Err(error).with_context(|| format!("decode the entry at {position}"));
            }
            ensure!(report.damage.is_empty(), "{:?}", report.damage);
            if report.outcome != ReadOutcome::More {
                break;
            }
        }
    }
    Ok(())
}
