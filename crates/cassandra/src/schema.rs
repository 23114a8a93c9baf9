//! Tables as `system_schema` describes them.
//!
//! A column that was dropped and added again is loaded as it lives now; that cells from before the drop no longer
//! belong to it is not kept.

use std::collections::HashMap;

use cdc_model::{Column, ColumnKind, CqlType, KeyColumn, TableId, TableSchema, UdtResolver, parse_type};
use scylla::value::CqlTimestamp;
use tracing::warn;
use uuid::Uuid;

use crate::{Cassandra, CassandraError};

/// Cassandra's default, for tables that do not say.
const GC_GRACE_SECONDS: i32 = 864_000;

type Name = (String, String);
/// Keyspace, table, id, `cdc`, `gc_grace_seconds`.
type TableRow = (String, String, Uuid, Option<bool>, Option<i32>);
/// Field names and types of the user types of one keyspace.
type Types = HashMap<String, Vec<(String, String)>>;

#[derive(Default)]
struct Columns {
    partition_key: Vec<(i32, KeyColumn)>,
    clustering: Vec<(i32, KeyColumn)>,
    others: Vec<Column>,
}

struct Resolver<'a> {
    keyspace: &'a str,
    types: Option<&'a Types>,
}

impl UdtResolver for Resolver<'_> {
    fn keyspace(&self) -> &str {
        self.keyspace
    }

    fn fields(&self, name: &str) -> Option<&[(String, String)]> {
        self.types?.get(name).map(Vec::as_slice)
    }
}

pub(crate) async fn load(cassandra: &Cassandra) -> Result<Vec<TableSchema>, CassandraError> {
    let mut types: HashMap<String, Types> = HashMap::new();
    let rows: Vec<(String, String, Vec<String>, Vec<String>)> = cassandra
        .rows(
            "system_schema.types",
            "select keyspace_name, type_name, field_names, field_types from system_schema.types",
        )
        .await?;
    for (keyspace, name, names, field_types) in rows {
        types.entry(keyspace).or_default().insert(name, names.into_iter().zip(field_types).collect());
    }
    let type_of = |keyspace: &str, table: &str, column: &str, text: &str| {
        parse_type(text, &Resolver { keyspace, types: types.get(keyspace) }).unwrap_or_else(|error| {
            warn!(keyspace, table, column, %error, "a column's type is not understood; its values are carried as bytes");
            CqlType::Custom(text.to_owned())
        })
    };

    let mut columns: HashMap<Name, Columns> = HashMap::new();
    let rows: Vec<(String, String, String, String, i32, String, String)> = cassandra
        .rows(
            "system_schema.columns",
            "select keyspace_name, table_name, column_name, kind, position, clustering_order, type \
             from system_schema.columns",
        )
        .await?;
    for (keyspace, table, name, kind, position, order, ty) in rows {
        let ty = type_of(&keyspace, &table, &name, &ty);
        let columns = columns.entry((keyspace, table)).or_default();
        let key = |name, ty| (position, KeyColumn { name, ty, reversed: order.eq_ignore_ascii_case("desc") });
        match kind.as_str() {
            "partition_key" => columns.partition_key.push(key(name, ty)),
            "clustering" => columns.clustering.push(key(name, ty)),
            kind => columns.others.push(Column { name, ty, kind: column_kind(kind), dropped: None }),
        }
    }
    let rows: Vec<(String, String, String, Option<String>, String, CqlTimestamp)> = cassandra
        .rows(
            "system_schema.dropped_columns",
            "select keyspace_name, table_name, column_name, kind, type, dropped_time from system_schema.dropped_columns",
        )
        .await?;
    for (keyspace, table, name, kind, ty, CqlTimestamp(dropped_ms)) in rows {
        let ty = type_of(&keyspace, &table, &name, &ty);
        let kind = column_kind(kind.as_deref().unwrap_or_default());
        // Cells carry microseconds; the column stores what was given in microseconds, cut to milliseconds.
        let dropped = Some(dropped_ms.saturating_mul(1000).saturating_add(999));
        columns.entry((keyspace, table)).or_default().others.push(Column { name, ty, kind, dropped });
    }

    let mut tables: Vec<TableRow> = cassandra
        .rows(
            "system_schema.tables",
            "select keyspace_name, table_name, id, cdc, gc_grace_seconds from system_schema.tables",
        )
        .await?;
    tables.extend(
        cassandra
            .rows::<TableRow>(
                "system_schema.views",
                "select keyspace_name, view_name, id, cdc, gc_grace_seconds from system_schema.views",
            )
            .await?,
    );
    let mut schemas = Vec::with_capacity(tables.len());
    for (keyspace, name, id, cdc, gc_grace_seconds) in tables {
        let columns = columns.remove(&(keyspace.clone(), name.clone())).unwrap_or_default();
        let schema = TableSchema {
            id: TableId(id),
            keyspace,
            name,
            partition_key: in_order(columns.partition_key),
            clustering: in_order(columns.clustering),
            columns: columns.others,
            // Null on nodes with cdc_enabled: false.
            cdc: cdc.unwrap_or(false),
            gc_grace_seconds: gc_grace_seconds.unwrap_or(GC_GRACE_SECONDS).into(),
        };
        schemas.push(schema.new()?);
    }
    Ok(schemas)
}

fn in_order(mut columns: Vec<(i32, KeyColumn)>) -> Vec<KeyColumn> {
    columns.sort_by_key(|(position, _)| *position);
    columns.into_iter().map(|(_, column)| column).collect()
}

fn column_kind(kind: &str) -> ColumnKind {
    if kind == "static" { ColumnKind::Static } else { ColumnKind::Regular }
}
