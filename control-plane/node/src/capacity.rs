//! What this node has to give.

use std::fs::{self, File};

use mycelium_spores::NodeReport;

/// Looks at memory, processors and KVM now.
pub(crate) fn look() -> NodeReport {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    NodeReport {
        free_memory_bytes: field(&meminfo, "MemAvailable:"),
        total_memory_bytes: field(&meminfo, "MemTotal:"),
        vcpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        kvm: File::options().read(true).write(true).open("/dev/kvm").is_ok(),
        ..NodeReport::default()
    }
}

/// A field of `/proc/meminfo`, which counts in KiB.
fn field(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(field("MemTotal:       24 kB\nMemAvailable:   7 kB\n", "MemAvailable:"), 7 * 1024);
        assert_eq!(field("nothing", "MemAvailable:"), 0);
        assert!(look().total_memory_bytes > 0);
    }
}
