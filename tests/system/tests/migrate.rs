//! Live migration between two real processes on real KVM, with one client network and one disk file.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use endophyte_api::{
    CancelMigrationRequest, InfoRequest, MigrateMode, MigrateOutcome, MigratePhase, MigrateProgress,
    MigrateRequest, PauseRequest, ResumeRequest, SetAllowedRequest, SnapshotRequest, StopRequest, VmClient,
    VmInfo, WatchRequest, connect,
};
use mycelium_lab::net::PrivateNamespace;
use rhizomorph_link::Identity;
use system_tests::process::{Running, ip, reach};
use system_tests::vm::console_until;
use system_tests::{has_kvm, program, run};
use tokio::time::timeout;
use tokio_stream::StreamExt;

/// Bounds a test that fails; two VMs share two busy cores with their clients.
const PATIENCE: Duration = Duration::from_secs(90);
const SERVER: &str = "10.99.0.2:6379";

/// A folder of specs, a network of two taps on one bridge, and a runtime inside it.
struct Lab {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

/// A link of 10 MB/s: a guest on a busy machine does not write faster than two processes there copy.
fn slow_link() {
    let tc =
        run(Command::new("tc")
            .args("qdisc add dev lo root tbf rate 80mbit burst 256kb latency 100ms".split(' ')));
    assert!(tc.status.success(), "{}", String::from_utf8_lossy(&tc.stderr));
}

impl Lab {
    /// `extra` goes into the spec, `cmdline` to the guest.
    fn new(ram_mib: u32, cmdline: &str, extra: &str) -> Option<Self> {
        let guest = program("native-guest")?;
        if !has_kvm() {
            return None;
        }
        PrivateNamespace::enter().unwrap();
        ip("link add br0 type bridge");
        ip("addr add 10.99.0.1/24 dev br0");
        ip("link set br0 up");
        let dir = tempfile::tempdir().unwrap();
        for tap in ["a0", "b0", "c0"] {
            ip(&format!("tuntap add {tap} mode tap"));
            ip(&format!("link set {tap} master br0 up"));
            let spec = format!(
                "name = \"mover\"\nvcpus = 1\nram_mib = {ram_mib}\nkernel = {guest:?}\ncmdline = \"ip=10.99.0.2/24 {cmdline}\"\n\
                 serial = \"null\"\n[[net]]\ntap = \"{tap}\"\nmac = \"52:54:00:00:00:02\"\n{extra}"
            );
            fs::write(dir.path().join(format!("{tap}.toml")), spec).unwrap();
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Some(Self { dir, runtime })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn vm(&self, tap: &str, rest: &[&str]) -> Vm<'_> {
        let mut command = Command::new(program("endophyte").unwrap());
        command.args(["run", "--die-with-parent", "--spec"]).arg(self.path(&format!("{tap}.toml")));
        let socket = self.path(&format!("{tap}.sock"));
        command.arg("--api").arg(&socket).args(rest).stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Running(command.spawn().unwrap());
        let api = self.runtime.block_on(reach(&mut process, &socket));
        Vm { lab: self, process, api }
    }

    /// A process that waits for a VM.
    fn incoming(&self, tap: &str) -> Vm<'_> {
        self.vm(tap, &["--incoming", "127.0.0.1:0"])
    }
}

/// A VM's process and the way to it.
struct Vm<'a> {
    lab: &'a Lab,
    process: Running,
    api: VmClient,
}

impl Vm<'_> {
    fn info(&mut self) -> VmInfo {
        self.lab.runtime.block_on(self.api.info(InfoRequest {})).unwrap().into_inner()
    }

    fn until(&mut self, what: &str, wanted: impl Fn(&VmInfo) -> bool) -> VmInfo {
        let watching = async {
            let mut watch = self.api.watch(WatchRequest {}).await.unwrap().into_inner();
            let mut last = None;
            let seen = timeout(PATIENCE, async {
                while let Some(info) = watch.next().await {
                    let info = info.unwrap();
                    if wanted(&info) {
                        return info;
                    }
                    last = Some(info);
                }
                panic!("the process ended before {what}");
            });
            seen.await.unwrap_or_else(|_| panic!("waited in vain for {what}: {last:?}"))
        };
        self.lab.runtime.block_on(watching)
    }

    /// Lets `source` migrate here; how it reaches this process.
    fn ticket(&mut self, source: &mut Vm<'_>) -> String {
        source.until("a VM that runs", |i| i.state == "running");
        let info = self.until("a process that waits", |i| i.state == "incoming" && !i.ticket.is_empty());
        let keys = vec![source.info().node];
        self.lab.runtime.block_on(self.api.set_allowed(SetAllowedRequest { keys })).unwrap();
        info.ticket
    }

    /// Migrates; every message, and the error that ended it if one did. `look` sees each message as it comes.
    fn migrate(
        &mut self,
        request: MigrateRequest,
        mut look: impl FnMut(&MigrateProgress),
    ) -> (Vec<MigrateProgress>, Option<tonic::Status>) {
        let migrating = async {
            let mut all = Vec::new();
            let mut progress = match self.api.migrate(request).await {
                Ok(progress) => progress.into_inner(),
                Err(status) => return (all, Some(status)),
            };
            while let Some(step) = progress.next().await {
                match step {
                    Ok(step) => {
                        look(&step);
                        all.push(step);
                    }
                    Err(status) => return (all, Some(status)),
                }
            }
            (all, None)
        };
        let both = self.lab.runtime.block_on(async { timeout(PATIENCE, migrating).await });
        both.expect("a migration ends")
    }

    /// Migrates there, and sees this process end.
    fn moves(mut self, there: &mut Vm<'_>, request: MigrateRequest) -> MigrateOutcome {
        let ticket = there.ticket(&mut self);
        let (steps, error) = self.migrate(MigrateRequest { ticket, ..request }, |_| ());
        assert!(error.is_none(), "{error:?} after {steps:?}");
        let last = steps.last().unwrap();
        assert_eq!(last.phase(), MigratePhase::Done, "{steps:?}");
        let outcome = last.outcome.unwrap();
        let parts = [
            outcome.pause_us,
            outcome.pages_us,
            outcome.state_us,
            outcome.disks_us,
            outcome.restore_us,
            outcome.resume_us,
            outcome.network_us,
        ];
        assert_eq!(parts.iter().sum::<u64>(), outcome.downtime_us, "{outcome:?}");
        assert_eq!(self.process.0.wait().unwrap().code(), Some(0));
        println!("{} MiB/s, {} pages: {outcome:?}", last.bytes_per_s >> 20, last.pages_sent);
        there.until("the VM to run there", |i| i.state == "running");
        outcome
    }

    /// The console from an offset on, until it holds `wanted`.
    fn console(&mut self, from: u64, wanted: &str) -> String {
        let read = console_until(&mut self.api, from, PATIENCE, wanted, |text| text.contains(wanted));
        self.lab.runtime.block_on(read)
    }

    fn stop(mut self) -> Option<i32> {
        self.lab.runtime.block_on(self.api.stop(StopRequest {})).unwrap();
        self.process.0.wait().unwrap().code()
    }
}

fn pre_copy() -> MigrateRequest {
    MigrateRequest { downtime_ms: 300, ..Default::default() }
}

fn post_copy() -> MigrateRequest {
    MigrateRequest { mode: MigrateMode::PostCopy.into(), ..Default::default() }
}

/// A connection to the guest's server that is opened once and must live.
struct Conversation(BufReader<TcpStream>);

impl Conversation {
    fn open() -> Self {
        let server: SocketAddr = SERVER.parse().unwrap();
        let begun = Instant::now();
        loop {
            match TcpStream::connect_timeout(&server, Duration::from_secs(1)) {
                Ok(stream) => {
                    stream.set_nodelay(true).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    return Self(BufReader::new(stream));
                }
                Err(error) => assert!(begun.elapsed() < PATIENCE, "no server: {error}"),
            }
        }
    }

    fn try_ask(&mut self, words: &str) -> io::Result<String> {
        let words: Vec<&str> = words.split(' ').collect();
        let mut out = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| out += &format!("${}\r\n{word}\r\n", word.len()));
        self.0.get_mut().write_all(out.as_bytes())?;
        self.reply()
    }

    /// A reply; the parts of an array with spaces between them.
    fn reply(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let count = |kind| line.strip_prefix(kind).and_then(|n| n.parse::<usize>().ok());
        if let Some(length) = count('$') {
            let mut bulk = vec![0; length + 2];
            self.0.read_exact(&mut bulk)?;
            return Ok(String::from_utf8_lossy(&bulk[..length]).into_owned());
        }
        match count('*') {
            Some(parts) => Ok((0..parts).map(|_| self.reply()).collect::<io::Result<Vec<_>>>()?.join(" ")),
            None => Ok(line.to_owned()),
        }
    }

    /// Waits until the guest has written all pages of its region so often.
    fn wait_dirty(&mut self, rounds: u64) {
        let begun = Instant::now();
        loop {
            let stat = self.ask("DIRTYSTAT");
            let mut words = stat.split(' ').skip_while(|word| *word != "rounds").skip(1);
            let made = words.next().and_then(|word| word.trim_start_matches(':').parse::<u64>().ok());
            if made.unwrap_or_else(|| panic!("{stat}")) >= rounds {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{stat}");
        }
    }

    fn ask(&mut self, words: &str) -> String {
        self.try_ask(words).unwrap_or_else(|error| panic!("{words}: {error}"))
    }
}

/// Clients that count, each on one connection for its whole life; no count may be lost or repeated.
struct Clients {
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<u64>>,
}

impl Clients {
    fn start(number: usize) -> Self {
        let (stop, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let count = |client: usize| {
            let (stop, acked) = (stop.clone(), acked.clone());
            let mut talk = Conversation::open();
            std::thread::spawn(move || {
                let mut counted = 0;
                while !stop.load(Ordering::Relaxed) {
                    counted += 1;
                    assert_eq!(talk.ask(&format!("INCR c{client}")), format!(":{counted}"));
                    let key = counted % 512;
                    assert_eq!(talk.ask(&format!("SET k{client}.{key} {counted:0512}")), "+OK");
                    acked.fetch_add(1, Ordering::Relaxed);
                }
                counted
            })
        };
        Self { threads: (0..number).map(count).collect(), stop: stop.clone(), acked: acked.clone() }
    }

    /// Waits until they have done so much more.
    fn work(&self, more: u64) {
        let (begun, wanted) = (Instant::now(), self.acked.load(Ordering::Relaxed) + more);
        while self.acked.load(Ordering::Relaxed) < wanted {
            assert!(begun.elapsed() < PATIENCE, "the clients are stuck");
            std::thread::yield_now();
        }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for (client, thread) in self.threads.into_iter().enumerate() {
            let counted = thread.join().unwrap();
            assert_eq!(Conversation::open().ask(&format!("GET c{client}")), counted.to_string());
        }
    }
}

/// Memory is what the guest made it.
fn check_memory() {
    let mut talk = Conversation::open();
    assert_eq!(talk.ask("DIRTY STOP"), "+OK");
    let checked = talk.ask("DIRTY CHECK");
    assert!(!checked.starts_with('-'), "{checked}");
    assert_eq!(talk.ask("DIGEST FULL"), talk.ask("DIGEST RUNNING"));
}

fn loaded(request: MigrateRequest) {
    let Some(lab) = Lab::new(512, "dirty=scattered:4000:2000 heartbeat=5", "") else { return };
    let mut a = lab.vm("a0", &[]);
    let clients = Clients::start(4);
    clients.work(200);
    let mut b = lab.incoming("b0");
    let said = a.info().console_bytes;
    a.moves(&mut b, request.clone());
    clients.work(200);
    let info = b.info();
    assert!(info.console_bytes >= said && info.ticket.is_empty() && !info.paused, "{info:?}");
    // And on, from where it came to.
    let mut c = lab.incoming("c0");
    b.moves(&mut c, request);
    clients.work(200);
    c.console(said, "tick ");
    clients.finish();
    check_memory();
    assert_eq!(c.stop(), Some(0));
}

#[test]
fn migrate_pre_copy_under_load_loses_no_connection_and_no_byte() {
    loaded(pre_copy());
}

#[test]
fn migrate_post_copy_under_load_loses_no_connection_and_no_byte() {
    loaded(post_copy());
}

#[test]
fn migrate_idle_and_verified() {
    let Some(lab) = Lab::new(512, "", "") else { return };
    let a = lab.vm("a0", &[]);
    let digest = Conversation::open().ask("DIGEST FULL");
    let mut b = lab.incoming("b0");
    let idle = a.moves(&mut b, MigrateRequest::default());
    assert!(idle.downtime_us < 5_000_000, "{idle:?}");
    let mut c = lab.incoming("c0");
    b.moves(&mut c, MigrateRequest { verify: true, ..Default::default() });
    assert_eq!(Conversation::open().ask("DIGEST FULL"), digest);
}

#[test]
fn migrate_a_guest_that_is_held_stays_held() {
    let Some(lab) = Lab::new(64, "heartbeat=5", "") else { return };
    let mut a = lab.vm("a0", &[]);
    a.console(0, "tick 5 ");
    lab.runtime.block_on(a.api.pause(PauseRequest {})).unwrap();
    let said = a.info().console_bytes;
    let mut b = lab.incoming("b0");
    a.moves(&mut b, pre_copy());
    let info = b.info();
    assert!(info.paused && info.console_bytes == said, "{info:?}");
    lab.runtime.block_on(b.api.resume(ResumeRequest {})).unwrap();
    b.console(said, "tick ");
}

#[test]
fn migrate_to_a_destination_that_is_killed_leaves_the_source_running() {
    let Some(lab) = Lab::new(512, "dirty=scattered:2000:500 heartbeat=5", "") else { return };
    let mut a = lab.vm("a0", &[]);
    let clients = Clients::start(2);
    clients.work(50);
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    let mut victim = Some(b.process);
    let (_, error) = a.migrate(MigrateRequest { ticket, downtime_ms: 1, ..Default::default() }, |step| {
        if step.phase() == MigratePhase::Copying && step.pages_sent > 256 {
            drop(victim.take());
        }
    });
    let error = error.expect("the destination was killed");
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error:?}");
    assert!(error.message().contains("the VM is where it was"), "{error:?}");
    clients.work(100);
    clients.finish();
    check_memory();
    let info = a.info();
    assert!(info.state == "running" && !info.paused && info.last_trouble.contains("lost"), "{info:?}");
    // And it can still go elsewhere.
    let mut c = lab.incoming("c0");
    a.moves(&mut c, pre_copy());
    check_memory();
}

fn signal(process: &Running, signal: &str) {
    let output = run(Command::new("kill").args([signal, &process.0.id().to_string()]));
    assert!(output.status.success(), "{output:?}");
}

/// Wherever in the switch it stops, and whenever it is continued.
#[test]
fn migrate_to_a_destination_that_stops_in_the_switch_leaves_one_guest() {
    let Some(lab) = Lab::new(512, "heartbeat=5", "") else { return };
    let mut a = lab.vm("a0", &[]);
    a.console(0, "tick ");
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    let request = MigrateRequest { ticket, verify: true, ..Default::default() };
    let (_, error) = a.migrate(request, |step| {
        if step.phase() == MigratePhase::Switching {
            signal(&b.process, "-STOP");
        }
    });
    signal(&b.process, "-CONT");
    let mut talk = Conversation::open();
    match error.as_ref().map(tonic::Status::code) {
        // It stopped before it was ready.
        Some(tonic::Code::Unavailable) => {
            assert_eq!(b.process.0.wait().unwrap().code(), Some(7));
            assert_eq!(a.info().state, "running");
        }
        // It stopped after Go: the source stood until the destination could speak again.
        Some(tonic::Code::Unknown) | None => {
            assert_eq!(a.process.0.wait().unwrap().code(), Some(0));
            b.until("the VM to run there", |i| i.state == "running");
        }
        other => panic!("{other:?}: {error:?}"),
    }
    println!("{error:?}");
    assert_eq!(talk.ask("PING"), "+PONG");
    assert_eq!(talk.ask("DIGEST FULL"), talk.ask("DIGEST RUNNING"));
}

#[test]
fn migrate_refused_for_another_machine_says_what_differs() {
    let Some(lab) = Lab::new(64, "heartbeat=5", "") else { return };
    let mut a = lab.vm("a0", &[]);
    let spec = fs::read_to_string(lab.path("b0.toml")).unwrap();
    fs::write(lab.path("b0.toml"), spec.replace("ram_mib = 64", "ram_mib = 128")).unwrap();
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    let (_, error) = a.migrate(MigrateRequest { ticket: ticket.clone(), ..Default::default() }, |_| ());
    let error = error.unwrap();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains("ram_bytes: 134217728 here, 67108864 there"), "{error:?}");
    // The one that refused goes on waiting, and the VM goes on running.
    assert!(b.info().state == "incoming" && b.info().last_trouble.contains("ram_bytes"));
    let said = a.info().console_bytes;
    a.console(said, "tick ");
    // Nobody listens there.
    let (key, _) = ticket.split_once('@').unwrap();
    let nowhere = MigrateRequest { ticket: format!("{key}@127.0.0.1:9"), ..Default::default() };
    let (_, error) = a.migrate(nowhere, |_| ());
    let error = error.unwrap();
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error:?}");
    let (_, error) =
        a.migrate(MigrateRequest { ticket: "nonsense".to_owned(), ..Default::default() }, |_| ());
    assert_eq!(error.unwrap().code(), tonic::Code::InvalidArgument);
    // A key that is not allowed.
    let mut c = lab.incoming("c0");
    let stranger = c.until("a process that waits", |i| !i.ticket.is_empty()).ticket;
    let (_, error) = a.migrate(MigrateRequest { ticket: stranger, ..Default::default() }, |_| ());
    assert_eq!(error.unwrap().code(), tonic::Code::Unavailable);
    assert_eq!((a.stop(), b.stop(), c.stop()), (Some(0), Some(0), Some(0)));
}

#[test]
fn migrate_cancelled_leaves_the_source_running_and_ends_the_destination() {
    let Some(lab) = Lab::new(512, "dirty=hot:60000 heartbeat=5", "") else { return };
    let mut a = lab.vm("a0", &[]);
    a.console(0, "tick ");
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    let mut other = a.api.clone();
    let nothing = lab.runtime.block_on(other.cancel_migration(CancelMigrationRequest {})).unwrap_err();
    assert_eq!(nothing.code(), tonic::Code::FailedPrecondition);
    let socket = lab.path("a0.sock");
    let mut cancelled = false;
    let (_, error) = a.migrate(MigrateRequest { ticket, downtime_ms: 1, ..Default::default() }, |step| {
        if step.phase() == MigratePhase::Copying && step.pages_sent > 256 && !cancelled {
            cancelled = true;
            let cancel = {
                let socket = socket.clone();
                move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let mut api = connect(&socket).await.unwrap();
                        api.cancel_migration(CancelMigrationRequest {}).await.unwrap();
                    });
                }
            };
            std::thread::spawn(cancel).join().unwrap();
        }
    });
    assert_eq!(error.unwrap().code(), tonic::Code::Cancelled);
    assert_eq!(b.process.0.wait().unwrap().code(), Some(7));
    let said = a.info().console_bytes;
    a.console(said, "tick ");
    check_memory();
}

#[test]
fn migrate_a_guest_faster_than_the_link_is_given_up_with_the_remedy_and_post_copy_moves_it() {
    let Some(lab) = Lab::new(512, "dirty=contiguous:10000", "") else { return };
    slow_link();
    let mut a = lab.vm("a0", &[]);
    let mut talk = Conversation::open();
    talk.wait_dirty(2);
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    let (_, error) = a.migrate(MigrateRequest { ticket, downtime_ms: 1, ..Default::default() }, |_| ());
    let error = error.unwrap();
    assert_eq!(error.code(), tonic::Code::Aborted, "{error:?}");
    assert!(error.message().contains("--downtime") && error.message().contains("post-copy"), "{error:?}");
    assert_eq!(b.process.0.wait().unwrap().code(), Some(7));
    assert_eq!(talk.ask("PING"), "+PONG");
    let mut c = lab.incoming("c0");
    a.moves(&mut c, post_copy());
    assert_eq!(talk.ask("PING"), "+PONG");
    check_memory();
}

#[test]
fn migrate_post_copy_that_loses_its_source_says_that_memory_is_lost() {
    let Some(lab) = Lab::new(256, "dirty=contiguous:10000", "") else { return };
    slow_link();
    let mut a = lab.vm("a0", &[]);
    Conversation::open().wait_dirty(1);
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    let process = a.process.0.id().to_string();
    let (_, error) = a.migrate(MigrateRequest { ticket, ..post_copy() }, |step| {
        if step.phase() == MigratePhase::Serving {
            run(Command::new("kill").args(["-KILL", &process]));
        }
    });
    assert!(error.is_some());
    let ended = b.until("its end", |i| i.state == "stopped");
    assert!(ended.reason.contains("memory cannot be completed"), "{ended:?}");
    assert_eq!(b.process.0.wait().unwrap().code(), Some(5));
}

/// What a reset does to memory the dirty log does not see.
#[test]
fn migrate_of_a_guest_that_resets_ends_and_the_guest_boots_where_it_is() {
    let Some(lab) = Lab::new(256, "dirty=contiguous:10000", "") else { return };
    slow_link();
    let mut a = lab.vm("a0", &[]);
    let mut talk = Conversation::open();
    talk.wait_dirty(1);
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    let mut asked = false;
    let (_, error) = a.migrate(MigrateRequest { ticket, ..pre_copy() }, |step| {
        if step.phase() == MigratePhase::Copying && step.pages_sent > 256 && !asked {
            asked = true;
            talk.ask("RESET");
        }
    });
    let error = error.unwrap();
    assert!(error.code() == tonic::Code::Cancelled && error.message().contains("GuestReset"), "{error:?}");
    assert_eq!(b.process.0.wait().unwrap().code(), Some(7));
    assert_eq!(Conversation::open().ask("PING"), "+PONG");
    assert_eq!(a.stop(), Some(0));
}

#[test]
fn migrate_of_a_vm_that_is_stopped_ends_both() {
    let Some(lab) = Lab::new(256, "dirty=contiguous:10000", "") else { return };
    slow_link();
    let mut a = lab.vm("a0", &[]);
    Conversation::open().wait_dirty(1);
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    let process = a.process.0.id().to_string();
    let (_, error) = a.migrate(MigrateRequest { ticket, ..pre_copy() }, |step| {
        if step.phase() == MigratePhase::Copying && step.pages_sent > 256 {
            run(Command::new("kill").args(["-TERM", &process]));
        }
    });
    assert!(error.is_some());
    assert_eq!(a.process.0.wait().unwrap().code(), Some(0));
    assert_eq!(b.process.0.wait().unwrap().code(), Some(7));
}

/// A disk that each side reaches by a name of its own, which can be taken away.
struct Shelf(tempfile::TempDir);

impl Shelf {
    fn new() -> Self {
        let shelf = Self(tempfile::tempdir().unwrap());
        fs::File::create(shelf.0.path().join("disk")).unwrap().set_len(1 << 20).unwrap();
        ["a0", "b0", "c0"].into_iter().for_each(|side| shelf.put(side));
        shelf
    }

    fn name(&self, side: &str) -> PathBuf {
        self.0.path().join(side)
    }

    fn put(&self, side: &str) {
        std::os::unix::fs::symlink(self.0.path().join("disk"), self.name(side)).unwrap();
    }

    fn remove(&self, side: &str) {
        fs::remove_file(self.name(side)).unwrap();
    }

    /// A lab in which each side names the disk by its own name.
    fn lab(&self) -> Option<Lab> {
        let extra = format!("[[disk]]\npath = {:?}\nformat = \"raw\"\n", self.name("a0"));
        let lab = Lab::new(64, "heartbeat=5", &extra)?;
        for side in ["b0", "c0"] {
            let file = lab.path(&format!("{side}.toml"));
            let spec = fs::read_to_string(&file).unwrap();
            let [theirs, own] = ["a0", side].map(|side| self.name(side).to_str().unwrap().to_owned());
            fs::write(&file, spec.replace(&theirs, &own)).unwrap();
        }
        Some(lab)
    }
}

#[test]
fn migrate_to_a_destination_that_cannot_open_the_disk_gives_the_guest_back() {
    let shelf = Shelf::new();
    let Some(lab) = shelf.lab() else { return };
    let mut a = lab.vm("a0", &[]);
    a.console(0, "tick ");
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    shelf.remove("b0");
    let (_, error) = a.migrate(MigrateRequest { ticket, ..pre_copy() }, |_| ());
    let error = error.unwrap();
    assert_eq!(error.code(), tonic::Code::Aborted, "{error:?}");
    assert!(error.message().contains("cannot open disk") && error.message().contains("b0"), "{error:?}");
    assert_eq!(b.process.0.wait().unwrap().code(), Some(7));
    let goes_on = a.info();
    assert!(goes_on.state == "running" && !goes_on.paused, "{goes_on:?}");
    a.console(goes_on.console_bytes, "tick ");
    let mut c = lab.incoming("c0");
    a.moves(&mut c, pre_copy());
}

/// Neither side can open the disk: the guest stands until the operator has seen to it.
#[test]
fn migrate_that_ends_nowhere_stands_until_it_is_resumed() {
    let shelf = Shelf::new();
    let Some(lab) = shelf.lab() else { return };
    let mut a = lab.vm("a0", &[]);
    a.console(0, "tick ");
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    ["a0", "b0"].into_iter().for_each(|side| shelf.remove(side));
    let (_, error) = a.migrate(MigrateRequest { ticket, ..pre_copy() }, |_| ());
    let error = error.unwrap();
    assert_eq!(error.code(), tonic::Code::Unknown, "{error:?}");
    assert_eq!(b.process.0.wait().unwrap().code(), Some(7));
    let stands = a.until("a guest that stands", |i| i.state == "handed over");
    assert!(stands.paused && stands.last_trouble.contains("Resume"), "{stands:?}");
    // Nothing that could let it go on by itself does.
    let ticket = lab.incoming("c0").until("a process that waits", |i| !i.ticket.is_empty()).ticket;
    let refused = a.migrate(MigrateRequest { ticket, ..pre_copy() }, |_| ()).1.unwrap();
    assert!(refused.message().contains("handed over"), "{refused:?}");
    let file = lab.path("snapshot").to_str().unwrap().to_owned();
    let request = SnapshotRequest { path: file, stop: false };
    let saved = lab.runtime.block_on(async {
        let mut saving = a.api.snapshot(request).await.unwrap().into_inner();
        saving.next().await.unwrap()
    });
    assert_eq!(saved.unwrap_err().code(), tonic::Code::FailedPrecondition);
    assert_eq!(a.info().console_bytes, stands.console_bytes);
    // The operator has mended it.
    shelf.put("a0");
    lab.runtime.block_on(a.api.resume(ResumeRequest {})).unwrap();
    a.console(stands.console_bytes, "tick ");
    assert_eq!(a.info().state, "running");
    let mut c = lab.incoming("c0");
    a.moves(&mut c, pre_copy());
}

fn with_disk(format: &str, request: MigrateRequest) {
    let dir = tempfile::tempdir().unwrap();
    let [raw, path] = ["raw", "disk"].map(|name| dir.path().join(name));
    fs::File::create(&raw).unwrap().set_len(64 << 20).unwrap();
    if format == "raw" {
        fs::rename(&raw, &path).unwrap();
    } else {
        let Some(mycelium) = program("mycelium") else { return };
        let mut convert = Command::new(mycelium);
        let made = run(convert.args(["image", "convert"]).args([&raw, &path]).args(["--format", format]));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let extra = format!("[[disk]]\npath = {path:?}\nformat = \"{format}\"\nserial = \"shared\"\n");
    let verify = "blk=verify:33554432:1 blk=verify:33554432:2 blk=verify:33554432:3 blk=verify:33554432:4";
    let Some(lab) = Lab::new(64, &format!("{verify} heartbeat=5"), &extra) else { return };
    let mut a = lab.vm("a0", &[]);
    a.console(0, "ready");
    let mut talk = Conversation::open();
    let mut b = lab.incoming("b0");
    let from = a.info().console_bytes;
    a.moves(&mut b, request);
    let mut read = b.console(from, "blk: verify ok");
    while !read.contains("FAILED") && read.matches("blk: verify ok").count() < 1 {
        read = b.console(from, "blk: verify");
    }
    assert!(!read.contains("FAILED"), "{read}");
    // What is written here is on the disk that both have named.
    assert_eq!(talk.ask("BLK WRITE 1000 65"), "+OK");
    assert_eq!(talk.ask("BLK FLUSH"), "+OK");
    if format == "raw" {
        let bytes = fs::read(&path).unwrap();
        assert!(bytes[1000 * 512..1001 * 512].iter().all(|byte| *byte == 65));
    }
    // Its lock went along.
    let second =
        run(Command::new(program("endophyte").unwrap()).args(["run", "--spec"]).arg(lab.path("a0.toml")));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another process"), "{second:?}");
}

#[test]
fn migrate_with_a_writable_raw_disk() {
    with_disk("raw", pre_copy());
}

#[test]
fn migrate_with_a_writable_qcow2_disk() {
    with_disk("qcow2", pre_copy());
}

#[test]
fn migrate_post_copy_with_a_writable_raw_disk() {
    with_disk("raw", post_copy());
}

#[test]
fn migrate_refused_for_a_disk_of_another_size() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    fs::File::create(&one).unwrap().set_len(1 << 20).unwrap();
    fs::File::create(&two).unwrap().set_len(2 << 20).unwrap();
    let extra = format!("[[disk]]\npath = {one:?}\nserial = \"data\"\n");
    let Some(lab) = Lab::new(64, "heartbeat=5", &extra) else { return };
    let mut a = lab.vm("a0", &[]);
    let spec = fs::read_to_string(lab.path("b0.toml")).unwrap();
    fs::write(lab.path("b0.toml"), spec.replace(one.to_str().unwrap(), two.to_str().unwrap())).unwrap();
    let mut b = lab.incoming("b0");
    let ticket = b.ticket(&mut a);
    let (_, error) = a.migrate(MigrateRequest { ticket, ..Default::default() }, |_| ());
    let error = error.unwrap();
    assert!(
        error.message().contains("disk data: 2097152 bytes here, data of 1048576 bytes there"),
        "{error:?}"
    );
}

#[test]
fn migrate_is_refused_for_a_protected_vm() {
    let Some(lab) = Lab::new(64, "", "") else { return };
    let key = lab.path("key");
    let identity = Identity::generate().unwrap();
    identity.save(&key).unwrap();
    let socket = lab.path("active.sock");
    let arbiter = format!("{}@127.0.0.1:9", identity.peer_key());
    let mut command = Command::new(program("endophyte").unwrap());
    command.args(["active", "--die-with-parent", "--spec"]).arg(lab.path("a0.toml")).arg("--key").arg(&key);
    command.args(["--arbiter", &arbiter, "--run-dir"]).arg(lab.path("run")).arg("--api").arg(&socket);
    let mut process = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    let api = lab.runtime.block_on(reach(&mut process, &socket));
    let mut a = Vm { lab: &lab, process, api };
    let ticket = format!("{}@127.0.0.1:9", identity.peer_key());
    let (_, error) = a.migrate(MigrateRequest { ticket, ..Default::default() }, |_| ());
    let error = error.unwrap();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert!(error.message().contains("replica"), "{error:?}");
}
