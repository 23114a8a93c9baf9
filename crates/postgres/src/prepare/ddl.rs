//! What differs between a target table and what is needed, as statements.

use std::fmt::Write;

use cdc_model::{ColumnKind, TableSchema};

use crate::{
    PostgresConfig, SchemaMode,
    layout::{
        EXPIRES_AT, IDENTIFIER_MAX, KEY, Layout, Relation, STATE, TOKEN, TargetColumn, WRITTEN_AT, literal, quote,
    },
    value::sql_name,
};

/// A column as it is.
pub(super) struct Existing {
    pub(super) name: String,
    /// With its length or precision.
    pub(super) ty: String,
    pub(super) not_null: bool,
    pub(super) has_default: bool,
    pub(super) comment: Option<String>,
}

/// One difference.
pub(super) struct Step {
    pub(super) problem: String,
    /// The statements, or what a person has to decide.
    pub(super) fix: String,
    /// Nothing is lost by it, so it needs no person.
    pub(super) is_safe: bool,
    pub(super) retypes: bool,
    /// A column that is kept under another name.
    pub(super) renamed: Option<(String, String)>,
}

impl Step {
    fn safe(problem: String, fix: String) -> Self {
        Self { problem, fix, is_safe: true, retypes: false, renamed: None }
    }

    fn by_person(problem: String, fix: String) -> Self {
        Self { is_safe: false, ..Self::safe(problem, fix) }
    }
}

/// What a relation lacks; `existing` is empty if it is not there.
pub(super) fn plan(
    config: &PostgresConfig,
    layout: &Layout,
    relation: &Relation,
    existing: &[Existing],
    has_key: bool,
) -> Vec<Step> {
    let (schema, table) = (&*layout.schema, &relation.name);
    if existing.is_empty() {
        let schema_ddl = match config.schema_mode {
            SchemaMode::Manage => String::new(),
            SchemaMode::Validate => format!("create schema if not exists {};\n", quote(&config.schema)),
        };
        let ddl = schema_ddl + &create(schema, relation);
        return vec![Step::safe(format!("{table} is missing"), ddl)];
    }
    let find = |name: &str| existing.iter().find(|column| column.name == name);
    let own = own_columns(relation);
    let mut steps = Vec::new();
    let missing_own = own.iter().filter(|(name, ..)| find(name).is_none());
    let missing_own: Vec<_> = missing_own.map(|(name, ty, _)| ((*name).to_owned(), *ty)).collect();
    let missing_key = relation.key.iter().filter(|column| find(&column.name).is_none());
    let missing_key = missing_key.map(|column| (quote(&column.name), sql_name(&column.pg)));
    for (name, ty) in missing_own.into_iter().chain(missing_key) {
        let fix = match config.schema_mode {
            SchemaMode::Manage => "rename it, or set postgres.table_name or postgres.schema".to_owned(),
            SchemaMode::Validate => format!("alter table {table} add column {name} {ty};"),
        };
        steps.push(Step::by_person(format!("{table} has no column {name}, so it was not created by cdc"), fix));
    }
    if !has_key && relation.key.iter().all(|column| find(&column.name).is_some()) {
        let key: Vec<String> = relation.key.iter().map(|c| quote(&c.name)).collect();
        let fix = format!("alter table {table} add primary key ({});", key.join(", "));
        steps.push(Step::by_person(format!("{table} has no unique index over its key alone"), fix));
    }
    for column in &relation.key {
        steps.extend(find(&column.name).and_then(|found| retype(table, column, found)));
    }
    for (_, column) in &relation.values {
        match find(&column.name) {
            None => steps.push(Step::safe(
                format!("{table} has no column {}", quote(&column.name)),
                add(schema, relation, column),
            )),
            Some(found) => steps.extend(compare(config, schema, relation, column, found, existing)),
        }
    }
    let ours =
        |name: &str| relation.columns().any(|column| column.name == name) || own.iter().any(|(own, ..)| *own == name);
    for other in existing.iter().filter(|column| column.not_null && !column.has_default && !ours(&column.name)) {
        let name = quote(&other.name);
        steps.push(Step::by_person(
            format!("column {name} of {table} is not written by cdc, is not null and has no default"),
            format!("alter table {table} alter column {name} drop not null;"),
        ));
    }
    steps
}

/// A column that is there against what it should be.
fn compare(
    config: &PostgresConfig,
    schema: &TableSchema,
    relation: &Relation,
    column: &TargetColumn,
    found: &Existing,
    existing: &[Existing],
) -> Vec<Step> {
    let (table, name) = (&relation.name, quote(&column.name));
    let ours = found.comment.as_deref().and_then(|comment| Made::by(schema, comment));
    let dropped = schema.dropped_until(&column.source);
    let is_older = match &ours {
        Some(made) => made.source == column.source && made.since < dropped,
        None => dropped.is_some() && found.ty != sql_type(column),
    };
    if is_older {
        let other = free_name(&column.name, existing);
        let (renamed, old) = (quote(&other), format!("{}{}, dropped there.", column.source, source_of(schema)));
        let fix = format!(
            "alter table {table} rename column {name} to {renamed};\ncomment on column {table}.{renamed} is {};\n{}",
            literal(&old),
            add(schema, relation, column)
        );
        let problem =
            format!("column {name} of {table} holds values of before it was dropped in Cassandra and added again");
        return vec![Step { renamed: Some((column.name.clone(), other)), ..Step::safe(problem, fix) }];
    }
    let manages = config.schema_mode == SchemaMode::Manage;
    let differs = match &ours {
        Some(made) => made.source != column.source || made.masked != column.masked.as_deref(),
        None => found.comment.is_none() && column.masked.is_some() && manages,
    };
    if differs {
        let made_for = found.comment.as_deref().unwrap_or("a column that is not masked");
        let wanted = about(schema, column);
        return vec![Step::by_person(
            format!("column {name} of {table} was made for `{made_for}`, but is to hold `{wanted}`"),
            format!(
                "take the change of its settings back; or begin anew without the rows of now: drop table {table} cascade; \
                 delete from _cdc.remains where table_id = '{}';",
                schema.id.0
            ),
        )];
    }
    let mut steps: Vec<Step> = retype(table, column, found).into_iter().collect();
    if found.not_null {
        steps.push(Step::by_person(
            format!("column {name} of {table} is not null, which Cassandra does not promise"),
            format!("alter table {table} alter column {name} drop not null;"),
        ));
    }
    if found.comment.is_none() && manages {
        steps.push(Step::safe(format!("column {name} of {table} has no comment"), comment(schema, relation, column)));
    }
    steps
}

fn retype(table: &str, column: &TargetColumn, found: &Existing) -> Option<Step> {
    let wanted = sql_type(column);
    if found.ty == wanted {
        return None;
    }
    let name = quote(&column.name);
    let problem = format!("column {name} of {table} is {}, not {wanted}", found.ty);
    let alter = format!("alter table {table} alter column {name} type {wanted}");
    Some(if widens(&found.ty, wanted) {
        Step { retypes: true, ..Step::safe(problem, format!("{alter};")) }
    } else {
        Step::by_person(problem, format!("{alter} using {name}::{wanted};"))
    })
}

/// Whether every value stays what it is.
fn widens(from: &str, to: &str) -> bool {
    let base = from.split('(').next().unwrap_or_default().trim_end();
    // As in `timestamp(3) with time zone`.
    let with_zone = from.ends_with("with time zone");
    match to {
        "integer" => base == "smallint",
        "bigint" => matches!(base, "smallint" | "integer"),
        "numeric" => matches!(base, "smallint" | "integer" | "bigint" | "numeric"),
        "double precision" => base == "real",
        "text" => base == "character varying",
        "time without time zone" => base == "time" && !with_zone,
        "timestamp with time zone" => base == "timestamp" && with_zone,
        _ => false,
    }
}

/// As `format_type` writes it.
fn sql_type(column: &TargetColumn) -> &'static str {
    match sql_name(&column.pg) {
        "time" => "time without time zone",
        "timestamptz" => "timestamp with time zone",
        other => other,
    }
}

fn free_name(column: &str, existing: &[Existing]) -> String {
    let candidate = |n: usize| {
        let suffix = format!("__dropped_{n}");
        let mut base = column.to_owned();
        while base.len() + suffix.len() > IDENTIFIER_MAX {
            base.pop();
        }
        base + &suffix
    };
    let free = |name: &String| existing.iter().all(|column| column.name != *name);
    (1..).map(candidate).find(free).expect("a table has a limited number of columns")
}

fn add(schema: &TableSchema, relation: &Relation, column: &TargetColumn) -> String {
    let (name, ty) = (quote(&column.name), sql_name(&column.pg));
    format!("alter table {} add column {name} {ty};\n{}", relation.name, comment(schema, relation, column))
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
    let columns = relation.columns().map(|c| format!("{} {}", quote(&c.name), sql_name(&c.pg)));
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
    for column in relation.columns() {
        push(&mut ddl, comment(schema, relation, column));
    }
    ddl
}

fn comment(schema: &TableSchema, relation: &Relation, column: &TargetColumn) -> String {
    let name = quote(&column.name);
    format!("comment on column {}.{name} is {};\n", relation.name, literal(&about(schema, column)))
}

/// By which a column is known again, see [`Made`].
fn about(schema: &TableSchema, column: &TargetColumn) -> String {
    let since = schema.dropped_until(&column.source).map(|time| format!("{SINCE}{time}")).unwrap_or_default();
    let masked = column.masked.as_ref().map(|mask| format!("{MASKED}{mask}")).unwrap_or_default();
    format!("{}{}{since}{masked}.", column.source, source_of(schema))
}

fn source_of(schema: &TableSchema) -> String {
    format!(" of {} in Cassandra", schema.full_name())
}

/// Before the microsecond at which a column was dropped that was added again.
const SINCE: &str = ", added again after ";
const MASKED: &str = ", masked: ";

/// What a column was made for, by its comment.
struct Made<'c> {
    source: &'c str,
    since: Option<i64>,
    masked: Option<&'c str>,
}

impl<'c> Made<'c> {
    /// `None` of comments that are the user's.
    fn by(schema: &TableSchema, comment: &'c str) -> Option<Self> {
        let (source, rest) = comment.split_once(&source_of(schema))?;
        let keys = schema.partition_key.iter().chain(&schema.clustering).map(|column| &column.name);
        keys.chain(schema.columns.iter().map(|column| &column.name)).find(|name| *name == source)?;
        let since = rest.split_once(SINCE).and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
        let masked = rest.split_once(MASKED).and_then(|(_, rest)| rest.split('.').next());
        Some(Self { source, since: since.and_then(|time| time.parse().ok()), masked })
    }
}

pub(super) fn drop_view(layout: &Layout) -> String {
    format!("drop view {};", layout.view)
}

pub(super) fn rename_in_view(layout: &Layout, old: &str, new: &str) -> String {
    format!("alter view {} rename column {} to {};", layout.view, quote(old), quote(new))
}

/// The join of both tables. Columns the view already has keep their places, because PostgreSQL insists; one that is gone
/// from the source is still in its table, and in the view.
pub(super) fn view(layout: &Layout, statics: &Relation, shown: &[String], of_statics: &[String]) -> String {
    let partition = &statics.key;
    let side = |name: &str| match (partition.iter().any(|c| c.name == name), of_statics.iter().any(|n| n == name)) {
        (true, _) => "",
        (false, true) => "s.",
        (false, false) => "r.",
    };
    let values = statics.values.iter().chain(&layout.rows.values).map(|(_, column)| &column.name);
    let wanted = layout.rows.key.iter().map(|column| &column.name).chain(values);
    let mut columns: Vec<&String> = shown.iter().collect();
    columns.extend(wanted.filter(|name| !shown.contains(name)));
    let columns: Vec<String> = columns.iter().map(|name| format!("{}{}", side(name), quote(name))).collect();
    let partition: Vec<String> = partition.iter().map(|c| quote(&c.name)).collect();
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
