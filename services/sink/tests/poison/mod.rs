//! Records that are no changes, and changes PostgreSQL does not take.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use cdc_kafka::{Headers, KafkaConfig, Outgoing, Publisher, SCHEMA_TOPIC, SchemaFollower, partition_of};
use cdc_model::{Change, ChangeBody, TableSchema};
use cdc_postgres::{Delivery, LetterFilter, Replayed, StreamName, Target};
use cdc_runtime::Lifecycle;
use cdc_sink::{Applier, Batch, SinkConfig, SinkMetrics};
use cdc_wire::{encode_change, schema_key};

use crate::world::{Sink, World, eventually, insert, table};

/// A record, and what becomes of it: type and code, or nothing if it is a change like any other.
struct Case {
    key: Option<Bytes>,
    payload: Option<Bytes>,
    partition: i32,
    headers: Headers,
    becomes: Option<(&'static str, &'static str)>,
}

/// A change with a cell of one column set to a text.
fn with_value(table: &Arc<TableSchema>, key: i64, value: &str) -> Change {
    let mut change = insert(table, key);
    if let ChangeBody::Row { row, .. } = &mut change.body {
        let cell = cdc_model::Cell::live(row.newest_write(), Bytes::copy_from_slice(value.as_bytes()));
        row.columns[0].1 = cdc_model::ColumnState::Simple(cell);
    }
    change
}

fn cases(orders: &Arc<TableSchema>) -> Vec<Case> {
    let good = |key: i64| encode_change(&insert(orders, key));
    let case = |key: i64, payload: Bytes, becomes| {
        let key = Bytes::copy_from_slice(&key.to_be_bytes());
        let partition = partition_of(&key, 8);
        let headers = vec![("cdc-position".to_owned(), Some(Bytes::from_static(b"1:1")))];
        Case { key: Some(key), payload: Some(payload), partition, headers, becomes }
    };
    let damaged = |key: i64, at: usize| {
        let mut bytes = good(key).to_vec();
        bytes[at] ^= 0xff;
        Bytes::from(bytes)
    };
    let mut foreign = (**orders).clone();
    foreign.columns[0].name = "foreign".to_owned();
    let foreign = Arc::new(foreign);
    let decode = |code| Some(("DECODE_ERROR", code));
    let mismatch = |code| Some(("SCHEMA_MISMATCH", code));
    vec![
        Case { key: None, ..case(1_000, good(1_000), decode("NULL_KEY")) },
        Case { payload: None, ..case(1_001, Bytes::new(), decode("NULL_VALUE")) },
        case(1_002, Bytes::new(), decode("NOT_SINGLE_OBJECT")),
        case(1_003, Bytes::from(vec![0xa5; 1 << 20]), decode("NOT_SINGLE_OBJECT")),
        case(1_004, damaged(1_004, 5), decode("UNKNOWN_FORMAT")),
        case(1_005, good(1_005).slice(..40), decode("MALFORMED")),
        case(1_006, damaged(1_006, 12), mismatch("UNKNOWN_TABLE")),
        case(1_007, encode_change(&insert(&foreign, 1_007)), mismatch("UNKNOWN_COLUMN")),
        case(1_008, good(1_009), decode("KEY_MISMATCH")),
        Case {
            partition: (partition_of(&1_010_i64.to_be_bytes(), 8) + 1) % 8,
            ..case(1_010, good(1_010), decode("PARTITION_MISMATCH"))
        },
        case(
            1_011,
            encode_change(&with_value(orders, 1_011, "\0")),
            Some(("TYPE_CONVERSION", "VALUE_UNREPRESENTABLE")),
        ),
        case(1_012, encode_change(&with_value(orders, 1_012, "13")), Some(("CONSTRAINT_VIOLATION", "SQLSTATE_23514"))),
        case(1_013, encode_change(&with_value(orders, 1_013, "int")), Some(("VALUE_OUT_OF_RANGE", "SQLSTATE_22003"))),
        case(1_014, encode_change(&with_value(orders, 1_014, "own")), Some(("UNKNOWN", "SQLSTATE_22999"))),
        Case { headers: Vec::new(), ..case(1_015, good(1_015), None) },
        Case {
            headers: vec![("odd".to_owned(), None), ("odd".to_owned(), Some(Bytes::from_static(b"\0\xff")))],
            ..case(1_016, good(1_016), None)
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_poison_is_kept_whole_and_the_next_record_applied() {
    let world = World::new("poison").await;
    let orders = table(&world.name("orders"), "v");
    let publisher = world.publisher(&[&orders]).await;
    let topic = world.kafka.template().topic(&orders);
    Target::connect(&world.postgres).await.unwrap().prepare_table(Arc::clone(&orders)).await.unwrap();
    let name = &orders.name;
    let target = format!(
        "alter table cdc_{name} add check (v <> '13');
         create function own() returns trigger language plpgsql as $$ begin
             if new.v = 'own' then raise exception '%', new.v using errcode = '22999'; end if;
             if new.v = 'int' then perform new.k::int * 2147483647; end if;
             return new; end $$;
         create trigger own before insert on cdc_{name} for each row execute function own();"
    );
    world.client().await.batch_execute(&target).await.unwrap();
    let sink = Sink::start(&world);
    world.send(&publisher, &orders, 0..1).await;
    world.rows(&orders, 1).await;
    let (mut rows, mut records) = (1_i64, 1_i64);
    let mut expected = BTreeMap::new();
    for case in cases(&orders) {
        let Case { key, payload, partition, headers, becomes } = case;
        let record = Outgoing {
            topic: &topic,
            partition: Some(partition),
            key: key.as_deref(),
            payload: payload.as_deref(),
            headers: &headers,
        };
        publisher.publish_record(record).await.unwrap();
        // The next record of the same partition.
        let next = (100_000_i64 * records..).find(|next| partition_of(&next.to_be_bytes(), 8) == partition).unwrap();
        publisher.publish(&topic, &next.to_be_bytes(), &encode_change(&insert(&orders, next))).await.unwrap();
        rows += 1 + i64::from(becomes.is_none());
        records += 2;
        world.rows(&orders, rows).await;
        if let Some((error_type, code)) = becomes {
            let base64 = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| BASE64_STANDARD.encode(bytes));
            expected.insert((error_type, code, base64(&payload)), (base64(&key), headers));
        }
    }
    eventually("every record is accounted for", async || world.offsets().await == records).await;

    let letters = world.dead_letters(&topic, expected.len()).await;
    for (letter, headers) in &letters {
        let text = |field: &str| letter[field].as_str();
        let found = expected.iter().find(|((error_type, code, value), _)| {
            text("error_type") == Some(error_type)
                && text("error_code") == Some(code)
                && text("original_value") == value.as_deref()
        });
        let ((error_type, code, _), (key, original_headers)) = found.unwrap_or_else(|| panic!("{letter}"));
        assert_eq!(text("original_key"), key.as_deref(), "{code}");
        assert_eq!(headers[..original_headers.len()], original_headers[..], "{code}");
        let header = |name: &str| {
            let value = &headers.iter().rfind(|(other, _)| other == name).unwrap_or_else(|| panic!("{name}")).1;
            std::str::from_utf8(value.as_deref().unwrap()).unwrap()
        };
        assert_eq!(header("__connect.errors.topic"), topic);
        assert_eq!(header("__connect.errors.offset"), letter["original_offset"].to_string());
        assert_eq!(header("__connect.errors.partition"), letter["original_partition"].to_string());
        assert_eq!(header("__connect.errors.exception.class.name"), *error_type);
        assert_eq!(header("cdc-error-code"), *code);
        assert_eq!(header("__connect.errors.stage") == "TASK_PUT", letter["original_event"].is_object(), "{code}");
        assert!(uuid::Uuid::parse_str(text("dlq_id").unwrap()).is_ok());
        assert_eq!((letter["retry_count"].as_i64(), text("source_component")), (Some(0), Some("SINK_CONNECTOR")));
    }
    let set_aside = i64::try_from(expected.len()).unwrap();
    assert_eq!(world.number("select count(*) from _cdc.dlq where published_at is not null").await, set_aside);
    let status = sink.metrics.status();
    assert_eq!(status.dead_letters.values().flat_map(BTreeMap::values).sum::<u64>(), expected.len() as u64);
    let mut metrics = String::new();
    sink.metrics.render(&mut metrics);
    let counted = format!("cdc_dlq_events_total{{role=\"sink\",table=\"shop.{name}\",error_type=\"UNKNOWN\"}} 1");
    assert!(metrics.contains(&counted), "{metrics}");
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_schema_comes_later_is_replayed_and_no_sink_is_disturbed() {
    let world = World::new("later").await;
    let (orders, other) = (table(&world.name("orders"), "v"), table(&world.name("other"), "v"));
    let publisher = world.publisher(&[&other]).await;
    publisher.ensure_topics(&[Arc::clone(&orders), Arc::clone(&other)]).await.unwrap();
    let target = Target::connect(&world.postgres).await.unwrap();
    let sink = Sink::start(&world);
    world.send(&publisher, &orders, 0..100).await;
    eventually("all are set aside", async || world.offsets().await == 100).await;
    assert_eq!(world.number("select count(*) from _cdc.dlq where code = 'UNKNOWN_TABLE'").await, 100);
    publisher.publish_schema(&orders).await.unwrap();
    let schemas = SchemaFollower::start(&world.kafka).unwrap();
    schemas.read_to_end().await.unwrap();
    let ids = target.dead_letter_ids(&LetterFilter::default()).await.unwrap();
    let mut applied = 0;
    let decode = |original: &_, stored: &_| cdc_sink::decode_again(original, stored, Some(&schemas));
    target
        .replay_dead_letters(&ids, false, &decode, |_, outcome| applied += i32::from(outcome == Replayed::Applied))
        .await
        .unwrap();
    assert_eq!(applied, 100);
    assert_eq!(world.count(&orders).await, 100);
    world.send(&publisher, &orders, 100..200).await;
    world.rows(&orders, 200).await;
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_wait_for_a_schema_that_only_a_newer_release_can_read() {
    let world = World::new("newer").await;
    let orders = table(&world.name("orders"), "v");
    let publisher = Publisher::connect(&world.kafka).unwrap();
    publisher.ensure_topics(&[Arc::clone(&orders)]).await.unwrap();
    publisher.publish(SCHEMA_TOPIC, schema_key(orders.id).as_bytes(), br#"{"version": 999}"#).await.unwrap();
    let sink = Sink::start(&world);
    world.send(&publisher, &orders, 0..100).await;
    eventually("the partitions are held", async || sink.metrics.status().partitions.len() == 8).await;
    publisher.publish_schema(&orders).await.unwrap();
    world.rows(&orders, 100).await;
    assert_eq!(world.number("select count(*) from _cdc.dlq").await, 0);
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_another_number_of_partitions_is_read_wherever_its_records_stand() {
    let mut world = World::new("widened").await;
    let orders = table(&world.name("orders"), "v");
    let publisher = world.publisher(&[&orders]).await;
    world.send(&publisher, &orders, 0..100).await;
    // As if it had been created with 5 and widened since.
    world.kafka.partitions = 5;
    let sink = Sink::start(&world);
    world.rows(&orders, 100).await;
    assert_eq!(world.number("select count(*) from _cdc.dlq").await, 0);
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_position_waits_until_the_letter_is_in_the_topic() {
    let mut world = World::new("unwritable").await;
    let _broker = world.own_broker().await;
    // The topic is there already, and too small for the letter.
    let small = KafkaConfig { message_bytes_max: 64 << 10, ..world.kafka.clone() };
    Publisher::connect(&small).unwrap().ensure_topics(&[]).await.unwrap();
    let orders = table(&world.name("orders"), "v");
    let publisher = world.publisher(&[&orders]).await;
    let topic = world.kafka.template().topic(&orders);
    // Of what does not compress.
    let garbage: Vec<u8> = (0..300_000).map(|_| rand::random()).collect();
    publisher.publish(&topic, &0_i64.to_be_bytes(), &garbage).await.unwrap();
    let sink = Sink::start(&world);
    eventually("the status says what fails", async || sink.metrics.status().failing.contains_key("dlq-events")).await;
    assert_eq!(world.number("select count(*) from _cdc.dlq where published_at is null").await, 1);
    assert_eq!(world.offsets().await, 0);
    sink.kill().await;
    assert_eq!(world.offsets().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_left_by_a_process_that_died_is_published_by_the_next() {
    let world = World::new("left_over").await;
    let orders = table(&world.name("orders"), "v");
    let topic = world.kafka.template().topic(&orders);
    world.publisher(&[&orders]).await;
    let target = Target::connect(&world.postgres).await.unwrap();
    let original = cdc_postgres::Original {
        topic: topic.clone(),
        partition: 0,
        offset: 5,
        timestamp_ms: None,
        key: None,
        value: Some(Bytes::from_static(b"garbage")),
        headers: Vec::new(),
    };
    let undecoded = vec![cdc_postgres::Undecoded {
        original,
        table: None,
        error_type: cdc_postgres::ErrorType::DecodeError,
        code: "NULL_KEY".to_owned(),
        message: "as from a process that died".to_owned(),
    }];
    target.deliver(Delivery { undecoded, ..Delivery::default() }).await.unwrap();
    let sink = Sink::start(&world);
    let letters = world.dead_letters(&topic, 1).await;
    assert_eq!(letters[0].0["original_value"], BASE64_STANDARD.encode("garbage"));
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_halts_its_topic_with_a_cause_while_others_flow_and_goes_on_once_the_cause_is_gone() {
    let mut world = World::new("flood").await;
    world.sink.dlq_rows_max = 10;
    let (bad, good) = (table(&world.name("bad"), "v"), table(&world.name("good"), "v"));
    let publisher = world.publisher(&[&bad, &good]).await;
    Target::connect(&world.postgres).await.unwrap().prepare_table(Arc::clone(&bad)).await.unwrap();
    let client = world.client().await;
    client
        .batch_execute(&format!("alter table cdc_{} add constraint never check (v is null)", bad.name))
        .await
        .unwrap();
    world.send(&publisher, &bad, 0..500).await;
    let sink = Sink::start(&world);
    let topic = world.kafka.template().topic(&bad);
    eventually("the topic is halted", async || sink.metrics.status().failing.contains_key(&topic)).await;
    let cause = sink.metrics.status().failing[&topic].cause.clone();
    assert!(cause.contains("sink.dlq_rows_max") && cause.contains(&bad.full_name()), "{cause}");
    world.send(&publisher, &good, 0..100).await;
    world.rows(&good, 100).await;
    assert!(world.number("select count(*) from _cdc.dlq").await <= 10);
    // Nothing is passed but what is kept as a letter.
    let query =
        format!("select coalesce(sum(position::bigint), 0) from _cdc.streams where name like 'kafka:{topic}:%'");
    assert!(world.number(&query).await <= world.number("select count(*) from _cdc.dlq").await);
    client.batch_execute(&format!("alter table cdc_{} drop constraint never", bad.name)).await.unwrap();
    world.rows(&bad, 500).await;
    eventually("every record is accounted for", async || world.offsets().await == 600).await;
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_direct_mode_a_letter_is_in_the_database_alone_and_the_position_goes_on() {
    let world = World::new("direct").await;
    let orders = table(&world.name("orders"), "v");
    let target = cdc_sink::connect(&world.postgres).await.unwrap();
    let lifecycle = Lifecycle::new();
    let (metrics, config) = (Arc::<SinkMetrics>::default(), SinkConfig { dlq_rows_max: 2, ..SinkConfig::default() });
    let stream = StreamName("node:direct".to_owned());
    let applier = Applier::start(target, stream, &config, Arc::clone(&metrics), &lifecycle).await.unwrap();
    let nul = |key| with_value(&orders, key, "\0");
    applier
        .batches
        .send(Batch { changes: vec![insert(&orders, 0), nul(1)], upto: "1:1".to_owned(), ..Batch::default() })
        .await
        .unwrap();
    let mut durable = applier.durable.clone();
    durable.wait_for(|position| position.as_deref() == Some("1:1")).await.unwrap();
    assert_eq!((world.count(&orders).await, metrics.status().rows_quarantined), (1, 1));
    assert_eq!(world.number("select count(*) from _cdc.dlq where published_at is null").await, 1);
    assert_eq!(world.number("select count(*) from _cdc.dlq where original_topic is not null").await, 0);

    applier
        .batches
        .send(Batch { changes: vec![nul(2), nul(3)], upto: "1:2".to_owned(), ..Batch::default() })
        .await
        .unwrap();
    eventually("it is halted", async || {
        metrics.status().failing.values().any(|why| why.cause.contains("dlq_rows_max"))
    })
    .await;
    assert_eq!(durable.borrow().as_deref(), Some("1:1"));
    assert_eq!(world.number("select count(*) from _cdc.dlq").await, 1);
    lifecycle.stop_now();
    lifecycle.finish(std::time::Duration::ZERO).await;
}
