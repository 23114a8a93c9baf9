//! What could not be read or decoded, kept for a person: never deleted by the agent.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cdc_commitlog::SegmentFile;
use cdc_model::SegmentPosition;

use crate::state_file::replace;

/// More than this is not an accident any more: the agent stops and keeps the log.
const MAX_FILES: usize = 10_000;

#[derive(thiserror::Error, Debug)]
pub enum QuarantineError {
    #[error("cannot write {path}; the state directory must exist and have space")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "quarantine {path} holds {MAX_FILES} files: something is wrong with all that is read; find the cause in the \
         .json files, then move them away and start again"
    )]
    Full { path: PathBuf },
}

pub(crate) struct Quarantine {
    directory: PathBuf,
    files: usize,
}

impl Quarantine {
    pub(crate) fn open(state_directory: &Path) -> Result<Self, QuarantineError> {
        let directory = state_directory.join("quarantine");
        let count = || {
            fs::create_dir_all(&directory)?;
            Ok(fs::read_dir(&directory)?.count())
        };
        let files = count().map_err(|source| QuarantineError::Io { path: directory.clone(), source })?;
        Ok(Self { directory, files })
    }

    /// Keeps an entry's payload and why it is here. On disk when this returns.
    pub(crate) fn keep_entry(
        &mut self,
        at: SegmentPosition,
        payload: &[u8],
        cause: &str,
    ) -> Result<(), QuarantineError> {
        let stem = format!("{}-{}", at.segment.0, at.offset);
        self.write(&format!("{stem}.bin"), payload)?;
        let report = serde_json::json!({
            "segment": at.segment.0, "end_offset": at.offset, "bytes": payload.len(), "cause": cause,
        });
        self.write(&format!("{stem}.json"), report.to_string().as_bytes())
    }

    /// Keeps a damaged segment, which is final, under a second name, and what is wrong with it.
    pub(crate) fn keep_segment(&mut self, segment: &SegmentFile, damage: &[String]) -> Result<(), QuarantineError> {
        let name = segment.path.file_name().expect("a segment has a name");
        let kept = self.directory.join(name);
        // Hard link where the file systems allow it; a copy where not.
        let link = || match fs::hard_link(&segment.path, &kept) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(_) => fs::copy(&segment.path, &kept).map(|_| ()),
            Ok(()) => Ok(()),
        };
        link().map_err(|source| QuarantineError::Io { path: kept.clone(), source })?;
        let report = serde_json::json!({ "segment": segment.id.0, "damage": damage });
        self.write(&format!("{}.json", segment.id.0), report.to_string().as_bytes())
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), QuarantineError> {
        if self.files >= MAX_FILES {
            return Err(QuarantineError::Full { path: self.directory.clone() });
        }
        self.files += 1;
        let path = self.directory.join(name);
        replace(&self.directory, &path, content).map_err(|source| QuarantineError::Io { path, source })
    }
}

#[cfg(test)]
mod tests {
    use cdc_model::SegmentId;

    use super::*;

    #[test]
    fn an_entry_is_kept_with_its_cause() {
        let state = tempfile::tempdir().unwrap();
        let mut quarantine = Quarantine::open(state.path()).unwrap();
        let at = SegmentPosition { segment: SegmentId(7), offset: 99 };
        quarantine.keep_entry(at, b"payload", "column x of table a.b is not known").unwrap();
        assert_eq!(fs::read(state.path().join("quarantine/7-99.bin")).unwrap(), b"payload");
        let report = fs::read_to_string(state.path().join("quarantine/7-99.json")).unwrap();
        assert!(report.contains("column x of table a.b"), "{report}");
    }

    #[test]
    fn a_damaged_segment_outlives_its_deletion() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("CommitLog-7-12.log");
        fs::write(&path, b"bytes").unwrap();
        let segment = SegmentFile::parse(&path).unwrap();
        Quarantine::open(state.path()).unwrap().keep_segment(&segment, &["a bit flipped".to_owned()]).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(fs::read(state.path().join("quarantine/CommitLog-7-12.log")).unwrap(), b"bytes");
    }

    #[test]
    fn a_flood_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let mut quarantine = Quarantine::open(state.path()).unwrap();
        quarantine.files = MAX_FILES;
        let error = quarantine.keep_entry(SegmentPosition::START, b"", "").unwrap_err();
        assert!(matches!(error, QuarantineError::Full { .. }));
    }
}
