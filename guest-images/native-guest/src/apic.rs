//! The local APIC: interrupts from MSI, and a one-shot timer to wake up by. Its registers are memory, which ring 3
//! may touch; the end of an interrupt is signalled in `boot.S`.

use crate::clock::Clock;
use crate::port::Port;
use core::ptr;

const VECTOR_TIMER: u32 = 0x40;
const VECTOR_SPURIOUS: u32 = 0xff;

const BASE: usize = 0xfee0_0000;
const ID: usize = 0x20;
const TASK_PRIORITY: usize = 0x80;
const SPURIOUS: usize = 0xf0;
const LVT_TIMER: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

const ENABLE: u32 = 1 << 8;
const DIVIDE_BY_16: u32 = 0b0011;

/// How long the timer is compared with the clock at boot, in nanoseconds.
const CALIBRATION_NS: u64 = 1_000_000;

/// The address an MSI to this CPU is written to.
pub(crate) fn msi_address() -> u64 {
    BASE as u64 | (u64::from(read(ID) >> 24) << 12)
}

fn register(offset: usize) -> *mut u32 {
    ptr::with_exposed_provenance_mut(BASE + offset)
}

fn read(offset: usize) -> u32 {
    // SAFETY: the page at `BASE` is the local APIC, mapped and owned by no Rust object; reads of the registers
    // named above have no side effects.
    unsafe { register(offset).read_volatile() }
}

fn write(offset: usize, value: u32) {
    // SAFETY: as in `read`; writes change when this CPU is interrupted, which happens only in `traps::sleep`.
    unsafe { register(offset).write_volatile(value) }
}

/// The one-shot timer.
pub(crate) struct Timer {
    /// Timer ticks per 2^20 nanoseconds.
    ticks_per_mi_ns: u64,
    /// When the timer will fire; `None` if it is off or has fired.
    armed_ns: Option<u64>,
}

impl Timer {
    /// Enables the APIC, silences the legacy interrupt controllers and measures the timer.
    pub(crate) fn new(clock: &mut Clock) -> Self {
        // SAFETY: the mask registers of the two 8259s reach no memory.
        let masks = unsafe { [Port::new(0x21), Port::new(0xa1)] };
        masks.into_iter().for_each(|mask| mask.write_u8(0xff));
        write(SPURIOUS, ENABLE | VECTOR_SPURIOUS);
        write(TASK_PRIORITY, 0);
        write(LVT_TIMER, VECTOR_TIMER);
        write(TIMER_DIVIDE, DIVIDE_BY_16);
        Self { ticks_per_mi_ns: calibrate(clock), armed_ns: None }
    }

    /// Makes sure an interrupt comes at `deadline_ns` or earlier. A timer that already fires earlier is left alone:
    /// waking once for nothing is cheaper than setting it anew at each sleep.
    pub(crate) fn arm(&mut self, deadline_ns: u64, now_ns: u64) {
        if self.armed_ns.is_some_and(|armed| armed > now_ns && armed <= deadline_ns) {
            return;
        }
        let wait = (u128::from(deadline_ns.saturating_sub(now_ns)) * u128::from(self.ticks_per_mi_ns)) >> 20;
        // Rounded up and at least one: zero would switch the timer off. A wait beyond the register's range ends
        // early, and the caller sleeps again.
        write(TIMER_INITIAL, u32::try_from(wait.saturating_add(1)).unwrap_or(u32::MAX));
        self.armed_ns = Some(deadline_ns);
    }

    /// Makes sure no interrupt comes.
    pub(crate) fn disarm(&mut self, now_ns: u64) {
        if self.armed_ns.take().is_some_and(|armed| armed > now_ns) {
            write(TIMER_INITIAL, 0);
        }
    }
}

fn calibrate(clock: &mut Clock) -> u64 {
    write(TIMER_INITIAL, u32::MAX);
    let (start, from) = (clock.now_ns(), read(TIMER_CURRENT));
    while clock.now_ns() < start + CALIBRATION_NS {
        core::hint::spin_loop();
    }
    let (end, to) = (clock.now_ns(), read(TIMER_CURRENT));
    write(TIMER_INITIAL, 0);
    ((u64::from(from - to) << 20) / (end - start)).max(1)
}
