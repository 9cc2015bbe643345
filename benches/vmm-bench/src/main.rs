//! Our VMM against QEMU's microvm: the same guest in turn, on the same machine, in the same minutes.
//!
//! `cargo xtask bench vmm` builds what this needs and runs it. What is measured, and how, is said at the top of each module of
//! `measure/`.

mod bench;
mod disk;
mod limits;
mod measure;
mod options;

use std::process::ExitCode;

use clap::Parser;

use bench::Bench;
use options::Options;

fn main() -> ExitCode {
    let ended = Bench::prepare(Options::parse()).and_then(Bench::run);
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vmm-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
