//! A table of the source and its targets, to be compared: what PostgreSQL should show of a source row, digests of what it
//! shows, and all that it knows of single rows. Nothing here writes, but for [`Mirror::replace`].

use std::{collections::HashMap, fmt::Write as _, sync::Arc};

use cdc_model::{
    ColumnKind, LocalTime, NodeId, Provenance, RowKey, RowState, SegmentPosition, TableSchema, TokenRange, ValueBytes,
    token,
};
use futures::{TryStreamExt as _, future::BoxFuture, pin_mut};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

mod replace;

pub use self::replace::Replacement;
use crate::{
    Target, TargetError,
    array::{Array, Raw},
    batch::{Body, Unit},
    canonical_json::canonical,
    digest::Digest,
    error::Fault,
    layout::{EXPIRES_AT, Layout, Relation, TOKEN, WRITTEN_AT, quote},
    target::{ATTEMPTS, Context, Inner, Purpose},
    transact::{Failure, STATIC_ROW, Stored, Work, look},
};

/// Whole tables are read, and their leaves summed up in memory: what is set for the lookups of the apply path would be wrong.
const PASS: &str = "begin isolation level repeatable read read only; set local enable_seqscan = on; \
    set local plan_cache_mode = auto; set local work_mem = '64MB'; set local enable_hashjoin = on";

const IN_MEMORY: &str = "writing to a String does not fail";

/// What two rows of one key are compared by.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Strategy {
    /// All values.
    #[default]
    Checksum,
    /// The newest write time.
    Version,
    /// That they are there.
    RowCount,
}

impl Strategy {
    pub const ALL: [Self; 3] = [Self::Checksum, Self::Version, Self::RowCount];

    pub fn name(self) -> &'static str {
        match self {
            Self::Checksum => "CHECKSUM",
            Self::Version => "VERSION",
            Self::RowCount => "ROW_COUNT",
        }
    }
}

/// A row as two numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hashed {
    pub key: i64,
    /// Seeded with the hash of the key, so that values swapped between rows do not cancel out.
    pub value: i64,
}

/// Rows of one part of the ring, as a count and two sums modulo 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Leaf {
    pub rows: u64,
    keys: u64,
    values: u64,
}

impl Leaf {
    pub fn add(&mut self, row: Hashed) {
        self.rows += 1;
        self.keys = self.keys.wrapping_add(row.key.cast_unsigned());
        self.values = self.values.wrapping_add(row.value.cast_unsigned());
    }

    pub fn join(&mut self, other: Self) {
        self.rows += other.rows;
        self.keys = self.keys.wrapping_add(other.keys);
        self.values = self.values.wrapping_add(other.values);
    }
}

/// Which rows of a target table are summed up; a range alone admits all of its rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part<'p> {
    pub range: TokenRange,
    /// Only those of some leaves.
    pub leaves: Option<&'p [i64]>,
    /// Only those whose `_cdc_written_at` is not before the first, and before the second.
    pub written: Option<(i64, i64)>,
}

impl From<TokenRange> for Part<'_> {
    fn from(range: TokenRange) -> Self {
        Self { range, leaves: None, written: None }
    }
}

/// A row of PostgreSQL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredRow {
    pub key: RowKey,
    pub hashed: Hashed,
    /// `_cdc_written_at`.
    pub written_at: i64,
}

/// What PostgreSQL should show of a row of the source.
#[derive(Clone, PartialEq, Debug)]
pub struct Expected {
    /// In the form the target keeps.
    pub key: RowKey,
    /// Masked as in the target.
    pub state: RowState,
    /// Hash by column of the target, `None` for NULL; nothing at all if PostgreSQL cannot hold it.
    pub columns: Option<Vec<Option<i64>>>,
}

/// What PostgreSQL knows of a row.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Seen {
    /// As in [`Expected::columns`]; `None` if the row is in no target table.
    pub columns: Option<Vec<Option<i64>>>,
    /// Everything known, deletions included.
    pub state: RowState,
    /// `_cdc_expires_at`, seconds since 1970.
    pub expires_at: Option<i64>,
}

/// A table, its targets, and how they are hashed. Clones are cheap.
#[derive(Clone)]
pub struct Mirror {
    inner: Arc<Inner>,
    layout: Arc<Layout>,
    digest: Digest,
}

impl Target {
    /// Opens a table for comparison; its targets are prepared as for a change of it.
    ///
    /// # Errors
    /// [`TargetError::Layout`] if the targets are not what they should be.
    pub fn mirror<'a>(&'a self, table: Arc<TableSchema>) -> BoxFuture<'a, Result<Mirror, TargetError>> {
        Box::pin(async move {
            let layout = self.inner.layout(&table).await?;
            let digest = if self.inner.agrees(Digest::Native).await? {
                Digest::Native
            } else {
                tracing::warn!(
                    "this PostgreSQL does not hash as expected: rows are compared by SHA-256, which is slower and as good"
                );
                Digest::Portable
            };
            Ok(Mirror { inner: Arc::clone(&self.inner), layout, digest })
        })
    }
}

impl Inner {
    /// Whether the server hashes as we do.
    pub(crate) async fn agrees(&self, digest: Digest) -> Result<bool, TargetError> {
        let client = self.pool.get().await.map_err(|error| TargetError::from_pool(&error))?;
        // A function that is not there is a disagreement, too.
        let Ok(rows) = client.query(&digest.trial(), &[]).await else { return Ok(false) };
        Ok(rows.iter().map(|row| row.get::<_, i64>(0)).eq(digest.expected()))
    }
}

impl Mirror {
    /// All that is known of the table; ids of columns are this schema's.
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.layout.schema
    }

    /// Which relations there are.
    pub fn kinds(&self) -> impl Iterator<Item = ColumnKind> {
        std::iter::once(ColumnKind::Regular).chain(self.layout.statics.is_some().then_some(ColumnKind::Static))
    }

    /// Names of the target's columns, in the order of [`Seen::columns`].
    pub fn columns(&self, kind: ColumnKind) -> impl Iterator<Item = &str> {
        self.relation(kind).values.iter().map(|(_, column)| column.name.as_str())
    }

    /// By id in the schema, the place in [`Self::columns`].
    pub fn place(&self, kind: ColumnKind, id: cdc_model::ColumnId) -> Option<usize> {
        self.relation(kind).values.iter().position(|(own, _)| *own == id)
    }

    /// Compares by SHA-256 although the server's hash would do.
    #[doc(hidden)]
    #[must_use]
    pub fn with_portable_digest(mut self) -> Self {
        self.digest = Digest::Portable;
        self
    }

    /// Whether PostgreSQL's own hash is used.
    pub fn is_native(&self) -> bool {
        self.digest == Digest::Native
    }

    fn relation(&self, kind: ColumnKind) -> &Relation {
        self.layout.relation(kind).expect("a row of this kind belongs to the table")
    }

    /// The row as the target keeps it: one form of what Cassandra takes for equal, and nothing of what is masked.
    fn concealed(&self, key: RowKey, mut state: RowState) -> (RowKey, RowState) {
        self.layout.canonical_elements(&mut state);
        self.layout.conceal(&mut state);
        (self.canonical_key(key), state)
    }

    /// The one form of all keys that Cassandra takes for the same row.
    pub fn canonical_key(&self, key: RowKey) -> RowKey {
        let clustering = key.clustering.map(|clustering| self.layout.canonical(clustering));
        RowKey { clustering, ..key }
    }

    /// The values of a live row in binary form; `None` if PostgreSQL cannot hold one.
    fn shown(&self, relation: &Relation, state: &RowState) -> Option<Vec<Option<ValueBytes>>> {
        let mut written = state.columns.iter().peekable();
        let mut values = Vec::with_capacity(relation.values.len());
        for (id, column) in &relation.values {
            while written.next_if(|(other, _)| other < id).is_some() {}
            let written = written.next_if(|(other, _)| other == id);
            values.push(match written.and_then(|(_, written)| column.encode(written, LocalTime(i64::MIN))) {
                Some(encoded) => hashable(&column.pg, encoded.ok()?.bytes)?,
                None => None,
            });
        }
        Some(values)
    }

    /// A row of the source as the target's leaves count it; `None` if PostgreSQL cannot hold it.
    pub fn hash(&self, strategy: Strategy, key: RowKey, state: RowState) -> Option<Hashed> {
        let version = state.newest_write().0;
        let (key, state) = self.concealed(key, state);
        let relation = self.relation(key.kind());
        let token = token(&key.partition).0.to_be_bytes();
        let values = self.layout.encode_key(&key.partition, key.clustering.as_ref()).ok()?;
        let elements = relation.key.iter().zip(&values).map(|(column, value)| (&column.pg, Some(value.as_ref())));
        let key = self.digest.of(std::iter::once((&Type::INT8, Some(&token[..]))).chain(elements), 0);
        let value = match strategy {
            Strategy::Checksum => {
                let values = self.shown(relation, &state)?;
                let elements = relation.values.iter().zip(&values);
                self.digest.of(elements.map(|((_, column), value)| (&column.pg, value.as_deref())), key)
            }
            Strategy::Version => self.digest.of([(&Type::INT8, Some(&version.to_be_bytes()[..]))], key),
            Strategy::RowCount => 0,
        };
        Some(Hashed { key, value })
    }

    pub fn expect(&self, key: RowKey, state: RowState) -> Expected {
        let (key, state) = self.concealed(key, state);
        let relation = self.relation(key.kind());
        let is_key_held = self.layout.encode_key(&key.partition, key.clustering.as_ref()).is_ok();
        let shown = self.shown(relation, &state).filter(|_| is_key_held);
        let hash = |(place, value): (usize, &Option<ValueBytes>)| {
            let value = value.as_deref()?;
            Some(self.digest.of([(&relation.values[place].1.pg, Some(value))], 0))
        };
        let columns = shown.map(|values| values.iter().enumerate().map(hash).collect());
        Expected { key, state, columns }
    }

    /// Digests of a row's key and values, as expressions over the relation `t`.
    fn digests(&self, relation: &Relation, strategy: Strategy) -> (String, String) {
        let named = |column: &crate::layout::TargetColumn| (format!("t.{}", quote(&column.name)), column.pg.clone());
        let key: Vec<(String, Type)> =
            std::iter::once((format!("t.{TOKEN}"), Type::INT8)).chain(relation.key.iter().map(named)).collect();
        let key = self.digest.sql(key.iter().map(|(name, ty)| (name.as_str(), ty)), "0::bigint");
        let values: Vec<(String, Type)> = match strategy {
            Strategy::Checksum => relation.values.iter().map(|(_, column)| named(column)).collect(),
            Strategy::Version => vec![(format!("t.{WRITTEN_AT}"), Type::INT8)],
            Strategy::RowCount => return (key, "0::bigint".to_owned()),
        };
        let values = self.digest.sql(values.iter().map(|(name, ty)| (name.as_str(), ty)), "k.k");
        (key, values)
    }

    /// What rows add up to, by the highest bits of their tokens (`token >> shift`): one pass over the table.
    ///
    /// # Errors
    /// [`TargetError::Database`].
    pub fn leaves<'a>(
        &'a self,
        strategy: Strategy,
        kind: ColumnKind,
        part: impl Into<Part<'a>>,
        shift: u8,
    ) -> BoxFuture<'a, Result<HashMap<i64, Leaf>, TargetError>> {
        let Part { range, leaves: wanted, written } = part.into();
        Box::pin(async move {
            let relation = self.relation(kind);
            let (key, value) = self.digests(relation, strategy);
            let mut sql = format!(
                "-- cdc: leaves\nselect t.{TOKEN} >> $3, count(*), sum(k.k)::text, sum({value})::text from {} as t \
                 cross join lateral (select {key} as k) as k where t.{TOKEN} > $1 and t.{TOKEN} <= $2",
                relation.name
            );
            let shift = i32::from(shift);
            let mut params: Vec<&(dyn ToSql + Sync)> = vec![&range.start, &range.end, &shift];
            if let Some(wanted) = &wanted {
                params.push(wanted);
                write!(sql, " and t.{TOKEN} >> $3 = any(${})", params.len()).expect(IN_MEMORY);
            }
            if let Some((from, to)) = &written {
                params.extend([from as &(dyn ToSql + Sync), to]);
                let (from, to) = (params.len() - 1, params.len());
                write!(sql, " and t.{WRITTEN_AT} >= ${from} and t.{WRITTEN_AT} < ${to}").expect(IN_MEMORY);
            }
            sql.push_str(" group by 1");
            let mut leaves = HashMap::new();
            self.pass(&sql, &params, &mut |row| {
                let sum = |at: usize| {
                    let sum: i128 = row.get::<_, &str>(at).parse().expect("a sum of integers is one");
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sums are modulo 2^64")]
                    let sum = sum as u64;
                    sum
                };
                let rows = row.get::<_, i64>(1).unsigned_abs();
                leaves.insert(row.get(0), Leaf { rows, keys: sum(2), values: sum(3) });
                Ok(())
            })
            .await?;
            Ok(leaves)
        })
    }

    /// The rows of some leaves: one pass over the table, however many leaves.
    ///
    /// # Errors
    /// [`TargetError::Database`]; [`TargetError::State`] if a key is damaged.
    pub fn rows<'a>(
        &'a self,
        strategy: Strategy,
        kind: ColumnKind,
        range: TokenRange,
        shift: u8,
        leaves: &'a [i64],
    ) -> BoxFuture<'a, Result<Vec<StoredRow>, TargetError>> {
        Box::pin(async move {
            let relation = self.relation(kind);
            let (key, value) = self.digests(relation, strategy);
            let sql = format!(
                "-- cdc: rows of leaves\nselect k.k, {value}, t.{WRITTEN_AT}, {} from {} as t cross join lateral \
                 (select {key} as k) as k where t.{TOKEN} > $1 and t.{TOKEN} <= $2 and t.{TOKEN} >> $3 = any($4)",
                relation.whole_key(),
                relation.name
            );
            let mut rows = Vec::new();
            let params: [&(dyn ToSql + Sync); 4] = [&range.start, &range.end, &i32::from(shift), &leaves];
            self.pass(&sql, &params, &mut |row| {
                let damaged = || TargetError::State {
                    table: self.layout.schema.full_name(),
                    error: cdc_model::StateError::Damaged,
                };
                let (partition, clustering) = relation.decode_key(&self.layout.schema, &row, 3).ok_or_else(damaged)?;
                let hashed = Hashed { key: row.get(0), value: row.get(1) };
                rows.push(StoredRow { key: RowKey { partition, clustering }, hashed, written_at: row.get(2) });
                Ok(())
            })
            .await?;
            Ok(rows)
        })
    }

    /// Runs a query over whole tables, row by row.
    fn pass<'a>(
        &'a self,
        sql: &'a str,
        params: &'a [&'a (dyn ToSql + Sync)],
        take: &'a mut (dyn FnMut(Row) -> Result<(), TargetError> + Send),
    ) -> BoxFuture<'a, Result<(), TargetError>> {
        Box::pin(async move {
            let failed = |error| TargetError::Database { doing: "compare rows", fault: Fault::from(error) };
            let client = self.inner.pool.get().await.map_err(|error| TargetError::from_pool(&error))?;
            // Not one of the pool any more: its settings are others, and dropped early it would have an answer to read.
            let client = crate::pool::Object::take(client);
            client.batch_execute(PASS).await.map_err(failed)?;
            let rows = client.query_raw(sql, params.iter().copied()).await.map_err(failed)?;
            pin_mut!(rows);
            while let Some(row) = rows.try_next().await.map_err(failed)? {
                take(row)?;
            }
            Ok(())
        })
    }

    /// What PostgreSQL knows of rows, all of one moment, in their order.
    ///
    /// # Errors
    /// [`TargetError::Database`]; [`TargetError::State`] if a state is damaged.
    pub fn look<'a>(&'a self, keys: &'a [RowKey]) -> BoxFuture<'a, Result<Vec<Seen>, TargetError>> {
        Box::pin(async move {
            let queries: Vec<(ColumnKind, String)> = self.kinds().map(|kind| (kind, self.select(kind))).collect();
            let context = Context::new(Purpose::Refuse);
            let units: Vec<Unit> = keys.iter().map(|key| self.unit(key, RowState::default())).collect();
            for _ in 0..ATTEMPTS {
                let work = Work {
                    units: &units,
                    context: &context,
                    positions: false,
                    floods: &self.inner.floods,
                    exclusive: false,
                    writes: false,
                    in_place_of: None,
                };
                match look(&self.inner.pool, &work, &queries).await {
                    Ok(stored) => {
                        return Ok(keys.iter().zip(stored).map(|(key, stored)| self.seen(key, stored)).collect());
                    }
                    Err(Failure::Again) => {}
                    Err(Failure::Other(error)) => return Err(error),
                    Err(Failure::Schema(fault)) => return Err(TargetError::Database { doing: "look at rows", fault }),
                    Err(Failure::Stale) => return Err(self.stale()),
                    Err(Failure::Data(_) | Failure::Fenced(_) | Failure::Refused(_)) => {
                        unreachable!("looking has no claim to lose, and writes and refuses nothing")
                    }
                }
            }
            Err(TargetError::Contended { attempts: ATTEMPTS })
        })
    }

    /// The comparison began with another layout, so it has to begin anew.
    fn stale(&self) -> TargetError {
        TargetError::Layout {
            table: self.layout.schema.full_name(),
            problem: "its schema changed while it was compared".to_owned(),
            fix: "compare it again".to_owned(),
        }
    }

    /// By column a hash or NULL, then when something expires.
    fn select(&self, kind: ColumnKind) -> String {
        let relation = self.relation(kind);
        let hash = |column: &crate::layout::TargetColumn| {
            let name = format!("t.{}", quote(&column.name));
            let digest = self.digest.sql([(name.as_str(), &column.pg)], "0::bigint");
            format!("case when {name} is not null then {digest} end")
        };
        let mut selected: Vec<String> = relation.values.iter().map(|(_, column)| hash(column)).collect();
        selected.push(format!("floor(extract(epoch from t.{EXPIRES_AT}))::bigint"));
        let names: Vec<String> = (0..selected.len()).map(|at| format!("h{at}")).collect();
        let selected: Vec<String> = selected.iter().zip(&names).map(|(sql, name)| format!("{sql} as {name}")).collect();
        relation.select_of_each("look at rows", &selected.join(", "))
    }

    fn seen(&self, key: &RowKey, stored: Stored) -> Seen {
        let count = self.relation(key.kind()).values.len();
        let expires_at = stored.live.as_ref().and_then(|row| row.get(1 + count));
        let columns = stored.live.map(|row| (0..count).map(|at| row.get(1 + at)).collect());
        Seen { columns, state: stored.state, expires_at }
    }

    fn unit(&self, key: &RowKey, change: RowState) -> Unit {
        let RowKey { partition, clustering } = self.canonical_key(key.clone());
        Unit {
            layout: Arc::clone(&self.layout),
            token: token(&partition),
            partition,
            body: Body::Row { clustering, change, refresh: false },
            provenance: Provenance { node: NodeId(uuid::Uuid::nil()), position: SegmentPosition::START },
            refused: None,
        }
    }

    /// Which of the rows have an unresolved dead letter.
    ///
    /// # Errors
    /// [`TargetError::Database`].
    pub fn have_letters<'a>(&'a self, keys: &'a [RowKey]) -> BoxFuture<'a, Result<Vec<bool>, TargetError>> {
        Box::pin(async move {
            let partitions = Array::collect(Type::BYTEA, keys.iter().map(|key| key.partition.clone()));
            let sql = "-- cdc: letters of rows\nselect partition_key, clustering from _cdc.dlq where table_id = $1 \
                       and status = 'unresolved' and partition_key = any($2::bytea[])";
            let mut letters: HashMap<ValueBytes, Vec<Option<ValueBytes>>> = HashMap::new();
            self.pass(sql, &[&self.layout.schema.id.0, &partitions], &mut |row| {
                let partition = row.get::<_, Raw>(0).0.unwrap_or_default();
                letters.entry(partition).or_default().push(row.get::<_, Raw>(1).0);
                Ok(())
            })
            .await?;
            let has = |key: &RowKey| {
                let own = key.clustering.as_ref().map_or(STATIC_ROW, |clustering| clustering.as_bytes());
                let is_own = |letter: &Option<ValueBytes>| letter.as_deref().is_none_or(|clustering| clustering == own);
                letters.get(&key.partition).is_some_and(|letters| letters.iter().any(is_own))
            };
            Ok(keys.iter().map(has).collect())
        })
    }
}

/// As [`crate::digest::Element`] wants it.
fn hashable(ty: &Type, value: Option<ValueBytes>) -> Option<Option<ValueBytes>> {
    match (ty, value) {
        (&Type::JSONB, Some(value)) => {
            let json = std::str::from_utf8(value.get(1..)?).ok()?;
            Some(Some(canonical(json)?.into_bytes().into()))
        }
        (_, value) => Some(value),
    }
}
