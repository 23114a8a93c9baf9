//! Whether this service, and what it asks, answer.

use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cdc_vault::VaultState;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;

use super::answer::{Answer, Params, Problem, json};
use crate::service::{Service, Shared, engine::sentence};

/// For an answer of each.
const WITHIN: Duration = Duration::from_secs(2);
/// Without this one nothing can be answered; without the others, much.
const VITAL: &str = "postgresql";

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Json,
    Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    format: Option<Format>,
}

struct Component {
    name: &'static str,
    status: &'static str,
    took: Option<Duration>,
    problem: Option<String>,
    /// Of Vault, while it answers.
    sealed: Option<bool>,
}

impl Component {
    async fn ask(name: &'static str, asking: impl Future<Output = Result<(), String>>) -> Self {
        let began = Instant::now();
        let answered = tokio::time::timeout(WITHIN, asking).await;
        let problem = answered.unwrap_or_else(|_| Err(format!("no answer within {WITHIN:?}"))).err();
        let status = if problem.is_none() { "healthy" } else { "unhealthy" };
        Self { name, status, took: Some(began.elapsed()), problem, sealed: None }
    }

    fn absent(name: &'static str) -> Self {
        Self { name, status: "not_configured", took: None, problem: None, sealed: None }
    }

    /// What it gave counts on while it is valid, so it is `degraded` until then. The process asks it every few seconds.
    fn vault(state: &VaultState) -> Self {
        let problem = state.ready().err();
        let status = match (&problem, state.problem()) {
            (Some(_), _) => "unhealthy",
            (None, Some(_)) => "degraded",
            (None, None) => "healthy",
        };
        Self { name: "vault", status, took: None, problem: problem.or_else(|| state.problem()), sealed: state.sealed() }
    }

    fn describe(&self) -> Value {
        let milliseconds = self.took.map(|took| took.as_secs_f64() * 1_000.0);
        let mut value = json!({"status": self.status, "response_time_ms": milliseconds});
        if let Some(problem) = &self.problem {
            value["message"] = problem.as_str().into();
        }
        if let Some(sealed) = self.sealed {
            value["sealed"] = sealed.into();
        }
        value
    }
}

/// One that takes a connection is enough.
async fn connects(addresses: Vec<String>) -> Result<(), String> {
    let mut problems = Vec::new();
    for address in addresses {
        match TcpStream::connect(&address).await {
            Ok(_) => return Ok(()),
            Err(error) => problems.push(format!("{address}: {error}")),
        }
    }
    Err(problems.join("; "))
}

async fn components(service: &Service) -> [Component; 5] {
    let node = service.settings.cassandra.own_node();
    let node =
        node.map(|(host, port)| if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") });
    let postgres = async { service.ledger.ping().await.map_err(|error| sentence(&error)) };
    let kafka = async {
        match &service.settings.kafka {
            Some(kafka) => Component::ask("kafka", connects(kafka.bootstrap_servers.clone())).await,
            None => Component::absent("kafka"),
        }
    };
    let vault = service.settings.vault.as_ref().map_or_else(|| Component::absent("vault"), Component::vault);
    let (cassandra, postgres, kafka) = tokio::join!(
        Component::ask("cassandra", connects(node.into_iter().collect())),
        Component::ask(VITAL, postgres),
        kafka,
    );
    [cassandra, postgres, kafka, Component::absent("schema_registry"), vault]
}

pub(super) async fn all(
    State(service): State<Shared>,
    Params(query): Params<Query>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let components = components(&service).await;
    let is_down = |component: &&Component| component.problem.is_some();
    let (code, status) = match components.iter().filter(is_down).map(|component| component.name).collect::<Vec<_>>() {
        down if down.contains(&VITAL) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
        down if down.is_empty() => (StatusCode::OK, "healthy"),
        _ => (StatusCode::OK, "degraded"),
    };
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let wants_text = accepts.is_some_and(|accept| accept.starts_with("text/plain"));
    if query.format.map_or(wants_text, |format| format == Format::Text) {
        let mut text = format!("{status}\n");
        for component in &components {
            if let Some(sealed) = component.sealed {
                text.push_str(&format!("{}: sealed={sealed}\n", component.name));
            }
            let problem = component.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
            text.push_str(&format!("{}: {}{problem}\n", component.name, component.status));
        }
        return Ok((code, text).into_response());
    }
    let check_time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let described: Map<String, Value> =
        components.iter().map(|component| (component.name.to_owned(), component.describe())).collect();
    Ok(json(code, &json!({"status": status, "check_time": check_time.as_secs(), "components": described})))
}

pub(super) async fn one(State(service): State<Shared>, Path(name): Path<String>) -> Answer {
    let components = components(&service).await;
    let Some(component) = components.iter().find(|component| component.name == name) else {
        let names: Vec<&str> = components.iter().map(|component| component.name).collect();
        return Err(Problem::unknown("component", &name).with("components", names));
    };
    let code = if component.problem.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    Ok(json(code, &component.describe()))
}
