//! Hosts that hold Debian's disks.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use mycelium_images::Unwatched;
use mycelium_images::debian::{StaticAddress, TestImage, debian_test_image};
use mycelium_lab::images::{Cache, Kernel, static_binary};
use mycelium_lab::net::{GUEST_BRIDGE, GUEST_TAP};
use mycelium_lab::{ExitStatus, HostConfig, HostFile, LabHost, LabNet, LabNetConfig, PrivateNamespace, Wire};

pub(crate) const ENDOPHYTE: &str = "/bin/endophyte";
pub(crate) const BUSYBOX: &str = "/bin/busybox";
pub(crate) const MYCELIUM: &str = "/bin/mycelium";
pub(crate) const VSOCK: &str = "/bin/lab-vsock";
/// The guest's address on the clients' wire.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// Disks of a host: the image byte for byte, a file system that holds it as qcow2, and one to write to.
pub(crate) const RAW_DISK: &str = "/dev/vda";
const CARRIER: &str = "/dev/vdb";
pub(crate) const SCRATCH: &str = "/dev/vdc";
const SCRATCH_BYTES: u64 = 256 << 20;
/// A second tap on the guests' bridge, for a VMM that takes over on the same host.
pub(crate) const SECOND_TAP: &str = "vm1";
const HOST_MIB: u32 = 1792;
/// For a command on a host.
const PATIENCE: Duration = Duration::from_secs(120);

/// Hosts on a network of their own.
pub(crate) struct Bench {
    pub(crate) hosts: Vec<LabHost>,
    pub(crate) net: LabNet,
    pub(crate) folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new(hosts: usize, paths: usize) -> Bench {
        // First: the namespace has no way to where packages are.
        let cache = Cache::open().unwrap();
        let image = test_image(&cache);
        let kernel = Kernel::ensure(&cache).unwrap();
        let namespace = PrivateNamespace::enter().unwrap();
        let net = LabNet::create(&namespace, &LabNetConfig { hosts, paths }).unwrap();
        assert_eq!(net.guest_address(0).address, ADDRESS);
        let folder = tempfile::tempdir().unwrap();
        let agent = static_binary("lab-agent", "lab-agent").unwrap();
        let configs: Vec<HostConfig> =
            (0..hosts).map(|host| host_config(&net, host, &image, folder.path())).collect();
        let hosts = thread::scope(|scope| {
            let start = |config| LabHost::start(&kernel, &agent, config).unwrap();
            let starting: Vec<_> =
                configs.into_iter().map(|config| scope.spawn(move || start(config))).collect();
            starting.into_iter().map(|host| host.join().unwrap()).collect()
        });
        Bench { hosts, net, folder }
    }

    /// Runs a command on a host to its good end; returns what it says.
    pub(crate) fn exec(&self, host: usize, words: &[&str]) -> String {
        let output = self.hosts[host].exec(words).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status, ExitStatus::Code(0), "{words:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn busybox(&self, host: usize, words: &[&str]) -> String {
        let words: Vec<&str> = [BUSYBOX].iter().chain(words).copied().collect();
        self.exec(host, &words)
    }

    /// Mounts the file system that holds the qcow2 image; returns the image's path.
    pub(crate) fn qcow2(&self, host: usize) -> String {
        self.busybox(host, &["mkdir", "/run/carrier"]);
        self.busybox(host, &["mount", "-t", "ext4", CARRIER, "/run/carrier"]);
        "/run/carrier/debian.qcow2".to_owned()
    }

    /// The guest answers pings from outside its host.
    pub(crate) fn ping(&self) {
        let wait = PATIENCE.as_secs().to_string();
        let pinged =
            Command::new(BUSYBOX).args(["ping", "-c", "3", "-w", &wait, &ADDRESS.to_string()]).output();
        let output = pinged.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// An address of a host on one of the replication paths.
    pub(crate) fn path(&self, host: usize, path: usize, port: u16) -> String {
        format!("{}:{port}", self.net.host_address(host, Wire::Path(path)))
    }
}

fn test_image(cache: &Cache) -> TestImage {
    let address = StaticAddress { ip: IpAddr::V4(ADDRESS), prefix: 24, gateway: None };
    debian_test_image(cache, address, &Unwatched).unwrap()
}

fn host_config(net: &LabNet, host: usize, image: &TestImage, folder: &Path) -> HostConfig {
    let disks = folder.join(format!("disks{host}"));
    std::fs::create_dir(&disks).unwrap();
    let mut config = net.host_config(host, folder);
    config.memory_mib = HOST_MIB;
    config.modules.push("virtio_blk".to_owned());
    config.taps.push(SECOND_TAP.to_owned());
    config
        .bridges
        .iter_mut()
        .filter(|b| b.name == GUEST_BRIDGE)
        .for_each(|b| b.ports.push(SECOND_TAP.to_owned()));
    config.files = vec![
        HostFile::program(ENDOPHYTE, static_binary("endophyte", "endophyte").unwrap()),
        HostFile::program(MYCELIUM, static_binary("mycelium", "mycelium").unwrap()),
        HostFile::program(VSOCK, static_binary("lab-agent", "lab-vsock").unwrap()),
        HostFile::program(BUSYBOX, BUSYBOX),
    ];
    let drives = [image.raw.clone(), carrier(&disks, &image.qcow2), scratch(&disks)];
    config.emulator_args = drives.iter().enumerate().flat_map(drive).collect();
    config
}

/// A file system with the qcow2 image in it, as a node's would hold it.
fn carrier(folder: &Path, qcow2: &Path) -> PathBuf {
    let (content, carrier) = (folder.join("content"), folder.join("carrier"));
    std::fs::create_dir(&content).unwrap();
    std::fs::hard_link(qcow2, content.join("debian.qcow2"))
        .or_else(|_| std::fs::copy(qcow2, content.join("debian.qcow2")).map(drop))
        .unwrap();
    std::fs::File::create(&carrier).unwrap().set_len(3 << 30).unwrap();
    let made =
        Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&content).arg(&carrier).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    carrier
}

fn scratch(folder: &Path) -> PathBuf {
    let path = folder.join("scratch");
    std::fs::File::create(&path).unwrap().set_len(SCRATCH_BYTES).unwrap();
    path
}

/// Emulator words for a disk; what is written to it is forgotten with the host.
fn drive((number, path): (usize, &PathBuf)) -> [String; 4] {
    let id = format!("disk{number}");
    let file = path.display();
    let drive = format!("file={file},if=none,id={id},format=raw,snapshot=on,cache=unsafe");
    ["-drive".to_owned(), drive, "-device".to_owned(), format!("virtio-blk-pci,drive={id}")]
}

/// The spec of a VM with every device, whose first disk is `disk`.
pub(crate) fn spec(disk: &str, vcpus: u8, tap: &str, vsock: &str) -> String {
    format!(
        r#"name = "debian"
vcpus = {vcpus}
ram_mib = 512
rng = true
balloon = true

[[disk]]
path = "{disk}"

[[disk]]
path = "{SCRATCH}"
serial = "scratch"

[vsock]
cid = 7
socket = "{vsock}"

[[net]]
tap = "{tap}"
mac = "02:00:00:00:00:01"
"#
    )
}

/// The spec of a VM whose disk is only read: what the guest writes stays in its memory.
pub(crate) fn diskless_spec() -> String {
    protected_spec(RAW_DISK, "cmdline = \"overlayroot=tmpfs\"", "readonly = true")
}

/// The spec of a VM whose disk is replicated.
pub(crate) fn replicated_spec(disk: &str) -> String {
    protected_spec(disk, "", "")
}

fn protected_spec(disk: &str, vm_words: &str, disk_words: &str) -> String {
    format!(
        r#"name = "debian"
vcpus = 1
ram_mib = 512
serial = "stdio"
rng = true
{vm_words}

[[disk]]
path = "{disk}"
{disk_words}

[[net]]
tap = "{GUEST_TAP}"
mac = "02:00:00:00:00:01"
"#
    )
}
