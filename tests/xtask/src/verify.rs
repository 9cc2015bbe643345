//! `cargo xtask verify` and `fix`: one checks and changes nothing, the other rewrites.

use std::process::ExitCode;

use anyhow::Result;

use crate::sh::{cargo, must, steps};
use crate::tools::ensure_cargo_tool;

const GUEST: &str = "guest-images/native-guest/Cargo.toml";
const GUEST_CONFIG: &str = "guest-images/native-guest/.cargo/config.toml";

/// The guest is a workspace of its own: the outer one's target and flags must not reach it.
fn guest_cargo() -> std::process::Command {
    let mut cargo = cargo();
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    cargo
}

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
        (
            "lints of the guest",
            Box::new(|| {
                let mut clippy = guest_cargo();
                clippy.args(["clippy", "--release", "--manifest-path", GUEST, "--config", GUEST_CONFIG]);
                must(clippy.args(["--", "-D", "warnings"]))
            }),
        ),
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
