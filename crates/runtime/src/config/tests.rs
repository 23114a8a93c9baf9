//! One claim per kind of error sentence.

use serde::Deserialize;

use super::*;
use crate::Secret;

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Sample {
    kafka: Option<Kafka>,
    postgres: Option<Postgres>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Kafka {
    bootstrap_servers: Vec<String>,
    #[serde(default)]
    mode: Mode,
}

#[derive(Deserialize, Debug, Default, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Live,
    Durable,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Postgres {
    host: String,
    port: u16,
    username: String,
    password: Option<Secret>,
}

const GOOD: &str = "kafka:\n  bootstrap_servers: [a:9092]\npostgres:\n  host: pg\n  port: 5432\n  username: me\n";

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Sample, Vec<String>> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(text, environment, |_| Vec::new())
        .map_err(|faults: Vec<Fault>| faults.iter().map(ToString::to_string).collect())
}

fn faults(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    load(text, environment).expect_err("the text is faulty")
}

#[test]
fn the_environment_overrides_the_file_and_other_variables_do_not_matter() {
    let environment = [
        ("CDC__POSTGRES__PORT", "6000"),
        ("CDC__POSTGRES__USERNAME", "12345"),
        ("CDC__KAFKA__BOOTSTRAP_SERVERS", "[b:1, c:2]"),
        ("CDC__KAFKA__MODE", "durable"),
        ("CDC_LOG", "debug"),
        ("HOME", "/"),
    ];
    let loaded = load(GOOD, &environment).unwrap();
    let (kafka, postgres) = (loaded.kafka.unwrap(), loaded.postgres.unwrap());
    assert_eq!((postgres.port, postgres.username.as_str(), postgres.host.as_str()), (6000, "12345", "pg"));
    assert_eq!((kafka.bootstrap_servers, kafka.mode), (vec!["b:1".to_owned(), "c:2".to_owned()], Mode::Durable));
}

#[test]
fn the_environment_alone_can_make_a_section() {
    let loaded = load("", &[("CDC__KAFKA__BOOTSTRAP_SERVERS", "[b:1]")]).unwrap();
    assert_eq!(loaded.kafka.unwrap().bootstrap_servers, ["b:1"]);
    assert!(loaded.postgres.is_none());
}

#[test]
fn an_unknown_key_is_named_with_its_path_line_and_suggestion_but_not_its_value() {
    let text = GOOD.replace("bootstrap_servers: [a:9092]", "bootstrap_servers: [a]\n  bootstap_servers: [hunter2]");
    assert_eq!(
        faults(&text, &[]),
        ["line 3: kafka.bootstap_servers is not a known key; did you mean `bootstrap_servers`?"]
    );
    assert_eq!(
        faults(&format!("{GOOD}  shards: 3\n"), &[]),
        ["line 7: postgres.shards is not a known key; the section has: host, port, username, password, password_file"]
    );
    assert_eq!(
        faults(&format!("{GOOD}postgress: {{}}\n"), &[]),
        ["line 7: postgress is not a known key; did you mean `postgres`?"]
    );
}

#[test]
fn a_wrong_type_names_the_value_and_what_is_expected() {
    assert_eq!(
        faults(&GOOD.replace("5432", "many"), &[]),
        ["line 5: postgres.port is the text \"many\", expected a whole number from 0 to 65535"]
    );
    assert_eq!(
        faults(&GOOD.replace("5432", "70000"), &[]),
        ["line 5: postgres.port is the number `70000`, expected a whole number from 0 to 65535"]
    );
    assert_eq!(
        faults(&GOOD.replace(": me", ": 12"), &[]),
        ["line 6: postgres.username is the number `12`, expected text; put it in quotes"]
    );
    assert_eq!(
        faults(&GOOD.replace("[a:9092]", "a:9092"), &[]),
        ["line 2: kafka.bootstrap_servers is the text \"a:9092\", expected a list"]
    );
    assert_eq!(
        faults(&format!("{GOOD}  password: 12345\n"), &[]),
        ["line 7: postgres.password has a value of the wrong type; expected text"]
    );
    assert_eq!(faults("postgres: 5\n", &[]), ["line 1: postgres is the number `5`, expected a section"]);
}

#[test]
fn an_unknown_choice_names_the_choices() {
    assert_eq!(
        faults("kafka:\n  bootstrap_servers: []\n  mode: durabel\n", &[]),
        ["line 3: kafka.mode is `durabel`; did you mean `durable`? (one of: live, durable)"]
    );
}

#[test]
fn a_missing_key_shows_the_lines_to_add() {
    assert_eq!(
        faults(&GOOD.replace("  host: pg\n", ""), &[]),
        ["line 3: postgres.host is missing; add it:\n    postgres:\n      host: ..."]
    );
}

#[test]
fn all_faults_are_reported_at_once() {
    let text = "kafka:\n  mode: never\n  colour: red\npostgres:\n  port: many\n  usrname: me\n";
    let found = faults(text, &[("CDC__POSTGRES__HOTS", "x")]);
    let expected = [
        "kafka.mode is `never`",
        "kafka.colour is not",
        "kafka.bootstrap_servers is missing",
        "postgres.port is the text",
        "postgres.usrname is not a known key; did you mean `username`?",
        "postgres.username is missing",
        "postgres.host is missing",
        "CDC__POSTGRES__HOTS: postgres.hots is not a known key; did you mean `host`?",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for expected in expected {
        assert!(found.iter().any(|fault| fault.contains(expected)), "{expected} is not in {found:#?}");
    }
}

#[test]
fn a_fault_of_the_environment_names_the_variable() {
    assert_eq!(
        faults(GOOD, &[("CDC__POSTGRES__PORT", "many")]),
        ["CDC__POSTGRES__PORT: postgres.port is the text \"many\", expected a whole number from 0 to 65535"]
    );
    assert_eq!(
        faults(GOOD, &[("CDC__POSTGRES__HOST__NAME", "x")]),
        ["CDC__POSTGRES__HOST__NAME names a key below one that is not a section in the file"]
    );
}

#[test]
fn faults_of_a_check_name_the_line_too() {
    let faults = parse(GOOD, [], |sample: &Sample| {
        assert!(sample.kafka.is_some());
        vec![Fault::of_sentence("kafka.bootstrap_servers: one is too few"), Fault::of_sentence("it rains")]
    })
    .unwrap_err();
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(faults, ["it rains", "line 2: kafka.bootstrap_servers one is too few"]);
}

#[test]
fn broken_yaml_names_the_line() {
    let found = faults("kafka:\n  a: [1\npostgres: 2\n", &[]);
    assert!(found.len() == 1 && found[0].starts_with("line ") && found[0].contains("is not valid YAML: "), "{found:?}");
    let found = faults("kafka: {}\nkafka: {}\n", &[]);
    assert!(found[0].contains("duplicate entry"), "{found:?}");
    assert_eq!(faults("hello", &[]), ["expected sections, as in `source:` with indented keys below"]);
}

#[test]
fn a_password_may_stand_in_a_file_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let text = format!("{GOOD}  password_file: {}\n", file.display());
    assert_eq!(load(&text, &[]).unwrap().postgres.unwrap().password.unwrap().expose(), "hunter2");

    let both = faults(&format!("{text}  password: x\n"), &[]);
    assert_eq!(both, ["line 7: postgres.password_file stands beside password: give only one"]);
    let none = faults(&format!("{GOOD}  password_file: /nowhere/at/all\n"), &[]);
    assert!(none[0].starts_with("line 7: postgres.password_file cannot read /nowhere/at/all: "), "{none:?}");
}

#[test]
fn a_file_that_is_not_there_is_a_configuration_error() {
    let error = super::load::<Sample>(Path::new("/nowhere/cdc.yaml")).unwrap_err();
    assert!(
        error.to_string().starts_with("configuration /nowhere/cdc.yaml has 1 fault\n  cannot be read: "),
        "{error}"
    );
}

#[test]
fn placeholders_become_values_and_never_structure() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().display();
    std::fs::write(directory.path().join("username"), "me\n").unwrap();
    std::fs::write(directory.path().join("both"), "username = you\nport=1\n").unwrap();
    let text = format!(
        "kafka:\n  bootstrap_servers: [\"${{env:BROKER}}:9092\", \"$${{x}}\"]\npostgres:\n  host: \"${{env:HOST}}\"\n  \
         port: ${{env:PORT}}\n  username: \"${{file:{folder}:username}}\"\n  password: \"${{file:{folder}/both:username}}\"\n"
    );
    let environment = [("BROKER", "b"), ("PORT", "6000"), ("HOST", "pg\npassword: [x]")];
    let loaded = load(&text, &environment).unwrap();
    let (kafka, postgres) = (loaded.kafka.unwrap(), loaded.postgres.unwrap());
    assert_eq!(kafka.bootstrap_servers, ["b:9092", "${x}"]);
    assert_eq!((postgres.host.as_str(), postgres.port), ("pg\npassword: [x]", 6000));
    assert_eq!((postgres.username.as_str(), postgres.password.unwrap().expose()), ("me", "you"));
}

#[test]
fn what_a_placeholder_stands_for_is_not_told() {
    let text = GOOD
        .replace("5432", "${env:PORT}")
        .replace("host: pg", "host: ${vault:x:y}")
        .replace(": me", ": ${file:/nowhere}");
    let found = faults(&text, &[("PORT", "hunter2")]);
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[0].starts_with("line 4: postgres.host has the placeholder ${vault:x:y}: use "), "{found:#?}");
    assert_eq!(
        found[1],
        "line 5: postgres.port has a value of the wrong type; expected a whole number from 0 to 65535"
    );
    assert!(
        found[2].starts_with("line 6: postgres.username has the placeholder ${file:/nowhere}: cannot "),
        "{found:#?}"
    );
}
