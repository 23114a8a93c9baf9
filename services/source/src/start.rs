//! From configuration to a capture that may begin.

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use cdc_cassandra::{
    Cassandra, CassandraConfig, Settings,
    checks::{Wanted, enable_cdc, keystore_fault, node_faults, table_faults},
};
use cdc_commitlog::{CaptureMode, ReadOptions, SchemaFile, SchemaHistory};
use cdc_model::{NodeId, TableSchema};
use cdc_postgres::StreamName;
use cdc_runtime::Lifecycle;
use cdc_sink::Applier;
use tokio::{runtime::Handle, sync::mpsc};

use crate::{
    KeystoreConfig, Outlet, SourceConfig, SourceError, SourceMetrics,
    capture::Capture,
    intake::{Batch, Captured, Intake},
    keeper::{Disk, Keeper},
    outlet::{Delivery, Durable, KafkaDelivery, is_transient, stored_offsets},
    position::Position,
    position_file::PositionFile,
    quarantine::Quarantine,
    schema::{SchemaSource, Schemas},
    schema_store::SchemaStore,
    snapshot::{Agent, SnapshotPage},
    truncation::Truncations,
};

const RETRY: Duration = Duration::from_millis(250);
const COMPLAIN: Duration = Duration::from_secs(10);
/// One batch is this part of `memory_bytes`: eight wait, one is built, one is sent.
const BATCH_SHARE: usize = 16;

pub(crate) struct Started {
    /// Called on the capture's own thread: a decoder stays on the thread that made it.
    pub(crate) capture: Box<dyn FnOnce() -> Capture + Send>,
    pub(crate) delivery: Delivery,
    pub(crate) durable: Durable,
    pub(crate) keeper: Keeper,
}

/// `None`: stopped before Cassandra was there.
pub(crate) async fn start(
    config: &SourceConfig,
    cassandra: &CassandraConfig,
    outlet: Outlet,
    metrics: &Arc<SourceMetrics>,
    lifecycle: &Lifecycle,
    (outbox, pages): (mpsc::Sender<Batch>, mpsc::Sender<SnapshotPage>),
) -> Result<Option<Started>, SourceError> {
    let mut faults = config.validate();
    faults.extend(cassandra.validate());
    if !faults.is_empty() {
        return Err(SourceError::Config(faults));
    }
    let directory = config.cdc_raw_directory.clone();
    fs::read_dir(&directory).map_err(|source| SourceError::Directory { path: directory.clone(), source })?;
    let quarantine = Quarantine::open(&config.state_directory)?;
    let keystore = config.keystore.as_ref().map(KeystoreConfig::open).transpose()?;
    let read_options = ReadOptions { keystore, ..ReadOptions::default() };

    let Some(cassandra) = Cassandra::connect_when_ready(cassandra, lifecycle).await else {
        return Ok(None);
    };
    let schema = load_schema(&cassandra).await;
    let (tables, faults) = schema.tables();
    for fault in faults {
        tracing::warn!(%fault, "a table is not captured");
    }
    let mode = match cassandra.settings().await {
        Ok(settings) => check_node(&settings, config)?,
        Err(error) => {
            tracing::warn!(%error, "the node does not show its settings, which are taken to be as they should");
            config.mode
        }
    };
    let node = cassandra.host_id();
    let wanted: Arc<[Wanted]> = config.tables.iter().filter_map(|text| Wanted::parse(text)).collect();
    check_tables(&wanted, &tables)?;
    let captured = Captured { wanted, marks: config.marks() };

    let (file, stored) = PositionFile::open(&config.state_directory, node)?;
    let mut position = stored.unwrap_or_default();
    let tables: Vec<Arc<TableSchema>> =
        tables.into_iter().filter(|table| captured.contains(table)).map(Arc::new).collect();
    let (delivery, durable) = open_outlet(outlet, node, &mut position, &tables, lifecycle).await?;

    tracing::info!(
        %node,
        ?mode,
        tables = tables.len(),
        position = %position.offsets,
        directory = %directory.display(),
        "capture begins"
    );
    // After the outlet, which may have set the position back.
    let (store, history) = match SchemaStore::open(&config.state_directory, node, &position) {
        Some((mut store, mut history)) => {
            if has_missed_cdc(&history, &tables) {
                history.refresh(schema);
                store.reset(&history);
            }
            (store, history)
        }
        None => {
            let (history, _) = SchemaHistory::from_file(schema);
            (SchemaStore::new(&config.state_directory, node, &history), history)
        }
    };
    metrics.started(mode, &position.offsets);
    let truncations = {
        let (directory, options) = (directory.clone(), read_options.clone());
        Truncations::open(&config.state_directory, node, directory, options, position.finished.clone())?
    };
    metrics.snapshots().open(Agent {
        cassandra: cassandra.clone(),
        captured: captured.clone(),
        config: config.snapshot.clone(),
        state_directory: config.state_directory.clone(),
        pages,
    })?;
    let stop = lifecycle.soft().clone();
    let schemas = SchemaSource { cassandra, runtime: Handle::current(), stop: stop.clone() };
    let capture = {
        let (metrics, position, directory) = (Arc::clone(metrics), position.clone(), directory.clone());
        let batch_bytes = config.memory_bytes / BATCH_SHARE;
        let poll_interval = Duration::from_micros(config.poll_interval_us);
        move || {
            let (offsets, finished) = (position.offsets, position.finished);
            let schemas = Schemas { source: schemas, history, store };
            let intake = Intake::new(
                node,
                captured,
                schemas,
                quarantine,
                truncations,
                Arc::clone(&metrics),
                outbox,
                batch_bytes,
                offsets,
            );
            let open = BTreeMap::new();
            Capture { directory, mode, poll_interval, read_options, intake, finished, metrics, stop, open }
        }
    };
    let disk = Disk { file, directory, finished: position.finished.clone() };
    let keeper = Keeper { disk, position, metrics: Arc::clone(metrics) };
    Ok(Some(Started { capture: Box::new(capture), delivery, durable, keeper }))
}

/// Waits for Cassandra: the agent may well be started before it.
async fn load_schema(cassandra: &Cassandra) -> SchemaFile {
    let mut complained: Option<Instant> = None;
    loop {
        match cassandra.load_schema_file().await {
            Ok(schema) => return schema,
            Err(error) if complained.is_none_or(|at| at.elapsed() >= COMPLAIN) => {
                complained = Some(Instant::now());
                tracing::warn!(%error, "waiting for Cassandra's schema");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The mode that is possible with the node's commit log.
fn check_node(settings: &Settings, config: &SourceConfig) -> Result<CaptureMode, SourceError> {
    let wanted = config.mode;
    let mut faults = node_faults(settings);
    faults.extend(keystore_fault(settings, config.keystore.is_some()));
    if !faults.is_empty() {
        return Err(SourceError::Config(faults));
    }
    let written_at_syncs =
        settings.commitlog_is_transformed() || settings.get("commitlog_disk_access_mode") == Some("direct");
    if written_at_syncs && wanted != CaptureMode::Durable {
        tracing::warn!(
            "Cassandra compresses or encrypts its commit log, or writes it with direct I/O, so changes are seen when it \
             syncs: mode durable"
        );
        return Ok(CaptureMode::Durable);
    }
    Ok(wanted)
}

/// Whether a history from the last run takes a captured table for one without CDC. That change may have stood in a segment
/// without captured writes, which Cassandra removes unread; writes behind it must not be skipped for want of it.
fn has_missed_cdc(history: &SchemaHistory, captured: &[Arc<TableSchema>]) -> bool {
    captured.iter().any(|table| cdc_commitlog::Schemas::table(history, table.id).is_some_and(|known| !known.cdc))
}

/// Tables that are listed by name must exist and be in the log; a keyspace may still get its tables.
fn check_tables(wanted: &[Wanted], tables: &[TableSchema]) -> Result<(), SourceError> {
    let mut faults = Vec::new();
    for entry in wanted {
        let found = table_faults(std::slice::from_ref(entry), tables);
        if entry.table.is_some() {
            faults.extend(found);
            continue;
        }
        for fault in &found {
            tracing::warn!("{fault}; nothing of it is captured until then");
        }
        for table in tables.iter().filter(|table| found.is_empty() && !table.cdc && entry.matches(table)) {
            let (table, statement) = (table.full_name(), enable_cdc(table));
            tracing::warn!(table, statement, "table is not in the CDC log and is not captured until it is");
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(SourceError::Config(faults)) }
}

async fn open_outlet(
    outlet: Outlet,
    node: NodeId,
    position: &mut Position,
    tables: &[Arc<TableSchema>],
    lifecycle: &Lifecycle,
) -> Result<(Delivery, Durable), SourceError> {
    match outlet {
        Outlet::Kafka(publisher) => {
            let publisher = Arc::new(publisher);
            let durable = Durable::Kafka { durable: publisher.durable(), publisher: Arc::clone(&publisher) };
            let mut kafka = KafkaDelivery::new(publisher);
            let mut complained: Option<Instant> = None;
            while let Err(error) = kafka.publish(tables).await {
                if !is_transient(&error) {
                    return Err(error.into());
                }
                if complained.is_none_or(|at| at.elapsed() >= COMPLAIN) {
                    complained = Some(Instant::now());
                    tracing::warn!(%error, "waiting for Kafka");
                }
                tokio::time::sleep(RETRY).await;
            }
            Ok((Delivery::Kafka(kafka), durable))
        }
        Outlet::Direct { target, config, metrics } => {
            for table in tables {
                if let Err(error) = target.prepare_table(Arc::clone(table)).await {
                    // Its first change will try again, and wait.
                    tracing::warn!(%error, table = table.full_name(), "target table is not ready");
                }
            }
            let stream = StreamName(format!("node:{node}"));
            let applier = Applier::start(target, stream, &config, metrics, lifecycle).await?;
            let committed = applier.durable.borrow().as_deref().map(stored_offsets).transpose()?;
            if position.follow(committed) {
                tracing::error!(
                    "PostgreSQL is behind the segments captured and deleted before (restored or replaced?): what is \
                     left of the log is read again, changes before it must be copied anew"
                );
            }
            let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let run = u64::try_from(since_1970.as_millis()).unwrap_or_default();
            Ok((Delivery::Direct { batches: applier.batches, run }, Durable::Direct { durable: applier.durable, run }))
        }
        Outlet::Channel(channel) => Ok((Delivery::Channel(channel.batches), Durable::Channel(channel.durable))),
    }
}

#[cfg(test)]
mod tests {
    use cdc_commitlog::{Definition, SchemaRow};
    use cdc_model::{CqlType, KeyColumn, TableId};
    use uuid::Uuid;

    use super::*;

    fn table(keyspace: &str, name: &str, cdc: bool) -> TableSchema {
        let key = KeyColumn { name: "k".to_owned(), ty: CqlType::Int, reversed: false };
        let table = TableSchema {
            id: TableId(Uuid::from_u128(1)),
            keyspace: keyspace.to_owned(),
            name: name.to_owned(),
            partition_key: vec![key],
            clustering: Vec::new(),
            columns: Vec::new(),
            cdc,
            gc_grace_seconds: 0,
        };
        table.new().unwrap()
    }

    #[test]
    fn tables_listed_by_name_must_be_in_the_log_and_those_of_a_keyspace_may_come_later() {
        let tables = [table("shop", "orders", true), table("shop", "Carts", false), table("crm", "people", false)];
        let check = |texts: &[&str]| {
            let wanted: Vec<_> = texts.iter().map(|text| Wanted::parse(text).unwrap()).collect();
            check_tables(&wanted, &tables)
        };
        check(&["shop.orders", "crm.*", "new.*"]).unwrap();
        let error = check(&["shop.Carts", "shop.nothing"]).unwrap_err().to_string();
        assert!(error.contains(r#"ALTER TABLE shop."Carts" WITH cdc = true;"#), "{error}");
        assert!(error.contains("shop.nothing"), "{error}");
    }

    #[test]
    fn a_history_that_missed_a_table_being_switched_on_is_noticed() {
        let history = |cdc| {
            let row = |column: &str, definition| SchemaRow {
                keyspace: "shop".to_owned(),
                name: "carts".to_owned(),
                column: column.to_owned(),
                table: None,
                written_us: 1,
                definition,
            };
            let own = Definition::Table { id: TableId(Uuid::from_u128(1)), cdc: Some(cdc), gc_grace_seconds: None };
            let kind = "partition_key".to_owned();
            let key = Definition::Column { kind, position: 0, reversed: false, ty: "int".to_owned() };
            SchemaHistory::from_file(SchemaFile::new(vec![row("", own), row("k", key)])).0
        };
        let captured = [Arc::new(table("shop", "carts", true))];
        assert!(has_missed_cdc(&history(false), &captured));
        assert!(!has_missed_cdc(&history(true), &captured));
        // One that is not known at all is asked for when it is met.
        assert!(!has_missed_cdc(&SchemaHistory::new(), &captured));
    }
}
