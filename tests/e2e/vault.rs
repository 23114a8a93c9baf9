//! The whole pipeline with logins from a real Vault, set up as docs/credentials.md says.

use std::time::{Duration, Instant};

use cdc_testkit::Vault;

use crate::converges::{RATE, moments};
use crate::pipeline::{Process, Servers, cdc, connect_postgres, eventually};

const DOCS: &str = include_str!("../../docs/credentials.md");

fn block(language: &str) -> &'static str {
    let (_, rest) = DOCS.split_once(&format!("```{language}\n")).expect("the page has such a block");
    rest.split("```").next().unwrap()
}

/// Starts `cdc run` with everything in its log that can be.
fn spawn(servers: &Servers, vault: &Vault, role_id: &str, secret_id: &str) -> Process {
    let file = servers.folder().join("secret-id");
    std::fs::write(&file, secret_id).unwrap();
    let path = servers.config("run", "");
    let text = std::fs::read_to_string(&path).unwrap();
    let kept = text.lines().filter(|line| !line.starts_with("  username: ") && !line.starts_with("  password_file: "));
    let text = kept.map(|line| format!("{line}\n")).collect::<String>()
        + &format!(
            "vault:\n  address: {}\n  approle: {{role_id: {}, secret_id_file: {}}}\n  \
             postgres: database/creds/postgresql-writer\n  refresh_ms: 500\n",
            vault.url(),
            role_id.trim(),
            file.display()
        );
    std::fs::write(&path, text).unwrap();
    let mut command = cdc();
    command.env("CDC_LOG", "trace").arg("run").arg(&path);
    Process::run(command, "run", path)
}

#[test]
fn vault_rotation_under_load() {
    let (seed, _) = moments("vault");
    let servers = Servers::start(false);
    let vault = Vault::start().unwrap();
    servers.runtime.block_on(async {
        let postgres = connect_postgres(&servers.postgres).await.unwrap();
        postgres.batch_execute(block("sql")).await.unwrap();
    });
    let address = servers.postgres.address().to_string();
    let ttls = [("DEFAULT_TTL", "6s"), ("MAX_TTL", "12s"), ("TOKEN_TTL", "10s"), ("TOKEN_MAX_TTL", "25s")];
    vault
        .script(block("sh"), &[&[("POSTGRES", address.as_str()), ("SSLMODE", "disable")], &ttls[..]].concat())
        .unwrap();
    let secret_id = ["write", "-force", "-field=secret_id", "auth/approle/role/cdc-pipeline/secret-id"];
    let secret_id = vault.run(&secret_id).unwrap();
    let role_id = vault.run(&["read", "-field=role_id", "auth/approle/role/cdc-pipeline/role-id"]).unwrap();

    // Sealed at the start: it waits, says why, and goes on by itself.
    vault.seal().unwrap();
    let mut agent = spawn(&servers, &vault, &role_id, &secret_id);
    eventually("it says that Vault is sealed", Duration::from_secs(60), || {
        let status = agent.status()?;
        anyhow::ensure!(status["vault"]["sealed"] == true && status["ready"] == false, "{status}");
        Ok(())
    });
    assert!(agent.is_running(), "{}", agent.log());
    assert!(agent.log().contains("\"error_type\":\"VaultConnectionError\""), "{}", agent.log());
    vault.unseal().unwrap();
    eventually("it is ready", Duration::from_secs(60), || {
        let status = agent.status()?;
        anyhow::ensure!(status["ready"] == true, "{status}");
        Ok(())
    });

    let load = servers.load(seed, RATE);
    let replaced = |status: &serde_json::Value| status["vault"]["credentials"]["postgres"]["replacements"].as_u64();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) || replaced(&agent.status().unwrap()) < Some(3) {
        assert!(began.elapsed() < Duration::from_secs(120), "{}", agent.status().unwrap());
        let failing = agent.status().unwrap()["sink"]["failing"].clone();
        assert_eq!(failing, serde_json::json!({}), "no batch fails");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(load.stop(&servers) > 1_000);
    servers.let_short_ttls_pass();
    agent.wait_until_idle();
    servers.assert_equal();

    let log = agent.log();
    assert!(!log.contains(" fails; trying on") && !log.contains("is halted until"), "no batch has failed");
    let metrics = agent.ask("/metrics").unwrap();
    assert!(metrics.contains("cdc_vault_up 1\n"), "{metrics}");
    for text in [&log, &metrics, &agent.ask("/status").unwrap()] {
        for secret in [secret_id.trim(), vault.root_token(), "hvs.", "X-Vault-Token"] {
            assert!(!text.contains(secret), "a secret is told");
        }
    }
}
