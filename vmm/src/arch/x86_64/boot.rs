//! PVH direct boot: kernel, initrd and boot structures into RAM, the first vCPU at the kernel's 32-bit entry.
//!
//! The protocol: 32-bit protected mode, paging off, flat segments, EBX at the start info. The guest may assume
//! nothing else.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

use super::{acpi, layout};
use crate::kvm::{KvmError, refused};
use crate::memory::{GuestRam, PAGE_BYTES};

/// Why a guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The kernel's segments do not go into RAM.
    #[error("cannot load kernel {}: {source}; give the VM more RAM, or check that the ELF file is whole", path.display())]
    Load {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: linux_loader::loader::Error,
    },
    /// The kernel does not offer the entry we use.
    #[error("kernel {} has no PVH entry note; build it with CONFIG_PVH, or use an uncompressed vmlinux", path.display())]
    NoPvhEntry {
        /// Its path.
        path: PathBuf,
    },
    /// Kernel and initrd together are larger than RAM below the device hole.
    #[error("initrd {} ({bytes} bytes) does not fit between kernel and end of RAM; set ram_mib higher", path.display())]
    InitrdTooLarge {
        /// Its path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Boot structures cannot be written.
    #[error("cannot write boot structures: {0}")]
    Structures(#[from] vm_memory::GuestMemoryError),
    /// KVM refused the first registers.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// What to boot.
#[derive(Debug)]
pub(crate) struct BootSource<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) cmdline: &'a str,
    pub(crate) vcpus: u8,
}

/// A guest in RAM, ready to be entered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    address: u64,
}

/// Loads everything into `ram`.
///
/// # Errors
/// [`BootError`].
pub(crate) fn load(ram: &GuestRam, source: &BootSource<'_>) -> Result<Entry, BootError> {
    let (address, kernel_end) = load_kernel(ram, source.kernel)?;
    let module = match source.initrd {
        Some(path) => Some(load_initrd(ram, path, kernel_end)?),
        None => None,
    };
    let rsdp = acpi::write(ram, source.vcpus)?;
    write_start_info(ram, source.cmdline, rsdp, module)?;
    Ok(Entry { address })
}

fn load_kernel(ram: &GuestRam, path: &Path) -> Result<(u64, u64), BootError> {
    let mut file = open("kernel", path)?;
    let legacy_end = Some(GuestAddress(layout::LEGACY_END));
    // The lower bound applies to the ELF entry, which for Linux is a virtual address; it holds for both.
    let loaded = Elf::load(ram.memory(), None, &mut file, legacy_end)
        .map_err(|source| BootError::Load { path: path.to_owned(), source })?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok((entry.0, loaded.kernel_end)),
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            Err(BootError::NoPvhEntry { path: path.to_owned() })
        }
    }
}

/// Puts the initrd as high as it goes below 3 GiB: kernels take the room above themselves for their own use.
fn load_initrd(ram: &GuestRam, path: &Path, kernel_end: u64) -> Result<hvm_modlist_entry, BootError> {
    let read = |source| BootError::Read { what: "initrd", path: path.to_owned(), source };
    let mut file = open("initrd", path)?;
    let size = file.seek(SeekFrom::End(0)).map_err(read)?;
    file.rewind().map_err(read)?;
    let page = PAGE_BYTES as u64;
    let top = (ram.page_count() * page).min(layout::RAM_LOW_END);
    let start = top.checked_sub(size.next_multiple_of(page)).filter(|start| *start >= kernel_end);
    let Some(paddr) = start else {
        return Err(BootError::InitrdTooLarge { path: path.to_owned(), bytes: size });
    };
    let mut chunk = vec![0; 1 << 20];
    let mut done = 0;
    while done < size {
        let read = match file.read(&mut chunk).map_err(read)? {
            0 => break,
            n => n,
        };
        ram.memory().write_slice(&chunk[..read], GuestAddress(paddr + done))?;
        done += read as u64;
    }
    Ok(hvm_modlist_entry { paddr, size, ..Default::default() })
}

fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    File::open(path).map_err(|source| BootError::Read { what, path: path.to_owned(), source })
}

fn write_start_info(
    ram: &GuestRam,
    cmdline: &str,
    rsdp: u64,
    module: Option<hvm_modlist_entry>,
) -> Result<(), BootError> {
    let memory = ram.memory();
    let map = memory_map(ram);
    for (entry, at) in map.iter().zip((layout::PVH_MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()))
    {
        memory.write_obj(*entry, GuestAddress(at))?;
    }
    memory.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64))?;
    if let Some(module) = module {
        memory.write_obj(module, GuestAddress(layout::PVH_MODULES))?;
    }
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: u32::from(module.is_some()),
        modlist_paddr: if module.is_some() { layout::PVH_MODULES } else { 0 },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(layout::PVH_START_INFO))?;
    Ok(())
}

fn memory_map(ram: &GuestRam) -> Vec<hvm_memmap_table_entry> {
    let entry = |from: u64, to: u64, type_| hvm_memmap_table_entry {
        addr: from,
        size: to - from,
        type_,
        reserved: 0,
    };
    let mut map = vec![
        entry(0, layout::CONVENTIONAL_END, XEN_HVM_MEMMAP_TYPE_RAM),
        entry(layout::CONVENTIONAL_END, layout::LEGACY_END, XEN_HVM_MEMMAP_TYPE_RESERVED),
    ];
    for (start, length) in layout::ram_ranges(ram.page_count() * PAGE_BYTES as u64) {
        map.push(entry(start.max(layout::LEGACY_END), start + length, XEN_HVM_MEMMAP_TYPE_RAM));
    }
    map
}

/// Sets the first vCPU's registers for `entry`.
///
/// # Errors
/// [`KvmError`].
pub(crate) fn enter(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    const PROTECTED_MODE: u64 = 1 | 1 << 4;
    let mut sregs = vcpu.get_sregs().map_err(refused("read system registers"))?;
    let code = segment(8, 0xb);
    let data = segment(16, 0x3);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 32-bit TSS: hardware refuses to enter a guest without one. The protocol asks for a limit of 0x67;
    // the processor's reset value contains that, is what guests see elsewhere, and leaves room for the port
    // permission map that guests outside ring 0 need where their I/O privilege level is not honoured.
    sregs.tr = kvm_segment { limit: 0xffff, type_: 0xb, present: 1, selector: 24, ..Default::default() };
    sregs.cr0 = PROTECTED_MODE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs).map_err(refused("take system registers"))?;
    let regs = kvm_regs {
        rip: entry.address,
        rbx: layout::PVH_START_INFO,
        rsp: layout::PVH_STACK,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(refused("take registers"))
}

/// A flat 4 GiB segment.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}
