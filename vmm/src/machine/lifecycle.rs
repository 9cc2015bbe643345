//! Boot, pause, resume, reset.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use super::platform::lock;
use super::{Machine, MachineError, bootable};
use crate::arch::boot;
use crate::devices::hotplug::Hotplug;
use crate::vcpu::Vcpu;

/// Where the machine is in its life.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    /// vCPUs may be in the guest.
    pub(super) running: bool,
    /// A state was restored and the guest has not run since.
    pub(super) restored: bool,
    pub(super) pauses: u64,
    pub(super) last_pause: PauseTimes,
}

/// Where the time of a pause went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PauseTimes {
    /// Until the last vCPU had left the guest.
    pub vcpus: Duration,
    /// From then until the last device held still.
    pub devices: Duration,
}

impl PauseTimes {
    /// Both together.
    pub fn total(&self) -> Duration {
        self.vcpus + self.devices
    }
}

impl Machine {
    pub(super) fn lifecycle(&self) -> MutexGuard<'_, Lifecycle> {
        self.lifecycle.lock().expect("no holder of the lifecycle panics")
    }

    /// The lifecycle of a machine that stands still, held so that it stays so.
    pub(super) fn parked(&self, action: &'static str) -> Result<MutexGuard<'_, Lifecycle>, MachineError> {
        let lifecycle = self.lifecycle();
        if lifecycle.running { Err(MachineError::Running { action }) } else { Ok(lifecycle) }
    }

    /// Processor time the vCPUs had used, all together, when each of them last left the guest for a pause.
    pub fn vcpu_time(&self) -> Duration {
        self.vcpus.iter().map(Vcpu::used).sum()
    }

    /// Whether the machine is paused.
    pub fn is_paused(&self) -> bool {
        !self.lifecycle().running
    }

    /// Loads kernel and initrd, wherever the spec says they are, and points the first vCPU at the entry. The machine stays paused.
    ///
    /// # Errors
    /// [`MachineError::Boot`], or [`MachineError::Running`].
    pub fn boot(&self) -> Result<(), MachineError> {
        let _parked = self.parked("boot")?;
        // What firmware does: it finds all that is there, and gives it addresses.
        self.platform.with_acpi(|acpi| acpi.hotplug = Hotplug::default());
        self.platform.devices().iter().try_for_each(|device| device.place_bar())?;
        let entry = bootable::load(&self.spec, &self.ram, self.platform.disks().first(), self.plug_slots())?;
        boot::enter(&self.vcpus[0].fd(), entry).map_err(boot::BootError::Kvm)?;
        Ok(())
    }

    /// Lets the guest run. A guest that has ended (switched off, triple fault) stays where it is; its event is
    /// reported once by each process that resumes it.
    ///
    /// # Errors
    /// [`MachineError::DisksAway`].
    pub fn resume(&self) -> Result<(), MachineError> {
        let mut lifecycle = self.lifecycle();
        if lifecycle.running {
            return Ok(());
        }
        if self.disks_are_away() {
            return Err(MachineError::DisksAway);
        }
        if std::mem::take(&mut lifecycle.restored) {
            self.make_up();
        }
        lifecycle.running = true;
        self.platform.resume();
        if !self.platform.is_halted() {
            self.gate.open();
        }
        Ok(())
    }

    /// After a restore: interrupts and notifications under way at the cut are repeated, and the guest is told
    /// that it was paused so that it does not take the gap for a lockup of its own.
    fn make_up(&self) {
        self.platform.devices().iter().for_each(|device| device.make_up());
        for vcpu in &self.vcpus {
            // Refused by guests without the paravirtual clock, which have no such watchdog.
            let _ = vcpu.fd().kvmclock_ctrl();
        }
    }

    /// Stops all vCPUs and devices. On return nothing in this process changes guest state.
    ///
    /// # Errors
    /// [`MachineError::Park`] when a vCPU does not come out; the machine then counts as running and the call can
    /// be repeated.
    pub fn pause(&self) -> Result<PauseTimes, MachineError> {
        let mut lifecycle = self.lifecycle();
        if !lifecycle.running {
            return Ok(PauseTimes::default());
        }
        let start = Instant::now();
        self.gate.close_and_wait(self.vcpus.len())?;
        let vcpus = start.elapsed();
        self.platform.pause();
        let times = PauseTimes { vcpus, devices: start.elapsed() - vcpus };
        lifecycle.running = false;
        lifecycle.pauses += 1;
        lifecycle.last_pause = times;
        Ok(times)
    }

    /// Switches the machine off and on again: RAM zero, devices at power-on, kernel loaded. It stays paused.
    ///
    /// # Errors
    /// As [`Machine::boot`].
    pub fn reset(&self) -> Result<(), MachineError> {
        {
            let mut lifecycle = self.parked("reset")?;
            lifecycle.restored = false;
            *self.platform.halt() = None;
            self.forget_restore();
            self.ram.zero()?;
            let balloon = self.balloon().map_or(0, |balloon| balloon.target_pages);
            let ahead_s = lock(&self.platform.cmos).offset_s();
            self.power_on()?;
            lock(&self.platform.cmos).set_offset_s(ahead_s);
            if balloon > 0 {
                self.set_balloon(balloon)?;
            }
        }
        self.boot()
    }
}
