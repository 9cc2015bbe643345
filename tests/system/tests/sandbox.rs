//! The real VMM in its sandbox: every thread is confined, every device works, and what is out of reach stays there.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use endophyte_api::{
    InfoRequest, MetricsRequest, PauseRequest, PressPowerButtonRequest, ResumeRequest, SetBalloonRequest,
    SnapshotProgress, StopRequest, VmClient,
};
use rustix::io::{FdFlags, fcntl_setfd};
use system_tests::process::{Running, reach};
use system_tests::vm::save;
use system_tests::{Confinement, has_kvm, program, skip, threads_of};

/// Bounds a test that fails; a disk is verified on two busy cores.
const PATIENCE: Duration = Duration::from_secs(120);
const RAM_MIB: u64 = 64;
const DISK_BYTES: u64 = 16 << 20;
/// Pages the balloon is asked to take.
const BALLOON_PAGES: u64 = 4096;
const RESP_PORT: u32 = 6379;
const GUEST: &str = "ip=10.0.0.2/24 heartbeat=100 blk=verify:8388608 blk=misc rng=check hvc=echo vsock=echo:7 \
                     vsock=resp:6379 vsock=connect:99";

/// A folder with a machine that has every device.
struct Lab {
    dir: tempfile::TempDir,
    /// The host's end of the guest's cable.
    cable: UnixDatagram,
    /// The other one, which the VMM inherits.
    plug: UnixDatagram,
}

impl Lab {
    /// `None`, with the reason printed, where there is no way to.
    fn new(format: &str, cache: &str) -> Option<Self> {
        let guest = program("native-guest")?;
        if !has_kvm() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (cable, plug) = UnixDatagram::pair().unwrap();
        fcntl_setfd(&plug, FdFlags::empty()).unwrap();
        cable.set_read_timeout(Some(PATIENCE)).unwrap();
        let lab = Self { dir, cable, plug };
        ["doors", "saves", "elsewhere"].iter().for_each(|name| fs::create_dir(lab.path(name)).unwrap());
        make_image(&lab.path("disk"), format)?;
        let spec = format!(
            "name = \"confined\"\nram_mib = {RAM_MIB}\nkernel = {guest:?}\ncmdline = \"{GUEST}\"\nserial = \"console\"\n\
             rng = true\nballoon = true\n[[net]]\ntap = \"fd:{}\"\nmac = \"02:00:00:00:00:02\"\n\
             [[disk]]\npath = \"disk\"\nformat = \"{format}\"\ncache = \"{cache}\"\nserial = \"abc\"\n\
             [vsock]\ncid = 5\nsocket = \"doors/vsock\"\n[[console]]\nname = \"c\"\nsocket = \"doors/console\"\n",
            lab.plug.as_raw_fd()
        );
        fs::write(lab.path("vm.toml"), spec).unwrap();
        Some(lab)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn run(&self, rest: &[&str]) -> Vm {
        let mut command = Command::new(program("endophyte").unwrap());
        command.args(["run", "--die-with-parent", "--spec"]).arg(self.path("vm.toml"));
        command.arg("--api").arg(self.path("doors/api")).arg("--reach").arg(self.path("saves")).args(rest);
        let mut process = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let api = reach(&mut process, &self.path("doors/api")).await;
        Vm { process, api, log: self.path("console") }
    }

    /// A connection to a port of the guest's.
    fn connect(&self, port: u32) -> BufReader<UnixStream> {
        let mut stream = BufReader::new(UnixStream::connect(self.path("doors/vsock")).unwrap());
        stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream.get_mut(), "CONNECT {port}").unwrap();
        assert!(line(&mut stream).starts_with("OK "));
        stream
    }

    /// The last of `lines` lines that the guest answers a command with.
    fn ask(&self, command: &str, lines: usize) -> String {
        let mut stream = self.connect(RESP_PORT);
        write!(stream.get_mut(), "{command}\r\n").unwrap();
        (0..lines).map(|_| line(&mut stream)).last().unwrap_or_default().trim_end().to_owned()
    }

    /// Asks who has the guest's address, and hears it from the guest.
    fn arp(&self) {
        let (us, them) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut question = [0xff; 6].to_vec();
        question.extend(us);
        question.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        question.extend(us);
        question.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        question.resize(60, 0);
        self.cable.send(&question).unwrap();
        let mut frame = [0; 2048];
        loop {
            let bytes = self.cable.recv(&mut frame).unwrap();
            if bytes >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
                return assert_eq!(frame[22..28], them);
            }
        }
    }

    /// Bytes there and back through the guest's sockets.
    fn echo(&self) {
        let message: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let mut stream = self.connect(7);
        let mut writer = stream.get_ref().try_clone().unwrap();
        let mut back = vec![0; message.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&message).unwrap());
            stream.read_exact(&mut back).unwrap();
        });
        assert!(back == message);
    }

    fn type_a_line(&self) {
        let mut console = BufReader::new(UnixStream::connect(self.path("doors/console")).unwrap());
        console.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        console.get_mut().write_all(b"over here\n").unwrap();
        while line(&mut console) != "over here\n" {}
    }

    async fn balloon(&self, vm: &mut Vm) {
        vm.api.set_balloon(SetBalloonRequest { bytes: BALLOON_PAGES * 4096 }).await.unwrap();
        let begun = Instant::now();
        // The guest answers each question: this waits for it, not for the time.
        while self.ask("BALLOON", 7) != format!(":{BALLOON_PAGES}") {
            assert!(begun.elapsed() < PATIENCE);
        }
        vm.api.set_balloon(SetBalloonRequest { bytes: 0 }).await.unwrap();
    }

    /// What the guest does by itself after a boot, and all that can be done with it.
    async fn use_every_device(&self, vm: &mut Vm, from: usize) {
        for word in ["native-guest: ready", "rng: ok", "blk: verify ok", "blk: misc ok"] {
            vm.console(from, word).await;
        }
        self.arp();
        self.echo();
        self.type_a_line();
        self.balloon(vm).await;
        vm.api.metrics(MetricsRequest {}).await.unwrap();
        vm.api.press_power_button(PressPowerButtonRequest {}).await.unwrap();
        vm.api.pause(PauseRequest {}).await.unwrap();
        vm.api.resume(ResumeRequest {}).await.unwrap();
        assert_eq!(self.ask("BLK WRITE 3 65", 1), "+OK");
        assert_eq!(self.ask("BLK FLUSH", 1), "+OK");
        assert_eq!(self.ask("BLK READ 3", 2), "A".repeat(512));
    }
}

fn line(from: &mut impl BufRead) -> String {
    let mut text = String::new();
    from.read_line(&mut text).unwrap();
    assert!(!text.is_empty(), "it hung up");
    text
}

fn make_image(path: &Path, format: &str) -> Option<()> {
    if format == "raw" {
        fs::File::create_new(path).unwrap().set_len(DISK_BYTES).unwrap();
        return Some(());
    }
    let mut make = Command::new("qemu-img");
    match make.args(["create", "-q", "-f", format]).arg(path).arg(DISK_BYTES.to_string()).status() {
        Ok(status) => status.success().then_some(()),
        Err(_) => {
            skip("qemu-img is missing; install qemu-utils");
            None
        }
    }
}

/// A VM's process and the way to it.
struct Vm {
    process: Running,
    api: VmClient,
    log: PathBuf,
}

impl Vm {
    /// Waits for a word on the console, of which `from` bytes are old.
    async fn console(&mut self, from: usize, wanted: &str) {
        let begun = Instant::now();
        while !self.log()[from..].contains(wanted) {
            assert!(begun.elapsed() < PATIENCE, "no {wanted:?} on the console: {}", &self.log()[from..]);
            // The process answers, so it lives; and the guest gets to run.
            self.api.info(InfoRequest {}).await.unwrap();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn save(&mut self, path: &Path, stop: bool) -> Result<SnapshotProgress, tonic::Status> {
        save(&mut self.api, path, stop).await
    }

    /// Every thread is under a filter, and none has a right or a way to one.
    fn is_filtered(&self) -> Vec<Confinement> {
        let threads = threads_of(self.process.id());
        for thread in &threads {
            assert!(thread.filtered && thread.no_new_privileges && thread.capabilities == 0, "{thread:?}");
        }
        threads
    }

    /// The same, and threads with a kind are under a filter more. For a VM that runs.
    fn is_confined(&self) -> Vec<Confinement> {
        let threads = self.is_filtered();
        for thread in &threads {
            let has_kind = ["vcpu", "device", "api"].iter().any(|kind| thread.name.starts_with(kind));
            assert!(!has_kind || thread.filters == 4, "a narrower filter of its own: {thread:?}");
        }
        threads
    }

    async fn stop(mut self) -> Option<i32> {
        self.api.stop(StopRequest {}).await.unwrap();
        self.process.wait().unwrap().code()
    }
}

/// Everything a VM alone can do, in its sandbox.
async fn lives_a_whole_life(format: &str, cache: &str) {
    let Some(lab) = Lab::new(format, cache) else { return };
    let listener = UnixListener::bind(lab.path("doors/vsock_99")).unwrap();
    // The guest asks after each boot; the thread ends with the test.
    std::thread::spawn(move || {
        for guest in listener.incoming() {
            let mut guest = guest.unwrap();
            let asked = line(&mut BufReader::new(&guest));
            guest.write_all(asked.as_bytes()).unwrap();
        }
    });
    let mut vm = lab.run(&[]).await;
    vm.console(0, "vsock: ok").await;
    lab.use_every_device(&mut vm, 0).await;
    let threads = vm.is_confined();
    for name in ["vcpu0", "devices", "device2", "device31", "api", "endophyte"] {
        assert!(threads.iter().any(|thread| thread.name == name), "no {name}: {threads:?}");
    }

    let from = vm.log().len();
    // The guest may be gone before it has answered.
    lab.connect(RESP_PORT).get_mut().write_all(b"RESET\r\n").unwrap();
    lab.use_every_device(&mut vm, from).await;
    vm.console(from, "vsock: ok").await;
    vm.is_confined();

    let outside = vm.save(&lab.path("elsewhere/saved"), true).await.unwrap_err();
    let said = outside.message();
    assert_eq!(outside.code(), tonic::Code::PermissionDenied, "{said}");
    assert!(["elsewhere/saved", "--reach", "--no-sandbox"].iter().all(|word| said.contains(word)), "{said}");
    assert_eq!(fs::read_dir(lab.path("elsewhere")).unwrap().count(), 0);
    let saved = lab.path("saves/saved");
    assert!(vm.save(&saved, false).await.unwrap().finished);
    lab.echo();
    assert!(vm.save(&saved, true).await.unwrap().finished);
    assert_eq!(vm.process.wait().unwrap().code(), Some(0));
    if format == "qcow2" {
        // Closing such an image may still write to it, and then the snapshot is refused.
        return;
    }
    let from = vm.log().len();
    drop(vm);
    let mut vm = lab.run(&["--restore", saved.to_str().unwrap()]).await;
    vm.is_filtered();
    vm.console(from, "tick ").await;
    vm.is_confined();
    vm.console(from, "vsock: listening on 7").await;
    lab.arp();
    lab.echo();
    lab.type_a_line();
    lab.balloon(&mut vm).await;
    assert_eq!(lab.ask("BLK READ 3", 2), "A".repeat(512));
    vm.is_confined();
    assert_eq!(vm.stop().await, Some(0));
    assert_eq!(fs::read_dir(lab.path("doors")).unwrap().count(), 1, "its sockets are gone");
}

#[tokio::test]
async fn a_vm_with_a_raw_disk_lives_in_its_sandbox() {
    lives_a_whole_life("raw", "writeback").await;
}

#[tokio::test]
async fn a_vm_with_a_raw_disk_past_the_page_cache_lives_in_its_sandbox() {
    lives_a_whole_life("raw", "direct").await;
}

#[tokio::test]
async fn a_vm_with_a_qcow2_disk_lives_in_its_sandbox() {
    lives_a_whole_life("qcow2", "writeback").await;
}

#[tokio::test]
async fn a_vm_with_a_qcow2_disk_past_the_page_cache_lives_in_its_sandbox() {
    lives_a_whole_life("qcow2", "direct").await;
}

/// What a guest's own file system says is read in a thread that may do no more.
#[tokio::test]
async fn a_vm_that_boots_from_its_disk_lives_in_its_sandbox() {
    for format in ["raw", "qcow2"] {
        let Some(lab) = Lab::new(format, "writeback") else { return };
        let boot = lab.path("root/boot/extlinux");
        fs::create_dir_all(&boot).unwrap();
        let entry = "DEFAULT a\nLABEL a\n  KERNEL /boot/vmlinuz\n  APPEND rng=check\n";
        fs::write(boot.join("extlinux.conf"), entry).unwrap();
        fs::copy(program("native-guest").unwrap(), lab.path("root/boot/vmlinuz")).unwrap();
        let (root, image) = (lab.path("root"), lab.path("image"));
        let mut make = Command::new("mkfs.ext4");
        if make.args(["-q", "-d"]).arg(root).arg(&image).arg("32M").status().is_err() {
            return skip("mkfs.ext4 is missing; install e2fsprogs");
        }
        let mut convert = Command::new("qemu-img");
        if !convert
            .args(["convert", "-O", format])
            .arg(&image)
            .arg(lab.path("disk"))
            .status()
            .is_ok_and(|s| s.success())
        {
            return skip("qemu-img is missing; install qemu-utils");
        }
        let disk = format!("[[disk]]\npath = \"disk\"\nformat = \"{format}\"\n");
        let spec = format!("name = \"disk\"\nram_mib = {RAM_MIB}\nserial = \"console\"\nrng = true\n{disk}");
        fs::write(lab.path("vm.toml"), spec).unwrap();
        let mut vm = lab.run(&[]).await;
        vm.console(0, "rng: ok").await;
        vm.is_confined();
        assert_eq!(vm.stop().await, Some(0));
    }
}

#[tokio::test]
async fn a_vm_of_another_user_works_without_root() {
    let Some(lab) = Lab::new("raw", "writeback") else { return };
    if !rustix::process::geteuid().is_root() {
        return skip("becoming another user takes root");
    }
    // Where the programs are may be closed to that user.
    let kernel = program("native-guest").unwrap();
    fs::copy(&kernel, lab.path("guest")).unwrap();
    let spec = fs::read_to_string(lab.path("vm.toml")).unwrap();
    fs::write(lab.path("vm.toml"), spec.replace(kernel.to_str().unwrap(), "guest")).unwrap();
    for name in ["", "guest", "vm.toml", "disk", "doors", "saves"] {
        chown(lab.path(name), Some(12345), Some(12345)).unwrap();
    }
    let mut vm = lab.run(&["--user", "12345"]).await;
    lab.use_every_device(&mut vm, 0).await;
    for thread in vm.is_confined() {
        assert_eq!(thread.user, 12345, "{thread:?}");
    }
    assert!(vm.save(&lab.path("saves/saved"), true).await.unwrap().finished);
    assert_eq!(vm.process.wait().unwrap().code(), Some(0));
    let from = vm.log().len();
    let mut vm = lab.run(&["--user", "12345", "--restore", lab.path("saves/saved").to_str().unwrap()]).await;
    vm.console(from, "tick ").await;
    assert_eq!(vm.stop().await, Some(0));
}

#[tokio::test]
async fn without_a_sandbox_there_is_none() {
    let Some(lab) = Lab::new("raw", "writeback") else { return };
    let mut vm = lab.run(&["--no-sandbox"]).await;
    vm.console(0, "native-guest: ready").await;
    assert!(threads_of(vm.process.id()).iter().all(|thread| !thread.filtered));
    assert!(vm.save(&lab.path("elsewhere/saved"), true).await.unwrap().finished);
}
