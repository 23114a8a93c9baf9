//! What a decoder allocates, counted.

use allocation_counter::measure;
use cdc_commitlog::{Decoder, Schemas as _};
use cdc_model::TableSchema;

use crate::support::{Golden, provenance};

#[test]
fn what_is_not_captured_costs_no_allocation() {
    let golden = Golden::load("cassandra-5.0-v7");
    let entries = golden.entries();
    let mut decoder = Decoder::new();
    let mut out = Vec::new();
    let mut decode = |captured: &dyn Fn(&TableSchema) -> bool| {
        let counted = measure(|| {
            for (_, payload) in &entries {
                decoder.decode(golden.format, payload, provenance(), &golden.tables, &captured, &mut out).unwrap();
            }
        });
        let changes = out.len();
        out.clear();
        (counted.count_total, changes)
    };
    // Of a batch over several tables all but the last are walked through; the first time their columns are learned.
    let batches = entries.iter().filter(|(_, payload)| payload[0] > 1).count();
    assert!(batches > 3 && entries.len() > 50);
    decode(&|_| false);
    assert_eq!(decode(&|_| false), (0, 0));
    // The counter counts.
    let (allocations, changes) = decode(&|_| true);
    assert!(allocations >= changes as u64 && changes > 50, "{allocations} {changes}");
}

#[test]
fn a_row_of_simple_columns_costs_one_allocation() {
    let golden = Golden::load("cassandra-5.0-v7");
    let entries = golden.entries();
    let plain = golden.tables.0.values().find(|table| table.full_name() == "golden.kinds").unwrap().id;
    let table = golden.tables.table(plain).unwrap();
    // The first statement: a row of three key columns and two others.
    let (_, payload) = entries.iter().find(|(_, payload)| payload[1..17] == *table.id.0.as_bytes()).unwrap();
    let mut decoder = Decoder::new();
    let mut out = Vec::new();
    for allocations in [None, Some(1)] {
        out.clear();
        let counted = measure(|| {
            decoder.decode(golden.format, payload, provenance(), &golden.tables, &|_| true, &mut out).unwrap();
        });
        assert_eq!(out.len(), 1);
        // The columns, as short keys are held in place; the first time more is learned.
        assert!(allocations.is_none_or(|wanted| counted.count_total == wanted), "{}", counted.count_total);
    }
}
