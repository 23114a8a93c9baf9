//! Writes of equal time, one case each: what Cassandra answers is written down here, and the model must answer the same.
//! The cases are kept as unit tests in `crates/model/tests/merge.rs`, which need no server.

use std::collections::BTreeMap;

use anyhow::Context as _;
use cdc_testkit::Cassandra;
use cdc_workload::every_change;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;

use super::answer::{self, Key, Rows};
use super::log;
use super::partition::Partition;

const KEYSPACE: &str = "ties";
const TABLE: &str = "create table ties.cells (k int, c int, s blob static, v blob, m map<tinyint, blob>, primary key (k, c)) \
    with cdc = true";

/// What, the statements at write time 10 where none is given, and the columns that are left of the row; `None` without
/// a row. Sent in every order, each to a partition `K` of its own.
type Case = (&'static str, &'static [&'static str], Option<&'static [(&'static str, &'static [u8])]>);

const CASES: [Case; 28] = [
    ("the larger value", &["SET v = 0x01", "SET v = 0x02"], Some(&[("v", &[2])])),
    ("bytes are unsigned", &["SET v = 0x7f", "SET v = 0x80"], Some(&[("v", &[0x80])])),
    ("more than its beginning", &["SET v = 0x01", "SET v = 0x0100"], Some(&[("v", &[1, 0])])),
    ("anything over empty", &["SET v = 0x00", "SET v = 0x"], Some(&[("v", &[0])])),
    ("deleted over the larger value", &["SET v = 0xff", "SET v = null"], None),
    ("deleted over empty", &["SET v = 0x", "SET v = null"], None),
    ("deleted over expiring", &["TTL 90000 SET v = 0x01", "SET v = null"], None),
    ("expiring over the larger value", &["TTL 90000 SET v = 0x01", "SET v = 0x02"], Some(&[("v", &[1])])),
    (
        "the later expiry over the larger value",
        &["TTL 90000 SET v = 0x01", "TTL 80000 SET v = 0x02"],
        Some(&[("v", &[1])]),
    ),
    ("expired over any value", &["TTL 1 SET v = 0x01", "SET v = 0x02"], None),
    ("expiring over expired", &["TTL 90000 SET v = 0x01", "TTL 1 SET v = 0x02"], Some(&[("v", &[1])])),
    ("three of a kind", &["TTL 1 SET v = 0x03", "SET v = 0x02", "TTL 90000 SET v = 0x01"], Some(&[("v", &[1])])),
    ("the row's deletion over its insertion", &["INSERT", "DELETE FROM ties.cells @10 WHERE k = K AND c = 0"], None),
    (
        "the row's deletion over its columns",
        &["INSERT", "SET v = 0x01", "SET m[1] = 0x01", "DELETE FROM ties.cells @10 WHERE k = K AND c = 0"],
        None,
    ),
    ("a range's deletion", &["INSERT", "DELETE FROM ties.cells @10 WHERE k = K AND c >= 0 AND c < 1"], None),
    (
        "a range's deletion without its bound",
        &["INSERT", "DELETE FROM ties.cells @10 WHERE k = K AND c > 0"],
        Some(&[]),
    ),
    ("the partition's deletion", &["INSERT", "SET s = 0x01", "DELETE FROM ties.cells @10 WHERE k = K"], None),
    (
        "no deletion of rows over a static column",
        &["SET s = 0x01", "DELETE FROM ties.cells @10 WHERE k = K AND c >= 0"],
        Some(&[("s", &[1])]),
    ),
    ("an expired insertion over one that stays", &["TTL 1 INSERT", "INSERT"], None),
    ("a later insertion over an expired one", &["TTL 1 INSERT", "11 INSERT"], Some(&[])),
    ("an expired insertion and a column that stays", &["TTL 1 INSERT", "SET v = 0x01"], Some(&[("v", &[1])])),
    (
        "an element of the time of the overwriting",
        &["SET m = {1: 0x01}", "SET m[2] = 0x02"],
        Some(&[("m", &[0, 0, 0, 2, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 2, 0, 0, 0, 1, 2])]),
    ),
    (
        "an element before the overwriting",
        &["SET m = {1: 0x01}", "9 SET m[2] = 0x02"],
        Some(&[("m", &[0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1])]),
    ),
    (
        "two overwritings",
        &["SET m = {1: 0x01}", "SET m = {1: 0x02, 3: 0x}"],
        Some(&[("m", &[0, 0, 0, 2, 0, 0, 0, 1, 1, 0, 0, 0, 1, 2, 0, 0, 0, 1, 3, 0, 0, 0, 0])]),
    ),
    (
        "an element of the time of overwriting with NULL",
        &["SET m = null", "SET m[2] = 0x02"],
        Some(&[("m", &[0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0, 0, 1, 2])]),
    ),
    (
        "an element of the time of the deletion",
        &["DELETE m FROM ties.cells @10 WHERE k = K AND c = 0", "SET m[2] = 0x02"],
        None,
    ),
    ("a deleted element over the overwriting", &["SET m = {1: 0x01}", "SET m[1] = null"], None),
    (
        "an expired element over one that stays",
        &["SET m = {1: 0x01, 2: 0x02}", "TTL 1 SET m[1] = 0x00"],
        Some(&[("m", &[0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0, 0, 1, 2])]),
    ),
];

#[test]
fn writes_of_equal_time_are_merged_as_every_release_does() {
    for version in crate::VERSIONS {
        let cassandra = Cassandra::builder().version(version).start().unwrap();
        Runtime::new().unwrap().block_on(compare(&cassandra)).with_context(|| version).unwrap();
    }
}

async fn compare(cassandra: &Cassandra) -> anyhow::Result<()> {
    let session = every_change::connect(&cassandra.contact_points()).await?;
    let replication = "{'class': 'SimpleStrategy', 'replication_factor': 1}";
    session.query_unpaged(format!("create keyspace {KEYSPACE} with replication = {replication}"), ()).await?;
    session.query_unpaged(TABLE, ()).await?;
    let mut sent = BTreeMap::new();
    for (_, statements, expected) in CASES {
        for order in orders(statements) {
            let key = i32::try_from(sent.len())?;
            let order: Vec<_> = order.into_iter().map(|statement| cql(statement, key)).collect();
            for statement in &order {
                session.query_unpaged(statement.as_str(), ()).await.with_context(|| statement.clone())?;
            }
            sent.insert(key.to_be_bytes().to_vec(), (order, expected));
        }
    }
    let logged = log::changes(cassandra.nodes(), KEYSPACE)?;
    let (table, partitions) = logged.first().context("nothing was logged")?;
    let (answer, now) = answer::ask(&session, table, partitions.values().flatten()).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut wrong = Vec::new();
    for (key, (statements, expected)) in &sent {
        let is_static = statements.iter().any(|statement| statement.contains("set s"));
        let row = (!is_static).then(|| vec![0_i32.to_be_bytes().to_vec()]);
        let expected: Rows = expected
            .map(|columns| columns.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect())
            .map(|columns| (Key { partition: vec![key.clone()], row }, columns))
            .into_iter()
            .collect();
        let of_key = |rows: &Rows| {
            rows.iter()
                .filter(|(own, _)| own.partition[0] == *key)
                .map(|(k, c)| (k.clone(), c.clone()))
                .collect::<Rows>()
        };
        if of_key(&answer) != expected {
            wrong.push(format!("Cassandra answers {:?}, not {expected:?}, to {statements:#?}", of_key(&answer)));
        }
        let changes = &partitions[&key[..]];
        for _ in 0..super::FOLDS {
            let mut shown = Rows::new();
            let merged = Partition::in_any_order(table, changes, &mut rng);
            answer::show(table, key, &merged, now, &mut shown);
            if shown != expected {
                wrong.push(format!("the model shows {shown:?}, not {expected:?}, of {statements:#?}"));
            }
        }
    }
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// `[time] [TTL seconds] (INSERT | SET assignment | whole statement)`
fn cql(statement: &str, key: i32) -> String {
    let (time, rest) = match statement.split_once(' ') {
        Some((time, rest)) if time.parse::<i64>().is_ok() => (time, rest),
        _ => ("10", statement),
    };
    let (using, rest) = match rest.strip_prefix("TTL ").and_then(|rest| rest.split_once(' ')) {
        Some((ttl, rest)) => (format!("using timestamp {time} and ttl {ttl}"), rest),
        None => (format!("using timestamp {time}"), rest),
    };
    if rest == "INSERT" {
        format!("insert into ties.cells (k, c) values ({key}, 0) {using}")
    } else if let Some(assignment) = rest.strip_prefix("SET ") {
        let row = if assignment.starts_with('s') { "" } else { " and c = 0" };
        format!("update ties.cells {using} set {assignment} where k = {key}{row}")
    } else {
        rest.replace("@10", &using).replace("k = K", &format!("k = {key}"))
    }
}

fn orders<'s>(statements: &[&'s str]) -> Vec<Vec<&'s str>> {
    if statements.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for index in 0..statements.len() {
        let mut rest = statements.to_vec();
        let first = rest.remove(index);
        all.extend(orders(&rest).into_iter().map(|order| [vec![first], order].concat()));
    }
    all
}
