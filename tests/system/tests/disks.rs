//! Disks of a protected VM: what the guest was told is on the disk is on the replica's, and nothing that never happened.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bench_vms::{Pair, Programs, Protect, Stop, timeline};
use system_tests::guest::VsockGuest;
use system_tests::process::Running;
use system_tests::{has_kvm, program, run};

const SECTOR: usize = 512;
/// Not a whole number of extents.
const DISK_BYTES: usize = (5 << 20) + 3 * SECTOR;
/// Sectors the guest works on, spread over the disk.
const WORKED: u64 = 64;
const STRIDE: u64 = 149;
const PATIENCE: Duration = Duration::from_secs(60);

/// A pair with a disk on each side, and what the guest has been told.
struct Rig {
    pair: Pair,
    dir: tempfile::TempDir,
    format: Format,
    /// Of each worked sector: what it may hold.
    told: Vec<Vec<u8>>,
    original: Vec<u8>,
}

/// How the images hold the disks.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    Raw,
    Qcow2,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    fn make(self, path: &Path, content: &[u8]) {
        match self {
            Self::Raw => fs::write(path, content).unwrap(),
            Self::Qcow2 => {
                let raw = path.with_extension("raw");
                fs::write(&raw, content).unwrap();
                let mycelium = program("mycelium").unwrap();
                let converted = run(Command::new(mycelium)
                    .args(["image", "convert", "--format", "qcow2"])
                    .args([&raw, path]));
                assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
            }
        }
    }
}

/// Bytes that look like nothing, the same for the same seed; every fourth extent is empty.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let byte = |at: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if at >> 16 & 3 == 3 { 0 } else { state.to_be_bytes()[0] }
    };
    (0..DISK_BYTES).map(byte).collect()
}

impl Rig {
    fn start(seed: u64, format: Format, disk_words: &str) -> Option<Self> {
        let programs = Programs { endophyte: program("endophyte")?, mycelium: program("mycelium")? };
        let guest = program("native-guest")?;
        if !has_kvm() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let original = noise(seed);
        format.make(&dir.path().join("a.img"), &original);
        format.make(&dir.path().join("b.img"), &[0xa5; DISK_BYTES]);
        let word = format.word();
        let spec = |side: &str| {
            let path = |kind: &str| dir.path().join(format!("{side}.{kind}"));
            format!(
                "name = \"disks\"\nvcpus = 1\nram_mib = 64\nkernel = {guest:?}\ncmdline = \"vsock=resp:6379\"\n\n\
                 [vsock]\ncid = 5\nsocket = {:?}\n\n[[disk]]\npath = {:?}\nformat = {word:?}\nserial = \"data\"\n{disk_words}\n",
                path("sock"),
                path("img"),
            )
        };
        let (active_spec, passive_spec) = (spec("a"), spec("b"));
        let protect =
            Protect { active_spec: &active_spec, passive_spec: &passive_spec, ..Protect::default() };
        let pair = Pair::start(&programs, &protect, dir.path(), &Stop::default()).unwrap();
        for (side, spec) in [("a", &active_spec), ("b", &passive_spec)] {
            fs::write(dir.path().join(format!("{side}.toml")), spec).unwrap();
        }
        Some(Self { pair, dir, format, told: vec![Vec::new(); usize::try_from(WORKED).unwrap()], original })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn guest(&self, side: &str) -> VsockGuest {
        VsockGuest::reach(&self.path(&format!("{side}.sock")), 6379, PATIENCE)
    }

    /// Writes until the guest is gone or it was `count` times; a word told is a word kept.
    fn work(&mut self, guest: &mut VsockGuest, round: u8, count: u64) -> u64 {
        for n in 0..count {
            let place = n * 7 % WORKED;
            let byte = (n % 250) as u8 ^ round;
            let allowed = &mut self.told[usize::try_from(place).unwrap()];
            allowed.push(byte);
            match guest.ask(&format!("BLK WRITE {} {byte}", place * STRIDE)) {
                Some(answer) => assert_eq!(answer, "+OK"),
                None => return n,
            }
            *allowed = vec![byte];
            if n % 16 == 15 && guest.ask("BLK FLUSH").is_none() {
                return n;
            }
        }
        count
    }

    /// What the guest reads now is what it was told, or at most the one word nobody heard the answer to.
    fn check(&mut self, guest: &mut VsockGuest) {
        for place in 0..WORKED {
            let content = guest.ask_bulk(&format!("BLK READ {}", place * STRIDE));
            let allowed = &mut self.told[usize::try_from(place).unwrap()];
            assert!(
                content.iter().all(|byte| *byte == content[0]) || allowed.is_empty(),
                "sector of {place} is torn"
            );
            assert!(
                allowed.is_empty() || allowed.contains(&content[0]),
                "place {place} holds {}, not one of {allowed:?}",
                content[0]
            );
        }
    }

    /// Outside of where the guest worked, the disk is what it was: by the image, or where that cannot tell, as the guest sees it.
    fn check_rest(&self, guest: &mut VsockGuest) {
        let image = fs::read(self.path("b.img")).unwrap();
        let worked =
            |sector: usize| (sector as u64).is_multiple_of(STRIDE) && (sector as u64) < WORKED * STRIDE;
        let step = if self.format == Format::Raw { 1 } else { 11 };
        for sector in (0..DISK_BYTES / SECTOR).step_by(step).filter(|sector| !worked(*sector)) {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            let found = match self.format {
                Format::Raw => image[range.clone()].to_vec(),
                Format::Qcow2 => guest.ask_bulk(&format!("BLK READ {sector}")),
            };
            assert!(found == self.original[range], "sector {sector} of the copy is not what it was");
        }
    }
}

fn is_taken_over(format: Format, disk_words: &str) {
    for seed in 1..=if system_tests::whole_suite() { 5 } else { 2 } {
        let Some(mut rig) = Rig::start(seed, format, disk_words) else { return };
        let mut guest = rig.guest("a");
        assert_eq!(rig.work(&mut guest, 1, 200), 200);
        rig.check(&mut guest);
        let pid = rig.pair.active.pid();
        // In the midst of work; where exactly is the machine's affair.
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20 * seed));
            rustix::process::kill_process(pid_of(pid), rustix::process::Signal::KILL).unwrap();
        });
        let done = rig.work(&mut guest, 2, u64::MAX);
        killer.join().unwrap();
        let took_us = rig.pair.take_over(&Stop::default()).unwrap();
        println!("seed {seed}: {done} writes before the loss, took over in {took_us} us");
        let mut guest = rig.guest("b");
        rig.check(&mut guest);
        rig.check_rest(&mut guest);
        assert_eq!(rig.work(&mut guest, 3, 200), 200);
        rig.check(&mut guest);
        assert!(!timeline::is_protected(&rig.pair.passive.events()));
    }
}

fn pid_of(pid: u32) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

/// Neither side goes on, and the active's disk is never seen again.
#[test]
fn both_sides_are_lost_and_the_replicas_disk_has_what_was_acknowledged() {
    let Some(mut rig) = Rig::start(9, Format::Raw, "") else { return };
    let mut guest = rig.guest("a");
    let pids = [rig.pair.active.pid(), rig.pair.passive.pid()];
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        for pid in pids {
            rustix::process::kill_process(pid_of(pid), rustix::process::Signal::KILL).unwrap();
        }
    });
    assert!(rig.work(&mut guest, 2, u64::MAX) > 0);
    killer.join().unwrap();
    rig.pair.active.lose().unwrap();
    rig.pair.passive.lose().unwrap();
    let journal = rig.path("b.img.journal");
    println!("the journal has {} bytes", fs::metadata(&journal).unwrap().len());
    let mut alone = Command::new(program("endophyte").unwrap());
    alone
        .args(["run", "--die-with-parent", "--spec"])
        .arg(rig.path("b.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let _alone = Running(alone.spawn().unwrap());
    let mut guest = rig.guest("b");
    rig.check(&mut guest);
    rig.check_rest(&mut guest);
    assert_eq!(fs::metadata(&journal).unwrap().len(), 0, "what it promised has been made good");
}

#[test]
fn a_qcow2_disk_is_taken_over() {
    is_taken_over(Format::Qcow2, "");
}

#[test]
fn a_raw_disk_is_taken_over() {
    is_taken_over(Format::Raw, "");
}

#[test]
fn a_raw_disk_past_the_page_cache_is_taken_over() {
    is_taken_over(Format::Raw, "cache = \"direct\"");
}
