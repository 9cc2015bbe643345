//! Time: kvmclock where the hypervisor offers it, a calibrated TSC elsewhere.

use crate::port::Port;
use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::sync::atomic::{Ordering, fence};
use native_guest::pvclock::Scale;

/// `KVM_FEATURE_CLOCKSOURCE2` of CPUID leaf 0x40000001.
const KVM_CLOCK: u64 = 1 << 3;

/// The record of one CPU, maintained by KVM.
#[repr(C)]
#[derive(Clone, Copy)]
struct VcpuTime {
    version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    mul: u32,
    shift: i8,
    flags: u8,
    pad2: [u8; 2],
}

/// The wall-clock time at boot, written once by KVM.
#[repr(C)]
#[derive(Clone, Copy)]
struct WallClock {
    version: u32,
    sec: u32,
    nsec: u32,
}

unsafe extern "C" {
    static boot_kvm_features: u64;
    static pvclock_page: VcpuTime;
    static pvclock_wall: WallClock;
}

/// A reading of the time-stamp counter that no later instruction is moved before.
fn tsc() -> u64 {
    // SAFETY: both instructions exist on every x86-64 CPU and are allowed in ring 3, CR4.TSD being clear.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// The guest's clocks, and a watch on whether they ever step back.
pub(crate) struct Clock {
    /// Of machines without kvmclock.
    fallback: Option<Scale>,
    wall_at_boot_ns: u64,
    last_ns: u64,
    max_backward_step_ns: u64,
}

impl Clock {
    /// Finds the clock. Takes 10 ms where there is no kvmclock.
    pub(crate) fn new() -> Self {
        // SAFETY: written once by boot.S, before this code ran.
        let features = unsafe { (&raw const boot_kvm_features).read_volatile() };
        let fallback = (features & KVM_CLOCK == 0).then(|| Scale::from_frequency(pit_tsc_hz(), tsc()));
        // SAFETY: KVM wrote the record during the WRMSR in boot.S, if at all, and never again; all bit patterns
        // are valid.
        let wall = unsafe { (&raw const pvclock_wall).read_volatile() };
        let wall_at_boot_ns = u64::from(wall.sec) * 1_000_000_000 + u64::from(wall.nsec);
        Self { fallback, wall_at_boot_ns, last_ns: 0, max_backward_step_ns: 0 }
    }

    /// Where the time comes from, for the banner.
    pub(crate) fn source(&self) -> &'static str {
        if self.fallback.is_some() { "tsc" } else { "kvmclock" }
    }

    /// Nanoseconds since boot as the hypervisor tells them. A step back is recorded, not hidden.
    pub(crate) fn raw_ns(&mut self) -> u64 {
        let now = match &self.fallback {
            Some(scale) => scale.nanoseconds(tsc()),
            None => kvm_clock_ns(),
        };
        if now < self.last_ns {
            self.max_backward_step_ns = self.max_backward_step_ns.max(self.last_ns - now);
        } else {
            self.last_ns = now;
        }
        now
    }

    /// Nanoseconds since boot, never less than before: what the guest itself runs on.
    pub(crate) fn now_ns(&mut self) -> u64 {
        self.raw_ns();
        self.last_ns
    }

    /// Wall-clock nanoseconds since 1970 that belong to a reading of [`raw_ns`](Self::raw_ns).
    pub(crate) fn wall_ns(&self, raw_ns: u64) -> u64 {
        self.wall_at_boot_ns.saturating_add(raw_ns)
    }

    pub(crate) fn max_backward_step_ns(&self) -> u64 {
        self.max_backward_step_ns
    }
}

/// Reads the record until no update fell in between: its version is odd while KVM writes.
fn kvm_clock_ns() -> u64 {
    let record = &raw const pvclock_page;
    loop {
        // SAFETY: the record is in our .bss, 64-byte aligned; KVM writes it only while this CPU is out of the
        // guest, which the version check notices. All bit patterns are valid.
        let before = unsafe { (&raw const (*record).version).read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let time = unsafe { record.read_volatile() };
        let now = tsc();
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let after = unsafe { (&raw const (*record).version).read_volatile() };
        if before == after && before & 1 == 0 {
            let scale = Scale {
                tsc_timestamp: time.tsc_timestamp,
                system_time_ns: time.system_time,
                mul: time.mul,
                shift: time.shift,
            };
            return scale.nanoseconds(now);
        }
    }
}

/// Measures the TSC against 10 ms of the programmable interval timer, channel 2.
fn pit_tsc_hz() -> u64 {
    // SAFETY: the timer's and the speaker gate's registers reach no memory.
    let (gate, command, channel2) = unsafe { (Port::new(0x61), Port::new(0x43), Port::new(0x42)) };
    const PIT_HZ: u64 = 1_193_182;
    const COUNT: u16 = 11_932;
    gate.write_u8((gate.read_u8() & !2) | 1);
    command.write_u8(0b1011_0000);
    let [low, high] = COUNT.to_le_bytes();
    channel2.write_u8(low);
    channel2.write_u8(high);
    let start = tsc();
    while gate.read_u8() & 0x20 == 0 {
        core::hint::spin_loop();
    }
    (tsc() - start) * PIT_HZ / u64::from(COUNT)
}
