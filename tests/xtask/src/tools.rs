//! Programs that are not ours: what they are for, and how they are got.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh::{cargo, in_path, must};

/// A program from a Debian package.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
    pub(crate) reason: &'static str,
}

pub(crate) const GCC: Tool =
    Tool { program: "cc", package: "gcc", reason: "links programs and assembles test guests" };
/// Not in [`ALL`]: only fuzzing needs it.
pub(crate) const GXX: Tool = Tool { program: "c++", package: "g++", reason: "builds libFuzzer" };
pub(crate) const IP: Tool = Tool { program: "ip", package: "iproute2", reason: "lays test networks" };
pub(crate) const TCPDUMP: Tool =
    Tool { program: "tcpdump", package: "tcpdump", reason: "shows which node really sends" };
pub(crate) const QEMU: Tool = Tool {
    program: "qemu-system-x86_64",
    package: "qemu-system-x86",
    reason: "emulates the hosts of the nested lab, and is what our VMM is compared with",
};
pub(crate) const REDIS: Tool =
    Tool { program: "redis-benchmark", package: "redis-tools", reason: "is the stock client of the tests" };

pub(crate) const CONTAINERD: Tool =
    Tool { program: "containerd", package: "containerd", reason: "runs the pods of the tests" };
pub(crate) const RUNC: Tool =
    Tool { program: "runc", package: "runc", reason: "is what a pod is compared with" };
pub(crate) const CNI: Tool = Tool {
    program: "/usr/lib/cni/bridge",
    package: "containernetworking-plugins",
    reason: "gives the pods of the tests their network",
};
pub(crate) const IPTABLES: Tool =
    Tool { program: "iptables", package: "iptables", reason: "is what CNI's portmap plugin uses" };
pub(crate) const NFT: Tool =
    Tool { program: "nft", package: "nftables", reason: "gives a pod's address to the VM of its group" };
pub(crate) const BUSYBOX: Tool =
    Tool { program: "busybox", package: "busybox-static", reason: "is the ordinary container of the tests" };
pub(crate) const PROTOC: Tool = Tool {
    program: "protoc",
    package: "protobuf-compiler",
    reason: "builds the tests' Kubernetes CRI client",
};
pub(crate) const MMDEBSTRAP: Tool =
    Tool { program: "mmdebstrap", package: "mmdebstrap", reason: "installs Debian into disk images" };
pub(crate) const DEBUGFS: Tool =
    Tool { program: "debugfs", package: "e2fsprogs", reason: "writes the file systems of disk images" };

/// Everything, for `cargo xtask doctor`.
pub(crate) const ALL: [Tool; 14] = [
    GCC, IP, TCPDUMP, QEMU, REDIS, CONTAINERD, RUNC, CNI, IPTABLES, NFT, BUSYBOX, PROTOC, MMDEBSTRAP, DEBUGFS,
];

/// Installs what is missing, after saying so. Needs root on Debian; otherwise says what to install.
pub(crate) fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !in_path(tool.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    for tool in &missing {
        eprintln!("missing: {} (package {}): {}", tool.program, tool.package, tool.reason);
    }
    let by_hand = format!("install by hand: apt-get install {}", packages.join(" "));
    if !in_path("apt-get") || !is_root() {
        bail!("{by_hand}");
    }
    eprintln!("installing {}", packages.join(" "));
    must(Command::new("apt-get").args(["update", "-qq"])).with_context(|| by_hand.clone())?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&packages);
    must(install.env("DEBIAN_FRONTEND", "noninteractive")).context(by_hand)
}

/// Installs a cargo subcommand from source when it is not there.
pub(crate) fn ensure_cargo_tool(program: &str, reason: &str) -> Result<()> {
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        std::path::PathBuf::from,
    );
    if in_path(program) || home.join("bin").join(program).is_file() {
        return Ok(());
    }
    eprintln!("installing {program} ({reason}); this takes a few minutes, once");
    must(cargo().args(["install", "--locked", program]))
        .with_context(|| format!("install by hand: cargo install --locked {program}"))
}

/// Whether this process may make namespaces and taps.
pub(crate) fn is_root() -> bool {
    // The owner of one's own /proc folder is the effective user.
    std::os::unix::fs::MetadataExt::uid(&match std::fs::metadata("/proc/self") {
        Ok(metadata) => metadata,
        Err(_) => return false,
    }) == 0
}
