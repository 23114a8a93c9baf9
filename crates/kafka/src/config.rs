//! The `kafka:` section, and what librdkafka is told.

use std::collections::BTreeMap;

use cdc_runtime::{Secret, credentials::Credentials};
use rdkafka::{ClientConfig, config::RDKafkaLogLevel};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::TopicTemplate;

const TOPIC: &str = "cdc-events-{table}";
/// Enough for a few sinks each with a core; more can be added to a topic later only by breaking the order per key.
const PARTITIONS: i32 = 8;
/// Collects what one read of the commit log yields, without being felt.
const LINGER_MS: u32 = 5;
const QUEUE_BYTES: usize = 16 << 20;
const FETCH_BYTES: usize = 16 << 20;
/// Cassandra's own limit of a mutation is 16 MiB with its default segment size; the envelope needs a little more.
const MESSAGE_BYTES_MAX: usize = 17 << 20;
/// How long a change of broker or a new topic may go unnoticed.
const METADATA_REFRESH_MS: &str = "10000";

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// `host:port` of some brokers: a list, or one string with commas.
    #[serde(deserialize_with = "one_or_many")]
    pub bootstrap_servers: Vec<String>,
    /// Names the topic of each table; may hold `{keyspace}` beside `{table}`.
    #[serde(default = "topic")]
    pub topic: String,
    /// Partitions of event topics that are created.
    #[serde(default = "partitions")]
    pub partitions: i32,
    /// Copies of topics that are created; absent: the broker's default.
    #[serde(default)]
    pub replication_factor: Option<i32>,
    #[serde(default)]
    pub compression: Compression,
    /// Milliseconds a record may wait for others to share its request.
    #[serde(default = "linger_ms")]
    pub linger_ms: u32,
    /// Bytes of records that may wait for their acknowledgement.
    #[serde(default = "queue_bytes")]
    pub queue_bytes: usize,
    /// Bytes of records a sink may hold that it has not looked at yet.
    #[serde(default = "fetch_bytes")]
    pub fetch_bytes: usize,
    /// Largest record, bytes. Topics are created with it.
    #[serde(default = "message_bytes_max")]
    pub message_bytes_max: usize,
    /// Further librdkafka properties, such as `security.protocol` and `sasl.password`.
    #[serde(default, serialize_with = "names_only")]
    pub properties: BTreeMap<String, String>,
    /// In place of `sasl.username` and `sasl.password`, a login that is issued while the process runs; a client uses the one
    /// that counts when it is made.
    #[serde(skip)]
    pub credentials: Option<Credentials>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    #[default]
    Lz4,
}

fn topic() -> String {
    TOPIC.to_owned()
}
fn partitions() -> i32 {
    PARTITIONS
}
fn linger_ms() -> u32 {
    LINGER_MS
}
fn queue_bytes() -> usize {
    QUEUE_BYTES
}
fn fetch_bytes() -> usize {
    FETCH_BYTES
}
fn message_bytes_max() -> usize {
    MESSAGE_BYTES_MAX
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a string such as \"kafka-1:9092,kafka-2:9092\" or a list of strings")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => text.split(',').map(|server| server.trim().to_owned()).collect(),
        OneOrMany::Many(servers) => servers,
    })
}

/// Properties may be credentials, so only their names are shown.
fn names_only<S: Serializer>(properties: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(properties.keys().map(|name| (name, "***")))
}

impl std::fmt::Debug for KafkaConfig {
    /// Leaves the values of properties out, because they may be credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("topic", &self.topic)
            .field("partitions", &self.partitions)
            .field("replication_factor", &self.replication_factor)
            .field("compression", &self.compression)
            .field("linger_ms", &self.linger_ms)
            .field("queue_bytes", &self.queue_bytes)
            .field("fetch_bytes", &self.fetch_bytes)
            .field("message_bytes_max", &self.message_bytes_max)
            .field("properties", &self.properties.keys())
            .finish()
    }
}

/// What correctness rests on. librdkafka's own defaults: no idempotence, a record is given up after five minutes,
/// up to 1 GiB is queued, and another partitioner than Java's.
const PRODUCER: [(&str, &str); 7] = [
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("max.in.flight.requests.per.connection", "5"),
    // Waits out any outage: a record is acknowledged or still queued, never given up.
    ("message.timeout.ms", "0"),
    ("partitioner", "murmur2_random"),
    // A small record takes three times its size in the queue, so the bound in bytes alone would not hold: 100,000 rows
    // of 200 bytes took 60 MiB.
    ("queue.buffering.max.messages", "12000"),
    ("socket.nagle.disable", "true"),
];

/// librdkafka's own defaults: an expired position skips to the newest record, an offset counts as done once it was
/// handed over, and checksums are not looked at.
const CONSUMER: [(&str, &str); 12] = [
    ("auto.offset.reset", "error"),
    ("enable.auto.offset.store", "false"),
    ("enable.auto.commit", "false"),
    ("check.crcs", "true"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    // A killed sink's partitions move to the others after this.
    ("session.timeout.ms", "10000"),
    ("heartbeat.interval.ms", "3000"),
    ("fetch.min.bytes", "65536"),
    // A broker that answers every single record spends a core on a thousand of them a second; one that waits for a
    // few, or 10 ms, a tenth of that.
    ("fetch.wait.max.ms", "10"),
    // After an empty or failed fetch librdkafka would wait a second.
    ("fetch.error.backoff.ms", "100"),
    ("socket.nagle.disable", "true"),
    ("enable.partition.eof", "false"),
];

/// Of a static member: what its restart may take until its partitions move to the others.
const STATIC_SESSION_MS: &str = "45000";

/// Derived from fields of [`KafkaConfig`], or of the sink's section.
const DERIVED: [&str; 14] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    "group.instance.id",
    "compression.codec",
    "compression.type",
    "linger.ms",
    "queue.buffering.max.ms",
    "queue.buffering.max.kbytes",
    "message.max.bytes",
    "queued.max.messages.kbytes",
    "fetch.max.bytes",
    "request.required.acks",
    "delivery.timeout.ms",
];

impl KafkaConfig {
    /// Defaults with these brokers.
    pub fn new(bootstrap_servers: Vec<String>) -> Self {
        Self {
            bootstrap_servers,
            topic: topic(),
            partitions: PARTITIONS,
            replication_factor: None,
            compression: Compression::default(),
            linger_ms: LINGER_MS,
            queue_bytes: QUEUE_BYTES,
            fetch_bytes: FETCH_BYTES,
            message_bytes_max: MESSAGE_BYTES_MAX,
            properties: BTreeMap::new(),
            credentials: None,
        }
    }

    pub fn template(&self) -> TopicTemplate {
        TopicTemplate::new(&self.topic)
    }

    /// Every fault at once, each naming its field; empty if there is none.
    pub fn validate(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.template().fault().into_iter().collect();
        if self.bootstrap_servers.iter().all(String::is_empty) {
            faults.push("kafka.bootstrap_servers is empty: name at least one broker as host:port".to_owned());
        }
        if self.partitions < 1 {
            faults.push(format!("kafka.partitions is {}: use 1 or more", self.partitions));
        }
        if let Some(copies) = self.replication_factor.filter(|copies| !(1..=i32::from(i16::MAX)).contains(copies)) {
            faults.push(format!("kafka.replication_factor is {copies}: use 1 or more, or leave it out"));
        }
        if self.linger_ms > 10_000 {
            faults.push(format!("kafka.linger_ms is {}: use 0 to 10000", self.linger_ms));
        }
        let sizes = [
            ("queue_bytes", self.queue_bytes, 1 << 20..=1 << 30),
            ("fetch_bytes", self.fetch_bytes, 1 << 20..=1 << 30),
            ("message_bytes_max", self.message_bytes_max, 64 << 10..=256 << 20),
        ];
        for (name, value, range) in sizes {
            if !range.contains(&value) {
                faults.push(format!("kafka.{name} is {value}: use {} to {}", range.start(), range.end()));
            }
        }
        let fixed: Vec<&str> = PRODUCER.iter().chain(&CONSUMER).map(|(name, _)| *name).chain(DERIVED).collect();
        for name in self.properties.keys().filter(|name| fixed.contains(&name.as_str())) {
            faults.push(format!("kafka.properties.{name} cannot be set: correctness rests on it, or a field sets it"));
        }
        faults
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        for (name, value) in &self.properties {
            client.set(name, value);
        }
        if let Some(login) = self.credentials.as_ref().and_then(Credentials::current) {
            client.set("sasl.username", &login.username);
            client.set("sasl.password", login.password.as_ref().map(Secret::expose).unwrap_or_default());
        }
        client
            .set("bootstrap.servers", self.bootstrap_servers.join(","))
            .set("message.max.bytes", self.message_bytes_max.to_string())
            .set("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS)
            // A broker that is back should be noticed within the second.
            .set("reconnect.backoff.max.ms", "1000")
            .set_log_level(RDKafkaLogLevel::Warning);
        client
    }

    pub(crate) fn producer(&self) -> ClientConfig {
        let mut client = self.client();
        for (name, value) in PRODUCER {
            client.set(name, value);
        }
        // The queue must at least hold the largest record.
        let queue = self.queue_bytes.max(self.message_bytes_max).div_ceil(1024);
        client
            .set("linger.ms", self.linger_ms.to_string())
            .set("queue.buffering.max.kbytes", queue.to_string())
            .set("compression.codec", self.compression.name());
        client
    }

    pub(crate) fn consumer(&self, group: &str, instance_id: Option<&str>) -> ClientConfig {
        let mut client = self.client();
        for (name, value) in CONSUMER {
            client.set(name, value);
        }
        if let Some(id) = instance_id {
            client.set("group.instance.id", id).set("session.timeout.ms", STATIC_SESSION_MS);
        }
        client
            .set("group.id", group)
            .set("queued.max.messages.kbytes", (self.fetch_bytes / 1024).to_string())
            .set("fetch.max.bytes", self.fetch_bytes.max(self.message_bytes_max).to_string())
            // Whence the ends of partitions are known.
            .set("statistics.interval.ms", "2000");
        client
    }
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_cannot_undo_what_correctness_rests_on() {
        let mut config = KafkaConfig::new(vec!["localhost:9092".to_owned()]);
        assert_eq!(config.validate(), Vec::<String>::new());
        config.properties.insert("auto.offset.reset".to_owned(), "latest".to_owned());
        config.properties.insert("sasl.password".to_owned(), "hush".to_owned());
        assert_eq!(config.validate().len(), 1);
        assert!(config.validate()[0].contains("kafka.properties.auto.offset.reset"));
        assert!(!format!("{config:?}").contains("hush"));
        assert!(!serde_json::to_string(&config).unwrap().contains("hush"));
    }

    #[test]
    fn librdkafka_accepts_and_keeps_what_is_pinned() {
        let config = KafkaConfig::new(vec!["localhost:9092".to_owned()]);
        for (client, pinned) in [(config.producer(), &PRODUCER[..]), (config.consumer("g", None), &CONSUMER[..])] {
            let native = client.create_native_config().unwrap();
            for (name, value) in pinned {
                let kept = native.get(name).unwrap();
                // librdkafka shows acks=all as -1.
                assert!(kept == *value || (*name == "acks" && kept == "-1"), "{name} is {kept}, not {value}");
            }
        }
    }

    #[test]
    fn servers_may_be_one_string_or_a_list() {
        let one: KafkaConfig = serde_json::from_str(r#"{"bootstrap_servers": "a:1, b:2"}"#).unwrap();
        let many: KafkaConfig = serde_json::from_str(r#"{"bootstrap_servers": ["a:1", "b:2"]}"#).unwrap();
        assert_eq!(one.bootstrap_servers, many.bootstrap_servers);
    }
}
