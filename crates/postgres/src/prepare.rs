//! Creating and extending target tables.

use std::{collections::HashMap, fmt::Write};

use cdc_model::{ColumnKind, TableSchema};

use crate::{
    TargetError,
    error::Fault,
    layout::{EXPIRES_AT, KEY, Layout, Relation, STATE, TOKEN, TargetColumn, WRITTEN_AT, literal, quote},
    value::sql_name,
};

/// First key of the advisory lock under which tables are prepared, one at a time.
const PREPARE_CLASS: i32 = 0x0cdc_0002;

/// Brings the targets of a table up to date, in one transaction under a lock, so that several processes may do it at
/// once. Nothing is locked or written where nothing is missing.
pub(crate) async fn prepare(client: &mut tokio_postgres::Client, layout: &Layout) -> Result<(), TargetError> {
    let transaction = client.transaction().await.map_err(database)?;
    transaction.execute("select pg_advisory_xact_lock($1, 0)", &[&PREPARE_CLASS]).await.map_err(database)?;
    register(&transaction, layout).await?;
    let mut changed = false;
    for relation in std::iter::once(&layout.rows).chain(&layout.statics) {
        let existing = columns(&transaction, &relation.name).await?;
        let ddl = if existing.is_empty() {
            create(&layout.schema, relation)
        } else {
            check_types(&layout.schema, relation, &existing)?;
            extend(&layout.schema, relation, &existing)
        };
        if !ddl.is_empty() {
            changed = true;
            transaction.batch_execute(&ddl).await.map_err(database)?;
        }
    }
    if let Some(statics) = &layout.statics
        && changed
    {
        let existing = columns(&transaction, &layout.view).await?;
        transaction.batch_execute(&view(layout, statics, &existing)).await.map_err(database)?;
    }
    if changed {
        transaction
            .execute("update _cdc.tables set prepared_at = now() where table_id = $1", &[&layout.schema.id.0])
            .await
            .map_err(database)?;
    }
    transaction.commit().await.map_err(database)
}

fn database(error: tokio_postgres::Error) -> TargetError {
    TargetError::Database { doing: "prepare target tables", fault: Fault::from(error) }
}

/// Notes who writes the target; refuses one that belongs to another table, unless it is gone.
async fn register(transaction: &tokio_postgres::Transaction<'_>, layout: &Layout) -> Result<(), TargetError> {
    let (schema, target) = (&layout.schema, &layout.rows.name);
    let owner = transaction
        .query_opt(
            "-- cdc: owner of a target\nselect table_id, keyspace, name, to_regclass(target) is not null \
             from _cdc.tables where target = $1",
            &[target],
        )
        .await
        .map_err(database)?;
    if let Some(owner) = owner {
        let (id, exists): (uuid::Uuid, bool) = (owner.get(0), owner.get(3));
        if id == schema.id.0 {
            return Ok(());
        }
        let other = format!("{}.{}", owner.get::<_, &str>(1), owner.get::<_, &str>(2));
        if exists && other == schema.full_name() {
            return Err(TargetError::Layout {
                table: other,
                problem: format!("was dropped and created again, and {target} holds the rows of the old one"),
                fix: format!("drop or rename {target} (and its __static table and __all view)"),
            });
        }
        if exists {
            return Err(TargetError::Layout {
                table: schema.full_name(),
                problem: format!("its target {target} is already that of {other}"),
                fix: "put {keyspace} into postgres.table_name".to_owned(),
            });
        }
        transaction.execute("delete from _cdc.tables where target = $1", &[target]).await.map_err(database)?;
    }
    transaction
        .execute(
            "-- cdc: register\ninsert into _cdc.tables (table_id, keyspace, name, target, gc_grace_seconds) \
             values ($1, $2, $3, $4, $5) on conflict (table_id) do update set target = excluded.target",
            &[&schema.id.0, &schema.keyspace, &schema.name, target, &schema.gc_grace_seconds],
        )
        .await
        .map_err(database)?;
    Ok(())
}

/// Names and type ids of a relation's columns, in order; none if there is no such relation.
async fn columns(
    transaction: &tokio_postgres::Transaction<'_>,
    relation: &str,
) -> Result<Vec<(String, u32)>, TargetError> {
    let rows = transaction
        .query(
            "-- cdc: columns\nselect attname::text, atttypid from pg_attribute \
             where attrelid = to_regclass($1) and attnum > 0 and not attisdropped order by attnum",
            &[&relation],
        )
        .await
        .map_err(database)?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn target_columns(relation: &Relation) -> impl Iterator<Item = &TargetColumn> {
    relation.key.iter().chain(relation.values.iter().map(|(_, column)| column))
}

/// Our own columns with type and comment.
fn own_columns(relation: &Relation) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut own = vec![
        (WRITTEN_AT, "bigint not null", "Newest write time of anything in the row, microseconds since 1970."),
        (STATE, "bytea", "Times of all cells and deletions; NULL while all cells carry _cdc_written_at."),
        (EXPIRES_AT, "timestamptz", "When something in the row expires next; NULL without TTL."),
        (TOKEN, "bigint not null", "Murmur3 token of the partition."),
    ];
    own.extend(relation.stores_key.then_some((KEY, "bytea not null", "The key as Cassandra serialises it.")));
    own
}

fn create(schema: &TableSchema, relation: &Relation) -> String {
    let name = &relation.name;
    let columns = target_columns(relation).map(|c| format!("{} {}", quote(&c.name), sql_name(&c.pg)));
    let own = own_columns(relation);
    let columns: Vec<String> = columns.chain(own.iter().map(|(name, ty, _)| format!("{name} {ty}"))).collect();
    let key: Vec<String> = relation.key.iter().map(|c| quote(&c.name)).collect();
    let what = match relation.kind {
        ColumnKind::Regular => "Live rows",
        ColumnKind::Static => "Static columns",
    };
    let about = literal(&format!("{what} of {} in Cassandra; written by cdc.", schema.full_name()));
    let mut ddl = format!(
        "create table {name} ({}, primary key ({})) with (fillfactor = 80);\n\
         create index on {name} ({EXPIRES_AT}) where {EXPIRES_AT} is not null;\n\
         comment on table {name} is {about};\n",
        columns.join(", "),
        key.join(", ")
    );
    for (column, _, comment) in own {
        push(&mut ddl, format_args!("comment on column {name}.{column} is {};\n", literal(comment)));
    }
    for column in target_columns(relation) {
        push(&mut ddl, comment(schema, relation, column));
    }
    ddl
}

fn comment(schema: &TableSchema, relation: &Relation, column: &TargetColumn) -> String {
    let masked = column.masked.as_ref().map(|mask| format!(", {mask}")).unwrap_or_default();
    let text = format!("{} of {} in Cassandra{masked}.", column.source, schema.full_name());
    format!("comment on column {}.{} is {};\n", relation.name, quote(&column.name), literal(&text))
}

/// Adds columns that are missing.
fn extend(schema: &TableSchema, relation: &Relation, existing: &[(String, u32)]) -> String {
    let mut ddl = String::new();
    for (_, column) in &relation.values {
        if !existing.iter().any(|(name, _)| *name == column.name) {
            let (name, ty) = (quote(&column.name), sql_name(&column.pg));
            push(&mut ddl, format_args!("alter table {} add column {name} {ty};\n", relation.name));
            push(&mut ddl, comment(schema, relation, column));
        }
    }
    ddl
}

fn check_types(schema: &TableSchema, relation: &Relation, existing: &[(String, u32)]) -> Result<(), TargetError> {
    let existing: HashMap<&str, u32> = existing.iter().map(|(name, ty)| (name.as_str(), *ty)).collect();
    let wrong = |problem: String, fix: String| TargetError::Layout { table: schema.full_name(), problem, fix };
    for column in target_columns(relation) {
        if existing.get(column.name.as_str()).is_some_and(|ty| *ty != column.pg.oid()) {
            let (name, ty) = (quote(&column.name), sql_name(&column.pg));
            return Err(wrong(
                format!("column {name} of {} has another type than {ty}", relation.name),
                format!("alter table {} alter column {name} type {ty} using {name}::{ty}", relation.name),
            ));
        }
    }
    let own = own_columns(relation);
    let missing = own.iter().map(|(name, ..)| *name).chain(relation.key.iter().map(|c| c.name.as_str()));
    match missing.into_iter().find(|name| !existing.contains_key(name)) {
        None => Ok(()),
        Some(name) => Err(wrong(
            format!("{} has no column {name}, so it was not created by cdc", relation.name),
            "rename it, or set postgres.table_name or postgres.schema".to_owned(),
        )),
    }
}

/// The join of both tables. Columns the view already has keep their places, because PostgreSQL insists.
fn view(layout: &Layout, statics: &Relation, existing: &[(String, u32)]) -> String {
    let mut columns: Vec<(String, &str)> =
        layout.rows.key.iter().take(statics.partition_columns).map(|c| (c.name.clone(), "")).collect();
    columns.extend(layout.rows.key.iter().skip(statics.partition_columns).map(|c| (c.name.clone(), "r.")));
    columns.extend(statics.values.iter().map(|(_, c)| (c.name.clone(), "s.")));
    columns.extend(layout.rows.values.iter().map(|(_, c)| (c.name.clone(), "r.")));
    // A column that is gone from the source is still in its table, and in the view.
    let regular = |name: &str| layout.schema.columns.iter().all(|c| c.name != name || c.kind == ColumnKind::Regular);
    for (name, _) in existing {
        if !columns.iter().any(|(known, _)| known == name) {
            columns.push((name.clone(), if regular(name) { "r." } else { "s." }));
        }
    }
    let place = |name: &str| existing.iter().position(|(known, _)| known == name).unwrap_or(usize::MAX);
    columns.sort_by_key(|(name, _)| place(name));
    let columns: Vec<String> = columns.iter().map(|(name, side)| format!("{side}{}", quote(name))).collect();
    let partition: Vec<String> = statics.key.iter().map(|c| quote(&c.name)).collect();
    format!(
        "create or replace view {view} as select {} from {} as r full join {} as s using ({});\n\
         comment on view {view} is {};\n",
        columns.join(", "),
        layout.rows.name,
        statics.name,
        partition.join(", "),
        literal(&format!(
            "{} with its static columns; a partition of static columns alone shows once.",
            layout.schema.full_name()
        )),
        view = layout.view,
    )
}

fn push(out: &mut String, value: impl std::fmt::Display) {
    write!(out, "{value}").expect("a String takes all text");
}
