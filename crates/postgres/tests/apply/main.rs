//! The apply path against a real PostgreSQL.

mod concurrency;
mod dead_letters;
mod merge;
mod refusal;
mod stream;
mod support;
mod types;
