//! One pooled connection and the statements sent over it without waiting in between.

use bytes::Bytes;
use futures::{
    FutureExt, SinkExt,
    future::{BoxFuture, try_join_all},
};
use tokio_postgres::{CopyInSink, Row, types::ToSql};

use crate::{
    array::CopyRows,
    error::{Fault, FaultKind, TargetError},
    pool::{Object, Pool},
};

/// A statement with its parameters, or with the rows it copies.
pub(crate) struct Call<'s> {
    sql: &'s str,
    params: Vec<Box<dyn ToSql + Sync + Send>>,
    rows: Option<Bytes>,
}

/// Bytes of copied rows per message, each of which PostgreSQL takes into memory whole.
const COPY_MESSAGE: usize = 1 << 20;

impl<'s> Call<'s> {
    pub(crate) fn new(sql: &'s str) -> Self {
        Self { sql, params: Vec::new(), rows: None }
    }

    pub(crate) fn copy(sql: &'s str, rows: CopyRows) -> Self {
        Self { rows: Some(rows.finish()), ..Self::new(sql) }
    }

    pub(crate) fn with(mut self, param: impl ToSql + Sync + Send + 'static) -> Self {
        self.params.push(Box::new(param));
        self
    }
}

/// What goes around a run of statements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    Begin,
    /// As [`Self::Begin`], but everything read is of one moment, and nothing is written.
    Snapshot,
    Inside,
    Commit,
    /// A transaction of its own.
    Whole,
}

/// A connection that goes back to the pool only when no transaction is open on it: dropped anywhere else, it closes,
/// which is also what happens to a cancelled apply.
pub(crate) struct Session {
    client: Option<Object>,
    open: bool,
    /// A copy was asked for and not granted: if it was refused, the driver has lost count of the answers.
    asking: bool,
}

impl Session {
    pub(crate) async fn acquire(pool: &Pool) -> Result<Self, TargetError> {
        let client = pool.get().await.map_err(|error| TargetError::from_pool(&error))?;
        Ok(Self { client: Some(client), open: false, asking: false })
    }

    fn client(&self) -> &Object {
        self.client.as_ref().expect("held until dropped")
    }

    /// Runs statements in one go: all are sent before the first answer is awaited. After an error PostgreSQL skips
    /// the rest, and a commit among them rolls back.
    ///
    /// Before a copy there is a wait for what goes before it, and another until it is granted; its rows go with the rest.
    pub(crate) async fn run(&mut self, frame: Frame, calls: Vec<Call<'_>>) -> Result<Vec<Vec<Row>>, Fault> {
        let client = self.client.as_ref().expect("held until dropped");
        let mut statements = Vec::with_capacity(calls.len());
        for call in &calls {
            statements.push(client.prepare_cached(call.sql).await.map_err(Fault::from)?);
        }
        self.open = true;
        let bare = |sql: &'static str| -> BoxFuture<'_, Result<Vec<Row>, tokio_postgres::Error>> {
            async move { client.batch_execute(sql).await.map(|()| Vec::new()) }.boxed()
        };
        let begins = match frame {
            Frame::Begin | Frame::Whole => Some("begin isolation level read committed"),
            Frame::Snapshot => Some("begin isolation level repeatable read read only"),
            Frame::Inside | Frame::Commit => None,
        };
        let commits = matches!(frame, Frame::Commit | Frame::Whole);
        let mut answers = Vec::with_capacity(calls.len() + 2);
        let mut sent = Vec::with_capacity(calls.len() + 2);
        sent.extend(begins.map(bare));
        for (call, statement) in calls.iter().zip(&statements) {
            let Some(rows) = call.rows.clone() else {
                let query = async move {
                    let params: Vec<&(dyn ToSql + Sync)> =
                        call.params.iter().map(|param| param.as_ref() as _).collect();
                    client.query(statement, &params).await
                };
                sent.push(query.boxed());
                continue;
            };
            answers.extend(try_join_all(std::mem::take(&mut sent)).await.map_err(Fault::from)?);
            self.asking = true;
            let sink = client.copy_in(statement).await.map_err(Fault::from)?;
            self.asking = false;
            sent.push(send_rows(sink, rows).boxed());
        }
        sent.extend(commits.then(|| bare("commit")));
        // Polled in this order, and a request is sent when it is first polled, or once a copy before it is complete.
        answers.extend(try_join_all(sent).await.map_err(Fault::from)?);
        if begins.is_some() {
            answers.remove(0);
        }
        answers.truncate(calls.len());
        self.open = !commits;
        Ok(answers)
    }

    /// Leaves the transaction, unless the connection is beyond use.
    pub(crate) async fn abandon(mut self, fault: &Fault) {
        let usable = match fault.kind {
            FaultKind::Connection | FaultKind::Plan => false,
            FaultKind::Access => !self.client().doubt(),
            FaultKind::Contention
            | FaultKind::Environment
            | FaultKind::Data
            | FaultKind::Schema
            | FaultKind::Unknown => true,
        };
        // Asked even if nothing is open: what ended the session may have come while a statement was prepared.
        self.open = !usable || self.asking || self.client().batch_execute("rollback").await.is_err();
    }

    pub(crate) async fn rollback(mut self) {
        if self.client().batch_execute("rollback").await.is_ok() {
            self.open = false;
        }
    }
}

async fn send_rows(sink: CopyInSink<Bytes>, mut rows: Bytes) -> Result<Vec<Row>, tokio_postgres::Error> {
    let mut sink = std::pin::pin!(sink);
    while !rows.is_empty() {
        sink.feed(rows.split_to(rows.len().min(COPY_MESSAGE))).await?;
    }
    sink.finish().await.map(|_| Vec::new())
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(client) = self.client.take().filter(|_| self.open) {
            drop(Object::take(client));
        }
    }
}
