//! Sinks that come and go under load.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cdc_testkit::Postgres;
use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::pipeline::{Servers, connect_postgres};

const RATE: u32 = 1_000;
/// What is watched before and after something happens.
const CALM: Duration = Duration::from_secs(4);
/// Moves of a position within twice that time from which on its partition counts as busy.
const BUSY: usize = 16;
const LOOK_EVERY: Duration = Duration::from_millis(10);
const IN_ORDER: Duration = Duration::from_secs(10);

#[test]
fn sinks_that_are_added_removed_and_killed_lose_nothing_and_the_others_go_on() {
    let servers = Servers::start(true);
    let mut source = servers.spawn("source", "");
    let mut first = servers.spawn("sink", "");
    let load = servers.load(1, RATE);
    first.wait_until_it_has_its_share(1);
    let watch = Watch::start(&servers.postgres, &servers.runtime);
    let add = || servers.spawn_as("second-sink", "sink", "");

    // Each position is seen once before.
    std::thread::sleep(CALM);
    let begin = Instant::now();
    std::thread::sleep(2 * CALM);
    let usual = watch.longest_pauses(begin, Instant::now());
    let mut second = watch.during("a sink is added", &usual, || {
        let mut second = add();
        second.wait_until_it_has_its_share(2);
        second
    });
    watch.during("a sink is removed", &usual, || {
        second.signal(Signal::TERM);
        assert!(second.exits_within(IN_ORDER).success(), "{}", second.log());
        first.wait_until_it_has_its_share(1);
    });
    let mut second = add();
    second.wait_until_it_has_its_share(2);
    watch.during("a sink is killed", &usual, || {
        drop(second);
        first.wait_until_it_has_its_share(1);
    });

    assert!(load.stop(&servers) > 1_000);
    servers.let_short_ttls_pass();
    source.wait_until_idle();
    first.wait_until_applied();
    servers.assert_equal();
}

/// When the position of each partition was seen to move, and by which claim.
struct Watch(Arc<Mutex<HashMap<String, Vec<Moved>>>>);

#[derive(Clone, PartialEq, Eq)]
struct Moved {
    at: Instant,
    epoch: i64,
    position: Option<String>,
}

/// By partition.
type Pauses = BTreeMap<String, Pause>;

#[derive(Clone, Copy)]
struct Pause {
    longest: Duration,
    /// How often the position moved.
    moves: usize,
    /// Claimed anew meanwhile.
    has_moved: bool,
}

impl Watch {
    fn start(postgres: &Postgres, runtime: &Runtime) -> Self {
        let seen: Arc<Mutex<HashMap<String, Vec<Moved>>>> = Arc::default();
        let client = runtime.block_on(connect_postgres(postgres)).unwrap();
        let noted = Arc::clone(&seen);
        runtime.spawn(async move {
            // Ends with the server.
            while let Ok(rows) = client.query("select name, epoch, position from _cdc.streams", &[]).await {
                let at = Instant::now();
                for row in rows {
                    let (name, epoch, position) = (row.get(0), row.get(1), row.get(2));
                    let mut noted = noted.lock().unwrap();
                    let moves: &mut Vec<Moved> = noted.entry(name).or_default();
                    if moves.last().is_none_or(|last| (last.epoch, &last.position) != (epoch, &position)) {
                        moves.push(Moved { at, epoch, position });
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Self(seen)
    }

    /// The longest time between two moves of each position.
    fn longest_pauses(&self, begin: Instant, end: Instant) -> Pauses {
        let seen = self.0.lock().unwrap();
        let pause = |moves: &Vec<Moved>| {
            let within: Vec<&Moved> = moves.iter().filter(|moved| (begin..end).contains(&moved.at)).collect();
            let before = moves.iter().rev().find(|moved| moved.at < begin)?;
            let times = [begin].into_iter().chain(within.iter().map(|moved| moved.at)).chain([end]);
            let times: Vec<Instant> = times.collect();
            let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max()?;
            let moves = within.len();
            Some(Pause { longest, moves, has_moved: within.iter().any(|moved| moved.epoch != before.epoch) })
        };
        seen.iter().filter_map(|(name, moves)| Some((name.clone(), pause(moves)?))).collect()
    }

    /// Does something, and prints how long positions of busy partitions stood still: of those that stayed with their
    /// sink, and of those that changed it.
    fn during<T>(&self, what: &str, usual: &Pauses, act: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = act();
        let took = begin.elapsed();
        std::thread::sleep(CALM);
        let pauses = self.longest_pauses(begin, Instant::now());
        println!("{what} (settled after {} ms); longest pause, ms:", took.as_millis());
        let busy = |name: &String| usual.get(name).is_some_and(|usual| usual.moves >= BUSY);
        for has_moved in [false, true] {
            let alike = || pauses.iter().filter(|(name, pause)| busy(name) && pause.has_moved == has_moved);
            let (now, before) = (alike().map(|(_, pause)| pause.longest), alike().map(|(name, _)| usual[name].longest));
            let (now, before) = (spread(now), spread(before));
            println!(
                "  {} partitions that {}: {now}; before: {before}",
                alike().count(),
                ["stay", "move"][usize::from(has_moved)]
            );
        }
        assert!(pauses.values().any(|pause| pause.has_moved) && pauses.values().any(|pause| !pause.has_moved));
        done
    }
}

fn spread(pauses: impl Iterator<Item = Duration>) -> String {
    let mut pauses: Vec<u128> = pauses.map(|pause| pause.as_millis()).collect();
    pauses.sort_unstable();
    let at = |share: usize| pauses.get((pauses.len().saturating_sub(1)) * share / 100).copied().unwrap_or_default();
    format!("median {}, longest {}", at(50), at(100))
}
