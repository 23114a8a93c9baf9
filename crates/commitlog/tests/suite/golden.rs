//! Real segments of Cassandra 5.0.5. The expectations were written down from `golden/statements.cql`, not from what
//! the decoder says.

use cdc_commitlog::Decoder;
use cdc_model::{
    Bound, Cell, CellValue, Change, ChangeBody, ColumnState, CqlType, CqlValue, LocalTime, RowState, TableSchema,
    ValueBytes, WriteTime,
};

use crate::support::{Golden, provenance};

/// The statements' times are this plus a small number.
const T0: i64 = 1_700_000_000_000_000;
const NOW: LocalTime = LocalTime(1_795_000_000);

fn time(time: WriteTime) -> String {
    match time.0 - T0 {
        offset @ 0..1000 => format!("@{offset}"),
        _ if time.0 > NOW.0 * 1_000_000 && time.0 < 2 * T0 - 1_400_000_000_000_000 => "@server".into(),
        _ => format!("@({})", time.0),
    }
}

fn value(ty: &CqlType, bytes: &[u8]) -> String {
    fn show(value: CqlValue) -> String {
        let option = |value: Option<CqlValue>| value.map_or("null".into(), show);
        match value {
            CqlValue::Text(text) => format!("'{text}'"),
            CqlValue::Blob(bytes) => format!("{bytes:?}"),
            CqlValue::Int(value) => value.to_string(),
            CqlValue::List(values) | CqlValue::Tuple(values) => {
                format!("({})", values.into_iter().map(option).collect::<Vec<_>>().join(","))
            }
            CqlValue::Udt(fields) => {
                let field = |(name, value): (String, _)| format!("{name}:{}", option(value));
                format!("{{{}}}", fields.into_iter().map(field).collect::<Vec<_>>().join(","))
            }
            other => format!("{other:?}"),
        }
    }
    show(CqlValue::decode(ty, bytes).unwrap())
}

fn cell(ty: &CqlType, cell: &Cell) -> String {
    let ttl = if cell.ttl == 0 { String::new() } else { format!(" ttl {}", cell.ttl) };
    let (value, has_local) = match &cell.value {
        CellValue::Tombstone => ("x".into(), true),
        CellValue::Counter(context) => (format!("shards {}", (context.len() - 2) / 32), false),
        CellValue::Live(bytes) => (value(ty, bytes), cell.ttl != 0),
    };
    // Deleted now, or expiring later than now: the server's clock, so not to the second.
    assert_eq!(cell.local != LocalTime::NONE, has_local);
    assert!(cell.local > NOW);
    format!("{value}{}{ttl}", time(cell.time))
}

fn row(table: &TableSchema, row: &RowState) -> String {
    let mut parts = Vec::new();
    if let Some(liveness) = row.liveness {
        let ttl = if liveness.ttl == 0 { String::new() } else { format!(" ttl {}", liveness.ttl) };
        assert_eq!(liveness.ttl == 0, liveness.expires == LocalTime::NONE);
        parts.push(format!("live{}{ttl}", time(liveness.time)));
    }
    if let Some(deletion) = row.deletion {
        assert!(deletion.local > NOW && deletion.local != LocalTime::NONE);
        parts.push(format!("deleted{}", time(deletion.time)));
    }
    assert!(row.columns.is_sorted_by(|a, b| a.0 < b.0));
    for (id, state) in &row.columns {
        let column = table.column(*id);
        match state {
            ColumnState::Simple(state) => parts.push(format!("{}={}", column.name, cell(&column.ty, state))),
            ColumnState::Complex(complex) => {
                assert!(complex.cells.is_sorted_by(|a, b| a.0 < b.0));
                let element = |(path, state): &(ValueBytes, Cell)| match &column.ty {
                    CqlType::List { element, .. } => cell(element, state),
                    CqlType::Set { element, .. } => match state.value {
                        CellValue::Live(ref empty) if empty.is_empty() => {
                            format!("{}{}", value(element, path), time(state.time))
                        }
                        _ => format!("{}:{}", value(element, path), cell(element, state)),
                    },
                    CqlType::Map { key, value: ty, .. } => format!("{}:{}", value(key, path), cell(ty, state)),
                    CqlType::Udt { fields, .. } => {
                        let (name, ty) = &fields[usize::from(u16::from_be_bytes(path[..].try_into().unwrap()))];
                        format!("{name}:{}", cell(ty, state))
                    }
                    other => panic!("{other:?} is not complex"),
                };
                let mut elements: Vec<_> = complex.deletion.iter().map(|d| format!("x{}", time(d.time))).collect();
                elements.extend(complex.cells.iter().map(element));
                parts.push(format!("{}=[{}]", column.name, elements.join(", ")));
            }
        }
    }
    parts.join(" ")
}

fn bound(table: &TableSchema, bound: &Bound) -> String {
    let values: Vec<_> = table.clustering.iter().zip(&bound.prefix).map(|(c, v)| value(&c.ty, v)).collect();
    format!("{}{}", values.join(","), if bound.inclusive { " incl" } else { " excl" })
}

fn line(change: &Change) -> String {
    let table = &change.table;
    let key: Vec<_> = table
        .partition_key
        .iter()
        .zip(table.split_partition_key(&change.partition_key).unwrap())
        .map(|(column, bytes)| value(&column.ty, &bytes))
        .collect();
    let body = match &change.body {
        ChangeBody::Row { clustering, row: state } => {
            let values = table.clustering.iter().zip(clustering.values());
            let values: Vec<_> = values.map(|(column, v)| value(&column.ty, v.unwrap())).collect();
            format!("({}) {}", values.join(","), row(table, state))
        }
        ChangeBody::Static(state) => format!("static {}", row(table, state)),
        ChangeBody::DeletePartition(deletion) => format!("partition deleted{}", time(deletion.time)),
        ChangeBody::DeleteRange(range) => {
            let (start, end) = (bound(table, &range.start), bound(table, &range.end));
            format!("range {start} .. {end} deleted{}", time(range.deletion.time))
        }
    };
    format!("{} {}: {body}", table.name, key.join(","))
}

fn changes(golden: &Golden, captured: impl Fn(&TableSchema) -> bool) -> Vec<Change> {
    let mut decoder = Decoder::new();
    let mut out = Vec::new();
    for (_, payload) in golden.entries() {
        decoder.decode(golden.format, &payload, provenance(), &golden.tables, &captured, &mut out).unwrap();
    }
    out
}

fn expected() -> Vec<String> {
    let lines = "
kinds 1: ('a',10) live@1 v_int=7@1 v_text='seven'@1
kinds 1: ('a',11) live@2
kinds 1: ('a',10) v_int=8@3
kinds 1: ('a',10) v_text=x@4
kinds 1: ('',10) live@5 v_text=''@5
kinds 1: ('ttl',1) live@6 ttl 86400 v_int=5@6 ttl 86400
kinds 1: ('ttl',1) v_text='soon'@7 ttl 3600
kinds 1: ('old',1) live@(-5) v_int=-1@(-5)
kinds 1: static s_set=[x@7, 'x'@8, 'y'@8] s_text='static'@8
kinds 1: static s_text='both'@9
kinds 1: ('b',1) live@9 v_int=2@9
kinds 2: ('c',1) live@10 v_flist=(5,6)@10 v_fudt={street:'Oak',zip:null}@10 v_list=[x@9, 3@10, 1@10, 2@10] \
v_map=[x@9, 'k1':1@10, 'k2':2@10] v_set=[x@9, 'a'@10, 'b'@10] v_tuple=(4,'four')@10 \
v_udt=[x@9, street:'Elm'@10, zip:9@10]
kinds 2: ('c',1) v_list=[4@11] v_map=['k3':3@11] v_set=['c'@11]
kinds 2: ('c',1) v_list=[0@12]
kinds 2: ('c',1) v_map=['k1':x@13] v_set=['a':x@13] v_udt=[zip:10@13]
kinds 2: ('c',1) v_list=[x@14]
kinds 2: ('c',1) v_map=[x@14] v_set=[x@14, 'only'@15] v_udt=[street:x@15]
kinds 2: ('c',1) v_list=[x@16] v_tuple=x@16
kinds 2: ('c',1) v_map=['k3':x@17]
kinds 2: ('c',1) v_map=['m':1@18] v_set=[x@17, 'n'@18]
kinds 3: ('a',1) deleted@20
kinds 3: range 'a',9 incl .. 'a',3 excl deleted@21
kinds 3: range 'b' incl ..  incl deleted@22
kinds 3: range  incl .. 'b' excl deleted@23
kinds 3: range 'c' incl .. 'c' incl deleted@24
kinds 3: partition deleted@25
kinds 4: range 'a' incl .. 'g' excl deleted@30
kinds 4: ('h',1) live@32 v_int=1@32
kinds 4: range 'g' incl .. 'z' incl deleted@31
kinds 5: ('x',1) live@40 v_int=1@40
plain 5: () live@41 v='five'@41
scalars 'key',1: () live@50 c_ascii='ascii'@50 c_bigint=BigInt(-9223372036854775808)@50 c_blob=b\"\\0\\xff\"@50 \
c_boolean=Boolean(true)@50 c_date=Date(-1)@50 c_decimal=Decimal { unscaled: -12345, scale: 3 }@50 \
c_double=Double(1.5)@50 c_duration=Duration { months: 1, days: 2, nanoseconds: 3 }@50 c_float=Float(-0.5)@50 \
c_inet=Inet(::1)@50 c_int=-2147483648@50 c_smallint=SmallInt(-32768)@50 c_text='grüße'@50 \
c_time=Time(86399999999999)@50 c_timestamp=Timestamp(1)@50 \
c_timeuuid=Uuid(50554d6e-29bb-11e5-b345-feff819cdc9f)@50 c_tinyint=TinyInt(-128)@50 \
c_uuid=Uuid(123e4567-e89b-42d3-a456-426614174000)@50 c_varint=Varint(1208925819614629174706176)@50 \
c_vector=Vector([Float(1.0), Float(2.0), Float(-3.0)])@50
counts 'c': (1) hits=shards 1@server
counts 'c': (1) hits=shards 1@server
counts 'c': (2) hits=x@server
evolving 1: () live@60 kept='k'@60
evolving 2: () live@(2000000000000000) kept='k'@(2000000000000000) gone='back'@(2000000000000000)
WIDE
plain 99: () live@99 v='last'@99";
    let columns = |time: i64, sign: i64, without: Option<i64>| {
        let columns = (0..65).filter(move |n| Some(*n) != without);
        columns.map(|n| format!(" c{n:02}={}@{time}", n * sign)).collect::<String>()
    };
    let wide = [
        format!("wide 1: (1) live@70{}", columns(70, 1, None)),
        "wide 1: (2) c00=1@71 c63=2@71 c64=3@71".to_owned(),
        format!("wide 1: (3) live@72{}", columns(72, -1, Some(5))),
    ];
    lines.trim().lines().flat_map(|line| if line == "WIDE" { wide.to_vec() } else { vec![line.to_owned()] }).collect()
}

fn assert_golden(name: &str) {
    let golden = Golden::load(name);
    let changes = changes(&golden, |table| table.keyspace == "golden" && table.cdc);
    let mut lines: Vec<String> = changes.iter().map(line).collect();
    // The two tables of one mutation come in no particular order.
    let batch = lines.iter().position(|line| line.starts_with("plain 5")).unwrap();
    if lines[batch + 1].starts_with("kinds 5") {
        lines.swap(batch, batch + 1);
    }
    for (index, (ours, expected)) in lines.iter().zip(expected()).enumerate() {
        assert_eq!(*ours, expected, "change {index}");
    }
    assert_eq!(lines.len(), expected().len());

    let totals: Vec<_> = changes
        .iter()
        .filter_map(|change| match &change.body {
            ChangeBody::Row { row, .. } if change.table.name == "counts" => row.visible(NOW),
            _ => None,
        })
        .collect();
    // 5, then 5 - 12: each entry holds the running total of the one replica.
    let total = |n| format!("[(ColumnId(0), Counter({n}))]");
    assert_eq!(totals.iter().map(|total| format!("{total:?}")).collect::<Vec<_>>(), [total(5), total(-7)]);
}

#[test]
fn a_segment_in_format_7_decodes_to_what_was_written() {
    assert_golden("cassandra-5.0-v7");
}

#[test]
fn a_segment_in_format_8_decodes_to_what_was_written() {
    assert_golden("cassandra-5.0-v8");
}

#[test]
fn every_mutation_of_every_system_table_decodes() {
    for name in ["cassandra-5.0-v7", "cassandra-5.0-v8"] {
        let golden = Golden::load(name);
        let all = changes(&golden, |_| true);
        let of = |keyspace: &str| all.iter().filter(|change| change.table.keyspace == keyspace).count();
        // Creating a table is one mutation with an update per table of system_schema.
        assert!(of("system") > 10 && of("system_schema") > 100, "{} {}", of("system"), of("system_schema"));
        assert_eq!(all.iter().filter(|change| change.table.name == "quiet").count(), 2);
    }
}
