//! Stock redis tools against a VM started by hand, with the commands of docs/two-machines.md less the protection.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mycelium_lab::PrivateNamespace;
use system_tests::process::{Running, ip};
use system_tests::{has_kvm, program, run, skip};

const GUEST: &str = "10.90.0.2";

fn start_vm(dir: &Path) -> Option<Running> {
    let (endophyte, guest) = (program("endophyte")?, program("native-guest")?);
    let spec = dir.join("vm.toml");
    let text = format!(
        "name = \"by-hand\"\nvcpus = 1\nram_mib = 256\nkernel = {guest:?}\ncmdline = \"ip={GUEST}/24 gw=10.90.0.1\"\n\
         serial = \"null\"\n\n[[net]]\ntap = \"tap0\"\nmac = \"02:00:00:00:00:05\"\n"
    );
    fs::write(&spec, text).unwrap();
    let vm = Command::new(endophyte).arg("run").arg("--spec").arg(spec).stdin(Stdio::null()).spawn().unwrap();
    Some(Running(vm))
}

fn wait_until_it_serves() {
    let server: SocketAddr = format!("{GUEST}:6379").parse().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect_timeout(&server, Duration::from_secs(1)).is_err() {
        assert!(Instant::now() < deadline, "the guest does not serve");
    }
}

#[test]
fn redis_cli_and_redis_benchmark_work() {
    if !has_kvm() {
        return;
    }
    if Command::new("redis-cli").arg("--version").output().is_err() {
        return skip("no redis-cli (apt-get install redis-tools)");
    }
    let Ok(_namespace) = PrivateNamespace::enter() else {
        return skip("no right to make a network namespace");
    };
    ip("tuntap add tap0 mode tap");
    ip("addr add 10.90.0.1/24 dev tap0");
    ip("link set tap0 up");
    let dir = tempfile::tempdir().unwrap();
    let Some(_vm) = start_vm(dir.path()) else { return };
    wait_until_it_serves();
    let cli = |words: &[&str]| {
        let output = run(Command::new("redis-cli").args(["-h", GUEST]).args(words));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(cli(&["PING"]), "PONG");
    assert_eq!(cli(&["SET", "k", "v"]), "OK");
    assert_eq!(cli(&["GET", "k"]), "v");
    assert_eq!(cli(&["INCR", "n"]), "1");
    assert_eq!(cli(&["DBSIZE"]), "2");
    let bench =
        run(Command::new("redis-benchmark").args(["-h", GUEST, "-t", "set,get", "-n", "20000", "-q"]));
    let told = String::from_utf8_lossy(&bench.stdout);
    println!(
        "{}",
        told.replace('\r', "\n")
            .lines()
            .filter(|l| l.contains("requests per second"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    assert!(bench.status.success() && told.matches("requests per second").count() >= 2, "{told}");
}
