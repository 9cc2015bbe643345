//! Machines with the native guest, which drives every device.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use endophyte_vmm::machine::{Machine, MachineEvent, MachinePorts};
use endophyte_vmm::memory::{PAGE_BYTES, Page, PageIndex};
use endophyte_vmm::spec::VmSpec;
use tempfile::TempDir;

use crate::support::{Console, PATIENCE, kvm_works};

/// The folder with the programs, which `cargo xtask test` sets.
const PROGRAMS: &str = "MYCELIUM_PROGRAMS";

/// RAM of these machines.
pub(crate) const RAM_MIB: u64 = 64;

/// Where the guest's RESP is on its socket device.
pub(crate) const RESP_PORT: u32 = 6379;

/// A folder for machines with the native guest.
#[derive(Debug)]
pub(crate) struct Native {
    folder: TempDir,
    kernel: PathBuf,
}

/// A machine that runs.
pub(crate) struct Running {
    pub(crate) machine: Machine,
    pub(crate) console: Arc<Console>,
    spec: VmSpec,
}

impl Native {
    /// `None`, with a line that says why, where such machines cannot run.
    pub(crate) fn new() -> Option<Native> {
        if !kvm_works() {
            return None;
        }
        let Some(programs) = std::env::var_os(PROGRAMS) else {
            println!("SKIPPED: no native guest; run `cargo xtask test`");
            return None;
        };
        let kernel = Path::new(&programs).join("native-guest");
        assert!(kernel.is_file(), "{} is missing although {PROGRAMS} names its folder", kernel.display());
        Some(Native { folder: tempfile::tempdir().unwrap(), kernel })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A machine with `extra` lines in its spec, not booted.
    pub(crate) fn build(&self, cmdline: &str, extra: &str) -> Running {
        let kernel = self.kernel.display();
        let text = format!(
            "name = \"native\"\nkernel = \"{kernel}\"\nram_mib = {RAM_MIB}\nserial = \"null\"\ncmdline = \"{cmdline}\"\n{extra}\n"
        );
        let path = self.path("vm.toml");
        std::fs::write(&path, text).unwrap();
        let spec = VmSpec::load(&path).unwrap();
        let console = Arc::new(Console::default());
        let mut ports = MachinePorts::plain(&spec).unwrap();
        ports.serial = Arc::clone(&console) as Arc<_>;
        let machine = Machine::build(&spec, ports).unwrap();
        Running { machine, console, spec }
    }

    /// A machine whose guest is up.
    pub(crate) fn boot(&self, cmdline: &str, extra: &str) -> Running {
        let running = self.build(cmdline, extra);
        running.machine.boot().unwrap();
        running.machine.resume().unwrap();
        running.console.wait_text(0, "native-guest: ready");
        running
    }
}

impl Running {
    /// Stands it still and takes everything out of it: state and RAM.
    pub(crate) fn take(&self) -> (Vec<u8>, Vec<u8>) {
        self.machine.pause().unwrap();
        let mut state = Vec::new();
        self.machine.save_state(&mut state).unwrap();
        let ram = self.machine.ram();
        let mut all = Vec::with_capacity(usize::try_from(ram.page_count()).unwrap() * PAGE_BYTES);
        let mut page: Page = [0; PAGE_BYTES];
        for index in 0..ram.page_count() {
            ram.read_page(PageIndex(index), &mut page).unwrap();
            all.extend_from_slice(&page);
        }
        (state, all)
    }

    /// Fills a new machine with what was taken out of another, and lets it go on.
    pub(crate) fn go_on(&self, (state, ram): &(Vec<u8>, Vec<u8>)) {
        for (index, page) in (0..).map(PageIndex).zip(ram.chunks_exact(PAGE_BYTES)) {
            self.machine.ram().write_page(index, page.try_into().unwrap()).unwrap();
        }
        self.machine.restore_state(state, Default::default()).unwrap();
        self.machine.resume().unwrap();
    }

    /// Boots it again, as the guest has asked.
    pub(crate) fn carry_out_reset(&self) {
        let event = self.machine.events().recv_timeout(PATIENCE);
        assert_eq!(event, Some(MachineEvent::GuestReset), "{}", self.console.text());
        self.machine.pause().unwrap();
        self.machine.reset().unwrap();
        self.machine.resume().unwrap();
    }

    /// A connection to a port of the guest's socket device.
    pub(crate) fn connect(&self, port: u32) -> BufReader<UnixStream> {
        let socket = &self.spec.devices.vsock.as_ref().unwrap().socket;
        let mut stream = BufReader::new(UnixStream::connect(socket).unwrap());
        stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream.get_mut(), "CONNECT {port}").unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).unwrap();
        assert!(answer.starts_with("OK "), "{answer:?}; the guest wrote {}", self.console.text());
        stream
    }

    /// What the guest's RESP answers, with the rest of a bulk string or array of `lines` lines.
    pub(crate) fn ask(&self, command: &str, lines: usize) -> String {
        let mut stream = self.connect(RESP_PORT);
        write!(stream.get_mut(), "{command}\r\n").unwrap();
        let mut answer = String::new();
        for _ in 0..lines {
            stream.read_line(&mut answer).unwrap();
        }
        answer
    }

    /// Pages in the guest's balloon, by its own account.
    pub(crate) fn ballooned(&self) -> u64 {
        let answer = self.ask("BALLOON", 7);
        answer.lines().last().unwrap().trim_start_matches(':').parse().unwrap()
    }
}

/// Sends bytes and reads as many back.
pub(crate) fn echoed(stream: &mut BufReader<UnixStream>, bytes: &[u8]) -> Vec<u8> {
    let mut writer = stream.get_ref().try_clone().unwrap();
    let mut back = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(bytes).unwrap());
        stream.read_exact(&mut back).unwrap();
    });
    back
}
