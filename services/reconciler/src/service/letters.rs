//! Dead letters, and what it takes to apply them again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cdc_kafka::{KafkaConfig, SCHEMA_TOPIC, SchemaFollower};
use cdc_model::{Change, TableId, TableSchema};
use cdc_postgres::{Original, Replayed, Target, TargetError, Undecodable};
use uuid::Uuid;

/// For the schema topic to be read; small, and only needed for records that were not decoded.
const SCHEMAS_WITHIN: Duration = Duration::from_secs(10);

/// Decodes a record as the sinks do, with what is known of tables now.
pub type DecodeAgain =
    fn(&Original, &HashMap<TableId, Arc<TableSchema>>, Option<&SchemaFollower>) -> Result<Change, Undecodable>;

/// Where the letters are, and what knows the tables.
#[derive(Clone)]
pub struct Letters {
    pub target: Target,
    /// Where there is one.
    pub kafka: Option<KafkaConfig>,
    pub decode: DecodeAgain,
}

impl Letters {
    /// The schema topic, read to its end. Without it, records are decoded with the tables PostgreSQL knows; `complain`
    /// is told why.
    pub async fn schemas(&self, complain: impl FnOnce(String)) -> Option<SchemaFollower> {
        let kafka = self.kafka.as_ref()?;
        let reading = async {
            let schemas = SchemaFollower::start(kafka)?;
            schemas.read_to_end().await.map(|()| schemas)
        };
        let problem = match tokio::time::timeout(SCHEMAS_WITHIN, reading).await {
            Ok(Ok(schemas)) => return Some(schemas),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {SCHEMAS_WITHIN:?}"),
        };
        complain(format!("topic {SCHEMA_TOPIC} was not read ({problem}); going on without it"));
        None
    }

    /// Applies unresolved letters again and says what became of each.
    ///
    /// # Errors
    /// What is no letter's fault: letters not reported yet may be replayed again.
    pub async fn replay(
        &self,
        ids: &[Uuid],
        dry_run: bool,
        complain: impl FnOnce(String),
        done: impl FnMut(Uuid, Replayed),
    ) -> Result<(), TargetError> {
        let schemas = if self.target.hold_records(ids).await? { self.schemas(complain).await } else { None };
        let decode = |original: &_, stored: &_| (self.decode)(original, stored, schemas.as_ref());
        self.target.replay_dead_letters(ids, dry_run, &decode, done).await
    }
}
