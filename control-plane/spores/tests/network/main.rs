//! Whole nodes in one process, over loopback UDP.

mod arbiter;
mod common;
mod group;
mod joining;
mod losses;
