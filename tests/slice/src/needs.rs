//! What the tests need, and what they say when it is not there.

use std::path::{Path, PathBuf};

/// Folder of our programs, set by `cargo xtask test`.
const PROGRAMS: &str = "MYCELIUM_PROGRAMS";

/// Debian's programs the tests drive, with the package of each.
const TOOLS: [(&str, &str); 8] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("redis-cli", "redis-tools"),
    ("nsenter", "util-linux"),
];
/// Where Debian has the CNI plugins.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Our programs' folder, or `None` with the reason printed so that skips can be counted.
#[must_use]
pub fn programs() -> Option<PathBuf> {
    let missing = missing();
    if let Some(what) = missing {
        eprintln!("SKIPPED: {what}");
        return None;
    }
    std::env::var_os(PROGRAMS).map(PathBuf::from)
}

fn missing() -> Option<String> {
    if std::env::var_os(PROGRAMS).is_none() {
        return Some("no programs to test; run `cargo xtask test --suite slice`".to_owned());
    }
    if !Path::new("/dev/kvm").exists() {
        return Some("no /dev/kvm".to_owned());
    }
    if !Path::new(CNI_PLUGINS).join("bridge").exists() {
        return Some("no CNI plugins; install containernetworking-plugins".to_owned());
    }
    let tool = TOOLS.iter().find(|(program, _)| !in_path(program))?;
    Some(format!("no {}; install {}", tool.0, tool.1))
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
