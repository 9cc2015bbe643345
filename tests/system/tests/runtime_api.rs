//! The runtime API of a VM's process, as a node's daemon and a containerd shim use it: loss, re-protection and loss again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use endophyte_api::{
    AttachDiskRequest, HandOverRequest, InfoRequest, MetricsRequest, PauseRequest, Policy,
    PressPowerButtonRequest, ResumeRequest, Role, SetAllowedRequest, SetBalloonRequest, SetReplicasRequest,
    SnapshotProgress, StopRequest, VmClient, VmInfo, WatchRequest,
};
use rhizomorph_link::Identity;
use system_tests::process::{Running, reach};
use system_tests::vm::{console_until, save};
use system_tests::{has_kvm, program, run, threads_of};
use tokio::time::timeout;
use tokio_stream::{StreamExt, iter};

/// Bounds a test that fails; two VMs seed each other on two busy cores.
const PATIENCE: Duration = Duration::from_secs(60);
const ARBITER: &str = "127.0.0.1:17600";

/// A folder with an arbiter, keys and a spec.
struct Lab {
    dir: tempfile::TempDir,
    _arbiter: Option<Running>,
}

impl Lab {
    fn new() -> Option<Self> {
        let guest = program("native-guest")?;
        if !has_kvm() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let spec = format!(
            "name = \"api\"\nvcpus = 1\nram_mib = 64\nkernel = {guest:?}\ncmdline = \"heartbeat=5\"\nserial = \"null\"\n"
        );
        fs::write(dir.path().join("vm.toml"), spec).unwrap();
        for name in ["arbiter", "a", "b", "c", "d"] {
            Identity::generate().unwrap().save(&dir.path().join(format!("{name}.key"))).unwrap();
        }
        Some(Self { dir, _arbiter: None })
    }

    fn with_arbiter() -> Option<Self> {
        let mut lab = Self::new()?;
        let mut command = Command::new(program("mycelium")?);
        command.args(["arbiter", "run", "--listen", ARBITER, "--key"]).arg(lab.path("arbiter.key"));
        command.arg("--dir").arg(lab.path("arbiter"));
        for name in ["a", "b", "c", "d"] {
            command.args(["--allow", &lab.key(name)]);
        }
        let mut arbiter = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(arbiter.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("listens"), "{line:?}");
        lab._arbiter = Some(arbiter);
        Some(lab)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn key(&self, name: &str) -> String {
        Identity::load(&self.path(&format!("{name}.key"))).unwrap().peer_key().to_string()
    }

    /// The record, as the arbiter shows it.
    fn record(&self) -> serde_json::Value {
        let arbiter = format!("{}@{ARBITER}", self.key("arbiter"));
        let mut show = Command::new(program("mycelium").unwrap());
        show.args(["arbiter", "show", "--json", "--arbiter", &arbiter, "--key"]).arg(self.path("a.key"));
        let output = run(show.arg("api"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn listed(&self) -> usize {
        self.record()["in_sync"].as_array().unwrap().len()
    }

    /// A process that goes on where `snapshot` was taken.
    fn restoring(&self, snapshot: &Path, rest: &[&str]) -> Command {
        let mut command = Command::new(program("endophyte").unwrap());
        command.args(["run", "--spec"]).arg(self.path("vm.toml")).stdout(Stdio::null());
        command.arg("--restore").arg(snapshot).args(rest);
        command
    }

    /// Why a process that should restore did not.
    fn refusal(&self, snapshot: &Path) -> String {
        let output = run(self.restoring(snapshot, &[]).stdin(Stdio::null()));
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    async fn run(&self) -> Vm {
        let mut command = Command::new(program("endophyte").unwrap());
        command.args(["run", "--spec"]).arg(self.path("vm.toml")).stdout(Stdio::null());
        command.arg("--reach").arg(self.dir.path());
        Vm::start(command, &self.path("run.sock")).await
    }

    /// One side of a protected VM.
    fn command(&self, role: &str, name: &str, rest: &[&str]) -> Command {
        let mut command = Command::new(program("endophyte").unwrap());
        command.args([role, "--spec"]).arg(self.path("vm.toml"));
        command.arg("--key").arg(self.path(&format!("{name}.key")));
        command.args(["--arbiter", &format!("{}@{ARBITER}", self.key("arbiter"))]);
        command.arg("--run-dir").arg(self.path(name)).args(rest).stdout(Stdio::null());
        command
    }

    async fn node(&self, role: &str, name: &str, rest: &[&str]) -> Vm {
        Vm::start(self.command(role, name, rest), &self.path(&format!("{name}.sock"))).await
    }

    async fn passive(&self, name: &str) -> Vm {
        self.node("passive", name, &["--listen", "127.0.0.1:0"]).await
    }
}

/// A VM's process and the way to it.
struct Vm {
    process: Running,
    api: VmClient,
}

impl Vm {
    async fn start(mut command: Command, socket: &Path) -> Self {
        command.arg("--api").arg(socket).arg("--die-with-parent");
        let mut process = Running(command.stdin(Stdio::null()).spawn().unwrap());
        let api = reach(&mut process, socket).await;
        Self { process, api }
    }

    async fn info(&mut self) -> VmInfo {
        self.api.info(InfoRequest {}).await.unwrap().into_inner()
    }

    /// Watches until it is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&VmInfo) -> bool) -> VmInfo {
        let mut watch = self.api.watch(WatchRequest {}).await.unwrap().into_inner();
        let mut last = None;
        let seen = async {
            while let Some(info) = watch.next().await {
                let info = info.unwrap();
                if wanted(&info) {
                    return info;
                }
                last = Some(info);
            }
            panic!("the process ended");
        };
        let seen = timeout(PATIENCE, seen).await;
        seen.unwrap_or_else(|_| panic!("waited in vain for {what}: {last:?}"))
    }

    /// The ticket of a passive that listens, with these keys allowed.
    async fn ticket(&mut self, allowed: &[String]) -> String {
        let info = self.until("a passive that listens", |i| !i.ticket.is_empty()).await;
        self.api.set_allowed(SetAllowedRequest { keys: allowed.to_vec() }).await.unwrap();
        info.ticket
    }

    async fn set_replicas(&mut self, tickets: &[&str]) {
        let tickets = tickets.iter().map(ToString::to_string).collect();
        self.api.set_replicas(SetReplicasRequest { tickets }).await.unwrap();
    }

    async fn until_protected(&mut self) {
        let info = self.until("protection", |i| i.protected).await;
        assert!(info.replicas.iter().any(|r| r.state == "in sync"), "{info:?}");
    }

    /// The console from an offset on, until it holds `wanted`.
    async fn console(&mut self, from: u64, wanted: &str) -> String {
        self.console_until(from, wanted, |text| text.contains(wanted)).await
    }

    /// The console from an offset on, until it is as wanted.
    async fn console_until(&mut self, from: u64, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        console_until(&mut self.api, from, PATIENCE, what, wanted).await
    }

    /// Takes a snapshot; the last message.
    async fn save(&mut self, path: &Path, stop: bool) -> Result<SnapshotProgress, tonic::Status> {
        save(&mut self.api, path, stop).await
    }

    /// Every thread of it is under a filter.
    fn is_confined(&self) {
        for thread in threads_of(self.process.0.id()) {
            assert!(thread.filtered && thread.no_new_privileges, "{thread:?}");
        }
    }

    fn signal(&self, signal: &str) {
        let sent = run(Command::new("kill").arg(signal).arg(self.process.0.id().to_string()));
        assert!(sent.status.success(), "{sent:?}");
    }

    /// Asks it to stop and returns its exit code.
    async fn stop(mut self) -> Option<i32> {
        self.api.stop(StopRequest {}).await.unwrap();
        self.ends()
    }

    /// Waits for its end and returns its exit code.
    fn ends(mut self) -> Option<i32> {
        self.process.0.wait().unwrap().code()
    }
}

#[tokio::test]
async fn a_plain_vm_is_seen_paused_and_stopped() {
    let Some(lab) = Lab::new() else { return };
    let mut vm = lab.run().await;
    vm.console(0, "ready").await;
    let info = vm.info().await;
    assert_eq!((info.role(), info.name.as_str(), info.vcpus), (Role::Run, "api", 1));
    assert_eq!(info.ram_bytes, 64 << 20);
    vm.api.pause(PauseRequest {}).await.unwrap();
    let paused = vm.info().await;
    assert!(paused.paused);
    // Twenty ticks' time: the console says nothing while the guest stands.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(vm.info().await.console_bytes, paused.console_bytes);
    vm.api.resume(ResumeRequest {}).await.unwrap();
    assert!(!vm.info().await.paused);
    vm.console(paused.console_bytes, "\n").await;
    let refused = vm.api.set_replicas(SetReplicasRequest { tickets: Vec::new() }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let mut typing = vm.api.console(iter([])).await.unwrap().into_inner();
    assert!(typing.next().await.is_none());
    assert_eq!(vm.stop().await, Some(0));
    assert!(!lab.path("run.sock").exists());
}

/// Numbers and monotonic times of the tick lines in a console's text.
fn ticks(text: &str) -> Vec<(u64, u64)> {
    let tick = |line: &str| {
        let mut words = line.strip_prefix("tick ")?.split(' ');
        let number = words.next()?.parse().ok()?;
        Some((number, words.next()?.strip_prefix("mono_ns=")?.parse().ok()?))
    };
    // The last line may not be whole yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(tick).collect()
}

#[tokio::test]
async fn a_vm_saved_to_a_file_goes_on_in_another_process_where_it_stood() {
    let Some(lab) = Lab::new() else { return };
    for how in [&[][..], &["--whole"]] {
        let file = lab.path(&format!("saved{}", how.len()));
        let mut vm = lab.run().await;
        let before = vm.console(0, "tick 20 ").await;
        // The guest goes on after a snapshot, and is worth another one.
        assert!(vm.save(&file, false).await.unwrap().finished);
        let end = vm.info().await.console_bytes;
        vm.console(end, "tick ").await;
        let saved = vm.save(&file, true).await.unwrap();
        assert!(saved.finished && saved.paused_us > 0, "{saved:?}");
        assert_eq!(vm.process.0.wait().unwrap().code(), Some(0));

        let mut vm = Vm::start(lab.restoring(&file, how), &lab.path("run.sock")).await;
        let after = vm.console_until(0, "twenty ticks", |text| ticks(text).len() >= 20).await;
        let (last, after) = (ticks(&before).pop().unwrap(), ticks(&after));
        assert!(after[0].0 > last.0 && after[0].1 > last.1, "counter and clock go on: {last:?} {after:?}");
        let numbers: Vec<u64> = after.iter().map(|tick| tick.0).collect();
        assert!(numbers.is_sorted_by(|a, b| a + 1 == *b), "{numbers:?}");
        assert_eq!(vm.stop().await, Some(0));
    }
}

#[tokio::test]
async fn snapshots_that_cannot_be_taken_or_restored_say_why_and_harm_nothing() {
    let Some(lab) = Lab::new() else { return };
    let disk = lab.path("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let spec = fs::read_to_string(lab.path("vm.toml")).unwrap();
    fs::write(lab.path("vm.toml"), format!("{spec}[[disk]]\npath = {disk:?}\n")).unwrap();
    let file = lab.path("saved");
    let mut vm = lab.run().await;
    vm.console(0, "tick 3 ").await;
    let relative = vm.save(Path::new("saved"), false).await.unwrap_err();
    assert_eq!(relative.code(), tonic::Code::InvalidArgument);
    let nowhere = vm.save(&lab.path("no/such/folder"), true).await.unwrap_err();
    assert!(nowhere.message().contains("no/such"), "{nowhere:?}");
    let end = vm.info().await.console_bytes;
    vm.console(end, "tick ").await;
    assert!(vm.save(&file, true).await.unwrap().finished);
    assert_eq!(vm.process.0.wait().unwrap().code(), Some(0));

    let whole = fs::read(&file).unwrap();
    let other = lab.path("other");
    fs::write(&other, &whole[..whole.len() - 100]).unwrap();
    let cut = lab.refusal(&other);
    assert!(cut.contains("other"), "{cut}");
    fs::write(&other, "hello").unwrap();
    let foreign = lab.refusal(&other);
    assert!(foreign.contains("other"), "{foreign}");
    fs::write(lab.path("vm.toml"), spec.replace("ram_mib = 64", "ram_mib = 128")).unwrap();
    let unlike = lab.refusal(&file);
    assert!(unlike.contains("another machine") && unlike.contains("ram_bytes"), "{unlike}");
    fs::write(lab.path("vm.toml"), format!("{spec}[[disk]]\npath = {disk:?}\n")).unwrap();
    fs::write(&disk, vec![1; 1 << 20]).unwrap();
    let changed = lab.refusal(&file);
    assert!(changed.contains("has changed since the snapshot"), "{changed}");
    assert_eq!(fs::read(&file).unwrap(), whole);
}

#[tokio::test]
async fn the_machine_can_be_asked_for_figures_and_for_what_it_has() {
    let Some(lab) = Lab::new() else { return };
    let mut vm = lab.run().await;
    vm.console(0, "ready").await;
    let text = vm.api.metrics(MetricsRequest {}).await.unwrap().into_inner().text;
    assert!(
        text.contains("# TYPE endophyte_vcpu_exits_total counter\nendophyte_vcpu_exits_total{vcpu=\"0\"} "),
        "{text}"
    );
    let missing = vm.api.set_balloon(SetBalloonRequest { bytes: 1 << 20 }).await.unwrap_err();
    assert!(missing.message().contains("balloon"), "{missing:?}");
    // The native guest does not listen to the button; the press itself must not fail.
    vm.api.press_power_button(PressPowerButtonRequest {}).await.unwrap();
    assert_eq!(vm.stop().await, Some(0));
}

#[tokio::test]
async fn a_replica_that_cannot_journal_what_it_promises_of_its_disk_says_so() {
    let Some(lab) = Lab::new() else { return };
    let disk = lab.path("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    fs::create_dir(lab.path("disk.journal")).unwrap();
    let spec = fs::read_to_string(lab.path("vm.toml")).unwrap();
    fs::write(lab.path("vm.toml"), format!("{spec}[[disk]]\npath = {disk:?}\n")).unwrap();
    let passive = ["--listen", "127.0.0.1:0", "--allow", &lab.key("a")];
    let output = run(lab.command("passive", "b", &passive).stdin(Stdio::null()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the journal") && said.contains("disk.journal"), "{said}");
    assert_eq!(output.status.code(), Some(4));
}

#[tokio::test]
async fn protection_is_given_taken_and_given_again_through_losses() {
    let Some(lab) = Lab::with_arbiter() else { return };
    let mut b = lab.passive("b").await;
    let to_b = b.ticket(&[lab.key("a")]).await;
    let mut a = lab.node("active", "a", &[]).await;
    a.until("an unprotected guest", |i| i.state == "unprotected" && i.console_bytes > 0).await;
    assert_eq!(lab.listed(), 0);
    let table = format!("path = {:?}", lab.path("vm.toml"));
    let refused = a.api.attach_disk(AttachDiskRequest { table }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("a protected VM's devices cannot change yet"), "{refused}");

    a.set_replicas(&[&to_b]).await;
    a.until_protected().await;
    assert_eq!(lab.listed(), 1);
    a.is_confined();
    b.is_confined();
    let first = b.until("the replica to be listed", |i| i.listed).await.incarnation;

    a.set_replicas(&[]).await;
    a.until("the end of protection", |i| {
        !i.protected && i.replicas.is_empty() && i.reason.contains("no replica")
    })
    .await;
    assert_eq!(lab.listed(), 0);
    b.until("a new incarnation", |i| !i.listed && i.incarnation != first).await;

    let mut c = lab.passive("c").await;
    let to_c = c.ticket(&[lab.key("a")]).await;
    a.set_replicas(&[&to_c]).await;
    a.until_protected().await;

    // Held across epochs, and protected all the while.
    a.api.pause(PauseRequest {}).await.unwrap();
    let epochs = a.info().await.figures.unwrap().epochs_committed;
    let later = a.until("epochs to go on", |i| i.figures.unwrap().epochs_committed > epochs + 20).await;
    assert!(later.paused && later.protected);
    let said = later.console_bytes;
    assert_eq!(a.info().await.console_bytes, said);
    a.api.resume(ResumeRequest {}).await.unwrap();
    a.console(said, "\n").await;

    c.until("the replica to be listed", |i| i.listed).await;
    drop(a);
    let info = c.until("the takeover", |i| i.role() == Role::Active).await;
    assert_eq!(info.generation, 2);
    let at = c.until("words of the guest", |i| i.console_bytes > said).await.console_bytes;
    c.console(at, "\n").await;

    let mut d = lab.passive("d").await;
    let to_d = d.ticket(&[lab.key("c")]).await;
    c.set_replicas(&[&to_d]).await;
    c.until_protected().await;
    d.until("the replica to be listed", |i| i.listed).await;
    drop(c);
    let info = d.until("the second takeover", |i| i.role() == Role::Active).await;
    assert_eq!(info.generation, 3);
    let at = d.info().await.console_bytes;
    d.console(at, "\n").await;
    // The one that was dismissed may serve again.
    let to_b = b.ticket(&[lab.key("d")]).await;
    d.set_replicas(&[&to_b]).await;
    d.until_protected().await;
    assert_eq!(d.stop().await, Some(0));
    assert_eq!(lab.listed(), 0);
}

#[tokio::test]
async fn a_policy_is_set_while_the_vm_runs_and_holds_after_a_takeover() {
    let Some(lab) = Lab::with_arbiter() else { return };
    let mut b = lab.passive("b").await;
    let to_b = b.ticket(&[lab.key("a")]).await;
    let mut a = lab.node("active", "a", &["--replica", &to_b]).await;
    a.until_protected().await;
    let preset = |name: &str| Policy { preset: name.to_owned(), ..Policy::default() };
    assert_eq!(a.api.set_policy(Policy::default()).await.unwrap().into_inner().preset, "balanced");
    for wrong in [
        preset("quick"),
        Policy { epoch_us: 5000, ..preset("balanced") },
        Policy { epoch_us: 5000, ..Policy::default() },
    ] {
        let refused = a.api.set_policy(wrong).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    }
    let refused = b.api.set_policy(preset("performance")).await.unwrap_err();
    assert!(refused.message().contains("ask the process that is its active"), "{refused}");

    let set = a.api.set_policy(preset("consistency")).await.unwrap().into_inner();
    assert_eq!((set.epoch_us, set.cut_share_percent), (10_000, 50));
    assert_eq!(a.info().await.policy.unwrap().preset, "consistency");
    assert_eq!(lab.record()["pace"]["epoch_max_us"], 10_000);
    b.until("the replica to be listed", |i| i.listed).await;
    drop(a);
    b.until("the takeover", |i| i.role() == Role::Active).await;
    let info = b.until("its policy", |i| i.policy.is_some()).await;
    assert_eq!(info.policy.unwrap().preset, "consistency");
    let api = lab.path("b.sock").display().to_string();
    let words = ["vm", "policy", "--api", &api, "--json", "--epoch-ms", "40"];
    let output = run(Command::new(program("mycelium").unwrap()).args(words));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&said["epoch_us"], &said["cut_share_percent"], &said["preset"]),
        (&40_000.into(), &50.into(), &"".into())
    );
}

/// Leases of 200 ms, at most half a second of the guest's time to lose.
fn on_leases() -> Policy {
    Policy { mode: "async".to_owned(), lease_us: 200_000, exposure_us: 500_000, ..Policy::default() }
}

#[tokio::test]
async fn output_need_not_wait_for_its_epoch_and_the_record_says_so() {
    let Some(lab) = Lab::with_arbiter() else { return };
    let mut b = lab.passive("b").await;
    let to_b = b.ticket(&[lab.key("a")]).await;
    let mut a = lab.node("active", "a", &["--replica", &to_b]).await;
    a.until_protected().await;
    let short = Policy { lease_us: 5, ..on_leases() };
    let refused = a.api.set_policy(short).await.unwrap_err();
    assert!(refused.message().contains("20 ms to 10 s"), "{refused}");
    assert_eq!(a.info().await.figures.unwrap().exposure_us, None);

    let set = a.api.set_policy(on_leases()).await.unwrap().into_inner();
    assert_eq!((set.mode.as_str(), set.preset.as_str()), ("async", "balanced"));
    assert_eq!(lab.record()["mode"]["async"]["lease_us"], 200_000);
    let exposed = |i: &VmInfo| i.figures.is_some_and(|f| f.exposure_us.is_some());
    let exposure = a.until("its exposure", exposed).await.figures.unwrap().exposure_us.unwrap();
    assert!(exposure < 1_000_000, "{exposure}");

    b.until("the replica to be listed", |i| i.listed).await;
    drop(a);
    b.until("the takeover", |i| i.role() == Role::Active).await;
    let info = b.until("its policy", |i| i.policy.is_some()).await;
    assert_eq!(info.policy.unwrap(), set);
    let api = lab.path("b.sock").display().to_string();
    let output =
        run(Command::new(program("mycelium").unwrap())
            .args(["vm", "policy", "--api", &api, "--mode", "sync"]));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("sync: output waits for its epoch"),
        "{output:?}"
    );
    assert_eq!(lab.record()["mode"], "sync");
}

#[tokio::test]
async fn an_active_that_was_stopped_in_async_says_nothing_when_it_is_continued() {
    let Some(lab) = Lab::with_arbiter() else { return };
    let mut b = lab.passive("b").await;
    let to_b = b.ticket(&[lab.key("a")]).await;
    let mut a = lab.node("active", "a", &["--replica", &to_b]).await;
    a.until_protected().await;
    a.api.set_policy(on_leases()).await.unwrap();
    a.until("its exposure", |i| i.figures.is_some_and(|f| f.exposure_us.is_some())).await;
    b.until("the replica to be listed", |i| i.listed).await;
    let said = || fs::metadata(lab.path("a").join("serial.log")).unwrap().len();
    a.signal("-STOP");
    b.until("the takeover", |i| i.role() == Role::Active).await;
    let before = said();
    a.signal("-CONT");
    assert_eq!(a.ends(), Some(6), "deposed");
    // A line whose write had begun may end.
    assert!(said() <= before + 80, "{} bytes more", said() - before);
}

#[tokio::test]
async fn of_two_replicas_one_takes_over_and_the_other_serves_it() {
    let Some(lab) = Lab::with_arbiter() else { return };
    let (mut b, mut c) = (lab.passive("b").await, lab.passive("c").await);
    let to_b = b.ticket(&[lab.key("a"), lab.key("c")]).await;
    let to_c = c.ticket(&[lab.key("a"), lab.key("b")]).await;
    let mut a = lab.node("active", "a", &[]).await;
    a.set_replicas(&[&to_b, &to_c]).await;
    a.until("both in sync", |i| i.protected && i.replicas.iter().all(|r| r.state == "in sync")).await;
    assert_eq!(lab.listed(), 2);
    let first = [b.info().await.incarnation, c.info().await.incarnation];
    for passive in [&mut b, &mut c] {
        passive.until("it to know that it is listed", |i| i.listed).await;
    }
    drop(a);
    // Whoever is first; the other one finds the record changed and begins anew.
    let decided = async {
        loop {
            if b.info().await.role() == Role::Active || c.info().await.role() == Role::Active {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, decided).await.expect("one of them takes over");
    let b_won = b.info().await.role() == Role::Active;
    let (winner, loser, to_loser, was) =
        if b_won { (&mut b, &mut c, to_c, &first[1]) } else { (&mut c, &mut b, to_b, &first[0]) };
    assert_eq!(winner.info().await.generation, 2);
    loser.until("a new incarnation", |i| i.incarnation != *was && i.role() == Role::Passive).await;
    winner.set_replicas(&[&to_loser]).await;
    winner.until_protected().await;
    assert_eq!(lab.listed(), 1);
    let at = winner.info().await.console_bytes;
    winner.console(at, "\n").await;
    let reply = winner.api.hand_over(HandOverRequest::default()).await.unwrap().into_inner();
    assert_eq!(reply.generation, 3);
    let at = loser.until("the guest", |i| i.role() == Role::Active).await.console_bytes;
    loser.console(at, "\n").await;
}

#[tokio::test]
async fn a_guest_is_handed_over_and_back() {
    let Some(lab) = Lab::with_arbiter() else { return };
    let mut b = lab.passive("b").await;
    let to_b = b.ticket(&[lab.key("a")]).await;
    let mut a = lab.node("active", "a", &[]).await;
    let any = || HandOverRequest::default();
    a.until("its guest to run", |i| i.console_bytes > 0).await;
    let refused = a.api.hand_over(any()).await.unwrap_err();
    assert!(refused.message().contains("wait until the VM is protected"), "{refused}");
    a.set_replicas(&[&to_b]).await;
    a.until_protected().await;
    let refused = b.api.hand_over(any()).await.unwrap_err();
    assert!(refused.message().contains("ask the process that is its active"), "{refused}");
    let elsewhere = HandOverRequest { node: lab.key("c") };
    let refused = a.api.hand_over(elsewhere).await.unwrap_err();
    assert!(refused.message().contains("holds no replica in sync"), "{refused}");
    let wrong = HandOverRequest { node: "somewhere".to_owned() };
    assert_eq!(a.api.hand_over(wrong).await.unwrap_err().code(), tonic::Code::InvalidArgument);

    let reply = a.api.hand_over(HandOverRequest { node: lab.key("b") }).await.unwrap().into_inner();
    assert_eq!((reply.node, reply.generation), (lab.key("b"), 2));
    assert_eq!(a.ends(), Some(0));
    let info = b.until("the guest", |i| i.role() == Role::Active).await;
    let at = info.console_bytes;
    b.console(at, "\n").await;

    // Back to where it was, by a process of its own.
    let mut a = lab.passive("a").await;
    let to_a = a.ticket(&[lab.key("b")]).await;
    b.set_replicas(&[&to_a]).await;
    b.until_protected().await;
    assert_eq!(b.api.hand_over(any()).await.unwrap().into_inner().generation, 3);
    assert_eq!(b.ends(), Some(0));
    let at = a.until("the guest", |i| i.role() == Role::Active).await.console_bytes;
    a.console(at, "\n").await;
    assert_eq!(a.stop().await, Some(0));
}

#[tokio::test]
async fn a_passive_that_nobody_visits_ends_and_says_why() {
    let Some(lab) = Lab::with_arbiter() else { return };
    let mut b = lab.node("passive", "b", &["--listen", "127.0.0.1:0", "--orphan-after", "1"]).await;
    let ended = b.until("its end", |i| i.state == "stopped").await;
    assert!(ended.reason.contains("no active came within 1 s"), "{ended:?}");
    assert_eq!(b.process.0.wait().unwrap().code(), Some(0));
    let timeline = fs::read_to_string(lab.path("b/events.jsonl")).unwrap();
    assert!(timeline.lines().last().unwrap().contains("no active came"), "{timeline}");
}

#[tokio::test]
async fn a_vm_dies_with_its_caller() {
    let Some(lab) = Lab::new() else { return };
    let (spec, socket) = (lab.path("vm.toml"), lab.path("run.sock"));
    // A caller that is killed while its VM runs.
    let script = r#""$0" run --spec "$1" --api "$2" --die-with-parent & echo started; wait"#;
    let mut caller = Command::new("sh");
    caller.args(["-c", script]).arg(program("endophyte").unwrap()).args([&spec, &socket]);
    let mut caller = Running(caller.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    let mut vm = reach(&mut caller, &socket).await;
    vm.info(InfoRequest {}).await.unwrap();
    let mut watch = vm.watch(WatchRequest {}).await.unwrap().into_inner();
    drop(caller);
    let gone = timeout(PATIENCE, async { while let Some(Ok(_)) = watch.next().await {} }).await;
    assert!(gone.is_ok(), "the VM outlived its caller");
}

#[tokio::test]
async fn a_protected_console_is_on_standard_output_once_and_in_order() {
    let Some(lab) = Lab::with_arbiter() else { return };
    let spec = fs::read_to_string(lab.path("vm.toml")).unwrap();
    fs::write(lab.path("vm.toml"), spec.replace("\"null\"", "\"stdio\"")).unwrap();
    let mut b = lab.passive("b").await;
    let to_b = b.ticket(&[lab.key("a")]).await;
    let terminal = fs::File::create(lab.path("terminal")).unwrap();
    let mut command = lab.command("active", "a", &["--replica", &to_b]);
    command.stdout(terminal);
    let mut a = Vm::start(command, &lab.path("a.sock")).await;
    a.until_protected().await;
    let said = a.info().await.console_bytes;
    a.until("more words", |i| i.console_bytes > said + 200).await;
    assert_eq!(a.stop().await, Some(0));
    let (terminal, log) =
        (fs::read(lab.path("terminal")).unwrap(), fs::read(lab.path("a/serial.log")).unwrap());
    assert!(terminal.len() as u64 > said);
    assert_eq!(String::from_utf8_lossy(&terminal), String::from_utf8_lossy(&log));
}
