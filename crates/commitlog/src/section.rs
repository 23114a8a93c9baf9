//! Sections that are compressed or encrypted: behind the marker the length of the plain bytes, then what was made of
//! them (`CompressedSegment`, `EncryptedSegment`).
//!
//! Only the marker's own place is covered by a CRC, neither where it points nor the length. So a section must decode to
//! its last byte, and how long it then is decides, not the number in front; a section that does not decode counts as
//! long as it says, so that those behind it keep their offsets. Entries are believed on their own CRCs, as everywhere.
//! A marker that points over another one has the wrong offset for all behind it, and ends what can be read.

use crate::{
    Damage, DamageKind, Fence, ReadError, ReadLimit, ReadOptions, ReadOutcome, ReadReport, SegmentReader,
    compression::{Compressor, SectionFault},
    encryption::Decryption,
    header::Encoding,
    input::{Input, MARKER, Marker},
    reader::Place,
};

/// The plain length, a word behind the marker.
const LENGTH: u64 = 4;

#[derive(Debug)]
pub(crate) struct Sections {
    codec: Codec,
    limit: u64,
    /// The section entered last did not decode, and was the last one. The next one's marker makes that damage.
    suspect: bool,
}

#[derive(Debug)]
enum Codec {
    Compressed(Compressor),
    Encrypted { alias: String, decryption: Decryption },
}

impl Sections {
    /// `None`: the segment is plain. The error says what is missing.
    pub(crate) fn new(encoding: Encoding, options: &ReadOptions) -> Result<Option<Self>, String> {
        let codec = match encoding {
            Encoding::Plain => return Ok(None),
            Encoding::Compressed(compressor) => Codec::Compressed(compressor),
            Encoding::Encrypted { alias, iv } => {
                let keystore = options.keystore.as_ref();
                let keystore = keystore.ok_or("it is encrypted; configure the keystore that Cassandra uses")?;
                let key = keystore.key(&alias).map_err(|error| format!("it is encrypted: {error}"))?;
                let decryption = Decryption::new(key, iv);
                let decryption = decryption.ok_or_else(|| format!("it is encrypted: {alias} is no key of AES"))?;
                Codec::Encrypted { alias, decryption }
            }
        };
        Ok(Some(Self { codec, limit: options.section_bytes_max, suspect: false }))
    }

    pub(crate) fn encoding(&self) -> &'static str {
        match self.codec {
            Codec::Compressed(compressor) => compressor.class(),
            Codec::Encrypted { .. } => "encrypted",
        }
    }

    /// What the section says of its plain length, unless no such section can have it.
    pub(crate) fn stated_length(&self, input: &Input, at: u64, next: u64) -> Result<Option<u64>, ReadError> {
        let Some(stored) = next.checked_sub(at + MARKER + LENGTH) else { return Ok(None) };
        let length = input.peek(at + MARKER)?.map(|word| u64::from(u32::from_be_bytes(word)));
        let compressor = match self.codec {
            Codec::Compressed(compressor) => compressor,
            Codec::Encrypted { .. } => Compressor::Lz4,
        };
        Ok(length.filter(|length| compressor.can_hold(stored, *length)))
    }

    /// The plain bytes of the section `[at, next)`.
    fn decode(&mut self, input: &Input, at: u64, next: u64) -> Result<Result<Vec<u8>, SectionFault>, ReadError> {
        let Some(stored) = next.checked_sub(at + MARKER + LENGTH) else { return Ok(Err(SectionFault::Corrupt)) };
        let stated = self.stated_length(input, at, next)?.unwrap_or(0);
        // No compressor makes more of its input.
        if stored > self.limit + self.limit / 6 + 1024 {
            return Ok(Err(if stated > self.limit { SectionFault::TooLarge(stated) } else { SectionFault::Corrupt }));
        }
        let mut stored = input.file_bytes(at + MARKER + LENGTH, stored)?;
        Ok(match &mut self.codec {
            Codec::Compressed(compressor) => compressor.decode(&stored, stated, self.limit),
            Codec::Encrypted { decryption, .. } => decryption.decode(&mut stored, stated, self.limit),
        })
    }

    fn unproven_key(&self) -> Option<&str> {
        match &self.codec {
            Codec::Encrypted { alias, decryption } if !decryption.proven => Some(alias),
            _ => None,
        }
    }
}

impl SegmentReader {
    /// Makes the section plain whose marker points at `next`. False: it is not there yet.
    pub(crate) fn open_section(
        &mut self,
        next: u64,
        finished: bool,
        report: &mut ReadReport,
    ) -> Result<bool, ReadError> {
        let at = self.section;
        let start = at.logical + MARKER;
        let Some(sections) = &mut self.sections else { return Ok(false) };
        let length = self.input.file_length()?;
        let stated = sections.stated_length(&self.input, at.disk, next)?;
        if next > length {
            if !finished {
                return Ok(false);
            }
            let bytes = stated.unwrap_or(length - at.disk);
            report.damage.push(Damage { at: self.position(start), bytes, kind: DamageKind::Truncated });
            return self.close_at(Place { logical: start + stated.unwrap_or(0), disk: next }, None);
        }
        let follows = next == length && finished || matches!(self.input.marker(next, false)?, Marker::Valid { .. });
        if sections.suspect && !finished && !follows {
            return Ok(false);
        }
        match sections.decode(&self.input, at.disk, next)? {
            Ok(plain) => {
                let length = plain.len() as u64;
                if stated != Some(length) {
                    self.check_pointer(next)?;
                    report.damage.push(Damage { at: self.position(start), bytes: 0, kind: DamageKind::Section });
                }
                self.close_at(Place { logical: start + length, disk: next }, Some(plain))
            }
            Err(SectionFault::TooLarge(size)) => {
                let (path, limit) = (self.input.path.clone(), sections.limit);
                Err(ReadError::SectionTooLarge { path, at: self.position(start), size, limit })
            }
            Err(SectionFault::Corrupt) if !finished && !follows => {
                sections.suspect = true;
                Ok(false)
            }
            Err(SectionFault::Corrupt) => {
                if let Some(alias) = self.foreign_key(next)? {
                    let reason = format!(
                        "it is encrypted, and key {alias} of the keystore opens no section of it: the key is another, \
                         or the segment is damaged"
                    );
                    return Err(ReadError::Unsupported { path: self.input.path.clone(), reason });
                }
                self.check_pointer(next)?;
                let Some(bytes) = stated else {
                    return Err(self.fault("its section neither decodes nor says how long it can be"));
                };
                report.damage.push(Damage { at: self.position(start), bytes, kind: DamageKind::Section });
                self.close_at(Place { logical: start + bytes, disk: next }, None)
            }
        }
    }

    /// Of a section with something wrong in it: is it one?
    fn check_pointer(&self, next: u64) -> Result<(), ReadError> {
        const WINDOW: u64 = 256 << 10;
        let mut from = self.section.disk + MARKER;
        while from + MARKER < next {
            let bytes = self.input.file_bytes(from, (next - from).min(WINDOW))?;
            for (at, word) in (from..next).zip(bytes.array_windows::<8>()) {
                if matches!(self.input.judge_marker(at, *word), Marker::Valid { next } if next >= at + MARKER) {
                    return Err(self.fault("it points over another marker"));
                }
            }
            // The last seven bytes begin no marker that was looked at.
            from += WINDOW - (MARKER - 1);
        }
        Ok(())
    }

    /// `plain`: `None` to step over the section.
    fn close_at(&mut self, end: Place, plain: Option<Vec<u8>>) -> Result<bool, ReadError> {
        match plain {
            Some(_) if end.logical < self.offset => return Err(self.fault("it points into an entry that was read")),
            Some(plain) => self.input.hold(self.section.logical + MARKER, plain),
            None => self.offset = self.offset.max(end.logical),
        }
        self.section_end = Some(end);
        if let Some(sections) = &mut self.sections {
            sections.suspect = false;
        }
        Ok(true)
    }

    /// The alias of a key that has not opened any section, from `next` on neither.
    fn foreign_key(&mut self, mut next: u64) -> Result<Option<String>, ReadError> {
        let Some(sections) = &mut self.sections else { return Ok(None) };
        while let Some(alias) = sections.unproven_key() {
            let at = next;
            next = match self.input.marker(at, false)? {
                Marker::Valid { next } if next >= at + MARKER && next <= self.input.file_length()? => next,
                _ => return Ok(Some(alias.to_owned())),
            };
            // Only whether a chunk opens counts.
            drop(sections.decode(&self.input, at, next)?);
        }
        Ok(None)
    }

    /// To the section the offset lies in, made plain like those before it: only so are offsets known that do not hang
    /// on the numbers in front.
    pub(crate) fn resume_sections(&mut self, offset: u64) -> Result<(), ReadError> {
        let limit = ReadLimit { fence: Fence::Marker, finished: false, max_bytes: 0 };
        let mut report = ReadReport { outcome: ReadOutcome::More, entries: 0, bytes: 0, damage: Vec::new() };
        while offset > 0 && self.close_section(limit, &mut report)? {
            match self.section_end {
                Some(end) if end.logical <= offset => self.enter(end),
                _ => break,
            }
            report.damage.clear();
        }
        // Is read again, and reported to the caller.
        if !report.damage.is_empty() {
            self.enter(self.section);
        }
        Ok(())
    }
}
