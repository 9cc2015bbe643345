//! Disk images of a fuzzer, opened and used as a disk's is.

use std::cell::RefCell;
use std::fs;

use super::fuzz::{Folder, disk};
use crate::devices::block::DiskImage;
use crate::spec::{DiskFormat, DiskSpec};

thread_local! {
    static FOLDER: RefCell<Option<Folder>> = RefCell::new(Folder::new("image"));
}

/// Opens `data` as a qcow2 image as a disk is opened, and works with it.
pub fn fuzz_qcow2(data: &[u8]) {
    FOLDER.with_borrow(|folder| {
        let Some(folder) = folder else { return };
        let path = folder.0.join("image.qcow2");
        for readonly in [true, false] {
            if fs::write(&path, data).is_err() {
                return;
            }
            let spec =
                DiskSpec { path: path.clone(), format: DiskFormat::Qcow2, readonly, ..disk(&folder.0) };
            let surveyed = DiskImage::survey(&spec);
            let Ok(mut image) = DiskImage::open(&spec) else { continue };
            let geometry = surveyed.expect("what can be opened can be surveyed");
            image.fuzz(geometry);
        }
    });
}

/// An image of 4 MiB with one cluster in use, and one that is based on itself.
pub fn seeds_qcow2() -> Vec<Vec<u8>> {
    let plain = qcow2(None);
    vec![plain, qcow2(Some("image.qcow2"))]
}

/// Clusters of 512 bytes: header, table of refcounts, its block, L1, L2, and data.
fn qcow2(base: Option<&str>) -> Vec<u8> {
    const CLUSTER: usize = 512;
    let mut image = vec![0; 6 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    if let Some(name) = base {
        put(8, &112u64.to_be_bytes());
        put(16, &u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        put(112, name.as_bytes());
    }
    // Bits of a cluster, bytes of the disk.
    put(20, &9u32.to_be_bytes());
    put(24, &(64u64 << 10).to_be_bytes());
    // L1: entries, place. Refcounts: place, clusters.
    put(36, &2u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    // Refcounts of 16 bits, length of the header.
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    (0..6).for_each(|cluster| put(2 * CLUSTER + 2 * cluster, &1u16.to_be_bytes()));
    put(3 * CLUSTER, &((1 << 63) | (4 * CLUSTER as u64)).to_be_bytes());
    put(4 * CLUSTER, &((1 << 63) | (5 * CLUSTER as u64)).to_be_bytes());
    put(5 * CLUSTER, &[7; CLUSTER]);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_based_on_itself_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        fs::write(&path, qcow2(Some("image.qcow2"))).unwrap();
        let spec = DiskSpec { path, format: DiskFormat::Qcow2, readonly: true, ..disk(folder.path()) };
        let refused = DiskImage::open(&spec).unwrap_err().to_string();
        assert!(refused.contains("is based on itself"), "{refused}");
    }

    #[test]
    fn an_image_whose_header_is_not_counted_is_refused() {
        // The table's first entry.
        is_refused_to_writers(512..520);
    }

    #[test]
    fn an_image_with_an_empty_table_of_refcounts_is_refused() {
        // The table's size in the header. Growing it, `imago` looked for a place without end.
        is_refused_to_writers(56..60);
    }

    /// An image with zeros in this place.
    fn is_refused_to_writers(place: std::ops::Range<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        let mut image = qcow2(None);
        image[place].fill(0);
        fs::write(&path, image).unwrap();
        let spec = |readonly| DiskSpec {
            path: path.clone(),
            format: DiskFormat::Qcow2,
            readonly,
            ..disk(folder.path())
        };
        let refused = DiskImage::open(&spec(false)).unwrap_err();
        let reason = std::error::Error::source(&refused).unwrap().to_string();
        assert!(reason.contains("refcounts"), "{reason}");
        DiskImage::open(&spec(true)).unwrap();
    }

    #[test]
    fn the_small_qcow2_image_opens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        fs::write(&path, qcow2(None)).unwrap();
        let spec = DiskSpec { path, format: DiskFormat::Qcow2, ..disk(folder.path()) };
        DiskImage::open(&spec).unwrap();
    }
}
