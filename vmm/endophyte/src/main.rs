//! `endophyte`: see the library of the same name, which is the program; a library can be reached by a fuzzer.

use std::process::ExitCode;

fn main() -> ExitCode {
    endophyte::main()
}
