//! Test guests, machines made of them, and what to look at.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use endophyte_vmm::devices::serial::SerialPort;
use endophyte_vmm::machine::{Machine, MachinePorts};
use endophyte_vmm::memory::{Gpa, PAGE_BYTES, Page, PageIndex};
use endophyte_vmm::spec::VmSpec;
use tempfile::TempDir;

/// Address of the first counted page in `guest.S`.
const FIRST: u64 = 0x80_0000;
/// How long a guest may take to do what takes it milliseconds: only a hang comes this far.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What `guest.S` is built as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    Count { pages: u64 },
    TripleFault,
    Panic,
    Watchdog,
    PowerOff,
    Reset,
}

/// Whether machines can run here; says why not.
pub(crate) fn kvm_works() -> bool {
    let missing = if !Path::new("/dev/kvm").exists() {
        "/dev/kvm is missing: load kvm_intel or kvm_amd"
    } else if Command::new("gcc").arg("--version").output().is_err() {
        "gcc is missing, which assembles the test guests: apt-get install gcc"
    } else {
        return true;
    };
    println!("SKIPPED: {missing}");
    false
}

/// A guest image in a folder of its own.
#[derive(Debug)]
pub(crate) struct Guest {
    folder: TempDir,
}

impl Guest {
    pub(crate) fn build(mode: Mode) -> Guest {
        let folder = tempfile::tempdir().unwrap();
        let (number, pages) = match mode {
            Mode::Count { pages } => (0, pages),
            Mode::TripleFault => (1, 1),
            Mode::Panic => (2, 1),
            Mode::Watchdog => (3, 1),
            Mode::PowerOff => (4, 1),
            Mode::Reset => (5, 1),
        };
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests");
        let output = Command::new("gcc")
            .args([
                "-m64",
                "-nostdlib",
                "-static",
                "-no-pie",
                "-Wl,--build-id=none",
                "-Wl,--no-warn-rwx-segments",
            ])
            .arg(format!("-DMODE={number}"))
            .arg(format!("-DPAGES={pages}"))
            .arg(format!("-Wl,-T,{}", sources.join("guest.ld").display()))
            .arg("-o")
            .arg(folder.path().join("guest.elf"))
            .arg(sources.join("guest.S"))
            .output()
            .unwrap();
        assert!(output.status.success(), "gcc: {}", String::from_utf8_lossy(&output.stderr));
        Guest { folder }
    }

    /// A spec of `ram_mib`, with `extra` lines.
    pub(crate) fn spec(&self, ram_mib: u64, extra: &str) -> VmSpec {
        let path = self.folder.path().join("vm.toml");
        let text = format!("name = \"test\"\nkernel = \"guest.elf\"\nram_mib = {ram_mib}\n{extra}\n");
        std::fs::write(&path, text).unwrap();
        VmSpec::load(&path).unwrap()
    }
}

/// Console output, to wait for.
#[derive(Debug, Default)]
pub(crate) struct Console {
    text: Mutex<Vec<u8>>,
    grown: Condvar,
}

impl SerialPort for Console {
    fn write(&self, bytes: &[u8]) {
        self.text.lock().unwrap().extend_from_slice(bytes);
        self.grown.notify_all();
    }
}

impl Console {
    pub(crate) fn len(&self) -> usize {
        self.text.lock().unwrap().len()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    /// Waits until `line` was written after the first `from` bytes; where it ends. Anything that says that it failed is
    /// a failure of the test.
    pub(crate) fn wait_text(&self, from: usize, line: &str) -> usize {
        let tail = |text: &Vec<u8>| String::from_utf8_lossy(&text[from..]).into_owned();
        let over = |text: &Vec<u8>| [line, "FAILED", "panic"].iter().any(|end| tail(text).contains(end));
        let text = self.text.lock().unwrap();
        let (text, _) = self.grown.wait_timeout_while(text, PATIENCE, |text| !over(text)).unwrap();
        let said = tail(&text);
        let bad = said.contains("FAILED") || said.contains("panic");
        match said.find(line) {
            Some(at) if !bad => from + at + line.len(),
            _ => panic!("{line:?} did not come; the guest wrote {said:?}"),
        }
    }

    /// Waits until at least `length` bytes were written.
    pub(crate) fn wait_len(&self, length: usize) {
        let text = self.text.lock().unwrap();
        let (text, _) = self.grown.wait_timeout_while(text, PATIENCE, |text| text.len() < length).unwrap();
        assert!(text.len() >= length, "the guest wrote only {:?}", String::from_utf8_lossy(&text));
    }
}

/// A machine with its console.
pub(crate) fn machine(spec: &VmSpec) -> (Machine, Arc<Console>) {
    let console = Arc::new(Console::default());
    let serial = Arc::clone(&console) as Arc<dyn SerialPort>;
    (Machine::build(spec, MachinePorts::none(serial)).unwrap(), console)
}

/// A counting machine, booted and running.
pub(crate) fn counting(pages: u64, extra: &str) -> (Guest, Machine, Arc<Console>) {
    let guest = Guest::build(Mode::Count { pages });
    let (machine, console) = machine(&guest.spec(32, extra));
    machine.boot().unwrap();
    machine.resume().unwrap();
    (guest, machine, console)
}

/// The counters of a counting guest.
pub(crate) fn counters(machine: &Machine, pages: u64) -> Vec<u64> {
    let first = machine.ram().page_of(Gpa(FIRST)).unwrap().0;
    let mut page: Page = [0; PAGE_BYTES];
    (first..first + pages)
        .map(|index| {
            machine.ram().read_page(PageIndex(index), &mut page).unwrap();
            u64::from_le_bytes(page[..8].try_into().unwrap())
        })
        .collect()
}

/// Checks that counters are those of a guest that missed and repeated nothing; returns the work done so far.
pub(crate) fn assert_unbroken(counters: &[u64]) -> u64 {
    let round = *counters.last().unwrap();
    let boundary = counters.iter().position(|c| *c == round).unwrap();
    let expected = (0..counters.len()).map(|i| if i < boundary { round + 1 } else { round });
    assert!(counters.iter().copied().eq(expected), "gap or repetition in {counters:?}");
    counters.iter().sum()
}

/// Pages in which two machines' RAM differs.
pub(crate) fn differing(a: &Machine, b: &Machine) -> Vec<u64> {
    let (mut mine, mut theirs): (Page, Page) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
    (0..a.ram().page_count())
        .filter(|index| {
            a.ram().read_page(PageIndex(*index), &mut mine).unwrap();
            b.ram().read_page(PageIndex(*index), &mut theirs).unwrap();
            mine != theirs
        })
        .collect()
}

/// Copies pages from one machine's RAM to the other's.
pub(crate) fn copy(from: &Machine, to: &Machine, pages: impl IntoIterator<Item = PageIndex>) {
    let mut page: Page = [0; PAGE_BYTES];
    for index in pages {
        from.ram().read_page(index, &mut page).unwrap();
        to.ram().write_page(index, &page).unwrap();
    }
}
