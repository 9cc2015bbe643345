//! What the RESP engine asks of this machine.

use crate::clock::Clock;
use crate::devices::Devices;
use crate::disk::DiskWorker;
use crate::{heap, progress, serial};
use native_guest::pattern::SECTOR_BYTES;
use resp_kv::dirty::{Dirtier, DirtySpec, DirtyStat};
use resp_kv::{BalloonPages, Clocks, Control, Host, HostRefusal, MemoryInfo};

/// Shortest time between two slices of a dirtier with a rate, in nanoseconds: it writes what has fallen due in
/// between, so that the CPU can sleep.
const DIRTY_TICK_NS: u64 = 1_000_000;

/// The machine as the engine sees it, and what the main loop does for it between commands.
pub(crate) struct Machine {
    pub(crate) clock: Clock,
    pub(crate) devices: Devices,
    dirtier: Option<Dirtier>,
    ticks: u64,
    heartbeat_ns: Option<u64>,
    next_tick_ns: u64,
    control: Option<Control>,
}

impl Machine {
    /// A machine that prints a tick line every `heartbeat_ms`, if given.
    pub(crate) fn new(mut clock: Clock, devices: Devices, heartbeat_ms: Option<u64>) -> Self {
        progress::init();
        let heartbeat_ns = heartbeat_ms.map(|ms| ms.saturating_mul(1_000_000));
        let next_tick_ns = clock.now_ns();
        Self { clock, devices, dirtier: None, ticks: 0, heartbeat_ns, next_tick_ns, control: None }
    }

    /// The end the machine was asked for, once.
    pub(crate) fn take_control(&mut self) -> Option<Control> {
        self.control.take()
    }

    /// Has the devices do what is due. Whether there was anything, and when to call again.
    pub(crate) fn devices_turn(&mut self, now_ns: u64) -> (bool, Option<u64>) {
        self.devices.turn(&mut self.clock, now_ns)
    }

    fn disk(&mut self) -> Result<&mut DiskWorker, HostRefusal> {
        self.devices.disk.as_mut().ok_or(HostRefusal::NoDevice { device: "disk" })
    }

    /// Prints the tick line if it is due; when the next one is.
    pub(crate) fn tick(&mut self, now_ns: u64) -> Option<u64> {
        let interval = self.heartbeat_ns?;
        if now_ns >= self.next_tick_ns {
            self.ticks += 1;
            progress::ticks(self.ticks);
            let raw = self.clock.raw_ns();
            let wall = self.clock.wall_ns(raw);
            serial::line(format_args!("tick {} mono_ns={raw} wall_ns={wall}", self.ticks));
            // Kept to the grid, but ticks missed while the guest was stopped are not made up for.
            self.next_tick_ns = (self.next_tick_ns + interval).max(now_ns + 1);
        }
        Some(self.next_tick_ns)
    }

    /// Dirties the pages that are due; when to call again, `None` if nothing runs.
    pub(crate) fn dirty_slice(&mut self, now_ns: u64) -> Option<u64> {
        let dirtier = self.dirtier.as_mut()?;
        if dirtier.run_slice(now_ns) > 0 {
            progress::dirtier(dirtier);
        }
        let due = dirtier.next_due_ns(now_ns)?;
        Some(if due <= now_ns { now_ns } else { due.max(now_ns + DIRTY_TICK_NS) })
    }
}

impl Host for Machine {
    fn clocks(&mut self) -> Clocks {
        let mono_ns = self.clock.raw_ns();
        Clocks {
            mono_ns,
            wall_ns: self.clock.wall_ns(mono_ns),
            boottime_ns: mono_ns,
            max_backward_step_ns: self.clock.max_backward_step_ns(),
        }
    }

    fn memory(&self) -> MemoryInfo {
        let (total_bytes, used_bytes) = heap::usage();
        MemoryInfo { total_bytes, used_bytes }
    }

    fn counter(&self) -> u64 {
        self.ticks
    }

    fn dirty_start(&mut self, spec: DirtySpec) -> Result<(), HostRefusal> {
        // The old region goes first: the new one may need its memory.
        self.dirtier = None;
        let now = self.clock.now_ns();
        let dirtier = Dirtier::new(spec, now).ok_or(HostRefusal::NoMemory { pages: spec.region_pages() })?;
        progress::dirtier(&dirtier);
        self.dirtier = Some(dirtier);
        Ok(())
    }

    fn dirty_stop(&mut self) {
        if let Some(dirtier) = &mut self.dirtier {
            dirtier.stop();
            progress::dirtier(dirtier);
        }
    }

    fn dirty_stat(&self) -> DirtyStat {
        self.dirtier.as_ref().map(Dirtier::stat).unwrap_or_default()
    }

    fn dirty_check(&self) -> Result<(), HostRefusal> {
        let Some(dirtier) = &self.dirtier else { return Ok(()) };
        match dirtier.check() {
            (0, _) => Ok(()),
            (bad_pages, pages) => Err(HostRefusal::DamagedPages { bad_pages, pages }),
        }
    }

    fn control(&mut self, control: Control) -> Result<(), HostRefusal> {
        self.control = Some(control);
        Ok(())
    }

    fn disk_read(&mut self, sector: u64) -> Result<[u8; SECTOR_BYTES], HostRefusal> {
        self.disk()?.read(sector)
    }

    fn disk_write(&mut self, sector: u64, byte: u8) -> Result<(), HostRefusal> {
        self.disk()?.write(sector, byte)
    }

    fn disk_flush(&mut self) -> Result<(), HostRefusal> {
        self.disk()?.flush()
    }

    fn balloon(&self) -> Result<BalloonPages, HostRefusal> {
        let balloon = self.devices.balloon.as_ref().ok_or(HostRefusal::NoDevice { device: "balloon" })?;
        let (target, actual) = balloon.pages();
        Ok(BalloonPages { target, actual })
    }
}
