//! The build with coverage counters: libFuzzer owns `main` and calls the target that the environment names. Without one the
//! process is the command line program.

use std::sync::OnceLock;

use crate::run::TARGET_VARIABLE;
use crate::targets::Target;
use crate::{cli, memory};

static TARGET: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: begin(), |data: &[u8]| {
    let target = TARGET.get().expect("chosen before the first input");
    memory::bounded(|| (target.run)(data));
});

/// Before libFuzzer looks at its arguments.
fn begin() {
    let Ok(name) = std::env::var(TARGET_VARIABLE) else {
        // Of `main`'s own kind: an `ExitCode` can only be returned.
        std::process::exit(i32::from(cli::main() != std::process::ExitCode::SUCCESS));
    };
    let target = Target::find(&name).expect("the driver names targets that exist");
    assert!(TARGET.set(target).is_ok(), "libFuzzer initialises once");
}
