//! `cdc log stat`: numbers only, no values and no keys.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;

use cdc_commitlog::{Fence, ReadOptions, ReadOutcome, SegmentFile, read_index};
use cdc_model::{Change, ChangeBody, ColumnState, RowState, SegmentPosition, TableId, WriteTime};
use cdc_runtime::Exit;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use uuid::Uuid;

use super::input::{InputArgs, Open, describe, explain};
use super::reading::{Decoded, Reading, Wanted};
use super::schema::SourceArgs;
use super::text::instant;
use crate::cli::{Output, say};

#[derive(Args, Debug)]
pub(crate) struct StatArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    source: SourceArgs,
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// One segment.
#[derive(Serialize, Default, Debug)]
struct Stat {
    segment: u64,
    file: String,
    /// Of the format; from the file's name.
    version: u32,
    encoding: &'static str,
    /// Of the file.
    bytes: u64,
    index: Option<IndexStat>,
    sections: u64,
    entries: u64,
    /// In entries, without what frames them.
    payload_bytes: u64,
    /// Position behind what was read.
    position: u64,
    tables: Vec<TableStat>,
    damage: Vec<DamageStat>,
    /// Why it could not be read to its end.
    error: Option<String>,
}

#[derive(Serialize, Clone, Copy, Debug)]
struct IndexStat {
    offset: u64,
    completed: bool,
}

#[derive(Serialize, Debug)]
struct DamageStat {
    position: u64,
    bytes: u64,
    kind: String,
}

#[derive(Serialize, Clone, Default, Debug)]
struct TableStat {
    /// `keyspace.name`; absent of a table that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    id: Uuid,
    entries: u64,
    /// Of those entries; one with several tables counts for each.
    payload_bytes: u64,
    changes: u64,
    /// Microseconds since 1970.
    oldest_write_time: Option<i64>,
    newest_write_time: Option<i64>,
}

pub(super) fn run(args: &StatArgs) -> anyhow::Result<ExitCode> {
    let options = args.input.options()?;
    let mut reading = Reading::new(args.source.history()?, Wanted::all());
    let (mut failed, mut damaged) = (false, false);
    for file in args.input.segments()? {
        let stat = segment(&file, &options, &mut reading);
        failed |= stat.error.is_some();
        damaged |= !stat.damage.is_empty();
        match args.output {
            Output::Json => say(&serde_json::to_string(&stat)?),
            Output::Table => say(&table(&stat)),
        }
    }
    Ok(match (failed, damaged || reading.damaged) {
        (true, _) => Exit::Failure.into(),
        (false, true) => Exit::Damage.into(),
        (false, false) => Exit::Success.into(),
    })
}

fn segment(file: &SegmentFile, options: &ReadOptions, reading: &mut Reading) -> Stat {
    let mut stat = Stat {
        segment: file.id.0,
        file: file.path.display().to_string(),
        version: file.version,
        bytes: file.path.metadata().map_or(0, |metadata| metadata.len()),
        index: read_index(file)
            .ok()
            .flatten()
            .map(|index| IndexStat { offset: index.offset, completed: index.completed }),
        ..Stat::default()
    };
    let mut open = match Open::existing(file, options) {
        Ok(Some(open)) => open,
        Ok(None) => {
            stat.encoding = "empty";
            return stat;
        }
        Err(sentence) => {
            stat.encoding = "unknown";
            stat.error = Some(sentence);
            return stat;
        }
    };
    stat.encoding = open.reader.encoding();
    let finished = open.is_finished();
    let mut tables: BTreeMap<TableId, TableStat> = BTreeMap::new();
    loop {
        let step = open.step(Fence::Marker, finished, &mut |format, at: SegmentPosition, payload| {
            stat.entries += 1;
            let bytes = payload.len() as u64;
            stat.payload_bytes += bytes;
            count(&mut tables, &reading.entry(format, at, payload), bytes);
        });
        match step {
            Ok((outcome, _, damage)) => {
                stat.damage.extend(damage.iter().map(|damage| DamageStat {
                    position: damage.at.offset,
                    bytes: damage.bytes,
                    kind: describe(damage),
                }));
                if outcome != ReadOutcome::More {
                    break;
                }
            }
            Err(error) => {
                stat.error = Some(explain(&error));
                break;
            }
        }
    }
    stat.sections = open.reader.sections();
    stat.position = open.reader.offset();
    stat.tables = tables.into_values().collect();
    stat.tables.sort_by(|a, b| (b.payload_bytes, a.id).cmp(&(a.payload_bytes, b.id)));
    stat
}

fn count(tables: &mut BTreeMap<TableId, TableStat>, decoded: &Decoded<'_>, bytes: u64) {
    let mut seen = HashSet::new();
    let known = decoded.changes.iter().map(|change| change.table.id);
    for id in known.chain(decoded.unknown) {
        if seen.insert(id) {
            let stat = tables.entry(id).or_insert_with(|| TableStat { id: id.0, ..TableStat::default() });
            stat.entries += 1;
            stat.payload_bytes += bytes;
        }
    }
    for change in decoded.changes {
        let stat = tables.entry(change.table.id).or_default();
        stat.table.get_or_insert_with(|| change.table.full_name());
        stat.changes += 1;
        times(change, &mut |time| {
            stat.oldest_write_time = Some(stat.oldest_write_time.map_or(time, |oldest| oldest.min(time)));
            stat.newest_write_time = Some(stat.newest_write_time.map_or(time, |newest| newest.max(time)));
        });
    }
}

/// Every write time in a change.
fn times(change: &Change, time: &mut impl FnMut(i64)) {
    let mut each = |WriteTime(at): WriteTime| time(at);
    match &change.body {
        ChangeBody::Row { row, .. } | ChangeBody::Static(row) => row_times(row, &mut each),
        ChangeBody::DeletePartition(deletion) => each(deletion.time),
        ChangeBody::DeleteRange(range) => each(range.deletion.time),
    }
}

fn row_times(row: &RowState, each: &mut impl FnMut(WriteTime)) {
    row.liveness.iter().for_each(|marker| each(marker.time));
    row.deletion.iter().for_each(|deletion| each(deletion.time));
    for (_, state) in &row.columns {
        match state {
            ColumnState::Simple(cell) => each(cell.time),
            ColumnState::Complex(complex) => {
                complex.deletion.iter().for_each(|deletion| each(deletion.time));
                complex.cells.iter().for_each(|(_, cell)| each(cell.time));
            }
        }
    }
}

fn table(stat: &Stat) -> String {
    let index = match stat.index {
        None => "no index".to_owned(),
        Some(IndexStat { completed: true, .. }) => "completed".to_owned(),
        Some(IndexStat { offset, .. }) => format!("synced to {offset}"),
    };
    let mut text = format!(
        "{}\n  version {}, {}, {} bytes, {index}\n  {} sections, {} entries of {} bytes, read to {}\n",
        stat.file,
        stat.version,
        stat.encoding,
        stat.bytes,
        stat.sections,
        stat.entries,
        stat.payload_bytes,
        stat.position
    );
    if !stat.tables.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["table", "entries", "bytes", "changes", "oldest write", "newest write"]);
        for column in 1..4 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let time = |time: Option<i64>| time.map_or_else(|| "-".to_owned(), instant);
        for of in &stat.tables {
            let name = of.table.clone().unwrap_or_else(|| format!("{} (not known)", of.id));
            let [entries, bytes, changes] = [of.entries, of.payload_bytes, of.changes].map(|number| number.to_string());
            table.add_row([name, entries, bytes, changes, time(of.oldest_write_time), time(of.newest_write_time)]);
        }
        for line in table.to_string().lines() {
            text.push_str(&format!("  {}\n", line.trim_end()));
        }
    }
    let damage = stat.damage.iter().map(|damage| &damage.kind).chain(&stat.error);
    damage.for_each(|sentence| text.push_str(&format!("  {sentence}\n")));
    text
}
