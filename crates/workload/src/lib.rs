//! A seeded shop workload on Cassandra, a probe of the delay to PostgreSQL, an oracle that compares both stores cell by
//! cell, and a generator of every kind of change a commit log can hold.
//!
//! **Invariant:** nothing here depends on the pipeline's own crates. The oracle is worth something only because a
//! mistake in the pipeline's decoding, merging or typing cannot be repeated in it.

pub mod every_change;
mod load;
pub mod oracle;
mod probe;
pub mod shop;
mod writes;

pub use load::{Load, LoadCounters, LoadOptions, Sample};
pub use probe::{DelayProbe, Delays};
pub use scylla::client::session::Session;
pub use scylla::statement::Consistency;

use anyhow::Context as _;
use futures::future::BoxFuture;
use scylla::client::{execution_profile::ExecutionProfile, session_builder::SessionBuilder};

/// A session that writes at `LOCAL_ONE` on one node and at `LOCAL_QUORUM` on several.
pub fn connect(contact_points: &[String]) -> BoxFuture<'_, anyhow::Result<Session>> {
    connect_at(contact_points, if contact_points.len() > 1 { Consistency::LocalQuorum } else { Consistency::LocalOne })
}

/// A session that reads and writes at a consistency of its own.
pub fn connect_at(contact_points: &[String], consistency: Consistency) -> BoxFuture<'_, anyhow::Result<Session>> {
    Box::pin(async move {
        let profile = ExecutionProfile::builder().consistency(consistency).build();
        SessionBuilder::new()
            .known_nodes(contact_points)
            .default_execution_profile_handle(profile.into_handle())
            .build()
            .await
            .with_context(|| format!("connect to Cassandra at {}", contact_points.join(", ")))
    })
}
