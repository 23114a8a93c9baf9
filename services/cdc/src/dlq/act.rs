//! `cdc dlq replay` and `discard`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;
use cdc_postgres::{Replayed, Undecodable};
use cdc_runtime::{Exit, Refusal};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{DiscardArgs, Letters, ReplayArgs, Status, refuse};
use crate::cli::{Output, complain, say};

pub(super) async fn replay(letters: &Letters, args: &ReplayArgs) -> anyhow::Result<Exit> {
    let ids = letters.target.dead_letter_ids(&args.filter.filter(Status::Unresolved)).await.map_err(refuse)?;
    // On a terminal only.
    let progress = ProgressBar::new(ids.len() as u64);
    progress.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} letters, {eta} left")?);
    let mut outcomes = Vec::with_capacity(ids.len());
    let replaying = letters.replay(
        &ids,
        args.dry_run,
        |problem| complain(&problem),
        |id, outcome| {
            progress.inc(1);
            outcomes.push((id, outcome));
        },
    );
    let result = replaying.await.map_err(refuse);
    progress.finish_and_clear();
    let mut counts = BTreeMap::from([("applied", 0), ("superseded", 0), ("refused", 0), ("settled", 0)]);
    for (_, outcome) in &outcomes {
        let name = match outcome {
            Replayed::Applied => "applied",
            Replayed::Superseded => "superseded",
            Replayed::Refused(_) => "refused",
            Replayed::Settled => "settled",
        };
        *counts.entry(name).or_default() += 1;
    }
    match args.output {
        Output::Json => {
            let each: Vec<_> = outcomes
                .iter()
                .map(|(id, outcome)| {
                    let mut each = json!(outcome);
                    each["id"] = json!(id);
                    each
                })
                .collect();
            let report = json!({"matched": ids.len(), "dry_run": args.dry_run, "counts": counts, "letters": each});
            say(&serde_json::to_string_pretty(&report).context("write the outcome")?);
        }
        Output::Table => {
            for (id, outcome) in &outcomes {
                if let Replayed::Refused(Undecodable { error_type, code, message }) = outcome {
                    say(&format!("{id}  {error_type}  {code}  {message}"));
                }
            }
            let would = if args.dry_run { "would be " } else { "" };
            say(&format!(
                "{} letters: {} {would}applied, {} in PostgreSQL already or overtaken by newer data, {} {would}refused, {} \
                 not unresolved",
                ids.len(),
                counts["applied"],
                counts["superseded"],
                counts["refused"],
                counts["settled"],
            ));
        }
    }
    result?;
    Ok(if counts["refused"] == 0 { Exit::Success } else { Exit::Failure })
}

pub(super) async fn discard(letters: &Letters, args: &DiscardArgs) -> anyhow::Result<Exit> {
    let ids = letters.target.dead_letter_ids(&args.filter.filter(Status::Unresolved)).await.map_err(refuse)?;
    let matched = ids.len();
    let discarded = if args.dry_run || ids.is_empty() {
        0
    } else if args.yes || confirmed(matched)? {
        letters.target.discard_dead_letters(ids, &args.reason).await.map_err(refuse)?
    } else {
        say("nothing was changed");
        return Ok(Exit::Failure);
    };
    match args.output {
        Output::Json => {
            let report = json!({"matched": matched, "dry_run": args.dry_run, "discarded": discarded});
            say(&serde_json::to_string_pretty(&report).context("write the outcome")?);
        }
        Output::Table if args.dry_run => say(&format!("{matched} letters would be discarded")),
        Output::Table => say(&format!("{discarded} letters discarded")),
    }
    Ok(Exit::Success)
}

fn confirmed(letters: usize) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        let message = format!("{letters} letters would be discarded: give --yes if that is meant");
        return Err(Refusal { exit: Exit::Usage, message }.into());
    }
    write!(io::stderr(), "discard {letters} letters for good? [y/N] ").context("ask on standard error")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
