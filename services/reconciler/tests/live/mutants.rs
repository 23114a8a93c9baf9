//! A reconciler that is wrong must be caught: with a rule broken, the checks of this suite fail. Rules of the decision
//! (how many nodes a barrier waits for, that `ALL` is asked) are broken in the crate's own model tests, the hash without its
//! seed in those of `cdc-postgres`.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use cdc_model::TableSchema;
use cdc_reconciler::{Class, Pass};
use futures::future::BoxFuture;

use crate::{findings, world::World};

/// Does not wait for anything.
struct AtOnce;

impl Pass for AtOnce {
    fn pass<'a>(&'a self, _: &'a TableSchema) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_that_does_not_wait_calls_changes_under_way_wrong_and_the_real_one_never_does() -> Result<()> {
    let world = World::start(&[], async |session| {
        session.query_unpaged("create table shop.plain (id int primary key, v text) with cdc = true", ()).await?;
        Ok(())
    })
    .await?;
    for id in 0..50 {
        world.cql(&format!("insert into shop.plain (id, v) values ({id}, 'v')")).await?;
    }
    world.settle().await?;
    let broken: Arc<dyn Pass> = Arc::new(AtOnce);
    ensure!(world.compare_by("shop.plain", broken.clone()).await?.findings.is_empty(), "nothing is under way");

    // As slow as can be.
    world.stop_replicating().await;
    for id in 0..20 {
        world.cql(&format!("update shop.plain set v = 'newer' where id = {id}")).await?;
        world.cql(&format!("insert into shop.plain (id, v) values ({}, 'v')", 100 + id)).await?;
        world.cql(&format!("delete from shop.plain where id = {}", 20 + id)).await?;
    }
    let alarms = world.compare_by("shop.plain", broken).await?;
    for class in [Class::MissingInPostgres, Class::Stale, Class::Extra] {
        ensure!(alarms.classes.get(&class) == Some(&20), "the broken one is not caught: {:?}", alarms.classes);
    }
    let outcomes = [world.compare_by("shop.plain", world.barrier_within(Duration::from_secs(1))).await?];
    let found = findings(&outcomes);
    ensure!(found.len() == 60 && found.iter().all(|finding| finding.class == Class::Unproven), "{outcomes:#?}");
    ensure!(outcomes[0].drift() == 0);
    Ok(())
}
