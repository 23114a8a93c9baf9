//! The system tables that say what other tables are, as Cassandra 4.0 to 5.0 define them (`SchemaKeyspace.java`,
//! `SystemKeyspace.java`): columns of every release in one, since an update names those it has.
//!
//! All of `system_schema` is here, because one mutation changes several of its tables and none can be skipped without
//! being decoded.

use cdc_model::{Column, ColumnKind, CqlType, KeyColumn, TableId, TableSchema, UdtResolver, parse_type};
use uuid::{Uuid, uuid};

use super::file::RowKind;

/// What an update of a system table means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    Row(RowKind),
    /// `system.local`, whose map `truncated_at` tells of `TRUNCATE`.
    Local,
    /// To be decoded because of what may follow it.
    Nothing,
}

const OPTIONS: &str = "additional_write_policy text, allow_auto_snapshot boolean, bloom_filter_fp_chance double, \
    caching frozen<map<text,text>>, cdc boolean, comment text, compaction frozen<map<text,text>>, \
    compression frozen<map<text,text>>, crc_check_chance double, dclocal_read_repair_chance double, \
    default_time_to_live int, extensions frozen<map<text,blob>>, gc_grace_seconds int, id uuid, \
    incremental_backups boolean, max_index_interval int, memtable text, memtable_flush_period_in_ms int, \
    min_index_interval int, read_repair text, read_repair_chance double, speculative_retry text";
const LOCAL: &str = "bootstrapped text, broadcast_address inet, broadcast_port int, cluster_name text, \
    cql_version text, data_center text, gossip_generation int, host_id uuid, listen_address inet, listen_port int, \
    native_protocol_version text, partitioner text, rack text, release_version text, rpc_address inet, rpc_port int, \
    schema_version uuid, thrift_version text, tokens set<text>, truncated_at map<uuid,blob>";

/// Name, id, meaning, clustering columns, other columns. The partition key is one text.
#[rustfmt::skip]
const SCHEMA: [(&str, Uuid, Meaning, &str, &str); 11] = [
    ("keyspaces", uuid!("abac5682-dea6-31c5-b535-b3d6cffd0fb6"), Meaning::Nothing,
     "", "durable_writes boolean, replication frozen<map<text,text>>"),
    ("tables", uuid!("afddfb9d-bc1e-3068-8056-eed6c302ba09"), Meaning::Row(RowKind::Table),
     "table_name text", "flags frozen<set<text>>"),
    ("columns", uuid!("24101c25-a2ae-3af7-87c1-b40ee1aca33f"), Meaning::Row(RowKind::Column),
     "table_name text, column_name text",
     "clustering_order text, column_name_bytes blob, kind text, position int, type text"),
    ("dropped_columns", uuid!("5e7583b5-f3f4-3af1-9a39-b7e1d6f5f11f"), Meaning::Row(RowKind::DroppedColumn),
     "table_name text, column_name text", "dropped_time timestamp, kind text, type text"),
    ("types", uuid!("5a8b1ca8-6602-3f77-a045-9273d308917a"), Meaning::Row(RowKind::Type),
     "type_name text", "field_names frozen<list<text>>, field_types frozen<list<text>>"),
    ("views", uuid!("9786ac1c-dd58-3201-a7cd-ad556410c985"), Meaning::Row(RowKind::View),
     "view_name text", "base_table_id uuid, base_table_name text, include_all_columns boolean, where_clause text"),
    ("indexes", uuid!("0feb57ac-311f-382f-ba6d-9024d305702f"), Meaning::Nothing,
     "table_name text, index_name text", "kind text, options frozen<map<text,text>>"),
    ("triggers", uuid!("4df70b66-6b05-3251-95a1-32b54005fd48"), Meaning::Nothing,
     "table_name text, trigger_name text", "options frozen<map<text,text>>"),
    ("functions", uuid!("96489b79-80be-3e14-a701-66a0b9159450"), Meaning::Nothing,
     "function_name text, argument_types frozen<list<text>>",
     "argument_names frozen<list<text>>, body text, called_on_null_input boolean, language text, return_type text"),
    ("aggregates", uuid!("924c5587-2e3a-345b-b10c-12f37c1ba895"), Meaning::Nothing,
     "aggregate_name text, argument_types frozen<list<text>>",
     "final_func text, initcond text, return_type text, state_func text, state_type text"),
    ("column_masks", uuid!("738cc5ed-0168-3268-b9d1-853d4bc278af"), Meaning::Nothing,
     "table_name text, column_name text",
     "function_argument_nulls frozen<list<boolean>>, function_argument_types frozen<list<text>>, \
      function_argument_values frozen<list<text>>, function_keyspace text, function_name text"),
];

pub(super) fn tables() -> impl Iterator<Item = (TableSchema, Meaning)> {
    let local = uuid!("7ad54392-bcdd-35a6-8417-4e047860b377");
    let schema = SCHEMA.into_iter().map(|(name, id, meaning, clustering, others)| {
        let options = if matches!(name, "tables" | "views") { OPTIONS } else { "" };
        (table("system_schema", name, id, clustering, &[others, options]), meaning)
    });
    schema.chain([(table("system", "local", local, "", &[LOCAL]), Meaning::Local)])
}

fn table(keyspace: &str, name: &str, id: Uuid, clustering: &str, others: &[&str]) -> TableSchema {
    let key = |(name, ty)| KeyColumn { name, ty, reversed: false };
    let column = |(name, ty)| Column { name, ty, kind: ColumnKind::Regular, dropped: None };
    let table = TableSchema {
        id: TableId(id),
        keyspace: keyspace.to_owned(),
        name: name.to_owned(),
        partition_key: vec![key(("key".to_owned(), CqlType::Text))],
        clustering: columns(clustering).map(key).collect(),
        columns: others.iter().flat_map(|others| columns(others)).map(column).collect(),
        cdc: false,
        gc_grace_seconds: 604_800,
    };
    table.new().expect("it has a key")
}

fn columns(text: &str) -> impl Iterator<Item = (String, CqlType)> {
    text.split(", ").filter_map(|column| column.trim().split_once(' ')).map(|(name, ty)| {
        let ty = parse_type(ty, &NoTypes).expect("the types written above are CQL");
        (name.to_owned(), ty)
    })
}

struct NoTypes;

impl UdtResolver for NoTypes {
    fn keyspace(&self) -> &'static str {
        "system"
    }

    fn fields(&self, _: &str) -> Option<&[(String, String)]> {
        None
    }
}
