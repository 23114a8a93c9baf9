//! What is done about findings.

use cdc_model::RowKey;

use crate::{Class, Classes, Finding, ReconcileError, Repairs, Rows, settle::Settling};

#[derive(Clone, Copy, Debug)]
pub struct Repair {
    /// See [`Class::is_repairable`].
    pub classes: Classes,
    /// In percent of a table's rows; nothing more is repaired where there are more findings.
    pub max_share: f64,
    /// Only say what would be.
    pub dry_run: bool,
}

impl Repair {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a share of a count of rows"
    )]
    pub(crate) fn of(self, rows: Rows) -> Repairs {
        let allowed = (rows.cassandra.max(rows.postgres) as f64 * self.max_share / 100.0) as u64;
        Repairs { dry_run: self.dry_run, allowed, ..Repairs::default() }
    }

    /// Repairs what was found, as far as it is wanted and allowed.
    pub(crate) async fn carry_out(
        self,
        settling: &Settling<'_>,
        repairs: &mut Repairs,
        findings: &mut [Finding],
    ) -> Result<(), ReconcileError> {
        let wanted = findings.iter().filter(|finding| self.classes.contains(finding.class));
        let keys: Vec<RowKey> = wanted.map(|finding| finding.key.clone()).collect();
        repairs.wanted += keys.len() as u64;
        repairs.stopped |= repairs.wanted > repairs.allowed;
        if keys.is_empty() || self.dry_run || repairs.stopped || settling.cancel.is_cancelled() {
            return Ok(());
        }
        let right = settling.mend(keys, self.classes.contains(Class::TargetAhead)).await?;
        for finding in findings.iter_mut().filter(|finding| right.contains(&finding.key)) {
            finding.repaired = true;
            repairs.done += 1;
        }
        Ok(())
    }
}
