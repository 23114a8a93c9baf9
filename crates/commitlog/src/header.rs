/// Version of the segment format, which decides how its payloads are decoded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Format {
    /// Cassandra 4.0, 4.1, and 5.0 with `storage_compatibility_mode: CASSANDRA_4`.
    V7,
    /// Cassandra 5.0: the same bytes, deletion times are unsigned.
    V8,
    /// Cassandra 6.0: an epoch per partition update.
    V9,
}
