//! A running `cdc reconciler`, asked over HTTP.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use cdc_reconciler::service::PORT;
use cdc_runtime::{Exit, Refusal, Secret};
use clap::Args;
use serde_json::Value;

/// Of each step of an answer; the service asks its servers for no longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// As the service itself reads them.
const TOKEN: &str = "CDC__RECONCILER__TOKEN";
const TOKEN_FILE: &str = "CDC__RECONCILER__TOKEN_FILE";

#[derive(Args, Debug)]
pub(in crate::reconcile) struct ServerArgs {
    /// Where the service answers
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// File with what the service has as reconciler.token, or `CDC__RECONCILER__TOKEN_FILE`, or the token itself in
    /// `CDC__RECONCILER__TOKEN`
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

pub(super) struct Client {
    /// Host and port.
    host: String,
    /// In front of each path.
    prefix: String,
    token: Option<Secret>,
}

impl Client {
    pub(super) fn new(args: &ServerArgs) -> anyhow::Result<Self> {
        let usage =
            |problem: &str| Refusal { exit: Exit::Usage, message: format!("--url is `{}`: {problem}", args.url) };
        let place = args.url.strip_prefix("http://").ok_or_else(|| {
            usage("it must begin with http://, because the service does not encrypt; reach it through a tunnel, as `ssh -L` makes")
        })?;
        let (host, prefix) = place.split_once('/').unwrap_or((place, ""));
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || host.contains('@') || !is_plain(place) {
            return Err(usage("use host and port, as in http://127.0.0.1:8080").into());
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = if has_port { host.to_owned() } else { format!("{host}:{PORT}") };
        let prefix = prefix.trim_end_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        Ok(Self { host, prefix, token: token(args)? })
    }

    pub(super) fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask("GET", path, None)
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.ask("POST", path, Some(body))
    }

    /// # Errors
    /// A [`Refusal`] with what the service says.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (code, answer) = self.exchange(method, path, body).map_err(|error| {
            Refusal::unavailable(format!(
                "no reconciler answers at http://{} ({error}); start one with `cdc reconciler FILE`, or name its address with --url",
                self.host
            ))
        })?;
        let parsed: Option<Value> = serde_json::from_str(&answer).ok();
        if (200..300).contains(&code) {
            return parsed
                .with_context(|| format!("http://{}{path} does not answer in JSON: is it a reconciler?", self.host));
        }
        let text = |name: &str| parsed.as_ref().and_then(|problem| problem[name].as_str()).map(str::to_owned);
        let sentence = text("message").or_else(|| text("detail")).unwrap_or_else(|| "and does not say why".to_owned());
        let name = text("code").map(|name| format!(" {name}")).unwrap_or_default();
        let exit = match code {
            401 | 403 => Exit::Config,
            400 | 404 | 422 => Exit::Usage,
            502..=504 => Exit::Unavailable,
            _ => Exit::Failure,
        };
        let hint = if code == 401 { format!("; give --token-file, or {TOKEN_FILE}") } else { String::new() };
        Err(Refusal { exit, message: format!("the reconciler refuses, {code}{name}: {sentence}{hint}") }.into())
    }

    fn exchange(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<(u16, String)> {
        let address = self.host.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("it has no address"))?;
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        let authorization = self
            .token
            .as_ref()
            .map(|token| format!("Authorization: Bearer {}\r\n", token.expose()))
            .unwrap_or_default();
        let body = body.map(ToString::to_string).unwrap_or_default();
        // Version 1.0: the answer ends with the connection, in no chunks.
        let request = format!(
            "{method} {}{path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             {authorization}\r\n{body}",
            self.prefix,
            self.host,
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let not_http = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(not_http)?;
        let code =
            head.strip_prefix("HTTP/").and_then(|head| head.split(' ').nth(1)?.parse().ok()).ok_or_else(not_http)?;
        Ok((code, body.to_owned()))
    }
}

fn token(args: &ServerArgs) -> anyhow::Result<Option<Secret>> {
    let of_environment = || std::env::var_os(TOKEN_FILE).map(PathBuf::from).map(|path| (TOKEN_FILE, path));
    let file = args.token_file.clone().map(|path| ("--token-file", path));
    let (name, token) = match (file, std::env::var(TOKEN)) {
        (None, Ok(token)) => (TOKEN, token),
        (file, _) => match file.or_else(of_environment) {
            None => return Ok(None),
            Some((name, path)) => {
                let unread =
                    |error: io::Error| Refusal::config(format!("{name} {} cannot be read: {error}", path.display()));
                (name, std::fs::read_to_string(&path).map_err(unread)?)
            }
        },
    };
    let token = token.trim_end();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message =
            format!("{name} holds no token: it must be one word of ASCII, as reconciler.token of the service is");
        return Err(Refusal::config(message).into());
    }
    Ok(Some(Secret::new(token)))
}

/// For a query string.
pub(super) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> anyhow::Result<Client> {
        Client::new(&ServerArgs { url: url.to_owned(), token_file: None })
    }

    #[test]
    fn an_address_may_lack_its_port_and_have_a_prefix() {
        for (url, host, prefix) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", ""),
            ("http://reconciler/", "reconciler:8080", ""),
            ("http://[::1]:9/api/v1/", "[::1]:9", "/api/v1"),
        ] {
            let client = client(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!((client.host.as_str(), client.prefix.as_str()), (host, prefix), "{url}");
        }
        for (url, words) in [
            ("https://reconciler", "does not encrypt"),
            ("reconciler:8080", "http://"),
            ("http://", "host and port"),
            ("http://u:p@host", "host and port"),
            ("http://host/a b", "host and port"),
        ] {
            let error = client(url).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words), "{url}: {error}");
        }
    }

    #[test]
    fn what_goes_into_a_query_is_encoded() {
        assert_eq!(encoded("shop.orders"), "shop.orders");
        assert_eq!(encoded("a&b=c é\n"), "a%26b%3Dc%20%C3%A9%0A");
    }
}
