//! Logins that end while PostgreSQL is written to.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cdc_model::{
    Cell, Change, ChangeBody, Clustering, Column, ColumnId, ColumnKind, ColumnState, CqlType, KeyColumn, Liveness,
    LocalTime, NodeId, Provenance, RowState, SegmentPosition, TableId, TableSchema, WriteTime,
};
use cdc_postgres::{PostgresConfig, Target};
use cdc_runtime::Lifecycle;
use cdc_vault::Vault;

use world::{PATIENCE, World, replacements, sql, within};

fn target_config(world: &World, vault: &Vault) -> PostgresConfig {
    let address = world.postgres.address();
    let mut config = PostgresConfig::new(address.ip().to_string(), address.port(), "warehouse", "");
    config.credentials.clone_from(&vault.logins.postgres);
    config
}

fn table() -> Arc<TableSchema> {
    let schema = TableSchema {
        id: TableId(uuid::Uuid::from_u128(1)),
        keyspace: "shop".to_owned(),
        name: "rows".to_owned(),
        partition_key: vec![KeyColumn { name: "p".to_owned(), ty: CqlType::BigInt, reversed: false }],
        clustering: Vec::new(),
        columns: vec![Column { name: "v".to_owned(), ty: CqlType::BigInt, kind: ColumnKind::Regular, dropped: None }],
        cdc: true,
        gc_grace_seconds: 864_000,
    };
    Arc::new(schema.new().unwrap())
}

fn write(table: &Arc<TableSchema>, key: u64) -> Change {
    let cell = Cell::live(WriteTime(1), key.to_be_bytes().to_vec());
    let liveness = Some(Liveness { time: WriteTime(1), ttl: 0, expires: LocalTime::NONE });
    let columns = [(ColumnId(0), ColumnState::Simple(cell))].into_iter().collect();
    Change {
        table: Arc::clone(table),
        partition_key: key.to_be_bytes().to_vec().into(),
        body: ChangeBody::Row {
            clustering: Clustering::default(),
            row: RowState { liveness, deletion: None, columns },
        },
        provenance: Provenance { node: NodeId(uuid::Uuid::nil()), position: SegmentPosition::START },
    }
}

/// Writers that note how many batches were written and what failed.
#[derive(Default)]
struct Load {
    batches: AtomicU64,
    failures: std::sync::Mutex<Vec<String>>,
}

const ROWS: u64 = 20;

impl Load {
    /// Each batch has keys of its own; ends with the rows that must be there.
    async fn run(self: Arc<Self>, target: Target, until: Instant) -> u64 {
        let next = Arc::new(AtomicU64::new(0));
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (load, target, next) = (Arc::clone(&self), target.clone(), Arc::clone(&next));
            writers.spawn(async move {
                let table = table();
                while Instant::now() < until {
                    let first = next.fetch_add(ROWS, Relaxed);
                    let changes = (first..first + ROWS).map(|key| write(&table, key)).collect();
                    if let Err(error) = target.apply(changes, &[]).await {
                        load.failures.lock().unwrap().push(error.to_string());
                    }
                    load.batches.fetch_add(1, Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        writers.join_all().await;
        next.load(Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_rotation_under_load() {
    // Tokens end as well, and take their leases with them.
    let ttls = [("DEFAULT_TTL", "6s"), ("MAX_TTL", "12s"), ("TOKEN_TTL", "10s"), ("TOKEN_MAX_TTL", "25s")];
    let world = World::start(&ttls);
    let lifecycle = Lifecycle::new();
    let vault = Vault::start(&world.config(), &lifecycle).unwrap();
    within("the logins", PATIENCE, vault.issued()).await;
    let target = Target::connect(&target_config(&world, &vault)).await.unwrap();
    let load = Arc::new(Load::default());
    let rows = Arc::clone(&load).run(target, Instant::now() + Duration::from_secs(40)).await;

    assert_eq!(*load.failures.lock().unwrap(), Vec::<String>::new(), "no batch fails");
    assert_eq!(world.number("select count(*) from cdc_rows"), i64::try_from(rows).unwrap(), "all rows are there");
    assert_eq!(world.number("select count(*) from cdc_rows where v <> p"), 0);
    assert!(load.batches.load(Relaxed) > 100, "there was load: {:?}", load.batches);
    assert!(replacements(&vault, "postgres") >= 3, "{}", vault.state.status());
    assert!(replacements(&vault, "vault") >= 1, "{}", vault.state.status());
    assert!(world.number("select count(*) from pg_stat_activity where application_name = 'cdc'") <= 8);
    // What Vault has dropped left nothing behind: the tables belong to the role that stays.
    assert_eq!(
        sql(&world.postgres, "select tableowner from pg_tables where tablename = 'cdc_rows'").trim(),
        "cdc_writer"
    );
    let roles = world.number("select count(*) from pg_roles where rolname like 'v-%'");
    assert!(roles <= 4, "{roles} roles are left of {}", vault.state.status());
    lifecycle.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_was_revoked_is_replaced_by_the_connection_that_meets_it() {
    let world = World::start(&[]);
    let lifecycle = Lifecycle::new();
    let vault = Vault::start(&world.config(), &lifecycle).unwrap();
    within("the logins", PATIENCE, vault.issued()).await;
    let target = Target::connect(&target_config(&world, &vault)).await.unwrap();
    let table = table();
    target.apply(vec![write(&table, 1)], &[]).await.unwrap();

    // What an operator reads for himself does not disturb ours.
    world.vault.run(&["read", "database/creds/postgresql-writer"]).unwrap();
    target.apply(vec![write(&table, 2)], &[]).await.unwrap();
    assert_eq!(replacements(&vault, "postgres"), 0);

    world.vault.run(&["lease", "revoke", "-sync", "-prefix", "database/creds/postgresql-writer"]).unwrap();
    sql(
        &world.postgres,
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'cdc'",
    );
    let began = Instant::now();
    // Ended sessions are an error of their own, once.
    while target.apply(vec![write(&table, 3)], &[]).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(10), "{}", vault.state.status());
    }
    assert_eq!(replacements(&vault, "postgres"), 1, "one, not a storm");
    assert_eq!(world.number("select count(*) from cdc_rows"), 3);
    lifecycle.stop();
}
