//! What the loader left in memory, copied out before the heap takes that memory over.

use core::ptr;
use native_guest::memmap::{MapEntry, START_INFO_MAGIC, StartInfo};
use native_guest::options::MAX_COMMAND_LINE;

/// Most records of a memory map that are looked at; a virtual machine has about ten.
const MAX_MAP_ENTRIES: usize = 64;

unsafe extern "C" {
    static boot_start_info: u64;
}

/// A command line of bounded length, kept off the heap.
pub(crate) struct CommandLine {
    bytes: [u8; MAX_COMMAND_LINE],
    len: usize,
}

impl CommandLine {
    /// The text, up to the first byte that is not UTF-8.
    pub(crate) fn as_str(&self) -> &str {
        let bytes = &self.bytes[..self.len];
        match str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}

/// A memory map of bounded length, kept off the heap.
pub(crate) struct MemoryMap {
    entries: [Option<MapEntry>; MAX_MAP_ENTRIES],
}

impl MemoryMap {
    /// The records, in the loader's order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &MapEntry> {
        self.entries.iter().flatten()
    }
}

/// Everything the loader said.
pub(crate) struct Boot {
    pub(crate) command_line: CommandLine,
    pub(crate) memory_map: MemoryMap,
}

impl Boot {
    /// Copies what the loader left. To be called once, before the heap exists.
    ///
    /// # Panics
    /// If the loader did not follow the PVH protocol.
    pub(crate) fn read() -> Self {
        // SAFETY: written once by boot.S, before this code ran.
        let address = unsafe { (&raw const boot_start_info).read_volatile() };
        let info: StartInfo = read_physical(address);
        assert!(info.magic == START_INFO_MAGIC, "the loader is not PVH: magic {:#x}", info.magic);
        assert!(info.version >= 1, "the loader gives no memory map: start_info version {}", info.version);
        Self {
            command_line: read_command_line(info.cmdline_paddr),
            memory_map: read_memory_map(info.memmap_paddr, info.memmap_entries),
        }
    }
}

fn read_physical<T: Copy>(address: u64) -> T {
    // SAFETY: called only with addresses that the PVH loader handed over as readable records of these plain
    // types (every bit pattern is valid for them); memory is mapped one to one and the heap does not exist yet,
    // so nothing has overwritten them.
    unsafe { ptr::with_exposed_provenance::<T>(usize::try_from(address).unwrap_or(0)).read_unaligned() }
}

fn read_command_line(address: u64) -> CommandLine {
    let mut line = CommandLine { bytes: [0; MAX_COMMAND_LINE], len: 0 };
    if address == 0 {
        return line;
    }
    while line.len < MAX_COMMAND_LINE {
        let byte: u8 = read_physical(address + line.len as u64);
        if byte == 0 {
            break;
        }
        line.bytes[line.len] = byte;
        line.len += 1;
    }
    line
}

fn read_memory_map(address: u64, count: u32) -> MemoryMap {
    let mut entries = [None; MAX_MAP_ENTRIES];
    for (index, entry) in (0..u64::from(count)).zip(&mut entries) {
        *entry = Some(read_physical(address + index * size_of::<MapEntry>() as u64));
    }
    MemoryMap { entries }
}
