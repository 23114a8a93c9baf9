//! Against a real node: what it says about itself, and its schema.

use cdc_cassandra::checks::{Wanted, node_faults, table_faults};
use cdc_cassandra::{Cassandra, CassandraConfig, CassandraError, ClusterReader, Consistency, Fields};
use cdc_commitlog::SchemaHistory;
use cdc_model::{Column, ColumnKind, ColumnState, CqlType, RowState, TableSchema, TokenRange, WriteTime};
use cdc_runtime::Lifecycle;

const STATEMENTS: [&str; 13] = [
    "create keyspace k with replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
    "create type k.inner (x int, y text)",
    "create type k.\"Outer\" (i frozen<inner>, l list<frozen<inner>>)",
    "create table k.scalars (id int primary key, a ascii, b bigint, c blob, d boolean, e date, f decimal, g double, \
     h duration, i float, j inet, k smallint, l text, m time, n timestamp, o timeuuid, p tinyint, q uuid, r varchar, \
     s varint) with cdc = true and gc_grace_seconds = 77",
    "create table k.nested (id int primary key, a list<int>, b set<text>, c map<text, frozen<list<int>>>, \
     d frozen<map<int, int>>, e tuple<int, text>, f inner, g frozen<\"Outer\">, h vector<float, 3>)",
    "create table k.clustered (p2 text, p1 int, c1 int, c2 text, s text static, v int, primary key ((p2, p1), c1, c2)) \
     with clustering order by (c1 desc, c2 asc)",
    "create table k.counters (id int primary key, n counter)",
    "create table k.changing (id int primary key, gone text, back int, stays int)",
    "alter table k.changing drop gone",
    "alter table k.changing drop back",
    "alter table k.changing add back int",
    "create table k.users (id int primary key) with cdc = true",
    "create table k.\"Plain\" (id int primary key)",
];

fn column(table: &TableSchema, name: &str) -> Column {
    table.columns.iter().find(|column| column.name == name).unwrap_or_else(|| panic!("no column {name}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_its_identity_settings_and_the_schema_of_every_table() -> anyhow::Result<()> {
    let server = tokio::task::spawn_blocking(cdc_testkit::Cassandra::start).await??;
    let config = CassandraConfig::new(server.node(0).address());
    let node = Cassandra::connect_when_ready(&config, &Lifecycle::new()).await.expect("nothing stops it");
    assert!(node.release_version().starts_with("5.0"), "{node:?}");
    assert_eq!(node.host_id(), Cassandra::connect(&config).await?.host_id());

    let settings = node.settings().await?;
    assert_eq!(settings.cdc_enabled(), Some(true), "{settings:?}");
    assert_eq!(settings.cdc_raw_directory(), Some(server.node(0).cdc_raw_dir().as_path()), "{settings:?}");
    assert!(node_faults(&settings).is_empty(), "{settings:?}");

    for statement in STATEMENTS {
        node.session().query_unpaged(statement, ()).await?;
    }
    let tables = node.load_schema().await?;
    let find = |keyspace: &str, name: &str| {
        let found = tables.iter().find(|table| table.keyspace == keyspace && table.name == name);
        found.unwrap_or_else(|| panic!("no table {keyspace}.{name}"))
    };
    assert!(find("system", "local").partition_key.len() == 1, "the log has mutations of system tables, too");
    let custom: Vec<_> = tables
        .iter()
        .flat_map(|table| table.columns.iter().map(move |column| (table.full_name(), column)))
        .filter(|(_, column)| matches!(column.ty, CqlType::Custom(_)))
        .collect();
    assert!(custom.is_empty(), "every type of this release is understood: {custom:?}");

    let scalars = find("k", "scalars");
    assert!(scalars.cdc && scalars.gc_grace_seconds == 77);
    assert_eq!(scalars.partition_key[0].ty, CqlType::Int);
    let types: Vec<CqlType> = scalars.columns.iter().map(|column| column.ty.clone()).collect();
    use CqlType::{
        Ascii, BigInt, Blob, Boolean, Counter, Date, Decimal, Double, Duration, Float, Inet, SmallInt, Text, Time,
        TimeUuid, Timestamp, TinyInt, Uuid, Varint,
    };
    assert_eq!(
        types,
        [
            Ascii, BigInt, Blob, Boolean, Date, Decimal, Double, Duration, Float, Inet, SmallInt, Text, Time,
            Timestamp, TimeUuid, TinyInt, Uuid, Text, Varint
        ]
    );

    let nested = find("k", "nested");
    assert!(!nested.cdc);
    assert!(matches!(column(nested, "a").ty, CqlType::List { frozen: false, .. }));
    assert!(matches!(column(nested, "d").ty, CqlType::Map { frozen: true, .. }));
    assert_eq!(column(nested, "e").ty, CqlType::Tuple(vec![CqlType::Int, Text]));
    let CqlType::Udt { fields, frozen: false, .. } = column(nested, "f").ty else { panic!("not a user type") };
    assert_eq!(fields, [("x".to_owned(), CqlType::Int), ("y".to_owned(), Text)]);
    let CqlType::Udt { name, fields, frozen: true, .. } = column(nested, "g").ty else { panic!("not a user type") };
    assert_eq!(name, "Outer");
    assert!(matches!(&fields[0].1, CqlType::Udt { name, frozen: true, .. } if name == "inner"));
    assert_eq!(column(nested, "h").ty, CqlType::Vector { element: Box::new(Float), dimension: 3 });

    let clustered = find("k", "clustered");
    let names = |columns: &[cdc_model::KeyColumn]| -> Vec<(String, bool)> {
        columns.iter().map(|column| (column.name.clone(), column.reversed)).collect()
    };
    assert_eq!(names(&clustered.partition_key), [("p2".to_owned(), false), ("p1".to_owned(), false)]);
    assert_eq!(names(&clustered.clustering), [("c1".to_owned(), true), ("c2".to_owned(), false)]);
    assert_eq!(column(clustered, "s").kind, ColumnKind::Static);
    assert_eq!(column(find("k", "counters"), "n").ty, Counter);

    let changing = find("k", "changing");
    let gone = column(changing, "gone");
    let now_us = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_micros();
    let age_us = i64::try_from(now_us)? - gone.dropped.expect("it was dropped");
    assert!((0..600_000_000).contains(&age_us), "dropped {age_us} µs ago");
    assert_eq!(gone.ty, Text);
    let back: Vec<_> = changing.columns.iter().filter(|column| column.name == "back").collect();
    assert_eq!(back.len(), 2, "the dropped one and the one that was added again");
    assert_eq!((back[0].dropped, back[1].dropped.is_some()), (None, true));

    let wanted: Vec<Wanted> =
        ["k.users", "k.user", "k.Plain", "nope.*"].iter().filter_map(|w| Wanted::parse(w)).collect();
    let faults = table_faults(&wanted, &tables);
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(faults[0].contains("did you mean `users`?"), "{faults:?}");
    // The statement that a person is told to run does what it is for.
    let statement = faults[1].split("cqlsh: ").nth(1).expect("a statement");
    node.session().query_unpaged(statement, ()).await?;

    let (mut history, faults) = SchemaHistory::from_file(node.load_schema_file().await?);
    assert_eq!(faults, []);
    node.session().query_unpaged("alter table k.users add later text", ()).await?;
    let changed = history.refresh(node.load_schema_file().await?);
    assert_eq!((changed.dropped.len(), changed.faults.len()), (0, 0));
    let mut changed: Vec<String> = changed.tables.iter().map(|table| table.full_name()).collect();
    changed.sort();
    assert_eq!(changed, ["k.users"]);
    assert!(table_faults(&wanted[2..3], &node.load_schema().await?).is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_tells_no_times_of_elements_is_read_without_them() -> anyhow::Result<()> {
    let server = tokio::task::spawn_blocking(|| cdc_testkit::Cassandra::builder().version("4.0").start()).await??;
    let config = CassandraConfig::new(server.node(0).address());
    let node = Cassandra::connect_when_ready(&config, &Lifecycle::new()).await.expect("nothing stops it");
    for statement in [
        STATEMENTS[0],
        "create table k.tagged (id int, at int, name text, tags set<text>, primary key (id, at))",
        "insert into k.tagged (id, at, name, tags) values (1, 2, 'one', {'a', 'b'}) using timestamp 1000",
    ] {
        node.session().query_unpaged(statement, ()).await?;
    }
    let schema = node.load_schema().await?.into_iter().find(|table| table.full_name() == "k.tagged");
    let reader = ClusterReader::connect(&config).await?;
    let table = reader.table(schema.expect("the table").into(), Fields::All, Consistency::One).await?;
    let (mut keys, mut rows) = (Vec::new(), Vec::new());
    let take = |key, row| {
        keys.push(key);
        rows.push(row);
    };
    table.scan(TokenRange::RING, |_| true, take).await?;
    let looked: Vec<Option<RowState>> =
        table.rows(&keys, true).await.into_iter().map(|row| row.expect("it can be read")).collect();
    assert_eq!(looked, [Some(rows[0].clone())]);
    let [(_, ColumnState::Simple(name)), (_, ColumnState::Complex(tags))] = &rows[0].columns[..] else {
        panic!("{rows:?}")
    };
    assert_eq!((name.time, name.value.bytes()), (WriteTime(1000), &b"one"[..]));
    let tags: Vec<(&[u8], WriteTime)> = tags.cells.iter().map(|(path, cell)| (&path[..], cell.time)).collect();
    assert_eq!(tags, [(&b"a"[..], WriteTime::NONE), (b"b", WriteTime::NONE)]);
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_not_there_is_named_with_what_to_check() {
    let mut config = CassandraConfig::new("127.0.0.1:1");
    config.connect_timeout_ms = 2_000;
    let error = Cassandra::connect(&config).await.expect_err("nothing listens on port 1");
    assert!(error.to_string().contains("127.0.0.1:1; check cassandra.contact_points"), "{error}");
    let error = Cassandra::connect(&CassandraConfig::new("no-such-host.invalid")).await.expect_err("no such host");
    assert!(matches!(error, CassandraError::Resolve { .. } | CassandraError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn waiting_for_a_node_ends_with_the_process() {
    let lifecycle = Lifecycle::new();
    lifecycle.stop();
    assert!(Cassandra::connect_when_ready(&CassandraConfig::new("127.0.0.1:1"), &lifecycle).await.is_none());
}
