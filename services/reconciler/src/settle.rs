//! Rounds of reading, barrier and looking again, until each suspect is settled.

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use cdc_cassandra::{TableReader, Unread};
use cdc_model::{ColumnKind, CqlType, LocalTime, RowKey, RowState, WriteTime, token};
use cdc_postgres::{Expected, Mirror, Replacement, Seen};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    Class, Finding, ReconcileError,
    compare::Pass,
    judge::{Trial, Verdict, is_ahead},
    mend::mended,
};

/// A row that moves is behind or not by then; the others are settled in the second.
const ROUNDS: u32 = 4;
/// Rounds that only wait for something to expire do not count, but for these.
const WAITS: u32 = 4;

/// What became of suspects.
#[derive(Default)]
pub(crate) struct Settled {
    /// Proven right in the end.
    pub(crate) equal: BTreeSet<RowKey>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) in_motion: u64,
}

/// What became of rows that were to be set right.
#[derive(Default)]
pub(crate) struct Mended {
    /// Changed, or meant to be.
    pub(crate) attempted: BTreeSet<RowKey>,
    /// Proven right afterwards.
    pub(crate) right: BTreeSet<RowKey>,
}

pub(crate) struct Settling<'s> {
    pub(crate) reader: &'s TableReader,
    pub(crate) mirror: &'s Mirror,
    pub(crate) barrier: &'s dyn Pass,
    pub(crate) cancel: &'s CancellationToken,
}

struct Suspect {
    key: RowKey,
    trial: Trial,
    last: Verdict,
    answer: Option<Expected>,
    at_all: bool,
}

impl Settling<'_> {
    /// Keys as the target has them.
    pub(crate) async fn settle(&self, keys: Vec<RowKey>) -> Result<Settled, ReconcileError> {
        let seen = self.mirror.look(&keys).await?;
        let mut open: Vec<Suspect> = keys
            .into_iter()
            .zip(seen)
            .map(|(key, first)| Suspect {
                key,
                trial: Trial::new(first),
                last: Verdict::Moving,
                answer: None,
                at_all: false,
            })
            .collect();
        let mut settled = Settled::default();
        let (mut round, mut waits) = (0, 0);
        while !open.is_empty() && round < ROUNDS {
            if self.cancel.is_cancelled() {
                self.give_up(open, round, "CANCELLED", &mut settled);
                return Ok(settled);
            }
            let until = open.iter().filter_map(|suspect| match suspect.last {
                Verdict::Later(until) => Some(until),
                _ => None,
            });
            match until.max() {
                Some(until) if waits < WAITS => {
                    waits += 1;
                    let seconds = u64::try_from(until.0 + 1 - now().0).unwrap_or_default();
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                }
                _ => round += 1,
            }
            let at_all = round > 1 || waits > 0;
            let keys: Vec<RowKey> = open.iter().map(|suspect| suspect.key.clone()).collect();
            let answers = self.reader.rows(&keys, at_all).await;
            let passing = self.barrier.pass(self.mirror.schema());
            if let Some(Err(error)) = self.cancel.run_until_cancelled(passing).await {
                self.give_up(open, round, &format!("BARRIER_FAILED: {error}"), &mut settled);
                return Ok(settled);
            }
            if self.cancel.is_cancelled() {
                self.give_up(open, round, "CANCELLED", &mut settled);
                return Ok(settled);
            }
            let seen = self.mirror.look(&keys).await?;
            let now = now();
            let mut rest = Vec::new();
            for ((mut suspect, answer), after) in open.into_iter().zip(answers).zip(seen) {
                match answer {
                    Err(Unread::Unavailable) if at_all => {
                        settled.findings.push(self.unproven(&suspect, round, "ALL_UNAVAILABLE"));
                        continue;
                    }
                    Err(Unread::Unavailable) => {
                        settled.findings.push(self.unproven(&suspect, round, "CASSANDRA_UNAVAILABLE"));
                        continue;
                    }
                    Err(Unread::Failed(error)) => {
                        settled.findings.push(self.unproven(&suspect, round, &format!("READ_FAILED: {error}")));
                        continue;
                    }
                    Ok(state) => suspect.answer = state.map(|state| self.mirror.expect(suspect.key.clone(), state)),
                }
                suspect.at_all = at_all;
                suspect.last = suspect.trial.weigh(suspect.answer.as_ref(), at_all, after, now);
                match suspect.last {
                    Verdict::Equal => drop(settled.equal.insert(suspect.key)),
                    Verdict::Drift(class) => settled.findings.push(self.finding(&suspect, class, round, None)),
                    Verdict::Moving | Verdict::Unknown | Verdict::Later(_) => rest.push(suspect),
                }
            }
            open = rest;
        }
        for suspect in open {
            match suspect.last {
                Verdict::Unknown => settled.findings.push(self.unproven(&suspect, round, "NO_WRITE_TIME_AND_MOVING")),
                Verdict::Later(_) => settled.findings.push(self.unproven(&suspect, round, "EXPIRING")),
                Verdict::Equal | Verdict::Drift(_) | Verdict::Moving => settled.in_motion += 1,
            }
        }
        self.name_letters(&mut settled.findings).await?;
        Ok(settled)
    }

    /// Sets rows right, and says of which it is proven afterwards; `takes_ahead` of those PostgreSQL knows more of, too.
    pub(crate) async fn mend(
        &self,
        keys: Vec<RowKey>,
        takes_ahead: bool,
        rows_per_second: Option<NonZeroUsize>,
    ) -> Mended {
        let mut mended = Mended::default();
        if let Err(error) = self.mend_into(&mut mended, keys, takes_ahead, rows_per_second).await {
            warn!(error = &error as &dyn std::error::Error, "rows were changed, and are not proven to be right");
        }
        mended
    }

    async fn mend_into(
        &self,
        mended: &mut Mended,
        mut keys: Vec<RowKey>,
        takes_ahead: bool,
        rows_per_second: Option<NonZeroUsize>,
    ) -> Result<(), ReconcileError> {
        let at_once = rows_per_second.map_or(keys.len(), NonZeroUsize::get);
        let mut done = 0;
        while done < keys.len() {
            let end = keys.len().min(done.saturating_add(at_once));
            let began = Instant::now();
            let rows = self.replacements(&keys[done..end], takes_ahead).await?;
            // Told before it is done: whether it was done is not known if this fails.
            mended.attempted.extend(rows.iter().map(|row| row.key.clone()));
            self.mirror.replace(&rows).await?;
            done = end;
            if done < keys.len() {
                let rest = Duration::from_secs(1).saturating_sub(began.elapsed());
                if self.cancel.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
                    keys.truncate(done);
                }
            }
        }
        // To the end, whoever wants it to stop: what was changed has to be told.
        let to_the_end = CancellationToken::new();
        mended.right = Settling { cancel: &to_the_end, ..*self }.settle(keys).await?.equal;
        Ok(())
    }

    /// What Cassandra answers at `ALL`, to be put in the place of what PostgreSQL knows.
    async fn replacements(&self, keys: &[RowKey], takes_ahead: bool) -> Result<Vec<Replacement>, ReconcileError> {
        // In this order: what PostgreSQL knows some replica has answered with, unless it was lost there.
        let seen = self.mirror.look(keys).await?;
        let answers = self.reader.rows(keys, true).await;
        let schema = self.mirror.schema();
        let is_list = |id| matches!(schema.column(id).ty, CqlType::List { .. });
        let mut rows = Vec::new();
        for ((key, seen), answer) in keys.iter().zip(seen).zip(answers) {
            let Ok(answer) = answer else { continue };
            let answer = answer.map(|state| self.mirror.expect(key.clone(), state));
            let is_ahead = answer.as_ref().is_some_and(|answer| is_ahead(&seen, answer));
            let is_held = answer.as_ref().is_none_or(|answer| answer.columns.is_some());
            if (is_ahead && !takes_ahead) || !is_held {
                continue;
            }
            let answer = answer.as_ref().map(|answer| &answer.state);
            let state = mended(is_list, key.kind(), &seen.state, answer, now());
            rows.extend(state.map(|state| Replacement { key: key.clone(), known: seen.state, state }));
        }
        Ok(rows)
    }

    /// Missing and stale rows whose change was set aside.
    async fn name_letters(&self, findings: &mut [Finding]) -> Result<(), ReconcileError> {
        let mut lost: Vec<&mut Finding> = findings
            .iter_mut()
            .filter(|finding| {
                matches!(finding.class, Class::MissingInPostgres | Class::Stale | Class::ValueDiffers | Class::Extra)
            })
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        let keys: Vec<RowKey> = lost.iter().map(|finding| finding.key.clone()).collect();
        for (finding, has_letter) in lost.iter_mut().zip(self.mirror.have_letters(&keys).await?) {
            if has_letter {
                finding.class = Class::InDlq;
            }
        }
        Ok(())
    }

    fn give_up(&self, open: Vec<Suspect>, round: u32, why: &str, settled: &mut Settled) {
        settled.findings.extend(open.iter().map(|suspect| self.unproven(suspect, round, why)));
    }

    fn unproven(&self, suspect: &Suspect, round: u32, why: &str) -> Finding {
        self.finding(suspect, Class::Unproven, round, Some(why.to_owned()))
    }

    fn finding(&self, suspect: &Suspect, class: Class, barriers: u32, cause: Option<String>) -> Finding {
        let Suspect { key, trial, answer, at_all, .. } = suspect;
        let seen = trial.latest();
        let time =
            |state: &RowState| Some(state.newest_write()).filter(|time| *time != WriteTime::NONE).map(|time| time.0);
        Finding {
            class,
            token: token(&key.partition).0,
            key_sha256: key_sha256(key),
            is_static: key.clustering.is_none(),
            columns: self.differing(key.kind(), answer.as_ref(), seen),
            cassandra_checksum: answer
                .as_ref()
                .and_then(|answer| answer.columns.as_deref().map(|columns| checksum(key, columns))),
            postgres_checksum: seen.columns.as_deref().map(|columns| checksum(key, columns)),
            cassandra_written_at: answer.as_ref().and_then(|answer| time(&answer.state)),
            postgres_written_at: time(&seen.state),
            read_at_all: *at_all,
            barriers,
            cause: cause.or_else(|| {
                let cannot = answer.as_ref().is_some_and(|answer| answer.columns.is_none());
                cannot.then(|| "UNREPRESENTABLE".to_owned())
            }),
            repaired: false,
            attempted: false,
            key: key.clone(),
        }
    }

    fn differing(&self, kind: ColumnKind, answer: Option<&Expected>, seen: &Seen) -> Vec<String> {
        let expected = answer.and_then(|answer| answer.columns.as_ref());
        let Some((expected, shown)) = expected.zip(seen.columns.as_ref()) else { return Vec::new() };
        let columns = self.mirror.columns(kind).zip(expected.iter().zip(shown));
        columns.filter(|(_, (expected, shown))| expected != shown).map(|(name, _)| name.to_owned()).collect()
    }
}

/// Of the key as Cassandra serialises it: length of the partition key, partition key, clustering values with their lengths.
fn key_sha256(key: &RowKey) -> String {
    let length = u32::try_from(key.partition.len()).unwrap_or(u32::MAX);
    let hash = Sha256::new_with_prefix(length.to_be_bytes()).chain_update(&key.partition);
    let clustering = key.clustering.as_ref().map(|clustering| clustering.as_bytes().to_vec());
    let digest = hash.chain_update(clustering.unwrap_or_default()).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same for two stores that show the same of a row: of the key's hash and, by column, 0 for NULL or 1 and its hash.
fn checksum(key: &RowKey, columns: &[Option<i64>]) -> String {
    let hash = columns.iter().fold(Sha256::new_with_prefix(key_sha256(key)), |hash, column| match column {
        None => hash.chain_update([0]),
        Some(value) => hash.chain_update([1]).chain_update(value.to_be_bytes()),
    });
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn now() -> LocalTime {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LocalTime(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX - 1))
}
