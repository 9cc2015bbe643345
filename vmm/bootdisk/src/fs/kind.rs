//! What lies in a partition, by its magic numbers.

use std::fmt;
use std::io;

use crate::disk::Slice;

/// What was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext2, ext3 or ext4; the only one read here.
    Ext,
    /// An encrypted volume.
    Luks,
    /// Another encrypted volume.
    BitLocker,
    /// A physical volume of LVM.
    Lvm2,
    /// A member of a software RAID.
    MdRaid,
    /// Known, but not read here: its name.
    Other(&'static str),
    /// No magic number of those looked for.
    Unknown,
}

impl Kind {
    /// True if its contents cannot be read without a key.
    #[must_use]
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Luks | Self::BitLocker)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext => "ext4",
            Self::Luks => "LUKS (encrypted)",
            Self::BitLocker => "BitLocker (encrypted)",
            Self::Lvm2 => "LVM2 physical volume",
            Self::MdRaid => "member of a software RAID",
            Self::Other(name) => name,
            Self::Unknown => "nothing recognised",
        })
    }
}

/// Offset, magic, and what has it. More telling ones first: a FAT's signature is shared by all boot sectors.
const MAGICS: &[(u64, &[u8], Kind)] = &[
    (0, b"LUKS\xba\xbe", Kind::Luks),
    (3, b"-FVE-FS-", Kind::BitLocker),
    (0, b"XFSB", Kind::Other("xfs")),
    (0x10040, b"_BHRfS_M", Kind::Other("btrfs")),
    (536, b"LVM2 001", Kind::Lvm2),
    (24, b"LVM2 001", Kind::Lvm2),
    (4096, b"\xfc\x4e\x2b\xa9", Kind::MdRaid),
    (1080, b"\x53\xef", Kind::Ext),
    (1024, b"\x10\x20\xf5\xf2", Kind::Other("f2fs")),
    (4086, b"SWAPSPACE2", Kind::Other("swap")),
    (3, b"NTFS    ", Kind::Other("ntfs")),
    (3, b"EXFAT   ", Kind::Other("exfat")),
    (82, b"FAT32   ", Kind::Other("vfat")),
    (54, b"FAT16   ", Kind::Other("vfat")),
    (54, b"FAT12   ", Kind::Other("vfat")),
    (32769, b"CD001", Kind::Other("iso9660")),
    (0, b"hsqs", Kind::Other("squashfs")),
    (0, b"QFI\xfb", Kind::Other("qcow2 image (open it as qcow2, not as raw)")),
    (0, b"KDMV", Kind::Other("VMDK image (convert it to raw or qcow2)")),
    (0, b"vhdxfile", Kind::Other("VHDX image (convert it to raw or qcow2)")),
];

/// Looks at the partition's first 64 KiB.
pub(crate) fn identify(slice: &Slice) -> io::Result<Kind> {
    for (offset, magic, kind) in MAGICS {
        if holds(slice, *offset, magic)? {
            return Ok(*kind);
        }
    }
    Ok(Kind::Unknown)
}

fn holds(slice: &Slice, offset: u64, magic: &[u8]) -> io::Result<bool> {
    let mut found = [0; 16];
    let found = &mut found[..magic.len()];
    match slice.read_at(offset, found) {
        Ok(()) => Ok(found == magic),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::memory::Memory;
    use std::sync::Arc;

    fn kind_of(bytes: Vec<u8>) -> Kind {
        identify(&Slice::whole(Arc::new(Memory(bytes)))).unwrap()
    }

    #[test]
    fn every_magic_is_recognised_where_it_belongs_and_nowhere_else() {
        for (offset, magic, kind) in MAGICS {
            let mut image = vec![0; 70_000];
            let at = usize::try_from(*offset).unwrap();
            image[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(kind_of(image.clone()), *kind);
            image.copy_within(at..at + magic.len(), at + 1);
            image[at] = 0;
            assert_eq!(kind_of(image), Kind::Unknown, "{kind} a byte further");
        }
    }

    #[test]
    fn a_partition_shorter_than_the_magics_place_is_unknown() {
        assert_eq!(kind_of(vec![0; 3]), Kind::Unknown);
        assert_eq!(kind_of(Vec::new()), Kind::Unknown);
    }
}
