//! Properties of what is rendered.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{CASES, all, configuration, container, find, pods, render};

#[test]
fn the_lines_of_the_guide_do_what_it_says() {
    // helm upgrade cdc-pipeline ./helm --set …
    let objects = render(&["kafkaConnect.replicaCount=10"]);
    let sinks = find(&objects, "Deployment", "kafka-connect");
    assert_eq!(sinks["spec"]["replicas"], 10);
    let label = &sinks["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"];
    assert_eq!(label, "kafka-connect");

    let objects = render(&["kafkaConnect.autoscaling.enabled=true", "kafkaConnect.autoscaling.maxReplicas=20"]);
    assert!(find(&objects, "Deployment", "kafka-connect")["spec"]["replicas"].is_null());
    let scaler = &find(&objects, "HorizontalPodAutoscaler", "kafka-connect")["spec"];
    assert_eq!((&scaler["minReplicas"], &scaler["maxReplicas"]), (&json!(3), &json!(20)));
    assert_eq!(scaler["scaleTargetRef"]["name"], "kafka-connect");
    assert_eq!(scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"], 300);
    let metrics = scaler["metrics"].as_array().unwrap();
    assert!(metrics.len() == 1 && metrics[0]["resource"]["name"] == "cpu", "{metrics:?}");

    let objects = render(&["fullnameOverride=other", "nameOverride=else"]);
    find(&objects, "Deployment", "kafka-connect");
    let labelled: Vec<&Value> = objects
        .iter()
        .filter(|object| object["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] == "kafka-connect")
        .collect();
    assert_eq!(labelled.len(), 1);
}

#[test]
fn exactly_one_of_a_number_of_sinks_and_a_scaler_is_there() {
    for (case, values) in CASES {
        let objects = render(values);
        let sinks: Vec<&Value> = objects
            .iter()
            .filter(|object| object["metadata"]["name"] == "kafka-connect" && object["spec"]["template"].is_object())
            .collect();
        assert_eq!(sinks.len(), usize::from(!values.contains(&"config.kafka=null")), "{case}");
        for sink in sinks {
            let scalers = all(&objects, "HorizontalPodAutoscaler").len();
            assert_eq!(usize::from(!sink["spec"]["replicas"].is_null()) + scalers, 1, "{case}");
            let env = container(&sink["spec"]["template"]["spec"])["env"].to_string();
            // Of a StatefulSet's pods each has a name that it keeps.
            assert_eq!(env.contains("CDC__SINK__INSTANCE_ID"), sink["kind"] == "StatefulSet", "{case}");
        }
    }
}

#[test]
fn pods_may_do_nothing_that_they_need_not() {
    for (case, values) in CASES {
        for (name, pod) in pods(&render(values)) {
            let container = container(&pod);
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{case}, {name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{case}, {name}");
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{case}, {name}");
            // A sidecar is in somebody else's pod.
            let whole = if name.ends_with("sidecar") { security } else { &pod["securityContext"] };
            assert_eq!(whole["runAsNonRoot"], true, "{case}, {name}");
            assert!(whole["runAsUser"].as_u64().unwrap() > 0, "{case}, {name}");
            assert_eq!(whole["seccompProfile"], json!({"type": "RuntimeDefault"}), "{case}, {name}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{case}, {name}");
            assert!(container["resources"]["requests"]["cpu"].is_string(), "{case}, {name}");
            let vault = values.iter().any(|value| value.starts_with("vault.mode="));
            let token = &pod["automountServiceAccountToken"];
            assert!(name.ends_with("sidecar") || *token == vault, "{case}, {name}: {token}");
            // Nothing secret in the environment: whoever may see processes may see that.
            let env = container["env"].to_string().to_lowercase();
            assert!(!env.contains("password\"") && !env.contains("token\""), "{case}, {name}: {env}");
        }
    }
}

#[test]
fn a_pod_is_given_the_time_to_drain_and_restarts_when_its_configuration_changes() {
    let of = |objects: &[Value], name: &str| {
        let template = find(objects, "Deployment", name)["spec"]["template"].clone();
        let sum = template["metadata"]["annotations"]["checksum/config"].as_str().unwrap().to_owned();
        (template["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap(), sum)
    };
    let plain = render(&[]);
    let other = render(&["config.stop_timeout_ms=20000", "config.reconciler.every=1h"]);
    let elsewhere = render(&["config.reconciler.every=1h"]);
    assert_eq!((of(&plain, "kafka-connect").0, of(&other, "kafka-connect").0), (70, 30));
    let name = "cdc-pipeline-reconciler";
    assert_ne!(of(&plain, name).1, of(&elsewhere, name).1);
    assert_eq!(of(&plain, "kafka-connect").1, of(&elsewhere, "kafka-connect").1, "sinks have no use for it");
}

#[test]
fn liveness_is_the_process_alone() {
    for (case, values) in CASES {
        for (name, pod) in pods(&render(values)) {
            let probe = &container(&pod)["livenessProbe"];
            assert!(probe.is_null() || probe["httpGet"]["path"] == "/healthz", "{case}, {name}: {probe}");
            let ends = name.ends_with("migrate") || name.ends_with("validate");
            assert_eq!(probe.is_null(), ends, "{case}, {name}");
        }
    }
}

#[test]
fn budgets_keep_no_machine_from_being_drained() {
    for (case, values) in CASES {
        let objects = render(values);
        for budget in all(&objects, "PodDisruptionBudget") {
            let spec = &budget["spec"];
            assert_eq!(spec["unhealthyPodEvictionPolicy"], "AlwaysAllow", "{case}");
            assert!(spec["maxUnavailable"] == 1 || case == "a budget by what must stay", "{case}: {spec}");
            let name = budget["metadata"]["name"].as_str().unwrap();
            let copies = objects
                .iter()
                .find(|object| object["spec"]["template"].is_object() && object["metadata"]["name"] == name);
            let copies = &copies.unwrap()["spec"]["replicas"];
            assert!(copies.is_null() || copies.as_u64().unwrap() > 1, "{case}: {name}");
        }
    }
    assert!(
        all(&render(&["kafkaConnect.replicaCount=1", "reconciler.replicaCount=1"]), "PodDisruptionBudget").is_empty()
    );
}

#[test]
fn policies_name_the_ports_of_the_configuration() {
    let ports = |objects: &[Value], name: &str, way: &str| -> BTreeSet<u64> {
        let rules = find(objects, "NetworkPolicy", name)["spec"][way].as_array().unwrap().clone();
        let ports = rules.iter().flat_map(|rule| rule["ports"].as_array().unwrap().clone());
        ports.map(|port| port["port"].as_u64().unwrap()).collect()
    };
    let plain = render(&[]);
    assert_eq!(ports(&plain, "cdc-pipeline", "egress"), [53, 5432, 9042, 9092].into());
    assert_eq!(ports(&plain, "cdc-pipeline", "ingress"), [9464].into());
    assert_eq!(ports(&plain, "cdc-pipeline-reconciler", "ingress"), [8080].into());
    let other = render(&[
        "config.kafka.bootstrap_servers={a:9094,b}",
        "config.postgres.port=6432",
        "networkPolicy.egress.extraPorts={29092}",
    ]);
    assert_eq!(ports(&other, "cdc-pipeline", "egress"), [53, 6432, 9042, 9094, 29092].into());
    assert_eq!(ports(&render(&["config.kafka=null"]), "cdc-pipeline", "egress"), [53, 5432, 9042].into());
    let vault = render(&["vault.mode=direct", "vault.config.address=https://vault:8300"]);
    assert_eq!(ports(&vault, "cdc-pipeline", "egress"), [53, 5432, 8300, 9042, 9092].into());
    // What listens is what may be reached.
    for (name, pod) in pods(&plain) {
        for port in container(&pod)["ports"].as_array().into_iter().flatten() {
            let port = port["containerPort"].as_u64().unwrap();
            assert!([8080, 9464].contains(&port), "{name}: {port}");
        }
    }
}

#[test]
fn services_and_monitors_meet_the_pods_they_are_for() {
    let objects = render(&["monitoring.prometheus.serviceMonitor.enabled=true"]);
    let templates: Vec<&Value> = objects.iter().filter(|object| object["spec"]["template"].is_object()).collect();
    let met = |selector: &Value| -> BTreeSet<&str> {
        let selector = selector.as_object().unwrap();
        let meets = |object: &&&Value| {
            let labels = &object["spec"]["template"]["metadata"]["labels"];
            selector.iter().all(|(key, value)| labels[key] == *value)
        };
        templates.iter().filter(meets).map(|object| object["metadata"]["name"].as_str().unwrap()).collect()
    };
    let api = &find(&objects, "Service", "cdc-pipeline-reconciler")["spec"];
    assert_eq!(met(&api["selector"]), ["cdc-pipeline-reconciler"].into());
    let health = find(&objects, "Service", "cdc-pipeline-health");
    let long_running = met(&health["spec"]["selector"]);
    assert!(
        long_running.is_superset(&["cdc-pipeline-agent", "cdc-pipeline-reconciler", "kafka-connect"].into()),
        "{long_running:?}"
    );
    assert_eq!(health["spec"]["publishNotReadyAddresses"], true);
    let monitor = &all(&objects, "ServiceMonitor")[0]["spec"];
    for (key, value) in monitor["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(health["metadata"]["labels"][key], *value, "{key}");
    }
    assert_eq!(monitor["endpoints"][0]["port"], health["spec"]["ports"][0]["name"]);
    let token = json!({"name": "cdc-metrics-token", "key": "token"});
    assert_eq!(monitor["endpoints"][0]["authorization"]["credentials"], token);
    for template in &templates {
        let selector = &template["spec"]["selector"]["matchLabels"];
        assert!(selector.is_null() || met(selector).len() == 1, "{}: {selector}", template["metadata"]["name"]);
    }
}

#[test]
fn every_role_knows_the_secrets_it_needs_and_no_other() {
    let objects = render(&["credentials.cassandra.existingSecret=cassandra", "config.cassandra.username=cdc"]);
    let told = |name: &str| {
        let (_, pod) = pods(&objects).into_iter().find(|(own, _)| own == name).unwrap();
        super::secret_files(&crate::yaml(&configuration(&objects, &pod)))
    };
    assert_eq!(told("cdc-pipeline-agent"), ["cassandra", "metrics"]);
    assert_eq!(told("kafka-connect"), ["metrics", "postgres"]);
    assert_eq!(told("cdc-pipeline-reconciler"), ["api", "cassandra", "metrics", "postgres"]);
    assert_eq!(told("cdc-pipeline-migrate"), ["metrics", "postgres"]);
}

#[test]
fn a_job_brings_the_schema_up_to_date_before_anything_is_rolled_out() {
    let hook = |values: &[&str]| {
        let objects = render(values);
        let job = find(&objects, "Job", "cdc-pipeline-migrate").clone();
        let account = job["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap().to_owned();
        (job["metadata"]["annotations"]["helm.sh/hook"].as_str().unwrap().to_owned(), account)
    };
    assert_eq!(hook(&[]), ("pre-install,pre-upgrade".to_owned(), "default".to_owned()));
    // Vault wants to see an account that the installation makes.
    assert_eq!(hook(&["vault.mode=agent"]), ("pre-upgrade".to_owned(), "cdc-pipeline".to_owned()));
}

#[test]
fn an_agent_asks_the_node_it_is_beside() {
    let asked = |values: &[&str]| {
        let objects = render(values);
        let (_, pod) = pods(&objects).into_iter().find(|(name, _)| name.contains("agent")).unwrap();
        let env = container(&pod)["env"].as_array().unwrap().clone();
        let contact = env.iter().find(|variable| variable["name"] == "CDC__CASSANDRA__CONTACT_POINTS").unwrap();
        (env[0]["valueFrom"]["fieldRef"]["fieldPath"].clone(), contact["value"].clone())
    };
    assert_eq!(asked(&[]), (json!("status.hostIP"), json!(r#"["$(NODE_IP):9042"]"#)));
    assert_eq!(asked(&["agent.kind=sidecar"]), (json!("status.podIP"), json!(r#"["$(POD_IP):9042"]"#)));
    assert_eq!(asked(&["agent.contactPoint=127.0.0.1:9043"]).1, r#"["127.0.0.1:9043"]"#);
}
