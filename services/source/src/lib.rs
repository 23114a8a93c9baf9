//! The agent beside a Cassandra node: captures its commit log and hands changes on.
