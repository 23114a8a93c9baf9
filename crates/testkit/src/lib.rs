//! Obtains, starts and breaks real servers.
