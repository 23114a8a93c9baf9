//! What PostgreSQL answers instead of doing it, and what becomes of the changes: every row of the table of SQLSTATEs but those
//! that condemn data, which `dead_letters` and `refusal` have.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cdc_postgres::{Advance, ApplyError, Claim, Disposition, StreamName, Target};
use cdc_runtime::Secret;
use deadpool_postgres::Object;

use crate::support::{Database, insert, orders};

use Disposition::{Halt, Retry};

/// Raised by a trigger, as these are hard to come by.
const RAISED: [(&str, Disposition); 22] = [
    ("08006", Retry),
    ("0A000", Retry),
    ("25006", Retry),
    ("25P03", Retry),
    ("26000", Retry),
    ("40001", Retry),
    ("40003", Retry),
    ("40P01", Retry),
    ("53100", Retry),
    ("53200", Retry),
    ("55P03", Retry),
    ("57014", Retry),
    ("57P03", Retry),
    ("CD001", Retry),
    ("28000", Halt),
    ("3D000", Halt),
    ("3F000", Halt),
    ("42501", Halt),
    ("42P01", Halt),
    ("58030", Halt),
    ("P0001", Halt),
    ("XX001", Halt),
];

/// What a superuser does, the SQLSTATE that comes of it, what is to be done then, and what mends it.
const CAUSED: [(&str, &str, Disposition, &str); 8] = [
    ("revoke insert on \"cdc_Orders\" from ROLE", "42501", Halt, "grant insert on \"cdc_Orders\" to ROLE"),
    ("alter role ROLE set default_transaction_read_only = on", "25006", Retry, "alter role ROLE reset all"),
    ("alter role ROLE connection limit 0", "53300", Retry, "alter role ROLE connection limit -1"),
    ("alter role ROLE nologin", "28000", Halt, "alter role ROLE login"),
    ("alter role ROLE password 'another'", "28P01", Halt, "alter role ROLE password 'writer'"),
    ("alter table \"cdc_Orders\" rename to gone", "42P01", Halt, "alter table gone rename to \"cdc_Orders\""),
    ("alter table \"cdc_Orders\" rename v to w", "42703", Halt, "alter table \"cdc_Orders\" rename w to v"),
    ("alter schema _cdc rename to elsewhere", "42P01", Halt, "alter schema elsewhere rename to _cdc"),
];

/// What is done to a transaction that waits for a lock.
const INTERRUPTED: [(&str, &str); 2] = [("pg_terminate_backend", "57P01"), ("pg_cancel_backend", "57014")];

/// A target that writes as a role of its own, which is no superuser and owns what it makes.
struct Writer {
    target: Target,
    claim: Claim,
    role: String,
    client: Object,
    written: i32,
}

impl Writer {
    async fn start(database: &mut Database) -> Result<Self> {
        let client = database.client().await?;
        let role = format!("writer_of_{}", database.config.database);
        client
            .batch_execute(&format!(
                "create role {role} login password 'writer'; grant create on schema public to {role}; \
                 grant create on database {} to {role}",
                database.config.database
            ))
            .await?;
        database.config.username = role.clone();
        database.config.password = Some(Secret::new("writer"));
        let target = database.target().await?;
        target.prepare_table(orders()).await?;
        let claim = target.claim(&StreamName("node:a".to_owned())).await?;
        Ok(Self { target, claim, role, client, written: 0 })
    }

    /// Applies one row and moves the position with it.
    async fn apply(&mut self) -> Result<(), ApplyError> {
        let position = [Advance { claim: self.claim.clone(), position: self.written.to_string() }];
        self.target.apply(vec![insert(&orders(), "a", self.written, 1, "t", 5)], &position).await?;
        self.written += 1;
        Ok(())
    }

    /// Ends the role's sessions, so that the next have what is set for it.
    async fn end_sessions(&self) -> Result<()> {
        let end = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = $1";
        self.client.execute(end, &[&self.role]).await?;
        Ok(())
    }

    async fn fails(&mut self, sqlstate: &str, disposition: Disposition) -> Result<()> {
        let error = self.apply().await.err().with_context(|| format!("{sqlstate} does not fail"))?;
        ensure!(error.disposition() == disposition, "{sqlstate}: {error} is a {:?}", error.disposition());
        let text = error.to_string();
        // Those that another try may spare are not told before many.
        ensure!(text.contains(sqlstate) || text.contains("attempts"), "{sqlstate} is not in: {text}");
        ensure!(!text.contains("secret"), "{text}");
        Ok(())
    }
}

async fn nothing_was_lost(database: &Database, writer: &Writer) -> Result<()> {
    let written = i64::from(writer.written);
    assert_eq!(database.number("select count(*) from \"cdc_Orders\"").await?, written);
    assert_eq!(database.number("select position from _cdc.streams").await?, written - 1);
    assert_eq!(database.number("select count(*) from _cdc.dlq").await?, 0, "no fault of the data");
    Ok(())
}

#[tokio::test]
async fn what_a_server_raises_is_waited_for_or_halts_and_condemns_no_row() -> Result<()> {
    let mut database = Database::create().await?;
    let mut writer = Writer::start(&mut database).await?;
    writer
        .client
        .batch_execute(
            "create table fault (code text);
             grant select on fault to public;
             create function fail() returns trigger language plpgsql as $$ declare code text := (select f.code from fault f);
             begin
                 if code is not null then raise exception 'secret %', new.t using errcode = code; end if;
                 return new; end $$;
             create trigger fail before insert on \"cdc_Orders\" for each row execute function fail();",
        )
        .await?;
    for (sqlstate, disposition) in RAISED {
        writer.client.execute("insert into fault values ($1)", &[&sqlstate]).await?;
        writer.fails(sqlstate, disposition).await?;
        writer.client.execute("delete from fault", &[]).await?;
        writer.apply().await?;
    }
    nothing_was_lost(&database, &writer).await
}

#[tokio::test]
async fn what_an_administrator_does_is_waited_for_or_halts_and_condemns_no_row() -> Result<()> {
    let mut database = Database::create().await?;
    let mut writer = Writer::start(&mut database).await?;
    for (cause, sqlstate, disposition, mends) in CAUSED {
        writer.client.batch_execute(&cause.replace("ROLE", &writer.role)).await?;
        writer.end_sessions().await?;
        writer.fails(sqlstate, disposition).await.context(cause)?;
        writer.client.batch_execute(&mends.replace("ROLE", &writer.role)).await?;
        writer.end_sessions().await?;
        writer.apply().await.context(mends)?;
    }
    nothing_was_lost(&database, &writer).await
}

#[tokio::test]
async fn a_transaction_that_is_interrupted_is_tried_again() -> Result<()> {
    let mut database = Database::create().await?;
    let mut writer = Writer::start(&mut database).await?;
    for (interrupt, sqlstate) in INTERRUPTED {
        let lock = database.client().await?;
        lock.batch_execute("begin; lock table \"cdc_Orders\" in access exclusive mode").await?;
        let (client, role) = (database.client().await?, writer.role.clone());
        let interrupted = async {
            let waiting = format!(
                "select {interrupt}(pid) from pg_stat_activity where usename = $1 and wait_event_type = 'Lock'"
            );
            let deadline = Instant::now() + Duration::from_secs(30);
            while client.execute(&waiting, &[&role]).await? == 0 {
                ensure!(Instant::now() < deadline, "nothing waits for the lock");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        tokio::try_join!(writer.fails(sqlstate, Retry), interrupted)?;
        lock.batch_execute("rollback").await?;
        writer.apply().await?;
    }
    nothing_was_lost(&database, &writer).await
}
