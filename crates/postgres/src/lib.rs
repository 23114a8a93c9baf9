//! Connections, target tables and the apply path; every SQL statement.
