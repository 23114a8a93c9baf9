//! `cdc dlq` against a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::sync::Arc;

use bytes::Bytes;
use cdc_model::{
    Cell, Change, ChangeBody, Clustering, Column, ColumnId, ColumnKind, ColumnState, CqlType, KeyColumn, Liveness,
    LocalTime, NodeId, Provenance, RowState, SegmentId, SegmentPosition, TableId, TableSchema, WriteTime,
};
use cdc_postgres::{Delivery, ErrorType, Original, PostgresConfig, Target, Undecoded};
use cdc_runtime::Secret;
use cdc_testkit::Postgres;
use serde_json::Value;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::{CONFIG, Files, OK, Said, UNAVAILABLE, USAGE, cdc, said};

const FAILURE: i32 = 1;

/// A database with letters in it, and a file that names it.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) server: Postgres,
    pub(crate) config: PostgresConfig,
    target: Target,
    orders: Arc<TableSchema>,
    pub(crate) files: Files,
    pub(crate) file: String,
}

impl World {
    pub(crate) fn new() -> Self {
        let server = Postgres::start().unwrap();
        let url: tokio_postgres::Config = server.url().parse().unwrap();
        let password = std::str::from_utf8(url.get_password().unwrap()).unwrap().to_owned();
        let (user, address) = (url.get_user().unwrap().to_owned(), server.address());
        let database = url.get_dbname().unwrap().to_owned();
        let mut config = PostgresConfig::new(address.ip().to_string(), address.port(), &database, &user);
        config.password = Some(Secret::new(&password));
        let runtime = Runtime::new().unwrap();
        let target = runtime.block_on(Target::connect(&config)).unwrap();
        let files = Files::new();
        let file = files.write(&format!(
            "kafka: {{bootstrap_servers: ['127.0.0.1:1']}}\n\
             postgres: {{host: {}, port: {}, database: {database}, username: {user}, password: {password}, pool_size: 1}}\n",
            address.ip(),
            address.port(),
        ));
        let orders = TableSchema {
            id: TableId(Uuid::from_u128(7)),
            keyspace: "shop".to_owned(),
            name: "orders".to_owned(),
            partition_key: vec![KeyColumn { name: "k".to_owned(), ty: CqlType::Text, reversed: false }],
            clustering: Vec::new(),
            columns: vec![Column { name: "v".to_owned(), ty: CqlType::Text, kind: ColumnKind::Regular, dropped: None }],
            cdc: true,
            gc_grace_seconds: 864_000,
        };
        Self { runtime, server, config, target, orders: Arc::new(orders.new().unwrap()), files, file }
    }

    fn insert(&self, key: String, value: &str) -> Change {
        let time = WriteTime(1_700_000_000_000_000);
        let cell = Cell::live(time, Bytes::copy_from_slice(value.as_bytes()));
        let row = RowState {
            liveness: Some(Liveness { time, ttl: 0, expires: LocalTime::NONE }),
            deletion: None,
            columns: vec![(ColumnId(0), ColumnState::Simple(cell))],
        };
        let position = SegmentPosition { segment: SegmentId(1), offset: 1 };
        Change {
            table: Arc::clone(&self.orders),
            partition_key: key.as_bytes().into(),
            body: ChangeBody::Row { clustering: Clustering::default(), row },
            provenance: Provenance { node: NodeId(Uuid::nil()), position },
        }
    }

    pub(crate) fn sql(&self, sql: &str) {
        let url = self.server.url();
        self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            tokio::select! {
                done = client.batch_execute(sql) => done.unwrap(),
                _ = connection => panic!("the connection ended"),
            }
        });
    }

    /// Of 150 rows with `secret`, and a record of garbage.
    pub(crate) fn plant(&self) {
        self.runtime.block_on(self.target.prepare_table(Arc::clone(&self.orders))).unwrap();
        self.sql("alter table cdc_orders add constraint open_only check (v <> 'secret')");
        let changes = (0..150).map(|key| self.insert(format!("key{key}"), "secret")).collect();
        let original = Original {
            topic: "cdc-events-orders".to_owned(),
            partition: 0,
            offset: 5,
            timestamp_ms: None,
            key: Some(Bytes::from_static(b"key")),
            value: Some(Bytes::from_static(b"secret")),
            headers: Vec::new(),
        };
        let undecoded = vec![Undecoded {
            original,
            table: None,
            error_type: ErrorType::DecodeError,
            code: "NOT_SINGLE_OBJECT".to_owned(),
            message: "the record was not written by cdc".to_owned(),
        }];
        let delivery = Delivery { changes, undecoded, ..Delivery::default() };
        assert_eq!(self.runtime.block_on(self.target.deliver(delivery)).unwrap().quarantined, 151);
    }

    fn dlq(&self, command: &str, more: &[&str]) -> Said {
        said(cdc(&["dlq", command, &self.file]).args(more))
    }

    fn json(&self, command: &str, more: &[&str], code: i32) -> Value {
        let said = said(cdc(&["dlq", command, &self.file, "--output", "json"]).args(more));
        assert_eq!(said.code, Some(code), "{}", said.err);
        assert!(!said.out.contains("secret") || more.contains(&"--values"), "no values: {}", said.out);
        serde_json::from_str(&said.out).unwrap()
    }
}

#[test]
fn letters_are_listed_shown_replayed_and_discarded() {
    let world = World::new();
    world.plant();

    let said = world.dlq("list", &["--table", "shop.orders"]);
    assert!(
        said.code == Some(OK) && said.out.contains("SQLSTATE_23514") && said.out.contains("oldest 100"),
        "{}",
        said.out
    );
    assert_eq!(world.json("list", &["--limit", "1000"], OK).as_array().unwrap().len(), 151);
    assert_eq!(world.json("list", &["--error-type", "DECODE_ERROR"], OK).as_array().unwrap().len(), 1);
    assert_eq!(world.json("list", &["--status", "resolved"], OK).as_array().unwrap().len(), 0);
    assert_eq!(world.json("list", &["--until", "yesterday"], OK).as_array().unwrap().len(), 0);
    let stats = world.json("stats", &[], OK);
    assert_eq!((&stats["total"], &stats["unresolved"]), (&Value::from(151), &Value::from(151)));
    assert!(world.dlq("stats", &[]).out.contains("151 letters"));

    let letter = &world.json("list", &["--table", "shop.orders", "--limit", "1"], OK)[0];
    let id = letter["id"].as_str().unwrap();
    let shown = world.dlq("show", &["--id", id]);
    assert!(shown.out.contains("open_only") && !shown.out.contains("key1"), "{}", shown.out);
    let shown = &world.json("show", &["--id", id, "--values"], OK)[0];
    assert_eq!(shown["changes"][0]["cells"][0]["value"], "secret", "{shown}");

    let rehearsed = world.json("replay", &["--table", "shop.orders", "--dry-run"], FAILURE);
    assert_eq!((&rehearsed["counts"]["refused"], &rehearsed["dry_run"]), (&Value::from(150), &Value::from(true)));
    let refused = world.dlq("replay", &["--id", id]);
    assert!(refused.code == Some(FAILURE) && refused.out.contains("open_only"), "{}", refused.out);
    let letter = &world.json("list", &["--id", id], OK)[0];
    assert_eq!((&letter["attempts"], &letter["history"][1]["by"]), (&Value::from(2), &Value::from("replay")));

    world.sql("alter table cdc_orders drop constraint open_only");
    let replayed = world.json("replay", &["--table", "shop.orders"], OK);
    assert_eq!((&replayed["matched"], &replayed["counts"]["applied"]), (&Value::from(150), &Value::from(150)));
    assert_eq!(world.json("replay", &["--table", "shop.orders"], OK)["matched"], 0);
    assert_eq!(world.json("replay", &["--id", id], OK)["counts"]["settled"], 1);

    assert_eq!(world.json("replay", &[], FAILURE)["counts"]["refused"], 1);
    assert_eq!(world.json("discard", &["--dry-run"], OK)["matched"], 1);
    let asked = world.dlq("discard", &[]);
    assert!(asked.code == Some(USAGE) && asked.err.contains("--yes"), "{}", asked.err);
    assert_eq!(world.json("discard", &["--yes", "--reason", "garbage"], OK)["discarded"], 1);
    let left = &world.json("list", &["--status", "discarded"], OK)[0];
    assert_eq!((&left["resolution"], &left["kind"]), (&Value::from("garbage"), &Value::from("record")));
}

#[test]
fn what_is_wrong_with_a_dlq_command_is_said_before_anything_is_done() {
    let world = World::new();
    world.plant();
    let time = world.dlq("list", &["--since", "soon"]);
    assert!(time.code == Some(USAGE) && time.err.contains("--since"), "{}", time.err);
    let kind = world.dlq("list", &["--error-type", "ODD"]);
    assert!(kind.code == Some(USAGE) && kind.err.contains("SCHEMA_MISMATCH"), "{}", kind.err);
    assert_eq!(world.dlq("show", &["--id", &Uuid::nil().to_string()]).code, Some(FAILURE));
    let files = Files::new();
    let file = files.write("kafka: {bootstrap_servers: ['127.0.0.1:1']}\n");
    assert_eq!(said(&mut cdc(&["dlq", "list", &file])).code, Some(CONFIG));
    let nowhere = files.write(&files.nowhere());
    assert_eq!(said(&mut cdc(&["dlq", "list", &nowhere])).code, Some(UNAVAILABLE));
}
