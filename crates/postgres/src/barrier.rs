//! What a barrier asks: which marks have come through, and how far each stream is.

use std::collections::{BTreeMap, BTreeSet};

use cdc_model::{Marker, NodeId};
use futures::future::BoxFuture;
use uuid::Uuid;

use crate::{StreamName, Target, TargetError, session::Call, target::Inner};

const RECORD: &str = "-- cdc: barriers\ninsert into _cdc.barriers (id, node) select * from unnest($1::uuid[], $2::uuid[]) \
    on conflict do nothing";
const NODES: &str = "-- cdc: barrier\nselect node from _cdc.barriers where id = $1";
const POSITIONS: &str = "-- cdc: look at positions\nselect name, position from _cdc.streams \
    where name = any($1::text[]) and position is not null";
const DOING: &str = "look for a barrier";
/// No barrier is waited for as long.
const FORGET: &str = "-- cdc: forget barriers\ndelete from _cdc.barriers where at < now() - interval '1 day'";

/// To be sent with the positions that pass the markers.
pub(crate) fn record(markers: &[Marker]) -> Call<'static> {
    Call::new(RECORD)
        .with(markers.iter().map(|marker| marker.id).collect::<Vec<Uuid>>())
        .with(markers.iter().map(|marker| marker.node.0).collect::<Vec<Uuid>>())
}

impl Target {
    /// The nodes whose logs are applied as far as the barrier's mark.
    pub fn marked_nodes(&self, barrier: Uuid) -> BoxFuture<'_, Result<BTreeSet<NodeId>, TargetError>> {
        Box::pin(async move {
            let rows = self.inner.ask(DOING, Call::new(NODES).with(barrier)).await?;
            Ok(rows.iter().map(|row| NodeId(row.get(0))).collect())
        })
    }

    /// How far each of these streams is applied; those of which nothing is are left out.
    pub fn positions(
        &self,
        streams: Vec<StreamName>,
    ) -> BoxFuture<'_, Result<BTreeMap<StreamName, String>, TargetError>> {
        Box::pin(async move {
            let names: Vec<String> = streams.into_iter().map(|stream| stream.0).collect();
            let rows = self.inner.ask(DOING, Call::new(POSITIONS).with(names)).await?;
            Ok(rows.iter().map(|row| (StreamName(row.get(0)), row.get(1))).collect())
        })
    }
}

impl Inner {
    pub(crate) async fn forget_barriers(&self) -> Result<(), TargetError> {
        self.ask("forget barriers", Call::new(FORGET)).await.map(drop)
    }
}
