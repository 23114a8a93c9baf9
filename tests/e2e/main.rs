//! End-to-end tests: the real binary between real servers, judged by an oracle that shares no code with it.

mod converges;
mod operator;
mod pipeline;
