//! The load, the probe and the oracle against real servers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use cdc_testkit::{Cassandra, Postgres};
use cdc_workload::oracle::{self, DifferenceKind};
use cdc_workload::{DelayProbe, Load, LoadOptions, shop};
use scylla::client::session::Session;
use tokio::sync::mpsc;
use tokio_postgres::NoTls;

struct Stores {
    session: Arc<Session>,
    postgres: Postgres,
    _cassandra: Cassandra,
}

impl Stores {
    async fn start() -> Self {
        let cassandra = tokio::task::spawn_blocking(Cassandra::start);
        let postgres = tokio::task::spawn_blocking(Postgres::start);
        let cassandra = cassandra.await.unwrap().unwrap();
        let postgres = postgres.await.unwrap().unwrap();
        let session = Arc::new(cdc_workload::connect(&cassandra.contact_points()).await.unwrap());
        Self { session, postgres, _cassandra: cassandra }
    }

    async fn client(&self) -> (tokio_postgres::Client, impl Future) {
        tokio_postgres::connect(&self.postgres.url(), NoTls).await.unwrap()
    }

    async fn cql(&self, statement: &str) {
        self.session.query_unpaged(statement, &[]).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

#[tokio::test]
async fn every_statement_of_the_load_is_accepted_and_an_empty_target_misses_every_row() {
    let stores = Stores::start().await;
    shop::create_schema(&stores.session, 1).await.unwrap();
    let options = LoadOptions { rate: None, limit: Some(30_000), ..LoadOptions::default() };
    let mut load = Load::new(stores.session.clone(), options, None);
    load.run(std::future::pending()).await;
    let counters = load.counters();
    assert_eq!(counters.first_failure(), None);
    assert!(counters.acknowledged() >= 30_000);

    let (client, connection) = stores.client().await;
    let report = tokio::select! {
        report = oracle::compare(&stores.session, &client, shop::KEYSPACE, &shop::TABLES) => report.unwrap(),
        _ = connection => panic!("connection lost"),
    };
    for table in &report.tables {
        assert!(table.rows > 100, "{table:?}");
        assert_eq!((table.extra, table.differing), (0, 0), "{report}");
        assert_eq!(table.missing, table.rows + table.static_rows);
    }
    assert!(report.tables[1].static_rows > 100);
}

#[tokio::test]
async fn the_oracle_finds_each_kind_of_difference_and_nothing_else() {
    let stores = Stores::start().await;
    stores.cql("create keyspace k with replication = {'class': 'SimpleStrategy', 'replication_factor': 1}").await;
    stores.cql("create type k.pair (a int, b text)").await;
    stores
        .cql(
            "create table k.t (p decimal, c timestamp, s frozen<list<int>> static, a map<int, text>, b pair, d vector<float, 2>, \
             e frozen<set<text>>, f duration, g tuple<int, text>, h time, i varint, primary key (p, c))",
        )
        .await;
    let full =
        "{7: 'x', -1: ''}, {a: 1}, [1.5, 2], {'b', 'a'}, 1mo2d3s, (1, null), '01:02:03.000004', 99999999999999999999";
    for key in ["1.50, '2024-02-29T00:00:00.001Z'", "-2, 0", "3, 0"] {
        stores.cql(&format!("insert into k.t (p, c, a, b, d, e, f, g, h, i) values ({key}, {full})")).await;
    }
    stores.cql("insert into k.t (p, c, a, e) values (4, 0, {}, {})").await;
    stores.cql("insert into k.t (p, s) values (5, [1])").await;

    let (client, connection) = stores.client().await;
    let target = r#"
        create table cdc_t (p numeric, c timestamptz, a jsonb, b jsonb, d jsonb, e jsonb, f text, g jsonb, h time, i numeric,
            _cdc_state bytea, primary key (p, c));
        create table cdc_t__static (p numeric primary key, s jsonb);
        insert into cdc_t select p, c, '{"-1": "", "7": "x"}', '{"a": 1, "b": null}', '[1.5, 2]', '["a", "b"]', 'P1M2DT3S',
            '[1, null]', '01:02:03.000004', 99999999999999999999
            from (values (1.5, timestamptz '2024-02-29 00:00:00.001Z'), (-2, '1970-01-01Z')) as keys (p, c);
        insert into cdc_t (p, c, e) values (4, '1970-01-01Z', '[]'), (6, '1970-01-01Z', null);
        update cdc_t set d = '[1.5, 3]' where p = -2;
        insert into cdc_t__static values (5, '[1]'), (4, null);
    "#;
    let report = tokio::select! {
        report = async {
            client.batch_execute(target).await.unwrap();
            oracle::compare(&stores.session, &client, "k", &["t"]).await.unwrap()
        } => report,
        _ = connection => panic!("connection lost"),
    };
    let table = &report.tables[0];
    assert_eq!(
        (table.rows, table.static_rows, table.missing, table.extra, table.differing),
        (4, 1, 1, 1, 1),
        "{report}"
    );
    let values = report.examples().find_map(|it| match &it.kind {
        DifferenceKind::Values(columns) => Some(columns.iter().map(|it| it.column.as_str()).collect::<Vec<_>>()),
        DifferenceKind::Missing | DifferenceKind::Extra => None,
    });
    assert_eq!(values, Some(vec!["d"]));
}

#[tokio::test]
async fn the_probe_sees_a_row_that_comes_after_it_started_to_wait() {
    let postgres = tokio::task::spawn_blocking(Postgres::start).await.unwrap().unwrap();
    let (sender, samples) = mpsc::channel(8);
    let probe = DelayProbe::new(postgres.url().parse().unwrap(), "public.cdc_users", samples);
    let delays = probe.delays();
    let id = uuid::Uuid::from_u128(7);
    sender.send(cdc_workload::Sample { id, acknowledged: std::time::Instant::now() }).await.unwrap();
    drop(sender);
    let (client, connection) = tokio_postgres::connect(&postgres.url(), NoTls).await.unwrap();
    let row_comes = async {
        client.batch_execute("create table cdc_users (id uuid primary key)").await.unwrap();
        while delays.lock().unwrap().pending() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        client.execute("insert into cdc_users values ($1)", &[&id]).await.unwrap();
    };
    let all = async { tokio::join!(probe.run(), row_comes) };
    tokio::select! {
        _ = tokio::time::timeout(Duration::from_secs(20), all) => {}
        _ = connection => panic!("connection lost"),
    }
    let delays = delays.lock().unwrap();
    assert_eq!(delays.count(), 1);
    assert!(delays.percentile_ms(50.0) > 0.1, "a table was created and a row written meanwhile");
}
