//! Disks against a driver of our own that does as it pleases: real KVM objects, real images, no guest.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imago::FormatCreateBuilder;
use mycelium_ram_core::{PageIndex, PageSet};

use super::{Machine, MachineError, MachinePorts, RestoreOptions};
use crate::devices::block::ImageError;
use crate::devices::serial::StreamPort;
use crate::spec::{DeviceSpecs, DiskCache, DiskFormat, DiskSpec};
use crate::virtio::rig::{BUFFERS, CONFIG, NEEDS_RESET, NEXT, Rig, WRITE, spec, used};

const DISK_BYTES: u64 = 8 << 20;
/// Segments, block size, flush, queues, discard, write-zeroes.
const FEATURES: u64 = 1 << 2 | 1 << 6 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 14;
const FEATURES_READONLY: u64 = 1 << 5;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const STATUS_AT: u64 = BUFFERS + 0x8_0000;
const HEADER_AT: u64 = BUFFERS + 0x8_1000;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// Nobody has answered yet.
const OPEN: u8 = 0xaa;
const PATIENCE: Duration = Duration::from_secs(10);

type Part = (u64, u32, bool);

struct Bench {
    rig: Rig,
    folder: tempfile::TempDir,
}

fn disk(path: PathBuf, format: DiskFormat) -> DiskSpec {
    DiskSpec {
        path,
        format,
        readonly: false,
        serial: "shelf-7".to_owned(),
        cache: DiskCache::Writeback,
        queues: 2,
        iops: None,
        bytes_per_s: None,
        slot: None,
    }
}

fn build(disk: DiskSpec) -> Result<Machine, MachineError> {
    let devices = DeviceSpecs { disks: vec![disk], ..DeviceSpecs::default() };
    let ports = MachinePorts::none(Arc::new(StreamPort::new(std::io::sink())));
    Machine::build(&spec(devices), ports)
}

fn make_image(path: &Path, format: DiskFormat) {
    let file = File::create_new(path).unwrap();
    if format == DiskFormat::Raw {
        return file.set_len(DISK_BYTES).unwrap();
    }
    drop(file);
    let options = imago::StorageOpenOptions::new().filename(path).write(true);
    let storage = <imago::file::File as imago::Storage>::open(options).unwrap();
    let builder = imago::qcow2::Qcow2::<imago::file::File>::create_builder(storage);
    builder.size(DISK_BYTES).create().unwrap();
}

impl Bench {
    fn new(format: DiskFormat, change: impl FnOnce(&mut DiskSpec)) -> Option<Bench> {
        if let Err(error) = crate::kvm::open() {
            println!("SKIPPED: {error}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        make_image(&path, format);
        let mut disk = disk(path, format);
        change(&mut disk);
        let features = if disk.readonly { FEATURES_READONLY } else { FEATURES };
        let machine = build(disk).unwrap();
        Some(Bench { rig: Rig::new(machine, 0, features), folder })
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Offers a request on queue 0 with its data in `data`, without waiting for the answer.
    fn start(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) {
        self.rig.put(STATUS_AT, &[OPEN]);
        self.rig.put(HEADER_AT, &kind.to_le_bytes());
        self.rig.put(HEADER_AT + 8, &sector.to_le_bytes());
        let mut parts = vec![(HEADER_AT, 16, false)];
        parts.extend_from_slice(data);
        parts.push((STATUS_AT, 1, true));
        self.rig.chain(0, 0, &parts);
    }

    fn status(&self) -> u8 {
        self.rig.get(STATUS_AT, 1)[0]
    }

    /// The answer to the request under way. The disk's own thread gives it.
    fn answer(&self) -> u8 {
        let start = Instant::now();
        while self.status() == OPEN {
            assert!(start.elapsed() < PATIENCE, "no answer");
            std::thread::yield_now();
        }
        self.status()
    }

    fn ask(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> u8 {
        self.start(kind, sector, data);
        self.answer()
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.rig.put(BUFFERS, bytes);
        self.ask(OUT, sector, &[(BUFFERS, u32::try_from(bytes.len()).unwrap(), false)])
    }

    fn read(&mut self, sector: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.ask(IN, sector, &[(BUFFERS, length, true)]), OK);
        self.rig.get(BUFFERS, length.try_into().unwrap())
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        self.rig.put(BUFFERS, &sector.to_le_bytes());
        self.rig.put(BUFFERS + 8, &sectors.to_le_bytes());
        self.rig.put(BUFFERS + 12, &flags.to_le_bytes());
        self.ask(kind, 0, &[(BUFFERS, 16, false)])
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 512).to_le_bytes()[0]).collect()
}

fn with_each_format(test: impl Fn(Bench)) {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        if let Some(bench) = Bench::new(format, |_| ()) {
            test(bench);
        }
    }
}

#[test]
fn what_is_written_is_read_back_flushed_and_in_the_image() {
    with_each_format(|mut bench| {
        let data = pattern(3 * 4096);
        assert_eq!(bench.write(8, &data), OK);
        assert_eq!(bench.ask(FLUSH, 0, &[]), OK);
        bench.rig.put(BUFFERS, &[0; 3 * 4096]);
        assert_eq!(bench.read(8, 3 * 4096), data);
        assert!(bench.read(0, 4096).iter().all(|byte| *byte == 0));
        let metrics = bench.rig.machine.metrics().disks[0].of;
        assert_eq!((metrics.writes, metrics.reads, metrics.flushes), (1, 2, 1));
        if bench.rig.machine.spec().devices.disks[0].format == DiskFormat::Raw {
            let mut found = vec![0; data.len()];
            File::open(bench.image()).unwrap().read_exact_at(&mut found, 4096).unwrap();
            assert_eq!(found, data);
        }
    });
}

#[test]
fn scattered_segments_are_one_request() {
    with_each_format(|mut bench| {
        let parts = [(BUFFERS + 3, 500), (BUFFERS + 0x2000, 12), (BUFFERS + 0x4001, 1024)];
        let data = pattern(1536);
        let mut at = 0;
        for (address, length) in parts {
            bench.rig.put(address, &data[at..at + length as usize]);
            at += length as usize;
        }
        assert_eq!(bench.ask(OUT, 1, &parts.map(|(address, length)| (address, length, false))), OK);
        for (address, length) in parts {
            bench.rig.put(address, &vec![0; length as usize]);
        }
        assert_eq!(bench.ask(IN, 1, &parts.map(|(address, length)| (address, length, true))), OK);
        let found: Vec<u8> =
            parts.iter().flat_map(|(address, length)| bench.rig.get(*address, *length as usize)).collect();
        assert_eq!(found, data);
        assert_eq!(bench.rig.written(0, 1), 1537);
    });
}

#[test]
fn direct_disks_take_buffers_of_any_alignment() {
    let Some(mut bench) = Bench::new(DiskFormat::Raw, |disk| disk.cache = DiskCache::Direct) else { return };
    let data = pattern(8192);
    assert_eq!(bench.write(0, &data), OK);
    for address in [BUFFERS + 0x1_0000, BUFFERS + 0x1_0003] {
        assert_eq!(bench.ask(IN, 0, &[(address, 4096, true), (address + 0x4000, 4096, true)]), OK);
        let found = [bench.rig.get(address, 4096), bench.rig.get(address + 0x4000, 4096)].concat();
        assert_eq!(found, data, "{address:#x}");
    }
    bench.rig.put(BUFFERS + 5, &data[..4096]);
    assert_eq!(bench.ask(OUT, 64, &[(BUFFERS + 5, 4096, false)]), OK);
    assert_eq!(bench.read(64, 4096), data[..4096]);
}

#[test]
fn what_the_disk_writes_is_marked() {
    with_each_format(|mut bench| {
        bench.rig.machine.start_dirty_tracking().unwrap();
        assert_eq!(bench.ask(IN, 0, &[(BUFFERS + 0x3000 - 1, 4096, true)]), OK);
        bench.rig.machine.pause().unwrap();
        let mut dirty = PageSet::empty(bench.rig.ram().page_count());
        bench.rig.machine.take_dirty(&mut dirty).unwrap();
        for at in [BUFFERS + 0x2000, BUFFERS + 0x3000, STATUS_AT, used(0)] {
            assert!(dirty.contains(PageIndex(at / 4096)), "page of {at:#x}");
        }
        assert!(!dirty.contains(PageIndex((BUFFERS + 0x1000) / 4096)));
    });
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zero() {
    with_each_format(|mut bench| {
        assert_eq!(bench.write(0, &pattern(0x2_0000)), OK);
        assert_eq!(bench.range(WRITE_ZEROES, 8, 16, 0), OK);
        assert_eq!(bench.range(WRITE_ZEROES, 128, 64, 1), OK);
        assert_eq!(bench.range(DISCARD, 64, 8, 0), OK);
        let found = bench.read(0, 0x2_0000);
        assert!(found[8 * 512..24 * 512].iter().all(|byte| *byte == 0));
        assert!(found[128 * 512..192 * 512].iter().all(|byte| *byte == 0));
        assert_eq!(found[..8 * 512], pattern(0x2_0000)[..8 * 512]);
        assert_eq!(bench.range(DISCARD, 64, 8, 1), UNSUPPORTED);
        assert_eq!(bench.range(WRITE_ZEROES, u64::MAX, 8, 0), IOERR);
        assert_eq!(bench.range(DISCARD, DISK_BYTES / 512, 1, 0), IOERR);
    });
}

#[test]
fn the_guest_learns_size_queues_and_serial() {
    with_each_format(|mut bench| {
        assert_eq!(u64::from_le_bytes(bench.rig.read(CONFIG)), DISK_BYTES / 512);
        assert_eq!(u16::from_le_bytes(bench.rig.read(CONFIG + 34)), 2);
        assert_eq!(bench.ask(GET_ID, 0, &[(BUFFERS, 20, true)]), OK);
        assert_eq!(bench.rig.get(BUFFERS, 8), *b"shelf-7\0");
    });
}

#[test]
fn requests_a_guest_gets_wrong_fail_and_nothing_else_happens() {
    with_each_format(|mut bench| {
        let end = DISK_BYTES / 512;
        for (what, sector, length) in
            [("at the end", end, 512), ("across it", end - 1, 1024), ("half", 0, 100)]
        {
            assert_eq!(bench.ask(IN, sector, &[(BUFFERS, length, true)]), IOERR, "read {what}");
            assert_eq!(bench.ask(OUT, sector, &[(BUFFERS, length, false)]), IOERR, "write {what}");
        }
        assert_eq!(bench.ask(99, 0, &[]), UNSUPPORTED);
        assert_eq!(bench.ask(IN, u64::MAX, &[(BUFFERS, 512, true)]), IOERR);
        assert_eq!(bench.write(0, &[1; 512]), OK);
    });
}

#[test]
fn chains_that_are_no_requests_stop_the_disk_until_it_is_reset() {
    with_each_format(|mut bench| {
        let cases: [(&str, &[Part]); 5] = [
            ("no status byte", &[(HEADER_AT, 16, false)]),
            ("short header", &[(HEADER_AT, 8, false), (STATUS_AT, 1, true)]),
            ("nothing to read", &[(STATUS_AT, 1, true)]),
            ("status outside RAM", &[(HEADER_AT, 16, false), (1 << 40, 1, true)]),
            ("data outside RAM", &[(HEADER_AT, 16, false), (15 << 20, 4 << 20, true), (STATUS_AT, 1, true)]),
        ];
        for (what, parts) in cases {
            bench.rig.put(HEADER_AT, &[0; 16]);
            bench.rig.chain(0, 0, parts);
            assert_eq!(bench.rig.status() & NEEDS_RESET, NEEDS_RESET, "{what}");
            bench.rig.start();
            assert_eq!(bench.write(0, &[7; 512]), OK, "{what}: recovers");
        }
        assert_eq!(bench.rig.machine.metrics().disks[0].of.breakdowns, 5);
    });
}

#[test]
fn a_looping_chain_stops_the_disk() {
    let Some(mut bench) = Bench::new(DiskFormat::Raw, |_| ()) else { return };
    bench.rig.describe(0, 0, (HEADER_AT, 16, NEXT, 1));
    bench.rig.describe(0, 1, (BUFFERS, 512, NEXT | WRITE, 1));
    bench.rig.offer(0, 0);
    assert_eq!(bench.rig.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn a_readonly_disk_is_left_alone() {
    let Some(mut bench) = Bench::new(DiskFormat::Raw, |disk| disk.readonly = true) else { return };
    assert_eq!(bench.write(0, &[1; 512]), IOERR);
    assert_eq!(bench.range(DISCARD, 0, 8, 0), IOERR);
    assert_eq!(bench.read(0, 512), [0; 512]);
}

#[test]
fn a_pause_finds_every_request_answered_and_a_restored_disk_goes_on() {
    with_each_format(|mut bench| {
        bench.rig.machine.resume().unwrap();
        for round in 0..20 {
            bench.rig.put(BUFFERS, &[round; 4096]);
            bench.start(OUT, 16, &[(BUFFERS, 4096, false)]);
            bench.rig.machine.pause().unwrap();
            let open = bench.status() == OPEN;
            assert_eq!(bench.rig.used(0) == u16::from(round) + 1, !open, "answered, or still in its queue");
            let mut state = Vec::new();
            bench.rig.machine.save_state(&mut state).unwrap();
            bench.rig.machine.restore_state(&state, RestoreOptions::default()).unwrap();
            bench.rig.machine.resume().unwrap();
            assert_eq!(bench.answer(), OK);
        }
        assert_eq!(bench.read(16, 4096), [19; 4096]);
    });
}

#[test]
fn a_rate_limit_makes_the_guest_wait() {
    let Some(mut bench) = Bench::new(DiskFormat::Raw, |disk| disk.iops = Some(20)) else { return };
    let start = Instant::now();
    for _ in 0..24 {
        assert_eq!(bench.ask(IN, 0, &[(BUFFERS, 512, true)]), OK);
    }
    assert!(start.elapsed() >= Duration::from_millis(150), "{:?}", start.elapsed());
    assert!(bench.rig.machine.metrics().disks[0].of.throttled > 0);
}

#[test]
fn images_that_cannot_be_used_are_refused_by_name_and_reason() {
    if crate::kvm::open().is_err() {
        return println!("SKIPPED: no KVM");
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let refusal = |spec: DiskSpec| match build(spec) {
        Err(MachineError::Disk(error)) => error,
        other => panic!("{other:?}"),
    };
    let missing = refusal(disk(at("missing"), DiskFormat::Raw));
    assert!(
        matches!(missing, ImageError::Open { .. }) && missing.to_string().contains("missing"),
        "{missing}"
    );
    File::create(at("empty")).unwrap();
    assert!(matches!(refusal(disk(at("empty"), DiskFormat::Raw)), ImageError::Format { .. }));
    assert!(matches!(refusal(disk(folder.path().to_owned(), DiskFormat::Raw)), ImageError::Open { .. }));
    make_image(&at("qcow2"), DiskFormat::Qcow2);
    let disguised = refusal(disk(at("qcow2"), DiskFormat::Raw));
    assert!(disguised.to_string().contains("begins as a qcow2"), "{disguised}");
    make_image(&at("raw"), DiskFormat::Raw);
    assert!(matches!(refusal(disk(at("raw"), DiskFormat::Qcow2)), ImageError::Format { .. }));
    let damaged = File::options().write(true).open(at("qcow2")).unwrap();
    damaged.write_all_at(&[0xff; 64], 8).unwrap();
    assert!(matches!(refusal(disk(at("qcow2"), DiskFormat::Qcow2)), ImageError::Damaged { .. }));
    let _first = build(disk(at("raw"), DiskFormat::Raw)).unwrap();
    assert!(matches!(refusal(disk(at("raw"), DiskFormat::Raw)), ImageError::Busy { .. }));
}

#[test]
fn an_image_is_based_on_files_of_its_own_folder_only() {
    if crate::kvm::open().is_err() {
        return println!("SKIPPED: no KVM");
    }
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let based_on = |base: &Path, name: &str| {
        make_image(base, DiskFormat::Raw);
        let path = folder.path().join(name);
        File::create_new(&path).unwrap();
        let options = imago::StorageOpenOptions::new().filename(&path).write(true);
        let storage = <imago::file::File as imago::Storage>::open(options).unwrap();
        let builder = imago::qcow2::Qcow2::<imago::file::File>::create_builder(storage);
        let base = base.to_str().unwrap().to_owned();
        builder.size(DISK_BYTES).backing(base, "raw".to_owned()).create().unwrap();
        build(disk(path, DiskFormat::Qcow2))
    };
    assert!(based_on(&folder.path().join("base"), "good").is_ok());
    let error = based_on(&elsewhere.path().join("base"), "bad").unwrap_err().to_string();
    assert!(error.contains("outside its own folder"), "{error}");
    let missing = folder.path().join("base");
    std::fs::remove_file(&missing).unwrap();
    let good = disk(folder.path().join("good"), DiskFormat::Qcow2);
    assert!(matches!(build(good), Err(MachineError::Disk(ImageError::Damaged { .. }))));
}

#[test]
fn a_disk_let_go_of_is_anybodys_and_comes_back_as_it_was_left() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let Some(mut bench) = Bench::new(format, |_| ()) else { return };
        bench.rig.machine.resume().unwrap();
        bench.rig.put(BUFFERS, &[7; 512]);
        assert_eq!(bench.ask(OUT, 3, &[(BUFFERS, 512, false)]), OK);
        let taker = || {
            let devices = DeviceSpecs { disks: vec![disk(bench.image(), format)], ..DeviceSpecs::default() };
            let ports = MachinePorts::none(Arc::new(StreamPort::new(std::io::sink())));
            Machine::build_incoming(&spec(devices), ports).unwrap()
        };
        // While somebody works on it, another machine can know it and not have it.
        let other = taker();
        assert_eq!(other.disk_sizes(), bench.rig.machine.disk_sizes());
        assert!(matches!(other.take_disks(), Err(MachineError::Disk(ImageError::Busy { .. }))));
        assert!(matches!(other.resume(), Err(MachineError::DisksAway)));
        assert!(matches!(bench.rig.machine.release_disks(), Err(MachineError::Running { .. })));
        bench.rig.machine.pause().unwrap();
        bench.rig.machine.release_disks().unwrap();
        assert!(matches!(bench.rig.machine.resume(), Err(MachineError::DisksAway)));
        other.take_disks().unwrap();
        assert!(matches!(bench.rig.machine.take_disks(), Err(MachineError::Disk(ImageError::Busy { .. }))));
        other.release_disks().unwrap();
        bench.rig.machine.take_disks().unwrap();
        bench.rig.machine.resume().unwrap();
        bench.rig.put(BUFFERS, &[0; 512]);
        assert_eq!(bench.ask(IN, 3, &[(BUFFERS, 512, true)]), OK);
        assert_eq!(bench.rig.get(BUFFERS, 512), [7; 512]);
    }
}

#[test]
fn a_disk_that_has_changed_its_size_is_not_taken_back() {
    let Some(bench) = Bench::new(DiskFormat::Raw, |_| ()) else { return };
    bench.rig.machine.pause().unwrap();
    bench.rig.machine.release_disks().unwrap();
    File::options().write(true).open(bench.image()).unwrap().set_len(DISK_BYTES * 2).unwrap();
    let refused = bench.rig.machine.take_disks();
    assert!(matches!(refused, Err(MachineError::Disk(ImageError::Resized { .. }))), "{refused:?}");
}
