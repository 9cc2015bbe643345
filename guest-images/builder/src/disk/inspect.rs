//! What an image file holds.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde::Serialize;

use super::gpt::{self, Guid};
use super::{Format, qcow2};
use crate::ImageError;

/// What is known about an image without booting it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// How the file holds the disk.
    pub format: Format,
    /// Bytes of the disk as a guest sees it.
    pub virtual_bytes: u64,
    /// Bytes the file takes on its host.
    pub allocated_bytes: u64,
    /// Partitions of its GPT; empty without one.
    pub partitions: Vec<PartitionInfo>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionInfo {
    /// From 1.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// What it is for: `linux`, `bios-boot`, or its type's GUID.
    pub kind: String,
    /// Its name in the table.
    pub name: String,
}

/// Looks at an image file.
///
/// # Errors
/// [`ImageError::File`] when it cannot be read, [`ImageError::Unusable`] for a damaged qcow2.
pub fn inspect(path: &Path) -> Result<Inspection, ImageError> {
    let metadata = fs::metadata(path).map_err(ImageError::file("read", path))?;
    let format = Format::of(path)?;
    let (virtual_bytes, partitions) = match format {
        Format::Raw => {
            let file = File::open(path).map_err(ImageError::file("read", path))?;
            let read = |buffer: &mut [u8], at| file.read_exact_at(buffer, at);
            (metadata.len(), partitions(metadata.len(), read))
        }
        Format::Qcow2 => {
            let image = qcow2::Reader::open(path)?;
            (image.size(), partitions(image.size(), |buffer, at| image.read(buffer, at)))
        }
    };
    Ok(Inspection { format, virtual_bytes, allocated_bytes: metadata.blocks() * 512, partitions })
}

fn partitions(size: u64, read: impl Fn(&mut [u8], u64) -> std::io::Result<()>) -> Vec<PartitionInfo> {
    let found = gpt::partitions(|at, len| {
        let rest = usize::try_from(size.checked_sub(at)?).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(rest)];
        read(&mut bytes, at).ok()?;
        Some(bytes)
    });
    found.unwrap_or_default().into_iter().map(PartitionInfo::from).collect()
}

impl From<gpt::Partition> for PartitionInfo {
    fn from(found: gpt::Partition) -> Self {
        let kind = kind(found.kind);
        Self { number: found.number, start: found.start, bytes: found.bytes, kind, name: found.name }
    }
}

fn kind(guid: Guid) -> String {
    match guid {
        gpt::LINUX => "linux".to_owned(),
        gpt::BIOS_BOOT => "bios-boot".to_owned(),
        Guid(raw) => {
            let [a, b, c, d, e, f, g, h, rest @ ..] = raw;
            let first = u32::from_le_bytes([a, b, c, d]);
            let tail: String = rest[2..].iter().map(|byte| format!("{byte:02x}")).collect();
            let (second, third) = (u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
            format!("{first:08x}-{second:04x}-{third:04x}-{:02x}{:02x}-{tail}", rest[0], rest[1])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::Unwatched;

    #[test]
    fn both_formats_show_the_same_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (raw, packed) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
        let file = File::create(&raw).unwrap();
        file.set_len(8 << 20).unwrap();
        let root = gpt::Partition {
            number: 1,
            kind: gpt::LINUX,
            id: Guid([1; 16]),
            start: 2 << 20,
            bytes: 4 << 20,
            name: "root".into(),
        };
        for (at, content) in gpt::table(8 << 20, Guid([2; 16]), &[root]) {
            file.write_all_at(&content, at).unwrap();
        }
        super::super::convert(&raw, &packed, Format::Qcow2, &Unwatched).unwrap();
        let (one, other) = (inspect(&raw).unwrap(), inspect(&packed).unwrap());
        assert_eq!((one.format, other.format), (Format::Raw, Format::Qcow2));
        assert_eq!((one.virtual_bytes, &one.partitions), (other.virtual_bytes, &other.partitions));
        assert_eq!((one.partitions[0].kind.as_str(), one.partitions[0].bytes), ("linux", 4 << 20));
    }

    #[test]
    fn a_type_nobody_knows_is_shown_as_it_is_written() {
        let efi = Guid([
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
        ]);
        assert_eq!(kind(efi), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    }
}
