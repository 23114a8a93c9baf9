//! A running `cdc reconciler`, and curl.

use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cdc_postgres::PostgresConfig;
use serde_json::Value;

use crate::dlq::World;
use crate::{SOON, cdc};

/// A running `cdc reconciler`; killed when dropped.
pub(super) struct Service {
    child: Child,
    pub(super) base: String,
    pub(super) token: Option<&'static str>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(super) fn config(world: &World, more: &str) -> String {
    let PostgresConfig { host, port, database, username, password, .. } = &world.config;
    let password = password.as_ref().unwrap().expose();
    world.files.write(&format!(
        "cassandra: {{contact_points: ['127.0.0.1:1'], connect_timeout_ms: 300}}\n\
         source: {{cdc_raw_directory: /nowhere, state_directory: /nowhere, tables: [shop.orders, shop.users]}}\n\
         postgres: {{host: '{host}', port: {port}, database: {database}, username: {username}, password: {password}}}\n\
         reconciler:\n  listen: 127.0.0.1:0\n  port_file: {}\n{more}",
        world.files.path("port").display(),
    ))
}

impl Service {
    /// Once it answers from PostgreSQL.
    pub(super) fn start(world: &World, more: &str) -> Self {
        let port = world.files.path("port");
        std::fs::remove_file(&port).ok();
        let child = cdc(&["reconciler", &config(world, more)]).spawn().unwrap();
        let mut service = Self { child, base: String::new(), token: None };
        let number = eventually(|| std::fs::read_to_string(&port).ok());
        service.base = format!("http://localhost:{}", number.trim());
        eventually(|| (service.text(&["/readyz"]) == "ready\n").then_some(()));
        service
    }

    fn curl(&self, args: &[&str]) -> String {
        let mut command = Command::new("curl");
        command.args(["-s", "--max-time", "20"]);
        if let Some(token) = self.token {
            command.args(["-H", &format!("Authorization: Bearer {token}")]);
        }
        for arg in args {
            // Only a path begins with it.
            command.arg(if arg.starts_with('/') { format!("{}{arg}", self.base) } else { (*arg).to_owned() });
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    pub(super) fn text(&self, args: &[&str]) -> String {
        self.curl(args)
    }

    /// Status code and body, which is JSON and ends its line.
    pub(super) fn ask(&self, args: &[&str]) -> (u64, Value) {
        let text = self.curl(&[args, &["-w", "%{http_code}"]].concat());
        let (body, code) =
            text.rsplit_once('\n').unwrap_or_else(|| panic!("{args:?}: no line break at the end: {text}"));
        let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"));
        (code.parse().unwrap(), body)
    }

    #[track_caller]
    pub(super) fn get(&self, path: &str) -> Value {
        let (code, body) = self.ask(&[path]);
        assert_eq!(code, 200, "{path}: {body}");
        body
    }

    /// Posts with curl's own media type, which says that it is a form.
    pub(super) fn post(&self, path: &str, body: &str) -> (u64, Value) {
        self.ask(&["-X", "POST", path, "-d", body])
    }

    #[track_caller]
    pub(super) fn refused(&self, (code, body): (u64, Value), expected: u64, words: &str) {
        assert!(
            code == expected && body.to_string().contains(words),
            "expected {expected} and `{words}`: {code} {body}"
        );
        assert!(body["error"].is_string() && body["message"].is_string() && body["status"] == code, "{body}");
    }
}

#[track_caller]
pub(super) fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        match look() {
            Some(found) => return found,
            None if Instant::now() > end => panic!("not within {SOON:?}"),
            None => sleep(Duration::from_millis(20)),
        }
    }
}
