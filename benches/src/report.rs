//! Results as a table for people and as JSON for machines.

use std::{fs, path::Path};

use anyhow::Context;
use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Figure {
    metric: String,
    value: f64,
    unit: &'static str,
    conditions: String,
}

pub(crate) struct Report {
    name: &'static str,
    conditions: String,
    figures: Vec<Figure>,
}

impl Report {
    pub(crate) fn new(name: &'static str, conditions: String) -> Self {
        Self { name, conditions, figures: Vec::new() }
    }

    pub(crate) fn add(&mut self, metric: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push(Figure { metric: metric.into(), value, unit, conditions: self.conditions.clone() });
    }

    /// Prints the table and writes `target/bench/NAME.json`, a list of `{metric, value, unit, conditions}`.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(["metric", "value", "unit"]);
        for figure in &self.figures {
            table.add_row([figure.metric.clone(), rounded(figure.value), figure.unit.to_owned()]);
        }
        self.finish_as(&table)
    }

    /// The same with a table of its own.
    #[expect(clippy::print_stdout, reason = "the result")]
    pub(crate) fn finish_as(self, table: &comfy_table::Table) -> anyhow::Result<()> {
        println!("{}: {}\n{table}", self.name, self.conditions);
        let folder = Path::new("target/bench");
        fs::create_dir_all(folder).context("create target/bench")?;
        let path = folder.join(format!("{}.json", self.name));
        fs::write(&path, serde_json::to_vec_pretty(&self.figures)?)
            .with_context(|| format!("write {}", path.display()))?;
        println!("written to {}", path.display());
        Ok(())
    }
}

/// Three digits that mean something.
fn rounded(value: f64) -> String {
    match value {
        v if v.abs() >= 100.0 => format!("{v:.0}"),
        v if v.abs() >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
