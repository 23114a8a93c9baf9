//! The chart, rendered by helm for many values.

mod objects;
mod values;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::{Said, cdc, live, root, said};

/// The oldest and the newest API that the schemas are looked up in.
const VERSIONS: [&str; 2] = ["1.27.0", "1.31.0"];

/// Values, as on helm's command line.
const CASES: [(&str, &[&str]); 26] = [
    ("defaults", &[]),
    ("direct", &["config.kafka=null"]),
    ("direct and a sidecar", &["config.kafka=null", "agent.kind=sidecar"]),
    ("ten sinks", &["kafkaConnect.replicaCount=10"]),
    ("one sink", &["kafkaConnect.replicaCount=1", "reconciler.replicaCount=1"]),
    ("no sink", &["kafkaConnect.replicaCount=0"]),
    ("autoscaling", &["kafkaConnect.autoscaling.enabled=true", "kafkaConnect.autoscaling.maxReplicas=20"]),
    (
        "autoscaling by memory",
        &["kafkaConnect.autoscaling.enabled=true", "kafkaConnect.autoscaling.targetMemoryUtilizationPercentage=80"],
    ),
    ("fixed sinks", &["sink.kind=StatefulSet"]),
    ("fixed sinks and autoscaling", &["sink.kind=StatefulSet", "kafkaConnect.autoscaling.enabled=true"]),
    ("sidecar", &["agent.kind=sidecar"]),
    ("no agent", &["agent.kind=none"]),
    ("agents on the machine's network", &["agent.hostNetwork=true", "agent.contactPoint=127.0.0.1:9042"]),
    ("no reconciler", &["reconciler.enabled=false"]),
    ("direct and no reconciler", &["config.kafka=null", "reconciler.enabled=false"]),
    ("passwords", &["credentials.cassandra.existingSecret=cassandra", "credentials.postgres.usernameKey=username"]),
    (
        "vault's agent",
        &[
            "vault.mode=agent",
            "vault.secrets.cassandra.path=secret/data/cdc/cassandra",
            "config.cassandra.username=cdc",
        ],
    ),
    (
        "vault's driver",
        &["vault.mode=csi", "vault.secrets.cassandra.path=secret/data/cdc/cassandra", "config.cassandra.username=cdc"],
    ),
    (
        "vault",
        &[
            "vault.mode=direct",
            "vault.config.address=https://vault:8200",
            "vault.config.postgres=database/creds/postgresql-writer",
            "vault.config.kubernetes.role=cdc-pipeline",
        ],
    ),
    ("an account that is there", &["serviceAccount.create=false", "serviceAccount.name=cdc", "vault.mode=agent"]),
    (
        "monitoring",
        &[
            "monitoring.prometheus.rules.enabled=true",
            "monitoring.prometheus.serviceMonitor.enabled=true",
            "monitoring.grafana.dashboards.enabled=true",
            "monitoring.prometheus.port=9999",
        ],
    ),
    (
        "another name",
        &[
            "fullnameOverride=other",
            "nameOverride=else",
            "image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "global.imageRegistry=registry.example.com",
        ],
    ),
    ("a budget by what must stay", &["podDisruptionBudget.minAvailable=1"]),
    (
        "nothing around it",
        &[
            "podDisruptionBudget.enabled=false",
            "networkPolicy.enabled=false",
            "migrations.enabled=false",
            "tests.enabled=false",
            "serviceAccount.create=false",
        ],
    ),
    (
        "much of the configuration",
        &[
            "config.source.mode=durable",
            "config.source.snapshot.start=initial",
            "config.kafka.partitions=32",
            "config.kafka.bootstrap_servers={a:9092,b:9093}",
            "config.kafka.message_bytes_max=17825792",
            "config.sink.batch_rows=3000",
            "config.postgres.schema_mode=validate",
            "config.reconciler.repair.policy.STALE=repair",
            "config.log.level=debug",
        ],
    ),
    (
        "what every pod may have",
        &[
            "podLabels.team=data",
            "podAnnotations.a=b",
            "priorityClassName=high",
            "dnsPolicy=Default",
            "hostAliases[0].ip=10.0.0.1",
            "hostAliases[0].hostnames[0]=db",
            "extraVolumes[0].name=tmp",
            "extraVolumes[0].emptyDir.sizeLimit=1Mi",
            "extraVolumeMounts[0].name=tmp",
            "extraVolumeMounts[0].mountPath=/tmp",
            "initContainers[0].name=wait",
            "initContainers[0].image=busybox:1.37",
            "lifecycle.preStop.httpGet.port=9464",
            "kafkaConnect.env[0].name=CDC_LOG",
            "kafkaConnect.env[0].value=debug",
            "kafkaConnect.envFrom[0].secretRef.name=more",
            "kafkaConnect.image.tag=canary",
            "global.imagePullSecrets[0].name=registry",
            "kafkaConnect.topologySpreadConstraints[0].maxSkew=1",
            "kafkaConnect.topologySpreadConstraints[0].topologyKey=zone",
            "kafkaConnect.topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway",
        ],
    ),
];

fn helm(chart: &Path, values: &[&str]) -> Said {
    let mut command = Command::new("helm");
    command.args(["template", "cdc-pipeline", "--namespace", "data", "--kube-version", VERSIONS[1]]).arg(chart);
    said(command.args(values.iter().flat_map(|value| ["--set", value])))
}

/// What helm renders, hooks and tests included.
fn render(values: &[&str]) -> Vec<Value> {
    let rendered = helm(&root().join("helm"), values);
    assert!(rendered.ok, "{values:?}: {}", rendered.text);
    rendered.text.split("\n---\n").map(crate::yaml).filter(|object| !object.is_null()).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn all<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Name and pod of everything that runs one, the sidecar's patch included.
fn pods(objects: &[Value]) -> Vec<(String, Value)> {
    let pod = |object: &Value| -> Option<Value> {
        match object["kind"].as_str()? {
            "Pod" => Some(object["spec"].clone()),
            "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => Some(object["spec"]["template"]["spec"].clone()),
            "ConfigMap" => {
                Some(crate::yaml(object["data"]["patch.yaml"].as_str()?)["spec"]["template"]["spec"].clone())
            }
            _ => None,
        }
    };
    objects.iter().filter_map(|object| Some((object["metadata"]["name"].as_str()?.to_owned(), pod(object)?))).collect()
}

fn container(pod: &Value) -> &Value {
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{pod}");
    &containers[0]
}

/// The file that a pod's process reads.
fn configuration(objects: &[Value], pod: &Value) -> String {
    let volumes = pod["volumes"].as_array().unwrap();
    let name = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str()).unwrap();
    find(objects, "ConfigMap", name)["data"]["cdc.yaml"].as_str().unwrap().to_owned()
}

/// What is in the environment when kubelet has filled it in.
fn environment(container: &Value) -> Vec<(String, String)> {
    let mut known: Vec<(String, String)> = Vec::new();
    for variable in container["env"].as_array().into_iter().flatten() {
        let mut value = variable["value"].as_str().unwrap_or("10.0.0.7").to_owned();
        for (name, known) in &known {
            value = value.replace(&format!("$({name})"), known);
        }
        assert!(!value.contains("$("), "{variable} is not known");
        known.push((variable["name"].as_str().unwrap().to_owned(), value));
    }
    known
}

#[test]
fn whatever_the_values_objects_are_valid_and_cdc_takes_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let secrets = folder.path().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    let mut rendered = Vec::new();
    for (number, (case, values)) in CASES.iter().enumerate() {
        let objects = render(values);
        let file = folder.path().join(format!("{number}.yaml"));
        let text: Vec<String> = objects.iter().map(Value::to_string).collect();
        std::fs::write(&file, text.join("\n---\n")).unwrap();
        rendered.push(file);
        for (name, pod) in pods(&objects) {
            let container = container(&pod);
            let args: Vec<&str> = container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let role = match args[..] {
                ["validate", "--role", role, _] => role,
                ["migrate", _] if case.starts_with("direct") => "source",
                ["migrate", _] => "sink",
                [role, _] => role,
                _ => panic!("{case}, {name}: {args:?}"),
            };
            assert_eq!(args.last(), Some(&"/etc/cdc/config/cdc.yaml"));
            let config = crate::yaml(&configuration(&objects, &pod));
            // Nobody hears of Vault but who asks it, which then says who logs in.
            let vault = config.get("vault").is_some();
            assert_eq!(vault, *case == "vault", "{case}, {name}: {config}");
            assert!(!vault || config["postgres"]["username"].is_null(), "{case}, {name}: {config}");
            let named = secret_files(&config);
            assert_eq!(named, mounted(&objects, &pod, name.ends_with("migrate")), "{case}, {name}");
            for secret in &named {
                std::fs::write(secrets.join(secret), live::TOKEN).unwrap();
            }
            let file = folder.path().join("cdc.yaml");
            let text = config.to_string().replace("/etc/cdc/secrets", secrets.to_str().unwrap());
            std::fs::write(&file, text).unwrap();
            let mut command = cdc();
            command.args(["validate", "--offline", "--role", role]).arg(&file).envs(environment(container));
            let said = said(&mut command);
            assert!(said.ok, "{case}, {name}: {}", said.text);
            for secret in named {
                std::fs::remove_file(secrets.join(secret)).unwrap();
            }
        }
    }
    for version in VERSIONS {
        let mut command = Command::new("kubernetes-validate");
        let said = said(command.args(["--strict", "--quiet", "-k", version]).args(&rendered));
        assert!(said.ok, "{version}: {}", said.text);
        let foreign = ["ServiceMonitor", "PrometheusRule", "SecretProviderClass"];
        let told: Vec<&str> =
            said.text.lines().filter(|line| !foreign.iter().any(|kind| line.contains(kind))).collect();
        assert!(told.is_empty(), "{version}: {told:?}");
    }
}

/// Files below /etc/cdc/secrets that a configuration names.
fn secret_files(config: &Value) -> Vec<String> {
    let text = config.to_string();
    let mut names: Vec<String> =
        text.split("/etc/cdc/secrets/").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// Files that are in there.
fn mounted(objects: &[Value], pod: &Value, is_job: bool) -> Vec<String> {
    let volumes = pod["volumes"].as_array().unwrap();
    let mut names: Vec<String> = Vec::new();
    match volumes.iter().find(|volume| volume["name"] == "cdc-secrets") {
        Some(volume) if volume["csi"].is_object() => {
            let class = volume["csi"]["volumeAttributes"]["secretProviderClass"].as_str().unwrap();
            let class = find(objects, "SecretProviderClass", class);
            let wanted = crate::yaml(class["spec"]["parameters"]["objects"].as_str().unwrap());
            names.extend(wanted.as_array().unwrap().iter().map(|one| one["objectName"].as_str().unwrap().to_owned()));
        }
        Some(volume) => {
            let sources = volume["projected"]["sources"].as_array().unwrap().iter();
            names.extend(sources.map(|one| one["secret"]["items"][0]["path"].as_str().unwrap().to_owned()));
        }
        None => {
            let prefix = "vault.hashicorp.com/agent-inject-secret-";
            let holders = objects.iter().flat_map(|object| {
                let template = &object["spec"]["template"];
                let is_own = template["spec"] == *pod || object["spec"] == *pod;
                let metadata = if template.is_null() { &object["metadata"] } else { &template["metadata"] };
                metadata["annotations"].as_object().filter(|_| is_own)
            });
            names.extend(
                holders.flat_map(|map| map.keys()).filter_map(|key| Some(key.strip_prefix(prefix)?.to_owned())),
            );
            assert!(!names.is_empty() || is_job, "no secrets: {pod}");
        }
    }
    names.sort();
    names
}

#[test]
fn helm_has_nothing_to_say_against_it() {
    let said = said(
        Command::new("helm").arg("lint").arg("--strict").args(["--kube-version", VERSIONS[1]]).arg(root().join("helm")),
    );
    assert!(said.ok, "{}", said.text);
}

#[test]
fn a_pod_with_the_rendered_configuration_answers_the_probes_of_the_chart() {
    let objects = render(&[]);
    for (name, pod) in pods(&objects) {
        let container = container(&pod);
        if container["livenessProbe"].is_null() {
            continue;
        }
        let mut config = crate::yaml(&configuration(&objects, &pod));
        // Passwords and tokens stand in files there.
        for (section, key) in [("postgres", "password"), ("reconciler", "token")] {
            let Some(section) = config[section].as_object_mut() else { continue };
            assert!(section.remove(&format!("{key}_file")).is_some(), "{name}: {section:?}");
            section.insert(key.to_owned(), json!(live::TOKEN));
        }
        let port = config["admin"]["remote"]["listen"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        assert_eq!(
            container["ports"][0],
            json!({"name": "health", "containerPort": port.parse::<u16>().unwrap()}),
            "{name}"
        );
        config["admin"]["remote"] = json!({"listen": "", "token": live::TOKEN});
        let live = live::run(container["args"][0].as_str().unwrap(), config);
        let path = |probe: &str| {
            let get = &container[probe]["httpGet"];
            assert_eq!(get["port"], "health", "{name}");
            get["path"].as_str().unwrap().to_owned()
        };
        // No server is there: alive, and ready only if that is what it is there to tell.
        let alive = live::get(live.remote, &path("livenessProbe"), None);
        assert_eq!(alive, (200, "ok\n".to_owned()), "{name}");
        let (ready, why) = live::get(live.remote, &path("readinessProbe"), None);
        let expected: &[u16] = if name.ends_with("reconciler") { &[200] } else { &[200, 503] };
        assert!(expected.contains(&ready), "{name}: {ready} {why}");
        assert_eq!(live::get(live.remote, "/metrics", None).0, 401, "{name}");
        assert_eq!(live::get(live.remote, "/metrics", Some(live::TOKEN)).0, 200, "{name}");
    }
}
