//! Counting what pods could leave behind on a machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::machine::run;

/// How many there are, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count(pub BTreeMap<&'static str, Vec<String>>);

/// Counts in the calling thread's machine; containerd's state is below `dir`.
#[must_use]
pub fn count(dir: &Path) -> Count {
    let mut found = BTreeMap::new();
    found.insert("processes", processes());
    found.insert("mounts", mounts(dir));
    found.insert("interfaces", interfaces());
    found.insert("cgroups", cgroups());
    found.insert("sockets", [entries("/run/containerd/s"), entries("/run/endophyte/tasks")].concat());
    found.insert("bundles", entries(dir.join("state/io.containerd.runtime.v2.task/k8s.io")));
    Count(found)
}

impl Count {
    /// What is here and not in an earlier count, for people.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> String {
        let more = self.0.iter().map(|(kind, now)| {
            let old = before.0.get(kind).cloned().unwrap_or_default();
            let new: Vec<_> = now.iter().filter(|item| !old.contains(item)).cloned().collect();
            (kind, new)
        });
        let more = more.filter(|(_, new)| !new.is_empty());
        more.map(|(kind, new)| format!("{kind}: {}\n", new.join(" "))).collect()
    }

    /// The numbers.
    #[must_use]
    pub fn numbers(&self) -> String {
        let each = self.0.iter().map(|(kind, found)| format!("{kind} {}", found.len()));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// Shims, VMMs and what runs in ordinary pods, of this machine: other tests have a network of their own.
fn processes() -> Vec<String> {
    let here = fs::read_link("/proc/thread-self/ns/mnt").ok();
    let pids = entries("/proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    let ours = pids.filter(|pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok() == here);
    let named = ours.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let program = line.split(|b| *b == 0).next()?;
        let name = String::from_utf8_lossy(program).rsplit('/').next()?.to_owned();
        let is_one = name == "endophyte" || name.starts_with("containerd-shim");
        // A zombie has no command line; it counts by its state.
        is_one.then(|| format!("{name}({pid})"))
    });
    named.collect()
}

fn mounts(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect()
}

fn interfaces() -> Vec<String> {
    let shown = run("ip", &["-j", "link", "show"]).unwrap_or_default();
    let parsed: Vec<serde_json::Value> = serde_json::from_str(&shown).unwrap_or_default();
    let names = parsed.iter().filter_map(|link| link["ifname"].as_str());
    // The bridge stays for the next pod, as CNI means it to.
    names.filter(|name| *name != "cni0").map(str::to_owned).collect()
}

/// Of every hierarchy, below the tests' own parent. The pods' own parents are kubelet's to remove; the containers' are
/// ours.
fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    for hierarchy in entries("/sys/fs/cgroup") {
        for pod in entries(format!("/sys/fs/cgroup/{hierarchy}/endophyte-tests")) {
            let path = format!("/sys/fs/cgroup/{hierarchy}/endophyte-tests/{pod}");
            let inside = entries(&path).into_iter().filter(|name| Path::new(&path).join(name).is_dir());
            found.extend(inside.map(|name| format!("{path}/{name}")));
        }
    }
    found
}

fn entries(dir: impl AsRef<Path>) -> Vec<String> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    listed.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
