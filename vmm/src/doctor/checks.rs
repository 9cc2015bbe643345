//! The checks. None needs another to have passed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_TSC_CONTROL,
};
use kvm_ioctls::Kvm;

use super::{Check, Verdict, probe};
use crate::kvm;

/// Speeds, in millions of guest instructions per second, below which a ring counts as interpreted.
const INTERPRETED_MIPS: f64 = 50.0;

pub(super) fn all() -> Vec<Check> {
    let mut checks = vec![device()];
    if let Ok(kvm) = kvm::open() {
        checks.extend([kind(), ring_speed(&kvm, 0), ring_speed(&kvm, 3)]);
        checks.extend([manual_protect(&kvm), dirty_ring(&kvm), tsc_scaling(&kvm)]);
    }
    checks.extend([userfaultfd(), tap(), namespaces(), memory()]);
    checks
}

fn check(name: &'static str, verdict: Verdict, found: impl Into<String>, remedy: &'static str) -> Check {
    Check { name, verdict, found: found.into(), remedy }
}

fn device() -> Check {
    match kvm::open() {
        Ok(kvm) => check("/dev/kvm", Verdict::Ok, format!("API version {}", kvm.get_api_version()), ""),
        // The error text has its remedy.
        Err(error) => check("/dev/kvm", Verdict::Fail, error.to_string(), ""),
    }
}

fn kind() -> Check {
    const KINDS: [(&str, &str); 3] =
        [("kvm_intel", "Intel VT-x"), ("kvm_amd", "AMD SVM"), ("kvm_pvm", "software virtualisation (PVM)")];
    let loaded: Vec<_> =
        KINDS.iter().filter(|(module, _)| Path::new("/sys/module").join(module).exists()).collect();
    match loaded.as_slice() {
        [] => check("KVM kind", Verdict::Warn, "unknown: no kvm module in /sys/module", ""),
        [("kvm_pvm", name)] => {
            let remedy = "guests made for it run at full speed; a stock Linux guest needs VT-x or SVM";
            check("KVM kind", Verdict::Warn, format!("kvm_pvm: {name}"), remedy)
        }
        several => {
            let names: Vec<_> = several.iter().map(|(module, name)| format!("{module}: {name}")).collect();
            check("KVM kind", Verdict::Ok, names.join(", "), "")
        }
    }
}

fn ring_speed(kvm: &Kvm, ring: u8) -> Check {
    let name = if ring == 0 { "guest ring 0 speed" } else { "guest ring 3 speed" };
    match probe::speed(kvm, ring) {
        Ok(speed) if speed.mips() >= INTERPRETED_MIPS => check(name, Verdict::Ok, speed.to_string(), ""),
        Ok(speed) => {
            let remedy = "the kernel interprets this code; run guests that stay out of it";
            check(name, Verdict::Warn, speed.to_string(), remedy)
        }
        Err(reason) => check(name, Verdict::Warn, format!("not measured: {reason}"), ""),
    }
}

fn manual_protect(kvm: &Kvm) -> Check {
    match kvm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into()) {
        0 => check(
            "dirty log protection",
            Verdict::Warn,
            "automatic only: reading clears",
            "use Linux 5.0 or newer for shorter pauses",
        ),
        flags => check("dirty log protection", Verdict::Ok, format!("manual (flags {flags})"), ""),
    }
}

fn dirty_ring(kvm: &Kvm) -> Check {
    let bytes =
        [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING].map(|c| kvm.check_extension_raw(c.into()));
    match bytes.into_iter().max() {
        Some(most @ 1..) => check("dirty ring", Verdict::Ok, format!("up to {most} bytes per vCPU"), ""),
        _ => check(
            "dirty ring",
            Verdict::Warn,
            "not offered",
            "use Linux 5.11 or newer; the bitmap is used instead",
        ),
    }
}

fn tsc_scaling(kvm: &Kvm) -> Check {
    if kvm.check_extension_raw(KVM_CAP_TSC_CONTROL.into()) > 0 {
        return check("TSC scaling", Verdict::Ok, "offered", "");
    }
    let remedy = "pair nodes whose time stamp counters run at the same frequency";
    check("TSC scaling", Verdict::Warn, "not offered: a guest's counter runs at the host's frequency", remedy)
}

fn userfaultfd() -> Check {
    if File::open("/dev/userfaultfd").is_ok() {
        return check("userfaultfd", Verdict::Ok, "/dev/userfaultfd", "");
    }
    match fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").as_deref().map(str::trim) {
        Ok("1") => check("userfaultfd", Verdict::Ok, "for everybody", ""),
        Ok(_) => check(
            "userfaultfd",
            Verdict::Warn,
            "for root only",
            "run as root, or give access to /dev/userfaultfd",
        ),
        Err(_) => check("userfaultfd", Verdict::Warn, "not in this kernel", "use Linux 5.7 or newer"),
    }
}

fn tap() -> Check {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => check("tap", Verdict::Ok, "/dev/net/tun opens", ""),
        Err(e) => {
            let remedy = "modprobe tun, and run as root or with CAP_NET_ADMIN; VMs without network run";
            check("tap", Verdict::Warn, format!("/dev/net/tun: {e}"), remedy)
        }
    }
}

fn namespaces() -> Check {
    let missing: Vec<_> = ["net", "pid", "mnt"]
        .into_iter()
        .filter(|kind| !Path::new("/proc/self/ns").join(kind).exists())
        .collect();
    if missing.is_empty() {
        return check("namespaces", Verdict::Ok, "net, pid and mount", "");
    }
    let remedy = "use a kernel with CONFIG_NAMESPACES; only the demo needs them";
    check("namespaces", Verdict::Warn, format!("missing: {}", missing.join(", ")), remedy)
}

fn memory() -> Check {
    match available_mib() {
        Ok(Some(mib)) => check("memory", Verdict::Ok, format!("{mib} MiB available"), ""),
        Ok(None) => check("memory", Verdict::Warn, "/proc/meminfo does not tell", ""),
        Err(e) => check("memory", Verdict::Warn, format!("/proc/meminfo: {e}"), ""),
    }
}

fn available_mib() -> io::Result<Option<u64>> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    Ok(line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map(|kib| kib >> 10))
}
