//! The report of a job: facts as JSON, and the same as a page that stands by itself.

use std::fmt::Write as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::show::{columns, key, text};
use super::watch::{is_proven, remaining};

/// What every proof rests on: docs/reconciliation.md explains each.
const ASSUMPTIONS: [&str; 6] = [
    "A replica that answers with a version has it in its commit log. Not so for keyspaces with durable_writes = false, imported or \
     restored sstables, and writes before cdc = true: such rows are reported as missing.",
    "The agent of a node delivers its log in order and skips nothing but what it puts into _cdc.dlq.",
    "PostgreSQL never goes back to an older version: nobody deletes from _cdc.remains by hand.",
    "The mark of a barrier is in the log of every replica that may have answered; a node that joins between a read and its barrier may \
     miss it.",
    "What expires is left alone for 5 seconds before and after; clocks differ by less than that.",
    "Sums of hashes find errors, not somebody who writes rows for the purpose of deceiving them; two different leaves have equal sums \
     once in 2^64.",
];

const STYLE: &str = "\
body{font:14px/1.5 sans-serif;color:#111;background:#fff;max-width:72em;margin:2em auto;padding:0 1em}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #999}
table{border-collapse:collapse;width:100%;margin:.5em 0}th,td{text-align:left;vertical-align:top;padding:.2em .6em;border:1px solid #bbb;overflow-wrap:anywhere}
th{background:#eee}table.facts th{width:16em}code,pre{font:12px/1.4 monospace;overflow-wrap:anywhere;white-space:pre-wrap}
.verdict{font-size:1.1em;padding:.6em 1em;border:2px solid #111}
@media print{body{max-width:none;margin:0;font-size:10px}thead{display:table-header-group}tr{break-inside:avoid}h2{break-after:avoid}}";

/// What the report says. The same as long as the service knows nothing new, so that its hash can be compared.
pub(super) fn facts(job: &Value, findings: Vec<Value>) -> Value {
    let id = text(&job["job_id"]);
    let kept = |names: &[&str]| -> Value {
        names.iter().map(|name| ((*name).to_owned(), job[*name].clone())).collect::<serde_json::Map<_, _>>().into()
    };
    let table = format!("{}.{}", text(&job["keyspace"]), text(&job["table_name"]));
    let findings: Vec<Value> = findings
        .into_iter()
        .map(|mut finding| {
            // There for older clients, and always empty.
            for name in ["cassandra_data", "postgres_data"] {
                finding.as_object_mut().map(|finding| finding.remove(name));
            }
            finding
        })
        .collect();
    json!({
        "verdict": verdict(job),
        "table": table,
        "job": kept(&["job_id", "job_type", "validation_strategy", "priority", "status", "created_at", "started_at",
            "completed_at", "duration_seconds", "interruptions", "max_seconds", "range", "written", "schedule", "scheduled_for"]),
        "sample": job["sample"],
        "rows": kept(&["cassandra_row_count", "postgres_row_count", "mismatch_count", "drift_percentage", "unproven_count",
            "in_motion"]),
        "coverage": kept(&["coverage", "gaps", "validation_errors"]),
        "classes": job["classes"],
        "repair": kept(&["repair", "repairs"]),
        "findings": findings,
        "assumptions": ASSUMPTIONS,
        "audit": job["audit"],
        "verify": [
            format!("cdc reconcile run FILE --table {table}    compares anew, without this service"),
            format!("select seq, at, actor, action, detail, encode(hash, 'hex') from _cdc.audit_log where subject = '{id}' order by seq"),
            "select * from _cdc.audit_breaks()    returns nothing unless somebody has changed the audit log".to_owned(),
            format!("cdc reconcile report {id} --format json | sha256sum    gives the hash of these facts, unless they have changed"),
        ],
    })
}

fn verdict(job: &Value) -> String {
    let (remaining, wrong) = (remaining(job), job["mismatch_count"].as_u64().unwrap_or_default());
    let began = text(&job["started_at"]);
    let whole = ["start", "end"]
        .iter()
        .zip([i64::MIN, i64::MAX])
        .all(|(end, token)| job["range"].get(*end).and_then(Value::as_i64).is_none_or(|own| own == token));
    let what = match (job["validation_strategy"].as_str(), whole) {
        _ if job["job_type"] == "REPAIR" => "The rows that were to be repaired",
        (Some("CHECKSUM"), true) => "All rows and all values",
        (Some("CHECKSUM"), false) => "All rows and values of a part of the ring",
        (Some("SAMPLE"), _) => "All rows and values of the leaves that were drawn",
        (Some("TIMESTAMP_RANGE"), true) => "All rows and values last written between the two times",
        (Some("VERSION"), true) => "All rows, by their write times and not by their values,",
        (Some("ROW_COUNT"), true) => "All rows, by their keys alone,",
        _ => "The rows that were compared",
    };
    match (remaining, is_proven(job)) {
        (0, true) if wrong > 0 => format!("{what} are proven equal as of {began}, {wrong} of them after a repair."),
        (0, true) => format!("{what} are proven equal as of {began}."),
        (0, false) => format!("No difference is proven, and not everything was: the job is {}.", text(&job["status"])),
        (1, _) => "1 row is proven wrong and has not been repaired by this job.".to_owned(),
        (rows, _) => format!("{rows} rows are proven wrong and have not been repaired by this job."),
    }
}

/// Ends its line, so that the same bytes are written to a file and shown.
pub(super) fn json(facts: &Value) -> String {
    format!("{facts:#}\n")
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn html(facts: &Value) -> String {
    let mut page = String::new();
    let title = format!("Reconciliation of {}", text(&facts["table"]));
    put(
        &mut page,
        &format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{0}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{0}</h1>\n<p class=\"verdict\">{1}</p>\n",
            escaped(&title),
            escaped(&text(&facts["verdict"])),
        ),
    );
    section(&mut page, "What was compared, and when", &facts["job"]);
    section(&mut page, "Rows", &facts["rows"]);
    section(&mut page, "Sample", &facts["sample"]);
    section(&mut page, "Coverage", &facts["coverage"]);
    section(&mut page, "Differences by class", &facts["classes"]);
    section(&mut page, "Repairs", &facts["repair"]);
    findings(&mut page, facts["findings"].as_array().map(Vec::as_slice).unwrap_or_default());
    list(&mut page, "Assumptions", &facts["assumptions"], "p");
    section(&mut page, "Audit log", &facts["audit"]);
    list(&mut page, "How to verify", &facts["verify"], "pre");
    put(
        &mut page,
        &format!(
            "<p>SHA-256 of the same facts as JSON: <code>{}</code></p>\n<p>cdc {}</p>\n</body>\n</html>\n",
            sha256(&json(facts)),
            env!("CARGO_PKG_VERSION"),
        ),
    );
    page
}

fn put(page: &mut String, text: &str) {
    page.write_str(text).expect("writing to a String does not fail");
}

/// A line for each fact.
fn section(page: &mut String, title: &str, facts: &Value) {
    put(page, &format!("<h2>{}</h2>\n", escaped(title)));
    let facts: Vec<(&String, &Value)> =
        facts.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()).collect();
    if facts.is_empty() {
        return put(page, "<p>None.</p>\n");
    }
    put(page, "<table class=\"facts\">\n");
    for (name, value) in facts {
        put(page, &format!("<tr><th>{}</th><td>{}</td></tr>\n", escaped(name), cell(value)));
    }
    put(page, "</table>\n");
}

fn cell(value: &Value) -> String {
    match value {
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join("<br>"),
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            fields.map(|(name, value)| format!("{} {}", escaped(name), cell(value))).collect::<Vec<_>>().join(", ")
        }
        value => escaped(&text(value)),
    }
}

fn list(page: &mut String, title: &str, items: &Value, tag: &str) {
    put(page, &format!("<h2>{}</h2>\n<ol>\n", escaped(title)));
    for item in items.as_array().into_iter().flatten() {
        put(page, &format!("<li><{tag}>{}</{tag}></li>\n", escaped(&text(item))));
    }
    put(page, "</ol>\n");
}

fn findings(page: &mut String, found: &[Value]) {
    put(page, &format!("<h2>Findings: {}</h2>\n", found.len()));
    if found.is_empty() {
        return;
    }
    let names = [
        "class",
        "token",
        "key, or its SHA-256",
        "columns",
        "Cassandra wrote",
        "PostgreSQL knows",
        "read at ALL",
        "barriers",
        "cause",
        "first seen",
        "state",
        "evidence",
    ];
    let header: String = names.iter().map(|name| format!("<th>{}</th>", escaped(name))).collect();
    put(page, &format!("<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n"));
    for one in found {
        let kind = if one["is_static"] == true { " (static row)" } else { "" };
        let cells = [
            escaped(&text(&one["class"])),
            cell(&one["token"]),
            escaped(&format!("{}{kind}", key(one))),
            escaped(&columns(one)),
            cell(&one["cassandra_written_at"]),
            cell(&one["postgres_written_at"]),
            cell(&one["read_at_all"]),
            cell(&one["barriers"]),
            cell(&one["cause"]),
            cell(&one["detected_at"]),
            cell(&one["resolution_status"]),
            if one["evidence"].is_null() { String::new() } else { cell(&one["evidence"]) },
        ];
        let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
        put(page, &format!("<tr>{cells}</tr>\n"));
    }
    put(page, "</tbody>\n</table>\n");
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // No control character belongs into a page.
            c if c.is_control() && c != '\n' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "<script>alert('1')</script>\u{1}&\"";

    fn job(more: Value) -> Value {
        let mut job = json!({"job_id": "0b9d5f4e-4fd1-4f5b-9d2a-1f9d4ad3a1e0", "keyspace": "shop", "table_name": "orders",
            "validation_strategy": "CHECKSUM", "status": "COMPLETED", "started_at": "2026-11-22T10:00:00.000Z",
            "coverage": 1.0, "gaps": [], "validation_errors": [], "mismatch_count": 0, "unproven_count": 0, "classes": {}});
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        job
    }

    #[test]
    fn a_page_stands_by_itself_and_nothing_in_it_comes_alive() {
        let gaps = json!([{"start": -5, "end": 7, "why": EVIL}]);
        let job = job(json!({"table_name": EVIL, "gaps": gaps, "validation_errors": [EVIL], "classes": {EVIL: 1}}));
        let finding = json!({"class": EVIL, "token": 5, "primary_key_value": {"partition_key": {"p": EVIL}}, "columns": [EVIL],
            "cause": EVIL, "resolution_status": EVIL, "cassandra_data": null});
        let page = html(&facts(&job, vec![finding]));
        assert!(!page.contains("<script") && !page.contains('\u{1}') && !page.contains("alert('1')"), "{page}");
        for word in ["http://", "https://", "src=", "href=", "url(", "@import", "onload"] {
            assert!(!page.contains(word), "{word}: {page}");
        }
        assert!(page.matches("&lt;script&gt;").count() >= 8, "{page}");
        // Every element is closed, in order.
        let mut open: Vec<&str> = Vec::new();
        for tag in page.split('<').skip(2).filter_map(|rest| rest.split('>').next()) {
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                Some(closed) => assert_eq!(open.pop(), Some(closed), "{tag}"),
                None if ["meta", "br"].contains(&name) => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn json_has_the_same_facts_and_the_page_its_hash() {
        let facts = facts(
            &job(json!({"audit": {"seq": 7, "hash": "cafe"}})),
            vec![json!({"class": "STALE", "postgres_data": null})],
        );
        let (page, json) = (html(&facts), json(&facts));
        assert!(page.contains(&sha256(&json)) && page.contains("cafe") && page.contains("STALE"), "{page}");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), facts);
        assert!(!json.contains("postgres_data"), "{json}");
        for assumption in ASSUMPTIONS {
            assert!(page.contains(&escaped(assumption)) && json.contains(assumption.split('"').next().unwrap()));
        }
    }

    #[test]
    fn the_verdict_claims_what_was_proven_and_no_more() {
        let part = json!({"start": -5, "end": 7});
        let ring = json!({"start": i64::MIN, "end": i64::MAX});
        for (more, words) in [
            (json!({"range": ring}), "All rows and all values are proven equal as of 2026-11-22T10:00:00.000Z."),
            (json!({"range": part}), "All rows and values of a part of the ring are proven equal"),
            (json!({"validation_strategy": "VERSION"}), "not by their values, are proven equal"),
            (
                json!({"validation_strategy": "SAMPLE", "range": part}),
                "All rows and values of the leaves that were drawn are",
            ),
            (json!({"validation_strategy": "TIMESTAMP_RANGE"}), "last written between the two times are proven equal"),
            (
                json!({"validation_strategy": "ROW_COUNT", "range": part}),
                "The rows that were compared are proven equal",
            ),
            (json!({"job_type": "REPAIR"}), "The rows that were to be repaired are proven equal"),
            (json!({"mismatch_count": 3, "repairs": {"dry_run": false, "done": 3}}), "3 of them after a repair."),
            (json!({"mismatch_count": 3, "repairs": {"dry_run": true, "done": 3}}), "3 rows are proven wrong"),
            (json!({"mismatch_count": 1}), "1 row is proven wrong"),
            (json!({"coverage": 0.5}), "No difference is proven, and not everything was"),
            (json!({"status": "RUNNING", "coverage": null}), "the job is RUNNING"),
        ] {
            let verdict = verdict(&job(more.clone()));
            assert!(verdict.contains(words), "{more}: {verdict}");
        }
    }
}
