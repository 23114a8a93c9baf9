//! Every CQL type in its PostgreSQL column, and back.

use anyhow::Result;
use bytes::Bytes;
use cdc_model::{
    Cell, ChangeBody, Clustering, Column, ColumnKind, ColumnState, ComplexState, CqlType, ValueBytes, WriteTime,
    decode_row,
};

use crate::support::{Database, change, column, deletion, int, key_column, live, marker, schema, state, text};

pub(crate) fn parts(counted: bool, parts: &[&[u8]], per_element: usize) -> ValueBytes {
    let mut out = Vec::new();
    if counted {
        out.extend(i32::try_from(parts.len() / per_element).unwrap_or_default().to_be_bytes());
    }
    for part in parts {
        out.extend(i32::try_from(part.len()).unwrap_or_default().to_be_bytes());
        out.extend(*part);
    }
    out.into()
}

pub(crate) fn boxed(ty: CqlType) -> Box<CqlType> {
    Box::new(ty)
}

/// Type, Cassandra's bytes, the column as text, whether the bytes can be rebuilt from it.
pub(crate) fn cases() -> Vec<(CqlType, ValueBytes, Option<&'static str>, bool)> {
    let be = |bytes: &[u8]| ValueBytes::from(bytes);
    let uuid = uuid::Uuid::from_u128(0x1234_5678_9abc_1def_8123_4567_89ab_cdef);
    let uuid_text = "12345678-9abc-1def-8123-456789abcdef";
    let date = |days: i64| be(&u32::try_from(days + (1 << 31)).unwrap_or_default().to_be_bytes());
    let decimal = |scale: i32, unscaled: i64| be(&[&scale.to_be_bytes()[..], &unscaled.to_be_bytes()].concat());
    let udt = CqlType::Udt {
        keyspace: "shop".to_owned(),
        name: "address".to_owned(),
        fields: vec![("street".to_owned(), CqlType::Text), ("number".to_owned(), CqlType::Int)],
        frozen: true,
    };
    let nested = CqlType::Map {
        key: boxed(CqlType::Int),
        value: boxed(CqlType::List { element: boxed(CqlType::Decimal), frozen: true }),
        frozen: true,
    };
    let list = parts(true, &[&decimal(3, 1500), &decimal(-2, 7)], 1);
    vec![
        (CqlType::Ascii, text("plain"), Some("plain"), true),
        (CqlType::Text, text("Grüße"), Some("Grüße"), true),
        (CqlType::Text, text(""), Some(""), true),
        (CqlType::TinyInt, be(&[0x80]), Some("-128"), true),
        (CqlType::SmallInt, be(&(-300i16).to_be_bytes()), Some("-300"), true),
        (CqlType::Int, int(i32::MIN), Some("-2147483648"), true),
        (CqlType::Int, be(&[]), None, false),
        (CqlType::BigInt, be(&i64::MAX.to_be_bytes()), Some("9223372036854775807"), true),
        (
            CqlType::Varint,
            be(&[0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Some("79228162514264337593543950336"),
            false,
        ),
        (CqlType::Varint, be(&[0xff, 0x01]), Some("-255"), false),
        (CqlType::Decimal, decimal(2, 150), Some("1.50"), false),
        (CqlType::Decimal, decimal(7, -12_345), Some("-0.0012345"), false),
        (CqlType::Decimal, decimal(-5, 12), Some("1200000"), false),
        (CqlType::Decimal, decimal(4, 0), Some("0.0000"), false),
        (CqlType::Decimal, decimal(5, 1_234_567_890), Some("12345.67890"), false),
        (CqlType::Float, be(&1.5f32.to_be_bytes()), Some("1.5"), true),
        (CqlType::Float, be(&f32::NAN.to_be_bytes()), Some("NaN"), false),
        (CqlType::Double, be(&(-0.0f64).to_be_bytes()), Some("-0"), true),
        (CqlType::Double, be(&f64::INFINITY.to_be_bytes()), Some("Infinity"), true),
        (CqlType::Boolean, be(&[1]), Some("t"), true),
        (CqlType::Blob, be(&[0, 255]), Some("\\x00ff"), true),
        (CqlType::Uuid, be(uuid.as_bytes()), Some(uuid_text), true),
        (CqlType::TimeUuid, be(uuid.as_bytes()), Some(uuid_text), true),
        (CqlType::Inet, be(&[10, 0, 0, 1]), Some("10.0.0.1"), true),
        (CqlType::Inet, be(&std::net::Ipv6Addr::LOCALHOST.octets()), Some("::1"), true),
        (CqlType::Date, date(-1), Some("1969-12-31"), true),
        (CqlType::Date, date(20_000), Some("2024-10-04"), true),
        (CqlType::Time, be(&3_723_000_004_000i64.to_be_bytes()), Some("01:02:03.000004"), true),
        (CqlType::Time, be(&3_723_000_004_005i64.to_be_bytes()), Some("01:02:03.000004"), false),
        (CqlType::Timestamp, be(&(-1i64).to_be_bytes()), Some("1969-12-31 23:59:59.999+00"), true),
        (CqlType::Timestamp, be(&1_700_000_000_123i64.to_be_bytes()), Some("2023-11-14 22:13:20.123+00"), true),
        (CqlType::Duration, be(&[2, 4, 6]), Some("P1M2DT0.000000003S"), false),
        (
            CqlType::Set { element: boxed(CqlType::Int), frozen: true },
            parts(true, &[&int(-1), &int(2)], 1),
            Some("[-1, 2]"),
            false,
        ),
        (nested, parts(true, &[&int(5), &list], 2), Some(r#"{"5": [1.500, 700]}"#), false),
        (
            CqlType::Tuple(vec![CqlType::Uuid, CqlType::Blob]),
            parts(false, &[uuid.as_bytes(), &[1, 171]], 1),
            Some(r#"["12345678-9abc-1def-8123-456789abcdef", "0x01ab"]"#),
            false,
        ),
        (udt, parts(false, &[b"Main \"st\""], 1), Some(r#"{"number": null, "street": "Main \"st\""}"#), false),
        (
            CqlType::Vector { element: boxed(CqlType::Float), dimension: 2 },
            be(&[&0.1f32.to_be_bytes()[..], &f32::NAN.to_be_bytes()].concat()),
            Some(r#"[0.1, "NaN"]"#),
            false,
        ),
        (
            CqlType::List { element: boxed(CqlType::Timestamp), frozen: true },
            parts(true, &[&0i64.to_be_bytes()], 1),
            Some(r#"["1970-01-01T00:00:00.000Z"]"#),
            false,
        ),
    ]
}

#[tokio::test]
async fn every_type_has_its_column_and_its_bytes_survive() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let cases = cases();
    let names: Vec<String> = (0..cases.len()).map(|index| format!("c{index:02}")).collect();
    let columns: Vec<Column> =
        names.iter().zip(&cases).map(|(name, (ty, ..))| column(name, ty.clone(), ColumnKind::Regular)).collect();
    let table = schema("types", vec![key_column("p", CqlType::Int)], Vec::new(), columns);
    let mut batch = Vec::new();
    // One row per type, so that each is uniform or not by itself.
    for (index, (name, (_, value, ..))) in (0i32..).zip(names.iter().zip(&cases)) {
        let row = state(&table, Some(marker(5)), vec![(name, live(5, value.clone()))]);
        let mut insert = change(&table, "", ChangeBody::Row { clustering: Clustering::default(), row });
        insert.partition_key = int(index);
        batch.push(insert);
    }
    assert_eq!(target.apply(batch.clone(), &[]).await?.rows_written, cases.len());
    for (index, (name, (ty, _, shown, uniform))) in names.iter().zip(&cases).enumerate() {
        let rows =
            database.rows(&format!("select {name}, _cdc_state is null from cdc_types where p = {index}")).await?;
        let flag = if *uniform { "t" } else { "f" };
        assert_eq!(rows, [[shown.map(str::to_owned), Some(flag.to_owned())]], "{ty:?}");
    }
    // What is read back is what was written: nothing in it is new.
    assert_eq!(target.apply(batch.clone(), &[]).await?.rows_stale, cases.len());
    // And the state written after one more cell holds the first one to the last bit.
    for change in &mut batch {
        let ChangeBody::Row { row, .. } = &mut change.body else { continue };
        let id = table.column_id(b"c05").expect("an int");
        row.columns.retain(|(own, _)| *own != id);
        row.columns.push((id, live(9, int(1))));
        row.columns.sort_by_key(|(id, _)| *id);
        let mut update = change.clone();
        if let ChangeBody::Row { row, .. } = &mut update.body {
            *row = state(&table, None, vec![("c05", live(9, int(1)))]);
        }
        target.apply(vec![update], &[]).await?;
    }
    let client = database.client().await?;
    for (index, change) in (0i32..).zip(&batch) {
        let stored = client.query_one("select _cdc_state from cdc_types where p = $1", &[&index]).await?;
        let stored = decode_row(&table, stored.get::<_, Vec<u8>>(0).into())?;
        let ChangeBody::Row { row, .. } = &change.body else { continue };
        assert_eq!(&stored, row, "{:?}", cases[usize::try_from(index)?].0);
    }
    Ok(())
}

#[tokio::test]
async fn collections_show_in_cassandras_order_and_merge_by_element() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let list = CqlType::List { element: boxed(CqlType::Text), frozen: false };
    let map = CqlType::Map { key: boxed(CqlType::Text), value: boxed(CqlType::BigInt), frozen: false };
    let udt = CqlType::Udt {
        keyspace: "shop".to_owned(),
        name: "pair".to_owned(),
        fields: vec![("a".to_owned(), CqlType::Int), ("b".to_owned(), CqlType::Int)],
        frozen: false,
    };
    let columns = vec![
        column("l", list, ColumnKind::Regular),
        column("m", map, ColumnKind::Regular),
        column("u", udt, ColumnKind::Regular),
    ];
    let table = schema("collections", vec![key_column("p", CqlType::Text)], Vec::new(), columns);
    let complex = |deleted: Option<i64>, mut cells: Vec<(ValueBytes, Cell)>| {
        cells.sort_by(|a, b| a.0.cmp(&b.0));
        ColumnState::Complex(ComplexState { deletion: deleted.map(deletion), cells })
    };
    let cell = |time: i64, value: ValueBytes| Cell::live(WriteTime(time), value);
    // Timeuuids whose bytes sort against their times.
    let (first, second) =
        (uuid::Uuid::from_u128(0xffff_ffff_0000_1000 << 64), uuid::Uuid::from_u128(0x0000_0001_0001_1000 << 64));
    let id = |uuid: uuid::Uuid| ValueBytes::from(*uuid.as_bytes());
    let row = |columns| {
        change(
            &table,
            "a",
            ChangeBody::Row { clustering: Clustering::default(), row: state(&table, Some(marker(5)), columns) },
        )
    };
    let long = |n: i64| ValueBytes::from(n.to_be_bytes());
    let one = row(vec![
        ("l", complex(Some(4), vec![(id(first), cell(5, text("one"))), (id(second), cell(5, text("two")))])),
        ("m", complex(Some(4), vec![(text("k"), cell(5, long(1))), (text("x"), cell(5, long(2)))])),
        ("u", complex(None, vec![([0, 1].into(), cell(5, int(7)))])),
    ]);
    let two = row(vec![(
        "m",
        complex(
            None,
            vec![(text("k"), cell(6, long(10))), (text("x"), Cell::tombstone(WriteTime(6), cdc_model::LocalTime(1)))],
        ),
    )]);
    target.apply(vec![two, one], &[]).await?;
    let shown = database.rows("select l, m, u from cdc_collections").await?;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(shown, [[some(r#"["one", "two"]"#), some(r#"{"k": 10}"#), some(r#"{"a": null, "b": 7}"#)]]);
    Ok(())
}

#[tokio::test]
async fn keys_of_types_that_cannot_be_rebuilt_are_kept_beside_the_columns() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let pair = CqlType::Tuple(vec![CqlType::Int, CqlType::Text]);
    let table = schema(
        "odd_keys",
        vec![key_column("n", CqlType::Varint), key_column("i", CqlType::Inet)],
        vec![key_column("pair", pair), key_column("d", CqlType::Decimal)],
        vec![column("v", CqlType::Int, ColumnKind::Regular)],
    );
    let partition =
        cdc_model::TableSchema::join_partition_key(&[Bytes::from_static(&[5]), Bytes::from_static(&[10, 0, 0, 1])]);
    let clustering = |d: &'static [u8]| Clustering::new([Some(parts(false, &[&int(1), b"x"], 1)), Some(d.into())]);
    let row = |d, v: i32, time| {
        let row = state(&table, Some(marker(time)), vec![("v", live(time, int(v)))]);
        let mut change = change(&table, "", ChangeBody::Row { clustering: clustering(d), row });
        change.partition_key = partition.clone();
        change
    };
    // 1.5 and 1.50 are one clustering key.
    target
        .apply(vec![row(&[0, 0, 0, 1, 15], 1, 5), row(&[0, 0, 0, 2, 0, 150], 2, 6), row(&[0, 0, 0, 0, 2], 3, 5)], &[])
        .await?;
    let shown = database.rows("select n, i, pair, d, v from cdc_odd_keys order by d").await?;
    let rows: Vec<Vec<&str>> = shown.iter().map(|row| row.iter().flatten().map(String::as_str).collect()).collect();
    assert_eq!(rows, [["5", "10.0.0.1", r#"[1, "x"]"#, "1.5", "2"], ["5", "10.0.0.1", r#"[1, "x"]"#, "2", "3"]]);
    let mut delete = change(&table, "", ChangeBody::DeletePartition(deletion(5)));
    delete.partition_key = partition;
    target.apply(vec![delete], &[]).await?;
    assert_eq!(database.number("select count(*) from cdc_odd_keys").await?, 1);
    Ok(())
}
