//! Grafana's dashboards: whatever they ask parses, and is there to be asked for.

use serde_json::Value;

use crate::rules::promtool;
use crate::{files, live, metrics_of};

/// What a query or legend may name beside metrics: what cdc and Prometheus put on series.
const LABELS: [&str; 13] = [
    "error_type",
    "instance",
    "keyspace",
    "le",
    "outcome",
    "partition",
    "quantile",
    "role",
    "status",
    "table",
    "topic",
    "type",
    "version",
];

/// Every object of a dashboard that has an expression.
fn queries<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            if fields.contains_key("expr") {
                found.push(value);
            }
            fields.values().for_each(|field| queries(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

/// Label names in `by (…)`, in matchers and in legends.
fn labels_of(query: &Value) -> Vec<String> {
    let (expression, legend) = (query["expr"].as_str().unwrap(), query["legendFormat"].as_str().unwrap_or_default());
    let lists = expression.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
    let listed = lists.flat_map(|list| list.split(','));
    let matchers = expression.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let matched = matchers.flat_map(|list| list.split("\",")).filter_map(|one| one.split(['=', '!']).next());
    let shown = legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next());
    listed.chain(matched).chain(shown).map(|label| label.trim().to_owned()).collect()
}

#[test]
fn every_query_parses_and_asks_for_what_cdc_exports() {
    let folder = tempfile::tempdir().unwrap();
    let dashboards = files("helm/dashboards", "json");
    assert_eq!(dashboards.len(), 3);
    let mut rules = Vec::new();
    for path in &dashboards {
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut found = Vec::new();
        queries(&dashboard, &mut found);
        for query in found {
            let expression = query["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            assert!(!expression.contains('$'), "{expression}");
            assert_eq!(query["datasource"]["uid"], "${datasource}", "{expression}");
            rules.push(serde_json::json!({"record": format!("query:{}", rules.len()), "expr": expression}));
            // Prometheus' own.
            if expression.starts_with("ALERTS{") {
                continue;
            }
            let metrics = metrics_of(&expression);
            assert!(!metrics.is_empty(), "{expression}");
            for metric in metrics {
                assert!(live::metrics().contains_key(&metric), "{}: no {metric} in {expression}", path.display());
            }
            for label in labels_of(query) {
                assert!(LABELS.contains(&&*label), "{}: label {label} in {expression}", path.display());
            }
        }
    }
    assert!(rules.len() > 40, "{}", rules.len());
    let file = folder.path().join("queries.yaml");
    std::fs::write(&file, serde_json::json!({"groups": [{"name": "queries", "rules": rules}]}).to_string()).unwrap();
    promtool(&["check", "rules"], &file);
}

#[test]
fn panels_do_not_lie_on_each_other_and_drift_has_its_lines() {
    let mut drift = 0;
    for path in files("helm/dashboards", "json") {
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(dashboard["uid"], crate::stem(&path));
        let variable = &dashboard["templating"]["list"][0];
        assert_eq!((&variable["name"], &variable["type"]), (&"datasource".into(), &"datasource".into()));
        let mut taken = std::collections::BTreeSet::new();
        let mut ids = std::collections::BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}: {}", path.display(), panel["id"]);
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
            for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
                assert!(taken.insert((x, y)), "{}: {} lies on another", path.display(), panel["title"]);
            }
            if panel["title"] == "Drift by table" {
                let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().unwrap();
                let lines: Vec<_> = steps.iter().filter_map(|step| step["value"].as_u64()).collect();
                assert_eq!(lines, [1, 5]);
                drift += 1;
            }
        }
    }
    assert_eq!(drift, 1);
}
