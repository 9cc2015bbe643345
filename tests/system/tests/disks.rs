//! Disks of a protected VM: what the guest was told is on the disk is on the replica's, and nothing that never happened.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bench_vms::{Pair, Programs, Protect, Stop, timeline};
use system_tests::guest::VsockGuest;
use system_tests::{has_kvm, program};

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
    /// Of each worked sector: what it may hold.
    told: Vec<Vec<u8>>,
    original: Vec<u8>,
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
    fn start(seed: u64, disk_words: &str) -> Option<Self> {
        let programs = Programs { endophyte: program("endophyte")?, mycelium: program("mycelium")? };
        let guest = program("native-guest")?;
        if !has_kvm() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let original = noise(seed);
        fs::write(dir.path().join("a.img"), &original).unwrap();
        fs::write(dir.path().join("b.img"), vec![0xa5; DISK_BYTES]).unwrap();
        let spec = |side: &str| {
            let path = |kind: &str| dir.path().join(format!("{side}.{kind}"));
            format!(
                "name = \"disks\"\nvcpus = 1\nram_mib = 64\nkernel = {guest:?}\ncmdline = \"vsock=resp:6379\"\n\n\
                 [vsock]\ncid = 5\nsocket = {:?}\n\n[[disk]]\npath = {:?}\nserial = \"data\"\n{disk_words}\n",
                path("sock"),
                path("img"),
            )
        };
        let (active_spec, passive_spec) = (spec("a"), spec("b"));
        let protect = Protect { active_spec: &active_spec, passive_spec: &passive_spec, options: &[] };
        let pair = Pair::start(&programs, &protect, dir.path(), &Stop::default()).unwrap();
        Some(Self { pair, dir, told: vec![Vec::new(); usize::try_from(WORKED).unwrap()], original })
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

    /// Outside of where the guest worked, the disk is what it was.
    fn check_rest(&self, image: &Path) {
        let found = fs::read(image).unwrap();
        assert_eq!(found.len(), DISK_BYTES);
        let worked =
            |sector: usize| (sector as u64).is_multiple_of(STRIDE) && (sector as u64) < WORKED * STRIDE;
        for sector in (0..DISK_BYTES / SECTOR).filter(|sector| !worked(*sector)) {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            assert!(
                found[range.clone()] == self.original[range],
                "sector {sector} of the copy is not what it was"
            );
        }
    }
}

fn is_taken_over(disk_words: &str) {
    for seed in 1..=if system_tests::whole_suite() { 5 } else { 2 } {
        let Some(mut rig) = Rig::start(seed, disk_words) else { return };
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
        rig.check_rest(&rig.path("b.img"));
        assert_eq!(rig.work(&mut guest, 3, 200), 200);
        rig.check(&mut guest);
        assert!(!timeline::is_protected(&rig.pair.passive.events()));
    }
}

fn pid_of(pid: u32) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

#[test]
fn a_raw_disk_is_taken_over() {
    is_taken_over("");
}

#[test]
fn a_raw_disk_past_the_page_cache_is_taken_over() {
    is_taken_over("cache = \"direct\"");
}
