//! Applies changes to PostgreSQL.
