//! Schemas followed in the log. The segments of `golden/schema` are read from the start with nothing known beforehand;
//! the expectations were written down from its `statements.cql`.

use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;
use cdc_commitlog::{
    Decoder, Fence, Followed, Format, SchemaFile, SchemaHistory, Schemas as _, SegmentFile, SegmentReader,
    list_segments,
};
use cdc_model::{
    Bound, CellValue, Change, ChangeBody, ColumnState, CqlType, CqlValue, RowState, SegmentPosition, TableSchema,
    ValueBytes, WriteTime,
};

use crate::support::{provenance, read, unpack};

const VERSIONS: [&str; 3] = ["4.0.17", "4.1.9", "5.0.5"];
const T0: i64 = 1_700_000_000_000_000;

/// All a node logged, in order, and its schema at the end as CQL shows it.
pub(crate) struct Recording {
    pub(crate) segments: Vec<(SegmentFile, Vec<(u64, Bytes)>)>,
    schema: SchemaFile,
}

impl Recording {
    fn of(version: &str) -> Self {
        Self::load("schema", version)
    }

    /// A folder of those `golden_schema.rs` makes.
    pub(crate) fn load(folder: &str, version: &str) -> Self {
        let packed_at = format!("{folder}/{version}");
        let folder = tempfile::tempdir().unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(&packed_at);
        for entry in fs::read_dir(golden).unwrap() {
            let packed = entry.unwrap().file_name().into_string().unwrap();
            let name = packed.strip_suffix(".gz").unwrap();
            let mut bytes = unpack(&format!("{packed_at}/{packed}"));
            if name.ends_with(".log") {
                // As on disk: zeros up to the segment size.
                bytes.resize(4 << 20, 0);
            }
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        let schema = SchemaFile::read(&folder.path().join("schema.json")).unwrap();
        let segments = list_segments(folder.path()).unwrap().into_iter().map(|file| {
            let mut reader = SegmentReader::open(&file, 0, SegmentReader::ENTRY_BYTES_MAX).unwrap().unwrap();
            let (entries, report) = read(&mut reader, Fence::Marker, true);
            assert_eq!(report.damage, []);
            (file, entries)
        });
        Self { segments: segments.collect(), schema }
    }

    /// Decodes everything and follows the schema on the way.
    fn follow(
        &self,
        history: &mut SchemaHistory,
        mut each: impl FnMut(SegmentPosition, &[Change], &Followed, &mut SchemaHistory),
    ) {
        let mut decoder = Decoder::new();
        for (file, entries) in &self.segments {
            for (offset, payload) in entries {
                let mut out = Vec::new();
                let captured = |table: &TableSchema| table.keyspace == "ddl" || history.follows(table.id);
                decoder.decode(Format::V7, payload, provenance(), history, &captured, &mut out).unwrap();
                let followed = history.apply(&out);
                each(SegmentPosition { segment: file.id, offset: *offset }, &out, &followed, history);
            }
        }
    }
}

fn time(time: WriteTime) -> String {
    match time.0 - T0 {
        offset @ -1..1000 => format!("@{offset}"),
        _ => format!("@({})", time.0),
    }
}

fn show(ty: &CqlType, bytes: &[u8]) -> String {
    fn text(value: CqlValue) -> String {
        let option = |value: Option<CqlValue>| value.map_or("null".into(), text);
        match value {
            CqlValue::Text(text) => format!("'{text}'"),
            CqlValue::Int(value) => value.to_string(),
            CqlValue::BigInt(value) => value.to_string(),
            CqlValue::Udt(fields) => {
                let field = |(name, value): (String, _)| format!("{name}:{}", option(value));
                format!("{{{}}}", fields.into_iter().map(field).collect::<Vec<_>>().join(","))
            }
            other => format!("{other:?}"),
        }
    }
    text(CqlValue::decode(ty, bytes).unwrap())
}

fn row(table: &TableSchema, row: &RowState) -> String {
    let mut parts: Vec<String> = Vec::new();
    parts.extend(row.liveness.map(|liveness| format!("live{}", time(liveness.time))));
    let cell = |ty: &CqlType, cell: &cdc_model::Cell| match &cell.value {
        CellValue::Live(bytes) => format!("{}{}", show(ty, bytes), time(cell.time)),
        _ => format!("x{}", time(cell.time)),
    };
    let mut columns: BTreeMap<&str, String> = BTreeMap::new();
    for (id, state) in &row.columns {
        let column = table.column(*id);
        assert_eq!(column.dropped, None, "{}", column.name);
        let text = match (state, &column.ty) {
            (ColumnState::Simple(state), ty) => cell(ty, state),
            (ColumnState::Complex(complex), CqlType::Udt { fields, .. }) => {
                let field = |(path, state): &(ValueBytes, _)| {
                    let (name, ty) = &fields[usize::from(u16::from_be_bytes(path[..].try_into().unwrap()))];
                    format!("{name}:{}", cell(ty, state))
                };
                let deletion = complex.deletion.map(|deletion| format!("x{}", time(deletion.time)));
                let parts: Vec<_> = deletion.into_iter().chain(complex.cells.iter().map(field)).collect();
                format!("[{}]", parts.join(", "))
            }
            (_, ty) => panic!("{ty:?}"),
        };
        columns.insert(&column.name, text);
    }
    parts.extend(columns.into_iter().map(|(name, text)| format!("{name}={text}")));
    parts.join(" ")
}

/// Names the key columns too, since they are renamed.
fn line(change: &Change) -> String {
    let table = &change.table;
    let named = |columns: &[cdc_model::KeyColumn], values: Vec<Option<ValueBytes>>| {
        let one = |(column, value): (&cdc_model::KeyColumn, Option<ValueBytes>)| {
            let value = value.map_or("null".into(), |value| show(&column.ty, &value));
            format!("{}={value}", column.name)
        };
        columns.iter().zip(values).map(one).collect::<Vec<_>>().join(" ")
    };
    let key = table.split_partition_key(&change.partition_key).unwrap().into_iter().map(Some).collect();
    let body = match &change.body {
        ChangeBody::Row { clustering, row: state } => {
            format!(
                "({}) {}",
                named(&table.clustering, clustering.values().map(|value| value.map(ValueBytes::from)).collect()),
                row(table, state)
            )
        }
        ChangeBody::Static(state) => format!("static {}", row(table, state)),
        ChangeBody::DeletePartition(deletion) => format!("partition deleted{}", time(deletion.time)),
        ChangeBody::DeleteRange(range) => {
            let bound = |bound: &Bound| {
                let values = bound.prefix.iter().cloned().map(Some).collect();
                format!("{} {}", named(&table.clustering, values), if bound.inclusive { "incl" } else { "excl" })
            };
            format!("range {} .. {} deleted{}", bound(&range.start), bound(&range.end), time(range.deletion.time))
        }
    };
    format!("{} {}: {body}", table.name, named(&table.partition_key, key))
}

const EXPECTED: &str = "
t id=1: static s='st'@1
t id=1: (Ck='c') live@1 a=1@1 addr=[x@0, street:'Elm'@1, In:{x:1}@1] faddr={street:'Oak',In:{x:2}}@1 gone='text'@1
t id=1: (Ck='c') live@2 b='added'@2
t id=1: (Ck='c') gone='late'@(3000000000000000)
t id=1: (Ck='c') live@3 a=3@3
t id=1: (Ck='c') live@(3000000000000004) a=4@(3000000000000004) gone=Blob(b\"\\0\\xff\")@(3000000000000004)
t id=1: (Ck='c') live@5 a=5@5
t Ident=2: (ck='c') live@6 a=6@6
t Ident=2: (ck='z') live@7 addr=[x@6, street:'Ash'@7, zip:7@7] faddr={street:'Fir',In:{x:7},zip:7}@7
t Ident=2: (ck='z') live@8 addr=[x@7, road:'Yew'@8, In:{x:8,y:'y'}@8] faddr={road:'Bay',In:null,zip:null}@8
t Ident=2: range  incl .. ck='m' excl deleted@9
quiet k=2: () live@10 v='hush'@10
t Ident=2: (ck='q') live@10 b='loud'@10
TRUNCATE
t Ident=3: (ck='after') live@11 a=11@11
compact_static k=4: static a=4@12 b='four'@12
compact_keys k=5: (c=5) value=Empty@13
compact_dense k=6: (c1=6 c2='six') v='v'@14
compact_dense k=6: (c1=7 c2=null) v='half'@15
compact_dense k=6: range c1=6 incl .. c1=6 incl deleted@16
compact_static k=4: static a=17@17
compact_static k=4: (column1='c') live@17 value=Blob(b\"\\x17\")@17
t id='new': () live@18 a=18@18
t id='new': () live@19 a=19@19
t id=20: () live@20 v='again'@20";

/// The tables of the test's keyspace in a form that does not depend on the order of their columns.
fn described<'a>(tables: impl IntoIterator<Item = &'a TableSchema>) -> BTreeMap<String, String> {
    let describe = |table: &TableSchema| {
        let mut columns: Vec<_> = table.columns.iter().map(|column| format!("{column:?}")).collect();
        columns.sort();
        let keys = (&table.partition_key, &table.clustering);
        format!("{} {keys:?} {columns:?} {} {}", table.full_name(), table.cdc, table.gc_grace_seconds)
    };
    tables.into_iter().map(|table| (table.id.0.to_string(), describe(table))).collect()
}

/// What the log says of the test's keyspace, line by line.
fn lines(changes: &[Change], followed: &Followed, history: &SchemaHistory) -> Vec<String> {
    let own = changes.iter().filter(|change| change.table.keyspace == "ddl");
    let mut lines: Vec<String> = own.map(line).collect();
    // The two tables of one mutation come in no particular order.
    lines.sort_by_key(|line| !line.starts_with("quiet"));
    let truncated = followed.truncations.iter().filter_map(|truncation| history.table(truncation.table));
    lines.extend(truncated.filter(|table| table.keyspace == "ddl").map(|_| "TRUNCATE".to_owned()));
    lines
}

fn assert_lines(lines: &[String], what: &str) {
    let expected: Vec<&str> = EXPECTED.trim().lines().collect();
    for (index, (ours, expected)) in lines.iter().zip(&expected).enumerate() {
        assert_eq!(ours, expected, "{what}, change {index}");
    }
    assert_eq!(lines.len(), expected.len(), "{what}");
}

#[test]
fn every_write_is_decoded_with_the_schema_it_was_written_with_from_the_log_alone() {
    for version in VERSIONS {
        let mut all = Vec::new();
        Recording::of(version).follow(&mut SchemaHistory::new(), |_, changes, followed, history| {
            assert_eq!(followed.faults, [], "{version}");
            all.extend(lines(changes, followed, history));
        });
        assert_lines(&all, version);
    }
}

#[test]
fn the_schema_that_was_followed_is_the_one_that_cql_shows() {
    for version in VERSIONS {
        let recording = Recording::of(version);
        let mut history = SchemaHistory::new();
        recording.follow(&mut history, |_, _, _, _| {});
        let (shown, faults) = recording.schema.tables();
        assert_eq!(faults, [], "{version}");
        assert!(shown.len() > 40, "{version}");
        // Of the log alone only what was created in it is known; that is everything, the node having started in it.
        let (followed, _) = history.to_file().tables();
        assert_eq!(described(&followed), described(&shown), "{version}");
    }
}

#[test]
fn a_history_that_is_saved_and_loaded_after_each_mutation_goes_on_alike() {
    for version in VERSIONS {
        let recording = Recording::of(version);
        let mut all = Vec::new();
        recording.follow(&mut SchemaHistory::new(), |_, changes, followed, history| {
            all.extend(lines(changes, followed, history));
            if !followed.tables.is_empty() || !followed.dropped.is_empty() {
                let saved = SchemaFile::parse(history.to_file().to_json().as_bytes()).unwrap();
                let (loaded, faults) = SchemaHistory::from_file(saved.clone());
                assert_eq!(faults, [], "{version}");
                assert_eq!(loaded.to_file(), saved, "{version}");
                *history = loaded;
            }
        });
        assert_lines(&all, version);
    }
}

#[test]
fn a_schema_that_is_ahead_of_the_log_is_brought_no_further_back_than_it_was() {
    for version in VERSIONS {
        let recording = Recording::of(version);
        let (mut history, faults) = SchemaHistory::from_file(recording.schema.clone());
        assert_eq!(faults, [], "{version}");
        let live = |history: &SchemaHistory| described(&history.to_file().tables().0);
        let shown = live(&history);
        // Tables that were dropped later were not in the file, so they are unknown until the log creates them.
        let mut all = Vec::new();
        recording.follow(&mut history, |_, changes, followed, history| all.extend(lines(changes, followed, history)));
        assert_lines(&all, version);
        assert_eq!(live(&history), shown, "{version}");
    }
}

#[test]
fn the_log_repeated_or_in_another_order_leads_to_the_same_schema() {
    let recording = Recording::of("5.0.5");
    let mut mutations = Vec::new();
    let mut history = SchemaHistory::new();
    recording.follow(&mut history, |_, changes, _, _| {
        if changes.iter().any(|change| change.table.keyspace == "system_schema") {
            mutations.push(changes.to_vec());
        }
    });
    let whole = history.to_file();
    for mutation in &mutations {
        history.apply(mutation);
    }
    assert_eq!(history.to_file().rows, whole.rows);
    let mut backwards = SchemaHistory::new();
    for mutation in mutations.iter().rev() {
        backwards.apply(mutation);
    }
    // A table's columns came before its creation, so all of it is known only at the end.
    assert_eq!(described(&backwards.to_file().tables().0), described(&whole.tables().0));
}

#[test]
fn a_table_of_which_only_a_change_is_known_is_not_guessed() {
    let recording = Recording::of("5.0.5");
    let mut mutations = Vec::new();
    recording.follow(&mut SchemaHistory::new(), |_, changes, followed, _| {
        if followed.tables.iter().any(|table| table.keyspace == "ddl" && table.name == "t") {
            mutations.push((followed.tables.iter().find(|table| table.name == "t").unwrap().id, changes.to_vec()));
        }
    });
    let first = mutations[0].0;
    let altered: Vec<_> = mutations.iter().skip(1).filter(|(id, _)| *id == first).collect();
    assert!(altered.len() >= 4, "{}", altered.len());
    for (id, changes) in altered {
        let mut history = SchemaHistory::new();
        let followed = history.apply(changes);
        assert!(history.table(*id).is_none());
        assert!(followed.tables.is_empty());
        assert!(history.to_file().tables().0.is_empty());
    }
}

#[test]
fn a_schema_read_from_the_node_takes_the_place_of_what_was_known() {
    let recording = Recording::of("4.1.9");
    let mut early = None;
    recording.follow(&mut SchemaHistory::new(), |_, _, followed, history| {
        if early.is_none() && followed.tables.iter().any(|table| table.name == "compact_static") {
            early = Some(history.clone());
        }
    });
    let mut early = early.unwrap();
    let mut dropped: Vec<_> = early.tables().filter(|table| table.keyspace == "ddl").cloned().collect();
    assert_eq!(dropped.len(), 3, "compact_static, quiet, t");
    let refreshed = early.refresh(recording.schema.clone());
    let found = |followed: Vec<std::sync::Arc<TableSchema>>| -> Vec<_> {
        followed.into_iter().filter(|table| table.keyspace == "ddl").map(|table| (*table).clone()).collect()
    };
    let (shown, _) = recording.schema.tables();
    let shown: Vec<_> = shown.into_iter().filter(|table| table.keyspace == "ddl").collect();
    assert_eq!(found(refreshed.tables), shown);
    let mut gone = refreshed.dropped;
    gone.sort_by_key(|table| table.id);
    dropped.sort_by_key(|table| table.id);
    assert_eq!(gone, dropped);
    for table in dropped {
        assert_eq!(early.table(table.id), Some(&table), "dropped tables stay decodable");
    }
    assert!(early.refresh(recording.schema).tables.is_empty(), "nothing new");
}

#[test]
fn a_truncation_tells_up_to_where_the_log_is_void() {
    for version in VERSIONS {
        let (mut truncated, mut before) = (Vec::new(), Vec::new());
        Recording::of(version).follow(&mut SchemaHistory::new(), |at, changes, followed, history| {
            if truncated.is_empty() && changes.iter().any(|change| change.table.full_name() == "ddl.t") {
                before.push(at);
            }
            let own =
                |table: Option<&std::sync::Arc<TableSchema>>| table.is_some_and(|table| table.full_name() == "ddl.t");
            truncated.extend(followed.truncations.iter().filter(|t| own(history.table(t.table))).map(|t| (at, *t)));
        });
        let [(at, truncation)] = truncated[..] else { panic!("{version}: {truncated:?}") };
        let void = truncation.at.unwrap();
        assert!(void <= at && *before.last().unwrap() <= void, "{version}: {void} of {at}");
        // 2026 or later, and by the node's clock as everything else.
        assert!(truncation.wall_ms > 1_767_225_600_000, "{version}");
    }
}

#[test]
fn a_file_says_what_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("schema.json");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        SchemaFile::read(&path).map(|file| file.rows.len()).map_err(|error| error.to_string())
    };
    assert_eq!(read(&SchemaFile::default().to_json()), Ok(0));
    assert!(read("CREATE TABLE").unwrap_err().contains("is not a schema file"));
    assert!(read(r#"{"version":2,"rows":[]}"#).unwrap_err().contains("has version 2"));

    let column = |name: &str, kind: &str, ty: &str| {
        format!(
            r#"{{"keyspace":"k","name":"t","column":"{name}","is":{{"column":{{"kind":"{kind}","position":0,"reversed":false,"type":"{ty}"}}}}}}"#
        )
    };
    let table = r#"{"keyspace":"k","name":"t","is":{"table":{"id":"00000000-0000-0000-0000-000000000001","cdc":true,"gc_grace_seconds":1}}}"#;
    let tables = |columns: &[String]| {
        let text = format!(r#"{{"version":1,"rows":[{table},{}]}}"#, columns.join(","));
        SchemaFile::parse(text.as_bytes()).unwrap().tables()
    };
    let (known, faults) = tables(&[column("k", "partition_key", "int"), column("v", "regular", "list<text>")]);
    assert_eq!((known.len(), faults.len()), (1, 0));
    let (known, faults) = tables(&[column("k", "partition_key", "int"), column("v", "regular", "nobody")]);
    assert_eq!(known.len(), 0, "a column of an unknown type could be anything");
    assert!(faults[0].to_string().contains("nobody"), "{faults:?}");
    assert_eq!(tables(&[column("c", "clustering", "int")]).1.len(), 1);
}
