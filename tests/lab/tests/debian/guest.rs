//! A running Debian, seen from its console.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mycelium_lab::net::GUEST_TAP;
use mycelium_lab::{ExitStatus, Process, Stream};

use super::bench::{BUSYBOX, Bench, ENDOPHYTE, MYCELIUM, spec};

/// Debian takes about a minute to its login on a free machine; nobody waits this out unless it hangs.
pub(crate) const BOOT_PATIENCE: Duration = Duration::from_secs(900);
/// For a command in the guest.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);
/// Interval of looks at a host or a guest; each look takes its time itself.
const LOOK: Duration = Duration::from_millis(100);
const SPEC: &str = "/lab/debian.toml";
/// Where the VM's process is told what to do.
const API: &str = "/run/debian.sock";
pub(crate) const GUEST_VSOCK: &str = "/run/vsock";
/// The line before the prompt, which is no whole line.
const LOGIN: &str = "Debian GNU/Linux 12 debian ttyS0";

/// A VM of a host, and somebody who sits at its console.
pub(crate) struct Debian<'a> {
    bench: &'a Bench,
    host: usize,
    pub(crate) vmm: Process,
    api: String,
    keyboard: String,
    commands: AtomicUsize,
    logins: AtomicUsize,
}

impl<'a> Debian<'a> {
    /// Boots a disk and waits for its login.
    pub(crate) fn boot(bench: &'a Bench, disk: &str, vcpus: u8) -> Debian<'a> {
        bench.hosts[0].write_file(SPEC, 0o644, spec(disk, vcpus, GUEST_TAP, GUEST_VSOCK).as_bytes()).unwrap();
        let debian = Self::start(bench, 0, &format!("run --spec {SPEC}"), API);
        debian.log_in();
        debian
    }

    /// Starts a VM's process; its console is on its standard input and output.
    pub(crate) fn start(bench: &'a Bench, host: usize, command: &str, api: &str) -> Debian<'a> {
        let keyboard = format!("{api}.keyboard");
        // Before anybody types: what is written to a file of that name would go nowhere.
        bench.busybox(host, &["mkfifo", &keyboard]);
        // Both ends stay open: a keyboard at which nobody sits is no end of input.
        let line = format!("exec 3<>{keyboard}; exec {ENDOPHYTE} {command} --api {api} <&3");
        let vmm = bench.hosts[host].spawn(&[BUSYBOX, "sh", "-c", &line]).unwrap();
        let (api, commands, logins) = (api.to_owned(), AtomicUsize::new(0), AtomicUsize::new(0));
        Debian { bench, host, vmm, api, keyboard, commands, logins }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&self.vmm.written(Stream::Stdout)).into_owned()
    }

    fn wait(&self, marker: &str, nth: usize, patience: Duration) -> String {
        let seen = self.vmm.wait_nth_line(Stream::Stdout, marker, nth, patience);
        seen.unwrap_or_else(|error| {
            let said = String::from_utf8_lossy(&self.vmm.written(Stream::Stderr)).into_owned();
            let (first, second) = (self.metrics(), self.metrics());
            panic!(
                "no {marker:?}: {error}\nVMM: {said}\nmetrics:\n{first}\nagain:\n{second}\nconsole:\n{}",
                self.console()
            )
        })
    }

    /// One of the VMM's counts.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let metrics = self.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    }

    /// All the VMM counts, to tell a guest that stands from one that is only silent.
    fn metrics(&self) -> String {
        let asked = self.bench.hosts[self.host].exec(&[MYCELIUM, "vm", "metrics", "--api", &self.api]);
        asked.map_or_else(|e| e.to_string(), |out| String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn type_line(&self, line: &str) {
        let typed = format!("echo '{}' >{}", line.replace('\'', "'\\''"), self.keyboard);
        self.bench.busybox(self.host, &["sh", "-c", &typed]);
    }

    /// Waits for the login after a boot, and logs in.
    pub(crate) fn log_in(&self) {
        let nth = self.logins.fetch_add(1, Ordering::Relaxed) + 1;
        self.wait(LOGIN, nth, BOOT_PATIENCE);
        self.type_line("root");
        self.run("stty -echo; PS1=; PS2=; dmesg -n 1");
    }

    /// Runs a command in the guest's shell and returns what it says.
    pub(crate) fn run(&self, command: &str) -> String {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        // A command put into the background ends without a semicolon.
        let then = if command.ends_with('&') { "" } else { ";" };
        self.type_line(&format!("echo be''gin-{number}; {command}{then} echo en''d-{number}-$?"));
        let end = self.wait(&format!("end-{number}-"), 1, PATIENCE);
        let console = self.console();
        let said = console.split(&format!("begin-{number}\r\n")).nth(1).unwrap_or("");
        let said = said.split(&format!("end-{number}-")).next().unwrap_or("").replace("\r\n", "\n");
        assert!(end.contains(&format!("end-{number}-0")), "{command}: {said}{end}");
        said
    }

    /// Types a command that the guest does not answer.
    pub(crate) fn order(&self, command: &str) {
        self.type_line(command);
    }

    /// The process is there and a guest can be moved to it.
    pub(crate) fn waits_for_its_guest(&self) {
        let status = || self.bench.hosts[self.host].exec(&[ENDOPHYTE, "status", "--api", &self.api]).unwrap();
        until("it waits for a guest", PATIENCE, || {
            String::from_utf8_lossy(&status().stdout).contains("incoming")
        });
    }

    /// Somebody else's shell goes on at this console: commands are counted from where they stopped.
    pub(crate) fn goes_on_from(&self, before: &Debian<'_>) {
        self.commands.store(before.commands.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// `mycelium vm COMMAND` to the VM's process; returns what it says, as JSON.
    pub(crate) fn vm(&self, words: &[&str]) -> String {
        let words: Vec<&str> =
            [MYCELIUM, "vm"].iter().chain(words).chain(&["--api", &self.api, "--json"]).copied().collect();
        self.bench.exec(self.host, &words)
    }

    /// The VM's process ends well.
    pub(crate) fn ends(&self) {
        let status = self.vmm.wait(PATIENCE).unwrap();
        let said = String::from_utf8_lossy(&self.vmm.written(Stream::Stderr)).into_owned();
        assert_eq!(status, ExitStatus::Code(0), "{said}\nconsole:\n{}", self.console());
    }
}

/// Waits for what can only be looked at, now and again.
pub(crate) fn until(what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        thread::park_timeout(LOOK);
    }
}
