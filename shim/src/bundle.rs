//! What containerd and Kubernetes say about a container, from its bundle's `config.json`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::limits;

const CONTAINER_TYPE: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
const SANDBOX_ID: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];
/// Guest memory, as Kubernetes writes quantities: `512Mi`.
const MEMORY: &str = "endophyte.mycelium.io/memory";
/// Pods of one group are one VM.
const GROUP: &str = "endophyte.mycelium.io/group";
/// What a group's VM does without a replica.
const ON_LOSS: &str = "endophyte.mycelium.io/on-loss";
const NAMESPACE: [&str; 2] = ["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"];
const MIB: u64 = 1 << 20;

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not an OCI runtime spec: {source}")]
    Syntax { path: PathBuf, source: serde_json::Error },
    #[error("annotation {name}: {value:?} {reason}")]
    Annotation { name: &'static str, value: String, reason: String },
    #[error("guest memory of {mib} MiB is not between {least} and {most} MiB; set the container's memory limit or the annotation {MEMORY}",
        least = limits::RAM_MIB_MIN, most = limits::RAM_MIB_MAX)]
    Memory { mib: u64 },
}

/// A container's part in its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The pause container: it stands for the pod and runs nothing.
    Sandbox,
    /// A container of the pod that this sandbox stands for.
    Member { sandbox: String },
    /// A container outside any pod.
    Alone,
}

/// The parts of the spec the shim needs.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) role: Role,
    /// The image's mount point; relative to the bundle, or absolute.
    pub(crate) root: PathBuf,
    /// The network namespace to take the interface from. Without one the VM has no network card: the host's own
    /// interfaces are never touched.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) cgroups_path: Option<String>,
    pub(crate) ram_mib: u64,
    pub(crate) vcpus: u64,
    pub(crate) hostname: String,
    /// The group this pod belongs to.
    pub(crate) group: Option<Group>,
}

/// A group of pods that are one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) name: String,
    /// The VM's name, which no group of another Kubernetes namespace has.
    pub(crate) vm: String,
    /// degrade or halt.
    pub(crate) on_loss: String,
}

impl Config {
    pub(crate) fn load(bundle: &Path) -> Result<Self, BundleError> {
        let path = bundle.join("config.json");
        let mut text = Vec::new();
        let read = File::open(&path).and_then(|f| f.take(limits::CONFIG_BYTES).read_to_end(&mut text));
        if let Err(source) = read {
            return Err(BundleError::Read { path, source });
        }
        let spec: Spec =
            serde_json::from_slice(&text).map_err(|source| BundleError::Syntax { path, source })?;
        Self::of(&spec)
    }

    fn of(spec: &Spec) -> Result<Self, BundleError> {
        let linux = spec.linux().as_ref();
        let resources = linux.and_then(|l| l.resources().as_ref());
        let quota =
            resources.and_then(|r| r.cpu().as_ref()).and_then(|cpu| Some((cpu.quota()?, cpu.period()?)));
        let limit = resources.and_then(|r| r.memory().as_ref()).and_then(|m| m.limit());
        Ok(Self {
            role: role(spec),
            root: spec.root().as_ref().map_or_else(|| PathBuf::from("rootfs"), |root| root.path().clone()),
            netns: netns(spec),
            cgroups_path: linux.and_then(|l| l.cgroups_path().as_ref()).map(|p| p.display().to_string()),
            ram_mib: ram_mib(annotation(spec, &[MEMORY]), limit)?,
            vcpus: quota.map_or(1, |(quota, period)| vcpus(quota, period)),
            hostname: spec.hostname().clone().unwrap_or_default(),
            group: group(spec)?,
        })
    }
}

fn annotation<'s>(spec: &'s Spec, names: &[&str]) -> Option<&'s str> {
    let annotations = spec.annotations().as_ref()?;
    names.iter().find_map(|name| annotations.get(*name)).map(String::as_str)
}

fn role(spec: &Spec) -> Role {
    match (annotation(spec, &CONTAINER_TYPE), annotation(spec, &SANDBOX_ID)) {
        (Some("sandbox"), _) => Role::Sandbox,
        (Some("container"), Some(sandbox)) => Role::Member { sandbox: sandbox.to_owned() },
        _ => Role::Alone,
    }
}

fn group(spec: &Spec) -> Result<Option<Group>, BundleError> {
    let Some(name) = annotation(spec, &[GROUP]) else { return Ok(None) };
    let bad = |name, value: &str, reason: &str| BundleError::Annotation {
        name,
        value: value.to_owned(),
        reason: reason.to_owned(),
    };
    let vm = format!("{}.{name}", annotation(spec, &NAMESPACE).unwrap_or("default"));
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(bad(GROUP, name, "is no name for a group; use A-Z a-z 0-9 and -"));
    }
    if vm.len() > limits::VM_NAME_BYTES {
        let reason =
            format!("makes, with the namespace, a name of more than {} bytes", limits::VM_NAME_BYTES);
        return Err(bad(GROUP, name, &reason));
    }
    let on_loss = annotation(spec, &[ON_LOSS]).unwrap_or("degrade");
    if !["degrade", "halt"].contains(&on_loss) {
        return Err(bad(ON_LOSS, on_loss, "is no policy; there are degrade and halt"));
    }
    Ok(Some(Group { name: name.to_owned(), vm, on_loss: on_loss.to_owned() }))
}

fn netns(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let network = namespaces.iter().find(|n| n.typ() == LinuxNamespaceType::Network)?;
    network.path().clone().filter(|path| !path.as_os_str().is_empty())
}

fn ram_mib(annotation: Option<&str>, limit: Option<i64>) -> Result<u64, BundleError> {
    let mib = match (annotation, limit.and_then(|l| u64::try_from(l).ok()).filter(|l| *l > 0)) {
        (Some(text), _) => quantity(text)? / MIB,
        (None, Some(limit)) => limit / MIB,
        (None, None) => limits::RAM_MIB_DEFAULT,
    };
    if (limits::RAM_MIB_MIN..=limits::RAM_MIB_MAX).contains(&mib) {
        Ok(mib)
    } else {
        Err(BundleError::Memory { mib })
    }
}

/// A quantity of bytes as Kubernetes writes it.
fn quantity(text: &str) -> Result<u64, BundleError> {
    let refuse = |reason: &str| BundleError::Annotation {
        name: MEMORY,
        value: text.to_owned(),
        reason: format!("{reason}; write it like 512Mi or 2Gi"),
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| refuse("is not a quantity"))?;
    let unit = match &text[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => MIB,
        "Gi" => 1 << 30,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err(refuse("has a unit that is not Ki, Mi, Gi, k, M or G")),
    };
    number.checked_mul(unit).ok_or_else(|| refuse("is too large"))
}

/// CPU time per period, rounded up to whole vCPUs.
fn vcpus(quota: i64, period: u64) -> u64 {
    u64::try_from(quota).ok().filter(|_| period > 0).map_or(1, |quota| quota.div_ceil(period).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Result<Config, BundleError> {
        Config::of(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_pods_parts_are_told_apart() {
        let role = |annotations: &str| {
            config(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{{annotations}}}}}"#)).unwrap().role
        };
        assert_eq!(role(r#""io.kubernetes.cri.container-type":"sandbox""#), Role::Sandbox);
        let member = r#""io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"s""#;
        assert_eq!(role(member), Role::Member { sandbox: "s".into() });
        assert_eq!(role(""), Role::Alone);
    }

    #[test]
    fn resources_become_the_guests_size() {
        let sized = config(
            r#"{"ociVersion":"1.0.2","linux":{"resources":{"memory":{"limit":536870912},
                "cpu":{"quota":150000,"period":100000}},"cgroupsPath":"/kubepods/x",
                "namespaces":[{"type":"network","path":"/var/run/netns/n"},{"type":"pid"}]}}"#,
        )
        .unwrap();
        assert_eq!((sized.ram_mib, sized.vcpus), (512, 2));
        assert_eq!(sized.netns, Some(PathBuf::from("/var/run/netns/n")));
        assert_eq!(sized.cgroups_path.as_deref(), Some("/kubepods/x"));
        let plain = config(r#"{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"network"}]}}"#).unwrap();
        assert_eq!((plain.ram_mib, plain.vcpus, plain.netns), (limits::RAM_MIB_DEFAULT, 1, None));
    }

    #[test]
    fn a_group_is_its_namespaces_own() {
        let group = |annotations: &str| {
            config(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{{annotations}}}}}"#)).map(|c| c.group)
        };
        assert_eq!(group("").unwrap(), None);
        let web = r#""endophyte.mycelium.io/group":"db","io.kubernetes.cri.sandbox-namespace":"shop""#;
        let expected = Group { name: "db".into(), vm: "shop.db".into(), on_loss: "degrade".into() };
        assert_eq!(group(web).unwrap(), Some(expected));
        for bad in [
            r#""endophyte.mycelium.io/group":"no spaces""#,
            r#""endophyte.mycelium.io/group":"""#,
            r#""endophyte.mycelium.io/group":"db","endophyte.mycelium.io/on-loss":"panic""#,
        ] {
            let message = group(bad).unwrap_err().to_string();
            assert!(message.contains("annotation endophyte.mycelium.io/"), "{message}");
        }
        let long = format!(r#""endophyte.mycelium.io/group":"{}""#, "x".repeat(60));
        assert!(group(&long).unwrap_err().to_string().contains("64 bytes"));
    }

    #[test]
    fn a_bad_memory_annotation_says_how_to_write_it() {
        assert_eq!(ram_mib(Some("1Gi"), Some(1)).unwrap(), 1024);
        for bad in ["lots", "12Qi", "99999999999999999999", "18446744073709551615Gi"] {
            let message = ram_mib(Some(bad), None).unwrap_err().to_string();
            assert!(message.contains("512Mi") && message.contains(bad), "{message}");
        }
        assert!(matches!(ram_mib(Some("1Mi"), None), Err(BundleError::Memory { mib: 1 })));
    }
}
