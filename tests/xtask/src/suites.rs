//! `cargo xtask test`: the suites, and the slice of all of them that CI runs.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::build::{self, Built};
use crate::sh::{Step, cargo, in_path, must, steps};
use crate::tools;

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Run these suites whole, instead of a slice of every one.
    #[arg(long, value_enum)]
    suite: Vec<Suite>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Unit, property and loopback tests, and the VMM's tests on KVM.
    Unit,
    /// The failover protocol by seeds, and the proof that planted faults are found.
    Sim,
    /// Whole protected pairs on this machine's KVM: every fault, bad input, stock redis tools.
    Failover,
    /// The product from the outside: pods on a real containerd, node daemons in namespaces.
    Slice,
    /// Stock Linux in the nested lab, between two emulated hosts.
    Lab,
}

/// How much of a suite to run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Slice,
    Whole,
}

/// The system tests that need nothing but this machine; `lab` needs emulated hosts.
const SYSTEM_BINARIES: [&str; 9] = [
    "failover",
    "disks",
    "bad_input",
    "redis_tools",
    "runtime_api",
    "create",
    "hotplug",
    "sandbox",
    "migrate",
];

pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    tools::ensure(&tools::ALL)?;
    let (suites, size) = if args.suite.is_empty() {
        (vec![Suite::Unit, Suite::Sim, Suite::Failover, Suite::Slice, Suite::Lab], Size::Slice)
    } else {
        (args.suite.clone(), Size::Whole)
    };
    let plan = suites.into_iter().map(|suite| match suite {
        Suite::Unit => ("unit", step(unit)),
        Suite::Sim => ("sim", step(move || sim(size))),
        Suite::Failover => ("failover", step(move || system(&SYSTEM_BINARIES, size))),
        Suite::Slice => ("slice", step(move || slice(size))),
        Suite::Lab => ("lab", step(move || lab(size))),
    });
    let ok = steps(plan.collect())?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn step(step: impl FnOnce() -> Result<()> + 'static) -> Step {
    Box::new(step)
}

/// Everything but the tests that need the machine for themselves.
fn unit() -> Result<()> {
    let built = build::programs_and_tests()?;
    must(&mut nextest(
        &built,
        Size::Slice,
        "not (package(system-tests) | package(mycelium-sim) | package(slice-tests))",
    )?)?;
    must(Command::new(built.program("mycelium-fuzz")).arg("replay"))?;
    must(cargo().args(["test", "--quiet", "--workspace", "--doc"]))
}

fn sim(size: Size) -> Result<()> {
    let built = build::programs_and_tests()?;
    let seeds = if size == Size::Whole { "2000" } else { "400" };
    must(Command::new(built.program("sim")).args(["--seeds", seeds]))?;
    let sabotaged = ["run", "--quiet", "-p", "mycelium-sim", "--bin", "sim", "--features", "sabotage"];
    must(cargo().args(sabotaged).args(["--", "--sabotage", "all"]))?;
    must(&mut nextest(&built, size, "package(mycelium-sim)")?)
}

/// System tests: they need the machine for themselves, one after the other.
fn system(binaries: &[&str], size: Size) -> Result<()> {
    let built = build::programs_and_tests()?;
    let wanted: Vec<String> = binaries.iter().map(|binary| format!("binary({binary})")).collect();
    let filter = format!("package(system-tests) & ({})", wanted.join(" | "));
    must(nextest(&built, size, &filter)?.arg("--no-capture"))
}

/// Pods and node daemons. They share containerd's socket folder with nobody, but the processors with everybody.
fn slice(size: Size) -> Result<()> {
    let built = build::programs_and_tests()?;
    must(nextest(&built, size, "package(slice-tests)")?.arg("--no-capture"))
}

/// Slice: Debian's kernel boots on `endophyte` in an emulated host and answers from outside. Whole: the lab's own tests, Debian
/// from its own disk, and takeovers between two hosts.
fn lab(size: Size) -> Result<()> {
    let built = build::programs_and_tests()?;
    let binaries = if size == Size::Whole {
        "binary(linux_guest) | binary(hosts) | binary(debian)"
    } else {
        "binary(linux_guest)"
    };
    let mut tests = nextest(&built, size, &format!("package(mycelium-lab) & ({binaries})"))?;
    tests.args(["--run-ignored", "only", "--no-capture"]).env("MYCELIUM_STATIC_BINARIES", &built.folder);
    must(&mut tests)?;
    if size == Size::Whole { system(&["lab"], size) } else { Ok(()) }
}

/// nextest runs tests in processes of their own, which the network namespaces of the lab need. Always of the whole workspace:
/// see [`build::programs_and_tests`].
fn nextest(built: &Built, size: Size, filter: &str) -> Result<Command> {
    if !in_path("cargo-nextest") {
        tools::ensure_cargo_tool("cargo-nextest", "runs every test in a process of its own")?;
    }
    let mut command = cargo();
    command
        .args(["nextest", "run", "--workspace", "--lib", "--bins", "--tests", "-E", filter])
        .env("MYCELIUM_PROGRAMS", &built.folder);
    // Shown only for tests that fail: what their daemons and containerds said last.
    command.env("SLICE_LOG", "1");
    if size == Size::Whole {
        command.env("MYCELIUM_WHOLE_SUITE", "1");
    }
    if std::env::var_os("CI").is_some() && !tools::is_root() {
        bail!("CI runs the tests as root: namespaces and taps need it");
    }
    Ok(command)
}
