//! Reads Cassandra commit-log segments: bytes in, changes out; synchronous.
