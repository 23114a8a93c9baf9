use rdkafka::error::KafkaError as Driver;

/// What can go wrong with Kafka. Displays name the setting or topic and what to do.
#[derive(thiserror::Error, Debug, Clone)]
pub enum KafkaError {
    #[error("kafka settings are not accepted by librdkafka; check kafka.properties")]
    Settings(#[source] Driver),
    #[error("no broker of kafka.bootstrap_servers ({servers}) answers; start Kafka or correct the address")]
    Unreachable { servers: String, source: Driver },
    #[error("topic {topic} could not be created: {reason}")]
    CreateTopic { topic: String, reason: String },
    #[error("topic {topic} was created but has no leader yet")]
    NoLeader { topic: String },
    #[error(
        "tables {first} and {second} would share topic {topic}; put {{keyspace}} into kafka.topic, such as \
         cdc-events-{{keyspace}}-{{table}}"
    )]
    SharedTopic { topic: String, first: String, second: String },
    #[error("a record of {bytes} bytes for topic {topic} exceeds kafka.message_bytes_max ({max}); raise it")]
    TooLarge { topic: String, bytes: usize, max: usize },
    #[error("a record for topic {topic} was not accepted")]
    Delivery { topic: String, source: Driver },
    #[error("the Kafka client can go no further and must be made anew: {0}")]
    Fatal(String),
    #[error(
        "another process has joined the group as sink.instance_id `{instance_id}`, so this one ends; give each sink an \
         id of its own"
    )]
    Replaced { instance_id: String },
    #[error("reading from Kafka failed")]
    Consume(#[source] Driver),
    #[error(
        "topic {topic} partition {partition} no longer holds offset {wanted}, where reading must go on; it holds \
         {low} to {high}. Records between were not applied: snapshot the table again, then correct the position"
    )]
    OffsetGone { topic: String, partition: i32, wanted: i64, low: i64, high: i64 },
    #[error("thread {0} could not be started")]
    Thread(&'static str),
}
