//! Filters of system calls: one for the whole process, and a narrower one for each kind of thread.
//!
//! Filters add up: a thread obeys its own and those it inherited, so the first, wide one also holds for threads of libraries
//! that no one announces here. A forbidden call is not carried out; its thread gets SIGSYS, and the handler ends the process
//! with a line that says what happened. That is as safe as having the kernel kill it: a thread that got hold of the signal
//! (no filter lets it) or blocks it (then the kernel kills) still has no call carried out.

mod calls;
mod policy;
mod rules;
mod trap;

use std::cell::Cell;
use std::sync::OnceLock;

use seccompiler::{BpfProgram, SeccompAction, apply_filter};

pub(crate) use trap::install as install_handler;

use crate::error::{SandboxError, refused};
use crate::{Plan, privileges};

/// What a thread does, and so what it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs the guest and serves its port and memory accesses.
    Vcpu,
    /// Serves devices that never wait.
    Devices,
    /// Serves a disk.
    Disk,
    /// Gives a guest's memory back to the host.
    Balloon,
    /// Reads the file systems that a guest wrote to its disk.
    Boot,
    /// Brings guest memory as it is touched.
    Faults,
    /// Serves the API, links to peers and the arbiter.
    Runtime,
}

const KINDS: [Kind; 7] =
    [Kind::Vcpu, Kind::Devices, Kind::Disk, Kind::Balloon, Kind::Boot, Kind::Faults, Kind::Runtime];

impl Kind {
    /// As it is called in the line about a violation.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vCPU",
            Self::Devices => "devices",
            Self::Disk => "disk",
            Self::Balloon => "balloon",
            Self::Boot => "boot",
            Self::Faults => "page faults",
            Self::Runtime => "runtime",
        }
    }
}

thread_local! {
    /// What this thread was confined as. Without a destructor, so that a signal handler may look at it.
    static OWN: Cell<Option<Kind>> = const { Cell::new(None) };
}

/// What this thread was confined as; `None`: it has the filter of the process.
fn own_kind() -> Option<Kind> {
    OWN.get()
}

/// Whom a process may talk to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Peers and the arbiter, by UDP.
    pub peers: bool,
    /// Programs of this host that devices connect to, by Unix sockets.
    pub host_sockets: bool,
}

/// What one kind of thread applies.
struct Filters {
    /// Calls that are answered with an error instead of being a violation: libraries try them and do without.
    soft: BpfProgram,
    hard: BpfProgram,
}

impl Filters {
    fn apply(&self) -> Result<(), seccompiler::Error> {
        apply_filter(&self.soft)?;
        apply_filter(&self.hard)
    }
}

/// By position in [`KINDS`]. Not there: no sandbox.
static FILTERS: OnceLock<Vec<Filters>> = OnceLock::new();

/// Puts the calling thread, and all it will start, under the filter of the process.
pub(crate) fn begin(plan: &Plan) -> Result<(), SandboxError> {
    let violation = if plan.report { SeccompAction::Log } else { SeccompAction::Trap };
    let compile = |policy: policy::Policy| -> Result<Filters, SandboxError> {
        Ok(Filters { soft: policy.soft()?, hard: policy.hard(violation.clone())? })
    };
    let kinds = KINDS.iter().map(|kind| compile(policy::of(*kind, plan))).collect::<Result<_, _>>()?;
    install_handler().map_err(refused("handle SIGSYS"))?;
    // A second sandbox in one process only happens in tests; the first one's filters stay.
    let _ = FILTERS.set(kinds);
    Ok(compile(policy::of_process(plan))?.apply()?)
}

/// Puts the calling thread under the filter of its kind and takes its remaining capabilities. Does nothing in a process without
/// a sandbox. Ends the process if the kernel refuses: nothing runs outside.
pub fn confine(kind: Kind) {
    let Some(filters) = FILTERS.get() else { return };
    OWN.set(Some(kind));
    let own = KINDS.iter().zip(filters).find(|(of, _)| **of == kind).map(|(_, filters)| filters);
    let confined = privileges::drop_rest()
        .and_then(|()| own.map_or(Ok(()), |filters| filters.apply().map_err(SandboxError::from)));
    if let Err(error) = confined {
        trap::end(&format!("endophyte: a thread cannot be confined ({error}); the VM is stopped\n"));
    }
}

/// Whether this kernel filters system calls and can end a process in an orderly way when one is forbidden.
pub fn available() -> bool {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    actions.split_whitespace().any(|action| action == "trap")
}
