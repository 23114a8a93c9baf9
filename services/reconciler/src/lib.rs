//! What can be said of PostgreSQL by someone who looks at both stores.

pub mod barrier;
