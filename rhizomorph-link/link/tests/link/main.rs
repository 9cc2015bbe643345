//! The link from outside: two ends on loopback, real sockets, paths that a test can cut.

mod common;
mod lifecycle;
mod path_loss;
mod refusal;
mod transfer;
