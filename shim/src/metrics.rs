//! What a task uses, as the message containerd and kubelet understand: the Metrics of cgroups v1 or v2.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::cgroup::{Cgroup, Dirs};

/// Reads the cgroup.
pub(crate) fn read(cgroup: &Cgroup) -> Any {
    match cgroup.dirs {
        Dirs::V1(_) => pack("io.containerd.cgroups.v1.Metrics", &read_v1(cgroup)),
        Dirs::V2(_) => pack("io.containerd.cgroups.v2.Metrics", &read_v2(cgroup)),
    }
}

fn pack(name: &str, message: &impl Message) -> Any {
    let value = message.write_to_bytes().unwrap_or_default();
    Any { type_url: name.to_owned(), value, ..Any::default() }
}

fn read_v1(cgroup: &Cgroup) -> v1::Metrics {
    let one = |controller, name| number(cgroup.file(controller, name).as_deref());
    let stat = cgroup.file("memory", "memory.stat").unwrap_or_default();
    let ticks = cgroup.file("cpuacct", "cpuacct.stat").unwrap_or_default();
    let throttled = cgroup.file("cpu", "cpu.stat").unwrap_or_default();
    let memory = v1::MemoryStat {
        cache: keyed(&stat, "cache"),
        rss: keyed(&stat, "rss"),
        mapped_file: keyed(&stat, "mapped_file"),
        pg_fault: keyed(&stat, "pgfault"),
        pg_maj_fault: keyed(&stat, "pgmajfault"),
        inactive_file: keyed(&stat, "inactive_file"),
        active_file: keyed(&stat, "active_file"),
        total_cache: keyed(&stat, "total_cache"),
        total_rss: keyed(&stat, "total_rss"),
        total_pg_fault: keyed(&stat, "total_pgfault"),
        total_pg_maj_fault: keyed(&stat, "total_pgmajfault"),
        total_inactive_file: keyed(&stat, "total_inactive_file"),
        total_active_file: keyed(&stat, "total_active_file"),
        hierarchical_memory_limit: keyed(&stat, "hierarchical_memory_limit"),
        usage: MessageField::some(v1::MemoryEntry {
            limit: one("memory", "memory.limit_in_bytes"),
            usage: one("memory", "memory.usage_in_bytes"),
            max: one("memory", "memory.max_usage_in_bytes"),
            failcnt: one("memory", "memory.failcnt"),
            ..v1::MemoryEntry::default()
        }),
        ..v1::MemoryStat::default()
    };
    let usage = v1::CPUUsage {
        total: one("cpuacct", "cpuacct.usage"),
        user: keyed(&ticks, "user") * NANOS_PER_TICK,
        kernel: keyed(&ticks, "system") * NANOS_PER_TICK,
        ..v1::CPUUsage::default()
    };
    let throttling = v1::Throttle {
        periods: keyed(&throttled, "nr_periods"),
        throttled_periods: keyed(&throttled, "nr_throttled"),
        throttled_time: keyed(&throttled, "throttled_time"),
        ..v1::Throttle::default()
    };
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: one("pids", "pids.current"),
            limit: one("pids", "pids.max"),
            ..v1::PidsStat::default()
        }),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(usage),
            throttling: MessageField::some(throttling),
            ..v1::CPUStat::default()
        }),
        memory: MessageField::some(memory),
        ..v1::Metrics::default()
    }
}

/// `cpuacct.stat` counts in USER_HZ, which is 100 on every Linux ABI we run on.
const NANOS_PER_TICK: u64 = 10_000_000;

fn read_v2(cgroup: &Cgroup) -> v2::Metrics {
    let one = |name| number(cgroup.file("", name).as_deref());
    let stat = cgroup.file("", "memory.stat").unwrap_or_default();
    let cpu = cgroup.file("", "cpu.stat").unwrap_or_default();
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: one("pids.current"),
            limit: one("pids.max"),
            ..v2::PidsStat::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: keyed(&cpu, "usage_usec"),
            user_usec: keyed(&cpu, "user_usec"),
            system_usec: keyed(&cpu, "system_usec"),
            nr_periods: keyed(&cpu, "nr_periods"),
            nr_throttled: keyed(&cpu, "nr_throttled"),
            throttled_usec: keyed(&cpu, "throttled_usec"),
            ..v2::CPUStat::default()
        }),
        memory: MessageField::some(v2::MemoryStat {
            anon: keyed(&stat, "anon"),
            file: keyed(&stat, "file"),
            shmem: keyed(&stat, "shmem"),
            inactive_file: keyed(&stat, "inactive_file"),
            active_file: keyed(&stat, "active_file"),
            pgfault: keyed(&stat, "pgfault"),
            pgmajfault: keyed(&stat, "pgmajfault"),
            usage: one("memory.current"),
            usage_limit: one("memory.max"),
            ..v2::MemoryStat::default()
        }),
        ..v2::Metrics::default()
    }
}

/// A file with one number; "max" is no limit.
fn number(text: Option<&str>) -> u64 {
    match text.map(str::trim) {
        Some("max") => u64::MAX,
        Some(number) => number.parse().unwrap_or(0),
        None => 0,
    }
}

/// The number after a word at the beginning of a line.
fn keyed(text: &str, key: &str) -> u64 {
    let of = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(of).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_whole_word() {
        let stat = "cache 5\ntotal_cache 7\nrss_huge 1\nrss 9\n";
        assert_eq!((keyed(stat, "cache"), keyed(stat, "rss"), keyed(stat, "swap")), (5, 9, 0));
        assert_eq!((number(Some("max\n")), number(Some("12\n")), number(None)), (u64::MAX, 12, 0));
    }
}
