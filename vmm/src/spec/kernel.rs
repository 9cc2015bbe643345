//! A first look at the kernel file, so that a wrong one is refused before anything is started.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::SpecError;

const ELF_MAGIC: &[u8] = b"\x7fELF";
const SETUP_MAGIC: &[u8] = b"HdrS";
const SETUP_MAGIC_AT: usize = 0x202;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_NOTE: u32 = 4;
const PROGRAM_HEADER_BYTES: usize = 56;
/// Owner and type of the note that holds a kernel's PVH entry (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_OWNER: &[u8] = b"Xen\0";
const PVH_TYPE: u32 = 18;
/// Longest note segment looked through; Linux's has a few hundred bytes.
const NOTES_BYTES_MAX: u64 = 64 << 10;

/// Checks that `path` is a bzImage, or a 64-bit x86 ELF kernel with a PVH entry.
///
/// # Errors
/// [`SpecError::File`] about `field`.
pub(super) fn check(field: &'static str, path: &Path) -> Result<(), SpecError> {
    let refuse = |reason: String, remedy| SpecError::File { field, path: path.to_owned(), reason, remedy };
    let unreadable = |e: std::io::Error| refuse(format!("cannot be read: {e}"), "check path and permissions");
    let mut file = File::open(path).map_err(unreadable)?;
    if is_bzimage(&mut file).map_err(unreadable)? {
        return Ok(());
    }
    let mut header = [0; 64];
    let got = read_up_to(&mut file, &mut header).map_err(unreadable)?;
    if got < header.len() || !header.starts_with(ELF_MAGIC) {
        let reason = "is neither a bzImage nor an ELF file".to_owned();
        return Err(refuse(reason, "use the distribution's vmlinuz, or an uncompressed vmlinux"));
    }
    let machine = u16::from_le_bytes([header[18], header[19]]);
    if (header[4], header[5], machine) != (CLASS_64, LITTLE_ENDIAN, MACHINE_X86_64) {
        return Err(refuse("is an ELF file for another machine".to_owned(), "use a kernel for x86_64"));
    }
    if has_pvh_note(&mut file, &header).map_err(unreadable)? {
        return Ok(());
    }
    Err(refuse("has no PVH entry note".to_owned(), "build the kernel with CONFIG_PVH=y"))
}

/// Whether the file has a setup header that says it is a bzImage; leaves it at its start.
fn is_bzimage(file: &mut File) -> std::io::Result<bool> {
    let mut start = [0; SETUP_MAGIC_AT + 4];
    let got = read_up_to(file, &mut start)?;
    file.rewind()?;
    Ok(got == start.len() && start.ends_with(SETUP_MAGIC))
}

fn read_up_to(file: &mut File, into: &mut [u8]) -> std::io::Result<usize> {
    let mut taken = Vec::with_capacity(into.len());
    file.take(into.len() as u64).read_to_end(&mut taken)?;
    into[..taken.len()].copy_from_slice(&taken);
    Ok(taken.len())
}

fn has_pvh_note(file: &mut File, header: &[u8; 64]) -> std::io::Result<bool> {
    let table = u64_at(header, 32);
    let count = u64::from(u16::from_le_bytes([header[56], header[57]]));
    for index in 0..count {
        let mut entry = [0; PROGRAM_HEADER_BYTES];
        let at = table.saturating_add(index * PROGRAM_HEADER_BYTES as u64);
        if file.seek(SeekFrom::Start(at)).is_err() || read_up_to(file, &mut entry)? < entry.len() {
            return Ok(false);
        }
        if u32_at(&entry, 0) != PT_NOTE {
            continue;
        }
        let (offset, length) = (u64_at(&entry, 8), u64_at(&entry, 32));
        let mut notes = Vec::new();
        if file.seek(SeekFrom::Start(offset)).is_ok() {
            file.take(length.min(NOTES_BYTES_MAX)).read_to_end(&mut notes)?;
        }
        if names_pvh_entry(&notes) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Walks notes: name length, contents length, type, name, contents, the latter two padded to four bytes.
fn names_pvh_entry(mut notes: &[u8]) -> bool {
    while let Some((head, rest)) = notes.split_first_chunk::<12>() {
        let [name, contents, kind] = [0, 4, 8].map(|at| u32_at(head, at));
        let padded = |length: u32| usize::try_from(length).unwrap_or(usize::MAX).checked_next_multiple_of(4);
        let (Some(name_end), Some(contents)) = (padded(name), padded(contents)) else { return false };
        let Some((owner, rest)) = rest.split_at_checked(name_end) else { return false };
        if kind == PVH_TYPE && owner.starts_with(PVH_OWNER) {
            return true;
        }
        notes = rest.get(contents..).unwrap_or(&[]);
    }
    false
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(kind: u32, owner: &[u8], contents: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [owner.len(), contents.len(), kind as usize] {
            bytes.extend_from_slice(&u32::try_from(word).unwrap().to_le_bytes());
        }
        for part in [owner, contents] {
            bytes.extend_from_slice(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_entry_is_found_among_other_notes() {
        let mut notes = note(1, b"GNU\0", &[1; 5]);
        assert!(!names_pvh_entry(&notes));
        notes.extend(note(18, b"Xen\0", &[0; 8]));
        assert!(names_pvh_entry(&notes));
    }

    proptest! {
        #[test]
        fn no_notes_make_it_loop_or_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            names_pvh_entry(&bytes);
        }
    }
}
