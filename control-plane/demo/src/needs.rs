//! What the demo needs beside itself, and how it is got.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::options::{DemoOptions, GuestKind};
use crate::shell::run;

struct Need {
    program: &'static str,
    package: &'static str,
    reason: &'static str,
}

const NATIVE: &[Need] = &[
    Need { program: "ip", package: "iproute2", reason: "lays the network between the nodes" },
    Need { program: "tcpdump", package: "tcpdump", reason: "shows which node really sends" },
    Need {
        program: "unshare",
        package: "util-linux",
        reason: "gives each node its own processes and network",
    },
];
const LINUX: &[Need] = &[
    Need { program: "qemu-system-x86_64", package: "qemu-system-x86", reason: "emulates the two hosts" },
    Need { program: "ip", package: "iproute2", reason: "lays the network between the hosts" },
    Need { program: "tcpdump", package: "tcpdump", reason: "shows which host really sends" },
];

/// Installs what is missing, after saying so; root on Debian only.
pub(crate) fn ensure(options: &DemoOptions) -> Result<()> {
    let guest = options.guest;
    if !rustix::process::geteuid().is_root() {
        bail!("the demo makes network namespaces and taps and needs root for it: run it with sudo");
    }
    if guest == GuestKind::Native && !Path::new("/dev/kvm").exists() {
        let without =
            if options.network { "" } else { "; --guest linux needs none, it runs on emulated hosts" };
        bail!(
            "/dev/kvm is missing: the native guest needs KVM (enable virtualisation, or load kvm_amd or kvm_intel){without}"
        );
    }
    let list = if guest == GuestKind::Native { NATIVE } else { LINUX };
    let missing: Vec<&Need> = list.iter().filter(|need| !in_path(need.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

fn install(missing: &[&Need]) -> Result<()> {
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    for need in missing {
        let _ = writeln!(std::io::stderr(), "installing {} ({})", need.package, need.reason);
    }
    let by_hand = || format!("install by hand: apt-get install {}", packages.join(" "));
    run(&["apt-get", "update", "-qq"]).with_context(by_hand)?;
    let mut words = vec!["apt-get", "install", "-y", "-qq", "--no-install-recommends"];
    words.extend(&packages);
    run(&words).with_context(by_hand).map(drop)
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}
