//! A token range page by page.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cdc_model::{RowKey, RowState, TableSchema, TokenRange, ValueBytes};
use scylla::client::session::Session;
use scylla::response::PagingState;
use scylla::statement::prepared::PreparedStatement;

use super::{ATTEMPTS, PAGE_ROWS, PAUSE, Query, RawRow, TableReader, failed, now, seconds};
use crate::CassandraError;

impl TableReader {
    /// Reads a range page by page; a partition's static row comes before its first row.
    pub fn pages(&self, range: TokenRange) -> Pages {
        Pages {
            query: Arc::clone(&self.pass),
            session: Arc::clone(&self.session),
            schema: Arc::clone(&self.schema),
            statement: self.pass.statement.clone(),
            page_rows: PAGE_ROWS,
            range,
            state: PagingState::start(),
            last: None,
        }
    }
}

/// A range that is being read.
pub struct Pages {
    query: Arc<Query>,
    session: Arc<Session>,
    schema: Arc<TableSchema>,
    statement: PreparedStatement,
    page_rows: i32,
    range: TokenRange,
    state: PagingState,
    /// The partition that may go on with the next page.
    last: Option<ValueBytes>,
}

/// What was read at once.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Static rows are not among them.
    pub rows: usize,
    /// Nothing is behind it; [`Pages::next`] must not be called again.
    pub is_last: bool,
    /// When Cassandra was asked: what was acknowledged before is in it, as far as the consistency goes.
    pub asked: SystemTime,
    pub took: Duration,
    /// Expiries may be told so much too late: they are reckoned from when the answer was there.
    pub late_seconds: i64,
}

impl Pages {
    /// Of the pages to come; one that fails is asked for again with a quarter of them.
    pub fn set_page_rows(&mut self, rows: i32) {
        self.page_rows = rows.max(1);
        self.statement.set_page_size(self.page_rows);
    }

    /// Reads the next page and hands over its rows.
    ///
    /// # Errors
    /// What the last attempt met; the same page may be asked for again.
    pub async fn next(&mut self, mut take: impl FnMut(RowKey, RowState)) -> Result<Page, CassandraError> {
        let mut attempt = 0;
        let (page, next, asked, began) = loop {
            let (asked, began) = (SystemTime::now(), Instant::now());
            let bounds = (self.range.start, self.range.end);
            match self.session.execute_single_page(&self.statement, bounds, self.state.clone()).await {
                Ok((page, next)) => break (page, next, asked, began),
                Err(_) if attempt + 1 < ATTEMPTS => {
                    attempt += 1;
                    self.statement.set_page_size((self.page_rows >> (2 * attempt)).max(1));
                    tokio::time::sleep(PAUSE * attempt).await;
                }
                Err(error) => return Err(failed(error)),
            }
        };
        let took = began.elapsed();
        let rows = page.into_rows_result().map_err(failed)?;
        let now = now();
        let mut count = 0;
        for row in rows.rows::<RawRow<'_>>().map_err(failed)? {
            let RawRow(values) = row.map_err(failed)?;
            let key = self.query.partition(&values);
            let is_new = self.last.as_ref() != Some(&key);
            let (row, fixed) = self.query.states(&values, now, is_new);
            if is_new {
                self.last = Some(key.clone());
                if let Some(fixed) = fixed {
                    take(RowKey { partition: key.clone(), clustering: None }, fixed);
                }
            }
            if let Some(clustering) = self.query.clustering(&self.schema, &values) {
                count += 1;
                take(RowKey { partition: key, clustering: Some(clustering) }, row);
            }
        }
        let is_last = match next.into_paging_control_flow() {
            std::ops::ControlFlow::Break(()) => true,
            std::ops::ControlFlow::Continue(next) => {
                self.state = next;
                false
            }
        };
        Ok(Page { rows: count, is_last, asked, took, late_seconds: now.0 - seconds(asked).0 })
    }
}
