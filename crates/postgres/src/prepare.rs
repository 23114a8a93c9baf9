//! Creating and altering target tables, or saying what is missing.

mod ddl;

use std::sync::Arc;

use cdc_model::{TableId, TableSchema};
use tokio_postgres::{GenericClient, Transaction};

use self::ddl::{Existing, Step, drop_view, plan, view};
use crate::{
    PostgresConfig, SchemaMode, TargetError,
    batch::BUCKETS,
    error::{Fault, FaultKind},
    layout::{Layout, Relation},
    transact::{LOCK, class},
    truncate::truncated_at,
};

/// First key of the advisory lock under which tables are prepared, one at a time.
const PREPARE_CLASS: i32 = 0x0cdc_0002;

const COLUMNS: &str = "-- cdc: columns\nselect attname::text, format_type(atttypid, atttypmod), attnotnull, \
    atthasdef or attidentity <> '', col_description(attrelid, attnum) from pg_attribute \
    where attrelid = to_regclass($1) and attnum > 0 and not attisdropped order by attnum";
const HAS_KEY: &str = "-- cdc: unique index\nselect exists (select from pg_index as i where i.indrelid = to_regclass($1) \
    and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null and (select array_agg(a.attname::text \
    order by a.attname) from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) as k(n) join pg_attribute as a \
    on a.attrelid = i.indrelid and a.attnum = k.n) = $2::text[])";

/// Brings the targets of a table up to date, in one transaction under a lock, so that several processes may do it at
/// once; returns how the table is laid out. Nothing is locked or written where nothing is missing.
///
/// Writers learn of each other's schemas here: what any of them has seen is kept in `_cdc.tables`, and one that is
/// behind, with its log or its topic, lays the table out by the newest. It would else drop from a row's state what it
/// does not know. `known` is what this process has seen, `newest` the version at hand.
pub(crate) async fn prepare(
    client: &mut tokio_postgres::Client,
    config: &PostgresConfig,
    known: &TableSchema,
    newest: &Arc<TableSchema>,
) -> Result<Layout, TargetError> {
    let transaction = client.transaction().await.map_err(database)?;
    lock_preparing(&transaction).await?;
    let (stored, generation) = stored(&transaction, newest).await?;
    let too_wide = |error: cdc_model::SchemaError| TargetError::Layout {
        table: newest.full_name(),
        problem: error.to_string(),
        fix: "leave the table out of source.tables".to_owned(),
    };
    let known = match &stored {
        Some(stored) => known.join(stored.clone()).map_err(too_wide)?,
        None => known.clone(),
    };
    let schema = known.join(TableSchema::clone(newest)).map_err(too_wide)?;
    let is_news = match &stored {
        Some(stored) => stored.join(schema.clone()).map_err(too_wide)? != *stored,
        None => true,
    };
    let mut layout = Layout::new(config, Arc::new(schema))?;
    layout.source = Arc::clone(newest);
    layout.truncated = truncated_at(&transaction, newest.id).await?;
    register(&transaction, &layout).await?;
    let steps = compare(&transaction, config, &layout).await?;
    refuse(config, &layout, &steps)?;
    layout.generation = if steps.is_empty() && !is_news {
        generation
    } else {
        lock_all(&transaction, newest.id).await?;
        alter(&transaction, &layout, &steps).await?;
        let text = serde_json::to_string(&*layout.schema).expect("a schema is plain data");
        let row = transaction
            .query_one(
                "-- cdc: prepared\nupdate _cdc.tables set prepared_at = now(), newest_schema = $2, \
                 generation = generation + 1 where table_id = $1 returning generation",
                &[&newest.id.0, &text],
            )
            .await
            .map_err(database)?;
        row.get(0)
    };
    transaction.commit().await.map_err(database)?;
    Ok(layout)
}

/// Keeps others from preparing or truncating a table, to the end of the transaction.
pub(crate) async fn lock_preparing(transaction: &Transaction<'_>) -> Result<(), TargetError> {
    transaction.execute("select pg_advisory_xact_lock($1, 0)", &[&PREPARE_CLASS]).await.map_err(database)?;
    Ok(())
}

/// Waits for every transaction that writes the table, and they look at the generation after they have a lock.
pub(crate) async fn lock_all(transaction: &Transaction<'_>, table: TableId) -> Result<(), TargetError> {
    let (classes, keys) = (vec![class(table); BUCKETS.unsigned_abs() as usize], (0..BUCKETS).collect::<Vec<_>>());
    let exclusive = vec![true; keys.len()];
    transaction.execute(LOCK, &[&classes, &keys, &exclusive]).await.map_err(database)?;
    Ok(())
}

/// What is wrong with the targets of tables and needs a person, a sentence per table with the statements to run. Changes
/// nothing.
///
/// # Errors
/// [`TargetError::Database`] if the catalog cannot be read.
pub async fn differences(
    client: &tokio_postgres::Client,
    config: &PostgresConfig,
    tables: &[TableSchema],
) -> Result<Vec<String>, TargetError> {
    let mut found = Vec::new();
    for table in tables {
        // What cannot be laid out at all is told by `PostgresConfig::validate_with`.
        let Ok(layout) = Layout::new(config, Arc::new(table.clone())) else { continue };
        let steps = compare(client, config, &layout).await?;
        found.extend(refuse(config, &layout, &steps).err().map(|error| error.to_string()));
    }
    Ok(found)
}

async fn compare(
    client: &impl GenericClient,
    config: &PostgresConfig,
    layout: &Layout,
) -> Result<Vec<Step>, TargetError> {
    let mut steps = Vec::new();
    for relation in std::iter::once(&layout.rows).chain(&layout.statics) {
        let existing = columns(client, &relation.name).await?;
        let has_key = has_key(client, relation).await?;
        steps.extend(plan(config, layout, relation, &existing, has_key));
    }
    Ok(steps)
}

fn database(error: tokio_postgres::Error) -> TargetError {
    TargetError::Database { doing: "prepare target tables", fault: Fault::from(error) }
}

async fn stored(transaction: &Transaction<'_>, table: &TableSchema) -> Result<(Option<TableSchema>, i64), TargetError> {
    let row = transaction
        .query_opt(
            "-- cdc: newest schema\nselect newest_schema, generation from _cdc.tables where table_id = $1",
            &[&table.id.0],
        )
        .await
        .map_err(database)?;
    let Some(row) = row else { return Ok((None, 0)) };
    let schema = row.get::<_, Option<&str>>(0).map(serde_json::from_str).transpose();
    let damaged = |_| TargetError::State { table: table.full_name(), error: cdc_model::StateError::Damaged };
    Ok((schema.map_err(damaged)?, row.get(1)))
}

/// What only a person may do, all of it in one error; everything, where the tables are the user's.
fn refuse(config: &PostgresConfig, layout: &Layout, steps: &[Step]) -> Result<(), TargetError> {
    let wanted = |step: &&Step| config.schema_mode == SchemaMode::Validate || !step.is_safe;
    let wanted: Vec<&Step> = steps.iter().filter(wanted).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let problems: Vec<&str> = wanted.iter().map(|step| step.problem.as_str()).collect();
    let statements: Vec<&str> = wanted.iter().map(|step| step.fix.as_str()).collect();
    Err(TargetError::Layout {
        table: layout.schema.full_name(),
        problem: problems.join("; "),
        fix: statements.join("\n"),
    })
}

async fn alter(transaction: &Transaction<'_>, layout: &Layout, steps: &[Step]) -> Result<(), TargetError> {
    let run = async |ddl: &str| transaction.batch_execute(ddl).await.map_err(database);
    let mut shown: Vec<String> = names(columns(transaction, &layout.view).await?);
    let retyped = steps.iter().any(|step| step.retypes);
    if retyped && !shown.is_empty() {
        // A view holds its columns' types fast. Its columns keep their places.
        run(&drop_view(layout)).await?;
    }
    for step in steps {
        transaction.batch_execute(&step.fix).await.map_err(|error| refused(layout, step, error))?;
        if let Some((old, new)) = &step.renamed
            && let Some(place) = shown.iter().position(|name| name == old)
        {
            if !retyped {
                run(&ddl::rename_in_view(layout, old, new)).await?;
            }
            shown[place].clone_from(new);
        }
    }
    match &layout.statics {
        Some(statics) if !steps.is_empty() => {
            let of_statics = names(columns(transaction, &statics.name).await?);
            run(&view(layout, statics, &shown, &of_statics)).await
        }
        _ => Ok(()),
    }
}

fn refused(layout: &Layout, step: &Step, error: tokio_postgres::Error) -> TargetError {
    match Fault::from(error) {
        // Not a stale plan here: a view of the user's holds a column's type fast.
        fault if fault.kind == FaultKind::Plan => TargetError::Layout {
            table: layout.schema.full_name(),
            problem: format!("{}, and altering it fails: {fault}", step.problem),
            fix: format!("drop what depends on it, run this, and create that again: {}", step.fix),
        },
        fault => TargetError::Database { doing: "alter target tables", fault },
    }
}

fn names(columns: Vec<Existing>) -> Vec<String> {
    columns.into_iter().map(|column| column.name).collect()
}

/// Notes who writes the target; refuses one that belongs to another table, unless it is gone.
async fn register(transaction: &Transaction<'_>, layout: &Layout) -> Result<(), TargetError> {
    let (schema, target) = (&layout.schema, &layout.rows.name);
    let owners = transaction
        .query(
            "-- cdc: owner of a target\nselect table_id, keyspace, name, to_regclass(target) is not null, target \
             from _cdc.tables where target = $1 or table_id = $2",
            &[target, &schema.id.0],
        )
        .await
        .map_err(database)?;
    for owner in owners {
        let (id, exists, known): (uuid::Uuid, bool, &str) = (owner.get(0), owner.get(3), owner.get(4));
        let other = format!("{}.{}", owner.get::<_, &str>(1), owner.get::<_, &str>(2));
        let wrong = |problem: String, fix: String| TargetError::Layout { table: schema.full_name(), problem, fix };
        match (id == schema.id.0, known == target) {
            (true, true) => return Ok(()),
            (true, false) if exists => {
                return Err(wrong(
                    format!("its rows are in {known}, but it is to be written to {target}"),
                    format!(
                        "take the new name back, or rename {known} (and its __static table; drop its __all view) and run: \
                         update _cdc.tables set target = '{}' where table_id = '{id}';",
                        target.replace('\'', "''")
                    ),
                ));
            }
            (false, true) if exists && other == schema.full_name() => {
                return Err(wrong(
                    format!("was dropped and created again, and {target} holds the rows of the old one"),
                    format!("drop or rename {target} (and its __static table and __all view)"),
                ));
            }
            (false, true) if exists => {
                return Err(wrong(
                    format!("its target {target} is already that of {other}"),
                    "put {keyspace} into postgres.table_name, or set a name for it in postgres.tables".to_owned(),
                ));
            }
            _ => {
                transaction.execute("delete from _cdc.tables where target = $1", &[target]).await.map_err(database)?;
            }
        }
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

/// A relation's columns in order; none if there is no such relation.
async fn columns(client: &impl GenericClient, relation: &str) -> Result<Vec<Existing>, TargetError> {
    let rows = client.query(COLUMNS, &[&relation]).await.map_err(database)?;
    let column = |row: &tokio_postgres::Row| Existing {
        name: row.get(0),
        ty: row.get(1),
        not_null: row.get(2),
        has_default: row.get(3),
        comment: row.get(4),
    };
    Ok(rows.iter().map(column).collect())
}

/// Whether a unique index is over exactly the key, which is what keeps two writers from inserting one row twice.
async fn has_key(client: &impl GenericClient, relation: &Relation) -> Result<bool, TargetError> {
    let mut key: Vec<&str> = relation.key.iter().map(|column| column.name.as_str()).collect();
    key.sort_unstable();
    let row = client.query_one(HAS_KEY, &[&relation.name, &key]).await.map_err(database)?;
    Ok(row.get(0))
}
