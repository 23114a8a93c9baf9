//! Producer, consumer and topics.
