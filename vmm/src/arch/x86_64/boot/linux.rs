//! bzImage: Linux's own boot protocol, entered at its 32-bit entry with boot parameters in the zero page.
//!
//! This is how every distribution ships its kernel. The kernel unpacks itself inside the guest: nothing of the
//! host's reads what a guest's disk calls compressed.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{Module, Usable, memory_map};
use crate::arch::layout;
use crate::memory::GuestRam;

/// "undefined" in the list of boot loaders.
const LOADER: u8 = 0xff;
/// Types of memory in the map.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// Code and data segments the protocol names: selectors 0x10 and 0x18, flat.
const GDT: [u64; 4] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Memory the kernel takes for itself before it looks at its memory map: up to this address.
pub(super) fn end_of_kernel(header: &setup_header, loaded_end: u64) -> u64 {
    let unpacked = header.pref_address.saturating_add(u64::from(header.init_size));
    loaded_end.max(unpacked)
}

/// Highest address an initrd may end at, plus one.
pub(super) fn initrd_limit(header: &setup_header) -> u64 {
    match header.initrd_addr_max {
        // Before protocol 2.03 the field was not there.
        0 => 0x3800_0000,
        last => u64::from(last) + 1,
    }
}

/// Writes zero page and descriptor table; the command line is there already. The zero page takes the place that
/// PVH's start info has otherwise.
pub(super) fn write(
    ram: &GuestRam,
    header: setup_header,
    cmdline_bytes: usize,
    rsdp: u64,
    module: Option<Module>,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..boot_params::default() };
    params.hdr.type_of_loader = LOADER;
    params.hdr.cmd_line_ptr = u32::try_from(layout::CMDLINE).unwrap_or(0);
    params.hdr.cmdline_size = u32::try_from(cmdline_bytes).unwrap_or(0);
    if let Some(Module { address, bytes }) = module {
        // Both lie below 4 GiB: see `initrd_limit`.
        params.hdr.ramdisk_image = u32::try_from(address).unwrap_or(0);
        params.hdr.ramdisk_size = u32::try_from(bytes).unwrap_or(0);
    }
    let map = memory_map(ram);
    for ((addr, size, usable), entry) in map.iter().zip(&mut params.e820_table) {
        let type_ = match usable {
            Usable::Ram => E820_RAM,
            Usable::Reserved => E820_RESERVED,
        };
        *entry = boot_e820_entry { addr: *addr, size: *size, r#type: type_ };
    }
    params.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    let memory = ram.memory();
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    for (descriptor, at) in GDT.iter().zip((layout::BOOT_GDT..).step_by(8)) {
        memory.write_obj(*descriptor, GuestAddress(at))?;
    }
    Ok(())
}

/// Limit of the descriptor table.
pub(super) const GDT_LIMIT: u16 = 8 * 4 - 1;
