//! The apply path against a real PostgreSQL.

mod concurrency;
mod merge;
mod refusal;
mod stream;
mod support;
mod types;
