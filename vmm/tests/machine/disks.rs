//! Disks under a guest that checks every sector.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use endophyte_snapshot::Snapshot;

use crate::native::{Native, Running};

/// Size of the images.
const DISK_BYTES: u64 = 128 << 20;

/// Ticks of the guest between two moves.
const TICKS_PER_MOVE: u32 = 8;

/// Pauses without waiting for the guest in between.
const PAUSES_AT_ONCE: u32 = 10;

/// Lines of a spec for one disk at `image`.
fn disk(image: &str, format: &str, cache: &str, queues: u16) -> String {
    format!(
        "[[disk]]\npath = \"{image}\"\nformat = \"{format}\"\ncache = \"{cache}\"\nqueues = {queues}\nserial = \"abc\""
    )
}

/// An empty image; whether one could be made.
fn make_image(path: &Path, format: &str) -> bool {
    if format == "raw" {
        File::create_new(path).unwrap().set_len(DISK_BYTES).unwrap();
        return true;
    }
    let size = DISK_BYTES.to_string();
    let made = Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(path).arg(size).status();
    if made.is_err() {
        println!("SKIPPED: qemu-img is missing, which makes {format} images: apt-get install qemu-utils");
    }
    made.is_ok_and(|status| status.success())
}

/// All kinds of disks, each with its lines of a spec.
fn kinds(native: &Native) -> impl Iterator<Item = String> {
    let kinds =
        [("raw", "writeback", 1), ("raw", "direct", 2), ("qcow2", "writeback", 2), ("qcow2", "direct", 1)];
    kinds.into_iter().enumerate().filter_map(|(number, (format, cache, queues))| {
        let image = format!("disk{number}");
        make_image(&native.path(&image), format).then(|| disk(&image, format, cache, queues))
    })
}

#[test]
fn every_kind_of_disk_holds_what_was_written() {
    let Some(native) = Native::new() else { return };
    for lines in kinds(&native) {
        let running = native.boot("blk=verify:33554432 blk=misc", &lines);
        running.console.wait_text(0, "blk: verify ok bytes=33554432");
        running.console.wait_text(0, "blk: misc ok serial=abc sectors=262144");
        assert_eq!(running.machine.metrics().disks[0].of.breakdowns, 0);
    }
}

#[test]
fn pauses_lose_and_mix_up_no_request() {
    let Some(native) = Native::new() else { return };
    for lines in kinds(&native) {
        let running = native.boot("blk=verify:67108864 heartbeat=1", &lines);
        let (mut pauses, mut from) = (0, 0);
        while !["blk: verify ok", "FAILED", "panic"].iter().any(|end| running.console.text().contains(end)) {
            for _ in 0..PAUSES_AT_ONCE {
                running.machine.pause().unwrap();
                running.machine.resume().unwrap();
            }
            pauses += PAUSES_AT_ONCE;
            // On a busy machine a guest may not get to run between two pauses.
            from = running.console.wait_text(from, "tick ");
        }
        running.console.wait_text(0, "blk: verify ok");
        assert!(pauses > 10, "only {pauses} pauses");
    }
}

#[test]
fn a_guest_goes_on_with_its_disk_elsewhere() {
    let Some(native) = Native::new() else { return };
    let cmdline = "blk=verify:134217728 heartbeat=10";
    for lines in kinds(&native) {
        let mut running = native.boot(cmdline, &lines);
        running.console.wait_text(0, "blk: verify bytes=");
        let mut moves_amid = 0;
        while !running.console.text().contains("blk: verify ok") {
            running = moved(&native, running, cmdline, &lines);
            moves_amid += 1;
            let mut from = 0;
            for _ in 0..TICKS_PER_MOVE {
                from = running.console.wait_text(from, "tick ");
            }
        }
        assert!(moves_amid > 1, "the check was over before the second move");
    }
}

/// Closing a qcow2 image wrote to it once more, and the snapshot was of another disk.
#[test]
fn a_snapshot_fits_the_disk_that_its_machine_leaves_behind() {
    let Some(native) = Native::new() else { return };
    let cmdline = "blk=verify:67108864 heartbeat=10";
    for (number, lines) in kinds(&native).enumerate() {
        let first = native.boot(cmdline, &lines);
        first.console.wait_text(0, "blk: verify bytes=");
        first.machine.pause().unwrap();
        let file = native.path(&format!("snapshot{number}"));
        first.machine.save_to_file(&file, &mut |_, _| ()).unwrap();
        drop(first);
        let second = native.build(cmdline, &lines);
        second.machine.restore_from_file(Snapshot::open(&file).unwrap(), None, &mut |_, _| ()).unwrap();
        second.machine.resume().unwrap();
        second.console.wait_text(0, "blk: verify ok");
    }
}

/// The same guest on a new machine. The image is one machine's at a time.
fn moved(native: &Native, from: Running, cmdline: &str, lines: &str) -> Running {
    let taken = from.take();
    drop(from);
    let to = native.build(cmdline, lines);
    to.go_on(&taken);
    to
}
