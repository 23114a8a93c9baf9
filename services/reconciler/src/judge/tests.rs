//! The real decision in made-up worlds: three replicas that take writes late, each with a log that is delivered late, in
//! order and sometimes twice, to a merge; faults that lose a key's changes or mangle a value. Keys are judged while all of
//! that goes on, and while a replica is away for a time. A key without a fault that is called wrong is a false alarm; one that ends
//! wrong and was not called so is a miss.

mod world;

use std::collections::BTreeMap;

use super::*;
use world::{KEYS, NOW, REPLICAS, Rule, Unavailable, WRITING, World};

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
    /// At the end, and of them those that were called so, and what they are.
    wrong: usize,
    found: usize,
    /// Without any fault: the merge itself would be wrong.
    wrong_by_itself: usize,
    unproven: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.false_alarms += other.false_alarms;
        self.wrong += other.wrong;
        self.found += other.found;
        self.wrong_by_itself += other.wrong_by_itself;
        self.unproven += other.unproven;
    }
}

impl World {
    fn suspect(&mut self, key: usize) -> Result<Option<Suspect>, Unavailable> {
        let first = self.look(key);
        let answer = self.read(key, false)?;
        if first.columns == answer.as_ref().and_then(|answer| answer.columns.clone()) {
            return Ok(None);
        }
        let marker = self.begin_barrier()?;
        Ok(Some(Suspect { key, trial: Trial::new(first), round: 1, answer, marker }))
    }

    fn ask_again(&mut self, suspect: Suspect) -> Result<Suspect, Unavailable> {
        let answer = self.read(suspect.key, true)?;
        Ok(Suspect { round: suspect.round + 1, answer, marker: self.begin_barrier()?, ..suspect })
    }
}

fn run(seed: u64, rule: Rule, with_faults: bool) -> Tally {
    let mut world = World::new(seed, rule, with_faults);
    let (mut flagged, mut unproven) = (BTreeMap::new(), 0);
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
            match world.suspect(asked) {
                Ok(suspect) => suspects.extend(suspect),
                Err(Unavailable) => unproven += 1,
            }
        }
        for mut suspect in std::mem::take(&mut suspects) {
            if !world.has_passed(suspect.marker) {
                suspects.push(suspect);
                continue;
            }
            let after = world.look(suspect.key);
            match suspect.trial.weigh(suspect.answer.as_ref(), suspect.round > 1, after, NOW) {
                Verdict::Drift(class) => drop(flagged.insert(suspect.key, class)),
                Verdict::Equal => {}
                // Of what moves, the next pass finds what is wrong.
                Verdict::Moving | Verdict::Unknown | Verdict::Later(_) if suspect.round == 4 => {}
                Verdict::Moving | Verdict::Unknown | Verdict::Later(_) => match world.ask_again(suspect) {
                    Ok(suspect) => suspects.push(suspect),
                    Err(Unavailable) => unproven += 1,
                },
            }
        }
    }
    let wrong: Vec<(usize, Class)> = (0..KEYS).filter_map(|key| Some((key, world.wrong(key)?))).collect();
    Tally {
        false_alarms: flagged.keys().filter(|key| !world.faulty.contains(key)).count(),
        wrong: wrong.len(),
        found: wrong.iter().filter(|(key, class)| flagged.get(key) == Some(class)).count(),
        wrong_by_itself: wrong.iter().filter(|(key, _)| !world.faulty.contains(key)).count(),
        unproven,
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
    assert!(tally.wrong_by_itself == 0 && tally.unproven > 300, "{tally:?}");
}

#[test]
fn nothing_is_wrong_where_there_is_no_fault() {
    let tally = runs(Rule::AsItIs, false, 1_000..1_200);
    assert!(tally.false_alarms == 0 && tally.wrong == 0, "{tally:?}");
}

/// A rule whose breach nobody notices would not be one.
#[test]
fn each_rule_is_needed() {
    for rule in [Rule::Quorum, Rule::One, Rule::AnyNode, Rule::NoBarrier, Rule::WithoutTheAway] {
        let tally = runs(rule, true, 0..300);
        assert!(tally.false_alarms > 0, "{rule:?}: {tally:?}");
    }
}
