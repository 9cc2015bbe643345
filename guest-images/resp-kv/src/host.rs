//! What the engine asks of the machine it runs on.

use crate::dirty::{DirtySpec, DirtyStat};

/// Readings of the guest's clocks, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// Monotonic time.
    pub mono_ns: u64,
    /// Wall-clock time since 1970.
    pub wall_ns: u64,
    /// Monotonic time including suspension.
    pub boottime_ns: u64,
    /// Largest step back ever seen on the monotonic or the wall clock; 0 as long as time has only gone forward.
    pub max_backward_step_ns: u64,
}

/// Memory figures for `INFO`, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Memory the engine may use at most.
    pub total_bytes: u64,
    /// Memory in use.
    pub used_bytes: u64,
}

/// Bytes of a disk's sector.
pub const SECTOR_BYTES: usize = 512;

/// How a balloon stands, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonPages {
    /// Pages the hypervisor wants.
    pub target: u64,
    /// Pages it has.
    pub actual: u64,
}

/// Ends of the machine's life that tests ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Panic, as a kernel bug would.
    Crash,
    /// Fault so that no handler can run.
    TripleFault,
    /// Turn the power off in good order.
    PowerOff,
    /// Reset the machine.
    Reset,
}

/// Why the host did not do as asked. Its text becomes an error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostRefusal {
    /// This host has no such function.
    #[error("not available in this guest")]
    Unsupported,
    /// The page region does not fit in memory.
    #[error("not enough memory for {pages} pages to dirty; ask for fewer")]
    NoMemory {
        /// Size of the region asked for.
        pages: u64,
    },
    /// The pages do not hold the counters the dirtier wrote.
    #[error("{bad_pages} of {pages} dirtied pages hold a wrong counter: guest memory is damaged")]
    DamagedPages {
        /// Pages found wrong.
        bad_pages: u64,
        /// Pages looked at.
        pages: u64,
    },
    /// The machine lacks the device.
    #[error("this machine has no {device}; give it one")]
    NoDevice {
        /// What it lacks.
        device: &'static str,
    },
    /// The disk is smaller.
    #[error("the disk has {sectors} sectors; there is no sector {sector}")]
    NoSector {
        /// The sector asked for.
        sector: u64,
        /// Size of the disk.
        sectors: u64,
    },
    /// The disk did not do it.
    #[error("the disk answered with status {status} (1 is an input/output error, 2 not supported)")]
    Disk {
        /// What it answered.
        status: u8,
    },
}

/// The machine beneath the engine. Called from within command execution, on the engine's own thread; no call may
/// wait, except for the disk.
pub trait Host {
    /// Reads the clocks.
    fn clocks(&mut self) -> Clocks;

    /// Memory figures for `INFO`.
    fn memory(&self) -> MemoryInfo;

    /// The number of console tick lines so far.
    fn counter(&self) -> u64;

    /// Starts dirtying pages, replacing what ran before.
    ///
    /// # Errors
    /// [`HostRefusal::NoMemory`] if the region does not fit; then nothing is running.
    fn dirty_start(&mut self, spec: DirtySpec) -> Result<(), HostRefusal>;

    /// Stops dirtying pages. Harmless when nothing runs; the pages and their counters stay for [`dirty_check`].
    ///
    /// [`dirty_check`]: Self::dirty_check
    fn dirty_stop(&mut self);

    /// Progress of the dirtier, which outlives its stop.
    fn dirty_stat(&self) -> DirtyStat;

    /// Compares every page's counter with what the dirtier must have written.
    ///
    /// # Errors
    /// [`HostRefusal::DamagedPages`] if any differs.
    fn dirty_check(&self) -> Result<(), HostRefusal>;

    /// Asks for the end of the machine. The host carries it out after the replies so far were handed to the network.
    ///
    /// # Errors
    /// [`HostRefusal::Unsupported`] where the host has no such end.
    fn control(&mut self, control: Control) -> Result<(), HostRefusal>;

    /// What a sector of the first disk holds.
    ///
    /// # Errors
    /// [`HostRefusal::Unsupported`] where the host leaves disks alone; that there is none, or what it answered.
    fn disk_read(&mut self, sector: u64) -> Result<[u8; SECTOR_BYTES], HostRefusal> {
        let _ = sector;
        Err(HostRefusal::Unsupported)
    }

    /// Fills a sector of the first disk with one byte.
    ///
    /// # Errors
    /// As for [`disk_read`](Self::disk_read).
    fn disk_write(&mut self, sector: u64, byte: u8) -> Result<(), HostRefusal> {
        let _ = (sector, byte);
        Err(HostRefusal::Unsupported)
    }

    /// Makes what was written to the first disk last.
    ///
    /// # Errors
    /// As for [`disk_read`](Self::disk_read).
    fn disk_flush(&mut self) -> Result<(), HostRefusal> {
        Err(HostRefusal::Unsupported)
    }

    /// How the balloon stands.
    ///
    /// # Errors
    /// [`HostRefusal::Unsupported`] where the host has nothing to do with it; that there is none.
    fn balloon(&self) -> Result<BalloonPages, HostRefusal> {
        Err(HostRefusal::Unsupported)
    }
}

/// A host that has nothing: clocks at zero, no dirtier, no power switch. For tests and plain servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHost;

impl Host for NoHost {
    fn clocks(&mut self) -> Clocks {
        Clocks::default()
    }

    fn memory(&self) -> MemoryInfo {
        MemoryInfo::default()
    }

    fn counter(&self) -> u64 {
        0
    }

    fn dirty_start(&mut self, _spec: DirtySpec) -> Result<(), HostRefusal> {
        Err(HostRefusal::Unsupported)
    }

    fn dirty_stop(&mut self) {}

    fn dirty_stat(&self) -> DirtyStat {
        DirtyStat::default()
    }

    fn dirty_check(&self) -> Result<(), HostRefusal> {
        Ok(())
    }

    fn control(&mut self, _control: Control) -> Result<(), HostRefusal> {
        Err(HostRefusal::Unsupported)
    }
}
