//! The schema history on disk.
//!
//! `schema.json` holds a schema and the schema mutations followed since, each with its place in the log. On a start
//! those behind the position are applied; the others come again from the log itself, in their order. It is written
//! before the batch that is read with a new schema is handed on, so it is never behind the position. If it is missing
//! or damaged, the schema is read from Cassandra, which may be ahead of the log (`cdc_commitlog::SchemaHistory`).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use cdc_commitlog::{Decoder, Format, SchemaFile, SchemaHistory};
use cdc_model::{NodeId, Provenance, SegmentPosition};
use serde::{Deserialize, Serialize};

use crate::{
    position::Position,
    state_file::{replace, seal, unseal},
};

const VERSION: u32 = 1;
const NAME: &str = "schema.json";
/// More mutations than this are not kept one by one: they are part of the schema then.
const MUTATIONS_MAX: usize = 128;
const MUTATION_BYTES_MAX: usize = 1 << 20;

#[derive(thiserror::Error, Debug)]
#[error("cannot write {path}; the state directory must exist and have space")]
pub struct SchemaStoreError {
    path: PathBuf,
    source: io::Error,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    node: NodeId,
    schema: SchemaFile,
    followed: Vec<Mutation>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutation {
    at: SegmentPosition,
    format: u8,
    payload: Vec<u8>,
}

pub(crate) struct SchemaStore {
    directory: PathBuf,
    body: Body,
    dirty: bool,
}

impl SchemaStore {
    /// What was followed up to the position; `None` if there is nothing that can be used.
    pub(crate) fn open(directory: &Path, node: NodeId, position: &Position) -> Option<(Self, SchemaHistory)> {
        let path = directory.join(NAME);
        let body = match fs::read(&path) {
            Ok(text) => unseal(VERSION, &text).ok().filter(|body: &Body| body.node == node && body.schema.is_current()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => None,
        };
        let Some(mut body) = body else {
            tracing::warn!(
                path = %path.display(),
                "the schema history is damaged or not of this node; the schema is read from Cassandra, and what was \
                 written before it was changed last is decoded with the newest one"
            );
            return None;
        };
        let (mut history, faults) = SchemaHistory::from_file(body.schema.clone());
        for fault in faults {
            tracing::warn!(%fault, "a table of the schema history cannot be used");
        }
        let is_past = |at: SegmentPosition| {
            position.finished.contains(at.segment)
                || position.offsets.get(at.segment).is_some_and(|offset| at.offset <= offset)
        };
        let mut decoder = Decoder::new();
        for mutation in body.followed.iter().filter(|mutation| is_past(mutation.at)) {
            mutation.apply(node, &mut decoder, &mut history);
        }
        body.schema = history.to_file();
        body.followed = Vec::new();
        Some((Self { directory: directory.to_owned(), body, dirty: true }, history))
    }

    /// Begins anew with a schema read from Cassandra.
    pub(crate) fn new(directory: &Path, node: NodeId, history: &SchemaHistory) -> Self {
        let body = Body { node, schema: history.to_file(), followed: Vec::new() };
        Self { directory: directory.to_owned(), body, dirty: true }
    }

    /// The schema is what it is now, whatever the position.
    pub(crate) fn reset(&mut self, history: &SchemaHistory) {
        self.body.schema = history.to_file();
        self.body.followed.clear();
        self.dirty = true;
    }

    /// A mutation that `history` has taken in.
    pub(crate) fn followed(&mut self, format: Format, at: SegmentPosition, payload: &[u8], history: &SchemaHistory) {
        let format = match format {
            Format::V7 => 7,
            Format::V8 => 8,
            Format::V9 => 9,
        };
        let bytes: usize = self.body.followed.iter().map(|mutation| mutation.payload.len()).sum();
        if self.body.followed.len() >= MUTATIONS_MAX || bytes + payload.len() > MUTATION_BYTES_MAX {
            self.reset(history);
        } else {
            self.body.followed.push(Mutation { at, format, payload: payload.to_vec() });
            self.dirty = true;
        }
    }

    /// Returns once what is new is on disk.
    pub(crate) fn save(&mut self) -> Result<(), SchemaStoreError> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        let text = seal(VERSION, &self.body);
        let path = self.directory.join(NAME);
        replace(&self.directory, &path, &text).map_err(|source| SchemaStoreError { path, source })
    }
}

impl Mutation {
    fn apply(&self, node: NodeId, decoder: &mut Decoder, history: &mut SchemaHistory) {
        let format = match self.format {
            7 => Format::V7,
            8 => Format::V8,
            _ => Format::V9,
        };
        let (at, mut out) = (Provenance { node, position: self.at }, Vec::new());
        let payload = Bytes::copy_from_slice(&self.payload);
        let decoded = decoder.decode(format, &payload, at, history, &|table| history.follows(table.id), &mut out);
        match decoded {
            Ok(_) => _ = history.apply(&out),
            Err(error) => tracing::warn!(position = %self.at, %error, "a schema mutation cannot be followed again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use cdc_commitlog::{Definition, SchemaRow, Schemas as _};
    use cdc_model::{SegmentId, TableId};
    use uuid::Uuid;

    use super::*;

    const NODE: NodeId = NodeId(Uuid::from_u128(1));
    const TABLE: TableId = TableId(Uuid::from_u128(7));

    fn history() -> SchemaHistory {
        let row = |column: &str, definition| SchemaRow {
            keyspace: "k".to_owned(),
            name: "t".to_owned(),
            column: column.to_owned(),
            table: None,
            written_us: 1,
            definition,
        };
        let key = Definition::Column { kind: "partition_key".into(), position: 0, reversed: false, ty: "int".into() };
        let table = Definition::Table { id: TABLE, cdc: Some(true), gc_grace_seconds: Some(5) };
        let (history, faults) = SchemaHistory::from_file(SchemaFile::new(vec![row("", table), row("k", key)]));
        assert_eq!(faults, []);
        history
    }

    /// `ALTER TABLE k.t WITH gc_grace_seconds = 9`, as one update of `system_schema.tables`.
    fn alteration(history: &SchemaHistory) -> Bytes {
        let tables = history.tables().find(|table| table.full_name() == "system_schema.tables").unwrap();
        let mut payload = vec![1];
        payload.extend_from_slice(tables.id.0.as_bytes());
        payload.extend_from_slice(b"\x01k\x10\x00\x00\x00\x02\x10gc_grace_seconds\x02id\x01");
        payload.extend_from_slice(b"\x24\x00\x01t\x05\x08\x00\x00\x00\x09\x08");
        payload.extend_from_slice(TABLE.0.as_bytes());
        payload.push(1);
        payload.into()
    }

    fn gc_grace(history: &SchemaHistory) -> i64 {
        history.table(TABLE).unwrap().gc_grace_seconds
    }

    fn position(text: &str) -> Position {
        Position { offsets: text.parse().unwrap(), ..Position::default() }
    }

    #[test]
    fn a_start_knows_the_schema_of_its_position_and_not_a_later_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = history();
        let mut store = SchemaStore::new(directory.path(), NODE, &history);
        let payload = alteration(&history);
        let at = SegmentPosition { segment: SegmentId(7), offset: 100 };
        let mutation = Mutation { at, format: 7, payload: payload.to_vec() };
        mutation.apply(NODE, &mut Decoder::new(), &mut history);
        assert_eq!(gc_grace(&history), 9);
        store.followed(Format::V7, at, &payload, &history);
        store.save().unwrap();
        let opened = |position: &Position| gc_grace(&SchemaStore::open(directory.path(), NODE, position).unwrap().1);
        assert_eq!(opened(&position("7:99")), 5);
        assert_eq!(opened(&position("6:500")), 5);
        assert_eq!(opened(&position("7:100")), 9);
        let mut finished = position("8:20");
        finished.finished.insert(SegmentId(7));
        assert_eq!(opened(&finished), 9);
        // Many mutations become part of the schema.
        for offset in 0..MUTATIONS_MAX as u64 {
            store.followed(Format::V7, SegmentPosition { segment: SegmentId(9), offset }, &payload, &history);
        }
        store.save().unwrap();
        assert!(store.body.followed.len() < MUTATIONS_MAX);
        assert_eq!(opened(&position("7:99")), 9);
    }

    #[test]
    fn damage_or_another_node_is_no_history() {
        let directory = tempfile::tempdir().unwrap();
        assert!(SchemaStore::open(directory.path(), NODE, &Position::default()).is_none());
        SchemaStore::new(directory.path(), NODE, &history()).save().unwrap();
        assert!(SchemaStore::open(directory.path(), NODE, &Position::default()).is_some());
        assert!(SchemaStore::open(directory.path(), NodeId(Uuid::from_u128(2)), &Position::default()).is_none());
        let path = directory.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            assert!(SchemaStore::open(directory.path(), NODE, &Position::default()).is_none(), "bit flipped at {at}");
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(SchemaStore::open(directory.path(), NODE, &Position::default()).is_none());
    }
}
