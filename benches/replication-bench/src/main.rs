//! What protection costs a guest: the same guest protected, unprotected, protected the plain way, and on QEMU, in turn on the same
//! machine.
//!
//! `cargo xtask bench replication` builds what this needs and runs it. What is measured, and how, is said at the top of each
//! module of `measure/`.

mod bench;
mod limits;
mod load;
mod measure;
mod options;

use std::process::ExitCode;

use clap::Parser;

use bench::Bench;
use options::Options;

fn main() -> ExitCode {
    match Bench::prepare(Options::parse()).and_then(Bench::run) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("replication-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
