//! What is said of one row, and when. Pure: no I/O, no clock.
//!
//! # Why a verdict is never a change under way
//!
//! Let a barrier be something that was written to the commit log of every replica and has come through the pipeline into
//! PostgreSQL. A replica that answers with a version has it in its log, the log is delivered in order, and the merge in
//! PostgreSQL never goes back. So what any replica answered *before* a barrier is in PostgreSQL *after* it.
//!
//! - **Behind**: Cassandra answered, a barrier passed, and PostgreSQL knows nothing as new: that version was lost.
//! - **Still different**: PostgreSQL showed p; a barrier later Cassandra was read at `ALL`; after one more barrier
//!   PostgreSQL shows p still. Each version in p came from the log of some replica, which `ALL` asks, so the answer is as
//!   new as p. The answer was given before the last barrier, so p is as new as the answer. Both are the same version; if
//!   they show different things, PostgreSQL is wrong. This takes no write times, so it holds for what has none.
//!
//! A row that never stands still is judged by the first rule alone: it may be behind, or it is not. None of this compares
//! clocks. Only what expires does, and it is left alone for [`SLACK`] before and after.

use cdc_model::{ColumnState, LocalTime, RowState, WriteTime};
use cdc_postgres::{Expected, Seen};
use serde::{Deserialize, Serialize};

/// Seconds around an expiry in which the stores may differ: rounding to seconds, clocks, the sweeper, the time to read.
pub(crate) const SLACK: i64 = 5;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Class {
    MissingInPostgres,
    /// In PostgreSQL, and not in Cassandra.
    Extra,
    /// PostgreSQL has an older version.
    Stale,
    /// The same version, and other values.
    ValueDiffers,
    /// Missing or stale, and its change is among the dead letters.
    InDlq,
    ExpiredNotRemoved,
    /// PostgreSQL has a newer version than all replicas.
    TargetAhead,
    /// Neither right nor wrong could be proven.
    Unproven,
}

impl Class {
    pub const ALL: [Self; 8] = [
        Self::MissingInPostgres,
        Self::Extra,
        Self::Stale,
        Self::ValueDiffers,
        Self::InDlq,
        Self::ExpiredNotRemoved,
        Self::TargetAhead,
        Self::Unproven,
    ];

    fn bit(self) -> u16 {
        1 << (self as u16)
    }

    pub fn is_drift(self) -> bool {
        self != Self::Unproven
    }

    /// Whether Cassandra's answer settles it. Not [`Self::InDlq`], whose letter is to be replayed.
    pub fn is_repairable(self) -> bool {
        !matches!(self, Self::InDlq | Self::Unproven)
    }
}

/// Some classes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Classes(u16);

impl Classes {
    pub fn contains(self, class: Class) -> bool {
        self.0 & class.bit() != 0
    }
}

impl FromIterator<Class> for Classes {
    fn from_iter<I: IntoIterator<Item = Class>>(classes: I) -> Self {
        Self(classes.into_iter().fold(0, |bits, class| bits | class.bit()))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Equal,
    Drift(Class),
    /// Not behind, and not the same: to be asked again, at `ALL`.
    Moving,
    /// Cannot be told from what has no write times unless it stands still.
    Unknown,
    /// Something expires about now: to be asked again after this second.
    Later(LocalTime),
}

/// A suspect and what PostgreSQL has shown of it.
pub(crate) struct Trial {
    /// At least one barrier before `latest`, but at first.
    before: Seen,
    latest: Seen,
}

impl Trial {
    pub(crate) fn new(first: Seen) -> Self {
        Self { before: first.clone(), latest: first }
    }

    pub(crate) fn latest(&self) -> &Seen {
        &self.latest
    }

    /// One round: Cassandra was read, a barrier passed, PostgreSQL was looked at. `at_all` only in rounds after the first.
    pub(crate) fn weigh(&mut self, answer: Option<&Expected>, at_all: bool, after: Seen, now: LocalTime) -> Verdict {
        let before = std::mem::replace(&mut self.before, std::mem::replace(&mut self.latest, after));
        judge(&before, answer, at_all, &self.latest, now)
    }
}

fn judge(before: &Seen, answer: Option<&Expected>, at_all: bool, after: &Seen, now: LocalTime) -> Verdict {
    let is_equal = match (answer, &after.columns) {
        (None, None) => true,
        (Some(answer), Some(columns)) => answer.columns.as_ref() == Some(columns),
        _ => false,
    };
    if is_equal {
        return Verdict::Equal;
    }
    let about_now = (now.0 - SLACK)..=(now.0 + SLACK);
    let expiring = [Some(&after.state), Some(&before.state), answer.map(|answer| &answer.state)];
    let expiring = expiring.into_iter().flatten().flat_map(expiries).filter(|at| about_now.contains(&at.0)).max();
    if let Some(at) = expiring {
        return Verdict::Later(LocalTime(at.0 + SLACK));
    }
    if shows_expired(after, now) {
        return Verdict::Drift(Class::ExpiredNotRemoved);
    }
    let is_timed = match answer {
        None => true,
        Some(answer) => match lag(answer, after) {
            Lag::Behind if after.columns.is_none() => return Verdict::Drift(Class::MissingInPostgres),
            Lag::Behind => return Verdict::Drift(Class::Stale),
            Lag::None => true,
            Lag::Unknown => false,
        },
    };
    let stands_still = before == after;
    if !at_all || !stands_still {
        return if is_timed { Verdict::Moving } else { Verdict::Unknown };
    }
    Verdict::Drift(match (answer, &after.columns) {
        (None, _) => Class::Extra,
        (Some(answer), _) if is_ahead(after, answer) => Class::TargetAhead,
        (Some(_), None) => Class::MissingInPostgres,
        (Some(_), Some(_)) => Class::ValueDiffers,
    })
}

/// When something live in it expires or expired.
fn expiries(state: &RowState) -> impl Iterator<Item = LocalTime> {
    let cells = state.columns.iter().flat_map(|(_, column)| match column {
        ColumnState::Simple(cell) => vec![cell.clone()],
        ColumnState::Complex(complex) => complex.cells.iter().map(|(_, cell)| cell.clone()).collect(),
    });
    let live = cells.filter(|cell| cell.value != cdc_model::CellValue::Tombstone).map(|cell| cell.local);
    live.chain(state.liveness.map(|marker| marker.expires)).filter(|at| *at != LocalTime::NONE)
}

/// Whether the target shows what by its own account is no more.
fn shows_expired(seen: &Seen, now: LocalTime) -> bool {
    let Some(columns) = &seen.columns else { return false };
    let long_ago = LocalTime(now.0 - SLACK);
    if seen.expires_at.is_some_and(|at| at < long_ago.0) {
        return true;
    }
    match seen.state.visible(long_ago) {
        None => expiries(&seen.state).any(|at| at < long_ago),
        Some(visible) => {
            let shown = columns.iter().filter(|column| column.is_some()).count();
            shown > visible.len() && expiries(&seen.state).any(|at| at < long_ago)
        }
    }
}

enum Lag {
    /// Something Cassandra answered is newer than all PostgreSQL knows of it.
    Behind,
    None,
    /// Nothing is behind, but not all has a write time.
    Unknown,
}

fn lag(answer: &Expected, seen: &Seen) -> Lag {
    let row_deletion = seen.state.deletion.map_or(WriteTime::NONE, |deletion| deletion.time);
    let mut is_timed = true;
    let mut cells = 0;
    for (id, column) in &answer.state.columns {
        let known = seen.state.columns.iter().find(|(own, _)| own == id).map(|(_, known)| known);
        let whole = newest_deletion(known).max(row_deletion);
        let mut is_behind = |time: WriteTime, known: WriteTime| {
            cells += 1;
            is_timed &= time != WriteTime::NONE;
            time > known.max(whole)
        };
        let behind = match (column, known) {
            (ColumnState::Simple(cell), Some(ColumnState::Simple(known))) => is_behind(cell.time, known.time),
            (ColumnState::Simple(cell), _) => is_behind(cell.time, WriteTime::NONE),
            (ColumnState::Complex(complex), known) => {
                let of_path = |path: &[u8]| match known {
                    Some(ColumnState::Complex(known)) => {
                        let own = known.cells.iter().find(|(own, _)| own.as_ref() == path);
                        own.map(|(_, cell)| cell.time)
                    }
                    _ => None,
                };
                // Elements of a list have names that CQL does not tell: the newest of them stands for all.
                let newest = || known.map_or(WriteTime::NONE, newest_cell);
                let is_list = complex.cells.iter().all(|(path, _)| path.len() == 16 && of_path(path).is_none());
                complex.cells.iter().any(|(path, cell)| {
                    let known = if is_list { newest() } else { of_path(path).unwrap_or(WriteTime::NONE) };
                    is_behind(cell.time, known)
                })
            }
        };
        if behind {
            return Lag::Behind;
        }
    }
    // A row of nothing but its key has a marker, whose time cannot be read.
    if is_timed && cells > 0 { Lag::None } else { Lag::Unknown }
}

fn newest_deletion(column: Option<&ColumnState>) -> WriteTime {
    match column {
        Some(ColumnState::Complex(complex)) => complex.deletion.map_or(WriteTime::NONE, |deletion| deletion.time),
        _ => WriteTime::NONE,
    }
}

fn newest_cell(column: &ColumnState) -> WriteTime {
    match column {
        ColumnState::Simple(cell) => cell.time,
        ColumnState::Complex(complex) => {
            complex.cells.iter().map(|(_, cell)| cell.time).max().unwrap_or(WriteTime::NONE)
        }
    }
}

/// Whether something live in PostgreSQL is newer than anything in the answer. Deletions are not in answers at all.
pub(crate) fn is_ahead(seen: &Seen, answer: &Expected) -> bool {
    let is_live = |cell: &&cdc_model::Cell| cell.value != cdc_model::CellValue::Tombstone;
    let newest_of = |(_, column): &(cdc_model::ColumnId, ColumnState)| match column {
        ColumnState::Simple(cell) => Some(cell).filter(is_live).map(|cell| cell.time),
        ColumnState::Complex(complex) => {
            complex.cells.iter().map(|(_, cell)| cell).filter(is_live).map(|cell| cell.time).max()
        }
    };
    let newest = answer.state.newest_write();
    newest != WriteTime::NONE && seen.state.columns.iter().filter_map(newest_of).any(|time| time > newest)
}

#[cfg(test)]
mod tests;
