//! `cdc dlq list`, `show` and `stats`.

use anyhow::Context as _;
use cdc_postgres::{DeadLetter, LetterSummary};
use cdc_runtime::Exit;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{Letters, ListArgs, ShowArgs, Status, refuse};
use crate::cli::{Output, complain, say};
use crate::log::write_change;

/// Unless --limit says otherwise.
const LIST_LIMIT: u32 = 100;

pub(super) async fn list(letters: &Letters, args: &ListArgs) -> anyhow::Result<Exit> {
    let mut filter = args.filter.filter(Status::Unresolved);
    let limit = *filter.limit.get_or_insert(LIST_LIMIT);
    let found = letters.target.dead_letters(&filter, false).await.map_err(refuse)?;
    match args.output {
        Output::Json => say(&serde_json::to_string_pretty(&found).context("write the letters")?),
        Output::Table => {
            let mut table = table(["ID", "TABLE", "ERROR TYPE", "CODE", "STATUS", "ATTEMPTS", "FIRST FAILED"]);
            for letter in &found {
                let DeadLetter { id, table: name, error_type, code, status, attempts, first_failed_at, .. } = letter;
                let name = name.as_deref().unwrap_or("-");
                table.add_row([
                    &id.to_string(),
                    name,
                    error_type.name(),
                    code,
                    status,
                    &attempts.to_string(),
                    first_failed_at,
                ]);
            }
            say(&plain(&table));
            let shown = found.len();
            if args.filter.limit.is_none() && u32::try_from(shown) == Ok(limit) {
                say(&format!("the oldest {shown}; --limit shows more, `cdc dlq stats` counts all"));
            } else {
                say(&format!("{shown} letters"));
            }
        }
    }
    Ok(Exit::Success)
}

pub(super) async fn show(letters: &Letters, args: &ShowArgs) -> anyhow::Result<Exit> {
    let mut filter = args.filter.filter(Status::Unresolved);
    filter.limit.get_or_insert(LIST_LIMIT);
    let found = letters.target.dead_letters(&filter, args.values).await.map_err(refuse)?;
    let needs_schemas = args.values && found.iter().any(|letter| letter.kind == "record");
    let schemas = if needs_schemas { letters.schemas(|problem| complain(&problem)).await } else { None };
    let mut shown = Vec::with_capacity(found.len());
    for letter in &found {
        let mut value = serde_json::to_value(letter).context("write a letter")?;
        if args.values {
            value["values"] = letter.values();
            let decode = |original: &_, stored: &_| (letters.decode)(original, stored, schemas.as_ref());
            let changes = letters.target.dead_letter_changes(letter, &decode).await.map_err(refuse)?;
            // What cannot be decoded is still there as bytes.
            value["changes"] = changes
                .unwrap_or_default()
                .iter()
                .map(|change| {
                    let mut text = Vec::new();
                    write_change(&mut text, change);
                    serde_json::from_slice(&text).unwrap_or(Value::Null)
                })
                .collect();
        }
        shown.push(value);
    }
    match args.output {
        Output::Json => say(&serde_json::to_string_pretty(&shown).context("write the letters")?),
        Output::Table => {
            for letter in &shown {
                let mut lines = String::new();
                for (field, value) in letter.as_object().into_iter().flatten() {
                    field_lines(&mut lines, field, value);
                }
                say(&format!("{lines}\n "));
            }
        }
    }
    Ok(if found.is_empty() { Exit::Failure } else { Exit::Success })
}

/// A field, or a line per item of one that is a list.
fn field_lines(out: &mut String, field: &str, value: &Value) {
    use std::fmt::Write as _;
    let items = match value {
        Value::Array(items) => items.iter().map(ToString::to_string).collect(),
        Value::Null => vec!["-".to_owned()],
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    };
    for item in items {
        writeln!(out, "{field:<22} {item}").expect("a string takes everything");
    }
}

pub(super) async fn stats(letters: &Letters, args: &ListArgs) -> anyhow::Result<Exit> {
    let groups = letters.target.dead_letter_summary(&args.filter.filter(Status::All)).await.map_err(refuse)?;
    let total: i64 = groups.iter().map(|group| group.letters).sum();
    let unresolved: i64 = groups.iter().filter(|group| group.status == "unresolved").map(|group| group.letters).sum();
    match args.output {
        Output::Json => {
            let stats = json!({"total": total, "unresolved": unresolved, "groups": groups});
            say(&serde_json::to_string_pretty(&stats).context("write the numbers")?);
        }
        Output::Table => {
            let mut table =
                table(["TABLE", "ERROR TYPE", "CODE", "STATUS", "LETTERS", "ATTEMPTS", "OLDEST", "LAST FAILED"]);
            for LetterSummary { table: name, error_type, code, status, letters, attempts, oldest, newest } in &groups {
                let name = name.as_deref().unwrap_or("-");
                let (letters, attempts) = (letters.to_string(), attempts.to_string());
                table.add_row([name, error_type.name(), code, status, &letters, &attempts, oldest, newest]);
            }
            say(&plain(&table));
            say(&format!("{total} letters, {unresolved} of them unresolved"));
        }
    }
    Ok(Exit::Success)
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table
}

fn plain(table: &Table) -> String {
    table.to_string().lines().map(|line| line.trim().to_owned() + "\n").collect()
}
