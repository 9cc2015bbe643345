//! The build with coverage counters: libFuzzer owns `main` and calls the target that the environment names. Without one the
//! process is the command line program.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::OnceLock;

use crate::run::{CURRENT_VARIABLE, TARGET_VARIABLE};
use crate::targets::Target;
use crate::{cli, memory};

static TARGET: OnceLock<&Target> = OnceLock::new();
static CURRENT: OnceLock<File> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: begin(), |data: &[u8]| {
    let target = TARGET.get().expect("chosen before the first input");
    note(data);
    memory::bounded(|| (target.run)(data));
});

/// Before libFuzzer looks at its arguments.
fn begin() {
    let Ok(name) = std::env::var(TARGET_VARIABLE) else {
        // Instead of libFuzzer's main; an `ExitCode` can only be returned by one's own.
        std::process::exit(i32::from(cli::main() != ExitCode::SUCCESS));
    };
    let target = Target::find(&name).expect("the driver names targets that exist");
    assert!(TARGET.set(target).is_ok(), "libFuzzer initialises once");
    if let Some(file) = std::env::var_os(CURRENT_VARIABLE).and_then(|path| File::create(path).ok()) {
        assert!(CURRENT.set(file).is_ok(), "libFuzzer initialises once");
    }
}

/// Leaves the input, behind its length, where the driver finds it: when the stack overflows libFuzzer has none to save it on.
fn note(data: &[u8]) {
    if let Some(file) = CURRENT.get() {
        let length = (data.len() as u64).to_le_bytes();
        // An input that cannot be noted is one that cannot be reported if it does the worst; it is still tried.
        let _ = file.write_all_at(&length, 0).and_then(|()| file.write_all_at(data, 8));
    }
}
