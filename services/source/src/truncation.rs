//! `TRUNCATE`: from what a node notes of it in its log to what can be applied anywhere.
//!
//! Each node empties a table by itself. It flushes what it has, which fixes the place in its log up to which writes are
//! gone, removes it, and notes the place in `system.local`, so in its log; writes go on meanwhile. The target keeps no
//! places and can only forget everything (`cdc_postgres`, module `truncate`), and relies on two things:
//!
//! 1. **What an agent sends of a truncation says how far *all* nodes' writes are gone.** The agent learns the places of the
//!    others from them, and waits until each has finished the statement. Changes of another node that are gone may be
//!    at the target already or come at any time: now they can be told from those that stay. A later truncation that
//!    another node has finished already may stand in for this one, because it is still to come in this log.
//! 2. **Behind it come all changes of the table again that stand in this log between the place and the note,** because they
//!    stay, and were sent before. So segments are held open for a while after they were read to their end, even though
//!    they are deleted: that costs no room in `cdc_raw`.
//!
//! Which of its truncations a node tells of shows by its time: it must be newer than the one told of last. What was told
//! last is in `truncations.json` of the state directory, written before it is sent, so a truncation that is read again
//! after a restart is sent as before.
//!
//! The note may stand in a segment that Cassandra removes unread, because no captured table was written to in it, or that
//! is not read before one is. So at the start, and when there is nothing to read, the agent asks its node as well.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use cdc_cassandra::{Cassandra, CassandraError};
use cdc_commitlog::{Fence, ReadError, ReadLimit, ReadOptions, ReadOutcome, SegmentReader, Truncation, list_segments};
use cdc_model::{NodeId, Provenance, SegmentId, SegmentPosition, TableId, TableSchema, TableTruncation, TruncatedAt};
use serde::{Deserialize, Serialize};

use crate::{
    SourceError,
    intake::{Halted, Intake},
    position::Finished,
    schema::SchemaSource,
    state_file::{replace, seal, unseal},
};

const VERSION: u32 = 1;
const NAME: &str = "truncations.json";
/// Cassandra's `truncate_request_timeout`: a node that has not finished by then has failed.
const STATEMENT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// How often the node is asked when there is nothing to read.
const LOOK: Duration = Duration::from_secs(10);
/// Nothing waits for the answer.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);
const COMPLAIN: Duration = Duration::from_secs(10);
/// Of segments held open for [`STATEMENT`].
const HELD_MAX: usize = 256;
/// Payload bytes sent again between two looks at the batch's size.
const READ_BYTES: usize = 256 << 10;

/// A node's own truncation of a table.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    position: SegmentPosition,
    wall_ms: i64,
}

impl Place {
    fn of(truncation: &Truncation) -> Self {
        Self { position: truncation.at.unwrap_or(SegmentPosition::START), wall_ms: truncation.wall_ms }
    }
}

type Places = BTreeMap<NodeId, Place>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    node: NodeId,
    /// Whoever wrote the target before may have known of truncations before.
    since_ms: i64,
    tables: BTreeMap<TableId, Places>,
}

pub(crate) struct Truncations {
    state_directory: PathBuf,
    body: Body,
    cdc_raw: PathBuf,
    options: ReadOptions,
    /// Read to their end, in this run or an earlier one.
    finished: Finished,
    held: VecDeque<(Instant, SegmentId, SegmentReader)>,
    looked: Option<Instant>,
}

impl Truncations {
    pub(crate) fn open(
        state_directory: &Path,
        node: NodeId,
        cdc_raw: PathBuf,
        options: ReadOptions,
        finished: Finished,
    ) -> Result<Self, SourceError> {
        let path = state_directory.join(NAME);
        let body = match fs::read(&path) {
            Ok(text) => unseal(VERSION, &text).ok().filter(|body: &Body| body.node == node).or_else(|| {
                tracing::warn!(path = %path.display(), "is damaged or not of this node: it begins anew");
                None
            }),
            Err(_) => None,
        };
        let body = body.unwrap_or_else(|| Body { node, since_ms: now_ms(), tables: BTreeMap::new() });
        let this = Self {
            state_directory: state_directory.to_owned(),
            body,
            cdc_raw,
            options,
            finished,
            held: VecDeque::new(),
            looked: None,
        };
        this.save()?;
        Ok(this)
    }

    fn save(&self) -> Result<(), SourceError> {
        let path = self.state_directory.join(NAME);
        let written = replace(&self.state_directory, &path, &seal(VERSION, &self.body));
        written.map_err(|source| SourceError::State { path, source })
    }

    /// Whether this is news of the agent's own node.
    fn is_unheard(&self, own: &Truncation) -> bool {
        let known = self.body.tables.get(&own.table).and_then(|places| places.get(&self.body.node));
        own.wall_ms > known.map_or(self.body.since_ms, |place| place.wall_ms)
    }

    /// A segment was read to its end.
    pub(crate) fn finish(&mut self, segment: SegmentId, reader: Option<SegmentReader>) {
        self.finished.insert(segment);
        if let Some(mut reader) = reader {
            reader.rewind();
            self.held.push_back((Instant::now(), segment, reader));
        }
        while self.held.pop_front_if(|(since, ..)| since.elapsed() > STATEMENT).is_some() {}
        while self.held.len() > HELD_MAX {
            self.held.pop_front();
        }
    }

    /// How far all nodes' writes to a table are gone, by what this node notes; waits for those that have not finished.
    fn complete(
        &mut self,
        source: &SchemaSource,
        table: &TableSchema,
        own: &Truncation,
    ) -> Result<TruncatedAt, Result<Halted, SourceError>> {
        let node = self.body.node;
        let known = self.body.tables.get(&table.id).cloned().unwrap_or_default();
        if known.get(&node).is_none_or(|place| place.wall_ms < own.wall_ms) {
            let mut places = known.clone();
            places.insert(node, Place::of(own));
            let mut missing = source.peers(&known, own).map_err(Ok)?;
            let (mut said, deadline) = (None, Instant::now() + time_left(own.wall_ms));
            loop {
                missing.retain_mut(|peer| {
                    let place = source.ask(peer, table.id);
                    places.extend(place.map(|place| (peer.node, place)));
                    !place.is_some_and(|place| peer.is_new(place))
                });
                if missing.is_empty() || Instant::now() >= deadline {
                    break;
                }
                if said.is_none_or(|at: Instant| at.elapsed() >= COMPLAIN) {
                    said = Some(Instant::now());
                    tracing::info!(table = table.full_name(), nodes = ?names(&missing), "truncated; waits for other nodes");
                }
                source.pause(POLL).map_err(Ok)?;
            }
            if !missing.is_empty() {
                tracing::error!(
                    table = table.full_name(),
                    nodes = ?names(&missing),
                    "these nodes do not say that they have truncated the table: goes on without; truncate it again, or \
                     the target may keep or lack rows"
                );
            }
            self.body.tables.insert(table.id, places);
            self.save().map_err(Err)?;
        }
        let places = self.body.tables.get(&table.id).into_iter().flatten();
        Ok(places.map(|(node, place)| (*node, place.position)).collect())
    }
}

/// Until the statement has ended everywhere, by the clock of the node beside this agent.
fn time_left(wall_ms: i64) -> Duration {
    let age = now_ms().saturating_sub(wall_ms);
    STATEMENT.saturating_sub(Duration::from_millis(u64::try_from(age).unwrap_or(0)))
}

fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

/// Another node, until it has finished.
struct Peer {
    node: NodeId,
    address: std::net::SocketAddr,
    session: Option<Cassandra>,
    /// What was told of it last.
    known: Option<Place>,
    own_ms: i64,
}

impl Peer {
    /// Whether this is the truncation that the agent's own node has noted, or a later one.
    fn is_new(&self, place: Place) -> bool {
        let earliest = self.own_ms - i64::try_from(STATEMENT.as_millis()).unwrap_or_default();
        place.wall_ms >= self.own_ms
            || self.known.map_or(place.wall_ms >= earliest, |known| place.wall_ms > known.wall_ms)
    }
}

fn names(peers: &[Peer]) -> Vec<String> {
    peers.iter().map(|peer| format!("{} at {}", peer.node, peer.address)).collect()
}

impl SchemaSource {
    /// All other nodes; waits for Cassandra as long as it takes.
    fn peers(&self, known: &Places, own: &Truncation) -> Result<Vec<Peer>, Halted> {
        let peers = self.wait_for("a truncation needs the nodes of the cluster", || self.cassandra.peers())?;
        let peer = |(node, address)| Peer {
            node,
            address,
            session: None,
            known: known.get(&node).copied(),
            own_ms: own.wall_ms,
        };
        Ok(peers.into_iter().map(peer).collect())
    }

    /// The last truncations of the agent's own node; none if it does not answer at once.
    fn own_truncations(&self) -> Vec<Truncation> {
        let asked = async { tokio::time::timeout(LOOK_PATIENCE, self.cassandra.truncations()).await };
        self.runtime.block_on(asked).ok().and_then(Result::ok).unwrap_or_default()
    }

    /// The peer's last truncation, if it has one and tells.
    fn ask(&self, peer: &mut Peer, table: TableId) -> Option<Place> {
        let asked = async {
            let session = match peer.session.take() {
                Some(session) => session,
                None => self.cassandra.connect_to(peer.address).await?,
            };
            let truncations = session.truncations().await?;
            peer.session = Some(session);
            Ok::<_, CassandraError>(truncations)
        };
        match self.runtime.block_on(self.stop.run_until_cancelled(asked))? {
            Ok(truncations) => truncations.iter().find(|truncation| truncation.table == table).map(Place::of),
            Err(error) => {
                tracing::warn!(%error, node = %peer.node, "cannot ask for the truncation of a table");
                None
            }
        }
    }
}

impl Intake {
    /// Hands on what the log did not tell.
    pub(crate) fn look_for_truncations(&mut self) -> Result<(), Result<Halted, SourceError>> {
        if self.truncations.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return Ok(());
        }
        self.truncations.looked = Some(Instant::now());
        for own in self.schemas.source.own_truncations() {
            let table = cdc_commitlog::Schemas::table(&self.schemas.history, own.table).cloned();
            if let Some(table) =
                table.filter(|table| self.captured.contains(table) && self.truncations.is_unheard(&own))
            {
                tracing::info!(table = table.full_name(), "table was truncated, as the node says");
                self.truncated(table, &own)?;
            }
        }
        Ok(())
    }

    /// Hands on what the node has noted of a table.
    pub(crate) fn truncated(
        &mut self,
        table: Arc<TableSchema>,
        own: &Truncation,
    ) -> Result<(), Result<Halted, SourceError>> {
        let at = self.truncations.complete(&self.schemas.source, &table, own)?;
        let id = table.id;
        self.truncated.push(TableTruncation { table, at });
        match self.send_again(id, own.at.unwrap_or(SegmentPosition::START)) {
            Ok(()) => Ok(()),
            Err(Again::Halted(halted)) => Err(halted),
            Err(Again::Unread(error)) => {
                tracing::error!(%error, table = %id.0, "cannot read again what was written while the table was truncated: \
                    the target may lack it");
                Ok(())
            }
        }
    }

    /// All changes of a table behind a place, as far as they were read.
    fn send_again(&mut self, table: TableId, from: SegmentPosition) -> Result<(), Again> {
        let files = list_segments(&self.truncations.cdc_raw)
            .map_err(|source| ReadError::Io { path: self.truncations.cdc_raw.clone(), source })?;
        let mut held = std::mem::take(&mut self.truncations.held);
        let sent =
            held.iter_mut().filter(|(_, segment, _)| *segment >= from.segment).try_for_each(|(_, segment, reader)| {
                let sent = self.read_again(table, from, *segment, reader);
                reader.rewind();
                sent
            });
        self.truncations.held = held;
        sent?;
        for file in files.iter().filter(|file| file.id >= from.segment) {
            let is_held = self.truncations.held.iter().any(|(_, segment, _)| *segment == file.id);
            let was_read = self.truncations.finished.contains(file.id) || self.offset(file.id) > 0;
            if is_held || !was_read {
                continue;
            }
            match SegmentReader::open_with(file, 0, &self.truncations.options) {
                Ok(Some(mut reader)) => self.read_again(table, from, file.id, &mut reader)?,
                Ok(None) => {}
                // Deleted since, so it was finished long ago.
                Err(ReadError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read_again(
        &mut self,
        table: TableId,
        from: SegmentPosition,
        segment: SegmentId,
        reader: &mut SegmentReader,
    ) -> Result<(), Again> {
        let finished = self.truncations.finished.contains(segment);
        let upto = if finished { u64::MAX } else { self.offset(segment) };
        let limit = ReadLimit { fence: Fence::Live, finished, max_bytes: READ_BYTES };
        let format = reader.format();
        loop {
            let before = self.changes.len();
            let report = reader.read(limit, &mut |end, payload| {
                if end > from && end.offset <= upto {
                    let at = Provenance { node: self.node, position: end };
                    let is_it = |captured: &TableSchema| captured.id == table;
                    let known = self.changes.len();
                    // What cannot be decoded was set aside when it was read first.
                    let history = &self.schemas.history;
                    if self.decoder.decode(format, payload, at, history, &is_it, &mut self.changes).is_err() {
                        self.changes.truncate(known);
                    }
                }
            })?;
            let taken = self.changes.len() - before;
            self.count(taken);
            self.read_was(report.bytes);
            if report.outcome != ReadOutcome::More || reader.offset() >= upto {
                return Ok(());
            }
            if self.is_full() {
                self.flush().map_err(|stopped| Again::Halted(stopped.map_or(Ok(Halted), Err)))?;
            }
        }
    }
}

/// Why something was not sent again.
enum Again {
    Halted(Result<Halted, SourceError>),
    Unread(ReadError),
}

impl From<ReadError> for Again {
    fn from(error: ReadError) -> Self {
        Self::Unread(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_finished_once_its_truncation_is_newer_than_what_was_told_of_it() {
        let node = NodeId(uuid::Uuid::nil());
        let is_new = |known: Option<i64>, wall_ms| {
            let place = |wall_ms| Place { position: SegmentPosition::START, wall_ms };
            let (known, address) = (known.map(place), "127.0.0.1:9042".parse().unwrap());
            Peer { node, address, session: None, known, own_ms: 100_000 }.is_new(place(wall_ms))
        };
        assert!(!is_new(Some(90_000), 90_000), "the one before");
        assert!(is_new(Some(90_000), 90_001));
        assert!(is_new(Some(100_000), 100_000), "told ahead of this node's own");
        assert!(is_new(None, 40_000) && !is_new(None, 39_999), "nothing was told: of one statement, or long ago");
    }

    #[test]
    fn what_was_told_is_remembered_and_what_was_before_the_state_is_no_news() {
        let folder = tempfile::tempdir().unwrap();
        let node = NodeId(uuid::Uuid::from_u128(1));
        let open = || {
            Truncations::open(folder.path(), node, PathBuf::new(), ReadOptions::default(), Finished::default()).unwrap()
        };
        let (table, wall_ms) = (TableId(uuid::Uuid::from_u128(2)), now_ms() + 1_000);
        let own = |wall_ms| Truncation { table, at: None, wall_ms };
        let mut truncations = open();
        assert!(truncations.is_unheard(&own(wall_ms)) && !truncations.is_unheard(&own(1)));
        truncations.body.tables.insert(table, [(node, Place::of(&own(wall_ms)))].into());
        truncations.save().unwrap();
        let truncations = open();
        assert!(!truncations.is_unheard(&own(wall_ms)) && truncations.is_unheard(&own(wall_ms + 1)));
    }
}
