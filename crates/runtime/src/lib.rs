//! Configuration, logging, metrics and lifecycle.
