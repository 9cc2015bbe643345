//! The disk image both VMMs use: the same file, so the same place on the host's disk.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use crate::limits::DISK_BYTES;
use bench_vms::Stop;

const BLOCK: usize = 1 << 20;

/// Writes the image, whole: reading holes would measure the host's memory.
pub(crate) fn make(folder: &Path, stop: &Stop) -> Result<PathBuf> {
    let path = folder.join("disk.raw");
    if path.exists() {
        return Ok(path);
    }
    let wrong = || format!("cannot write {}; choose another folder with --work", path.display());
    let mut file = File::create(&path).with_context(wrong)?;
    let mut block = vec![0; BLOCK];
    for number in 0..DISK_BYTES / BLOCK as u64 {
        stop.check()?;
        fill(&mut block, number);
        file.write_all(&block).with_context(wrong)?;
    }
    file.sync_all().with_context(wrong)?;
    check_direct(&path)?;
    Ok(path)
}

/// Something that no file system stores as nothing.
fn fill(block: &mut [u8], number: u64) {
    let mut state = number + 1;
    for word in block.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// Both VMMs pass the page cache by, which not every file system lets them.
fn check_direct(path: &Path) -> Result<()> {
    let opened = rustix::fs::open(path, OFlags::RDWR | OFlags::DIRECT, Mode::empty());
    opened.map(drop).with_context(|| {
        format!(
            "{} cannot be opened past the page cache; choose a folder on a disk with --work",
            path.display()
        )
    })
}
