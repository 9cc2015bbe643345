//! The memory map a PVH loader hands over, and which parts of it become the heap.

use core::ops::Range;

/// `hvm_start_info.magic` of every PVH loader ("xEn3" with the top bit of 'E' set).
pub const START_INFO_MAGIC: u32 = 0x336e_c578;

/// First address that may become heap: below lie page 0, the boot structures, the image and the progress page.
pub const HEAP_FLOOR: u64 = 0x20_0000;

/// Bytes the static page tables map; RAM above needs tables of its own.
pub const STATIC_MAP_BYTES: u64 = 4 << 30;

/// End of the address range one page-directory-pointer table can map: 512 GiB.
pub const MAP_LIMIT: u64 = 512 << 30;

/// `hvm_start_info` version 1, as the loader leaves it in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StartInfo {
    /// [`START_INFO_MAGIC`].
    pub magic: u32,
    /// 0 has no memory map, 1 has one.
    pub version: u32,
    /// Unused here.
    pub flags: u32,
    /// Number of modules; unused here.
    pub nr_modules: u32,
    /// Physical address of the module list; unused here.
    pub modlist_paddr: u64,
    /// Physical address of the NUL-terminated command line, 0 if there is none.
    pub cmdline_paddr: u64,
    /// Physical address of the ACPI RSDP; unused here.
    pub rsdp_paddr: u64,
    /// Physical address of the first [`MapEntry`].
    pub memmap_paddr: u64,
    /// Number of [`MapEntry`] records.
    pub memmap_entries: u32,
    /// Padding.
    pub reserved: u32,
}

/// One record of the memory map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First physical address.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// 1 is RAM; everything else is left alone.
    pub kind: u32,
    /// Padding.
    pub reserved: u32,
}

/// `MapEntry::kind` of usable RAM.
pub const KIND_RAM: u32 = 1;

/// The part of `entry` that may become heap, split at the end of the statically mapped addresses: first the part
/// below 4 GiB, then the part above. Either may be empty.
#[must_use]
pub fn heap_parts(entry: &MapEntry) -> [Range<u64>; 2] {
    if entry.kind != KIND_RAM {
        return [0..0, 0..0];
    }
    let start = entry.addr.clamp(HEAP_FLOOR, MAP_LIMIT).next_multiple_of(4096);
    let end = entry.addr.saturating_add(entry.size).min(MAP_LIMIT) & !4095;
    let low = start..end.min(STATIC_MAP_BYTES);
    let high = start.max(STATIC_MAP_BYTES)..end;
    [low, high].map(|part| if part.start < part.end { part } else { 0..0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(addr: u64, size: u64) -> MapEntry {
        MapEntry { addr, size, kind: KIND_RAM, reserved: 0 }
    }

    #[test]
    fn low_memory_and_the_image_stay_out_of_the_heap() {
        assert_eq!(heap_parts(&ram(0, 0x9_fc00)), [0..0, 0..0]);
        assert_eq!(heap_parts(&ram(0x10_0000, 0x800_0000)), [HEAP_FLOOR..0x810_0000, 0..0]);
    }

    #[test]
    fn an_entry_across_four_gib_is_split_there() {
        let parts = heap_parts(&ram(3 << 30, 3 << 30));
        assert_eq!(parts, [3 << 30..4 << 30, 4 << 30..6 << 30]);
    }

    #[test]
    fn reserved_overlong_and_unaligned_entries_are_harmless() {
        assert_eq!(heap_parts(&MapEntry { kind: 2, ..ram(1 << 30, 1 << 30) }), [0..0, 0..0]);
        assert_eq!(heap_parts(&ram(u64::MAX - 10, 100)), [0..0, 0..0]);
        assert_eq!(heap_parts(&ram(5 << 30, u64::MAX))[1], 5 << 30..MAP_LIMIT);
        assert_eq!(heap_parts(&ram(0x30_0001, 0x2000)), [0x30_1000..0x30_2000, 0..0]);
    }
}
