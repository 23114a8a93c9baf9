//! Logs: to stderr, for people on a terminal and as JSON lines otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Environment variable with the level, or filter directives as in `info,cdc_source=debug`.
pub const LOG_VARIABLE: &str = "CDC_LOG";
/// Drivers report at `info` what is news to their authors only. scylla tells every second that a node is away, as an
/// error; what matters of that is said by the caller that waits.
const DEFAULT: &str = "info,scylla=off,rdkafka=warn,librdkafka=warn,sqlx=warn";
/// Whatever is asked for: at some level these write what they send, and that holds secrets. What matters of it is said by
/// the caller.
const NEVER: [&str; 8] = [
    "vaultrs=off",
    "rustify=off",
    "reqwest=info",
    "hyper=info",
    "hyper_util=info",
    "h2=info",
    "rustls=info",
    "tokio_postgres=info",
];

/// Installs the log. `level` (the command line's) wins over `CDC_LOG`, which wins over `configured` (the file's).
///
/// # Errors
/// If the directives do not parse, naming them, or a log is installed already.
pub fn init(level: Option<&str>, configured: Option<&str>) -> Result<(), TelemetryError> {
    let from_environment = std::env::var(LOG_VARIABLE).ok();
    let wanted = level.or(from_environment.as_deref()).or(configured).unwrap_or_default();
    let directives = if wanted.is_empty() {
        DEFAULT.to_owned()
    } else if wanted.contains(['=', ',']) {
        wanted.to_owned()
    } else {
        DEFAULT.replacen("info", wanted, 1)
    };
    let filter = EnvFilter::try_new(&directives).map_err(|_| TelemetryError::Directives(wanted.to_owned()))?;
    let never = NEVER.iter().map(|directive| directive.parse().expect("they are valid"));
    let filter = never.fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        let colours = std::env::var_os("NO_COLOR").is_none();
        builder.with_ansi(colours).with_target(false).finish().try_init()
    } else {
        builder.json().flatten_event(true).finish().try_init()
    }
    .map_err(|_| TelemetryError::Installed)
}

#[derive(thiserror::Error, Debug)]
pub enum TelemetryError {
    #[error("log level {0:?} is none of error, warn, info, debug, trace, nor directives as in `info,cdc_source=debug`")]
    Directives(String),
    #[error("a log is already installed")]
    Installed,
}
