//! Logging in as a pod. Vault's own part of it wants a Kubernetes API server to ask, so what is sent is looked at by one
//! that answers as Vault does.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use cdc_runtime::Lifecycle;
use cdc_vault::{Kubernetes, Vault, VaultConfig};

const LOGIN: &str = r#"{"request_id":"","lease_id":"","renewable":false,"lease_duration":0,"data":null,"warnings":null,
    "wrap_info":null,"auth":{"client_token":"hvs.test","accessor":"","policies":[],"token_policies":[],"metadata":null,
    "lease_duration":3600,"renewable":true,"entity_id":"","token_type":"service","orphan":true}}"#;
const SECRET: &str = r#"{"request_id":"","lease_id":"","renewable":false,"lease_duration":0,"warnings":null,"wrap_info":null,
    "auth":null,"data":{"metadata":{"version":1},"data":{"username":"me","password":"it"}}}"#;
const HEALTH: &str = r#"{"initialized":true,"sealed":false,"standby":false,"performance_standby":false,
    "replication_performance_mode":"disabled","replication_dr_mode":"disabled","server_time_utc":1,"version":"1.21.0"}"#;

/// Path, token and body of each request but those that ask for its health.
fn answer(listener: &TcpListener, requests: &mpsc::Sender<(String, String, String)>) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length, mut token) = (String::new(), 0, String::new());
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "x-vault-token" => value.clone_into(&mut token),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = first.split([' ', '?']).nth(1).unwrap_or_default().to_owned();
    let text = match path.as_str() {
        "/v1/sys/health" => HEALTH,
        "/v1/auth/kubernetes-eu/login" => LOGIN,
        _ => SECRET,
    };
    if text != HEALTH {
        requests.send((path, token, String::from_utf8(body).unwrap())).ok();
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_logs_in_with_its_own_token_and_its_role() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || while answer(&listener, &sender).is_ok() {});
    let folder = tempfile::tempdir().unwrap();
    let jwt_file = folder.path().join("token");
    std::fs::write(&jwt_file, "header.payload.signature\n").unwrap();
    let text = format!(
        "address: http://{address}\nkubernetes: {{role: cdc-pipeline, mount: kubernetes-eu}}\ncassandra: secret/cdc/cassandra\n"
    );
    let mut config: VaultConfig = cdc_runtime::config::parse(&text, [], |_| Vec::new()).unwrap();
    let kubernetes = config.kubernetes.take().unwrap();
    assert_eq!(kubernetes.jwt_file.to_str(), Some("/var/run/secrets/kubernetes.io/serviceaccount/token"));
    config.kubernetes = Some(Kubernetes { jwt_file, ..kubernetes });

    let lifecycle = Lifecycle::new();
    let vault = Vault::start(&config, &lifecycle).unwrap();
    tokio::time::timeout(Duration::from_secs(30), vault.issued()).await.expect("a login");
    let (path, token, body) = requests.recv().unwrap();
    assert_eq!((path.as_str(), token.as_str()), ("/v1/auth/kubernetes-eu/login", ""));
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body, serde_json::json!({"role": "cdc-pipeline", "jwt": "header.payload.signature"}));
    let (path, token, _) = requests.recv().unwrap();
    assert_eq!((path.as_str(), token.as_str()), ("/v1/secret/data/cdc/cassandra", "hvs.test"));
    assert_eq!(vault.logins.cassandra.unwrap().current().unwrap().username, "me");
    lifecycle.stop();
}
