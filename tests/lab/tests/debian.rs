//! A stock Debian, booted by its own boot entries from its own disk on our VMM in a lab host.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mycelium_images::Unwatched;
use mycelium_images::debian::{StaticAddress, TestImage, debian_test_image};
use mycelium_lab::images::{Cache, Kernel, static_binary};
use mycelium_lab::{ExitStatus, HostFile, LabHost, LabNet, LabNetConfig, PrivateNamespace, Process, Stream};

/// Debian takes about a minute to its login on a free machine; nobody waits this out unless it hangs.
const BOOT_PATIENCE: Duration = Duration::from_secs(400);
/// For a command in the guest.
const PATIENCE: Duration = Duration::from_secs(180);
const SPEC: &str = "/lab/debian.toml";
const ENDOPHYTE: &str = "/bin/endophyte";
const BUSYBOX: &str = "/bin/busybox";
/// What is typed to the guest goes through here.
const KEYBOARD: &str = "/run/keyboard";
/// Disks of the host: the image byte for byte, a file system that holds it as qcow2, and one to write to.
const RAW_DISK: &str = "/dev/vda";
const CARRIER: &str = "/dev/vdb";
const SCRATCH: &str = "/dev/vdc";
/// The first guest's address on the clients' wire.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const SCRATCH_BYTES: u64 = 256 << 20;

/// A host that holds Debian's disks.
struct Bench {
    host: LabHost,
    _net: LabNet,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        // First: the namespace has no way to where packages are.
        let cache = Cache::open().unwrap();
        let image = test_image(&cache);
        let namespace = PrivateNamespace::enter().unwrap();
        let net = LabNet::create(&namespace, &LabNetConfig { hosts: 1, paths: 0 }).unwrap();
        assert_eq!(net.guest_address(0).address, ADDRESS);
        let kernel = Kernel::ensure(&cache).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut config = net.host_config(0, folder.path());
        config.memory_mib = 1536;
        config.modules.push("virtio_blk".to_owned());
        config.files = vec![
            HostFile::program(ENDOPHYTE, static_binary("endophyte", "endophyte").unwrap()),
            HostFile::program(BUSYBOX, "/bin/busybox"),
        ];
        let drives = [image.raw, carrier(folder.path(), &image.qcow2), scratch(folder.path())];
        config.emulator_args = drives.iter().enumerate().flat_map(drive).collect();
        let agent = static_binary("lab-agent", "lab-agent").unwrap();
        let host = LabHost::start(&kernel, &agent, config).unwrap();
        Bench { host, _net: net, _folder: folder }
    }

    fn busybox(&self, words: &[&str]) {
        let words: Vec<&str> = [BUSYBOX].iter().chain(words).copied().collect();
        let output = self.host.exec(&words).unwrap();
        assert_eq!(
            output.status,
            ExitStatus::Code(0),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Boots the disk and waits for its login.
    fn boot(&self, disk: &str, vcpus: u8) -> Debian<'_> {
        self.host.write_file(SPEC, 0o644, spec(disk, vcpus).as_bytes()).unwrap();
        self.start(&format!("{ENDOPHYTE} run --spec {SPEC} --api /run/debian.sock"))
    }

    fn start(&self, command: &str) -> Debian<'_> {
        // Both ends stay open: a keyboard at which nobody sits is no end of input.
        let line =
            format!("rm -f {KEYBOARD}; {BUSYBOX} mkfifo {KEYBOARD}; exec 3<>{KEYBOARD}; exec {command} <&3");
        let vmm = self
            .host
            .spawn(&[BUSYBOX, "sh", "-c", &line.replace("rm -f", &format!("{BUSYBOX} rm -f"))])
            .unwrap();
        Debian { bench: self, vmm, commands: AtomicU32::new(0) }
    }
}

fn test_image(cache: &Cache) -> TestImage {
    let address = StaticAddress { ip: IpAddr::V4(ADDRESS), prefix: 24, gateway: None };
    debian_test_image(cache, address, &Unwatched).unwrap()
}

/// A file system with the qcow2 image in it, as a node's would hold it.
fn carrier(folder: &Path, qcow2: &Path) -> PathBuf {
    let (content, carrier) = (folder.join("content"), folder.join("carrier"));
    std::fs::create_dir(&content).unwrap();
    std::fs::hard_link(qcow2, content.join("debian.qcow2"))
        .or_else(|_| std::fs::copy(qcow2, content.join("debian.qcow2")).map(drop))
        .unwrap();
    std::fs::File::create(&carrier).unwrap().set_len(3 << 30).unwrap();
    let made = std::process::Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&content)
        .arg(&carrier)
        .output()
        .unwrap();
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

fn spec(disk: &str, vcpus: u8) -> String {
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
socket = "/run/vsock"

[[net]]
tap = "{}"
mac = "02:00:00:00:00:01"
"#,
        mycelium_lab::net::GUEST_TAP
    )
}

/// A running Debian.
struct Debian<'a> {
    bench: &'a Bench,
    vmm: Process,
    commands: AtomicU32,
}

impl Debian<'_> {
    fn console(&self) -> String {
        String::from_utf8_lossy(&self.vmm.written(Stream::Stdout)).into_owned()
    }

    fn wait(&self, marker: &str, patience: Duration) -> String {
        let seen = self.vmm.wait_line(Stream::Stdout, marker, patience);
        seen.unwrap_or_else(|error| {
            let said = String::from_utf8_lossy(&self.vmm.written(Stream::Stderr)).into_owned();
            panic!("no {marker:?}: {error}\nVMM: {said}\nconsole:\n{}", self.console())
        })
    }

    fn type_line(&self, line: &str) {
        self.bench.busybox(&["sh", "-c", &format!("echo '{}' >{KEYBOARD}", line.replace('\'', "'\\''"))]);
    }

    /// Logs in on the console.
    fn log_in(&self) {
        // The line before the prompt, which is no whole line.
        self.wait("Debian GNU/Linux 12 debian ttyS0", BOOT_PATIENCE);
        self.type_line("root");
        self.run("stty -echo; PS1=; PS2=; dmesg -n 1");
    }

    /// Runs a command in the guest's shell and returns what it says.
    fn run(&self, command: &str) -> String {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        self.type_line(&format!("echo be''gin-{number}; {command}; echo en''d-{number}-$?"));
        let end = self.wait(&format!("end-{number}-"), PATIENCE);
        let console = self.console();
        let said = console.split(&format!("begin-{number}\r\n")).nth(1).unwrap_or("");
        let said = said.split(&format!("end-{number}-")).next().unwrap_or("").replace("\r\n", "\n");
        assert!(end.contains(&format!("end-{number}-0")), "{command}: {said}{end}");
        said
    }

    fn address(&self) -> (Ipv4Addr, u16) {
        (ADDRESS, 6379)
    }
}

#[test]
#[ignore = "boots a host and Debian in it, minutes on two cores; run with --ignored"]
fn debian_boots_from_its_disk_and_works() {
    let bench = Bench::new();
    let debian = bench.boot(RAW_DISK, 1);
    debian.log_in();
    assert_eq!(debian.run("systemctl is-active systemd-logind"), "active\n");
    redis_answers(&debian);
    disk_writes_are_verified(&debian);
    debian.run("poweroff");
    assert_eq!(debian.vmm.wait(PATIENCE).unwrap(), ExitStatus::Code(0));
}

#[test]
#[ignore = "boots a host and Debian in it, minutes on two cores; run with --ignored"]
fn debian_boots_from_a_qcow2_disk_with_two_processors() {
    let bench = Bench::new();
    bench.busybox(&["mkdir", "/run/carrier"]);
    bench.busybox(&["mount", "-t", "ext4", CARRIER, "/run/carrier"]);
    let debian = bench.boot("/run/carrier/debian.qcow2", 2);
    debian.log_in();
    assert_eq!(debian.run("nproc"), "2\n");
    debian
        .run("dd if=/dev/urandom of=/root/data bs=1M count=16 conv=fsync && sha256sum /root/data >/root/sum");
    debian.run("sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /root/sum");
    debian.run("poweroff");
    assert_eq!(debian.vmm.wait(PATIENCE).unwrap(), ExitStatus::Code(0));
}

/// A client outside the host talks to a program in the guest.
fn redis_answers(debian: &Debian<'_>) {
    let mut client = TcpStream::connect(debian.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
    let mut reply = [0; 7];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"+PONG\r\n");
}

/// fio reads back and compares all it wrote to the second disk, flushes between.
fn disk_writes_are_verified(debian: &Debian<'_>) {
    assert_eq!(debian.run("cat /sys/block/vdb/serial").trim(), "scratch");
    let said = debian.run(
        "fio --name=verify --filename=/dev/vdb --direct=1 --rw=randwrite --bsrange=512-128k --size=32m --verify=crc32c \
         --do_verify=1 --verify_fatal=1 --ioengine=libaio --iodepth=16 --fdatasync=64 --minimal >/tmp/fio && echo verified",
    );
    assert_eq!(said, "verified\n");
    debian.run("blkdiscard -o 0 -l 1048576 /dev/vdb && cmp -n 1048576 /dev/vdb /dev/zero");
}
