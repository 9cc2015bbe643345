//! Two lab hosts from power-on to death: everything other tests rely on, on one boot.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use mycelium_lab::images::{Cache, Kernel, static_binary};
use mycelium_lab::{
    ExitStatus, HostFile, LabError, LabHost, LabNet, LabNetConfig, Netem, PrivateNamespace, Process, Stream,
    Wire,
};

const PATH: Wire = Wire::Path(0);
/// Long enough for a starved machine; the tests do not wait it out unless they fail.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a ping that shall fail tries.
const SILENCE: Duration = Duration::from_millis(500);
const CLOCK: &str = "/bin/lab-clock";

struct Lab {
    net: LabNet,
    hosts: Vec<LabHost>,
    _logs: tempfile::TempDir,
}

fn boot() -> Lab {
    let namespace = PrivateNamespace::enter().unwrap();
    let net = LabNet::create(&namespace, &LabNetConfig::default()).unwrap();
    let kernel = Kernel::ensure(&Cache::open().unwrap()).unwrap();
    let (agent, clock) = (binary("lab-agent"), binary("lab-clock"));
    let logs = tempfile::tempdir().unwrap();
    let start = |host: usize| {
        let mut config = net.host_config(host, logs.path());
        config.files.push(HostFile::program(CLOCK, &clock));
        LabHost::start(&kernel, &agent, config).unwrap()
    };
    let hosts = thread::scope(|scope| {
        let starting = [0, 1].map(|host| scope.spawn(move || start(host)));
        starting.map(|host| host.join().unwrap()).into()
    });
    Lab { net, hosts, _logs: logs }
}

fn binary(name: &str) -> PathBuf {
    static_binary("lab-agent", name).unwrap()
}

#[test]
#[ignore = "boots two hosts, about 10 s on two cores; run with --ignored"]
fn hosts_work_part_and_die() {
    let lab = boot();
    kvm_works(&lab);
    programs_run_and_files_travel(&lab.hosts[0]);
    wires_part_and_heal(&lab);
    frames_can_be_lost(&lab);
    a_paused_host_is_silent_and_goes_on(&lab);
    a_killed_host_is_gone_at_once(&lab);
    lab.hosts[1].power_off().unwrap();
}

fn kvm_works(lab: &Lab) {
    for host in &lab.hosts {
        let report = host.probe_kvm().unwrap();
        assert_eq!(report.api_version, 12);
        assert!(report.dirty_ring_bytes > 0);
    }
}

fn programs_run_and_files_travel(host: &LabHost) {
    let output = host.exec(&["/init"]).unwrap();
    assert_eq!(output.status, ExitStatus::Code(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("only as its first process"));
    assert!(
        matches!(host.exec(&["/no/such/program"]), Err(LabError::Refused { refusal, .. }) if refusal.what == "/no/such/program")
    );

    let content: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
    host.write_file("/run/a/file", 0o600, &content).unwrap();
    assert!(host.read_file("/run/a/file").unwrap() == content, "a file of several parts came back changed");
    assert!(String::from_utf8(host.read_file("/proc/modules").unwrap()).unwrap().contains("kvm_amd"));

    let clock = ticking(host);
    clock.kill().unwrap();
    assert_eq!(clock.wait(PATIENCE).unwrap(), ExitStatus::Signal(libc::SIGKILL));
    clock.kill().unwrap();
}

fn ticking(host: &LabHost) -> Process {
    let clock = host.spawn(&[CLOCK]).unwrap();
    clock.wait_line(Stream::Stdout, "tick 2 ", PATIENCE).unwrap();
    clock
}

fn wires_part_and_heal(lab: &Lab) {
    let [one, other] = [&lab.hosts[0], &lab.hosts[1]];
    let to_other = |wire| lab.net.host_address(1, wire);
    one.ping(to_other(PATH), PATIENCE).unwrap();
    lab.net.set_wire(1, PATH, false).unwrap();
    assert!(one.ping(to_other(PATH), SILENCE).is_err());
    one.ping(to_other(Wire::Management), PATIENCE).unwrap();
    lab.net.set_wire(1, PATH, true).unwrap();
    one.ping(to_other(PATH), PATIENCE).unwrap();

    lab.net.set_all_wires(0, false).unwrap();
    assert!(lab.net.wires().all(|wire| other.ping(lab.net.host_address(0, wire), SILENCE).is_err()));
    lab.net.set_all_wires(0, true).unwrap();
}

fn frames_can_be_lost(lab: &Lab) {
    let to_other = lab.net.host_address(1, PATH);
    lab.hosts[0].set_netem("path0", Netem { loss_ppm: 1_000_000, ..Netem::default() }).unwrap();
    assert!(lab.hosts[0].ping(to_other, SILENCE).is_err());
    lab.hosts[0].set_netem("path0", Netem { delay_us: 20_000, ..Netem::default() }).unwrap();
    assert!(lab.hosts[0].ping(to_other, PATIENCE).unwrap() >= Duration::from_micros(20_000));
    lab.hosts[0].set_netem("path0", Netem::default()).unwrap();
}

fn a_paused_host_is_silent_and_goes_on(lab: &Lab) {
    let clock = ticking(&lab.hosts[1]);
    lab.hosts[1].pause();
    assert!(lab.hosts[0].ping(lab.net.host_address(1, PATH), SILENCE).is_err());
    let until_pause = String::from_utf8(clock.written(Stream::Stdout)).unwrap().lines().count();
    lab.hosts[1].cont();
    clock.wait_line(Stream::Stdout, &format!("tick {} ", until_pause + 2), PATIENCE).unwrap();
    lab.hosts[0].ping(lab.net.host_address(1, PATH), PATIENCE).unwrap();
    clock.kill().unwrap();
}

fn a_killed_host_is_gone_at_once(lab: &Lab) {
    let [doomed, survivor] = [&lab.hosts[0], &lab.hosts[1]];
    let clock = ticking(doomed);
    doomed.kill();
    assert!(matches!(clock.wait(PATIENCE), Err(LabError::HostDead { .. })));
    assert!(clock.written(Stream::Stdout).starts_with(b"tick 1 "), "output outlives its host");
    assert!(matches!(doomed.exec(&["/init"]), Err(LabError::HostDead { .. })));
    assert!(survivor.ping(lab.net.host_address(0, PATH), SILENCE).is_err());
    assert!(survivor.exec(&["/init"]).is_ok());
}
