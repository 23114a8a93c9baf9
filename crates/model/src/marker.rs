use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::NodeId;

/// The mark of a barrier, met in a node's commit log: everything this log holds before it was taken from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Marker {
    /// Of the barrier.
    pub id: Uuid,
    pub node: NodeId,
}
