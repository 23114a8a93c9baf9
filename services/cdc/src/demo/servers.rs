//! The demo's servers.

use std::time::Instant;

use anyhow::Context as _;
use cdc_testkit::{Cassandra, Kafka, Postgres};
use tokio::task::spawn_blocking;
use tokio_postgres::{Client, NoTls};

use super::{DemoArgs, Mode};

pub(super) struct Servers {
    pub(super) cassandra: Cassandra,
    pub(super) kafka: Option<Kafka>,
    pub(super) postgres: Postgres,
}

impl Servers {
    /// All at once; says what starts and how long it took.
    pub(super) async fn start(args: &DemoArgs) -> anyhow::Result<Self> {
        let nodes = usize::from(args.nodes);
        let cassandra = Cassandra::builder().version(&args.cassandra).nodes(nodes);
        let postgres = Postgres::builder().version(&args.postgres);
        let with_kafka = if args.mode == Mode::Kafka { ", Kafka" } else { "" };
        let nodes = if nodes > 1 { format!(" ({nodes} nodes)") } else { String::new() };
        eprintln!(
            "demo: starting Cassandra {}{nodes}{with_kafka} and PostgreSQL {} (the first time they are downloaded)",
            args.cassandra, args.postgres
        );
        let cassandra = timed("Cassandra", move || cassandra.start());
        let postgres = timed("PostgreSQL", move || postgres.start());
        let kafka = async {
            match args.mode {
                Mode::Direct => Ok(None),
                Mode::Kafka => timed("Kafka", Kafka::start).await.map(Some),
            }
        };
        let (cassandra, kafka, postgres) = tokio::try_join!(cassandra, kafka, postgres)?;
        Ok(Self { cassandra, kafka, postgres })
    }

    pub(super) fn postgres_config(&self) -> anyhow::Result<tokio_postgres::Config> {
        self.postgres.url().parse().context("understand the database's own address")
    }

    /// Runs `work` on a connection of its own.
    pub(super) async fn with_postgres<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let (client, connection) = self.postgres_config()?.connect(NoTls).await.context("connect to PostgreSQL")?;
        tokio::select! {
            done = work(&client) => done,
            ended = connection => Err(ended.err().map_or_else(
                || anyhow::anyhow!("PostgreSQL closed the connection"),
                |error| anyhow::Error::new(error).context("talk to PostgreSQL"),
            )),
        }
    }

    /// Rows in `_cdc.dlq`.
    pub(super) async fn quarantined(&self) -> anyhow::Result<u64> {
        self.with_postgres(async |client| {
            let row = client.query_one("select count(*) from _cdc.dlq", &[]).await?;
            u64::try_from(row.get::<_, i64>(0)).context("count the quarantine")
        })
        .await
    }

    pub(super) fn how_to_look_around(&self, nodes: u8) -> anyhow::Result<String> {
        let node = self.cassandra.node(0);
        let port = node.address();
        let port = port.rsplit(':').next().unwrap_or_default();
        let kafka =
            self.kafka.as_ref().map(|kafka| format!("  Kafka       {}\n", kafka.bootstrap())).unwrap_or_default();
        let user = "00000000-0000-0000-0000-000000000001";
        Ok(format!(
            "\n\
             Everything keeps running until Ctrl-C, the pipeline included.\n\n\
             \x20 Cassandra   cqlsh {ip} {port}\n\
             \x20 PostgreSQL  {psql}\n\
             {kafka}\n\
             Try, in cqlsh:\n\
             \x20 insert into shop.users (id, name, tags) values ({user}, 'Ada', {{'new'}});\n\
             \x20 update shop.users set address.city = 'London', tags = tags + {{'vip'}} where id = {user};\n\
             \x20 update shop.users using ttl 10 set email = 'gone@in.ten' where id = {user};\n\
             \x20 update shop.users using timestamp 1 set name = 'too old to win' where id = {user};\n\
             \x20 delete from shop.users where id = {user};\n\n\
             and after each of them, in psql:\n\
             \x20 select id, name, email, address, tags from cdc_users where id = '{user}';\n\
             \x20 select * from cdc_orders__all limit 5;\n\
             \x20 select * from _cdc.dlq;\n\n\
             {several}",
            ip = node.ip(),
            psql = self.postgres.psql()?,
            several = if nodes > 1 {
                format!("The {nodes} nodes each have an agent; stop one and see.\n")
            } else {
                String::new()
            },
        ))
    }
}

async fn timed<T: Send + 'static>(
    name: &'static str,
    start: impl FnOnce() -> Result<T, cdc_testkit::Error> + Send + 'static,
) -> anyhow::Result<T> {
    let began = Instant::now();
    let server = spawn_blocking(start).await?.with_context(|| format!("start {name}"))?;
    eprintln!("demo: {name} is up after {:.1} s", began.elapsed().as_secs_f64());
    Ok(server)
}
