//! What a run was measured on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// The machine of a run, as far as figures depend on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// The processor's own name.
    pub cpu: String,
    /// Processors that may be used.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Which KVM there is: kvm_intel, kvm_amd, kvm_pvm or none.
    pub kvm: String,
    /// Runnable processes, averaged over the last minute: more than a few mean that figures were measured under load.
    pub load_1m: f64,
}

impl Machine {
    /// This machine, now. What cannot be read is empty or 0.
    #[must_use]
    pub fn examine() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            cpu: after_colon(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory_mib(&read("/proc/meminfo")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            kvm: kvm_module(),
            load_1m: load(&read("/proc/loadavg")),
        }
    }

    /// The first record of a run: the machine, and the version of each program that took part.
    #[must_use]
    pub fn record(&self, versions: &BTreeMap<String, String>, run: &str) -> String {
        serde_json::json!({ "machine": self, "versions": versions, "run": run }).to_string()
    }

    /// The same for people.
    #[must_use]
    pub fn line(&self, versions: &BTreeMap<String, String>, run: &str) -> String {
        let versions: Vec<String> =
            versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        format!(
            "run {run}: {}, {} cores, {} MiB, Linux {}, {}, load {:.1}; {}",
            self.cpu,
            self.cores,
            self.memory_mib,
            self.kernel,
            self.kvm,
            self.load_1m,
            versions.join(", ")
        )
    }
}

fn kvm_module() -> String {
    let loaded = |name: &&str| Path::new("/sys/module").join(name).exists();
    let found = ["kvm_pvm", "kvm_intel", "kvm_amd"].into_iter().find(loaded);
    found.unwrap_or("none").to_owned()
}

fn after_colon(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

fn memory_mib(meminfo: &str) -> u64 {
    let kib = after_colon(meminfo, "MemTotal").and_then(|text| text.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0u64) / 1024
}

fn load(loadavg: &str) -> f64 {
    loadavg.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_tells() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(after_colon(cpuinfo, "model name").as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(memory_mib("MemTotal:       2048000 kB\nMemFree: 1 kB\n"), 2000);
        assert!((load("0.52 0.40 0.30 1/200 77\n") - 0.52).abs() < 1e-9);
        assert_eq!((memory_mib(""), after_colon("", "x")), (0, None));
    }

    #[test]
    fn the_record_names_machine_versions_and_run() {
        let versions = BTreeMap::from([("qemu".to_owned(), "7.2".to_owned())]);
        let machine = Machine::examine();
        let record: serde_json::Value = serde_json::from_str(&machine.record(&versions, "r9")).unwrap();
        assert_eq!((&record["versions"]["qemu"], &record["run"]), (&"7.2".into(), &"r9".into()));
        assert_eq!(record["machine"]["cores"], machine.cores);
        assert!(machine.line(&versions, "r9").contains("qemu 7.2"));
    }
}
