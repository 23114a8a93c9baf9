//! The small shop the demo replicates: one table per shape that is hard to replicate.

use anyhow::Context as _;
use futures::future::BoxFuture;
use scylla::client::session::Session;

pub const KEYSPACE: &str = "shop";
pub const TABLES: [&str; 3] = ["users", "orders", "events"];

/// Creates the keyspace, the type and the tables, all captured. Idempotent.
pub fn create_schema(session: &Session, replication_factor: usize) -> BoxFuture<'_, anyhow::Result<()>> {
    Box::pin(async move {
        let keyspace = format!(
            "create keyspace if not exists shop with replication = \
         {{'class': 'SimpleStrategy', 'replication_factor': {replication_factor}}}"
        );
        for statement in [keyspace.as_str(), ADDRESS, USERS, ORDERS, EVENTS] {
            let name = statement.split(['(', '=']).next().unwrap_or_default().trim();
            session.query_unpaged(statement, &[]).await.with_context(|| format!("{name} …"))?;
        }
        Ok(())
    })
}

const ADDRESS: &str = "create type if not exists shop.address (street text, city text, zip int)";

/// One row per partition; every kind of multi-cell column.
const USERS: &str = "create table if not exists shop.users (
    id uuid primary key,
    name text,
    email text,
    age int,
    balance decimal,
    score double,
    visits bigint,
    active boolean,
    created_at timestamp,
    address address,
    tags set<text>,
    preferences map<text, text>,
    logins list<timestamp>,
    avatar blob
) with cdc = true";

/// Reversed clustering, static columns (one of them a set), a frozen type.
const ORDERS: &str = "create table if not exists shop.orders (
    user_id uuid,
    order_id timeuuid,
    customer_tier text static,
    points int static,
    badges set<text> static,
    status text,
    total decimal,
    quantity int,
    placed_at timestamp,
    items map<text, int>,
    notes list<text>,
    labels set<text>,
    ship_to frozen<address>,
    discount double,
    primary key (user_id, order_id)
) with clustering order by (order_id desc) and cdc = true";

/// Two clustering columns, few wide partitions: what range deletes and short TTLs work on.
const EVENTS: &str = "create table if not exists shop.events (
    day text,
    seq bigint,
    kind text,
    payload text,
    amount double,
    source inet,
    happened_at timestamp,
    attributes map<text, text>,
    primary key (day, seq, kind)
) with clustering order by (seq asc, kind desc) and cdc = true";
