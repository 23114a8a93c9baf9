//! Logging in, reading and waiting, with a real Vault.

mod world;

use std::time::Duration;

use cdc_runtime::{Lifecycle, Secret};
use cdc_testkit::Vault as Server;
use cdc_vault::{AppRole, Vault, VaultConfig};

use world::{CANARY, PATIENCE, World, replacements, until, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_is_sealed_or_away_is_waited_for_and_what_it_gave_counts_on() {
    let world = World::start(&[]);
    world.vault.seal().unwrap();
    let lifecycle = Lifecycle::new();
    let vault = Vault::start(&world.config(), &lifecycle).unwrap();
    until("that it is sealed is told", || vault.state.sealed() == Some(true)).await;
    let refused = vault.state.ready().unwrap_err();
    assert!(refused.contains("is sealed") && refused.contains("vault operator unseal"), "{refused}");
    let told = within("a command", PATIENCE, vault.clone().issued_at_once()).await.unwrap_err();
    assert!(told.contains("is sealed"), "{told}");
    world.vault.unseal().unwrap();
    within("the logins after the seal is off", Duration::from_secs(10), vault.issued()).await;
    until("ready", || vault.state.ready().is_ok()).await;

    world.vault.seal().unwrap();
    until("that it is sealed again is told", || vault.state.sealed() == Some(true)).await;
    assert_eq!(vault.state.ready(), Ok(()), "logins are valid");
    assert!(vault.state.problem().is_some());
    world.vault.kill().unwrap();
    until("that it is away is told", || vault.state.sealed().is_none()).await;
    assert!(vault.state.problem().unwrap().contains("cannot be reached"), "{:?}", vault.state.problem());
    let mut metrics = String::new();
    vault.state.render(&mut metrics);
    for line in ["cdc_vault_up 0", "cdc_vault_sealed 0", "vault_connection_errors_total{kind=\"sealed\"} "] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let login = vault.logins.postgres.as_ref().unwrap().current().unwrap();
    assert_eq!(world.acts_as(&login).as_deref(), Ok("cdc_writer"));

    world.vault.start().unwrap();
    until("a Vault that starts is sealed", || vault.state.sealed() == Some(true)).await;
    world.vault.unseal().unwrap();
    until("all is well", || vault.state.problem().is_none()).await;
    assert_eq!(replacements(&vault, "postgres"), 0, "{}", vault.state.status());
    lifecycle.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_denied_or_missing_or_wrong_is_named_and_heals() {
    let world = World::start(&[]);
    let run = |args: &[&str]| world.vault.run(args).unwrap();
    let lifecycle = Lifecycle::new();
    let refusal = async |config: VaultConfig| {
        let mut vault = Vault::start(&config, &lifecycle).unwrap();
        let told = within("a refusal", PATIENCE, vault.issued_at_once()).await.unwrap_err();
        assert!(!format!("{told} {}", vault.state.status()).contains(CANARY));
        (vault, told)
    };
    let wrong = Some(AppRole { secret_id: Secret::new(CANARY), ..world.config().approle.unwrap() });
    let (_, told) = refusal(VaultConfig { approle: wrong, ..world.config() }).await;
    assert!(told.contains("does not let us log in at auth/approle/login"), "{told}");
    let wrong = VaultConfig { approle: None, token: Some(Secret::new(CANARY)), ..world.config() };
    let (_, told) = refusal(wrong).await;
    assert!(told.contains("does not let us log in at auth/token/lookup-self"), "{told}");
    let away = VaultConfig { address: Some("http://127.0.0.1:1".to_owned()), ..world.config() };
    let (_, told) = refusal(away).await;
    assert!(told.contains("http://127.0.0.1:1 cannot be reached"), "{told}");

    let other = VaultConfig { cassandra: Some("secret/other".to_owned()), ..world.config() };
    let (vault, told) = refusal(other).await;
    assert!(told.contains("denies secret/other"), "{told}");
    run(&["kv", "put", "secret/other", &format!("password={CANARY}")]);
    let policy = world.vault.run(&["policy", "read", "cdc-pipeline"]).unwrap();
    let more = format!(
        "vault policy write cdc-pipeline - <<'E'\n{policy}\npath \"secret/data/other\" {{ capabilities = [\"read\"] }}\nE"
    );
    world.vault.script(&more, &[]).unwrap();
    until("it says what is missing", || {
        vault.state.problem().is_some_and(|problem| problem.contains("no text username"))
    })
    .await;
    run(&["kv", "put", "secret/other", "username=me", &format!("password={CANARY}")]);
    within("the login", PATIENCE, vault.issued()).await;
    until("ready", || vault.state.ready().is_ok()).await;
    lifecycle.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_was_changed_and_a_token_file_that_was_replaced_are_used() {
    let world = World::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let token = |ttl: &str| {
        let args = ["token", "create", "-field=token", "-policy=cdc-pipeline", "-orphan", "-explicit-max-ttl", ttl];
        std::fs::write(&file, world.vault.run(&args).unwrap()).unwrap();
    };
    token("8s");
    // As the configuration reads it, so that the secret knows its file.
    let text = format!(
        "address: {}\ntoken_file: {}\ncassandra: secret/cdc/cassandra\npostgres: database/creds/postgresql-writer\nrefresh_ms: 500\n",
        world.vault.url(),
        file.display()
    );
    let config: VaultConfig = cdc_runtime::config::parse(&text, [], |_| Vec::new()).unwrap();
    let lifecycle = Lifecycle::new();
    let vault = Vault::start(&config, &lifecycle).unwrap();
    within("the logins", PATIENCE, vault.issued()).await;
    let cassandra = vault.logins.cassandra.clone().unwrap();
    let first = cassandra.first().await;
    assert_eq!((first.username.as_str(), first.password.as_ref().unwrap().expose()), ("me", "canary-7f3a-1"));
    world.vault.run(&["kv", "put", "secret/cdc/cassandra", "username=me", "password=changed"]).unwrap();
    let changed = within("the change", Duration::from_secs(10), cassandra.after(first.generation)).await;
    assert_eq!(changed.password.as_ref().unwrap().expose(), "changed");

    // The token ends, and with it the lease, until there is another.
    until("that the token has ended is told", || vault.state.problem().is_some()).await;
    let postgres = vault.logins.postgres.clone().unwrap();
    let generation = postgres.current().unwrap().generation;
    token("1h");
    within("another login", Duration::from_secs(20), postgres.after(generation)).await;
    until("all is well", || vault.state.problem().is_none() && vault.state.ready().is_ok()).await;
    lifecycle.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_behind_tls_is_believed_by_its_authority_alone() {
    let world = World::with(Server::start_with_tls().unwrap(), &[]);
    let lifecycle = Lifecycle::new();
    let vault = Vault::start(&world.config(), &lifecycle).unwrap();
    within("the logins", PATIENCE, vault.issued()).await;
    let unknown = VaultConfig { ca_file: None, ..world.config() };
    let mut vault = Vault::start(&unknown, &lifecycle).unwrap();
    let told = within("a refusal", PATIENCE, vault.issued_at_once()).await.unwrap_err();
    assert!(told.contains("cannot be reached") && told.contains("certificate"), "{told}");
    let not_there = VaultConfig { ca_file: Some("/nowhere.pem".into()), ..world.config() };
    let Err(faults) = Vault::start(&not_there, &lifecycle) else { panic!("there is no such file") };
    assert!(faults[0].to_string().contains("vault.ca_file /nowhere.pem"), "{faults:?}");
    lifecycle.stop();
}
