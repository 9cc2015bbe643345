//! Harvesting KVM's log of pages that vCPUs wrote.
//!
//! The log is one bitmap per memory slot. With manual protection KVM leaves the bits in place on reading and
//! clears those we name, which keeps its lock short and lets a failed harvest be repeated; without it, reading
//! clears.

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVMIO,
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
    kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use mycelium_ram_core::{PageIndex, PageSet};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{errno, ioctl_iow_nr, ioctl_iowr_nr};

use super::{KvmError, refused};
use crate::memory::{GuestRam, PAGE_BYTES};

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// The log of one VM; owns the bitmaps it is read into, so that harvesting allocates nothing.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    manual: bool,
    enabled: bool,
    bitmaps: Vec<Box<[u64]>>,
}

impl DirtyLog {
    /// Prepares the log of `vm`, whose slots are those of `ram`. Must come before any slot logs.
    pub(crate) fn new(vm: &VmFd, ram: &GuestRam) -> DirtyLog {
        let cap = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        let manual = vm.enable_cap(&cap).is_ok();
        let words = |bytes: u64| (bytes / PAGE_BYTES as u64).div_ceil(64);
        let bitmaps = ram
            .slots()
            .map(|slot| vec![0; usize::try_from(words(slot.bytes)).unwrap_or(0)].into_boxed_slice())
            .collect();
        DirtyLog { manual, enabled: false, bitmaps }
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Switches logging on or off in all slots. Switching on starts with an empty log.
    pub(crate) fn set_enabled(&mut self, vm: &VmFd, ram: &GuestRam, enabled: bool) -> Result<(), KvmError> {
        for (number, slot) in (0..).zip(ram.slots()) {
            let flags = if enabled { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
            let region = region(number, flags, slot.gpa, slot.bytes, slot.host);
            // SAFETY: the same range of the same mapping the slot was created with; it lives as long as `ram`,
            // which the machine keeps until after the VM is closed.
            unsafe { vm.set_user_memory_region(region) }.map_err(refused("switch dirty logging"))?;
        }
        self.enabled = enabled;
        Ok(())
    }

    /// Adds every page written since the last harvest to `into` and empties the log of all but the pages of `open`, which
    /// stay writable. On an error, pages already added have left the log or will be reported again: whoever keeps `into` loses
    /// none.
    pub(crate) fn harvest(
        &mut self,
        vm: &VmFd,
        ram: &GuestRam,
        into: &mut PageSet,
        open: Option<&PageSet>,
    ) -> Result<(), KvmError> {
        for ((number, slot), bitmap) in (0..).zip(ram.slots()).zip(&mut self.bitmaps) {
            read(vm, number, bitmap).map_err(refused("read the dirty log"))?;
            into.union_words(PageIndex(slot.first_page), bitmap);
            if self.manual {
                if let Some(open) = open {
                    leave_open(bitmap, PageIndex(slot.first_page), open);
                }
                let pages = slot.bytes / PAGE_BYTES as u64;
                clear(vm, number, pages, bitmap).map_err(refused("clear the dirty log"))?;
            }
        }
        Ok(())
    }

    /// Pages in the log; 0 without manual protection, where looking would empty it.
    pub(crate) fn count(&mut self, vm: &VmFd) -> Result<u64, KvmError> {
        let mut pages = 0;
        for (number, bitmap) in (0..).zip(&mut self.bitmaps).filter(|_| self.manual) {
            read(vm, number, bitmap).map_err(refused("read the dirty log"))?;
            pages += bitmap.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        }
        Ok(pages)
    }
}

/// Takes the pages of `open` out of what is to be cleared.
fn leave_open(bitmap: &mut [u64], first: PageIndex, open: &PageSet) {
    for (word, at) in bitmap.iter_mut().zip((first.0..).step_by(64)).filter(|(word, _)| **word != 0) {
        *word &= !open.bits_from(PageIndex(at));
    }
}

/// Describes one RAM slot to KVM.
pub(crate) fn region(slot: u32, flags: u32, gpa: u64, bytes: u64, host: u64) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: bytes,
        userspace_addr: host,
    }
}

fn read(vm: &VmFd, slot: u32, bitmap: &mut [u64]) -> Result<(), errno::Error> {
    let log = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
    };
    // SAFETY: KVM writes one bit per page of the slot, rounded up to 64; `bitmap` was sized so for this slot
    // and is borrowed mutably for the call.
    match unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &log) } {
        0 => Ok(()),
        _ => Err(errno::Error::last()),
    }
}

fn clear(vm: &VmFd, slot: u32, pages: u64, bitmap: &mut [u64]) -> Result<(), errno::Error> {
    let mut log = kvm_clear_dirty_log {
        slot,
        num_pages: u32::try_from(pages).unwrap_or(u32::MAX),
        first_page: 0,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
    };
    // SAFETY: KVM reads one bit per page of the slot from `bitmap`, which is that long (see `read`), and
    // writes nothing through the pointer.
    match unsafe { ioctl_with_mut_ref(vm, KVM_CLEAR_DIRTY_LOG(), &mut log) } {
        0 => Ok(()),
        _ => Err(errno::Error::last()),
    }
}
