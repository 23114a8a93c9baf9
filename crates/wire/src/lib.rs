//! Changes and table schemas as Avro records.
