//! Kafka mode and the applier against a real broker and a real PostgreSQL.

mod membership;
mod poison;
mod world;

use std::{sync::Arc, time::Duration};

use cdc_postgres::StreamName;
use cdc_runtime::Exit;
use cdc_sink::{Applier, Batch, SinkConfig, SinkMetrics};
use world::{Sink, World, eventually, insert, position, table};

#[tokio::test(flavor = "multi_thread")]
async fn changes_sent_to_kafka_become_rows() {
    let world = World::new("become_rows").await;
    let orders = table(&world.name("orders"), "v");
    let publisher = world.publisher(&[&orders]).await;
    let sink = Sink::start(&world);
    world.send(&publisher, &orders, 0..2_000).await;
    world.rows(&orders, 2_000).await;
    assert_eq!(world.offsets().await, 2_000);
    eventually("the lag is known and zero", async || {
        let status = sink.metrics.status();
        status.partitions.len() == 8 && status.partitions.iter().all(|p| p.lag == Some(0))
    })
    .await;
    assert_eq!(sink.metrics.status().rows_written, 2_000);
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_sink_is_killed_half_way_rows_and_positions_agree() {
    let mut world = World::new("killed").await;
    world.sink.batch_rows = 500;
    let orders = table(&world.name("orders"), "v");
    let publisher = world.publisher(&[&orders]).await;
    world.send(&publisher, &orders, 0..30_000).await;
    let sink = Sink::start(&world);
    eventually("the first rows are there", async || world.count(&orders).await > 0).await;
    sink.kill().await;
    let (rows, applied) = (world.count(&orders).await, world.offsets().await);
    assert!(rows < 30_000, "the sink was quicker than the kill");
    assert!(rows >= applied, "positions of {applied} records are ahead of {rows} rows");
    let sink = Sink::start(&world);
    world.rows(&orders, 30_000).await;
    eventually("every record is accounted for", async || world.offsets().await == 30_000).await;
    assert!(sink.metrics.status().rows_written >= 30_000 - u64::try_from(rows).unwrap());
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_that_come_and_go_share_the_partitions_and_lose_nothing() {
    let world = World::new("share").await;
    let orders = table(&world.name("orders"), "v");
    let publisher = world.publisher(&[&orders]).await;
    let first = Sink::start(&world);
    let held = |sink: &Sink| sink.metrics.status().partitions.len();
    let (mut sent, mut second) = (0, None);
    // Writes go on while the second sink joins, and while the first leaves.
    for _ in 0..600 {
        world.send(&publisher, &orders, sent..sent + 100).await;
        sent += 100;
        if second.is_none() && held(&first) == 8 {
            second = Some(Sink::start(&world));
        }
        if second.as_ref().is_some_and(|second| held(&first) == 4 && held(second) == 4) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let second = second.expect("the first sink got all partitions");
    assert_eq!((held(&first), held(&second)), (4, 4), "the partitions are shared");
    world.send(&publisher, &orders, sent..sent + 1_000).await;
    first.stop().await;
    world.send(&publisher, &orders, sent + 1_000..sent + 2_000).await;
    world.rows(&orders, sent + 2_000).await;
    eventually("every record is accounted for", async || world.offsets().await == sent + 2_000).await;
    assert_eq!(held(&second), 8);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_holds_the_position_and_costs_nothing() {
    let mut world = World::new("broker").await;
    let broker = world.own_broker().await;
    let orders = table(&world.name("orders"), "v");
    let publisher = world.publisher(&[&orders]).await;
    let sink = Sink::start(&world);
    world.send(&publisher, &orders, 0..500).await;
    world.rows(&orders, 500).await;
    let broker = tokio::task::spawn_blocking(move || broker.kill().map(|()| broker)).await.unwrap().unwrap();
    let durable = publisher.durable();
    let before = *durable.borrow();
    // Queued without waiting, as the queue has room.
    publisher.send_batch(&[insert(&orders, 500)], position(500)).await.unwrap();
    assert_eq!(*durable.borrow(), before);
    let _broker = tokio::task::spawn_blocking(move || broker.start().map(|()| broker)).await.unwrap().unwrap();
    world.acknowledged(&publisher, 500).await;
    world.rows(&orders, 501).await;
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_written_pauses_its_own_topic_and_no_other() {
    let mut world = World::new("pause").await;
    world.sink.batch_bytes = 64 << 10;
    let (slow, quick) = (table(&world.name("slow"), "v"), table(&world.name("quick"), "v"));
    let publisher = world.publisher(&[&slow, &quick]).await;
    let sink = Sink::start(&world);
    world.send(&publisher, &slow, 0..1).await;
    world.rows(&slow, 1).await;
    let lock = world.client().await;
    lock.batch_execute(&format!("begin; lock table cdc_{} in access exclusive mode", slow.name)).await.unwrap();
    // Far more than the topic's share of memory.
    world.send(&publisher, &slow, 1..20_000).await;
    for batch in 0..20 {
        world.send(&publisher, &quick, batch * 10..batch * 10 + 10).await;
        world.rows(&quick, (batch + 1) * 10).await;
    }
    assert!(sink.metrics.status().pauses > 0);
    lock.batch_execute("rollback").await.unwrap();
    world.rows(&slow, 20_000).await;
    eventually("every record is accounted for", async || world.offsets().await == 20_200).await;
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applier_commits_in_order_drains_on_a_stop_and_gives_way_to_a_later_claim() {
    let world = World::new("applier").await;
    let orders = table(&world.name("orders"), "v");
    let target = cdc_sink::connect(&world.postgres).await.unwrap();
    let stream = StreamName(format!("node:{}", world.name("n")));
    let start = async |lifecycle: &cdc_runtime::Lifecycle| {
        let metrics = Arc::new(SinkMetrics::default());
        Applier::start(target.clone(), stream.clone(), &SinkConfig::default(), metrics, lifecycle).await.unwrap()
    };
    let batch = |key: i64| Batch { changes: vec![insert(&orders, key)], upto: format!("1:{key}"), ..Batch::default() };

    let lifecycle = cdc_runtime::Lifecycle::new();
    let applier = start(&lifecycle).await;
    assert_eq!(*applier.durable.borrow(), None);
    for key in 0..500 {
        applier.batches.send(batch(key)).await.unwrap();
    }
    lifecycle.stop();
    let durable = applier.durable.clone();
    drop(applier);
    assert_eq!(lifecycle.finish(Duration::from_secs(20)).await, Exit::Success);
    assert_eq!(durable.borrow().as_deref(), Some("1:499"));
    world.rows(&orders, 500).await;

    let fenced = cdc_runtime::Lifecycle::new();
    let old = start(&fenced).await;
    assert_eq!(old.durable.borrow().as_deref(), Some("1:499"));
    let lifecycle = cdc_runtime::Lifecycle::new();
    let new = start(&lifecycle).await;
    old.batches.send(batch(500)).await.unwrap();
    fenced.soft().cancelled().await;
    drop(old);
    assert_eq!(fenced.finish(Duration::from_secs(20)).await, Exit::Failure);
    new.batches.send(batch(501)).await.unwrap();
    let mut durable = new.durable.clone();
    durable.wait_for(|position| position.as_deref() == Some("1:501")).await.unwrap();
    lifecycle.stop();
    drop(new);
    assert_eq!(lifecycle.finish(Duration::from_secs(20)).await, Exit::Success);
}
