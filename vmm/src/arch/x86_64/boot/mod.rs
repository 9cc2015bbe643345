//! Direct boot: kernel, initrd and boot structures into RAM, the first vCPU at the kernel's 32-bit entry.
//!
//! Two protocols, told apart by the kernel file: PVH for ELF files ([`pvh`]), Linux's own for bzImages
//! ([`linux`]). Both enter in 32-bit protected mode with paging off and flat segments; one finds its start info
//! in EBX, the other its zero page in ESI.

mod linux;
mod pvh;

use std::io::{self, Read, Seek};

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, ReadVolatile};

use super::{acpi, layout};
use crate::kvm::{KvmError, refused};
use crate::limits::{CMDLINE_BYTES_MAX, DISK_BOOT_DEADLINE};
use crate::memory::{GuestRam, PAGE_BYTES};

/// Why a guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {what} {name}: {source}")]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// Where it comes from.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not go into RAM.
    #[error("cannot load kernel {name}: {source}; give the VM more RAM, or check that the file is whole")]
    Load {
        /// Where it comes from.
        name: String,
        /// What is wrong.
        source: linux_loader::loader::Error,
    },
    /// The kernel does not offer an entry we use.
    #[error(
        "kernel {name} is neither a bzImage nor an ELF file with a PVH entry note; use the distribution's vmlinuz, or build with CONFIG_PVH"
    )]
    NoEntry {
        /// Where it comes from.
        name: String,
    },
    /// Kernel and initrd together are larger than the RAM they may lie in.
    #[error(
        "initrd {name} ({bytes} bytes) does not fit between the end of the kernel at {kernel_end:#x} and {limit:#x}; set ram_mib higher"
    )]
    InitrdTooLarge {
        /// Where it comes from.
        name: String,
        /// Its size.
        bytes: u64,
        /// First address behind the kernel.
        kernel_end: u64,
        /// First address it may not reach.
        limit: u64,
    },
    /// The command line is longer than the guest accepts.
    #[error("the kernel command line has {bytes} bytes, more than {CMDLINE_BYTES_MAX}; shorten cmdline")]
    CmdlineTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A disk has nothing to boot, or it cannot be read.
    #[error(transparent)]
    Disk(#[from] endophyte_bootdisk::BootDiskError),
    /// A disk's file system leads in circles.
    #[error(
        "the disk's boot files were not read within {} s; its file system is damaged or made to lead in circles: check it with fsck, or name a kernel",
        DISK_BOOT_DEADLINE.as_secs()
    )]
    Endless,
    /// Boot structures cannot be written.
    #[error("cannot write boot structures: {0}")]
    Structures(#[from] vm_memory::GuestMemoryError),
    /// KVM refused the first registers.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// A kernel at hand: a file, or what was read out of a disk image.
pub(crate) trait KernelImage: ReadVolatile + Read + Seek {}

impl<T: ReadVolatile + Read + Seek> KernelImage for T {}

/// A part of what is booted, with a name for messages.
pub(crate) struct Named<T> {
    pub(crate) name: String,
    pub(crate) content: T,
}

/// An initial RAM disk, or a part of one: several are put one behind the other.
pub(crate) struct Initrd {
    pub(crate) bytes: u64,
    pub(crate) reader: Box<dyn Read>,
}

/// What to boot.
pub(crate) struct BootSource<'a, K> {
    pub(crate) kernel: Named<K>,
    pub(crate) initrds: Vec<Named<Initrd>>,
    pub(crate) cmdline: &'a str,
    pub(crate) vcpus: u8,
    pub(crate) slots: acpi::PlugSlots,
}

/// A guest in RAM, ready to be entered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    address: u64,
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Pvh,
    Linux,
}

/// A kernel in RAM.
struct Loaded {
    address: u64,
    end: u64,
    /// Of a bzImage.
    header: Option<setup_header>,
}

/// The initial RAM disk in RAM.
#[derive(Clone, Copy, Debug)]
struct Module {
    address: u64,
    bytes: u64,
}

/// Kind of an entry in the memory map.
enum Usable {
    Ram,
    Reserved,
}

/// Loads everything into `ram`.
///
/// # Errors
/// [`BootError`].
pub(crate) fn load<K: KernelImage>(ram: &GuestRam, source: BootSource<'_, K>) -> Result<Entry, BootError> {
    let loaded = load_kernel(ram, source.kernel)?;
    let module = load_initrds(ram, source.initrds, &loaded)?;
    let rsdp = acpi::write(ram, source.vcpus, source.slots)?;
    write_cmdline(ram, source.cmdline)?;
    let protocol = match loaded.header {
        Some(header) => {
            linux::write(ram, header, source.cmdline.len(), rsdp, module)?;
            Protocol::Linux
        }
        None => {
            pvh::write(ram, rsdp, module)?;
            Protocol::Pvh
        }
    };
    Ok(Entry { address: loaded.address, protocol })
}

fn load_kernel<K: KernelImage>(ram: &GuestRam, kernel: Named<K>) -> Result<Loaded, BootError> {
    let Named { name, content: mut image } = kernel;
    let mut magic = Vec::new();
    let read = |source| BootError::Read { what: "kernel", name: name.clone(), source };
    image.by_ref().take(4).read_to_end(&mut magic).map_err(read)?;
    image.rewind().map_err(read)?;
    let legacy_end = Some(GuestAddress(layout::LEGACY_END));
    let memory = ram.memory();
    // For ELF files the lower bound applies to the entry, which for Linux is a virtual address; it holds for both.
    let loaded = match magic.as_slice() {
        b"\x7fELF" => Elf::load(memory, None, &mut image, legacy_end),
        _ => BzImage::load(memory, None, &mut image, legacy_end),
    };
    let no_entry = || BootError::NoEntry { name: name.clone() };
    let loaded = loaded.map_err(|source| match source {
        linux_loader::loader::Error::Bzimage(linux_loader::loader::bzimage::Error::InvalidBzImage) => {
            no_entry()
        }
        source => BootError::Load { name: name.clone(), source },
    })?;
    match (loaded.setup_header, loaded.pvh_boot_cap) {
        (Some(header), _) => {
            let end = linux::end_of_kernel(&header, loaded.kernel_end);
            Ok(Loaded { address: loaded.kernel_load.0, end, header: Some(header) })
        }
        (None, PvhBootCapability::PvhEntryPresent(entry)) => {
            Ok(Loaded { address: entry.0, end: loaded.kernel_end, header: None })
        }
        _ => Err(no_entry()),
    }
}

/// Puts the initrd as high as it goes below 3 GiB: kernels take the room above themselves for their own use.
fn load_initrds(
    ram: &GuestRam,
    initrds: Vec<Named<Initrd>>,
    kernel: &Loaded,
) -> Result<Option<Module>, BootError> {
    let Some(first) = initrds.first() else { return Ok(None) };
    let page = PAGE_BYTES as u64;
    let top = (ram.page_count() * page).min(layout::RAM_LOW_END);
    let limit = kernel.header.as_ref().map_or(top, |header| linux::initrd_limit(header).min(top));
    // Each part begins on a multiple of 4, as the kernel expects of archives that follow each other.
    let bytes = initrds.iter().map(|part| part.content.bytes.next_multiple_of(4)).sum::<u64>();
    let start = (limit & !(page - 1)).checked_sub(bytes.next_multiple_of(page));
    let Some(address) = start.filter(|start| *start >= kernel.end) else {
        let name = first.name.clone();
        return Err(BootError::InitrdTooLarge { name, bytes, kernel_end: kernel.end, limit });
    };
    let mut at = address;
    for part in initrds {
        let length = part.content.bytes;
        copy_in(ram, part, at)?;
        at += length.next_multiple_of(4);
    }
    Ok(Some(Module { address, bytes }))
}

fn copy_in(ram: &GuestRam, part: Named<Initrd>, address: u64) -> Result<(), BootError> {
    let Named { name, content: Initrd { bytes, mut reader } } = part;
    let mut chunk = vec![0; COPY_BYTES];
    let mut done = 0;
    while done < bytes {
        let room = usize::try_from(bytes - done).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let read = match reader.read(&mut chunk[..room]) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(BootError::Read { what: "initrd", name, source }),
        };
        ram.memory().write_slice(&chunk[..read], GuestAddress(address + done))?;
        done += read as u64;
    }
    Ok(())
}

fn write_cmdline(ram: &GuestRam, cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() >= CMDLINE_BYTES_MAX {
        return Err(BootError::CmdlineTooLong { bytes: cmdline.len() });
    }
    ram.memory().write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    ram.memory().write_obj(0u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64))?;
    Ok(())
}

/// RAM as the guest is told of it: (address, bytes, kind).
fn memory_map(ram: &GuestRam) -> Vec<(u64, u64, Usable)> {
    let legacy = layout::LEGACY_END - layout::CONVENTIONAL_END;
    let mut map = vec![
        (0, layout::CONVENTIONAL_END, Usable::Ram),
        (layout::CONVENTIONAL_END, legacy, Usable::Reserved),
    ];
    for (start, length) in layout::ram_ranges(ram.page_count() * PAGE_BYTES as u64) {
        let from = start.max(layout::LEGACY_END);
        map.push((from, start + length - from, Usable::Ram));
    }
    map
}

/// Copies that much at a time.
const COPY_BYTES: usize = 1 << 20;

/// Sets the first vCPU's registers for `entry`.
///
/// # Errors
/// [`KvmError`].
pub(crate) fn enter(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    const PROTECTED_MODE: u64 = 1 | 1 << 4;
    let mut sregs = vcpu.get_sregs().map_err(refused("read system registers"))?;
    let (code, data) = match entry.protocol {
        Protocol::Pvh => (segment(0x08, 0xb), segment(0x10, 0x3)),
        Protocol::Linux => (segment(0x10, 0xb), segment(0x18, 0x3)),
    };
    if let Protocol::Linux = entry.protocol {
        (sregs.gdt.base, sregs.gdt.limit) = (layout::BOOT_GDT, linux::GDT_LIMIT);
    }
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
        rbx: if let Protocol::Pvh = entry.protocol { layout::PVH_START_INFO } else { 0 },
        rsi: if let Protocol::Linux = entry.protocol { layout::ZERO_PAGE } else { 0 },
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

/// Loads `data` as a kernel into a small guest, with an initrd beside it; for a fuzzer.
#[cfg(feature = "fuzzing")]
pub fn fuzz_kernel(data: &[u8]) {
    thread_local! {
        static RAM: Option<GuestRam> = GuestRam::new(crate::limits::RAM_BYTES_MIN).ok();
    }
    const INITRD: &[u8] = &[7; 5000];
    RAM.with(|ram| {
        let Some(ram) = ram else { return };
        let initrd = Initrd { bytes: INITRD.len() as u64, reader: Box::new(INITRD) };
        let source = BootSource {
            kernel: Named { name: "kernel".to_owned(), content: io::Cursor::new(data.to_vec()) },
            initrds: vec![Named { name: "initrd".to_owned(), content: initrd }],
            cmdline: "console=ttyS0",
            vcpus: 2,
            slots: (1..=layout::PCI_SLOT_MAX).collect(),
        };
        let Ok(Entry { protocol, .. }) = load(ram, source) else { return };
        let (map, module) = match protocol {
            Protocol::Pvh => (layout::PVH_MEMORY_MAP, layout::PVH_MODULES),
            Protocol::Linux => (layout::ZERO_PAGE + 0x2d0, layout::ZERO_PAGE + 0x218),
        };
        let number = |at| ram.memory().read_obj::<u64>(GuestAddress(at)).expect("boot structures lie in RAM");
        let initrd =
            if let Protocol::Linux = protocol { number(module) & 0xffff_ffff } else { number(module) };
        let mut found = [0; INITRD.len()];
        ram.memory().read_slice(&mut found, GuestAddress(initrd)).expect("an initrd lies in RAM");
        assert_eq!(found, INITRD, "the guest finds its initrd where it is told");
        assert_eq!((number(map), number(map + 8)), (0, layout::CONVENTIONAL_END), "and its memory");
    });
}

/// An ELF kernel with a PVH note and a bzImage, both as small as they can be; for a fuzzer.
#[cfg(feature = "fuzzing")]
pub fn seeds_kernel() -> Vec<Vec<u8>> {
    vec![small_elf(), small_bzimage()]
}

#[cfg(feature = "fuzzing")]
fn small_elf() -> Vec<u8> {
    let header = |kind: u32, offset: u64, address: u64, bytes: u64| {
        let words = [offset, address, address, bytes, bytes, 4];
        [kind.to_le_bytes(), 7u32.to_le_bytes()]
            .concat()
            .into_iter()
            .chain(words.into_iter().flat_map(u64::to_le_bytes))
    };
    let mut elf = vec![0; 64];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // Executable, x86-64, version 1, entry, program headers behind this one, their size and number.
    for (at, bytes) in [(16, &2u16.to_le_bytes()[..]), (18, &62u16.to_le_bytes()), (20, &1u32.to_le_bytes())]
    {
        elf[at..at + bytes.len()].copy_from_slice(bytes);
    }
    elf[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
    elf[32..40].copy_from_slice(&64u64.to_le_bytes());
    (elf[52], elf[54], elf[56]) = (64, 56, 2);
    elf.extend(header(1, 0, 0x10_0000, 256));
    elf.extend(header(4, 176, 0, 20));
    for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0040] {
        elf.extend(word.to_le_bytes());
    }
    elf.resize(256, 0x90);
    elf
}

#[cfg(feature = "fuzzing")]
fn small_bzimage() -> Vec<u8> {
    let mut image = vec![0; 2 * 512 + 64];
    // One sector of setup, boot flag, magic, version, loaded high, alignment, address and room it wants.
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x10_0000u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x1000u32.to_le_bytes());
    image
}
