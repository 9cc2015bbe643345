//! The `ip` program.

use std::process::Command;

use crate::LabError;
use crate::requirements::find_program;

/// Runs `ip` with the words of `arguments`, in the calling thread's namespace.
pub(crate) fn run(arguments: &str) -> Result<(), LabError> {
    let program = find_program("ip").unwrap_or_else(|| "ip".into());
    crate::tool::run(Command::new(program).args(arguments.split_whitespace())).map(drop)
}
