//! The image, and the stack for one machine. No container engine is needed: nothing is built.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};

use crate::{cdc, live, read, root, rules, said, yaml};

#[test]
fn the_image_is_built_from_locked_inputs_and_runs_as_nobody() {
    let text = read("docker/Dockerfile").replace("\\\n", " ");
    let lines: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let all = |word: &str| lines.iter().filter(|(first, _)| *first == word).map(|(_, rest)| *rest).collect::<Vec<_>>();
    let toolchain = read("rust-toolchain.toml");
    let version = toolchain.split('"').nth(1).unwrap();
    let images = all("ARG").into_iter().filter(|arg| arg.contains("_IMAGE=")).collect::<Vec<_>>();
    assert_eq!(images.len(), 2);
    assert!(images[0].contains(&format!("rust:{version}-")), "not the toolchain's version, {version}: {images:?}");
    assert!(images.iter().all(|image| !image.ends_with(":latest")), "{images:?}");
    assert_eq!(all("FROM"), ["${BUILD_IMAGE} AS build", "${RUN_IMAGE}"]);
    assert!(all("RUN").iter().all(|run| run.contains("--locked") && !run.contains("curl")), "{:?}", all("RUN"));
    assert!(all("ADD").is_empty());
    assert_eq!(all("USER"), ["65532:65532"]);
    assert_eq!(all("ENTRYPOINT"), [r#"["/usr/local/bin/cdc"]"#]);
    let (last, _) = text.rsplit_once("\nFROM").map(|(_, last)| (last, ())).unwrap();
    assert!(!last.contains("\nRUN"), "there is no shell");

    // What Cargo wants to see is sent to the build, and nothing else.
    let ignored = read(".dockerignore");
    let sent: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let manifest = read("Cargo.toml");
    let members = manifest.lines().find(|line| line.starts_with("members")).unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        let folder = member.split('/').next().unwrap();
        assert!(sent.contains(folder), "{member} is a member of the workspace");
    }
    for needed in ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".sqlx", "migrations"] {
        assert!(sent.contains(needed) && root().join(needed).exists(), "{needed}");
    }
}

/// As `docker compose config` shows it, with everything merged.
fn compose() -> Value {
    let folder = root().join("docker");
    let said = said(Command::new("compose-go").arg("compose.yaml").current_dir(folder));
    assert!(said.ok, "{}", said.text);
    yaml(&said.text)
}

#[test]
fn the_stack_has_the_ports_of_the_guide_on_loopback_alone() {
    let stack = compose();
    let mut published = BTreeMap::new();
    for (name, service) in stack["services"].as_object().unwrap() {
        let image = service["image"].as_str().unwrap();
        assert!(image.rsplit_once(':').is_some_and(|(_, tag)| tag != "latest"), "{name}: {image}");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
            published.insert(port["published"].as_str().unwrap().to_owned(), name.as_str());
        }
        let is_ours = name.starts_with("cdc-");
        assert!(!is_ours || service["read_only"] == true && service["cap_drop"] == json!(["ALL"]), "{name}: {service}");
    }
    for (port, name) in [
        ("9042", "cassandra"),
        ("9092", "kafka"),
        ("5432", "postgres"),
        ("8080", "cdc-reconciler"),
        ("9090", "prometheus"),
        ("9093", "alertmanager"),
        ("3000", "grafana"),
    ] {
        assert_eq!(published.get(port), Some(&name), "{published:?}");
    }
    assert_eq!(stack["services"]["postgres"]["networks"]["default"]["aliases"], json!(["postgres-host"]));
    for (name, config) in stack["configs"].as_object().unwrap() {
        let file = config["file"].as_str().unwrap();
        assert!(std::path::Path::new(file).exists(), "{name}: {file}");
    }
    assert!(yaml(&read("docker/compose.yaml"))["services"]["jaeger"]["ports"][0] == "127.0.0.1:16686:16686");
}

#[test]
fn its_configuration_is_accepted_by_every_role_and_names_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let secrets = folder.path().to_str().unwrap();
    for name in ["postgres-password", "api-token", "metrics-token"] {
        std::fs::write(folder.path().join(name), live::TOKEN).unwrap();
    }
    let text = read("docker/config/cdc.yaml");
    let file = folder.path().join("cdc.yaml");
    std::fs::write(&file, text.replace("/run/secrets", secrets)).unwrap();
    let stack = compose();
    let services = stack["services"].as_object().unwrap();
    for role in ["source", "sink", "reconciler"] {
        let said = said(cdc().args(["validate", "--offline", "--role", role]).arg(&file));
        assert!(said.ok, "{role}: {}", said.text);
        assert_eq!(services[&format!("cdc-{role}")]["command"], json!([role, "/etc/cdc/cdc.yaml"]));
    }
    let config = yaml(&text);
    let host = |place: &Value| place.as_str().unwrap().split(':').next().unwrap().to_owned();
    assert!(services.contains_key(&host(&config["cassandra"]["contact_points"][0])));
    let kafka = host(&config["kafka"]["bootstrap_servers"][0]);
    let listeners = services[&kafka]["environment"]["KAFKA_ADVERTISED_LISTENERS"].as_str().unwrap();
    assert!(listeners.contains(config["kafka"]["bootstrap_servers"][0].as_str().unwrap()), "{listeners}");
    assert_eq!(config["postgres"]["database"], services["postgres"]["environment"]["POSTGRES_DB"]);
    assert_eq!(config["postgres"]["username"], services["postgres"]["environment"]["POSTGRES_USER"]);
    for table in ["users", "orders"] {
        let schema = read("docker/config/schema.cql");
        let (_, definition) = schema.split_once(&format!("warehouse.{table} (")).unwrap();
        assert!(definition.split(';').next().unwrap().contains("cdc = true"), "{table}");
    }
}

#[test]
fn prometheus_and_what_stands_beside_it_read_their_files() {
    rules::promtool(&["check", "config", "--syntax-only"], &root().join("docker/config/prometheus.yaml"));
    let prometheus = yaml(&read("docker/config/prometheus.yaml"));
    let stack = compose();
    let targets = prometheus["scrape_configs"][0]["static_configs"][0]["targets"].as_array().unwrap();
    for target in targets {
        let (service, port) = target.as_str().unwrap().split_once(':').unwrap();
        assert!(stack["services"].get(service).is_some(), "{target}");
        assert!(read("docker/config/cdc.yaml").contains(&format!("listen: 0.0.0.0:{port}")), "{target}");
    }
    let alertmanager = yaml(&read("docker/config/alertmanager.yaml"));
    assert_eq!(alertmanager["route"]["receiver"], alertmanager["receivers"][0]["name"]);
    assert_eq!(yaml(&read("docker/config/grafana-datasource.yaml"))["datasources"][0]["url"], "http://prometheus:9090");
    let provider = &yaml(&read("docker/config/grafana-dashboards.yaml"))["providers"][0];
    let volumes = stack["services"]["grafana"]["volumes"].as_array().unwrap();
    assert!(volumes.iter().any(|volume| volume["target"] == provider["options"]["path"]), "{volumes:?}");
}

#[test]
fn secrets_are_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("secrets.sh");
    std::fs::copy(root().join("docker/secrets.sh"), &script).unwrap();
    let secret = |name: &str| std::fs::read_to_string(folder.path().join("secrets").join(name)).unwrap();
    let mut made = Vec::new();
    for _ in 0..2 {
        let said = said(&mut Command::new(&script));
        assert!(said.ok, "{}", said.text);
        made.push(["postgres-password", "api-token", "metrics-token"].map(secret));
        assert!(!said.text.contains(&made[0][1]), "it shows a secret");
    }
    assert_eq!(made[0], made[1]);
    assert!(made[0].iter().all(|secret| secret.len() == 48) && made[0][0] != made[0][1], "{}", made[0][0].len());
    assert!(read(".gitignore").contains("/docker/secrets/"));
}
