//! How long a write takes, whatever else the servers do meanwhile.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, stream::FuturesUnordered};
use scylla::client::session::Session;
use tokio::time::{MissedTickBehavior, interval};

pub(super) struct Delays(Vec<Duration>);

impl Delays {
    /// Milliseconds that so many of a hundred writes have taken at most.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let at = (self.0.len() * percent / 100).min(self.0.len() - 1);
        self.0[at].as_secs_f64() * 1e3
    }
}

/// A table that nothing is compared of, on the same node.
pub(super) async fn create_table(session: &Session) -> anyhow::Result<()> {
    session.query_unpaged("create table bench.beside (id bigint primary key, data blob)", ()).await?;
    Ok(())
}

/// Writes `rate` rows a second until `during` is over. A write counts from when it was due, so one that holds up others
/// counts for them, too.
pub(super) async fn delays(
    session: &Session,
    rate: u32,
    during: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Delays> {
    let insert = &session.prepare("insert into bench.beside (id, data) values (?, ?)").await?;
    let mut tick = interval(Duration::from_secs(1) / rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut during, mut writes, mut delays) = (pin!(during), FuturesUnordered::new(), Vec::new());
    let mut id = 0i64;
    loop {
        tokio::select! {
            done = &mut during => break done?,
            due = tick.tick() => {
                id += 1;
                writes.push(async move {
                    let written = session.execute_unpaged(insert, (id, vec![7u8; 100])).await;
                    written.map(|_| Instant::now().saturating_duration_since(due.into_std()))
                });
            }
            Some(delay) = writes.next() => delays.push(delay.context("write beside the comparison")?),
        }
    }
    ensure!(!delays.is_empty(), "nothing was written meanwhile");
    delays.sort_unstable();
    Ok(Delays(delays))
}
