//! Configuration, logging, metrics and lifecycle of every role. Knows nothing about replication.

pub mod admin;
pub mod config;
pub mod credentials;
mod exit;
mod lifecycle;
mod secret;
pub mod telemetry;

pub use exit::{Exit, Refusal};
pub use lifecycle::{Lifecycle, STOP_DEADLINE, run};
pub use secret::Secret;
