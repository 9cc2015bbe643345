//! `cargo xtask doctor`.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::sh::in_path;
use crate::tools::{ALL, is_root};

pub(crate) fn run() -> Result<ExitCode> {
    let line = |ok: bool, what: &str, hint: &str| {
        println!(
            "{} {what}{}",
            if ok { "ok     " } else { "missing" },
            if ok { String::new() } else { format!(": {hint}") }
        );
    };
    line(is_root(), "root", "namespaces and taps need it: run the demo and the KVM tests with sudo");
    line(Path::new("/dev/kvm").exists(), "/dev/kvm", "the native guest needs it; the nested lab does not");
    line(Path::new("/dev/net/tun").exists(), "/dev/net/tun", "load the tun module");
    for tool in ALL {
        line(
            in_path(tool.program),
            tool.program,
            &format!("apt-get install {} ({})", tool.package, tool.reason),
        );
    }
    line(in_path("cargo-nextest"), "cargo-nextest", "tests fall back to cargo test without it");
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    println!("        {}", memory.lines().next().unwrap_or("memory unknown"));
    if let Ok(version) = Command::new("rustc").arg("--version").output() {
        print!("        {}", String::from_utf8_lossy(&version.stdout));
    }
    println!("what this host offers a VM: endophyte doctor");
    Ok(ExitCode::SUCCESS)
}
