//! Which pages may hold anything: holes of the file behind memory are known to be zero without being read.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::limits::PAGE_BYTES;
use crate::memory::Slot;

/// Parts of `slots` that are not holes of `backing`; all of them if there is none.
pub(super) fn populated(slots: &[Slot], backing: Option<BorrowedFd<'_>>) -> io::Result<Vec<Slot>> {
    let Some(file) = backing else { return Ok(slots.to_vec()) };
    let mut parts = Vec::new();
    for slot in slots {
        let mut page = slot.first_page;
        while let Some(part) = next_part(file, page, slot.end())? {
            page = part.end();
            parts.push(part);
        }
    }
    Ok(parts)
}

/// The first pages of `file` from `page` on, before `end`, that are no hole.
fn next_part(file: BorrowedFd<'_>, page: u64, end: u64) -> io::Result<Option<Slot>> {
    const PAGE: u64 = PAGE_BYTES as u64;
    if page >= end {
        return Ok(None);
    }
    let data = match seek(file, SeekFrom::Data(page * PAGE)) {
        Ok(offset) => offset / PAGE,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if data >= end {
        return Ok(None);
    }
    // At the latest, the end of the file counts as a hole.
    let hole = seek(file, SeekFrom::Hole(data * PAGE))?.div_ceil(PAGE).clamp(data + 1, end);
    Ok(Some(Slot { first_page: data, pages: hole - data }))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::io::pwrite;

    use super::*;

    #[test]
    fn only_written_pages_are_found_and_only_within_the_slots() {
        let memfd = memfd_create("scan", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memfd, 100 * 4096).unwrap();
        for page in [3, 4, 50, 99] {
            pwrite(&memfd, &[1], page * 4096 + 7).unwrap();
        }
        let slots = [(0, 40), (40, 60)].map(|(first_page, pages)| Slot { first_page, pages });
        let found = populated(&slots, Some(memfd.as_fd())).unwrap();
        assert_eq!(found, [(3, 2), (50, 1), (99, 1)].map(|(first_page, pages)| Slot { first_page, pages }));
        assert_eq!(populated(&slots, None).unwrap(), slots);
        let cut = [Slot { first_page: 4, pages: 46 }];
        assert_eq!(populated(&cut, Some(memfd.as_fd())).unwrap(), [Slot { first_page: 4, pages: 1 }]);
    }
}
