//! Throws bytes at every decoder that reads what others wrote.
//!
//! ```text
//!   run      ──> one process per target: libFuzzer, guided by coverage ──> one line each, findings into the corpus
//!   replay   ──> one process per target: its seeds and its corpus        ──> the input that fails, if one does
//!   minimise ──> libFuzzer's merge: of everything found, what adds coverage, small enough to be committed
//! ```
//! `run` and `minimise` need the instrumented build that `cargo xtask fuzz` makes (`cfg(guided)`); `replay` works in every
//! build and is part of `cargo xtask test`. An input fails a target by a panic, by too much memory, and by too much time.

#![cfg_attr(guided, no_main)]

mod cli;
mod corpus;
#[cfg(guided)]
mod guided;
mod limits;
mod memory;
mod minimise;
mod replay;
mod report;
mod run;
mod seeds;
mod targets;
mod watch;

#[cfg(not(guided))]
fn main() -> std::process::ExitCode {
    cli::main()
}
