//! Disks and cards that come and go while their guest runs, by API and command line, on real KVM and inside the sandbox.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use endophyte_api::{
    AttachDiskRequest, AttachNetRequest, AttachResponse, DetachRequest, Device, InfoRequest, MetricsRequest,
    MigrateRequest, PauseRequest, ResumeRequest, SetAllowedRequest, StopRequest, VmClient, VmInfo,
};
use mycelium_lab::net::PrivateNamespace;
use serde_json::Value;
use system_tests::process::{Running, ip, reach};
use system_tests::vm::{console_until, save};
use system_tests::{has_kvm, program, run, threads_of};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::{Code, Status};

/// Bounds a test that fails; guests share two busy cores.
const PATIENCE: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 8 << 20;
/// What the guest writes into the first sector of a disk, round by round.
const ROUND_BYTES: u8 = 16;

/// A folder of specs and disks.
struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// The guest follows what is plugged, if it is to.
    fn new(follows: bool) -> Option<Self> {
        let guest = program("native-guest")?;
        if !has_kvm() {
            return None;
        }
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        let plug = if follows { "plug=follow" } else { "" };
        let base = format!(
            "name = \"plug\"\nvcpus = 1\nram_mib = 64\nkernel = {guest:?}\ncmdline = \"heartbeat=20 {plug}\"\nserial = \"null\"\n\
             rng = true\n"
        );
        fs::write(lab.path("base.toml"), &base).unwrap();
        lab.disk("first");
        let first = format!("[[disk]]\npath = {:?}\nserial = \"first\"\n", lab.path("first"));
        fs::write(lab.path("vm.toml"), base + &first).unwrap();
        Some(lab)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn disk(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::File::create_new(&path).unwrap().set_len(DISK_BYTES).unwrap();
        path
    }

    /// The spec with the devices a VM has now.
    fn write_spec(&self, name: &str, info: &VmInfo) {
        let base = fs::read_to_string(self.path("base.toml")).unwrap();
        fs::write(self.path(name), base + &info.device_tables).unwrap();
    }

    async fn vm(&self, spec: &str, rest: &[&str]) -> Vm {
        let socket = self.path(&format!("{spec}.sock"));
        let mut command = Command::new(program("endophyte").unwrap());
        command.args(["run", "--die-with-parent", "--spec"]).arg(self.path(spec)).arg("--api").arg(&socket);
        command.args(rest).stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Running(command.spawn().unwrap());
        let api = reach(&mut process, &socket).await;
        Vm { process, api, socket }
    }

    /// As usual, with this folder within reach.
    async fn running(&self) -> Vm {
        self.vm("vm.toml", &["--reach", self.dir.path().to_str().unwrap()]).await
    }
}

struct Vm {
    process: Running,
    api: VmClient,
    socket: PathBuf,
}

impl Vm {
    async fn info(&mut self) -> VmInfo {
        self.api.info(InfoRequest {}).await.unwrap().into_inner()
    }

    async fn devices(&mut self) -> Vec<(String, u32)> {
        let name = |device: Device| (device.name, device.slot);
        self.info().await.devices.into_iter().map(name).collect()
    }

    /// Waits for a line on the console, which is read from its beginning.
    async fn says(&mut self, wanted: &str) {
        console_until(&mut self.api, 0, PATIENCE, wanted, |text| text.contains(wanted)).await;
    }

    async fn attach(&mut self, table: String) -> Result<AttachResponse, Status> {
        Ok(self.api.attach_disk(AttachDiskRequest { table }).await?.into_inner())
    }

    async fn attach_net(&mut self, table: &str) -> Result<AttachResponse, Status> {
        let ask = AttachNetRequest { table: table.to_owned() };
        Ok(self.api.attach_net(ask).await?.into_inner())
    }

    async fn detach(&mut self, name: &str, timeout_s: u32) -> Result<u32, Status> {
        let ask = DetachRequest { name: name.to_owned(), timeout_s };
        Ok(self.api.detach(ask).await?.into_inner().slot)
    }

    async fn save(&mut self, path: PathBuf) {
        save(&mut self.api, &path, true).await.unwrap();
        assert!(self.process.wait().unwrap().success());
    }

    /// `mycelium vm WORDS --api`.
    fn mycelium(&self, words: &[&str]) -> Value {
        let mut command = Command::new(program("mycelium").unwrap());
        command.arg("vm").args(words).arg("--api").arg(&self.socket).arg("--json");
        let output = run(&mut command);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn stop(mut self) {
        self.api.stop(StopRequest {}).await.unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

fn first_byte(path: &PathBuf) -> u8 {
    fs::read(path).unwrap()[0]
}

#[tokio::test]
async fn a_disk_comes_is_written_and_goes_again_and_again() {
    let Some(lab) = Lab::new(true) else { return };
    let extra = lab.disk("extra");
    let mut vm = lab.running().await;
    vm.says("ready").await;
    let path = extra.to_str().unwrap();
    let attached = vm.mycelium(&["attach", "disk", "--path", path, "--serial", "extra"]);
    assert_eq!((attached["name"].as_str(), attached["slot"].as_u64()), (Some("extra"), Some(2)));
    vm.says("plug: slot 2 disk sectors=16384 ok").await;
    assert_eq!(first_byte(&extra), ROUND_BYTES);
    assert_eq!(vm.devices().await, [("first".to_owned(), 1), ("extra".to_owned(), 2)]);
    let metrics = vm.api.metrics(MetricsRequest {}).await.unwrap().into_inner().text;
    assert!(metrics.contains("endophyte_disk_written_bytes_total{disk=\"1\"} 8192"), "{metrics}");
    let twice = vm.attach(format!("path = {path:?}\nserial = \"again\"")).await.unwrap_err();
    assert!(twice.message().contains("in use by another process"), "{twice}");
    let detached = vm.mycelium(&["detach", "--device", "extra"]);
    assert_eq!(detached["slot"].as_u64(), Some(2));
    vm.says("plug: slot 2 ok, let go").await;
    assert_eq!(first_byte(&extra), 2 * ROUND_BYTES);
    assert_eq!(vm.devices().await, [("first".to_owned(), 1)]);
    assert!(!open_files(&vm).contains(&extra), "the disk's file is closed");
    // The one from the spec goes, too; the lowest slot is free then.
    assert_eq!(vm.detach("first", 0).await.unwrap(), 1);
    for round in 0..3_u8 {
        let back = vm.attach(format!("path = {path:?}\nserial = \"extra\"")).await.unwrap();
        assert_eq!(back.slot, 1);
        assert_eq!(vm.detach("slot:1", 0).await.unwrap(), 1, "round {round}");
    }
    assert_eq!(first_byte(&extra), 9 * ROUND_BYTES);
    assert!(vm.info().await.last_trouble.is_empty());
    for thread in threads_of(vm.process.id()) {
        assert!(thread.filtered && thread.no_new_privileges, "{thread:?}");
    }
    vm.stop().await;
}

fn open_files(vm: &Vm) -> Vec<PathBuf> {
    let files = fs::read_dir(format!("/proc/{}/fd", vm.process.id())).unwrap();
    files.filter_map(|file| fs::read_link(file.ok()?.path()).ok()).collect()
}

#[tokio::test]
async fn what_was_attached_is_in_a_snapshot_and_goes_on_with_a_spec_that_says_so() {
    let Some(lab) = Lab::new(true) else { return };
    let [gap, extra] = ["gap", "extra"].map(|name| lab.disk(name));
    let mut vm = lab.running().await;
    vm.says("ready").await;
    vm.attach(format!("path = {gap:?}\nserial = \"gap\"")).await.unwrap();
    vm.attach(format!("path = {extra:?}\nserial = \"extra\"")).await.unwrap();
    vm.says("plug: slot 3 disk").await;
    vm.detach("gap", 0).await.unwrap();
    lab.write_spec("now.toml", &vm.info().await);
    vm.save(lab.path("plug.snap")).await;

    let mut old = Command::new(program("endophyte").unwrap());
    old.args(["run", "--spec"]).arg(lab.path("vm.toml")).arg("--restore").arg(lab.path("plug.snap"));
    let refused = run(old.stdin(Stdio::null()));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains("missing here: disk extra writable 1 queues in slot 3"), "{said}");

    let snapshot = lab.path("plug.snap");
    let mut vm = lab.vm("now.toml", &["--restore", snapshot.to_str().unwrap()]).await;
    vm.says("tick").await;
    assert_eq!(vm.detach("extra", 0).await.unwrap(), 3);
    vm.says("plug: slot 3 ok, let go").await;
    assert_eq!(first_byte(&extra), 4 * ROUND_BYTES);
    vm.stop().await;
}

#[tokio::test]
async fn a_vm_moves_with_what_was_attached() {
    let Some(lab) = Lab::new(true) else { return };
    let extra = lab.disk("extra");
    let mut source = lab.running().await;
    source.says("ready").await;
    source.attach(format!("path = {extra:?}\nserial = \"extra\"\nslot = 20")).await.unwrap();
    source.says("plug: slot 20 disk").await;
    let info = source.info().await;
    lab.write_spec("now.toml", &info);
    let mut target = lab.vm("now.toml", &["--incoming", "127.0.0.1:0"]).await;
    let ticket = loop {
        let waiting = target.info().await;
        if !waiting.ticket.is_empty() && waiting.state == "incoming" {
            break waiting.ticket;
        }
        tokio::task::yield_now().await;
    };
    target.api.set_allowed(SetAllowedRequest { keys: vec![info.node] }).await.unwrap();
    let mut moving = source
        .api
        .migrate(MigrateRequest { ticket, ..MigrateRequest::default() })
        .await
        .unwrap()
        .into_inner();
    while let Some(step) = moving.next().await {
        step.unwrap();
    }
    assert!(source.process.wait().unwrap().success());
    assert_eq!(target.devices().await, [("first".to_owned(), 1), ("extra".to_owned(), 20)]);
    assert_eq!(target.detach("extra", 0).await.unwrap(), 20);
    assert_eq!(first_byte(&extra), 2 * ROUND_BYTES);
    target.stop().await;
}

#[tokio::test]
async fn a_guest_that_does_not_let_go_is_said_to_and_may_do_so_later() {
    let Some(lab) = Lab::new(false) else { return };
    let extra = lab.disk("extra");
    let mut vm = lab.running().await;
    vm.says("ready").await;
    vm.attach(format!("path = {extra:?}\nserial = \"extra\"")).await.unwrap();
    let late = vm.detach("extra", 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert!(late.message().contains("did not let go of extra within 1 s"), "{late}");
    assert_eq!(vm.devices().await.len(), 2);
    vm.stop().await;

    let Some(lab) = Lab::new(true) else { return };
    let extra = lab.disk("extra");
    let mut vm = lab.running().await;
    vm.says("ready").await;
    vm.api.pause(PauseRequest {}).await.unwrap();
    vm.attach(format!("path = {extra:?}\nserial = \"extra\"")).await.unwrap();
    assert_eq!(vm.detach("extra", 1).await.unwrap_err().code(), Code::DeadlineExceeded);
    vm.api.resume(ResumeRequest {}).await.unwrap();
    vm.says("plug: slot 2 ok, let go").await;
    let gone = async {
        while vm.devices().await.len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the device is cleared away");
    vm.stop().await;
}

#[tokio::test]
async fn what_cannot_be_attached_says_why_and_the_guest_goes_on() {
    let Some(lab) = Lab::new(true) else { return };
    let extra = lab.disk("extra");
    let mut vm = lab.vm("vm.toml", &[]).await;
    vm.says("ready").await;
    let table = |rest: &str| format!("path = {extra:?}\n{rest}");
    for (table, code, said) in [
        (table("serial = \"extra\""), Code::PermissionDenied, "--reach"),
        (table("serial = \"first\""), Code::InvalidArgument, "in use by another device"),
        (table("slot = 31"), Code::InvalidArgument, "between 1 and 27"),
        (table("bogus = 1"), Code::InvalidArgument, "bogus"),
        ("path = \"extra\"".to_owned(), Code::InvalidArgument, "make it absolute"),
    ] {
        let refused = vm.attach(table.clone()).await.unwrap_err();
        assert_eq!(refused.code(), code, "{table}: {refused}");
        assert!(refused.message().contains(said), "{table}: {refused}");
    }
    let card = "tap = \"tap0\"\nmac = \"02:00:00:00:00:09\"";
    let refused = vm.attach_net(card).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("--attach-taps"), "{refused}");
    let unknown = vm.detach("nobody", 0).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    assert_eq!(vm.devices().await, [("first".to_owned(), 1)]);
    vm.stop().await;
}

#[test]
fn a_card_comes_and_goes_on_a_tap_named_later() {
    let Some(lab) = Lab::new(true) else { return };
    PrivateNamespace::enter().unwrap();
    ip("tuntap add plug0 mode tap");
    ip("link set plug0 up");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut vm = lab.vm("vm.toml", &["--attach-taps"]).await;
        vm.says("ready").await;
        let missing = vm.attach_net("tap = \"none\"\nmac = \"02:00:00:00:00:09\"").await.unwrap_err();
        assert!(missing.message().contains("there is no tap none"), "{missing}");
        for _ in 0..2 {
            let card = vm.attach_net("tap = \"plug0\"\nmac = \"02:00:00:00:00:09\"").await.unwrap();
            assert_eq!((card.name.as_str(), card.slot), ("plug0", 2));
            vm.says("plug: slot 2 Network").await;
            assert!(has_carrier(), "the tap has its reader");
            assert_eq!(vm.detach("02:00:00:00:00:09", 0).await.unwrap(), 2);
            assert!(!has_carrier(), "the tap is let go of");
        }
        vm.stop().await;
    });
}

/// Whether somebody reads the tap.
fn has_carrier() -> bool {
    let shown = run(Command::new("ip").args(["-o", "link", "show", "plug0"]));
    String::from_utf8_lossy(&shown.stdout).contains("LOWER_UP")
}
