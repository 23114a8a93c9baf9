//! Alerts and recording rules.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::{files, live, metrics_of, read, root, said, stem, yaml};

pub(crate) fn promtool(args: &[&str], path: &std::path::Path) {
    let said = said(Command::new("promtool").args(args).arg(path));
    assert!(said.ok, "{}: {}", path.display(), said.text);
}

/// All rules, and the names of alerts.
fn rules() -> (Vec<Value>, BTreeSet<String>) {
    let file = yaml(&read("helm/rules/cdc.rules.yaml"));
    let groups = file["groups"].as_array().unwrap();
    let rules: Vec<Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
    let alerts = rules.iter().filter_map(|rule| rule["alert"].as_str().map(str::to_owned)).collect();
    (rules, alerts)
}

#[test]
fn alerts_fire_and_stay_quiet_as_their_tests_say() {
    promtool(&["check", "rules"], &root().join("helm/rules/cdc.rules.yaml"));
    promtool(&["test", "rules"], &root().join("tests/deploy/rules.test.yaml"));
}

#[test]
fn every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() {
    let tests = yaml(&read("tests/deploy/rules.test.yaml"));
    let cases = tests["tests"].as_array().unwrap().iter().flat_map(|test| test["alert_rule_test"].as_array());
    let mut seen: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
    for case in cases.flatten() {
        let fires = !case["exp_alerts"].as_array().unwrap().is_empty();
        seen.entry(case["alertname"].as_str().unwrap().to_owned()).or_default().insert(fires);
    }
    let (_, alerts) = rules();
    assert_eq!(seen.keys().cloned().collect::<BTreeSet<_>>(), alerts);
    for (alert, kinds) in seen {
        assert_eq!(kinds.len(), 2, "{alert} is tested only for {kinds:?}");
    }
}

#[test]
fn every_alert_has_a_page_and_every_page_an_alert() {
    let (rules, alerts) = rules();
    let pages: BTreeSet<String> = files("docs/runbooks", "md").iter().map(|path| stem(path).to_owned()).collect();
    assert_eq!(pages, alerts);
    for name in pages {
        let page = read(&format!("docs/runbooks/{name}.md"));
        let headings: Vec<&str> = page.lines().filter(|line| line.starts_with('#')).collect();
        assert_eq!(headings, [&*format!("# {name}"), "## Meaning", "## Impact", "## Diagnosis", "## Mitigation"]);
        assert!(page.split("\n## ").skip(1).all(|part| part.trim().len() > 20), "{name} has an empty part");
        for link in page.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            assert!(root().join("docs/runbooks").join(link).exists(), "{name} links to {link}");
        }
        // Cassandra's own words.
        let foreign = ["cdc_raw", "cdc_total_space", "cdc_block_writes"];
        for metric in metrics_of(&page).into_iter().filter(|word| !foreign.contains(&&**word)) {
            assert!(live::metrics().contains_key(&metric), "{name} speaks of {metric}, which cdc does not export");
        }
    }
    for rule in rules.iter().filter(|rule| !rule["alert"].is_null()) {
        let page = format!("docs/runbooks/{}.md", rule["alert"].as_str().unwrap());
        assert_eq!(rule["annotations"]["runbook_url"], page.as_str());
        assert!(matches!(rule["labels"]["severity"].as_str(), Some("critical" | "warning")), "{rule}");
    }
}

#[test]
fn rules_ask_for_nothing_that_cdc_does_not_export() {
    for rule in rules().0 {
        let expression = rule["expr"].as_str().unwrap();
        let metrics = metrics_of(expression);
        assert!(!metrics.is_empty(), "{expression}");
        for metric in metrics {
            let kind = live::metrics().get(&metric).unwrap_or_else(|| panic!("cdc exports no {metric}: {expression}"));
            let counts =
                expression.contains(&format!("rate({metric}")) || expression.contains(&format!("increase({metric}"));
            assert!(!counts || kind != "gauge", "{metric} is a {kind}: {expression}");
            // A counter is not compared but by how it grows, unless it only has to be there.
            assert!(
                counts || kind != "counter" || expression.contains("absent("),
                "{metric} is a {kind}: {expression}"
            );
        }
    }
}
