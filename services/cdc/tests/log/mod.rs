//! `cdc log` on real segments, those of `crates/commitlog/tests/golden`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Files, OK, SOON, Said, USAGE, cdc, said};

const FAILURE: i32 = 1;
const DAMAGE: i32 = 65;
const UNAVAILABLE: i32 = 69;
const CONFIG: i32 = 78;
const LENGTH: usize = 1 << 20;

/// A segment and its schema, as files.
struct Golden {
    files: Files,
    segment: PathBuf,
    /// Without the zeros behind it.
    written: Vec<u8>,
}

impl Golden {
    fn load(name: &str) -> Self {
        let files = Files::new();
        let rows: Value = serde_json::from_slice(&unpack(&format!("{name}.schema.json.gz"))).expect("a golden file");
        let segment = files.path(rows["segment"].as_str().expect("a golden file"));
        let written = unpack(&format!("{name}.log.gz"));
        std::fs::write(files.path("schema.json"), schema_file(&rows).to_string()).expect("a golden file");
        let golden = Self { files, segment, written };
        golden.save(&golden.written);
        golden
    }

    /// As on disk: zeros up to the segment size.
    fn save(&self, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        bytes.resize(LENGTH, 0);
        std::fs::write(&self.segment, bytes).expect("a golden file");
    }

    /// Writes the next piece as Cassandra does: entries in place, then the markers of the sections that are complete.
    fn grow(&self, from: usize, to: usize) {
        let file = File::options().write(true).open(&self.segment).expect("a golden file");
        let mut piece = self.written[from..to].to_vec();
        let mut complete = Vec::new();
        // Behind the header of a plain segment; a marker says where the next one is.
        let mut marker = 20;
        while marker + 8 <= to {
            for at in (marker..marker + 8).filter(|at| *at >= from) {
                piece[at - from] = 0;
            }
            let next = u32::from_be_bytes(self.written[marker..marker + 4].try_into().expect("a golden file")) as usize;
            if next > from && next <= to {
                complete.push(marker);
            }
            if next <= marker {
                break;
            }
            marker = next;
        }
        file.write_all_at(&piece, from as u64).expect("a golden file");
        for marker in complete {
            file.write_all_at(&self.written[marker..marker + 8], marker as u64).expect("a golden file");
        }
    }

    /// The segment before anything behind `to` was written.
    fn cut(&self, to: usize) {
        self.save(&[]);
        self.grow(0, to);
    }

    fn segment(&self) -> &str {
        self.segment.to_str().expect("a golden file")
    }

    fn schema(&self) -> String {
        self.files.path("schema.json").to_str().expect("a golden file").to_owned()
    }

    fn dump(&self, args: &[&str]) -> Said {
        said(&mut cdc(&[&["log", "dump", self.segment()], args].concat()))
    }

    fn dump_with_schema(&self, args: &[&str]) -> Said {
        self.dump(&[&["--schema", &self.schema()], args].concat())
    }
}

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/commitlog/tests/golden")
}

fn unpack(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(File::open(golden_folder().join(name)).expect("a golden file"))
        .read_to_end(&mut bytes)
        .expect("a golden file");
    bytes
}

/// A schema file from rows of `system_schema`, read after the writes: newer than anything in the log.
fn schema_file(rows: &Value) -> Value {
    let mut out = Vec::new();
    let mut push = |row: &Value, name: &str, column: Value, is: Value| {
        let written_us = 4_000_000_000_000_000i64;
        let column = column.as_str().unwrap_or_default().to_owned();
        out.push(json!({
            "keyspace": row["keyspace_name"], "name": row[name], "column": column, "written_us": written_us, "is": is,
        }));
    };
    for row in rows["tables"].as_array().expect("a golden file") {
        let is = json!({"id": row["id"], "cdc": row["cdc"], "gc_grace_seconds": row["gc_grace_seconds"]});
        push(row, "table_name", Value::Null, json!({"table": is}));
    }
    for row in rows["columns"].as_array().expect("a golden file") {
        let reversed = row["clustering_order"] == "desc";
        let is = json!({"kind": row["kind"], "position": row["position"], "reversed": reversed, "type": row["type"]});
        push(row, "table_name", row["column_name"].clone(), json!({"column": is}));
    }
    for row in rows["dropped_columns"].as_array().expect("a golden file") {
        let dropped = row["dropped_time_ms"].as_i64().expect("a golden file").saturating_mul(1000);
        let is = json!({"kind": row["kind"], "type": row["type"], "dropped_us": dropped});
        push(row, "table_name", row["column_name"].clone(), json!({"dropped_column": is}));
    }
    for row in rows["types"].as_array().expect("a golden file") {
        let [names, types] = ["field_names", "field_types"].map(|part| row[part].as_array().expect("a golden file"));
        let fields: Vec<_> = names.iter().zip(types).collect();
        push(row, "type_name", Value::Null, json!({"type": {"fields": fields}}));
    }
    json!({"version": 1, "rows": out})
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn dump_prints_what_cassandras_own_reader_does() {
    for name in ["cassandra-5.0-v7", "cassandra-5.0-v8"] {
        let golden = Golden::load(name);
        for system in [&[][..], &["--include-system"]] {
            let ours = golden.dump_with_schema(system);
            assert_eq!(ours.code, Some(OK), "{}", ours.err);
            let mut reader = cdc_testkit::cassandra_reader(cdc_testkit::default_version::CASSANDRA).unwrap();
            let theirs = said(reader.args(["--schema", &golden.schema(), golden.segment()]).args(system));
            assert_eq!(theirs.code, Some(OK), "{}", theirs.err);
            for (ours, theirs) in ours.out.lines().zip(theirs.out.lines()) {
                assert_eq!(ours, theirs, "{name}");
            }
            assert_eq!(ours.out.lines().count(), theirs.out.lines().count());
            assert!(ours.out.lines().count() >= 43);
        }
    }
}

#[test]
fn without_a_schema_the_log_itself_says_what_the_tables_are() {
    let golden = Golden::load("cassandra-5.0-v8");
    let (given, followed) = (golden.dump_with_schema(&[]), golden.dump(&[]));
    assert_eq!(followed.code, Some(OK), "{}", followed.err);
    let differ: Vec<_> = given.out.lines().zip(followed.out.lines()).filter(|(a, b)| a != b).collect();
    // Written before the column was dropped, which the schema of later knows.
    let [(given, followed)] = differ.as_slice() else { panic!("{differ:?}") };
    assert!(parse(given)["cells"][0]["column"] == "kept" && parse(given)["cells"].as_array().unwrap().len() == 1);
    assert_eq!(parse(followed)["cells"][0], json!({"column": "gone", "value": "g", "time": 1_700_000_000_000_060_i64}));
}

#[test]
fn tables_and_positions_choose_what_is_shown() {
    let golden = Golden::load("cassandra-5.0-v7");
    let all = golden.dump_with_schema(&[]);
    let plain = golden.dump_with_schema(&["--table", "golden.plain", "--table", "golden.counts"]);
    let expected: Vec<_> = all
        .out
        .lines()
        .filter(|line| line.contains(r#""golden.plain""#) || line.contains(r#""golden.counts""#))
        .collect();
    assert_eq!(plain.out.lines().collect::<Vec<_>>(), expected);
    assert_eq!(expected.len(), 5);

    let lines: Vec<&str> = all.out.lines().collect();
    let at = parse(lines[9]);
    let rest = golden.dump_with_schema(&["--from", &format!("{}:{}", at["segment"], at["position"])]);
    assert_eq!(
        rest.out.lines().next(),
        lines.iter().find(|line| parse(line)["position"].as_u64() > at["position"].as_u64()).copied()
    );
    let later = golden.dump_with_schema(&["--from", "9999999999999"]);
    assert_eq!((later.code, later.out.as_str()), (Some(OK), ""));

    let system = golden.dump_with_schema(&["--include-system"]);
    assert!(system.out.lines().count() > 500);
    assert!(golden.dump_with_schema(&["--table", "system.local"]).out.contains(r#""table":"system.local""#));
    assert_eq!(golden.dump(&["--table", "plain"]).code, Some(USAGE));
    assert_eq!(golden.dump(&["--from", "end"]).code, Some(USAGE));
}

#[test]
fn text_is_a_line_for_people() {
    let golden = Golden::load("cassandra-5.0-v7");
    let text = golden.dump_with_schema(&["--output", "text"]).out;
    let of = |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what} in\n{text}"));
    assert_eq!(
        of("golden.kinds insert pk=1").split_once(' ').unwrap().1,
        r#"golden.kinds insert pk=1 ck1="a" ck2=10 (marker) v_int=7 v_text="seven" @2023-11-14T22:13:20.000001Z"#
    );
    assert!(
        of("delete range").ends_with(r#"pk=3 from ck1="a" ck2=9 to before ck1="a" ck2=3 @2023-11-14T22:13:20.000021Z"#)
    );
    assert!(of("s_set=").contains(r#"s_set=(cleared) @2023-11-14T22:13:20.000007Z s_set["x"]=(set)"#));
}

#[test]
fn damage_is_named_skipped_and_ends_with_65() {
    let golden = Golden::load("cassandra-5.0-v7");
    let whole = golden.dump_with_schema(&[]);
    let lines: Vec<&str> = whole.out.lines().collect();
    let mut bytes = golden.written.clone();
    let end = usize::try_from(parse(lines[5])["position"].as_u64().unwrap()).unwrap();
    bytes[end - 10] ^= 1;
    golden.save(&bytes);
    let said = golden.dump_with_schema(&[]);
    assert_eq!(said.code, Some(DAMAGE), "{}", said.err);
    assert!(said.err.contains("an entry does not match its CRC") && said.err.lines().count() == 1, "{}", said.err);
    let expected: Vec<_> = lines.iter().enumerate().filter(|(index, _)| *index != 5).map(|(_, line)| *line).collect();
    assert_eq!(said.out.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn tables_that_are_not_known_are_counted_and_named() {
    let golden = Golden::load("cassandra-5.0-v7");
    let mut file: Value = serde_json::from_slice(&std::fs::read(golden.files.path("schema.json")).unwrap()).unwrap();
    file["rows"].as_array_mut().unwrap().retain(|row| row["keyspace"] != "golden");
    // Deleted later than it was created: the log does not bring it back.
    let keyspace =
        |kind: &str| json!({"keyspace": "golden", "kind": kind, "name": "", "deleted_us": 4_000_000_000_000_000_i64});
    file["deletions"] = ["table", "column", "dropped_column", "type", "view"].map(keyspace).into();
    std::fs::write(golden.files.path("schema.json"), file.to_string()).unwrap();
    let said = golden.dump_with_schema(&[]);
    assert_eq!((said.code, said.out.as_str()), (Some(OK), ""), "{}", said.err);
    assert!(said.err.contains("is not known, 1 entry is left out; give its schema with --schema FILE"), "{}", said.err);
}

#[test]
fn what_is_no_readable_segment_is_refused_with_a_reason() {
    let files = Files::new();
    let path = |name: &str| files.path(name).to_str().unwrap().to_owned();
    let refused = |name: &str, code: i32, sentence: &str| {
        let said = said(&mut cdc(&["log", "dump", &path(name)]));
        assert_eq!(said.code, Some(code), "{}", said.err);
        assert!(said.err.contains(sentence) && said.out.is_empty(), "{}", said.err);
    };
    refused("cdc.log", USAGE, "its name must be CommitLog-<version>-<id>.log");
    refused("CommitLog-7-1.log", USAGE, "there is no such file");
    std::fs::create_dir(files.path("empty")).unwrap();
    refused("empty", USAGE, "holds no CommitLog-<version>-<id>.log");
    std::fs::write(files.path("CommitLog-7-2.log"), b"not at all a segment").unwrap();
    refused("CommitLog-7-2.log", FAILURE, "not a segment, or its header is cut off");
    std::fs::write(files.path("CommitLog-7-3.log"), [&[1; 12][..], &[0; 100]].concat()).unwrap();
    refused("CommitLog-7-3.log", FAILURE, "damaged header");
    let golden = Golden::load("cassandra-5.0-v7");
    std::fs::write(files.path("schema.json"), "{}").unwrap();
    let said = golden.dump(&["--schema", &path("schema.json")]);
    assert_eq!(said.code, Some(CONFIG));
    assert!(said.err.contains("make one with `cdc log schema --contact-point HOST`"), "{}", said.err);
}

#[test]
fn an_encrypted_segment_is_read_with_cassandras_keystore() {
    let files = Files::new();
    let mut archive = flate2::read::GzDecoder::new(File::open(golden_folder().join("jceks-5.0.log.gz")).unwrap());
    let mut bytes = Vec::new();
    archive.read_to_end(&mut bytes).unwrap();
    let name = String::from_utf8(archive.header().unwrap().filename().unwrap().to_vec()).unwrap();
    let segment = files.path(&name);
    std::fs::write(&segment, bytes).unwrap();
    let row = |name: &str, kind: &str, ty: &str| {
        let is = json!({"column": {"kind": kind, "position": 0, "reversed": false, "type": ty}});
        json!({"keyspace": "golden", "name": "t", "column": name, "is": is})
    };
    let id = json!({"table": {"id": "5ea51de5-0000-4000-8000-000000000001", "cdc": true, "gc_grace_seconds": 864_000}});
    let table = json!({"keyspace": "golden", "name": "t", "is": id});
    let schema = json!({"version": 1, "rows": [table, row("id", "partition_key", "int"), row("v", "regular", "text")]});
    std::fs::write(files.path("schema.json"), schema.to_string()).unwrap();
    let dump = |args: &[&str], password: Option<&str>| {
        let schema = files.path("schema.json");
        let mut command = cdc(&["log", "dump", "--table", "golden.t", "--schema", schema.to_str().unwrap()]);
        command.arg(&segment).args(args).env_remove("CDC_KEYSTORE_PASSWORD");
        said(command.envs(password.map(|password| ("CDC_KEYSTORE_PASSWORD", password))))
    };
    let keystore = golden_folder().join("jceks-5.0.keystore");
    let keystore = ["--keystore", keystore.to_str().unwrap()];

    let without = dump(&[], None);
    assert_eq!((without.code, without.out.as_str()), (Some(FAILURE), ""), "{}", without.err);
    assert!(without.err.contains("it is encrypted") && without.err.contains("--keystore FILE"), "{}", without.err);
    let wrong = dump(&keystore, Some("hunter2"));
    assert!(wrong.code == Some(CONFIG) && !wrong.err.contains("hunter2"), "{}", wrong.err);
    let unsaid = dump(&keystore, None);
    assert!(unsaid.code == Some(CONFIG) && unsaid.err.contains("set CDC_KEYSTORE_PASSWORD"), "{}", unsaid.err);
    std::fs::write(files.path("password"), "cassandra\n").unwrap();
    let file = files.path("password");
    for said in [
        dump(&keystore, Some("cassandra")),
        dump(&[&keystore[..], &["--keystore-password-file", file.to_str().unwrap()]].concat(), None),
    ] {
        assert_eq!(said.code, Some(OK), "{}", said.err);
        assert_eq!(said.out.lines().count(), 61);
        assert!(said.out.contains(r#""partition_key":{"id":7},"#) && said.out.contains(r#""value":"row 7""#));
    }
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let golden = Golden::load("cassandra-5.0-v7");
    let mut dump = cdc(&["log", "dump", golden.segment(), "--schema", &golden.schema(), "--include-system"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(16, dump.stdout.take().unwrap()).read_line(&mut line).unwrap();
    parse(&line);
    let output = dump.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(OK), &[][..]));

    let mut stat =
        cdc(&["log", "stat", golden.segment()]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(stat.stdout.take());
    let output = stat.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(OK), &[][..]));
}

#[test]
fn stat_counts_without_showing_a_value() {
    let golden = Golden::load("cassandra-5.0-v8");
    let stat = said(&mut cdc(&["log", "stat", golden.segment(), "--schema", &golden.schema(), "--output", "json"]));
    assert_eq!(stat.code, Some(OK), "{}", stat.err);
    let json = parse(&stat.out);
    assert_eq!((&json["version"], &json["encoding"], &json["damage"]), (&8.into(), &"plain".into(), &json!([])));
    assert!(json["entries"].as_u64().unwrap() > 100 && json["sections"].as_u64().unwrap() > 1, "{json}");
    let of = |name: &str| {
        let tables = json["tables"].as_array().unwrap().iter();
        tables.clone().find(|table| table["table"] == name).unwrap_or_else(|| panic!("{name} in {json}")).clone()
    };
    let kinds = of("golden.kinds");
    assert_eq!(
        (&kinds["oldest_write_time"], &kinds["newest_write_time"]),
        (&(-5).into(), &1_700_000_000_000_040_i64.into())
    );
    assert_eq!((&of("golden.plain")["entries"], &of("golden.quiet")["changes"]), (&2.into(), &2.into()));

    let table = said(&mut cdc(&["log", "stat", golden.segment(), "--schema", &golden.schema()]));
    assert!(table.out.contains("version 8, plain, 1048576 bytes, no index"), "{}", table.out);
    assert!(table.out.contains("golden.kinds") && !table.out.contains("grüße") && !table.out.contains("seven"));
}

fn position(line: &str) -> usize {
    usize::try_from(parse(line)["position"].as_u64().expect("a position")).expect("a position")
}

fn dump_lines(golden: &Golden) -> Vec<String> {
    golden.dump(&[]).out.lines().map(str::to_owned).collect()
}

/// A dump that follows, and its lines as they come.
struct Following {
    process: Child,
    lines: Receiver<String>,
}

impl Following {
    fn start(args: &[&str]) -> Self {
        let mut dump = cdc(&[&["log", "dump", "--follow"], args].concat());
        let mut process = dump.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a running dump");
        let out = BufReader::new(process.stdout.take().expect("a running dump"));
        let (sender, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { process, lines }
    }

    fn expect(&self, expected: &[String]) {
        for expected in expected {
            assert_eq!(self.lines.recv_timeout(SOON).expect("a line in time"), *expected);
        }
    }

    /// As Ctrl-C does.
    fn interrupt(mut self) -> Said {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a running dump");
        let started = Instant::now();
        while self.process.try_wait().expect("a running dump").is_none() {
            assert!(started.elapsed() < SOON, "does not stop");
            std::thread::yield_now();
        }
        let output = self.process.wait_with_output().expect("a running dump");
        let err = String::from_utf8(output.stderr).expect("a running dump");
        Said { code: output.status.code(), out: self.lines.iter().collect(), err }
    }
}

#[test]
fn follow_shows_what_is_written_goes_on_to_the_next_segment_and_ends_when_asked() {
    let first = Golden::load("cassandra-5.0-v7");
    let whole = dump_lines(&first);
    let cut = position(&whole[3]);
    first.cut(cut);
    let folder = first.segment.parent().unwrap();
    let dump = Following::start(&[folder.to_str().unwrap()]);
    dump.expect(&whole[..4]);
    first.grow(cut, first.written.len());
    dump.expect(&whole[4..]);

    let next = Golden::load("cassandra-5.0-v8");
    let new = folder.join(next.segment.file_name().unwrap());
    std::fs::copy(&next.segment, new.with_extension("part")).unwrap();
    std::fs::rename(new.with_extension("part"), &new).unwrap();
    dump.expect(&dump_lines(&next));

    let said = dump.interrupt();
    assert_eq!((said.code, said.out.as_str()), (Some(OK), ""), "{}", said.err);
}

#[test]
fn follow_from_the_end_shows_only_what_is_new() {
    let golden = Golden::load("cassandra-5.0-v7");
    let whole = dump_lines(&golden);
    let mut cut = position(&whole[20]);
    golden.cut(cut);
    let dump = Following::start(&["--from", "end", golden.segment()]);
    // When it has come to the end does not show, so it is given one entry after the other until it shows one.
    for line in &whole[21..] {
        golden.grow(cut, position(line));
        cut = position(line);
        if let Ok(shown) = dump.lines.recv_timeout(Duration::from_millis(500)) {
            assert_eq!(shown, *line);
            assert_eq!(dump.interrupt().code, Some(OK));
            return;
        }
    }
    panic!("nothing was shown");
}

#[test]
fn schema_needs_a_node_that_answers() {
    let none = said(&mut cdc(&["log", "schema"]));
    assert!(none.code == Some(USAGE) && none.err.contains("give --contact-point HOST"), "{}", none.err);
    let nobody = said(&mut cdc(&["log", "schema", "--contact-point", "127.0.0.1:1"]));
    assert!(nobody.code == Some(UNAVAILABLE) && nobody.err.contains("127.0.0.1:1"), "{}", nobody.err);
    let files = Files::new();
    let config = files.write("cassandra: {contact_points: ['127.0.0.1:1'], username: me, password: hunter2}\n");
    let said = said(&mut cdc(&["log", "schema", "--config", &config]));
    assert!(said.code == Some(UNAVAILABLE) && !said.err.contains("hunter2"), "{}", said.err);
}

#[test]
fn help_says_who_shows_values() {
    let help = said(&mut cdc(&["log", "--help"]));
    assert!(help.out.contains("Values and keys are shown by `dump` alone"), "{}", help.out);
    for command in ["dump", "stat", "schema"] {
        let help = said(&mut cdc(&["log", command, "--help"]));
        assert!(help.code == Some(OK) && help.out.contains("Examples:"), "{command}: {}", help.out);
        let shows = if command == "dump" { "Shows the values and keys of rows" } else { "" };
        assert!(help.out.contains(shows), "{}", help.out);
    }
}
