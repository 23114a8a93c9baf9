//! Segments as Cassandra writes them, whole, growing and damaged.

mod basic;
mod damage;
mod decoding;
mod fuzz;
mod golden;
mod support;
