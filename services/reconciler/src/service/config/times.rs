//! When tables are compared by themselves, and when what came of it is forgotten.

use std::time::Duration;

use cdc_cassandra::checks::Wanted;
use cdc_postgres::ledger::{JobStrategy, Retention};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use serde::Deserialize;

use crate::service::schedule::{now, time};

/// Shorter than that, a table would be compared without end.
const EVERY_MIN: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
/// Nothing is kept without a bound.
const KEPT_MAX: Duration = Duration::from_secs(3_650 * 86_400);
/// Of the leaves, unless said otherwise.
pub(crate) const SAMPLE_PERCENT: f64 = 1.0;
/// Rows last written within this, unless said otherwise.
pub(crate) const WRITTEN_WITHIN: Duration = Duration::from_secs(3_600);

/// Comparisons at times that a cron expression names.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Minute, hour, day of the month, month, day of the week; in UTC.
    pub cron: String,
    /// `keyspace.table` or `keyspace.*`; absent: all that may be compared.
    #[serde(default)]
    pub tables: Option<Vec<String>>,
    /// Absent: `reconciler.strategy`.
    #[serde(default)]
    pub strategy: Option<JobStrategy>,
    /// Of a `SAMPLE`; absent: 1.
    #[serde(default)]
    pub sample_percent: Option<f64>,
    /// Of a `TIMESTAMP_RANGE`: rows last written so long before that time; absent: `1h`.
    #[serde(default)]
    pub written_within: Option<String>,
    /// Absent: `reconciler.max_seconds`.
    #[serde(default)]
    pub max_seconds: Option<u64>,
}

impl ScheduleConfig {
    /// `None` if it is not valid.
    pub(crate) fn parsed(&self) -> Option<Cron> {
        cron(&self.cron).ok()
    }

    pub(crate) fn sample_percent(&self) -> f64 {
        self.sample_percent.unwrap_or(SAMPLE_PERCENT)
    }

    pub(crate) fn written_within(&self) -> Duration {
        self.written_within.as_deref().and_then(duration).unwrap_or(WRITTEN_WITHIN)
    }

    /// Of those that may be compared.
    pub(crate) fn tables(&self, all: &[Wanted]) -> Vec<Wanted> {
        match &self.tables {
            Some(tables) => tables.iter().filter_map(|text| Wanted::parse(text)).collect(),
            None => all.to_vec(),
        }
    }

    pub(super) fn validate(&self, strategy: JobStrategy, mut fault: impl FnMut(&str, String)) {
        if let Err(problem) = cron(&self.cron) {
            fault(
                "cron",
                format!(
                    "is `{}`, {problem}: use minute, hour, day of the month, month and day of the week in UTC, as in `30 3 * * *` \
                     or `0 */6 * * mon-fri`",
                    self.cron
                ),
            );
        }
        let is_share = |percent: f64| percent > 0.0 && percent <= 100.0;
        match self.sample_percent {
            Some(percent) if !is_share(percent) => {
                fault("sample_percent", format!("is {percent}: use a number above 0, up to 100"));
            }
            Some(_) if strategy != JobStrategy::Sample => {
                fault("sample_percent", format!("belongs to strategy SAMPLE, and it is {}", strategy.name()));
            }
            _ => {}
        }
        match &self.written_within {
            Some(text) if duration(text).is_none_or(|within| within.is_zero()) => {
                fault("written_within", format!("is `{text}`: use a whole number of s, m, h or d, as in 90m"));
            }
            Some(_) if strategy != JobStrategy::TimestampRange => {
                fault("written_within", format!("belongs to strategy TIMESTAMP_RANGE, and it is {}", strategy.name()));
            }
            _ => {}
        }
        if self.max_seconds == Some(0) {
            fault("max_seconds", "is 0: use at least 1, or leave it out".to_owned());
        }
    }
}

/// Else what is wrong with it, as a part of a sentence.
fn cron(text: &str) -> Result<Cron, String> {
    let fields = text.split_whitespace().count();
    if fields != 5 {
        return Err(format!("which has {fields} fields instead of 5"));
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    let cron = parser.parse(text).map_err(|error| {
        let text = error.to_string();
        format!("which is no cron expression ({})", text.trim_end_matches('.'))
    })?;
    cron.find_next_occurrence(&time(now()), false).map_err(|_| "a time that never comes".to_owned())?;
    Ok(cron)
}

/// How long what is over is kept.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    pub jobs: String,
    /// Those that are resolved; others are never removed.
    pub mismatches: String,
    /// Of dead letters.
    pub replays: String,
    /// Entries of the audit log.
    pub audit: String,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        let [jobs, mismatches, replays, audit] = ["90d", "90d", "30d", "365d"].map(str::to_owned);
        Self { jobs, mismatches, replays, audit }
    }
}

impl RetentionConfig {
    /// What is not valid is kept for as long as can be.
    pub(crate) fn parsed(&self) -> Retention {
        let parsed = |text: &str| duration(text).unwrap_or(KEPT_MAX);
        Retention {
            jobs: parsed(&self.jobs),
            mismatches: parsed(&self.mismatches),
            replays: parsed(&self.replays),
            audit: parsed(&self.audit),
        }
    }

    pub(super) fn validate(&self, mut fault: impl FnMut(&str, String)) {
        let all = [
            ("jobs", &self.jobs),
            ("mismatches", &self.mismatches),
            ("replays", &self.replays),
            ("audit", &self.audit),
        ];
        for (key, text) in all {
            if duration(text).is_none_or(|kept| !(DAY..=KEPT_MAX).contains(&kept)) {
                fault(key, format!("is `{text}`: use a whole number of h or d from 1d to 3650d, as in 90d"));
            }
        }
    }
}

/// What is wrong with `reconciler.every`.
pub(super) fn check_every(text: &str) -> Option<String> {
    duration(text)
        .is_none_or(|every| every < EVERY_MIN)
        .then(|| format!("is `{text}`: use a whole number of s, m, h or d, as in 6h, of one minute or more"))
}

/// What is wrong with `reconciler.jitter`.
pub(super) fn check_jitter(text: &str) -> Option<String> {
    duration(text)
        .is_none_or(|jitter| jitter > DAY)
        .then(|| format!("is `{text}`: use a whole number of s, m, h or d up to 1d, as in 10m"))
}

pub(crate) fn duration(text: &str) -> Option<Duration> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match text.strip_prefix(number)? {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u32>().ok().map(|number| Duration::from_secs(u64::from(number) * scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(duration("6h"), Some(Duration::from_secs(21_600)));
        assert_eq!(duration("1d"), Some(Duration::from_secs(86_400)));
        for wrong in ["6", "h", "", "-1h", "1.5h", "1w"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    fn faults(schedule: &ScheduleConfig) -> Vec<String> {
        let mut faults = Vec::new();
        let strategy = schedule.strategy.unwrap_or(JobStrategy::Checksum);
        schedule.validate(strategy, |key, message| faults.push(format!("{key} {message}")));
        faults
    }

    #[test]
    fn a_bad_schedule_says_which_field_is_wrong_and_what_to_write() {
        let cron = |cron: &str| ScheduleConfig {
            cron: cron.to_owned(),
            tables: None,
            strategy: None,
            sample_percent: None,
            written_within: None,
            max_seconds: None,
        };
        for right in ["30 3 * * *", "0 */6 * * mon-fri", "0 0 1 1,7 *", "59 23 L * *"] {
            assert_eq!(faults(&cron(right)), Vec::<String>::new());
        }
        for (wrong, words) in [
            ("61 3 * * *", "no cron expression"),
            ("0 3 * *", "4 fields"),
            ("0 0 3 * * *", "6 fields"),
            ("", "0 fields"),
            ("0 3 * * someday", "no cron expression"),
            ("0 0 31 2 *", "never comes"),
        ] {
            let told = faults(&cron(wrong));
            let is_told = |fault: &String| fault.starts_with(&format!("cron is `{wrong}`")) && fault.contains(words);
            assert!(told.len() == 1 && is_told(&told[0]) && told[0].contains("30 3 * * *"), "{wrong}: {told:?}");
        }
        let odd = ScheduleConfig {
            sample_percent: Some(5.0),
            written_within: Some("1w".to_owned()),
            max_seconds: Some(0),
            ..cron("30 3 * * *")
        };
        assert_eq!(faults(&odd).len(), 3, "{:?}", faults(&odd));
        let sample =
            ScheduleConfig { strategy: Some(JobStrategy::Sample), sample_percent: Some(0.0), ..cron("30 3 * * *") };
        assert!(faults(&sample)[0].contains("above 0"), "{:?}", faults(&sample));
    }

    #[test]
    fn nothing_is_kept_for_ever_or_not_at_all() {
        let faults = |retention: &RetentionConfig| {
            let mut faults = Vec::new();
            retention.validate(|key, message| faults.push(format!("{key} {message}")));
            faults
        };
        assert_eq!(faults(&RetentionConfig::default()), Vec::<String>::new());
        let texts = ["23h", "forever", "3651d", "0d"].map(str::to_owned);
        let [jobs, mismatches, replays, audit] = texts;
        assert_eq!(faults(&RetentionConfig { jobs, mismatches, replays, audit }).len(), 4);
    }
}
