//! Applying dead letters again.
//!
//! A letter goes through the same merge as every change, so newer data in the target wins and the order of replaying
//! does not matter. No claim is needed: the locks of [`crate::transact`] keep writers apart, fences only guard positions.
//!
//! A letter counts as resolved once the target was read, after the commit and by itself, and merging the change once
//! more would change nothing. What the apply answered is not enough: a trigger may have swallowed the row.
//!
//! A running writer loses nothing by it: letters are read with the newest definition of their table any writer knew,
//! and each transaction looks whether that is still so ([`crate::prepare`]).

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use cdc_model::{
    Change, ChangeBody, Clustering, NodeId, Provenance, SegmentId, SegmentPosition, TableId, TableSchema, decode_row,
    decode_tombstones,
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    ErrorType, Original,
    read::{Content, DeadLetter, LetterFilter, LetterStatus},
};
use crate::{
    ApplyError, Target, TargetError,
    batch::Unit,
    session::Call,
    target::{Context, Purpose},
    transact::STATIC_ROW,
};

/// Letters per batch: well under a second, so that a change of schema does not wait for long.
const BATCH: usize = 100;

const RESOLVE: &str = "-- cdc: resolve a dead letter\nupdate _cdc.dlq set status = 'resolved', resolution = $2, \
    resolved_at = now() where id = $1 and status = 'unresolved'";
const FAIL_AGAIN: &str = "-- cdc: a dead letter failed again\nupdate _cdc.dlq set attempts = attempts + 1, \
    last_failed_at = now(), error_type = $2, code = $3, message = $4, \
    history = (case when jsonb_array_length(history) < 20 then history else history - 0 end) || jsonb_build_array(\
    jsonb_build_object('at', now(), 'error_type', $2::text, 'code', $3::text, 'message', $4::text, 'by', 'replay')) \
    where id = $1 and status = 'unresolved'";

/// Why a record is still no change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Undecodable {
    pub error_type: ErrorType,
    pub code: String,
    /// Without values.
    pub message: String,
}

/// What became of a letter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Replayed {
    /// Written, and seen in the target. In a rehearsal: would be written.
    Applied,
    /// The target had it, or newer data, already.
    Superseded,
    /// Refused again; it stays unresolved.
    Refused(Undecodable),
    /// Not there any more, or no longer unresolved.
    Settled,
}

/// Changes of one letter.
type Decoded = Result<Vec<Change>, Undecodable>;

/// Decodes a record with the stored definitions of tables. If it knows a newer one, that must have evolved from the
/// stored one, so that the columns of both have the same ids.
pub type Decode<'d> = dyn Fn(&Original, &HashMap<TableId, Arc<TableSchema>>) -> Result<Change, Undecodable> + Sync + 'd;

impl Target {
    /// Applies unresolved letters again and says what became of each, batch by batch. A rehearsal writes nothing.
    ///
    /// # Errors
    /// What is no letter's fault, as a lost connection: letters not reported yet may be replayed again.
    pub async fn replay_dead_letters(
        &self,
        ids: &[Uuid],
        rehearse: bool,
        decode: &Decode<'_>,
        mut done: impl FnMut(Uuid, Replayed),
    ) -> Result<(), TargetError> {
        for ids in ids.chunks(BATCH) {
            let letters = self.inner.contents(ids.to_vec()).await?;
            let unresolved = letters.into_iter().filter(|letter| letter.status == "unresolved");
            let letters: HashMap<Uuid, DeadLetter> = unresolved.map(|letter| (letter.id, letter)).collect();
            let tables = self.tables().await?;
            for id in ids {
                let outcome = match letters.get(id) {
                    None => Replayed::Settled,
                    Some(letter) => self.replay(letter, changes(letter, &tables, decode), rehearse).await?,
                };
                done(*id, outcome);
            }
        }
        Ok(())
    }

    async fn tables(&self) -> Result<HashMap<TableId, Arc<TableSchema>>, TargetError> {
        Ok(self.known_schemas().await?.into_iter().map(|table| (table.id, table)).collect())
    }

    /// The changes of a letter that was read with its contents.
    pub async fn dead_letter_changes(
        &self,
        letter: &DeadLetter,
        decode: &Decode<'_>,
    ) -> Result<Result<Vec<Change>, Undecodable>, TargetError> {
        Ok(changes(letter, &self.tables().await?, decode))
    }

    async fn replay(&self, letter: &DeadLetter, changes: Decoded, rehearse: bool) -> Result<Replayed, TargetError> {
        let id = letter.id;
        // What was parked as a change is masked already.
        let conceal = letter.content.state.is_none();
        let outcome = match changes {
            Ok(changes) => loop {
                let units = self.inner.fold(changes.clone(), conceal).await?;
                // After the layouts are known: a truncation until now shows here, a later one when the units are written.
                if !self.is_unresolved(id).await? {
                    break Replayed::Settled;
                }
                match self.apply_again(units, rehearse).await {
                    Err(TargetError::Overtaken { .. }) => {}
                    outcome => break outcome?,
                }
            },
            Err(refused) => Replayed::Refused(refused),
        };
        if rehearse {
            return Ok(outcome);
        }
        let call = match &outcome {
            Replayed::Applied => Call::new(RESOLVE).with(id).with("applied by a replay and seen in the target"),
            Replayed::Superseded => {
                Call::new(RESOLVE).with(id).with("seen in the target, or newer data is, or the table was truncated")
            }
            Replayed::Refused(Undecodable { error_type, code, message }) => {
                let call = Call::new(FAIL_AGAIN).with(id).with(error_type.name());
                call.with(code.clone()).with(message.replace('\0', "\u{fffd}"))
            }
            Replayed::Settled => return Ok(outcome),
        };
        self.inner.ask("note what became of a dead letter", call).await?;
        Ok(outcome)
    }

    async fn is_unresolved(&self, id: Uuid) -> Result<bool, TargetError> {
        let status = Some(LetterStatus::Unresolved);
        Ok(!self.dead_letter_ids(&LetterFilter { ids: vec![id], status, ..LetterFilter::default() }).await?.is_empty())
    }

    async fn apply_again(&self, units: Vec<Unit>, rehearse: bool) -> Result<Replayed, TargetError> {
        let purpose = if rehearse { Purpose::Rehearse } else { Purpose::Refuse };
        let context = Context::new(purpose);
        if self.inner.contains(units.clone(), context.now).await? {
            return Ok(Replayed::Superseded);
        }
        match self.inner.write(units.clone(), &context, false).await {
            Ok(_) if rehearse => Ok(Replayed::Applied),
            Ok(_) if self.inner.contains(units, context.now).await? => Ok(Replayed::Applied),
            Ok(_) => Ok(Replayed::Refused(Undecodable {
                error_type: ErrorType::Unknown,
                code: "NOT_VERIFIED".to_owned(),
                message: "it was applied, but the target does not show it; look for triggers on the target table"
                    .to_owned(),
            })),
            Err(ApplyError::Target(TargetError::Refused { error_type, code, message, .. })) => {
                Ok(Replayed::Refused(Undecodable { error_type, code, message }))
            }
            Err(ApplyError::Target(error)) => Err(error),
            Err(ApplyError::Fenced { .. }) => unreachable!("a replay has no claim to lose"),
        }
    }
}

fn changes(letter: &DeadLetter, tables: &HashMap<TableId, Arc<TableSchema>>, decode: &Decode<'_>) -> Decoded {
    let refused = |code: &str, message: String| Undecodable {
        error_type: ErrorType::SchemaMismatch,
        code: code.to_owned(),
        message,
    };
    let Content { table, partition_key, clustering, state, original } = &letter.content;
    let (Some(table), Some(partition_key), Some(state)) = (table, partition_key, state) else {
        let original = original.as_ref().ok_or_else(|| refused("DAMAGED", "the letter is not complete".to_owned()))?;
        return decode(original, tables).map(|change| vec![change]);
    };
    let table = tables.get(&TableId(*table)).ok_or_else(|| {
        let name = letter.table.as_deref().unwrap_or_default();
        refused("UNKNOWN_TABLE", format!("no writer has said yet what {name} looks like: start one, then replay"))
    })?;
    let damaged = |error: cdc_model::StateError| refused("DAMAGED", error.to_string());
    let state = Bytes::copy_from_slice(state);
    let bodies = match clustering {
        None => {
            let tombstones = decode_tombstones(state).map_err(damaged)?;
            let ranges = tombstones.ranges.into_iter().map(ChangeBody::DeleteRange);
            tombstones.partition.map(ChangeBody::DeletePartition).into_iter().chain(ranges).collect()
        }
        Some(clustering) => {
            let row = decode_row(table, state).map_err(damaged)?;
            vec![if clustering == STATIC_ROW {
                ChangeBody::Static(row)
            } else {
                let clustering = Clustering::from_bytes(clustering.as_slice())
                    .ok_or_else(|| damaged(cdc_model::StateError::Damaged))?;
                ChangeBody::Row { clustering, row }
            }]
        }
    };
    let provenance = Provenance {
        node: NodeId(letter.node.unwrap_or_default()),
        position: letter.position.as_deref().and_then(position).unwrap_or(SegmentPosition::START),
    };
    let change = |body| Change { table: Arc::clone(table), partition_key: partition_key[..].into(), body, provenance };
    Ok(bodies.into_iter().map(change).collect::<Vec<Change>>())
}

fn position(text: &str) -> Option<SegmentPosition> {
    let (segment, offset) = text.split_once(':')?;
    Some(SegmentPosition { segment: SegmentId(segment.parse().ok()?), offset: offset.parse().ok()? })
}
