//! What is kept of a comparison, and what a job may repair, in the ledger's terms.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use cdc_model::TokenRange;
use cdc_postgres::ledger::{Found, Gist, JobStrategy, RepairWish};
use serde_json::{Value, json};

use super::engine::Unavailable;
use crate::{Class, Classes, Gap, Outcome, Repair, RepairBounds, Repairs};

/// What may be repaired in one part of a job, which is `scale` times as wide as it.
pub(super) fn repair(
    wish: &RepairWish,
    ignored: Vec<String>,
    before: Option<Repairs>,
    scale: f64,
) -> Result<(Repair, RepairBounds), Unavailable> {
    let class = |name: &String| {
        let class = serde_json::from_value::<Class>(json!(name)).ok().filter(|class| class.is_repairable());
        class.ok_or_else(|| Unavailable(format!("UNKNOWN_OPTIONS: this release does not repair {name}")))
    };
    let classes: Classes = wish.classes.iter().map(class).collect::<Result<Vec<_>, _>>()?.into_iter().collect();
    let repair = Repair { classes, max_share: wish.max_share_percent, dry_run: wish.dry_run };
    let bounds = RepairBounds {
        rows_per_second: usize::try_from(wish.rows_per_second).ok().and_then(NonZeroUsize::new),
        only: wish.only.clone(),
        except: ignored.into_iter().collect::<HashSet<_>>(),
        before: before.unwrap_or_default(),
        scale,
    };
    Ok((repair, bounds))
}

/// Forgets all but the findings that were changed.
pub(super) fn keep_repaired(outcome: &mut Outcome) {
    outcome.findings.retain(|finding| finding.repaired || finding.attempted);
    outcome.classes.clear();
    // The others are found again.
    for finding in outcome.findings.iter().filter(|finding| finding.repaired) {
        *outcome.classes.entry(finding.class).or_default() += 1;
    }
    outcome.coverage.gaps.clear();
    outcome.rows = crate::Rows::default();
    outcome.in_motion = 0;
}

/// What is kept of a comparison; it has read all of `tokens`, where there are any.
pub(super) fn of(outcome: &Outcome, strategy: JobStrategy, keys: Vec<Value>, tokens: Option<TokenRange>) -> Found {
    let is_whole = outcome.coverage.gaps.is_empty();
    let all_kept = u64::try_from(outcome.findings.len()) == Ok(outcome.classes.values().sum());
    // Of a row that never stood still it is not known which one it was.
    let disproves = if is_whole && all_kept && outcome.in_motion == 0 { disproved_by(strategy) } else { &[] };
    let mut findings = serde_json::to_value(&outcome.findings).expect("findings are plain data");
    for (finding, key) in findings.as_array_mut().into_iter().flatten().zip(keys) {
        finding["primary_key_value"] = key;
    }
    Found {
        cassandra_rows: count(outcome.rows.cassandra),
        postgres_rows: count(outcome.rows.postgres),
        drift_rows: count(outcome.drift()),
        unproven_rows: count(outcome.classes.get(&Class::Unproven).copied().unwrap_or_default()),
        in_motion: count(outcome.in_motion),
        classes: json!(outcome.classes),
        gaps: json!(outcome.coverage.gaps),
        repairs: outcome.repairs.map(|repairs| json!(repairs)),
        sample: None,
        findings,
        disproves: disproves.iter().map(|class| name(*class)).collect(),
        tokens,
        seconds: 0.0,
    }
}

/// How a job has ended that was to read these tokens, and did but for the gaps.
pub(super) fn gist(
    asked: &[TokenRange],
    mut gaps: Vec<Gap>,
    unproven: u64,
    status: &'static str,
    mut errors: Vec<String>,
) -> Gist {
    gaps.sort_by_key(|gap| gap.range);
    gaps.dedup_by(|next, last| {
        let meets = next.why == last.why && next.range.start <= last.range.end;
        if meets {
            last.range.end = last.range.end.max(next.range.end);
        }
        meets
    });
    errors.extend(
        gaps.iter().map(|gap| format!("NOT_PROVEN: tokens {}:{}: {}", gap.range.start, gap.range.end, gap.why)),
    );
    if unproven > 0 {
        errors.push(format!("UNPROVEN: {unproven} rows could be proven neither right nor wrong"));
    }
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let width = |range: TokenRange| range.width() as f64;
    let all: f64 = asked.iter().copied().map(width).sum();
    // Of a sample, a gap has tokens that nobody asked for.
    let missing = |gap: &Gap| -> f64 { asked.iter().filter_map(|tokens| common(*tokens, gap.range)).map(width).sum() };
    let missing: f64 = gaps.iter().map(missing).sum();
    let share = (1.0 - missing / all.max(1.0)).clamp(0.0, 1.0);
    Gist { status, errors, coverage: Some((share, json!(gaps))), sample: None }
}

fn common(one: TokenRange, other: TokenRange) -> Option<TokenRange> {
    let common = TokenRange { start: one.start.max(other.start), end: one.end.min(other.end) };
    (common.start < common.end).then_some(common)
}

fn count(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// Classes of which a row is right if the strategy finds nothing wrong with it.
fn disproved_by(strategy: JobStrategy) -> &'static [Class] {
    use Class::{ExpiredNotRemoved, Extra, InDlq, MissingInPostgres, Stale, TargetAhead, ValueDiffers};
    match strategy {
        JobStrategy::Checksum => {
            &[MissingInPostgres, Extra, Stale, ValueDiffers, InDlq, ExpiredNotRemoved, TargetAhead]
        }
        // The newest write time alone does not tell of an older cell that was lost.
        JobStrategy::Version | JobStrategy::RowCount => &[MissingInPostgres, Extra],
        // Which of its tokens' rows it has looked at is not kept.
        JobStrategy::Sample | JobStrategy::TimestampRange => &[],
    }
}

/// As it is serialised.
pub(super) fn name(class: Class) -> String {
    json!(class).as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(start: i64, end: i64, why: &str) -> Gap {
        Gap { range: TokenRange { start, end }, why: why.to_owned() }
    }

    #[test]
    fn gaps_that_meet_for_one_reason_are_one_and_lessen_the_coverage() {
        let gaps = vec![gap(50, 75, "TIME_BOX"), gap(10, 20, "READ_FAILED"), gap(75, 100, "TIME_BOX")];
        let gist = gist(&[TokenRange { start: 0, end: 100 }], gaps, 2, "FAILED", Vec::new());
        let (share, gaps) = gist.coverage.unwrap();
        assert!((share - 0.4).abs() < 1e-9, "{share}");
        assert_eq!(gaps, json!([gap(10, 20, "READ_FAILED"), gap(50, 100, "TIME_BOX")]));
        assert_eq!(gist.errors.len(), 3, "{:?}", gist.errors);
    }

    #[test]
    fn of_a_sample_only_what_was_drawn_and_not_read_is_missing() {
        let drawn = [TokenRange { start: 0, end: 10 }, TokenRange { start: 60, end: 70 }];
        let gist = gist(&drawn, vec![gap(50, 100, "TIME_BOX")], 0, "COMPLETED", Vec::new());
        assert!((gist.coverage.unwrap().0 - 0.5).abs() < 1e-9);
    }

    #[test]
    fn only_what_can_be_repaired_is_taken_for_a_wish_to() {
        let wish = |class: &str| RepairWish {
            classes: vec![class.to_owned()],
            max_share_percent: 1.0,
            rows_per_second: 7,
            dry_run: false,
            only: None,
        };
        let (repair_of, bounds) = repair(&wish("STALE"), vec!["a".to_owned()], None, 16.0).ok().unwrap();
        assert!(repair_of.classes.contains(Class::Stale) && !repair_of.classes.contains(Class::Extra));
        assert!(bounds.except.contains("a") && bounds.rows_per_second.unwrap().get() == 7);
        for class in ["IN_DLQ", "UNPROVEN", "stale", ""] {
            assert!(repair(&wish(class), Vec::new(), None, 1.0).is_err(), "{class}");
        }
    }
}
