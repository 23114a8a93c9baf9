//! Which segments are read, from where, and how far.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cdc_commitlog::{
    Damage, DamageKind, Fence, Format, Keystore, Payload, ReadError, ReadLimit, ReadOptions, ReadOutcome, SegmentFile,
    SegmentReader, list_segments, read_index,
};
use cdc_model::{SegmentId, SegmentPosition};
use cdc_runtime::{Exit, Refusal};
use clap::Args;

use crate::role::chain;

/// Payload bytes between two looks at anything else.
const STEP_BYTES: usize = 1 << 20;

/// Cassandra itself allows half a segment, which is below 2 GiB; what is not in the file is never allocated.
const ENTRY_BYTES_MAX: u64 = 1 << 30;

/// Segments at the end of a folder that may still be written to: the active one, the one in reserve, and one that was
/// switched from just now.
const OPEN_MAX: usize = 3;

const PASSWORD: &str = "CDC_KEYSTORE_PASSWORD";
const KEY_PASSWORD: &str = "CDC_KEYSTORE_KEY_PASSWORD";

#[derive(Args, Debug)]
pub(super) struct InputArgs {
    /// Segments, or folders of segments as `cdc_raw` is one
    #[arg(value_name = "SEGMENT", required = true)]
    paths: Vec<PathBuf>,
    /// Keystore of Cassandra's `transparent_data_encryption_options`, for encrypted segments; its password comes from
    /// the file below or from `CDC_KEYSTORE_PASSWORD`, that of the keys, if another, from `CDC_KEYSTORE_KEY_PASSWORD`
    #[arg(long, value_name = "FILE")]
    keystore: Option<PathBuf>,
    /// File that holds the keystore's password
    #[arg(long, value_name = "FILE", requires = "keystore")]
    keystore_password_file: Option<PathBuf>,
}

/// `--from`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Start {
    /// Behind this position.
    Position(SegmentPosition),
    /// What is written from now on.
    End,
}

impl FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "end" {
            return Ok(Self::End);
        }
        let (segment, offset) = text.split_once(':').unwrap_or((text, "0"));
        match (segment.parse(), offset.parse()) {
            (Ok(segment), Ok(offset)) => Ok(Self::Position(SegmentPosition { segment: SegmentId(segment), offset })),
            _ => Err("write it as SEGMENT:POSITION, as in the output, or `end`".to_owned()),
        }
    }
}

impl InputArgs {
    pub(super) fn options(&self) -> anyhow::Result<ReadOptions> {
        let mut options =
            ReadOptions { entry_bytes_max: ENTRY_BYTES_MAX, section_bytes_max: 2 * ENTRY_BYTES_MAX, keystore: None };
        let Some(path) = &self.keystore else { return Ok(options) };
        let password = match &self.keystore_password_file {
            Some(file) => std::fs::read_to_string(file)
                .map_err(|error| Refusal::config(format!("{} cannot be read: {error}", file.display())))?
                .trim_end_matches(['\r', '\n'])
                .to_owned(),
            None => std::env::var(PASSWORD).map_err(|_| {
                Refusal::config(format!(
                    "the keystore has a password: set {PASSWORD}, or --keystore-password-file FILE"
                ))
            })?,
        };
        let key_password = std::env::var(KEY_PASSWORD).ok();
        let keystore = Keystore::open(path, &password, key_password.as_deref());
        options.keystore = Some(keystore.map_err(|error| Refusal::config(chain(&error)))?);
        Ok(options)
    }

    /// The segments named, folders unfolded, each folder's in order.
    pub(super) fn segments(&self) -> anyhow::Result<Vec<SegmentFile>> {
        let mut segments = Vec::new();
        for path in &self.paths {
            if !path.is_dir() {
                segments.push(segment(path)?);
                continue;
            }
            let found = list_segments(path).map_err(|error| unreadable(path, &error))?;
            if found.is_empty() {
                let sentence = format!("{} holds no CommitLog-<version>-<id>.log", path.display());
                return Err(Refusal { exit: Exit::Usage, message: sentence }.into());
            }
            segments.extend(found);
        }
        Ok(segments)
    }

    /// The folder to follow and its first segment that was asked for.
    pub(super) fn folder(&self) -> anyhow::Result<(PathBuf, SegmentId)> {
        let place = |path: &PathBuf| -> anyhow::Result<(PathBuf, SegmentId)> {
            if path.is_dir() {
                return Ok((path.clone(), SegmentId(0)));
            }
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok((parent.unwrap_or(Path::new(".")).to_owned(), segment(path)?.id))
        };
        let places = self.paths.iter().map(place).collect::<anyhow::Result<Vec<_>>>()?;
        let (folder, first) = places.iter().min_by_key(|(_, first)| *first).cloned().expect("one at least");
        if places.iter().any(|(other, _)| *other != folder) {
            let message =
                "--follow takes the segments of one folder; start another `cdc log dump` for the other".into();
            return Err(Refusal { exit: Exit::Usage, message }.into());
        }
        Ok((folder, first))
    }
}

fn segment(path: &Path) -> anyhow::Result<SegmentFile> {
    let refuse = |reason: &str| Refusal { exit: Exit::Usage, message: format!("{}: {reason}", path.display()) };
    let Some(file) = SegmentFile::parse(path) else {
        return Err(refuse("not a segment: its name must be CommitLog-<version>-<id>.log, as Cassandra gave it").into());
    };
    match path.metadata() {
        Ok(found) if found.is_file() => Ok(file),
        Ok(_) => Err(refuse("not a file").into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(refuse("there is no such file").into()),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> anyhow::Error {
    let fix = if error.kind() == io::ErrorKind::PermissionDenied { "; run as a user who may read it" } else { "" };
    anyhow::anyhow!("cannot read {}: {error}{fix}", path.display())
}

/// The sentence for a segment that cannot be read, with what to do.
pub(super) fn explain(error: &ReadError) -> String {
    let fix = match error {
        ReadError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "; run as a user who may read it"
        }
        ReadError::Unsupported { reason, .. } if reason.contains("keystore") => " (--keystore FILE)",
        _ => "",
    };
    chain(error) + fix
}

/// What was skipped, for people.
pub(super) fn describe(damage: &Damage) -> String {
    let Damage { at, bytes, kind } = damage;
    let what = match kind {
        DamageKind::TornMarker => {
            return format!("damage at {at}: the sync marker is half written; its section was read");
        }
        DamageKind::Payload => "an entry does not match its CRC",
        DamageKind::Size => "an entry's size is impossible or does not match its CRC; the rest of the section",
        DamageKind::Zeros => "zeros where an entry should be; the rest of the section",
        DamageKind::Truncated => "the file ends before the section does",
        DamageKind::TornTail => "the last entry is incomplete",
        DamageKind::Section if *bytes == 0 => {
            return format!("damage at {at}: a section's length is wrong; it was read");
        }
        DamageKind::Section => "a section cannot be decompressed or decrypted",
    };
    format!("damage at {at}: {what}: {bytes} bytes skipped")
}

/// A segment being read.
pub(super) struct Open {
    pub(super) file: SegmentFile,
    pub(super) reader: SegmentReader,
}

impl Open {
    /// `None`: Cassandra has not written the header yet.
    pub(super) fn new(file: &SegmentFile, options: &ReadOptions) -> Result<Option<Self>, ReadError> {
        let reader = SegmentReader::open_with(file, 0, options)?;
        Ok(reader.map(|reader| Self { file: file.clone(), reader }))
    }

    /// Of a segment that is read as it is: `None` if there is nothing in it, else the reason why it cannot be read.
    pub(super) fn existing(file: &SegmentFile, options: &ReadOptions) -> Result<Option<Self>, String> {
        let open = Self::new(file, options).map_err(|error| explain(&error))?;
        if open.is_none() && !is_blank(&file.path) {
            return Err(format!("{}: not a segment, or its header is cut off", file.path.display()));
        }
        Ok(open)
    }

    /// Cassandra says that it writes nothing more, or says nothing, as of a segment outside of `cdc_raw`.
    pub(super) fn is_finished(&self) -> bool {
        match read_index(&self.file) {
            Ok(index) => index.is_none_or(|index| index.completed),
            Err(_) => true,
        }
    }

    /// A piece of what there is. True: there is more.
    pub(super) fn step(
        &mut self,
        fence: Fence,
        finished: bool,
        entry: &mut dyn FnMut(Format, SegmentPosition, Payload<'_>),
    ) -> Result<(ReadOutcome, u64, Vec<Damage>), ReadError> {
        let format = self.reader.format();
        let limit = ReadLimit { fence, finished, max_bytes: STEP_BYTES };
        let report = self.reader.read(limit, &mut |at, payload| entry(format, at, payload))?;
        Ok((report.outcome, report.entries, report.damage))
    }
}

/// Preallocated and not written to yet.
fn is_blank(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(16).read_to_end(&mut start));
    read.is_ok() && start.iter().all(|byte| *byte == 0)
}

/// The segments of a folder, as they come and go.
pub(super) struct Tail {
    folder: PathBuf,
    /// Segments before it are not looked at.
    next: SegmentId,
    pub(super) open: VecDeque<(Open, Settled)>,
}

/// Whether more may be written to a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Settled(pub(super) bool);

impl Tail {
    pub(super) fn new(folder: PathBuf, first: SegmentId) -> Self {
        Self { folder, next: first, open: VecDeque::new() }
    }

    /// Looks for new segments, and which are complete. One that cannot be opened is reported once.
    pub(super) fn look(&mut self, options: &ReadOptions, fault: &mut dyn FnMut(&ReadError)) -> anyhow::Result<()> {
        let there = list_segments(&self.folder).map_err(|error| unreadable(&self.folder, &error))?;
        let first = self.next;
        for file in there.iter().filter(|file| file.id >= first) {
            match Open::new(file, options) {
                // Those behind it are not written to before this one.
                Ok(None) => break,
                Ok(Some(open)) => self.open.push_back((open, Settled(false))),
                Err(error) => fault(&error),
            }
            self.next = SegmentId(file.id.0 + 1);
        }
        for (open, settled) in &mut self.open {
            let newer = there.iter().rev().position(|file| file.id == open.file.id);
            let completed = read_index(&open.file).ok().flatten().is_some_and(|index| index.completed);
            *settled = Settled(completed || newer.is_none_or(|newer| newer >= OPEN_MAX));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_printed() {
        let at = SegmentPosition { segment: SegmentId(17), offset: 42 };
        assert_eq!(at.to_string().parse(), Ok(Start::Position(at)));
        assert_eq!("17".parse(), Ok(Start::Position(SegmentPosition { offset: 0, ..at })));
        assert_eq!("end".parse(), Ok(Start::End));
        assert!("17:x".parse::<Start>().is_err());
    }
}
