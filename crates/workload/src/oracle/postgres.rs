//! Reads one table of PostgreSQL whole, every column as text.

use std::collections::HashMap;
use std::pin::pin;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use tokio_postgres::Client;

use super::cassandra::Column;
use super::{Cells, Rows, canonical};

/// The rows of `public.<table>`: none when the table does not exist, NULL in a column that does not.
pub(super) async fn rows(client: &Client, table: &str, key: &[Column], columns: &[Column]) -> anyhow::Result<Rows> {
    let described = client
        .query(
            "select column_name::text, data_type::text from information_schema.columns \
             where table_schema = 'public' and table_name = $1",
            &[&table],
        )
        .await?;
    if described.is_empty() {
        return Ok(Rows::new());
    }
    let types: HashMap<String, String> = described.iter().map(|row| (row.get(0), row.get(1))).collect();
    let selected: Vec<String> = key.iter().chain(columns).map(|column| expression(&column.name, &types)).collect();
    let sql = format!("select {} from public.{}", selected.join(", "), quote(table));

    let mut rows = pin!(client.query_raw(&sql, [] as [&str; 0]).await.with_context(|| format!("read public.{table}"))?);
    let mut out = Rows::new();
    while let Some(row) = rows.try_next().await? {
        let text = |at: usize| row.try_get::<_, Option<&str>>(at);
        let mut name = Vec::with_capacity(key.len());
        for (at, column) in key.iter().enumerate() {
            let value = text(at)?.with_context(|| format!("{} is NULL in public.{table}", column.name))?;
            name.push(canonical::parse(&column.ty, value).with_context(|| described_as(table, column))?);
        }
        let mut cells = Cells::with_capacity(columns.len());
        for (at, column) in columns.iter().enumerate() {
            let value = text(key.len() + at)?;
            let value = value.map(|value| canonical::parse(&column.ty, value)).transpose();
            let value = value.with_context(|| described_as(table, column))?;
            cells.push(value.filter(|value| !column.multi_cell || !canonical::is_empty(value)).map(Into::into));
        }
        let twice = out.insert(name.join(" ").into(), cells);
        anyhow::ensure!(twice.is_none(), "two keys of public.{table} look alike to the oracle");
    }
    Ok(out)
}

fn described_as(table: &str, column: &Column) -> String {
    format!("public.{table}.{} does not hold a {:?}", column.name, column.ty)
}

/// The column as text that does not depend on the session's time zone.
fn expression(name: &str, types: &HashMap<String, String>) -> String {
    let column = quote(name);
    match types.get(name).map(String::as_str) {
        None => "null::text".to_owned(),
        Some("timestamp with time zone") => format!("({column} at time zone 'UTC')::text"),
        Some("ARRAY") => format!("to_jsonb({column})::text"),
        Some(_) => format!("{column}::text"),
    }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
