//! PVH: what a guest finds in its start info.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{Module, Usable, memory_map};
use crate::arch::layout;
use crate::memory::GuestRam;

/// Writes the start info and what it points to; the command line is there already.
pub(super) fn write(ram: &GuestRam, rsdp: u64, module: Option<Module>) -> Result<(), GuestMemoryError> {
    let memory = ram.memory();
    let map = memory_map(ram);
    let places = (layout::PVH_MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>());
    for ((addr, size, usable), at) in map.iter().zip(places) {
        let type_ = match usable {
            Usable::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
            Usable::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
        };
        let entry = hvm_memmap_table_entry { addr: *addr, size: *size, type_, reserved: 0 };
        memory.write_obj(entry, GuestAddress(at))?;
    }
    if let Some(Module { address, bytes }) = module {
        let entry = hvm_modlist_entry { paddr: address, size: bytes, ..Default::default() };
        memory.write_obj(entry, GuestAddress(layout::PVH_MODULES))?;
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
    memory.write_obj(info, GuestAddress(layout::PVH_START_INFO))
}
