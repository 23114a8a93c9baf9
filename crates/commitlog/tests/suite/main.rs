//! Segments as Cassandra writes them, whole, growing and damaged.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod allocations;
mod basic;
mod damage;
mod decoding;
mod fuzz;
mod golden;
mod order;
mod properties;
mod schema;
mod support;
mod transformed;
