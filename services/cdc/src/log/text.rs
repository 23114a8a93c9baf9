//! Changes as a line for people. Programs read the JSON.

use cdc_commitlog::Truncation;
use cdc_model::{Bound, Cell, CellValue, Change, ChangeBody, ColumnState, RowState, SegmentPosition, TableSchema};
use std::io::Write as _;

use super::json::{columns_by_name, in_type_order, write_path};
use super::value::{put, write_value, year_month_day};

/// `position table what key column=value ... @time`; a part written at another time than the last shows its own.
pub(super) fn write_change(out: &mut Vec<u8>, change: &Change) {
    let table = &change.table;
    let what = match &change.body {
        ChangeBody::Row { row, .. } if row.liveness.is_some() => "insert",
        ChangeBody::Row { row, .. } if row.deletion.is_some() && row.columns.is_empty() => "delete",
        ChangeBody::Row { .. } => "update",
        ChangeBody::Static(_) => "update static",
        ChangeBody::DeletePartition(_) => "delete partition",
        ChangeBody::DeleteRange(_) => "delete range",
    };
    put!(out, "{} {} {what}", change.provenance.position, table.full_name());
    let key = table.split_partition_key(&change.partition_key).unwrap_or_default();
    for (column, value) in table.partition_key.iter().zip(key) {
        put!(out, " {}=", column.name);
        write_value(out, &column.ty, &value);
    }
    match &change.body {
        ChangeBody::Row { clustering, row } => {
            write_clustering(out, table, clustering.values());
            write_row(out, table, row);
        }
        ChangeBody::Static(row) => write_row(out, table, row),
        ChangeBody::DeletePartition(deletion) => write_time(out, deletion.time.0),
        ChangeBody::DeleteRange(range) => {
            write_bound(out, table, &range.start, ["from", "behind"]);
            write_bound(out, table, &range.end, ["to", "to before"]);
            write_time(out, range.deletion.time.0);
        }
    }
}

pub(super) fn write_truncation(out: &mut Vec<u8>, at: SegmentPosition, table: &TableSchema, truncation: &Truncation) {
    put!(out, "{at} {} truncate", table.full_name());
    if let Some(at) = truncation.at {
        put!(out, " up to {at}");
    }
    write_time(out, truncation.wall_ms.saturating_mul(1000));
}

fn write_clustering<'v>(out: &mut Vec<u8>, table: &TableSchema, values: impl Iterator<Item = Option<&'v [u8]>>) {
    for (column, value) in table.clustering.iter().zip(values) {
        put!(out, " {}=", column.name);
        match value {
            Some(value) => write_value(out, &column.ty, value),
            None => put!(out, "null"),
        }
    }
}

fn write_bound(out: &mut Vec<u8>, table: &TableSchema, bound: &Bound, [inclusive, exclusive]: [&str; 2]) {
    if !bound.prefix.is_empty() {
        put!(out, " {}", if bound.inclusive { inclusive } else { exclusive });
        write_clustering(out, table, bound.prefix.iter().map(|value| Some(&value[..])));
    }
}

/// The write time shown last and what stands before the next one.
struct Times<'a> {
    out: &'a mut Vec<u8>,
    current: Option<i64>,
}

impl Times<'_> {
    /// Before a part: shows the time of those before it, if this one's is another.
    fn next(&mut self, time: i64) -> &mut Vec<u8> {
        if self.current.is_some_and(|current| current != time) {
            self.end();
        }
        self.current = Some(time);
        self.out.push(b' ');
        self.out
    }

    fn end(&mut self) {
        if let Some(time) = self.current.take() {
            write_time(self.out, time);
        }
    }
}

fn write_row(out: &mut Vec<u8>, table: &TableSchema, row: &RowState) {
    let mut times = Times { out, current: None };
    if let Some(deletion) = row.deletion {
        put!(times.next(deletion.time.0), "(row deleted)");
    }
    if let Some(marker) = row.liveness {
        let out = times.next(marker.time.0);
        put!(out, "(marker)");
        write_ttl(out, marker.ttl);
    }
    for (name, ty, state) in columns_by_name(table, row) {
        match state {
            ColumnState::Simple(cell) => {
                let out = times.next(cell.time.0);
                put!(out, "{name}=");
                write_cell(out, cell, |out, value| write_value(out, ty, value));
            }
            ColumnState::Complex(complex) => {
                if let Some(deletion) = complex.deletion {
                    put!(times.next(deletion.time.0), "{name}=(cleared)");
                }
                for (path, cell) in in_type_order(ty, &complex.cells) {
                    let out = times.next(cell.time.0);
                    put!(out, "{name}[");
                    let ty = write_path(out, ty, path);
                    put!(out, "]=");
                    write_cell(out, cell, |out, value| match ty {
                        Some(ty) => write_value(out, ty, value),
                        None => put!(out, "(set)"),
                    });
                }
            }
        }
    }
    times.end();
}

fn write_cell(out: &mut Vec<u8>, cell: &Cell, value: impl FnOnce(&mut Vec<u8>, &[u8])) {
    match &cell.value {
        CellValue::Tombstone => put!(out, "(deleted)"),
        CellValue::Counter(_) => put!(out, "(counter)"),
        CellValue::Live(bytes) => value(out, bytes),
    }
    write_ttl(out, cell.ttl);
}

fn write_ttl(out: &mut Vec<u8>, ttl: i32) {
    if ttl != 0 {
        put!(out, "(ttl {ttl})");
    }
}

/// As a date where it is one, which a time chosen by the writer need not be.
fn write_time(out: &mut Vec<u8>, micros: i64) {
    put!(out, " @{}", instant(micros));
}

pub(super) fn instant(micros: i64) -> String {
    const DAY: i64 = 86_400_000_000;
    let (year @ 1980..=2200, month, day) = year_month_day(micros.div_euclid(DAY)) else { return micros.to_string() };
    let rest = micros.rem_euclid(DAY);
    let seconds = rest / 1_000_000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{:02}.{:06}Z", seconds % 60, rest % 1_000_000)
}
