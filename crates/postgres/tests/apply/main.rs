//! The apply path against a real PostgreSQL.

mod concurrency;
mod copy;
mod dead_letters;
mod evolution;
mod extremes;
mod faults;
mod ledger;
mod merge;
mod mirror;
mod refusal;
mod settings;
mod stream;
mod supersede;
mod support;
mod truncate;
mod types;
