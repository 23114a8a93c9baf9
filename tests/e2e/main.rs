//! End-to-end tests: the real binary between real servers, judged by an oracle that shares no code with it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(clippy::print_stdout, reason = "seeds, and the logs of processes that failed")]

mod barrier;
mod contract;
mod converges;
mod drift;
mod operator;
mod pipeline;
mod reconcile;
mod reconciler_api;
mod reconciler_repair;
mod scaling;
mod snapshots;
mod truncates;
mod vault;
