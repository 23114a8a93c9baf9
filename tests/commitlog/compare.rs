//! Both readers on the same segments.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::node::{self, Combination, MARKER_TABLE, PHASES};

/// Differences shown; the outputs are kept whole.
const SHOWN: usize = 5;
/// Of each difference so many characters are shown, and so many of them before its place.
const SHOWN_CHARACTERS: usize = 1_000;
const SHOWN_BEFORE: usize = 500;
/// What every run must have met, or it compared too little.
const MET: [&str; 14] = [
    r#""kind":"row""#,
    r#""kind":"static""#,
    r#""kind":"partition_delete""#,
    r#""kind":"range_delete""#,
    r#""marker":{"#,
    r#","ttl":"#,
    r#""deletion":{"#,
    r#""complex_deletions":["#,
    r#""shards":["#,
    r#""path":"#,
    r#""deleted":true"#,
    r#""clustering":{}"#,
    r#""inclusive":false"#,
    r#""table":"equality.phases""#,
];

/// Segment and position of an entry; the lines of its changes.
type Entries = BTreeMap<(u64, u64), Vec<String>>;

pub(crate) fn assert_equal(combination: &Combination, seeds: &[u64]) {
    let folder = tempfile::tempdir().unwrap();
    let written = node::write(combination, seeds, folder.path());
    let segments = written.segments();
    let ours = folder.path().join("ours.jsonl");
    let status = run(&mut written.dump(combination), &ours);
    let (mut expected, mut known) = (Vec::new(), Vec::new());
    for phase in 0..PHASES {
        let theirs = folder.path().join(format!("theirs-{phase}.jsonl"));
        // What was written in other phases it may fail to read; what it should have read is missing then.
        known.push(run(&mut written.reader(combination, phase), &theirs));
        expected.extend(phase_of(&fs::read_to_string(&theirs).unwrap(), phase));
    }
    let found = fs::read_to_string(&ours).unwrap();
    let found: Vec<_> = found.lines().collect();
    let start = found.iter().position(|line| line.contains(MARKER_TABLE)).unwrap_or_default();
    let differences = differences(&by_entry(&found[start..]), &by_entry(&expected));
    let unmet: Vec<_> = MET.iter().filter(|sign| !found.iter().any(|line| line.contains(**sign))).collect();
    println!("{combination:?}: {} changes, {} differences", found.len(), differences.len());
    if !differences.is_empty() || !unmet.is_empty() || status != Some(0) {
        written.cassandra.keep();
        let kept = folder.keep();
        for difference in differences.iter().take(SHOWN) {
            println!("{difference}");
        }
        panic!(
            "{} entries differ, cdc log dump ended with {status:?}, Cassandra's with {known:?}, not met: {unmet:?}; \
             {combination:?}, seeds {seeds:?}; outputs in {}, segments in {}",
            differences.len(),
            kept.display(),
            segments.display()
        );
    }
}

/// Its exit code.
fn run(command: &mut Command, output: &Path) -> Option<i32> {
    let errors = File::create(output.with_extension("err")).unwrap();
    command.stdout(File::create(output).unwrap()).stderr(errors).status().unwrap().code()
}

/// The lines from the marker of the phase to the next marker.
fn phase_of(text: &str, phase: usize) -> Vec<String> {
    let marker = |phase: usize| {
        let key = format!(r#""partition_key":{{"phase":{phase}}}"#);
        text.lines().position(|line| line.contains(MARKER_TABLE) && line.contains(&key))
    };
    let Some(start) = marker(phase) else { return Vec::new() };
    let end = marker(phase + 1).unwrap_or(usize::MAX);
    // What the alterations in front of the next phase logged beside the schema is read with the schema in force.
    text.lines().take(end).skip(start).map(str::to_owned).collect()
}

fn by_entry<S: AsRef<str>>(lines: &[S]) -> Entries {
    let mut entries = Entries::new();
    for line in lines {
        let line = line.as_ref();
        let number = |name: &str| -> u64 {
            let (_, rest) = line.split_once(name).unwrap_or_else(|| panic!("no {name} in {line}"));
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap()
        };
        entries.entry((number(r#""segment":"#), number(r#""position":"#))).or_default().push(line.to_owned());
    }
    entries
}

fn differences(ours: &Entries, theirs: &Entries) -> Vec<String> {
    let mut entries: Vec<_> = ours.keys().chain(theirs.keys()).collect();
    entries.sort();
    entries.dedup();
    let different = entries.into_iter().filter(|at| ours.get(at) != theirs.get(at));
    different
        .map(|at @ (segment, position)| {
            let [ours, theirs] =
                [ours, theirs].map(|entries| entries.get(at).map_or("nothing".into(), |l| l.join("\n")));
            let common = ours.chars().zip(theirs.chars()).take_while(|(ours, theirs)| ours == theirs).count();
            let shown = |text: &str| -> String {
                text.chars().skip(common.saturating_sub(SHOWN_BEFORE)).take(SHOWN_CHARACTERS).collect()
            };
            let (ours, theirs) = (shown(&ours), shown(&theirs));
            format!("segment {segment} position {position}\n  cdc:       {ours}\n  Cassandra: {theirs}")
        })
        .collect()
}
