//! What Cassandra answers, as the bytes it answers.

use anyhow::Context as _;
use scylla::client::session::Session;
use scylla::deserialize::row::{ColumnIterator, DeserializeRow};
use scylla::deserialize::{DeserializationError, TypeCheckError};
use scylla::frame::response::result::ColumnSpec;

/// Column by column the name and the serialised value; `None` is NULL.
pub type Answer = Vec<(String, Option<Vec<u8>>)>;

struct Raw(Answer);

impl<'frame, 'metadata> DeserializeRow<'frame, 'metadata> for Raw {
    fn type_check(_: &[ColumnSpec<'_>]) -> Result<(), TypeCheckError> {
        Ok(())
    }

    fn deserialize(row: ColumnIterator<'frame, 'metadata>) -> Result<Self, DeserializationError> {
        let columns = row.map(|column| {
            let column = column?;
            Ok((column.spec.name().to_owned(), column.slice.map(|slice| slice.as_slice().to_vec())))
        });
        columns.collect::<Result<_, _>>().map(Self)
    }
}

/// The rows of a whole table, in one page.
pub async fn select(session: &Session, keyspace: &str, table: &str) -> anyhow::Result<Vec<Answer>> {
    let cql = format!("select * from {keyspace}.{table}");
    let rows = session.query_unpaged(cql.as_str(), ()).await.context(cql)?.into_rows_result()?;
    let rows: Result<Vec<Raw>, _> = rows.rows()?.collect();
    Ok(rows?.into_iter().map(|Raw(answer)| answer).collect())
}
