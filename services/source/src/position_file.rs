//! The position on disk.
//!
//! Two generations, `position-a.json` and `position-b.json`, written in turn, so that one is whole whatever happens
//! while the other is written: temporary file, fsync, rename, fsync of the folder. The newest that passes its
//! checksum counts; it says at least as little as was durable, so falling back costs repetition and nothing else.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cdc_model::NodeId;
use serde::{Deserialize, Serialize};

use crate::{
    position::Position,
    state_file::{replace, seal, unseal},
};

const VERSION: u32 = 1;
const NAMES: [&str; 2] = ["position-a.json", "position-b.json"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    generation: u64,
    node: NodeId,
    position: Position,
}

#[derive(thiserror::Error, Debug)]
pub enum PositionFileError {
    #[error("cannot read or write {path}; the state directory must exist and belong to the agent")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the positions in {directory} belong to node {theirs}, but Cassandra here is node {ours}; give each node its \
         own source.state_directory, or move the files away to capture this node from the oldest segment it has"
    )]
    OtherNode { directory: PathBuf, theirs: NodeId, ours: NodeId },
    #[error(
        "{path} has version {found}, this agent reads {VERSION}; start the release that wrote it, or move it away to \
         capture from the oldest segment there is"
    )]
    Version { path: PathBuf, found: u32 },
    #[error(
        "every position file in {directory} is damaged; move them away to capture from the oldest segment there is"
    )]
    Damaged { directory: PathBuf },
}

#[derive(Debug)]
pub(crate) struct PositionFile {
    directory: PathBuf,
    node: NodeId,
    generation: u64,
}

impl PositionFile {
    /// Opens the store and reads the newest whole generation; `None` if there never was one.
    pub(crate) fn open(directory: &Path, node: NodeId) -> Result<(Self, Option<Position>), PositionFileError> {
        fs::create_dir_all(directory).map_err(|source| PositionFileError::Io { path: directory.to_owned(), source })?;
        let mut newest: Option<Body> = None;
        let mut damaged = false;
        for name in NAMES {
            let path = directory.join(name);
            let text = match fs::read(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(PositionFileError::Io { path, source }),
            };
            match unseal::<Body>(VERSION, &text) {
                Ok(body) if newest.as_ref().is_none_or(|newest| newest.generation < body.generation) => {
                    newest = Some(body);
                }
                Ok(_) => {}
                Err(Some(found)) => return Err(PositionFileError::Version { path, found }),
                Err(None) => {
                    tracing::error!(path = %path.display(), "position file is damaged");
                    damaged = true;
                }
            }
        }
        let mut file = Self { directory: directory.to_owned(), node, generation: 0 };
        match newest {
            Some(body) if body.node != node => {
                Err(PositionFileError::OtherNode { directory: directory.to_owned(), theirs: body.node, ours: node })
            }
            Some(body) => {
                file.generation = body.generation;
                Ok((file, Some(body.position)))
            }
            None if damaged => Err(PositionFileError::Damaged { directory: directory.to_owned() }),
            None => Ok((file, None)),
        }
    }

    /// Returns once the position is on disk.
    pub(crate) fn write(&mut self, position: &Position) -> Result<(), PositionFileError> {
        let generation = self.generation + 1;
        let body = Body { generation, node: self.node, position: position.clone() };
        let text = seal(VERSION, &body);
        let path = self.directory.join(if generation.is_multiple_of(2) { NAMES[0] } else { NAMES[1] });
        replace(&self.directory, &path, &text).map_err(|source| PositionFileError::Io { path, source })?;
        self.generation = generation;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const NODE: NodeId = NodeId(Uuid::from_u128(1));

    fn position(text: &str) -> Position {
        Position { offsets: text.parse().unwrap(), ..Position::default() }
    }

    fn read(directory: &Path) -> Option<Position> {
        PositionFile::open(directory, NODE).unwrap().1
    }

    /// Writes the given positions one after the other; the last went to the returned path.
    fn written(directory: &Path, positions: &[&str]) -> PathBuf {
        let (mut file, _) = PositionFile::open(directory, NODE).unwrap();
        positions.iter().for_each(|text| file.write(&position(text)).unwrap());
        directory.join(if file.generation.is_multiple_of(2) { NAMES[0] } else { NAMES[1] })
    }

    #[test]
    fn the_newest_position_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()), None);
        for count in 1..5 {
            let text = format!("7:{count}");
            written(directory.path(), &[&text]);
            assert_eq!(read(directory.path()), Some(position(&text)));
        }
    }

    #[test]
    fn a_damaged_newest_generation_falls_back_to_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let newest = written(directory.path(), &["7:1", "7:2", "7:3"]);
        let whole = fs::read(&newest).unwrap();
        for cut in 0..whole.len() {
            fs::write(&newest, &whole[..cut]).unwrap();
            assert_eq!(read(directory.path()), Some(position("7:2")), "torn at {cut}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&newest, &flipped).unwrap();
            let opened = PositionFile::open(directory.path(), NODE);
            let refused = matches!(opened, Err(PositionFileError::Version { .. }));
            assert!(refused || opened.unwrap().1 == Some(position("7:2")), "bit flipped at {at}");
        }
        written(directory.path(), &["7:4"]);
        assert_eq!(read(directory.path()), Some(position("7:4")));
    }

    #[test]
    fn damage_of_both_generations_is_an_error_not_a_fresh_start() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), &["7:1", "7:2"]);
        NAMES.iter().for_each(|name| fs::write(directory.path().join(name), "{").unwrap());
        let error = PositionFile::open(directory.path(), NODE).unwrap_err();
        assert!(matches!(error, PositionFileError::Damaged { .. }), "{error}");
    }

    #[test]
    fn positions_of_another_node_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), &["7:1"]);
        let error = PositionFile::open(directory.path(), NodeId(Uuid::from_u128(2))).unwrap_err();
        assert!(error.to_string().contains("give each node its own"), "{error}");
    }

    #[test]
    fn a_leftover_temporary_file_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path(), &["7:1"]);
        fs::write(directory.path().join("position-a.tmp"), "torn").unwrap();
        assert_eq!(read(directory.path()), Some(position("7:1")));
    }
}
