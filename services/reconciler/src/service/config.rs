//! The `reconciler:` section.

mod times;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use cdc_cassandra::checks::Wanted;
use cdc_postgres::Strategy;
use cdc_postgres::ledger::{JobOptions, JobStrategy, RepairWish};
use cdc_runtime::Secret;
use cdc_runtime::config::Fault;
use serde::Deserialize;

use super::found::name;
pub use times::{RetentionConfig, ScheduleConfig};
pub(crate) use times::{SAMPLE_PERCENT, WRITTEN_WITHIN};

use self::times::{check_every, check_jitter, duration};
use crate::Class;

/// Unless configured.
pub const PORT: u16 = 8080;
/// A shorter token can be found by trying.
const TOKEN_MIN: usize = 16;

/// What is done about a class of findings.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Nothing.
    #[default]
    Report,
    /// They are listed as waiting for somebody to repair them.
    Ask,
    /// Every comparison repairs them.
    Repair,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepairConfig {
    /// By class; `report` for those that are not named.
    pub policy: BTreeMap<Class, Policy>,
    /// A job repairs no more once there are more findings than this, in percent of its rows.
    pub max_share_percent: f64,
    /// Rows set right in a second.
    pub rows_per_second: u32,
    /// Only count what would be repaired.
    pub dry_run: bool,
}

impl Default for RepairConfig {
    fn default() -> Self {
        Self { policy: BTreeMap::new(), max_share_percent: 1.0, rows_per_second: 100, dry_run: false }
    }
}

impl RepairConfig {
    /// Classes of this policy, by name.
    pub(crate) fn classes(&self, policy: Policy) -> Vec<String> {
        self.policy.iter().filter(|(_, own)| **own == policy).map(|(class, _)| name(*class)).collect()
    }
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReconcilerConfig {
    /// Address and port of the API; port 0 takes a free one. Absent: 127.0.0.1:8080.
    pub listen: Option<SocketAddr>,
    /// Where the port is written once it is known.
    pub port_file: Option<PathBuf>,
    /// What callers must show as `Authorization: Bearer ...`.
    pub token: Option<Secret>,
    /// What may be compared, as `keyspace.table` or `keyspace.*`; absent: all of `source.tables`.
    pub tables: Option<Vec<String>>,
    /// Unless a call says otherwise.
    pub strategy: Strategy,
    /// The whole ring of each table is compared this often, as in `6h`; absent: only when somebody asks, or by `schedules`.
    pub every: Option<String>,
    /// Comparisons at certain times.
    pub schedules: Vec<ScheduleConfig>,
    /// By up to so much later than `schedules` say, each table by another time; as in `10m`.
    pub jitter: Option<String>,
    /// What is forgotten when.
    pub retention: RetentionConfig,
    /// A comparison ends after so long, whatever is left; absent: when it has read everything.
    pub max_seconds: Option<u64>,
    /// What is done about wrong rows.
    pub repair: RepairConfig,
    /// Whether comparisons are made at all.
    pub enabled: bool,
    /// Token ranges read from Cassandra at a time.
    pub parallel: usize,
    /// Milliseconds a comparison waits for a barrier.
    pub barrier_timeout_ms: u64,
    /// Whether keys of rows are kept and shown, not only as hashes.
    pub show_keys: bool,
}

impl Default for ReconcilerConfig {
    fn default() -> Self {
        Self {
            listen: None,
            port_file: None,
            token: None,
            tables: None,
            strategy: Strategy::default(),
            every: None,
            schedules: Vec::new(),
            jitter: None,
            retention: RetentionConfig::default(),
            max_seconds: None,
            repair: RepairConfig::default(),
            enabled: true,
            parallel: 4,
            barrier_timeout_ms: 60_000,
            show_keys: false,
        }
    }
}

impl ReconcilerConfig {
    pub fn address(&self) -> SocketAddr {
        self.listen.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT))
    }

    /// `None` if tables are compared only when somebody asks.
    pub(crate) fn every(&self) -> Option<Duration> {
        self.every.as_deref().and_then(duration)
    }

    pub(crate) fn jitter(&self) -> Duration {
        self.jitter.as_deref().and_then(duration).unwrap_or_default()
    }

    /// By which a schedule compares.
    pub(crate) fn strategy_of(&self, schedule: &ScheduleConfig) -> JobStrategy {
        schedule.strategy.unwrap_or(self.strategy.into())
    }

    /// Of a job: what a call says, else what is configured.
    pub(crate) fn job_options(
        &self,
        repair: Option<Vec<Class>>,
        dry_run: Option<bool>,
        max_seconds: Option<u64>,
    ) -> JobOptions {
        let classes = match repair {
            Some(classes) => classes.into_iter().map(name).collect(),
            None => self.repair.classes(Policy::Repair),
        };
        let repair = (!classes.is_empty()).then(|| RepairWish {
            classes,
            max_share_percent: self.repair.max_share_percent,
            rows_per_second: self.repair.rows_per_second,
            dry_run: dry_run.unwrap_or(self.repair.dry_run),
            only: None,
        });
        JobOptions { repair, max_seconds: max_seconds.or(self.max_seconds), ..JobOptions::NONE }
    }

    /// What may be compared.
    pub(crate) fn tables(&self, captured: &[Wanted]) -> Vec<Wanted> {
        match &self.tables {
            Some(tables) => tables.iter().filter_map(|text| Wanted::parse(text)).collect(),
            None => captured.to_vec(),
        }
    }

    /// Every fault at once; `captured` is `source.tables`, where there is one.
    pub fn validate(&self, captured: Option<&[String]>) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, message: String| faults.push(Fault::new(format!("reconciler.{key}"), message));
        let address = self.address();
        match &self.token {
            None if !address.ip().is_loopback() => fault(
                "listen",
                format!(
                    "is {address}, which others can reach, and there is no reconciler.token: set token_file, or use \
                     127.0.0.1:{}",
                    address.port()
                ),
            ),
            Some(token) if token.expose().len() < TOKEN_MIN => fault(
                "token",
                format!(
                    "is shorter than {TOKEN_MIN} bytes, so it could be found by trying: use a long random text, as `openssl \
                     rand -hex 32` writes"
                ),
            ),
            Some(token) if !token.expose().bytes().all(|byte| byte.is_ascii_graphic()) => fault(
                "token",
                "has a space, or a character that is not ASCII, which no HTTP header can hold: use letters and digits"
                    .to_owned(),
            ),
            _ => {}
        }
        let named = self.tables.iter().map(|tables| ("tables".to_owned(), tables, captured));
        let of_schedules = self.schedules.iter().enumerate().filter_map(|(at, schedule)| {
            Some((format!("schedules.{at}.tables"), schedule.tables.as_ref()?, self.tables.as_deref().or(captured)))
        });
        for (key, tables, captured) in named.chain(of_schedules) {
            let covers = |table: &Wanted, entry: &String| {
                Wanted::parse(entry).is_some_and(|entry| {
                    entry.keyspace == table.keyspace && (entry.table.is_none() || entry.table == table.table)
                })
            };
            let from = if key == "tables" || self.tables.is_none() { "source.tables" } else { "reconciler.tables" };
            for text in tables {
                match Wanted::parse(text) {
                    None => fault(&key, format!("has `{text}`, which is neither `keyspace.table` nor `keyspace.*`")),
                    Some(table) if captured.is_some_and(|all| !all.iter().any(|entry| covers(&table, entry))) => {
                        fault(&key, format!("has `{text}`, which is not in {from}: add it there, or take it out"));
                    }
                    Some(_) => {}
                }
            }
            if tables.is_empty() {
                fault(&key, format!("is empty: name tables, or take the key out to compare all of {from}"));
            }
        }
        for (key, problem) in [
            ("every", self.every.as_deref().and_then(check_every)),
            ("jitter", self.jitter.as_deref().and_then(check_jitter)),
        ] {
            if let Some(problem) = problem {
                fault(key, problem);
            }
        }
        for (at, schedule) in self.schedules.iter().enumerate() {
            let strategy = self.strategy_of(schedule);
            schedule.validate(strategy, |key, message| fault(&format!("schedules.{at}.{key}"), message));
        }
        self.retention.validate(|key, message| fault(&format!("retention.{key}"), message));
        for (class, _) in
            self.repair.policy.iter().filter(|(class, policy)| !class.is_repairable() && **policy != Policy::Report)
        {
            let fix = match class {
                Class::InDlq => "replay its letter instead",
                _ => "nothing is known of it that could be repaired",
            };
            fault("repair.policy", format!("has {}, which cannot be repaired: {fix}", name(*class)));
        }
        let share = self.repair.max_share_percent;
        if !(0.0..=100.0).contains(&share) {
            fault("repair.max_share_percent", format!("is {share}: use 0 to 100"));
        }
        if self.repair.rows_per_second == 0 {
            fault("repair.rows_per_second", "is 0: use at least 1, or policy `report` to repair nothing".to_owned());
        }
        if self.max_seconds == Some(0) {
            fault("max_seconds", "is 0: use at least 1, or leave it out".to_owned());
        }
        if !(1..=64).contains(&self.parallel) {
            fault("parallel", format!("is {}: use 1 to 64", self.parallel));
        }
        if self.barrier_timeout_ms == 0 {
            fault("barrier_timeout_ms", "is 0: use at least 1".to_owned());
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(config: ReconcilerConfig) -> Vec<String> {
        config.validate(Some(&["shop.*".to_owned(), "bank.users".to_owned()])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_that_others_can_reach_needs_a_token() {
        let open = ReconcilerConfig { listen: Some("0.0.0.0:8080".parse().unwrap()), ..ReconcilerConfig::default() };
        assert!(faults(open.clone())[0].contains("token_file"), "{:?}", faults(open.clone()));
        let short = ReconcilerConfig { token: Some(Secret::new("hunter2")), ..open.clone() };
        assert!(
            faults(short.clone())[0].starts_with("reconciler.token is shorter")
                && !faults(short)[0].contains("hunter2")
        );
        let spaced = ReconcilerConfig { token: Some(Secret::new("sixteen or more bytes")), ..open.clone() };
        assert!(faults(spaced)[0].contains("space"));
        let closed = ReconcilerConfig { token: Some(Secret::new("0123456789abcdef")), ..open };
        assert_eq!(faults(closed), Vec::<String>::new());
        assert_eq!(faults(ReconcilerConfig::default()), Vec::<String>::new());
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let config = ReconcilerConfig {
            tables: Some(["shop.orders", "bank.users", "bank.*", "users"].map(str::to_owned).to_vec()),
            every: Some("10s".to_owned()),
            jitter: Some("2d".to_owned()),
            retention: RetentionConfig { audit: "1h".to_owned(), ..RetentionConfig::default() },
            schedules: vec![serde_json::from_value(serde_json::json!({"cron": "* * * *"})).unwrap()],
            parallel: 0,
            barrier_timeout_ms: 0,
            max_seconds: Some(0),
            repair: RepairConfig {
                policy: [(Class::InDlq, Policy::Repair), (Class::Unproven, Policy::Report)].into(),
                max_share_percent: 101.0,
                rows_per_second: 0,
                dry_run: true,
            },
            ..ReconcilerConfig::default()
        };
        assert_eq!(faults(config.clone()).len(), 12, "{:?}", faults(config));
        assert!(faults(config.clone()).iter().any(|one| one.starts_with("reconciler.schedules.0.cron is `* * * *`")));
    }

    #[test]
    fn a_call_says_what_is_repaired_or_the_policy_does() {
        let policy =
            [(Class::Stale, Policy::Repair), (Class::Extra, Policy::Ask), (Class::TargetAhead, Policy::Report)];
        let repair = RepairConfig { policy: policy.into(), ..RepairConfig::default() };
        let config = ReconcilerConfig { repair, max_seconds: Some(60), ..ReconcilerConfig::default() };
        assert_eq!(faults(config.clone()), Vec::<String>::new());
        let classes = |asked| config.job_options(asked, None, None).repair.map(|repair| repair.classes);
        assert_eq!(classes(None), Some(vec!["STALE".to_owned()]));
        assert_eq!(classes(Some(vec![Class::TargetAhead])), Some(vec!["TARGET_AHEAD".to_owned()]));
        assert_eq!(classes(Some(Vec::new())), None);
        assert_eq!(config.repair.classes(Policy::Ask), ["EXTRA"]);
        assert_eq!(config.job_options(None, Some(true), Some(5)).max_seconds, Some(5));
        assert_eq!(ReconcilerConfig::default().job_options(None, Some(true), None), JobOptions::NONE);
    }
}
