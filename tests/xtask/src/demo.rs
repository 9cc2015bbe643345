//! `cargo xtask demo`.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::sh::status;
use crate::{build, tools};

pub(crate) fn run(options: &[String]) -> Result<ExitCode> {
    tools::ensure(&[tools::GCC])?;
    let built = build::programs()?;
    let mut demo = Command::new(built.program("mycelium"));
    demo.arg("demo").args(options);
    let ended = status(&mut demo)?;
    Ok(ended.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
