//! Names of topics.

use std::{collections::HashMap, sync::Arc};

use cdc_model::TableSchema;

use crate::KafkaError;

/// Compacted; every table's schema under its id.
pub const SCHEMA_TOPIC: &str = "cdc-schemas";
/// Records and changes that could not be applied, one JSON object each.
pub const DEAD_LETTER_TOPIC: &str = "dlq-events";
/// Marks of barriers: what stood before one in its node's log is in the event topics.
pub const BARRIER_TOPIC: &str = "cdc-barriers";
/// How many times [`crate::KafkaConfig::message_bytes_max`] a dead letter may be.
pub const DEAD_LETTER_SIZE: usize = 3;
/// Header with the position the change was captured at, as `segment:offset`.
pub const POSITION_HEADER: &str = "cdc-position";

/// Where the producers' partitioner (Java's, `murmur2`) puts a key.
pub fn partition_of(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff).cast_signed() % partitions.max(1)
}

fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    // As Kafka's own: the length is that of an int.
    #[expect(clippy::cast_possible_truncation, reason = "a key of 4 GiB is no key")]
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        hash ^= rest.iter().rev().fold(0, |tail, byte| (tail << 8) | u32::from(*byte));
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

const TABLE: &str = "{table}";
const KEYSPACE: &str = "{keyspace}";

/// Names the topic of each table, such as `cdc-events-{table}`; may hold `{keyspace}` too.
#[derive(Clone, Debug)]
pub struct TopicTemplate(String);

impl TopicTemplate {
    pub fn new(template: &str) -> Self {
        Self(template.to_owned())
    }

    pub fn topic(&self, table: &TableSchema) -> String {
        self.name(&table.keyspace, &table.name)
    }

    /// As [`Self::topic`].
    pub(crate) fn name(&self, keyspace: &str, table: &str) -> String {
        self.0.replace(TABLE, table).replace(KEYSPACE, keyspace)
    }

    /// Matches the topics of all tables.
    pub(crate) fn pattern(&self) -> String {
        let any = "[A-Za-z0-9_]+";
        format!("^{}$", self.0.replace('.', "[.]").replace(TABLE, any).replace(KEYSPACE, any))
    }

    pub(crate) fn fault(&self) -> Option<String> {
        let literal = self.0.replace(TABLE, "").replace(KEYSPACE, "");
        let template = &self.0;
        if !template.contains(TABLE) {
            return Some(format!("kafka.topic is `{template}`: it must contain {TABLE}"));
        }
        let odd = literal.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c)))?;
        Some(format!(
            "kafka.topic is `{template}`: `{odd}` cannot be in a topic's name; placeholders are {TABLE}, {KEYSPACE}"
        ))
    }

    /// The topics of these tables.
    ///
    /// # Errors
    /// [`KafkaError::SharedTopic`] if two different tables have the same one.
    pub fn topics(&self, tables: &[Arc<TableSchema>]) -> Result<Vec<String>, KafkaError> {
        let mut owners: HashMap<String, String> = HashMap::new();
        for table in tables {
            let topic = self.topic(table);
            let second = table.full_name();
            match owners.get(&topic) {
                Some(first) if *first != second => {
                    return Err(KafkaError::SharedTopic { topic, first: first.clone(), second });
                }
                Some(_) => {}
                None => {
                    owners.insert(topic, second);
                }
            }
        }
        Ok(owners.into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use cdc_model::{CqlType, KeyColumn, TableId};
    use uuid::Uuid;

    use super::*;

    fn table(id: u128, keyspace: &str, name: &str) -> Arc<TableSchema> {
        let key = KeyColumn { name: "k".to_owned(), ty: CqlType::Int, reversed: false };
        let table = TableSchema {
            id: TableId(Uuid::from_u128(id)),
            keyspace: keyspace.to_owned(),
            name: name.to_owned(),
            partition_key: vec![key],
            clustering: Vec::new(),
            columns: Vec::new(),
            cdc: true,
            gc_grace_seconds: 0,
        };
        Arc::new(table.new().unwrap())
    }

    #[test]
    fn tables_that_would_share_a_topic_are_refused_with_the_placeholder_to_use() {
        let tables = [table(1, "shop", "orders"), table(2, "crm", "orders")];
        let error = TopicTemplate::new("cdc-events-{table}").topics(&tables).unwrap_err().to_string();
        assert!(
            error.contains("shop.orders") && error.contains("crm.orders") && error.contains("{keyspace}"),
            "{error}"
        );
        assert_eq!(TopicTemplate::new("cdc.{keyspace}.{table}").topics(&tables).unwrap().len(), 2);
    }

    #[test]
    fn keys_hash_as_in_kafka() {
        // From Kafka's UtilsTest.testMurmur2.
        let known: [(&[u8], i32); 5] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key).cast_signed(), hash);
        }
    }

    #[test]
    fn a_table_created_again_keeps_its_topic() {
        let tables = [table(1, "shop", "orders"), table(2, "shop", "orders")];
        assert_eq!(TopicTemplate::new("cdc-events-{table}").topics(&tables).unwrap(), ["cdc-events-orders"]);
    }

    #[test]
    fn faults_in_templates_name_the_field() {
        assert_eq!(TopicTemplate::new("cdc-events-{table}").fault(), None);
        assert!(TopicTemplate::new("events").fault().unwrap().contains("kafka.topic"));
        assert!(TopicTemplate::new("{tabel}-{table}").fault().unwrap().contains('{'));
    }
}
