//! Entries to changes, with the schema followed in the log.

use std::{collections::BTreeMap, sync::Arc};

use cdc_commitlog::{Decoder, Followed, Format, Payload, SchemaHistory, Schemas as _, Truncation};
use cdc_model::{Change, ChangeBody, NodeId, Provenance, SegmentPosition, TableId, TableSchema};
use clap::Args;
use uuid::Uuid;

use crate::cli::complain;

/// A damaged log must not fill the terminal.
const COMPLAINTS_MAX: u64 = 50;

/// Keyspaces of Cassandra's own.
const SYSTEM: [&str; 7] = [
    "system",
    "system_auth",
    "system_distributed",
    "system_schema",
    "system_traces",
    "system_views",
    "system_virtual_schema",
];

/// Which tables were asked for.
#[derive(Args, Clone, Debug)]
pub(super) struct Wanted {
    /// Only this table; may be given several times
    #[arg(long = "table", value_name = "KS.T", value_parser = table_name)]
    tables: Vec<(String, String)>,
    /// Cassandra's own tables, too
    #[arg(long)]
    include_system: bool,
}

fn table_name(text: &str) -> Result<(String, String), String> {
    match text.split_once('.') {
        Some((keyspace, table)) if !keyspace.is_empty() && !table.is_empty() && !table.contains('.') => {
            Ok((keyspace.to_owned(), table.to_owned()))
        }
        _ => Err("write it as KEYSPACE.TABLE".to_owned()),
    }
}

impl Wanted {
    /// Every table there is.
    pub(super) fn all() -> Self {
        Self { tables: Vec::new(), include_system: true }
    }

    pub(super) fn matches(&self, table: &TableSchema) -> bool {
        if self.tables.is_empty() {
            return self.include_system || !SYSTEM.contains(&table.keyspace.as_str());
        }
        self.tables.iter().any(|(keyspace, name)| *keyspace == table.keyspace && *name == table.name)
    }
}

/// What one entry holds of the tables asked for.
pub(super) struct Decoded<'a> {
    pub(super) at: SegmentPosition,
    /// Deletions before rows within a table: their order in the log is that of the clustering, not of time.
    pub(super) changes: &'a [Change],
    pub(super) truncations: Vec<(Arc<TableSchema>, Truncation)>,
    /// Updates that were left out.
    pub(super) unknown: Option<TableId>,
}

pub(super) struct Reading {
    history: SchemaHistory,
    decoder: Decoder,
    wanted: Wanted,
    changes: Vec<Change>,
    /// Entries with updates that could not be decoded because their table is not known.
    unknown: BTreeMap<TableId, u64>,
    complaints: u64,
    /// Something was skipped because it cannot be trusted or understood.
    pub(super) damaged: bool,
}

impl Reading {
    pub(super) fn new(history: SchemaHistory, wanted: Wanted) -> Self {
        let (decoder, changes, unknown) = (Decoder::new(), Vec::new(), BTreeMap::new());
        Self { history, decoder, wanted, changes, unknown, complaints: 0, damaged: false }
    }

    pub(super) fn entry(&mut self, format: Format, at: SegmentPosition, payload: Payload<'_>) -> Decoded<'_> {
        self.changes.clear();
        // Whose log it is does not show.
        let provenance = Provenance { node: NodeId(Uuid::nil()), position: at };
        let (history, wanted) = (&self.history, &self.wanted);
        let captured = |table: &TableSchema| wanted.matches(table) || history.follows(table.id);
        let decoded = self.decoder.decode(format, payload, provenance, history, &captured, &mut self.changes);
        let unknown = match decoded {
            Ok(unknown) => unknown,
            Err(cdc_commitlog::DecodeError::UnknownTable(id)) => Some(id),
            Err(error) => {
                self.damaged = true;
                self.complain(&format!("entry at {at} is left out: {error}"));
                None
            }
        };
        if let Some(id) = unknown {
            *self.unknown.entry(id).or_default() += 1;
        }
        let mut truncations = Vec::new();
        if self.changes.iter().any(|change| self.history.follows(change.table.id)) {
            let followed = self.history.apply(&self.changes);
            truncations = self.followed(followed);
        }
        self.changes.retain(|change| self.wanted.matches(&change.table));
        for table in self.changes.chunk_by_mut(|a, b| a.table.id == b.table.id) {
            table.sort_by_key(|change| match change.body {
                ChangeBody::DeletePartition(_) => 0,
                ChangeBody::Static(_) => 1,
                ChangeBody::DeleteRange(_) => 2,
                ChangeBody::Row { .. } => 3,
            });
        }
        Decoded { at, changes: &self.changes, truncations, unknown }
    }

    fn followed(&mut self, followed: Followed) -> Vec<(Arc<TableSchema>, Truncation)> {
        for fault in followed.faults {
            self.complain(&fault.to_string());
        }
        let truncated = followed.truncations.into_iter();
        let known =
            truncated.filter_map(|truncation| Some((Arc::clone(self.history.table(truncation.table)?), truncation)));
        known.filter(|(table, _)| self.wanted.matches(table)).collect()
    }

    pub(super) fn damage(&mut self, sentence: &str) {
        self.damaged = true;
        self.complain(sentence);
    }

    fn complain(&mut self, sentence: &str) {
        self.complaints += 1;
        match self.complaints {
            ..COMPLAINTS_MAX => complain(sentence),
            COMPLAINTS_MAX => complain(&format!("{sentence}; more such lines are left out")),
            _ => {}
        }
    }

    /// Says what could not be shown.
    pub(super) fn finish(&mut self) {
        let unknown = std::mem::take(&mut self.unknown);
        for (id, entries) in unknown.iter().take(usize::try_from(COMPLAINTS_MAX).unwrap_or(usize::MAX)) {
            complain(&format!(
                "table {} is not known, {entries} {} left out; give its schema with --schema FILE or --contact-point HOST",
                id.0,
                if *entries == 1 { "entry is" } else { "entries are" },
            ));
        }
    }
}
