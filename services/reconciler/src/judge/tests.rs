//! The real decision in made-up worlds: three replicas that take writes late, each with a log that is delivered late, in
//! order and sometimes twice, to a merge; faults that lose a key's changes or mangle a value. Keys are judged while all of
//! that goes on. A key without a fault that is called wrong is a false alarm; one that ends wrong and was not called so is
//! a miss.

use std::collections::{BTreeMap, BTreeSet};

use cdc_model::{Cell, Clustering, ColumnId, ColumnState, RowKey, ValueBytes};
use rand::{RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use super::*;

const KEYS: usize = 40;
const REPLICAS: usize = 3;
const WRITING: u64 = 600;
/// Of Cassandra's clock: nothing here expires.
const NOW: LocalTime = LocalTime(1_700_000_000);

/// A write: newer times win, then deletions, then larger values, as `Cell::merge` has it.
type Write = Cell;

enum Entry {
    Write(usize, Write),
    Marker(u64),
}

/// Which rule is broken, to see that it matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    AsItIs,
    /// Settles at two replicas of three.
    Quorum,
    /// Settles at any replica.
    One,
    /// A barrier that has come through from one node is enough.
    AnyNode,
    /// No barrier at all.
    NoBarrier,
}

struct World {
    random: ChaCha8Rng,
    rule: Rule,
    time: u64,
    replicas: [BTreeMap<usize, Write>; REPLICAS],
    logs: [Vec<Entry>; REPLICAS],
    positions: [usize; REPLICAS],
    lags: [u32; REPLICAS],
    marked: [u64; REPLICAS],
    markers: u64,
    /// When, on which replica.
    hints: Vec<(u64, usize, usize, Write)>,
    postgres: BTreeMap<usize, Write>,
    loses: BTreeMap<usize, u64>,
    mangles: BTreeMap<usize, u64>,
    lost: BTreeSet<(usize, i64)>,
    faulty: BTreeSet<usize>,
}

fn merge(into: &mut BTreeMap<usize, Write>, key: usize, write: Write) {
    let known = into.remove(&key);
    into.insert(key, known.map_or(write.clone(), |known| known.merge(write)));
}

impl World {
    fn new(seed: u64, rule: Rule, with_faults: bool) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut keys: Vec<usize> = (0..KEYS).collect();
        keys.shuffle(&mut random);
        let mut faults = |count: usize| {
            let keys: Vec<usize> = keys.drain(..if with_faults { count } else { 0 }).collect();
            keys.into_iter().map(|key| (key, random.random_range(20..400))).collect::<BTreeMap<_, _>>()
        };
        let (loses, mangles) = (faults(4), faults(3));
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
            hints: Vec::new(),
            postgres: BTreeMap::new(),
            loses,
            mangles,
            lost: BTreeSet::new(),
            faulty: BTreeSet::new(),
        }
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
        let late = self.random.random_bool(0.3).then(|| self.random.random_range(0..REPLICAS));
        for replica in 0..REPLICAS {
            let delay = match (only, late) {
                (Some(only), _) if only != replica => self.random.random_range(100..400),
                (None, Some(late)) if late == replica => self.random.random_range(1..200),
                _ => 0,
            };
            match delay {
                0 => self.store(replica, key, write.clone()),
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

    fn step(&mut self) {
        self.time += 1;
        if self.time < WRITING && self.random.random_bool(0.6) {
            self.write();
        }
        let (due, hints) = std::mem::take(&mut self.hints).into_iter().partition(|(at, ..)| *at <= self.time);
        self.hints = hints;
        let due: Vec<(u64, usize, usize, Write)> = due;
        for (_, replica, key, write) in due {
            self.store(replica, key, write);
        }
        self.deliver();
    }

    /// With read repair, which is logged, too.
    fn read(&mut self, key: usize, at_all: bool) -> Option<Expected> {
        let mut replicas: Vec<usize> = (0..REPLICAS).collect();
        let asked = match self.rule {
            Rule::One if at_all => 1,
            Rule::AsItIs | Rule::AnyNode | Rule::NoBarrier if at_all => REPLICAS,
            _ => 2,
        };
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
        let newest = answer.remove(&key)?;
        for replica in replicas {
            if self.replicas[replica].get(&key) != Some(&newest) {
                self.store(replica, key, newest.clone());
            }
        }
        let row_key = RowKey { partition: ValueBytes::EMPTY, clustering: Some(Clustering::default()) };
        let state = state(&newest);
        newest.is_live(NOW).then(|| Expected { key: row_key, columns: Some(shown(&newest)), state })
    }

    fn look(&self, key: usize) -> Seen {
        let Some(write) = self.postgres.get(&key) else { return Seen::default() };
        let columns = write.is_live(NOW).then(|| shown(write));
        Seen { columns, state: state(write), expires_at: None }
    }

    fn begin_barrier(&mut self) -> u64 {
        self.markers += 1;
        for log in &mut self.logs {
            log.push(Entry::Marker(self.markers));
        }
        self.markers
    }

    fn has_passed(&self, marker: u64) -> bool {
        let passed = self.marked.iter().filter(|marked| **marked >= marker).count();
        match self.rule {
            Rule::NoBarrier => true,
            Rule::AnyNode => passed > 0,
            Rule::AsItIs | Rule::Quorum | Rule::One => passed == REPLICAS,
        }
    }

    fn is_wrong(&self, key: usize) -> bool {
        let mut truth = BTreeMap::new();
        for replica in &self.replicas {
            if let Some(write) = replica.get(&key).cloned() {
                merge(&mut truth, key, write);
            }
        }
        let visible = |writes: &BTreeMap<usize, Write>| {
            writes.get(&key).filter(|write| write.is_live(NOW)).map(|write| write.value.clone())
        };
        visible(&truth) != visible(&self.postgres)
    }

    fn is_at_rest(&self) -> bool {
        self.time >= WRITING && self.hints.is_empty() && (0..REPLICAS).all(|r| self.positions[r] == self.logs[r].len())
    }
}

fn shown(write: &Write) -> Vec<Option<i64>> {
    vec![Some(i64::from(u32::from_be_bytes(write.value.bytes().try_into().unwrap())))]
}

fn state(write: &Write) -> RowState {
    RowState { liveness: None, deletion: None, columns: vec![(ColumnId(0), ColumnState::Simple(write.clone()))] }
}

struct Suspect {
    key: usize,
    trial: Trial,
    round: u32,
    answer: Option<Expected>,
    marker: u64,
}

#[derive(Default, Debug)]
struct Tally {
    false_alarms: usize,
    wrong: usize,
    found: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.false_alarms += other.false_alarms;
        self.wrong += other.wrong;
        self.found += other.found;
    }
}

fn run(seed: u64, rule: Rule, with_faults: bool) -> Tally {
    let mut world = World::new(seed, rule, with_faults);
    let mut flagged = BTreeSet::new();
    let mut suspects: Vec<Suspect> = Vec::new();
    let mut asked = 0;
    // Every key is looked at twice after the last write has arrived everywhere.
    let mut last_looks = 0;
    while world.time < WRITING || !suspects.is_empty() || last_looks < 2 * KEYS {
        assert!(world.time < 40 * WRITING, "seed {seed} does not come to rest");
        if world.time == WRITING {
            world.lags = [1; REPLICAS];
        }
        world.step();
        if world.time.is_multiple_of(3) && last_looks < 2 * KEYS {
            asked = (asked + 1) % KEYS;
            last_looks += usize::from(world.is_at_rest());
            let first = world.look(asked);
            let answer = world.read(asked, false);
            if first.columns != answer.as_ref().and_then(|answer| answer.columns.clone()) {
                let marker = world.begin_barrier();
                suspects.push(Suspect { key: asked, trial: Trial::new(first), round: 1, answer, marker });
            }
        }
        for mut suspect in std::mem::take(&mut suspects) {
            if !world.has_passed(suspect.marker) {
                suspects.push(suspect);
                continue;
            }
            let after = world.look(suspect.key);
            match suspect.trial.weigh(suspect.answer.as_ref(), suspect.round > 1, after, NOW) {
                Verdict::Drift(_) => drop(flagged.insert(suspect.key)),
                Verdict::Equal => {}
                // Of what moves, the next pass finds what is wrong.
                Verdict::Moving | Verdict::Unknown | Verdict::Later(_) if suspect.round == 4 => {}
                Verdict::Moving | Verdict::Unknown | Verdict::Later(_) => {
                    suspect.round += 1;
                    suspect.answer = world.read(suspect.key, true);
                    suspect.marker = world.begin_barrier();
                    suspects.push(suspect);
                }
            }
        }
    }
    let wrong: BTreeSet<usize> = (0..KEYS).filter(|key| world.is_wrong(*key)).collect();
    Tally {
        false_alarms: flagged.difference(&world.faulty).count(),
        wrong: wrong.len(),
        found: wrong.intersection(&flagged).count(),
    }
}

fn runs(rule: Rule, with_faults: bool, seeds: std::ops::Range<u64>) -> Tally {
    let mut tally = Tally::default();
    seeds.for_each(|seed| tally += run(seed, rule, with_faults));
    tally
}

#[test]
fn what_is_under_way_is_never_called_wrong_and_what_stays_wrong_is_always_found() {
    let tally = runs(Rule::AsItIs, true, 0..300);
    assert!(tally.false_alarms == 0 && tally.found == tally.wrong && tally.wrong > 300, "{tally:?}");
}

#[test]
fn nothing_is_wrong_where_there_is_no_fault() {
    let tally = runs(Rule::AsItIs, false, 1_000..1_200);
    assert!(tally.false_alarms == 0 && tally.wrong == 0, "{tally:?}");
}

/// A rule whose breach nobody notices would not be one.
#[test]
fn each_rule_is_needed() {
    for rule in [Rule::Quorum, Rule::One, Rule::AnyNode, Rule::NoBarrier] {
        let tally = runs(rule, true, 0..300);
        assert!(tally.false_alarms > 0, "{rule:?}: {tally:?}");
    }
}
