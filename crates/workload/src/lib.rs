//! A seeded shop workload on Cassandra, and an oracle that compares both stores cell by cell.
