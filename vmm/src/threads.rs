//! Who is told when a thread of a machine starts: whoever confines the process takes rights from each by its kind.

use std::sync::OnceLock;

/// What a thread of a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs the guest.
    Vcpu,
    /// Serves the devices that never wait.
    Devices,
    /// Serves a disk, and may wait for it.
    Disk,
    /// Serves the balloon: gives memory back.
    Balloon,
    /// Looks for what a disk boots, in file systems that the guest wrote.
    Boot,
    /// Brings the memory of a machine that is restored while it runs.
    Faults,
}

static ON_START: OnceLock<fn(ThreadKind)> = OnceLock::new();

/// Has `hook` called by every thread of machines built from now on, first thing. The first call counts.
pub fn on_start(hook: fn(ThreadKind)) {
    let _ = ON_START.set(hook);
}

/// Called by a thread that starts.
pub(crate) fn started(kind: ThreadKind) {
    if let Some(hook) = ON_START.get() {
        hook(kind);
    }
}
