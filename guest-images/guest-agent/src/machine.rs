//! What the RESP engine asks of this machine.

use crate::clocks::Sampler;
use crate::limits::DIRTY_TICK_NS;
use crate::sys::{self, ClockId, Reboot, clock_ns};
use resp_kv::dirty::{Dirtier, DirtySpec, DirtyStat};
use resp_kv::{Clocks, Control, Host, HostRefusal, MemoryInfo};
use std::fs;
use std::io;
use std::sync::Arc;

/// What this process is to its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// PID 1: may end the machine.
    Init,
    /// One process of many.
    Process,
}

/// The machine as the engine sees it, and what the serving loop does for it between commands.
#[derive(Debug)]
pub(crate) struct Machine {
    role: Role,
    sampler: Arc<Sampler>,
    dirtier: Option<Dirtier>,
    control: Option<Control>,
}

impl Machine {
    /// A machine whose clocks `sampler` watches.
    pub(crate) fn new(role: Role, sampler: Arc<Sampler>) -> Self {
        Self { role, sampler, dirtier: None, control: None }
    }

    /// Dirties the pages that are due; nanoseconds until it must be called again, `None` if nothing runs.
    pub(crate) fn dirty_slice(&mut self) -> Option<u64> {
        let dirtier = self.dirtier.as_mut()?;
        let now = clock_ns(ClockId::Monotonic);
        dirtier.run_slice(now);
        let wait = dirtier.next_due_ns(now)?.saturating_sub(now);
        Some(if wait == 0 { 0 } else { wait.max(DIRTY_TICK_NS) })
    }

    /// Carries out the end that was asked for, if any.
    pub(crate) fn end_if_asked(&mut self) -> io::Result<()> {
        match self.control.take() {
            None | Some(Control::TripleFault) => Ok(()),
            Some(Control::Crash) => fs::write("/proc/sysrq-trigger", "c"),
            Some(Control::PowerOff) => Err(sys::reboot(Reboot::PowerOff)),
            Some(Control::Reset) => Err(sys::reboot(Reboot::Restart)),
        }
    }
}

impl Host for Machine {
    fn clocks(&mut self) -> Clocks {
        self.sampler.clocks()
    }

    fn memory(&self) -> MemoryInfo {
        let (total_bytes, free_bytes) = sys::memory();
        MemoryInfo { total_bytes, used_bytes: total_bytes.saturating_sub(free_bytes) }
    }

    fn counter(&self) -> u64 {
        self.sampler.ticks()
    }

    fn dirty_start(&mut self, spec: DirtySpec) -> Result<(), HostRefusal> {
        // The old region goes first: the new one may need its memory.
        self.dirtier = None;
        let refused = HostRefusal::NoMemory { pages: spec.region_pages() };
        // Linux promises more memory than it has; without this check the promise ends in the OOM killer.
        let (_, free_bytes) = sys::memory();
        if spec.region_pages().saturating_mul(4096) > free_bytes {
            return Err(refused);
        }
        self.dirtier = Some(Dirtier::new(spec, clock_ns(ClockId::Monotonic)).ok_or(refused)?);
        Ok(())
    }

    fn dirty_stop(&mut self) {
        if let Some(dirtier) = &mut self.dirtier {
            dirtier.stop();
        }
    }

    fn dirty_stat(&self) -> DirtyStat {
        self.dirtier.as_ref().map(Dirtier::stat).unwrap_or_default()
    }

    fn dirty_check(&self) -> Result<(), HostRefusal> {
        match self.dirtier.as_ref().map_or((0, 0), Dirtier::check) {
            (0, _) => Ok(()),
            (bad_pages, pages) => Err(HostRefusal::DamagedPages { bad_pages, pages }),
        }
    }

    fn control(&mut self, control: Control) -> Result<(), HostRefusal> {
        if self.role != Role::Init || control == Control::TripleFault {
            return Err(HostRefusal::Unsupported);
        }
        self.control = Some(control);
        Ok(())
    }
}
