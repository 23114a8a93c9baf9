//! Truncations remove by place, on every node and for good.

use std::{collections::HashMap, sync::Arc};

use anyhow::Result;
use cdc_model::{
    Change, ChangeBody, NodeId, Provenance, SegmentId, SegmentPosition, TableSchema, TableTruncation, TruncatedAt,
};
use cdc_postgres::{
    ApplyError, Delivery, Disposition, LetterFilter, LetterStatus, Replayed, Target, TargetError, Undecodable,
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use crate::support::{
    Database, change, clustering, delete_partition, delete_row, expected, insert, live, marker, now, orders, state,
    stored, text,
};

fn place(offset: u64) -> SegmentPosition {
    SegmentPosition { segment: SegmentId(1), offset }
}

/// As node `node` logged it.
fn at(node: u128, offset: u64, mut change: Change) -> Change {
    change.provenance = Provenance { node: NodeId(Uuid::from_u128(node)), position: place(offset) };
    change
}

fn truncation<const N: usize>(table: &Arc<TableSchema>, nodes: [(u128, u64); N]) -> TableTruncation {
    let at = nodes.into_iter().map(|(node, offset)| (NodeId(Uuid::from_u128(node)), place(offset))).collect();
    TableTruncation { table: Arc::clone(table), at }
}

async fn truncate(target: &Target, truncation: TableTruncation) -> Result<(), ApplyError> {
    target.deliver(Delivery { truncations: vec![truncation], ..Delivery::default() }).await.map(drop)
}

/// As the sink does.
async fn deliver(target: &Target, changes: &[Change], truncations: &[TableTruncation]) -> Result<()> {
    loop {
        let (changes, truncations) = (changes.to_vec(), truncations.to_vec());
        match target.deliver(Delivery { changes, truncations, ..Delivery::default() }).await {
            Err(ApplyError::Target(TargetError::Overtaken { .. })) => {}
            outcome => {
                outcome?;
                return Ok(());
            }
        }
    }
}

async fn keys(database: &Database) -> Result<Vec<String>> {
    Ok(stored(database, "").await?.into_keys().collect())
}

#[tokio::test]
async fn what_each_node_wrote_up_to_its_place_is_gone_for_good_and_nothing_else() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let future = 4_000_000_000_000_000;
    let before = vec![
        at(1, 10, insert(&table, "p", 1, 1, "a", 5)),
        at(1, 20, insert(&table, "p", 2, 2, "a", future)),
        at(2, 900, insert(&table, "p", 3, 3, "a", 5)),
        at(2, 900, change(&table, "p", ChangeBody::Static(state(&table, None, vec![("st", live(5, text("s")))])))),
        at(2, 910, delete_partition(&table, "q", future)),
        at(2, 920, delete_row(&table, "r", 1, future)),
    ];
    target.apply(before.clone(), &[]).await?;
    truncate(&target, truncation(&table, [(1, 20), (2, 950)])).await?;
    assert!(keys(&database).await?.is_empty());
    let kept = "select (select count(*) from _cdc.remains) + (select count(*) from _cdc.tombstones)";
    assert_eq!(database.number(kept).await?, 0);
    // Again, and for the first time though it stands before.
    let late = at(2, 940, insert(&table, "p", 4, 4, "late", future));
    let applied = target.apply(before.into_iter().chain([late]).collect(), &[]).await?;
    assert_eq!(applied.rows_written, 0);
    // Of an old write time, and where the deletions are gone, too; at a place that is another node's.
    let after = vec![
        at(1, 21, insert(&table, "p", 1, 1, "b", 1)),
        at(2, 951, insert(&table, "q", 1, 1, "b", 1)),
        at(2, 951, insert(&table, "r", 1, 1, "b", 1)),
        at(3, 1, insert(&table, "s", 1, 1, "b", 1)),
    ];
    target.apply(after, &[]).await?;
    assert_eq!(keys(&database).await?, ["p/1", "q/1", "r/1", "s/1"]);
    // Nothing in it is new.
    let generation = "select generation from _cdc.tables";
    let known = database.number(generation).await?;
    for again in [truncation(&table, [(1, 20), (2, 950)]), truncation(&table, [(2, 7)]), truncation(&table, [])] {
        truncate(&database.target().await?, again).await?;
    }
    assert_eq!((keys(&database).await?.len(), database.number(generation).await?), (4, known));
    // One that is later on one node and earlier on another.
    truncate(&target, truncation(&table, [(1, 5), (3, 1)])).await?;
    let again = vec![
        at(1, 20, insert(&table, "p", 1, 1, "gone", 1)),
        at(1, 21, insert(&table, "p", 1, 1, "b", 1)),
        at(3, 1, insert(&table, "s", 1, 1, "gone", 1)),
        at(2, 951, insert(&table, "q", 1, 1, "b", 1)),
    ];
    target.apply(again, &[]).await?;
    assert_eq!(keys(&database).await?, ["p/1", "q/1"]);
    Ok(())
}

#[tokio::test]
async fn a_writer_that_is_behind_renews_and_drops_before_it_commits() -> Result<()> {
    let database = Database::create().await?;
    let (writer, other) = (database.target().await?, database.target().await?);
    let table = orders();
    writer.apply(vec![at(1, 10, insert(&table, "p", 1, 1, "a", 5))], &[]).await?;
    truncate(&other, truncation(&table, [(1, 20)])).await?;
    // One of them is gone, and of one row is the other that stays.
    let changes = vec![
        at(1, 15, insert(&table, "p", 1, 1, "gone", 9)),
        at(1, 21, insert(&table, "p", 1, 2, "stays", 1)),
        at(1, 15, insert(&table, "p", 2, 1, "gone", 9)),
    ];
    let overtaken = writer.apply(changes.clone(), &[]).await.unwrap_err();
    assert!(matches!(&overtaken, ApplyError::Target(TargetError::Overtaken { .. })), "{overtaken}");
    assert!(keys(&database).await?.is_empty());
    writer.apply(changes, &[]).await?;
    assert_eq!(database.rows("select c, t from \"cdc_Orders\"").await?, [["1", "stays"].map(|v| Some(v.to_owned()))]);
    // One truncation and the changes around it in one delivery, through a writer that has never seen the table.
    let around = [at(1, 30, insert(&table, "p", 3, 1, "gone", 9)), at(1, 41, insert(&table, "p", 4, 1, "stays", 9))];
    deliver(&database.target().await?, &around, &[truncation(&table, [(1, 40)])]).await?;
    assert_eq!(keys(&database).await?, ["p/4"]);
    // The sweeper of a writer that is behind finds nothing of what was.
    assert_eq!(writer.sweep_expired(now()).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_foreign_key_in_the_way_halts_the_table_with_the_remedy() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    target.apply(vec![at(1, 10, insert(&table, "p", 1, 1, "a", 5))], &[]).await?;
    let client = database.client().await?;
    client.batch_execute("create table mine (p text, c int, foreign key (p, c) references \"cdc_Orders\")").await?;
    let error = truncate(&target, truncation(&table, [(1, 20)])).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Halt);
    assert!(error.to_string().contains("foreign key"), "{error}");
    client.batch_execute("drop table mine").await?;
    truncate(&target, truncation(&table, [(1, 20)])).await?;
    assert!(keys(&database).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn dead_letters_of_a_truncated_past_are_superseded_and_later_ones_are_not() -> Result<()> {
    let database = Database::create().await?;
    let target = database.target().await?;
    let table = orders();
    let bad = |offset, c| {
        let row = state(&table, Some(marker(5)), vec![("t", live(5, text("\0")))]);
        at(1, offset, change(&table, "p", ChangeBody::Row { clustering: clustering(c), row }))
    };
    assert_eq!(target.apply(vec![bad(10, 1), bad(30, 2)], &[]).await?.quarantined, 2);
    truncate(&target, truncation(&table, [(1, 20)])).await?;
    // What was captured behind the place comes again, and is what it was; what is gone does not.
    let applied = target.apply(vec![bad(10, 1), bad(30, 2)], &[]).await?;
    assert_eq!(applied.quarantined, 1);
    let letters = target.dead_letters(&LetterFilter::default(), false).await?;
    let of = |position: &str| letters.iter().find(|letter| letter.position.as_deref() == Some(position)).cloned();
    let (gone, stays) = (of("1:10").expect("is there"), of("1:30").expect("is there"));
    assert_eq!((gone.status.as_str(), stays.status.as_str()), ("resolved", "unresolved"));
    assert!(gone.resolution.as_deref().is_some_and(|text| text.contains("truncated")), "{gone:?}");
    assert_eq!(gone.history[1]["code"], "TRUNCATED");
    // Between reading a letter and writing it.
    let other = database.target().await?;
    truncate(&other, truncation(&table, [(1, 40)])).await?;
    let mut outcomes = Vec::new();
    let never = |_: &_, _: &HashMap<_, _>| -> Result<Change, Undecodable> { unreachable!("no records") };
    target.replay_dead_letters(&[gone.id, stays.id], false, &never, |_, outcome| outcomes.push(outcome)).await?;
    assert_eq!(outcomes, [Replayed::Settled, Replayed::Settled]);
    let unresolved = LetterFilter { status: Some(LetterStatus::Unresolved), ..LetterFilter::default() };
    assert!(target.dead_letter_ids(&unresolved).await?.is_empty());
    Ok(())
}

const NODES: usize = 3;
const PARTITIONS: usize = 2;
const TRUNCATIONS: usize = 3;

/// What an agent sends of one node's log to each partition of a topic.
#[derive(Clone)]
enum Sent {
    Change(Change),
    Truncation(TableTruncation),
}

/// Nodes that log changes and truncations at random, and their agents: what they send, and what stays in the end.
fn agents(rng: &mut impl Rng, table: &Arc<TableSchema>) -> (Vec<[Vec<Sent>; PARTITIONS]>, Vec<Change>) {
    // Places and records of each truncation on each node, some changes apart.
    let mut places = vec![vec![(0, 0); TRUNCATIONS]; NODES];
    for node in &mut places {
        let mut offset = 0;
        for (place, record) in node {
            *place = offset + rng.random_range(0..15);
            *record = *place + rng.random_range(0..8);
            offset = *record;
        }
    }
    let (mut streams, mut stay) = (Vec::new(), Vec::new());
    for (own, places_here) in places.iter().enumerate() {
        let node = own as u128 + 1;
        let mut stream: [Vec<Sent>; PARTITIONS] = Default::default();
        let mut log: Vec<(u64, usize, Change)> = Vec::new();
        let end = places_here[TRUNCATIONS - 1].1 + rng.random_range(0..15);
        for offset in 1..=end {
            let partition = rng.random_range(0..PARTITIONS);
            let (p, c) = (format!("p{partition}"), rng.random_range(0..4));
            let time = rng.random_range(0..1000);
            let change = match rng.random_range(0..12) {
                0 => delete_partition(table, &p, time),
                1 | 2 => delete_row(table, &p, c, time),
                _ => insert(table, &p, c, rng.random_range(0..1000), "t", time),
            };
            let change = at(node, offset, change);
            stream[partition].push(Sent::Change(change.clone()));
            log.push((offset, partition, change));
            for (turn, (place, _)) in places_here.iter().enumerate().filter(|(_, (_, record))| *record == offset) {
                // The other nodes may be ahead of what this agent reads.
                let ahead = |other: usize| {
                    let turn = if other == own { turn } else { rng.random_range(turn..TRUNCATIONS) };
                    (NodeId(Uuid::from_u128(other as u128 + 1)), self::place(places[other][turn].0))
                };
                let at: TruncatedAt = (0..NODES).map(ahead).collect();
                let truncation = TableTruncation { table: Arc::clone(table), at };
                stream.iter_mut().for_each(|sent| sent.push(Sent::Truncation(truncation.clone())));
                for (_, partition, again) in log.iter().filter(|(offset, ..)| offset > place) {
                    stream[*partition].push(Sent::Change(again.clone()));
                }
            }
        }
        let last = places_here[TRUNCATIONS - 1].0;
        stay.extend(log.into_iter().filter(|(offset, ..)| *offset > last).map(|(.., change)| change));
        streams.push(stream);
    }
    (streams, stay)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_order_in_which_streams_are_applied_what_stays_is_there() -> Result<()> {
    for seed in 0..6 {
        let database = Database::create().await?;
        let table = orders();
        let mut rng = StdRng::seed_from_u64(seed);
        let (streams, stay) = agents(&mut rng, &table);
        let mut writers = tokio::task::JoinSet::new();
        for sent in streams.into_iter().flatten() {
            let (target, mut rng) = (database.target().await?, StdRng::seed_from_u64(rng.random()));
            writers.spawn(async move {
                let mut next = 0;
                while next < sent.len() {
                    let end = (next + rng.random_range(1..10)).min(sent.len());
                    let (mut changes, mut truncations) = (Vec::new(), Vec::new());
                    for each in sent[next..end].iter().cloned() {
                        match each {
                            Sent::Change(change) => changes.push(change),
                            Sent::Truncation(truncation) => truncations.push(truncation),
                        }
                    }
                    deliver(&target, &changes, &truncations).await?;
                    // Now and then it was killed, and goes on at a place it had passed.
                    next = if rng.random_range(0..8) == 0 { rng.random_range(0..=end) } else { end };
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = writers.join_next().await {
            done??;
        }
        let shown = if stay.is_empty() { Default::default() } else { expected(&stay, now()) };
        assert_eq!(stored(&database, "p").await?, shown, "seed {seed}");
    }
    Ok(())
}
