//! How fast this host runs guest code: a loop of a few instructions, in ring 0 or ring 3, for a short while.
//!
//! On VT-x and SVM both rings run on the processor. Software virtualisation runs ring 3 there and interprets
//! ring 0, a thousand times slower; a stock kernel is then no use as a guest.

use std::fmt;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::kvm;
use crate::memory::GuestRam;

const RAM_BYTES: u64 = 4 << 20;
const CODE: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const DIRECTORY: u64 = 0x4000;
const STACK: u64 = 0x8000;

/// Loop iterations between two exits, by ring: few enough that interpreting ring 0 takes milliseconds, enough that
/// an exit does not count in ring 3.
const ITERATIONS: [(u8, u32); 2] = [(0, 1 << 12), (3, 1 << 20)];
/// Instructions of one iteration.
const PER_ITERATION: u32 = 2;
const MEASURE: Duration = Duration::from_millis(40);

/// `1: mov ecx, iterations; 2: dec ecx; jnz 2b; out 0x10, al; jmp 1b`, the iterations at byte 1.
const LOOP: [u8; 13] = [0xb9, 0, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x10, 0xeb, 0xf3];

/// A measured speed.
#[derive(Debug)]
pub(super) struct Speed {
    instructions: u64,
    time: Duration,
}

impl Speed {
    /// Millions of instructions per second.
    #[expect(clippy::cast_precision_loss, reason = "a speed for people; 53 bits are plenty")]
    pub(super) fn mips(&self) -> f64 {
        self.instructions as f64 / self.time.as_secs_f64() / 1e6
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} million instructions per second, exits included", self.mips())
    }
}

/// Measures `ring` (0 or 3).
pub(super) fn speed(kvm: &Kvm, ring: u8) -> Result<Speed, String> {
    let say = |e: vmm_sys_util::errno::Error| e.to_string();
    let ram = GuestRam::new(RAM_BYTES).map_err(|e| e.to_string())?;
    let vm = kvm.create_vm().map_err(say)?;
    for (number, slot) in (0..).zip(ram.slots()) {
        // SAFETY: the range is one whole mapping of `ram`, which outlives `vm` (declared before it).
        unsafe { vm.set_user_memory_region(kvm::region(number, 0, slot.gpa, slot.bytes, slot.host)) }
            .map_err(say)?;
    }
    vm.set_tss_address(crate::arch::layout::KVM_TSS).map_err(say)?;
    let mut vcpu = vm.create_vcpu(0).map_err(say)?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(say)?;
    vcpu.set_cpuid2(&cpuid).map_err(say)?;
    let iterations = ITERATIONS.into_iter().find(|(of, _)| *of == ring).map_or(1, |(_, n)| n);
    prepare(&ram, &vcpu, ring, iterations)?;
    run(&mut vcpu, iterations)
}

fn prepare(ram: &GuestRam, vcpu: &VcpuFd, ring: u8, iterations: u32) -> Result<(), String> {
    let memory = ram.memory();
    let write = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).map_err(|e| e.to_string());
    write(PML4, PDPT | 0b111)?;
    write(PDPT, DIRECTORY | 0b111)?;
    // Two pages of 2 MiB, accessible from ring 3, accessed and dirty.
    write(DIRECTORY, 0xe7)?;
    write(DIRECTORY + 8, 0x20_00e7)?;
    memory.write_slice(&LOOP, GuestAddress(CODE)).map_err(|e| e.to_string())?;
    memory.write_obj(iterations, GuestAddress(CODE + 1)).map_err(|e| e.to_string())?;
    let mut sregs = vcpu.get_sregs().map_err(|e| e.to_string())?;
    long_mode(&mut sregs, ring);
    vcpu.set_sregs(&sregs).map_err(|e| e.to_string())?;
    // I/O privilege level 3: the loop ends in a port write.
    let regs = kvm_regs { rip: CODE, rsp: STACK, rflags: 0x3002, ..kvm_regs::default() };
    vcpu.set_regs(&regs).map_err(|e| e.to_string())
}

fn long_mode(sregs: &mut kvm_sregs, ring: u8) {
    let selector = u16::from(ring);
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: 0x18 | selector,
        type_: 0xb,
        present: 1,
        dpl: ring,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: 0x20 | selector, type_: 0x3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr.type_ = 0xb;
    sregs.cr3 = PML4;
    sregs.cr4 = 1 << 5;
    sregs.cr0 = 0x8005_0033;
    sregs.efer = 0x500;
}

fn run(vcpu: &mut VcpuFd, iterations: u32) -> Result<Speed, String> {
    let start = Instant::now();
    let mut rounds = 0u64;
    while start.elapsed() < MEASURE {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => rounds += 1,
            Ok(other) => return Err(format!("{other:?}")),
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(Speed { instructions: rounds * u64::from(iterations * PER_ITERATION), time: start.elapsed() })
}
