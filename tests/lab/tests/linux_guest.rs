//! A stock Linux guest on our VMM in a lab host, reached from outside by TCP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use mycelium_lab::images::{Cache, GuestImage, Kernel, linux_guest_image, static_binary};
use mycelium_lab::{HostFile, LabHost, LabNet, LabNetConfig, PrivateNamespace, Process, Stream};

/// An L2 guest boots in about 20 s on a free machine; nobody waits this out unless it hangs.
const BOOT_PATIENCE: Duration = Duration::from_secs(180);
const PATIENCE: Duration = Duration::from_secs(30);
const SPEC_PATH: &str = "/lab/guest.toml";

#[test]
#[ignore = "boots a host and a guest in it, about 30 s on two cores; run with --ignored"]
fn a_stock_kernel_boots_on_our_vmm_and_answers_from_outside() {
    let namespace = PrivateNamespace::enter().unwrap();
    let net = LabNet::create(&namespace, &LabNetConfig { hosts: 1, paths: 0 }).unwrap();
    let cache = Cache::open().unwrap();
    let kernel = Kernel::ensure(&cache).unwrap();
    let image =
        linux_guest_image(&cache, &kernel, &static_binary("guest-agent", "guest-agent").unwrap()).unwrap();
    let logs = tempfile::tempdir().unwrap();
    let host = start_host(&net, &kernel, &image, logs.path());

    let guest = host.spawn(&["/bin/endophyte", "run", "--spec", SPEC_PATH]).unwrap();
    guest.wait_line(Stream::Stdout, "guest-agent: ready", BOOT_PATIENCE).unwrap();
    ping(SocketAddr::from((net.guest_address(0).address, 6379)), &guest);
}

fn start_host(net: &LabNet, kernel: &Kernel, image: &GuestImage, logs: &Path) -> LabHost {
    let spec = logs.join("guest.toml");
    std::fs::write(&spec, guest_spec(net)).unwrap();
    let mut config = net.host_config(0, logs);
    config.memory_mib = 1536;
    config.files = vec![
        HostFile::program("/bin/endophyte", static_binary("endophyte", "endophyte").unwrap()),
        HostFile::data("/lab/vmlinux", &image.vmlinux),
        HostFile::data("/lab/initrd", &image.initrd),
        HostFile::data(SPEC_PATH, spec),
    ];
    LabHost::start(kernel, &static_binary("lab-agent", "lab-agent").unwrap(), config).unwrap()
}

fn guest_spec(net: &LabNet) -> String {
    format!(
        r#"name = "stock"
vcpus = 1
ram_mib = 384
kernel = "/lab/vmlinux"
initrd = "/lab/initrd"
cmdline = "console=ttyS0 rdinit=/init panic=-1 mycelium.ip={}"

[[net]]
tap = "{}"
mac = "02:00:00:00:00:01"
"#,
        net.guest_address(0),
        mycelium_lab::net::GUEST_TAP
    )
}

fn ping(address: SocketAddr, guest: &Process) {
    let console = || String::from_utf8_lossy(&guest.written(Stream::Stdout)).into_owned();
    let connected = TcpStream::connect_timeout(&address, PATIENCE);
    let mut client = connected.unwrap_or_else(|error| panic!("{address}: {error}; console:\n{}", console()));
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..100 {
        client.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
        let mut reply = [0_u8; 7];
        client.read_exact(&mut reply).unwrap_or_else(|error| panic!("{error}; console:\n{}", console()));
        assert_eq!(&reply, b"+PONG\r\n");
    }
}
