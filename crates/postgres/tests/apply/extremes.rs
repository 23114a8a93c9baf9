//! Values at and beyond the ends of what PostgreSQL can hold, by each policy.

use std::sync::Arc;

use anyhow::Result;
use cdc_model::{Change, ChangeBody, Clustering, ColumnKind, CqlType, TableSchema, ValueBytes, decode_row};
use cdc_postgres::{ColumnSettings, OnUnrepresentable, TableSettings};
use num_bigint::BigInt;

use crate::support::{Database, change, column, insert, int, key_column, live, marker, orders, schema, state, text};
use crate::types::{boxed, parts};

/// Type, Cassandra's bytes, an expression over the column `@` that is true of what shows when it is replaced; whether
/// PostgreSQL can hold it as it is.
fn cases() -> Vec<(CqlType, ValueBytes, &'static str, bool)> {
    let be = |bytes: &[u8]| ValueBytes::from(bytes);
    let date = |days: i64| be(&u32::try_from(days + (1 << 31)).unwrap_or_default().to_be_bytes());
    let timestamp = |millis: i64| be(&millis.to_be_bytes());
    let varint = |number: &BigInt| ValueBytes::from(number.to_signed_bytes_be());
    let decimal = |scale: i32, unscaled: &BigInt| {
        ValueBytes::from([&scale.to_be_bytes()[..], &unscaled.to_signed_bytes_be()].concat())
    };
    let (one, ten) = (BigInt::from(1), BigInt::from(10));
    let udt = CqlType::Udt {
        keyspace: "shop".to_owned(),
        name: "note".to_owned(),
        fields: vec![("body".to_owned(), CqlType::Text)],
        frozen: true,
    };
    let map = CqlType::Map { key: boxed(CqlType::Text), value: boxed(CqlType::Int), frozen: true };
    let list = CqlType::List { element: boxed(CqlType::Decimal), frozen: true };
    let huge = decimal(i32::MIN, &one);
    use CqlType::{Date, Decimal, Text, Timestamp, Varint};
    vec![
        (Date, date(i64::from(i32::MIN)), "@ = '-infinity'", false),
        (Date, date(i64::from(i32::MAX)), "@ = 'infinity'", false),
        (Date, date(-2_440_588), "@ = '4714-11-24 BC'", true),
        (Date, date(-2_440_589), "@ = '-infinity'", false),
        (Date, date(2_145_042_905), "@ = '5874897-12-31'", true),
        (Date, date(2_145_042_906), "@ = 'infinity'", false),
        (Timestamp, timestamp(i64::MIN), "@ = '-infinity'", false),
        (Timestamp, timestamp(i64::MAX), "@ = 'infinity'", false),
        (Timestamp, timestamp(-210_866_803_200_000), "@ = '4714-11-24 00:00:00+00 BC'", true),
        (Timestamp, timestamp(-210_866_803_200_001), "@ = '-infinity'", false),
        (Timestamp, timestamp(9_224_318_015_999_999), "@ = '294276-12-31 23:59:59.999+00'", true),
        (Timestamp, timestamp(9_224_318_016_000_000), "@ = 'infinity'", false),
        (Decimal, decimal(i32::MAX, &one), "@ = 0 and scale(@) = 16383", false),
        (Decimal, huge.clone(), "@ = 'Infinity'", false),
        (Decimal, decimal(i32::MIN, &-&one), "@ = '-Infinity'", false),
        (Decimal, decimal(i32::MIN, &BigInt::ZERO), "@ = 0", true),
        (Decimal, decimal(16_384, &BigInt::from(-19)), "@ = -1e-16383", false),
        (Decimal, decimal(16_383, &(ten.pow(147_455) - &one)), "length(@::text) = 147456 and @::text !~ '[^9.]'", true),
        (Varint, varint(&ten.pow(131_071)), "@ = 10::numeric ^ 131071", true),
        (Varint, varint(&-ten.pow(131_072)), "@ = '-Infinity'", false),
        (Varint, varint(&(one << 8_000_000)), "@ = 'Infinity'", false),
        (Text, text("a\0b"), "@ = U&'a\\FFFDb'", false),
        (map, parts(true, &[b"k\0", &int(1)], 2), "@ = U&'{\"k\\FFFD\": 1}'::jsonb", false),
        (list, parts(true, &[&huge, &decimal(1, &ten)], 1), "@ = '[\"Infinity\", 1.0]'", false),
        (
            CqlType::Tuple(vec![CqlType::Int, udt]),
            parts(false, &[&int(1), &parts(false, &[b"\0"], 1)], 1),
            "@ = U&'[1, {\"body\": \"\\FFFD\"}]'::jsonb",
            false,
        ),
    ]
}

fn table(name: &str) -> Arc<TableSchema> {
    let columns = cases().into_iter().enumerate();
    let columns = columns.map(|(index, (ty, ..))| column(&format!("x{index}"), ty, ColumnKind::Regular));
    schema(name, vec![key_column("p", CqlType::Int)], Vec::new(), columns.collect())
}

/// One row per case.
fn batch(table: &Arc<TableSchema>) -> Vec<Change> {
    let row = |(index, (_, value, ..)): (i32, (CqlType, ValueBytes, &str, bool))| {
        let row = state(table, Some(marker(5)), vec![(&format!("x{index}"), live(5, value))]);
        let mut change = change(table, "", ChangeBody::Row { clustering: Clustering::default(), row });
        change.partition_key = int(index);
        change
    };
    (0..).zip(cases()).map(row).collect()
}

#[tokio::test]
async fn what_is_beyond_postgresql_is_parked_replaced_or_left_out_and_nothing_stops() -> Result<()> {
    let mut database = Database::create().await?;
    database.config.unrepresentable = OnUnrepresentable::Replace;
    let skips = TableSettings { unrepresentable: Some(OnUnrepresentable::Skip), ..TableSettings::default() };
    database.config.tables.insert("shop.skips".to_owned(), skips);
    let columns = (0..cases().len()).map(|index| {
        let unrepresentable = Some(OnUnrepresentable::Quarantine);
        (format!("x{index}"), ColumnSettings { unrepresentable, ..ColumnSettings::default() })
    });
    let parks = TableSettings { columns: columns.collect(), ..TableSettings::default() };
    database.config.tables.insert("shop.parked".to_owned(), parks);
    let target = database.target().await?;
    let beyond = cases().iter().filter(|(.., fits)| !fits).count();

    let replaces = table("replaces");
    let applied = target.apply(batch(&replaces), &[]).await?;
    assert_eq!((applied.rows_written, applied.quarantined), (cases().len(), 0));
    let skips = table("skips");
    let applied = target.apply(batch(&skips), &[]).await?;
    assert_eq!((applied.rows_written, applied.quarantined), (cases().len(), 0));
    let parks = table("parked");
    let applied = target.apply(batch(&parks), &[]).await?;
    assert_eq!((applied.rows_written, applied.quarantined), (cases().len() - beyond, beyond));

    let client = database.client().await?;
    for (index, (ty, _, holds, fits)) in cases().iter().enumerate() {
        let at = format!("where p = {index}");
        let holds = holds.replace('@', &format!("x{index}"));
        let replaced = client.query_one(&format!("select {holds} from cdc_replaces {at}"), &[]).await?;
        assert_eq!(replaced.get::<_, Option<bool>>(0), Some(true), "{ty:?}: {holds}");
        let skipped =
            client.query_one(&format!("select x{index} is null, _cdc_state from cdc_skips {at}"), &[]).await?;
        assert_eq!(skipped.get::<_, bool>(0), !fits, "{ty:?}: {holds}");
        // Nothing of it is lost for the merge.
        if let Some(stored) = skipped.get::<_, Option<Vec<u8>>>(1) {
            let ChangeBody::Row { row, .. } = batch(&skips).remove(index).body else { anyhow::bail!("a row") };
            assert_eq!(decode_row(&skips, stored.into())?, row, "{ty:?}: {holds}");
        }
        let parked = format!("select count(*) from _cdc.dlq where column_name = 'x{index}'");
        assert_eq!(database.number(&parked).await? == 0, *fits, "{ty:?}: {holds}");
    }
    for table in [&replaces, &skips] {
        assert_eq!(target.apply(batch(table), &[]).await?.rows_stale, cases().len());
    }
    Ok(())
}

#[tokio::test]
async fn a_row_too_large_for_postgresql_is_parked_by_itself() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    // A value and a state of 400 MiB each come to more than is sent; the change alone does not.
    let large = text(&"x".repeat(400 << 20));
    let row = state(&table, None, vec![("t", live(5, large))]);
    let clustering = crate::support::clustering(1);
    let batch = vec![
        insert(&table, "a", 2, 2, "t", 5),
        change(&table, "a", ChangeBody::Row { clustering, row }),
        insert(&table, "a", 3, 3, "t", 5),
    ];
    let applied = target.apply(batch, &[]).await?;
    assert_eq!((applied.rows_written, applied.quarantined), (2, 1));
    assert_eq!(database.rows("select code from _cdc.dlq").await?, [[Some("SQLSTATE_54000".to_owned())]]);
    Ok(())
}
