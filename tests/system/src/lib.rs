//! What the system tests share: finding our programs, saying why a test is skipped, playing the demo.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub mod guest;
pub mod process;
pub mod vm;

/// Folder of our programs, set by `cargo xtask test`.
const PROGRAMS: &str = "MYCELIUM_PROGRAMS";
/// Set when a suite is to run whole.
const WHOLE: &str = "MYCELIUM_WHOLE_SUITE";

/// One of our programs; `None` (with the reason printed) when the tests were not started by `cargo xtask test`.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os(PROGRAMS) else {
        skip("no programs to test; run `cargo xtask test --suite failover`");
        return None;
    };
    let path = Path::new(&folder).join(name);
    assert!(path.is_file(), "{} is missing although {PROGRAMS} names its folder", path.display());
    Some(path)
}

/// Whether more than a slice is asked for.
#[must_use]
pub fn whole_suite() -> bool {
    std::env::var_os(WHOLE).is_some()
}

/// Says why a test does not run, in a form that can be counted.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Whether this machine can run VMs natively; says so if not.
#[must_use]
pub fn has_kvm() -> bool {
    let has = Path::new("/dev/kvm").exists();
    if !has {
        skip("no /dev/kvm");
    }
    has
}

/// How far a thread is confined, by what the kernel shows of it.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// The thread's name.
    pub name: String,
    /// Whether its system calls are filtered.
    pub filtered: bool,
    /// By how many filters.
    pub filters: u64,
    /// Whether it can regain rights by executing something.
    pub no_new_privileges: bool,
    /// Its permitted capabilities, as bits.
    pub capabilities: u64,
    /// Its effective user.
    pub user: u64,
}

/// All threads of a process. One that ends meanwhile is left out.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn threads_of(process: u32) -> Vec<Confinement> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("the process runs");
    tasks
        .filter_map(|task| confinement(&std::fs::read_to_string(task.ok()?.path().join("status")).ok()?))
        .collect()
}

fn confinement(status: &str) -> Option<Confinement> {
    let field = |name: &str| {
        let mut fields = status.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(found, _)| *found == name).map(|(_, value)| value.trim())
    };
    let number = |name, place, radix| {
        let value = field(name)?.split_whitespace().nth(place)?;
        u64::from_str_radix(value, radix).ok()
    };
    Some(Confinement {
        name: field("Name")?.to_owned(),
        filtered: number("Seccomp", 0, 10)? == 2,
        filters: number("Seccomp_filters", 0, 10)?,
        no_new_privileges: number("NoNewPrivs", 0, 10)? == 1,
        capabilities: number("CapPrm", 0, 16)?,
        user: number("Uid", 1, 10)?,
    })
}

/// Plays the demo and returns its verdict.
///
/// # Panics
/// When it ends without one, or not as promised.
#[must_use]
pub fn demo(options: &[&str]) -> Option<Value> {
    let mycelium = program("mycelium")?;
    let output = run(Command::new(mycelium).arg("demo").arg("--json").args(options));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().last().unwrap_or_else(|| panic!("no verdict for {options:?}:\n{told}"));
    println!("{last}");
    let verdict: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}\n{told}"));
    assert!(output.status.success(), "{options:?}: {last}\n{told}");
    Some(verdict)
}

/// Runs a program to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"))
}

/// A number in a verdict.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn number(verdict: &Value, pointer: &str) -> f64 {
    verdict.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer} in {verdict}"))
}
