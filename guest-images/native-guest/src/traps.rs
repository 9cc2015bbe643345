//! The interrupt descriptor table and what happens when the guest itself faults.

use core::arch::global_asm;

global_asm!(include_str!("boot.S"), options(att_syntax));

/// Interrupt vectors from here on are device interrupts; below are exceptions.
const FIRST_INTERRUPT: usize = 32;
const UNDEFINED_OPCODE: usize = 6;
const VECTORS: usize = 256;

/// Bytes between two exception stubs in `boot.S`.
const STUB_BYTES: usize = 16;

/// Selector of the ring-0 code segment.
const RING0_CODE: u64 = 0x08;

/// A present interrupt gate of privilege level 0.
const INTERRUPT_GATE: u64 = 0x8e00;

#[repr(C)]
#[derive(Clone, Copy)]
struct Gate(u64, u64);

impl Gate {
    fn to(handler: usize) -> Self {
        let address = handler as u64;
        let low =
            (address & 0xffff) | RING0_CODE << 16 | INTERRUPT_GATE << 32 | (address & 0xffff_0000) << 32;
        Self(low, address >> 32)
    }
}

unsafe extern "C" {
    static mut idt: [Gate; VECTORS];
    fn trap_stubs();
    fn ud_entry();
    fn irq_entry();
    fn lidt_zero();
    fn idle_once();
}

fn set_gate(vector: usize, handler: usize) {
    // SAFETY: `idt` is 256 gates of .bss that only this function writes, on the only thread; the CPU reads a gate
    // only when its vector is raised, which cannot happen amid this write since interrupts are off.
    unsafe { (&raw mut idt).cast::<Gate>().add(vector.min(VECTORS - 1)).write_volatile(Gate::to(handler)) }
}

/// Points every vector at its handler. To be called before anything can fault.
pub(crate) fn install() {
    for vector in 0..FIRST_INTERRUPT {
        set_gate(vector, (trap_stubs as *const ()).addr() + vector * STUB_BYTES);
    }
    set_gate(UNDEFINED_OPCODE, (ud_entry as *const ()).addr());
    for vector in FIRST_INTERRUPT..VECTORS {
        set_gate(vector, (irq_entry as *const ()).addr());
    }
}

/// Sleeps until an interrupt arrives; one that is already pending counts. The caller looks for work afterwards
/// without assuming which interrupt it was.
pub(crate) fn sleep() {
    // SAFETY: `idle_once` is an ordinary function of the C calling convention, see boot.S.
    unsafe { idle_once() }
}

/// Faults with an empty IDT, which no machine survives.
pub(crate) fn triple_fault() -> ! {
    set_gate(UNDEFINED_OPCODE, (lidt_zero as *const ()).addr());
    loop {
        sleep();
    }
}

/// Called in ring 3 by the exception stubs, in place of the code that faulted.
#[unsafe(no_mangle)]
extern "C" fn trap_report(vector: u64, error: u64, rip: u64, cr2: u64, rsp: u64) -> ! {
    panic!("exception {vector} error={error:#x} rip={rip:#x} cr2={cr2:#x} rsp={rsp:#x}")
}
