//! How sinks are members of their group: under a name of their own, and while PostgreSQL is away.

use std::time::{Duration, Instant};

use cdc_kafka::{Consumer, KafkaError};
use cdc_runtime::Exit;

use crate::world::{FromTheBeginning, Sink, World, blocking, eventually, table};

/// The shortest that librdkafka takes, as it must not be shorter than the session.
const LONGEST_BETWEEN_POLLS_MS: &str = "10000";
/// A new topic is noticed within 10 s, and then the time above passes.
const AWAY: Duration = Duration::from_secs(24);

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_of_the_same_name_replaces_the_one_before_which_says_so_and_ends() {
    let mut world = World::new("replaced").await;
    let orders = table(&world.name("orders"), "v");
    let publisher = world.publisher(&[&orders]).await;
    world.send(&publisher, &orders, 0..100).await;
    world.sink.instance_id = Some("one".to_owned());
    let (config, group) = (world.kafka.clone(), world.sink.group.clone());
    let connect = move || Consumer::connect(&config, &group, Some("one"), FromTheBeginning).unwrap();
    let member = blocking(move || {
        let member = connect();
        while member.poll(Duration::from_millis(100)).ok().flatten().is_none() {}
        member
    })
    .await;
    let first = Sink::start(&world);
    let error = blocking(move || {
        loop {
            let polled = member.poll(Duration::from_millis(100));
            if let Err(error @ (KafkaError::Replaced { .. } | KafkaError::Fatal(_))) = polled {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(&error, KafkaError::Replaced { instance_id } if instance_id == "one"), "{error}");
    assert!(error.to_string().contains("sink.instance_id `one`"), "{error}");
    world.rows(&orders, 100).await;

    let second = Sink::start(&world);
    assert_eq!(first.ends().await, Exit::Failure);
    world.send(&publisher, &orders, 100..200).await;
    world.rows(&orders, 200).await;
    // Killed, it comes back to what it had.
    second.kill().await;
    let third = Sink::start(&world);
    world.send(&publisher, &orders, 200..300).await;
    world.rows(&orders, 300).await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_away_for_long_a_sink_waits_and_keeps_its_partitions() {
    let mut world = World::new("away").await;
    let postgres = world.own_database_server().await;
    world.kafka.properties.insert("max.poll.interval.ms".to_owned(), LONGEST_BETWEEN_POLLS_MS.to_owned());
    let (orders, later) = (table(&world.name("orders"), "v"), table(&world.name("later"), "v"));
    let publisher = world.publisher(&[&orders]).await;
    let sink = Sink::start(&world);
    world.send(&publisher, &orders, 0..1).await;
    world.rows(&orders, 1).await;
    let claims = "select sum(epoch) from _cdc.streams";
    let before = world.number(claims).await;
    assert_eq!(sink.metrics.status().partitions.len(), 8);

    let postgres = blocking(move || postgres.stop().map(|()| postgres)).await.unwrap();
    let begin = Instant::now();
    // Partitions that are assigned meanwhile, too.
    let other = world.publisher(&[&later]).await;
    world.send(&other, &later, 0..10).await;
    // One by one: more fetches than may wait, though next to no bytes.
    let mut sent = 1;
    while begin.elapsed() < AWAY || sent < 1_000 {
        world.send(&publisher, &orders, sent..sent + 1).await;
        sent += 1;
    }
    let status = sink.metrics.status();
    let topic = world.kafka.template().topic(&orders);
    let failing = &status.failing[&topic];
    assert_eq!(failing.state, "waiting");
    assert!(failing.for_seconds > 0 && failing.next_try_in_seconds.is_some(), "{failing:?}");
    assert!(status.failing.keys().any(|name| name.starts_with("kafka:")), "claims wait, too: {:?}", status.failing);
    assert_eq!(status.partitions.len(), 8, "what was held is held");
    let mut metrics = String::new();
    sink.metrics.render(&mut metrics);
    let failing = metrics.lines().find_map(|line| line.strip_prefix("cdc_failing_seconds{role=\"sink\"} "));
    assert!(failing.is_some_and(|seconds| seconds != "0"), "{metrics}");

    let _postgres = blocking(move || postgres.start().map(|()| postgres)).await.unwrap();
    world.rows(&orders, sent).await;
    world.rows(&later, 10).await;
    eventually("nothing fails any more", async || sink.metrics.status().failing.is_empty()).await;
    let query = format!("{claims} where name not like '%:{}:%'", world.kafka.template().topic(&later));
    assert_eq!(world.number(&query).await, before, "nothing was claimed again");
    sink.stop().await;
}
