//! The rows of `system_schema` with their write times, so that what is read here and what stands in the log can be put
//! in order.

use cdc_commitlog::{Definition, SchemaFile, SchemaRow};
use cdc_model::TableId;
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use crate::{Cassandra, CassandraError};

/// Keyspace, name, names and types of the fields, write time.
type TypeRow = (String, String, Vec<String>, Vec<String>, Option<i64>);
/// Keyspace, table, name, kind, position, order, type, write time.
type ColumnRow = (String, String, String, String, i32, String, String, Option<i64>);
/// Keyspace, table, name, kind, type, when it was dropped, write time.
type DroppedRow = (String, String, String, Option<String>, String, CqlTimestamp, Option<i64>);
/// Keyspace, table, id, `cdc`, `gc_grace_seconds`, write time.
type TableRow = (String, String, Uuid, Option<bool>, Option<i32>, Option<i64>);

pub(crate) async fn load(cassandra: &Cassandra) -> Result<SchemaFile, CassandraError> {
    let mut rows = Vec::new();
    let mut push = |keyspace, name, column, written: Option<i64>, definition| {
        let written_us = written.unwrap_or(SchemaFile::BEFORE_ANY_LOG);
        rows.push(SchemaRow { keyspace, name, column, table: None, written_us, definition });
    };
    let types: Vec<TypeRow> = cassandra
        .rows(
            "system_schema.types",
            "select keyspace_name, type_name, field_names, field_types, writetime(field_names) \
             from system_schema.types",
        )
        .await?;
    for (keyspace, name, names, field_types, written) in types {
        let fields = names.into_iter().zip(field_types).collect();
        push(keyspace, name, String::new(), written, Definition::Type { fields });
    }
    let columns: Vec<ColumnRow> = cassandra
        .rows(
            "system_schema.columns",
            "select keyspace_name, table_name, column_name, kind, position, clustering_order, type, writetime(type) \
             from system_schema.columns",
        )
        .await?;
    for (keyspace, table, column, kind, position, order, ty, written) in columns {
        let reversed = order.eq_ignore_ascii_case("desc");
        push(keyspace, table, column, written, Definition::Column { kind, position, reversed, ty });
    }
    let dropped: Vec<DroppedRow> = cassandra
        .rows(
            "system_schema.dropped_columns",
            "select keyspace_name, table_name, column_name, kind, type, dropped_time, writetime(dropped_time) \
             from system_schema.dropped_columns",
        )
        .await?;
    for (keyspace, table, column, kind, ty, CqlTimestamp(dropped_ms), written) in dropped {
        let definition = Definition::dropped_column(kind.unwrap_or_default(), ty, dropped_ms);
        push(keyspace, table, column, written, definition);
    }
    let tables: Vec<TableRow> = cassandra
        .rows(
            "system_schema.tables",
            "select keyspace_name, table_name, id, cdc, gc_grace_seconds, writetime(id) from system_schema.tables",
        )
        .await?;
    for (keyspace, name, id, cdc, gc_grace_seconds, written) in tables {
        let definition = Definition::Table { id: TableId(id), cdc, gc_grace_seconds };
        push(keyspace, name, String::new(), written, definition);
    }
    let views: Vec<TableRow> = cassandra
        .rows(
            "system_schema.views",
            "select keyspace_name, view_name, id, cdc, gc_grace_seconds, writetime(id) from system_schema.views",
        )
        .await?;
    for (keyspace, name, id, cdc, gc_grace_seconds, written) in views {
        let definition = Definition::View { id: TableId(id), cdc, gc_grace_seconds };
        push(keyspace, name, String::new(), written, definition);
    }
    Ok(SchemaFile::new(rows))
}
