//! The mark of a barrier: a row written into the commit log of every node that logs captured data.
//!
//! The marks' keyspace has one replica per datacenter, and a key is chosen for each node whose first replica the node is.
//! Written at `ALL`, the mark is in each node's log once the write is acknowledged, behind everything that node had
//! acknowledged before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use cdc_model::{Change, ChangeBody, ColumnState, NodeId, TableSchema, token};
use futures::future::{BoxFuture, join_all};
use scylla::statement::{Consistency, Statement};
use uuid::Uuid;

use crate::{Cassandra, CassandraError, checks::Wanted};

/// More than enough to meet the smallest share of a ring of a thousand nodes.
const KEYS_MAX: i32 = 1 << 24;
/// For all nodes to know a new table.
const AGREEMENT: Duration = Duration::from_secs(10);
const AGREEMENT_POLL: Duration = Duration::from_millis(50);

/// Where marks are written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MarkTable {
    pub keyspace: String,
    pub table: String,
}

impl Default for MarkTable {
    fn default() -> Self {
        Self { keyspace: "cdc_pipeline".to_owned(), table: "barrier".to_owned() }
    }
}

impl fmt::Display for MarkTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.keyspace, self.table)
    }
}

impl MarkTable {
    /// Of `keyspace.table`; both need no quotes in CQL.
    pub fn parse(text: &str) -> Option<Self> {
        let (keyspace, table) = text.split_once('.')?;
        let plain = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        let valid = plain(keyspace) && plain(table);
        valid.then(|| Self { keyspace: keyspace.to_owned(), table: table.to_owned() })
    }

    pub fn is(&self, table: &TableSchema) -> bool {
        self.keyspace == table.keyspace && self.table == table.name
    }

    /// The barrier a change of such a table is the mark of.
    pub fn barrier(change: &Change) -> Option<Uuid> {
        let ChangeBody::Row { row, .. } = &change.body else { return None };
        row.columns.iter().find_map(|(column, state)| match state {
            ColumnState::Simple(cell) if change.table.column(*column).name == "id" => {
                Uuid::from_slice(cell.value.bytes()).ok()
            }
            ColumnState::Simple(_) | ColumnState::Complex(_) => None,
        })
    }

    fn create_keyspace(&self, replication: &Replication) -> String {
        format!("CREATE KEYSPACE IF NOT EXISTS {} WITH replication = {};", self.keyspace, replication.cql())
    }

    /// With an id of its own: two processes may create it at once through different nodes, and by itself Cassandra would
    /// give it two.
    fn create_table(&self) -> String {
        let (keyspace, table) = (token(self.keyspace.as_bytes()).0, token(self.table.as_bytes()).0);
        let id = Uuid::from_u64_pair(keyspace.cast_unsigned(), table.cast_unsigned());
        format!("CREATE TABLE IF NOT EXISTS {self} (key int PRIMARY KEY, id uuid) WITH id = '{id}' AND cdc = true;")
    }
}

/// A node whose log takes a mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MarkedNode {
    pub id: NodeId,
    pub address: IpAddr,
}

impl fmt::Display for MarkedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} {}", self.id, self.address)
    }
}

/// Where to write a mark so that every node logs it.
#[derive(Debug)]
pub struct Marks {
    table: MarkTable,
    /// Keys, and the nodes each is logged by.
    places: Vec<(i32, Vec<MarkedNode>)>,
    /// Keyspace and name of every table that is captured.
    pub tables: Vec<(String, String)>,
}

impl Marks {
    pub fn nodes(&self) -> impl Iterator<Item = MarkedNode> {
        self.places.iter().flat_map(|(_, nodes)| nodes).copied()
    }
}

#[derive(thiserror::Error, Debug)]
pub enum MarkError {
    #[error(transparent)]
    Cassandra(#[from] CassandraError),
    #[error("no table of source.tables exists and has cdc = true, so there is nothing to wait for")]
    NothingCaptured,
    #[error("{table} (source.barrier_table) cannot be created; run in cqlsh, as one who may: {statements}")]
    Create {
        table: String,
        statements: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{table} (source.barrier_table) is not set up for barriers: {problem}; run in cqlsh: {statement}")]
    Setup { table: String, problem: String, statement: String },
    #[error("no partition was found that {0} owns: has it tokens of the Murmur3Partitioner?")]
    NoKey(MarkedNode),
    #[error(
        "the mark could not be written at ALL, so nothing can be said: {}",
        nodes.iter().map(|(node, cause)| format!("{node}: {cause}")).collect::<Vec<_>>().join("; ")
    )]
    Unwritten { nodes: Vec<(MarkedNode, String)> },
}

/// A keyspace's, as far as it decides where first replicas are.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Replication {
    /// One ring of all nodes.
    Simple,
    /// A ring per datacenter.
    Datacenters(BTreeMap<String, String>),
}

impl Replication {
    fn of(options: &HashMap<String, String>) -> Self {
        if options.get("class").is_some_and(|class| class.ends_with("SimpleStrategy")) {
            return Self::Simple;
        }
        let copies = options.iter().filter(|(name, copies)| *name != "class" && *copies != "0");
        Self::Datacenters(copies.map(|(name, copies)| (name.clone(), copies.clone())).collect())
    }

    fn cql(&self) -> String {
        match self {
            Self::Simple => "{'class': 'SimpleStrategy', 'replication_factor': 1}".to_owned(),
            Self::Datacenters(copies) => {
                let copies = copies.iter().map(|(name, copies)| format!(", '{}': {copies}", name.replace('\'', "''")));
                format!("{{'class': 'NetworkTopologyStrategy'{}}}", copies.collect::<String>())
            }
        }
    }

    fn holds(&self, datacenter: &str) -> bool {
        match self {
            Self::Simple => true,
            Self::Datacenters(copies) => copies.contains_key(datacenter),
        }
    }
}

#[derive(Clone, Debug)]
struct Member {
    node: MarkedNode,
    datacenter: String,
    tokens: Vec<i64>,
}

/// What is left of a node that went away may lack anything.
type Peer = (Option<Uuid>, Option<String>, Option<HashSet<String>>, Option<IpAddr>);

impl Cassandra {
    /// Finds out which nodes log captured tables, and where to write a mark for each. Creates the table of marks where it is
    /// missing.
    pub fn prepare_marks<'a>(
        &'a self,
        table: &'a MarkTable,
        captured: &'a [Wanted],
    ) -> BoxFuture<'a, Result<Marks, MarkError>> {
        Box::pin(async move {
            let all: Vec<(String, String, Option<bool>)> = self
                .rows("system_schema.tables", "select keyspace_name, table_name, cdc from system_schema.tables")
                .await?;
            let is_captured = |keyspace: &str, name: &str| {
                captured.iter().any(|wanted| {
                    wanted.keyspace == keyspace && wanted.table.as_deref().is_none_or(|wanted| wanted == name)
                })
            };
            let marks = |keyspace: &str, name: &str| table.keyspace == *keyspace && table.table == *name;
            let tables: Vec<(String, String)> = all
                .iter()
                .filter(|(keyspace, name, cdc)| {
                    *cdc == Some(true) && is_captured(keyspace, name) && !marks(keyspace, name)
                })
                .map(|(keyspace, name, _)| (keyspace.clone(), name.clone()))
                .collect();
            if tables.is_empty() {
                return Err(MarkError::NothingCaptured);
            }
            let members = self.members().await?;
            let keyspaces = self.keyspaces().await?;
            let captured: BTreeSet<&str> = members
                .iter()
                .map(|member| member.datacenter.as_str())
                .filter(|dc| tables.iter().any(|(name, _)| keyspaces.get(name).is_some_and(|known| known.holds(dc))))
                .collect();
            let wanted = captured.iter().map(|name| ((*name).to_owned(), "1".to_owned()));
            let wanted = Replication::Datacenters(wanted.collect());
            let existing = all.iter().find(|(keyspace, name, _)| marks(keyspace, name));
            let replication = match (keyspaces.get(&table.keyspace), existing) {
                (Some(replication), Some((_, _, cdc))) => {
                    check(table, replication, *cdc == Some(true), &captured)?;
                    replication.clone()
                }
                (known, _) => {
                    let replication = known.cloned().unwrap_or(wanted);
                    check(table, &replication, true, &captured)?;
                    self.create(table, &replication).await?;
                    replication
                }
            };
            let places = choose(&members, &replication, &captured)?;
            Ok(Marks { table: table.clone(), places, tables })
        })
    }

    /// Writes the barrier's mark into the logs of these nodes, and of those that share a key with one.
    ///
    /// # Errors
    /// [`MarkError::Unwritten`] if a node does not acknowledge it.
    pub fn mark<'a>(
        &'a self,
        marks: &'a Marks,
        barrier: Uuid,
        nodes: &'a (dyn Fn(NodeId) -> bool + Sync),
    ) -> BoxFuture<'a, Result<(), MarkError>> {
        Box::pin(async move {
            let mut statement = Statement::new(format!("INSERT INTO {} (key, id) VALUES (?, ?)", marks.table));
            statement.set_consistency(Consistency::All);
            statement.set_is_idempotent(true);
            let writes = marks.places.iter().filter(|(_, owners)| owners.iter().any(|owner| nodes(owner.id)));
            let writes = writes.map(async |(key, owners)| {
                let written = Box::pin(self.session().query_unpaged(statement.clone(), (*key, barrier))).await;
                written
                    .err()
                    .map(|error| owners.iter().map(move |owner| (*owner, error.to_string())).collect::<Vec<_>>())
            });
            let nodes: Vec<_> = join_all(writes).await.into_iter().flatten().flatten().collect();
            if nodes.is_empty() { Ok(()) } else { Err(MarkError::Unwritten { nodes }) }
        })
    }

    async fn members(&self) -> Result<Vec<Member>, CassandraError> {
        let local = "select host_id, data_center, tokens, rpc_address from system.local";
        let peers = "select host_id, data_center, tokens, native_address from system.peers_v2";
        let mut all: Vec<Peer> = self.rows("system.local", local).await?;
        all.extend(self.rows::<Peer>("system.peers_v2", peers).await?);
        let members = all.into_iter().filter_map(|(id, datacenter, tokens, address)| {
            Some(Member {
                node: MarkedNode { id: NodeId(id?), address: address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()) },
                datacenter: datacenter?,
                tokens: tokens.iter().flatten().filter_map(|token| token.parse().ok()).collect(),
            })
        });
        Ok(members.collect())
    }

    async fn keyspaces(&self) -> Result<HashMap<String, Replication>, CassandraError> {
        let query = "select keyspace_name, replication from system_schema.keyspaces";
        let rows: Vec<(String, HashMap<String, String>)> = self.rows("system_schema.keyspaces", query).await?;
        Ok(rows.into_iter().map(|(name, options)| (name, Replication::of(&options))).collect())
    }

    async fn create(&self, table: &MarkTable, replication: &Replication) -> Result<(), MarkError> {
        let statements = [table.create_keyspace(replication), table.create_table()];
        for statement in &statements {
            Box::pin(self.session().query_unpaged(statement.as_str(), ())).await.map_err(|error| {
                MarkError::Create {
                    table: table.to_string(),
                    statements: statements.join(" "),
                    source: Box::new(error),
                }
            })?;
        }
        // A node that does not know the table yet could not take the mark. One that is down never agrees, and cannot either.
        let began = Instant::now();
        let peers = "select schema_version from system.peers_v2";
        while began.elapsed() < AGREEMENT {
            let own = self.schema_version().await?;
            let others: Vec<(Option<Uuid>,)> = self.rows("system.peers_v2", peers).await?;
            if others.iter().all(|(version,)| *version == Some(own)) {
                break;
            }
            tokio::time::sleep(AGREEMENT_POLL).await;
        }
        tracing::info!(%table, "the table of barriers was created");
        Ok(())
    }
}

fn check(table: &MarkTable, replication: &Replication, cdc: bool, captured: &BTreeSet<&str>) -> Result<(), MarkError> {
    let setup = |problem, statement| MarkError::Setup { table: table.to_string(), problem, statement };
    if !cdc {
        let statement = format!("ALTER TABLE {table} WITH cdc = true;");
        return Err(setup("its writes are not logged for capture".to_owned(), statement));
    }
    let missing: Vec<&str> = captured.iter().copied().filter(|datacenter| !replication.holds(datacenter)).collect();
    if let (Replication::Datacenters(copies), false) = (replication, missing.is_empty()) {
        let more = missing.iter().map(|name| ((*name).to_owned(), "1".to_owned()));
        let all = Replication::Datacenters(copies.clone().into_iter().chain(more).collect());
        let problem = format!("captured tables have replicas in {}, and it has not", missing.join(", "));
        return Err(setup(problem, format!("ALTER KEYSPACE {} WITH replication = {};", table.keyspace, all.cql())));
    }
    Ok(())
}

/// Keys such that every node of these datacenters is the first replica of one, in its ring.
fn choose(
    members: &[Member],
    replication: &Replication,
    datacenters: &BTreeSet<&str>,
) -> Result<Vec<(i32, Vec<MarkedNode>)>, MarkError> {
    let mut rings: BTreeMap<&str, BTreeMap<i64, usize>> = BTreeMap::new();
    for (index, member) in members.iter().enumerate().filter(|(_, member)| replication.holds(&member.datacenter)) {
        let ring = match replication {
            Replication::Simple => "",
            Replication::Datacenters(_) => member.datacenter.as_str(),
        };
        rings.entry(ring).or_default().extend(member.tokens.iter().map(|token| (*token, index)));
    }
    let mut missing: BTreeSet<usize> =
        (0..members.len()).filter(|index| datacenters.contains(members[*index].datacenter.as_str())).collect();
    let mut places = Vec::new();
    for key in 0..KEYS_MAX {
        if missing.is_empty() {
            break;
        }
        let at = token(&key.to_be_bytes()).0;
        let first =
            |ring: &BTreeMap<i64, usize>| ring.range(at..).next().or(ring.first_key_value()).map(|(_, index)| *index);
        let owners: Vec<usize> = rings.values().filter_map(first).filter(|index| missing.remove(index)).collect();
        if !owners.is_empty() {
            places.push((key, owners.iter().map(|index| members[*index].node).collect()));
        }
    }
    missing.first().map_or(Ok(places), |index| Err(MarkError::NoKey(members[*index].node)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u128, datacenter: &str, tokens: &[i64]) -> Member {
        let node = MarkedNode { id: NodeId(Uuid::from_u128(id)), address: IpAddr::from([10, 0, 0, 1]) };
        Member { node, datacenter: datacenter.to_owned(), tokens: tokens.to_vec() }
    }

    fn two(copies: &[&str]) -> Replication {
        Replication::Datacenters(copies.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect())
    }

    #[test]
    fn every_node_of_the_captured_datacenters_owns_a_key() {
        let members = [
            member(1, "a", &[i64::MIN, 0]),
            member(2, "a", &[1 << 60, i64::MAX]),
            member(3, "b", &[5]),
            // The smallest of shares.
            member(4, "a", &[1 << 50]),
        ];
        for (replication, captured, expected) in [
            (two(&["a", "b"]), BTreeSet::from(["a", "b"]), vec![1, 2, 3, 4]),
            (two(&["a", "b"]), BTreeSet::from(["a"]), vec![1, 2, 4]),
            (Replication::Simple, BTreeSet::from(["a"]), vec![1, 2, 4]),
        ] {
            let places = choose(&members, &replication, &captured).unwrap();
            let mut owners: Vec<u128> = places.iter().flat_map(|(_, nodes)| nodes).map(|n| n.id.0.as_u128()).collect();
            owners.sort_unstable();
            assert_eq!(owners, expected, "{replication:?}");
            let (key, _) = places.iter().find(|(_, nodes)| nodes.iter().any(|node| node.id.0.as_u128() == 4)).unwrap();
            assert!((1..=1 << 50).contains(&token(&key.to_be_bytes()).0), "between the token before and its own");
        }
        let tokenless = [member(1, "a", &[0]), member(2, "a", &[])];
        let error = choose(&tokenless, &two(&["a"]), &BTreeSet::from(["a"])).unwrap_err().to_string();
        assert!(error.contains("00000002"), "{error}");
    }

    #[test]
    fn a_keyspace_that_misses_a_datacenter_is_refused_with_the_statement_to_run() {
        let table = MarkTable::default();
        let captured = BTreeSet::from(["a", "b"]);
        check(&table, &two(&["a", "b", "c"]), true, &captured).unwrap();
        check(&table, &Replication::Simple, true, &captured).unwrap();
        let error = check(&table, &two(&["a"]), true, &captured).unwrap_err().to_string();
        assert!(
            error.contains(
                "ALTER KEYSPACE cdc_pipeline WITH replication = {'class': 'NetworkTopologyStrategy', 'a': 1, 'b': 1};"
            ),
            "{error}"
        );
        let error = check(&table, &two(&["a", "b"]), false, &captured).unwrap_err().to_string();
        assert!(error.contains("ALTER TABLE cdc_pipeline.barrier WITH cdc = true;"), "{error}");
    }
}
