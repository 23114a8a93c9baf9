//! The barrier of a comparison: a mark through the whole pipeline.

use std::time::Duration;

use cdc_cassandra::checks::Wanted;
use cdc_model::TableSchema;
use futures::future::BoxFuture;

use crate::{Pass, barrier::Barrier};

/// A [`Barrier`] that is given up after a time.
pub struct PipelineBarrier {
    barrier: Barrier,
    timeout: Duration,
}

impl PipelineBarrier {
    pub fn new(barrier: Barrier, timeout: Duration) -> Self {
        Self { barrier, timeout }
    }

    pub fn barrier(&self) -> &Barrier {
        &self.barrier
    }
}

impl Pass for PipelineBarrier {
    fn pass<'a>(&'a self, table: &'a TableSchema) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let wanted = [Wanted { keyspace: table.keyspace.clone(), table: Some(table.name.clone()) }];
            let passing = Box::pin(self.barrier.pass_for(Some(&wanted), self.timeout));
            passing.await.map(drop).map_err(|error| error.to_string())
        })
    }
}
