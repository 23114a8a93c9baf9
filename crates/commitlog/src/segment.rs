//! Segment files of `cdc_raw` and the index files beside them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cdc_model::SegmentId;
use serde::{Deserialize, Serialize};

/// How far into a segment the agent reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureMode {
    /// Every entry whose two CRCs hold, under a millisecond after the write.
    #[default]
    Live,
    /// Up to the last valid sync marker, about 100 ms behind.
    Marker,
    /// Up to the offset Cassandra flushed to disk, up to `commitlog_sync_period` behind.
    Durable,
}

/// A `CommitLog-<version>-<id>.log` by its name; nothing of the content was looked at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SegmentFile {
    pub id: SegmentId,
    pub version: u32,
    pub path: PathBuf,
}

impl SegmentFile {
    /// `None` if the file name is not that of a segment.
    pub fn parse(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (version, id) = name.strip_prefix("CommitLog-")?.strip_suffix(".log")?.split_once('-')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(version) || !digits(id) {
            return None;
        }
        Some(Self { id: SegmentId(id.parse().ok()?), version: version.parse().ok()?, path: path.to_owned() })
    }

    /// `CommitLog-<version>-<id>_cdc.idx` beside the segment.
    pub fn index_path(&self) -> PathBuf {
        self.path.with_file_name(format!("CommitLog-{}-{}_cdc.idx", self.version, self.id.0))
    }
}

/// The segments in a folder, oldest first.
pub fn list_segments(dir: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        segments.extend(SegmentFile::parse(&entry?.path()));
    }
    segments.sort();
    Ok(segments)
}

/// What Cassandra says of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Index {
    /// Everything before it is flushed. A file length instead of an offset after a crash replay, so once
    /// `completed` is set this number means nothing.
    pub offset: u64,
    /// Nothing more will be written to the segment.
    pub completed: bool,
}

/// Reads the segment's `_cdc.idx`. `None` while it is absent, empty or half written: Cassandra rewrites it in place.
pub fn read_index(segment: &SegmentFile) -> io::Result<Option<Index>> {
    let text = match fs::read_to_string(segment.index_path()) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(parse_index(&text))
}

/// Without `COMPLETED` a short read of the digits cannot be told from a smaller offset; that is harmless, since it
/// only holds the reader back until the next look.
fn parse_index(text: &str) -> Option<Index> {
    let (offset, rest) = text.split_once('\n').unwrap_or((text, ""));
    Some(Index { offset: offset.parse().ok()?, completed: rest.trim_end() == "COMPLETED" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_segment_names_are_segments() {
        let parse = |name: &str| SegmentFile::parse(Path::new(name)).map(|file| (file.version, file.id.0));
        assert_eq!(parse("/cdc_raw/CommitLog-7-1699285478684.log"), Some((7, 1_699_285_478_684)));
        assert_eq!(parse("CommitLog-680-2.log"), Some((680, 2)));
        for name in ["CommitLog-7-1_cdc.idx", "CommitLog-7-.log", "CommitLog--1.log", "CommitLog-7-+1.log", "x.log"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn ids_sort_as_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["1000", "999", "20000"] {
            fs::write(dir.path().join(format!("CommitLog-7-{id}.log")), "").unwrap();
        }
        let ids: Vec<u64> = list_segments(dir.path()).unwrap().iter().map(|file| file.id.0).collect();
        assert_eq!(ids, [999, 1000, 20_000]);
    }

    #[test]
    fn a_partial_index_is_no_index() {
        assert_eq!(parse_index(""), None);
        assert_eq!(parse_index("12"), Some(Index { offset: 12, completed: false }));
        assert_eq!(parse_index("12\nCOMP"), Some(Index { offset: 12, completed: false }));
        assert_eq!(parse_index("12\nCOMPLETED"), Some(Index { offset: 12, completed: true }));
        assert_eq!(parse_index("12\nCOMPLETED\n"), Some(Index { offset: 12, completed: true }));
    }
}
