//! What is done about findings.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use cdc_model::RowKey;

use crate::{Class, Classes, Finding, Repairs, Rows, settle::Settling};

#[derive(Clone, Copy, Debug)]
pub struct Repair {
    /// See [`Class::is_repairable`].
    pub classes: Classes,
    /// In percent of a table's rows; nothing more is repaired where there are more findings.
    pub max_share: f64,
    /// Only say what would be.
    pub dry_run: bool,
}

/// What bounds repairs beside their [`Repair`]; by default nothing does.
#[derive(Clone, Debug)]
pub struct RepairBounds {
    /// Rows set right in a second.
    pub rows_per_second: Option<NonZeroUsize>,
    /// Only the row whose key has this hash.
    pub only: Option<String>,
    /// Not those.
    pub except: HashSet<String>,
    /// What was repaired in other parts of the same whole.
    pub before: Repairs,
    /// How many times as much the whole is as what is compared here.
    pub scale: f64,
}

impl Default for RepairBounds {
    fn default() -> Self {
        Self { rows_per_second: None, only: None, except: HashSet::new(), before: Repairs::default(), scale: 1.0 }
    }
}

impl RepairBounds {
    fn admit(&self, finding: &Finding) -> bool {
        self.only.as_ref().is_none_or(|only| *only == finding.key_sha256) && !self.except.contains(&finding.key_sha256)
    }
}

impl Repair {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a share of a count of rows"
    )]
    pub(crate) fn of(self, rows: Rows, bounds: &RepairBounds) -> Repairs {
        let allowed = (rows.cassandra.max(rows.postgres) as f64 * bounds.scale * self.max_share / 100.0) as u64;
        Repairs { dry_run: self.dry_run, allowed, ..bounds.before }
    }

    /// Repairs what was found, as far as it is wanted and allowed.
    pub(crate) async fn carry_out(
        self,
        bounds: &RepairBounds,
        settling: &Settling<'_>,
        repairs: &mut Repairs,
        findings: &mut [Finding],
    ) {
        let is_wanted = |finding: &&Finding| self.classes.contains(finding.class) && bounds.admit(finding);
        let wanted = findings.iter().filter(is_wanted);
        let keys: Vec<RowKey> = wanted.map(|finding| finding.key.clone()).collect();
        repairs.wanted += keys.len() as u64;
        repairs.stopped |= repairs.wanted > repairs.allowed;
        if keys.is_empty() || self.dry_run || repairs.stopped || settling.cancel.is_cancelled() {
            return;
        }
        let mended = settling.mend(keys, self.classes.contains(Class::TargetAhead), bounds.rows_per_second).await;
        for finding in findings {
            finding.attempted = mended.attempted.contains(&finding.key);
            finding.repaired = mended.right.contains(&finding.key);
            repairs.done += u64::from(finding.repaired);
        }
    }
}
