//! `cargo xtask verify` and `fix`: one checks and changes nothing, the other rewrites.

use std::process::ExitCode;

use anyhow::Result;

use crate::build::guest_cargo;
use crate::sh::{cargo, must, steps};
use crate::tools::ensure_cargo_tool;

const GUEST: &str = "guest-images/native-guest/Cargo.toml";
pub(crate) fn verify() -> Result<ExitCode> {
    let ok = steps(vec![
        ("format", Box::new(|| must(cargo().args(["fmt", "--all", "--check"])))),
        (
            "format of the guest",
            Box::new(|| must(cargo().args(["fmt", "--manifest-path", GUEST, "--check"]))),
        ),
        (
            "lints",
            Box::new(|| {
                must(cargo().args([
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    "--all-features",
                    "--",
                    "-D",
                    "warnings",
                ]))
            }),
        ),
        ("lints of the guest", Box::new(|| must(guest_cargo("clippy").args(["--", "-D", "warnings"])))),
        (
            "dependencies",
            Box::new(|| {
                ensure_cargo_tool("cargo-deny", "checks licences and advisories")?;
                must(cargo().args([
                    "deny",
                    "--workspace",
                    "check",
                    "--hide-inclusion-graph",
                    "bans",
                    "licenses",
                    "sources",
                ]))
            }),
        ),
        (
            "docs",
            Box::new(|| {
                let mut doc = cargo();
                must(
                    doc.args(["doc", "--workspace", "--no-deps", "--quiet"])
                        .env("RUSTDOCFLAGS", "-D warnings"),
                )
            }),
        ),
    ])?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn fix() -> Result<ExitCode> {
    must(cargo().args(["fmt", "--all"]))?;
    must(cargo().args(["fmt", "--manifest-path", GUEST]))?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--fix",
        "--allow-dirty",
        "--allow-staged",
    ];
    must(cargo().args(clippy))?;
    must(cargo().args(["fmt", "--all"]))?;
    Ok(ExitCode::SUCCESS)
}
