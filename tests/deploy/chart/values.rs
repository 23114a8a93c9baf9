//! Which values there are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{all, helm, render};
use crate::{read, root, yaml};

/// Chosen by the chart for each pod.
const OWN: [&str; 11] = [
    "cassandra.contact_points",
    "cassandra.password",
    "source.cdc_raw_directory",
    "source.state_directory",
    "postgres.password",
    "sink.instance_id",
    "reconciler.listen",
    "reconciler.port_file",
    "reconciler.token",
    "admin.listen",
    "admin.port_file",
];

/// Keys by section, as docs/config/README.md has them; services/cdc/tests/cli.rs holds that against the binary.
fn reference() -> BTreeMap<String, BTreeSet<String>> {
    let mut sections: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in read("docs/config/README.md").lines() {
        if let Some(name) = line.strip_prefix("## ").or(line.strip_prefix("### ")) {
            section = name.trim_matches('`').to_owned();
        }
        let Some(cell) = line.strip_prefix("| `").and_then(|rest| rest.split(" |").next()) else { continue };
        for key in cell.split('`').filter(|key| !key.is_empty() && !key.contains([',', ' '])) {
            let path = if section == "Others" { key.to_owned() } else { format!("{section}.{key}") };
            if let Some((section, key)) = path.rsplit_once('.') {
                sections.entry(section.to_owned()).or_default().insert(key.to_owned());
            }
        }
    }
    sections
}

#[test]
fn the_configuration_may_be_all_that_cdc_knows_but_for_what_the_chart_chooses() {
    let schema: Value = serde_json::from_str(&read("helm/values.schema.json")).unwrap();
    let mut checked = 0;
    for (section, keys) in reference() {
        if section.starts_with("admin") || section == "vault" || section.starts_with("vault.") {
            continue;
        }
        let pointer = section.replace('.', "/properties/");
        let place = schema.pointer(&format!("/properties/config/properties/{pointer}"));
        let place = place.unwrap_or_else(|| panic!("helm/values.schema.json lacks config.{section}"));
        let mut allowed: BTreeSet<String> = place["properties"].as_object().unwrap().keys().cloned().collect();
        // Sections within this one.
        allowed.retain(|key| {
            schema.pointer(&format!("/properties/config/properties/{pointer}/properties/{key}/properties")).is_none()
        });
        let wanted = keys.into_iter().filter(|key| !OWN.contains(&&*format!("{section}.{key}"))).collect();
        assert_eq!(allowed, wanted, "config.{section} in helm/values.schema.json");
        checked += 1;
    }
    assert!(checked >= 8, "{checked}");
}

#[test]
fn values_that_do_not_exist_or_make_no_sense_are_refused_by_name() {
    let chart = root().join("helm");
    for (value, told) in [
        ("kafkaConnect.replicacount=1", "replicacount"),
        ("kafkaConnect.replicaCount=ten", "/kafkaConnect/replicaCount"),
        ("kafkaConnect.replicaCount=-1", "/kafkaConnect/replicaCount"),
        ("kafkaconnect.replicaCount=1", "kafkaconnect"),
        ("kafkaConnect.autoscaling.maxreplicas=20", "maxreplicas"),
        ("kafkaConnect.autoscaling.enabled=yes", "/kafkaConnect/autoscaling/enabled"),
        ("kafkaConnect.resource.limits.cpu=1", "resource"),
        ("sink.kind=DaemonSet", "/sink/kind"),
        ("agent.kind=Sidecar", "/agent/kind"),
        ("agent.runAsUser=0", "/agent/runAsUser"),
        ("agent.cdcRawDirectory=cdc_raw", "/agent/cdcRawDirectory"),
        ("config.postgres.password=hunter2", "password"),
        ("config.postgres.pool=8", "pool"),
        ("config.source.tables=null", "tables"),
        ("config.kafka.bootstrap=a:1", "bootstrap"),
        ("config.source.snapshots.start=initial", "snapshots"),
        ("config.vault.address=x", "vault"),
        ("credentials.postgres.password=hunter2", "password"),
        ("credentials.metrics.existingSecret=", "/credentials/metrics/existingSecret"),
        ("vault.mode=sidecar", "/vault/mode"),
        ("vault.secrets.kafka.path=x", "kafka"),
        ("monitoring.prometheus.rule.enabled=true", "rule"),
        ("networkPolicy.egress.extraPorts={0}", "/networkPolicy/egress/extraPorts/0"),
        ("podDisruptionBudget.maxUnavailable=0", "/podDisruptionBudget/maxUnavailable"),
        ("image.digest=0123", "/image/digest"),
        ("reconciller.enabled=false", "reconciller"),
        ("migrations.enable=false", "enable"),
        ("serviceaccount.create=false", "serviceaccount"),
    ] {
        let refused = helm(&chart, &[value]);
        assert!(!refused.ok, "{value} is accepted");
        assert!(refused.text.contains(told) && !refused.text.contains("hunter2"), "{value}: {}", refused.text);
    }
    for (values, told) in [
        (&["kafkaConnect.autoscaling.enabled=true", "kafkaConnect.autoscaling.maxReplicas=2"][..], "below minReplicas"),
        (&["agent.kind=sidecar", "agent.stateDirectory=/srv/cdc"], "agent.stateDirectory is /srv/cdc"),
        (&["agent.kind=sidecar", "vault.mode=csi"], "use vault.mode none or direct"),
        (
            &["monitoring.prometheus.rules.enabled=true", "monitoring.prometheus.rules.disabled={HighLag}"],
            "alert HighLag, which there is not",
        ),
    ] {
        let refused = helm(&chart, values);
        assert!(!refused.ok && refused.text.contains(told), "{values:?}: {}", refused.text);
    }
}

#[test]
fn every_value_is_read_by_a_template() {
    // A value that nothing reads is one that does nothing.
    let templates: String = walk("helm/templates").iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for key in yaml(&read("helm/values.yaml")).as_object().unwrap().keys() {
        let is_read = templates.contains(&format!(".Values.{key}")) || templates.contains(&format!("$values.{key}"));
        assert!(is_read, "nothing reads the value {key}");
    }
}

fn walk(folder: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.push(path);
        }
    }
    found
}

/// Notes as whoever installs reads them, on one line each.
fn notes(values: &[&str]) -> String {
    // helm shows them only where there is a cluster.
    let folder = tempfile::tempdir().unwrap();
    let chart = folder.path().join("helm");
    let copied = std::process::Command::new("cp").arg("-r").arg(root().join("helm")).arg(&chart).status().unwrap();
    assert!(copied.success());
    let notes = std::fs::read_to_string(chart.join("templates/NOTES.txt")).unwrap();
    std::fs::remove_file(chart.join("templates/NOTES.txt")).unwrap();
    let wrapped = format!(
        "{{{{- define \"notes\" }}}}{notes}{{{{ end }}}}\nkind: Notes\ntext: {{{{ include \"notes\" . | quote }}}}\n"
    );
    std::fs::write(chart.join("templates/notes.yaml"), wrapped).unwrap();
    let rendered = helm(&chart, values);
    assert!(rendered.ok, "{}", rendered.text);
    let objects: Vec<Value> = rendered.text.split("\n---\n").map(yaml).collect();
    all(&objects, "Notes")[0]["text"].as_str().unwrap().to_owned()
}

#[test]
fn notes_tell_what_was_installed_and_what_to_mind() {
    let plain = notes(&[]);
    assert!(plain.contains("--reuse-values") && plain.contains("cdc-pipeline/cassandra=true"), "{plain}");
    assert!(!plain.contains("WARNING"), "{plain}");
    let many = notes(&[
        "config.source.tables={warehouse.users}",
        "kafkaConnect.autoscaling.enabled=true",
        "kafkaConnect.autoscaling.maxReplicas=20",
    ]);
    assert!(many.contains("up to 20 sinks, and 8 partitions"), "{many}");
    assert!(notes(&["podDisruptionBudget.minAvailable=2"]).contains("WARNING: podDisruptionBudget.minAvailable"));
    assert!(notes(&["config.kafka=null"]).contains("kafkaConnect.* has no meaning"));
    assert!(notes(&["agent.kind=sidecar"]).contains("kubectl patch statefulset"));
}

#[test]
fn alerts_can_be_left_out_and_changed() {
    let objects = render(&[
        "monitoring.prometheus.rules.enabled=true",
        "monitoring.prometheus.rules.disabled={CdcVersionSkew}",
        "monitoring.prometheus.rules.overrides.HighLatency.for=10m",
        "monitoring.prometheus.rules.runbookUrlPrefix=https://example.com/",
    ]);
    let rule = all(&objects, "PrometheusRule")[0];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yaml");
    std::fs::write(&file, rule["spec"].to_string()).unwrap();
    crate::rules::promtool(&["check", "rules"], &file);
    let groups = rule["spec"]["groups"].as_array().unwrap();
    let mut alerts: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    alerts.retain(|rule| !rule["alert"].is_null());
    let named = |name: &str| alerts.iter().find(|alert| alert["alert"] == name);
    assert!(named("CdcVersionSkew").is_none());
    assert_eq!(named("HighLatency").unwrap()["for"], "10m");
    assert_eq!(
        named("HighConsumerLag").unwrap()["annotations"]["runbook_url"],
        "https://example.com/docs/runbooks/HighConsumerLag.md"
    );
    // All the others are as they stand in the file.
    let as_shipped = yaml(&read("helm/rules/cdc.rules.yaml"));
    let shipped = as_shipped["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    for rule in shipped.filter(|rule| !rule["alert"].is_null() && rule["alert"] != "CdcVersionSkew") {
        assert_eq!(named(rule["alert"].as_str().unwrap()).unwrap()["expr"], rule["expr"]);
    }
}
