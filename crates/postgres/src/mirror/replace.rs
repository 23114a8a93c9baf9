//! Puts rows right that were proven wrong.

use cdc_model::{RowKey, RowState};
use futures::future::BoxFuture;

use super::Mirror;
use crate::{
    TargetError,
    target::{ATTEMPTS, Context, Purpose},
    transact::{Failure, Work, transact},
};

/// Rows of one transaction, which keeps other writers of their buckets out.
const AT_ONCE: usize = 200;

/// What is to be known of a row in place of what is.
#[derive(Clone, Debug)]
pub struct Replacement {
    pub key: RowKey,
    /// As in [`super::Seen::state`].
    pub known: RowState,
    /// Masked as in [`super::Expected::state`].
    pub state: RowState,
}

impl Mirror {
    /// Replaces what is known of rows, of each only if it is still what it was. Changes that come later are merged with
    /// what stands there then, as always. Rows that PostgreSQL cannot hold are left as they are.
    ///
    /// # Errors
    /// [`TargetError::Database`]; those that were replaced by then stay so.
    pub fn replace<'a>(&'a self, rows: &'a [Replacement]) -> BoxFuture<'a, Result<(), TargetError>> {
        Box::pin(async move {
            for rows in rows.chunks(AT_ONCE) {
                if !self.replace_at_once(rows).await? {
                    for row in rows {
                        self.replace_at_once(std::slice::from_ref(row)).await?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Whether PostgreSQL took them.
    async fn replace_at_once(&self, rows: &[Replacement]) -> Result<bool, TargetError> {
        let context = Context::new(Purpose::Refuse);
        let units: Vec<_> = rows.iter().map(|row| self.unit(&row.key, row.state.clone())).collect();
        let known: Vec<RowState> = rows.iter().map(|row| row.known.clone()).collect();
        for _ in 0..ATTEMPTS {
            let work = Work {
                units: &units,
                context: &context,
                positions: false,
                floods: &self.inner.floods,
                // Nothing is guessed then, and nobody is in the way.
                exclusive: true,
                writes: true,
                in_place_of: Some(&known),
            };
            match transact(&self.inner.pool, &work).await {
                Ok(_) => return Ok(true),
                Err(Failure::Again) => {}
                Err(Failure::Data(_) | Failure::Refused(_)) => return Ok(false),
                Err(Failure::Other(error)) => return Err(error),
                Err(Failure::Schema(fault)) => return Err(TargetError::Database { doing: "replace rows", fault }),
                Err(Failure::Stale) => return Err(self.stale()),
                Err(Failure::Fenced(_)) => unreachable!("there is no claim to lose"),
            }
        }
        Err(TargetError::Contended { attempts: ATTEMPTS })
    }
}
