//! A made-up cluster, its pipeline, and what goes wrong in it.

use std::collections::{BTreeMap, BTreeSet};

use cdc_model::{Cell, Clustering, ColumnId, ColumnState, RowKey, ValueBytes};
use rand::{RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::judge::{Class, Expected, LocalTime, RowState, Seen, WriteTime};

pub(super) const KEYS: usize = 40;
pub(super) const REPLICAS: usize = 3;
pub(super) const WRITING: u64 = 600;
/// Of Cassandra's clock: nothing here expires.
pub(super) const NOW: LocalTime = LocalTime(1_700_000_000);

/// A write: newer times win, then deletions, then larger values, as `Cell::merge` has it.
type Write = Cell;

enum Entry {
    Write(usize, Write),
    Marker(u64),
}

/// Which rule is broken, to see that it matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rule {
    AsItIs,
    /// Settles at two replicas of three.
    Quorum,
    /// Settles at any replica.
    One,
    /// A barrier that has come through from one node is enough.
    AnyNode,
    /// No barrier at all.
    NoBarrier,
    /// A replica that is away is neither asked nor waited for.
    WithoutTheAway,
}

pub(super) struct World {
    random: ChaCha8Rng,
    rule: Rule,
    pub(super) time: u64,
    replicas: [BTreeMap<usize, Write>; REPLICAS],
    logs: [Vec<Entry>; REPLICAS],
    positions: [usize; REPLICAS],
    pub(super) lags: [u32; REPLICAS],
    marked: [u64; REPLICAS],
    markers: u64,
    /// Which replica is away from when to when; its log is delivered all the same.
    away: (usize, std::ops::Range<u64>),
    /// Barriers and replicas whose logs they are not in.
    skipped: BTreeSet<(u64, usize)>,
    /// When, on which replica.
    hints: Vec<(u64, usize, usize, Write)>,
    postgres: BTreeMap<usize, Write>,
    loses: BTreeMap<usize, u64>,
    mangles: BTreeMap<usize, u64>,
    lost: BTreeSet<(usize, i64)>,
    pub(super) faulty: BTreeSet<usize>,
}

fn merge(into: &mut BTreeMap<usize, Write>, key: usize, write: Write) {
    let known = into.remove(&key);
    into.insert(key, known.map_or(write.clone(), |known| known.merge(write)));
}

impl World {
    pub(super) fn new(seed: u64, rule: Rule, with_faults: bool) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut keys: Vec<usize> = (0..KEYS).collect();
        keys.shuffle(&mut random);
        let mut faults = |count: usize| {
            let keys: Vec<usize> = keys.drain(..if with_faults { count } else { 0 }).collect();
            keys.into_iter().map(|key| (key, random.random_range(20..400))).collect::<BTreeMap<_, _>>()
        };
        let (loses, mangles) = (faults(4), faults(3));
        let from = random.random_range(100..300);
        let away = (random.random_range(0..REPLICAS), from..from + random.random_range(50..200));
        let lags = std::array::from_fn(|_| [1, 3, 10, 60][random.random_range(0..4)]);
        Self {
            random,
            rule,
            time: 0,
            replicas: Default::default(),
            logs: Default::default(),
            positions: [0; REPLICAS],
            lags,
            marked: [0; REPLICAS],
            markers: 0,
            away,
            skipped: BTreeSet::new(),
            hints: Vec::new(),
            postgres: BTreeMap::new(),
            loses,
            mangles,
            lost: BTreeSet::new(),
            faulty: BTreeSet::new(),
        }
    }

    fn is_away(&self, replica: usize) -> bool {
        self.away.0 == replica && self.away.1.contains(&self.time)
    }

    fn is_one_away(&self) -> bool {
        (0..REPLICAS).any(|replica| self.is_away(replica))
    }

    fn store(&mut self, replica: usize, key: usize, write: Write) {
        merge(&mut self.replicas[replica], key, write.clone());
        self.logs[replica].push(Entry::Write(key, write));
    }

    fn write(&mut self) {
        let hot = self.random.random_bool(0.3);
        let key = self.random.random_range(0..if hot { 3 } else { KEYS });
        // Clients' clocks differ.
        let time = WriteTime(i64::try_from(self.time * 10).unwrap() + self.random.random_range(-15..=15));
        let write = match self.random.random_bool(0.2) {
            true => Cell::tombstone(time, NOW),
            false => Cell::live(time, &self.random.random_range(0..1000u32).to_be_bytes()[..]),
        };
        let only = self.random.random_bool(0.03).then(|| self.random.random_range(0..REPLICAS));
        let only = only.filter(|only| !self.is_away(*only));
        let late = self.random.random_bool(0.3).then(|| self.random.random_range(0..REPLICAS));
        for replica in 0..REPLICAS {
            let delay = match (only, late) {
                (Some(only), _) if only != replica => self.random.random_range(100..400),
                (None, Some(late)) if late == replica => self.random.random_range(1..200),
                _ => 0,
            };
            match delay {
                0 if !self.is_away(replica) => self.store(replica, key, write.clone()),
                delay => self.hints.push((self.time + delay, replica, key, write.clone())),
            }
        }
    }

    fn deliver(&mut self) {
        for replica in 0..REPLICAS {
            if !self.random.random_bool((1.0 / f64::from(self.lags[replica])).max(0.02)) {
                continue;
            }
            if self.random.random_bool(0.02) {
                let back = self.random.random_range(1..10);
                self.positions[replica] = self.positions[replica].saturating_sub(back);
            }
            for _ in 0..self.random.random_range(1..6) {
                match self.logs[replica].get(self.positions[replica]) {
                    None => break,
                    Some(Entry::Marker(number)) => self.marked[replica] = self.marked[replica].max(*number),
                    Some(Entry::Write(key, write)) => {
                        let (key, write) = (*key, write.clone());
                        self.apply(key, write);
                    }
                }
                self.positions[replica] += 1;
            }
        }
    }

    fn apply(&mut self, key: usize, mut write: Write) {
        // One change is lost from all logs, or none.
        if self.loses.get(&key).is_some_and(|from| self.time >= *from) && !self.faulty.contains(&key) {
            self.faulty.insert(key);
            self.lost.insert((key, write.time.0));
        }
        if self.lost.contains(&(key, write.time.0)) {
            return;
        }
        if self.mangles.get(&key).is_some_and(|from| self.time >= *from) && write.is_live(NOW) {
            self.faulty.insert(key);
            write = Cell::live(write.time, &u32::MAX.to_be_bytes()[..]);
        }
        merge(&mut self.postgres, key, write);
    }

    pub(super) fn step(&mut self) {
        self.time += 1;
        if self.time < WRITING && self.random.random_bool(0.6) {
            self.write();
        }
        let hints = std::mem::take(&mut self.hints);
        let is_due = |(at, replica, ..): &(u64, usize, usize, Write)| *at <= self.time && !self.is_away(*replica);
        let (due, hints): (Vec<_>, Vec<_>) = hints.into_iter().partition(is_due);
        self.hints = hints;
        for (_, replica, key, write) in due {
            self.store(replica, key, write);
        }
        self.deliver();
    }

    /// With read repair, which is logged, too.
    pub(super) fn read(&mut self, key: usize, at_all: bool) -> Result<Option<Expected>, Unavailable> {
        let mut replicas: Vec<usize> = (0..REPLICAS).filter(|replica| !self.is_away(*replica)).collect();
        let asked = match self.rule {
            Rule::One if at_all => 1,
            Rule::WithoutTheAway if at_all => replicas.len(),
            Rule::AsItIs | Rule::AnyNode | Rule::NoBarrier if at_all => REPLICAS,
            _ => 2,
        };
        if asked > replicas.len() {
            return Err(Unavailable);
        }
        if asked < REPLICAS {
            replicas.shuffle(&mut self.random);
            replicas.truncate(asked);
        }
        let mut answer = BTreeMap::new();
        for replica in &replicas {
            if let Some(write) = self.replicas[*replica].get(&key).cloned() {
                merge(&mut answer, key, write);
            }
        }
        let Some(newest) = answer.remove(&key) else { return Ok(None) };
        for replica in replicas {
            if self.replicas[replica].get(&key) != Some(&newest) {
                self.store(replica, key, newest.clone());
            }
        }
        let row_key = RowKey { partition: ValueBytes::EMPTY, clustering: Some(Clustering::default()) };
        let state = state(&newest);
        Ok(newest.is_live(NOW).then(|| Expected { key: row_key, columns: Some(shown(&newest)), state }))
    }

    pub(super) fn look(&self, key: usize) -> Seen {
        let Some(write) = self.postgres.get(&key) else { return Seen::default() };
        let columns = write.is_live(NOW).then(|| shown(write));
        Seen { columns, state: state(write), expires_at: None }
    }

    pub(super) fn begin_barrier(&mut self) -> Result<u64, Unavailable> {
        if self.is_one_away() && !matches!(self.rule, Rule::WithoutTheAway | Rule::NoBarrier) {
            return Err(Unavailable);
        }
        self.markers += 1;
        for replica in 0..REPLICAS {
            match self.is_away(replica) {
                true => drop(self.skipped.insert((self.markers, replica))),
                false => self.logs[replica].push(Entry::Marker(self.markers)),
            }
        }
        Ok(self.markers)
    }

    pub(super) fn has_passed(&self, marker: u64) -> bool {
        let has = |replica: &usize| self.marked[*replica] >= marker || self.skipped.contains(&(marker, *replica));
        let passed = (0..REPLICAS).filter(has).count();
        match self.rule {
            Rule::NoBarrier => true,
            Rule::AnyNode => passed > 0,
            Rule::AsItIs | Rule::Quorum | Rule::One | Rule::WithoutTheAway => passed == REPLICAS,
        }
    }

    /// What is to be said of a key once everything is at rest, by the plain meaning of the classes.
    pub(super) fn wrong(&self, key: usize) -> Option<Class> {
        let mut truth = BTreeMap::new();
        for replica in &self.replicas {
            if let Some(write) = replica.get(&key).cloned() {
                merge(&mut truth, key, write);
            }
        }
        let live = |writes: &BTreeMap<usize, Write>| writes.get(&key).filter(|write| write.is_live(NOW)).cloned();
        match (live(&truth), live(&self.postgres)) {
            (None, None) => None,
            (Some(_), None) => Some(Class::MissingInPostgres),
            (None, Some(_)) => Some(Class::Extra),
            (Some(truth), Some(own)) if truth.value == own.value => None,
            (Some(truth), Some(own)) => Some(match truth.time.cmp(&own.time) {
                std::cmp::Ordering::Greater => Class::Stale,
                std::cmp::Ordering::Equal => Class::ValueDiffers,
                std::cmp::Ordering::Less => Class::TargetAhead,
            }),
        }
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.time >= WRITING && self.hints.is_empty() && (0..REPLICAS).all(|r| self.positions[r] == self.logs[r].len())
    }
}

fn shown(write: &Write) -> Vec<Option<i64>> {
    vec![Some(i64::from(u32::from_be_bytes(write.value.bytes().try_into().unwrap())))]
}

fn state(write: &Write) -> RowState {
    RowState { liveness: None, deletion: None, columns: vec![(ColumnId(0), ColumnState::Simple(write.clone()))] }
}

/// A replica that has to answer is away.
pub(super) struct Unavailable;
