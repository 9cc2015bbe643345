//! What disks can do besides reading and writing: say their serial number, and forget.

use super::device::{Disk, FEATURE_DISCARD, FEATURE_WRITE_ZEROES, Failed};
use super::request::{Operation, Request};
use crate::serial;
use alloc::boxed::Box;
use native_guest::pattern::{SECTOR_BYTES, fill, mismatch};

/// Sectors tried on, with as many before and behind that must stay.
const SECTORS: usize = 64;
const FIRST: u64 = 64;
const AROUND: usize = 3 * SECTORS * SECTOR_BYTES;
/// What a disk must have for all this.
pub(super) const NEEDED_BYTES: u64 = FIRST * SECTOR_BYTES as u64 + 2 * (SECTORS * SECTOR_BYTES) as u64;
const SEED: u64 = 0x6d69_7363;

/// Length of the serial number's field.
const SERIAL_BYTES: usize = 20;

/// Tries everything and prints one line.
pub(super) fn run(disk: &mut Disk) {
    match attempt(disk) {
        Ok(None) => {}
        Ok(Some(wrong)) => serial::line(format_args!("blk: misc FAILED: {wrong}")),
        Err(Failed(status)) => {
            serial::line(format_args!("blk: misc FAILED: a request ended with status {status}"));
        }
    }
}

fn attempt(disk: &mut Disk) -> Result<Option<&'static str>, Failed> {
    let name = identify(disk)?;
    let [discard, zeroes] = [FEATURE_DISCARD, FEATURE_WRITE_ZEROES].map(|feature| disk.has(feature));
    if zeroes && let Some(wrong) = clear(disk, Operation::WriteZeroes)? {
        return Ok(Some(wrong));
    }
    if discard && let Some(wrong) = clear(disk, Operation::Discard)? {
        return Ok(Some(wrong));
    }
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let name = str::from_utf8(&name[..length]).unwrap_or("?");
    let sectors = disk.sectors();
    serial::line(format_args!(
        "blk: misc ok serial={name} sectors={sectors} zeroes={zeroes} discard={discard}"
    ));
    Ok(None)
}

fn identify(disk: &mut Disk) -> Result<[u8; SERIAL_BYTES], Failed> {
    let mut request = Request::with_capacity(SERIAL_BYTES);
    request.set(Operation::Identify, 0, SERIAL_BYTES);
    let done = disk.wait_for(request)?;
    Ok(done.data().try_into().unwrap_or([0; SERIAL_BYTES]))
}

/// Writes a pattern, clears its middle, and looks at all of it. What is wrong, if anything is.
fn clear(disk: &mut Disk, operation: Operation) -> Result<Option<&'static str>, Failed> {
    let mut pattern = Request::with_capacity(AROUND);
    pattern.set(Operation::Write, FIRST - SECTORS as u64, AROUND);
    let start = pattern.sector;
    fill(pattern.data_mut(), SEED, start);
    let pattern = disk.wait_for(pattern)?;
    disk.wait_for(range(operation, FIRST, SECTORS))?;
    disk.flush()?;
    let seen = read(disk, pattern)?;
    let part = SECTORS * SECTOR_BYTES;
    let (before, rest) = seen.data().split_at(part);
    let (cleared, behind) = rest.split_at(part);
    let kept =
        mismatch(before, SEED, start).is_none() && mismatch(behind, SEED, FIRST + SECTORS as u64).is_none();
    // What a discarded sector holds is not said, but it is this or nothing.
    let zero = cleared.iter().all(|byte| *byte == 0);
    let old = operation == Operation::Discard && mismatch(cleared, SEED, FIRST).is_none();
    Ok(match (kept, zero || old) {
        (true, true) => None,
        (false, _) => Some("sectors beside the cleared ones changed"),
        (true, false) => Some("the cleared sectors hold something"),
    })
}

fn range(operation: Operation, sector: u64, count: usize) -> Box<Request> {
    let mut request = Request::with_capacity(16);
    request.set(operation, 0, 16);
    let data = request.data_mut();
    data.fill(0);
    data[..8].copy_from_slice(&sector.to_le_bytes());
    data[8..12].copy_from_slice(&u32::try_from(count).unwrap_or(0).to_le_bytes());
    request
}

fn read(disk: &mut Disk, mut request: Box<Request>) -> Result<Box<Request>, Failed> {
    let sector = request.sector;
    request.set(Operation::Read, sector, AROUND);
    request.data_mut().fill(0xee);
    disk.wait_for(request)
}
