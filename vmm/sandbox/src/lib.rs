//! Takes from a VM's process every right it does not need, before the first guest instruction.
//!
//! A guest that breaks out of its machine through a bug of ours finds itself in a thread that can reach the VM's own files and
//! nothing else, that cannot start programs, make executable memory, or open new ways out. `docs/sandbox.md` has the whole
//! picture; this crate has the order, which is what matters:
//!
//! ```text
//!  one thread                                                                  many threads
//!  open what needs rights ──> enter ─────────────────────────────────────────> confine(kind), by each thread at its start
//!  (KVM, taps, keys)          cgroup, user, capabilities, limits, Landlock,    a narrower filter on top
//!                             the filter of the whole process
//! ```
//! Capabilities, users, Landlock and seccomp belong to threads, not to processes. A thread inherits them from the one that
//! starts it, so [`enter`] must be called while there is one thread only. It refuses otherwise.

mod cgroup;
mod error;
mod files;
mod limits;
mod privileges;
mod seccomp;
mod user;

pub use cgroup::Cgroup;
pub use error::SandboxError;
pub use files::{Files, landlock_abi};
pub use limits::EXIT_VIOLATION;
pub use seccomp::{Kind, Network, available as seccomp_available, confine};
pub use user::User;

/// What a process still needs once it is inside.
#[derive(Debug, Default)]
pub struct Plan {
    /// Files it opens by path.
    pub files: Files,
    /// Whom it may talk to.
    pub network: Network,
    /// Threads raise their priority: the right to is kept until they have.
    pub priority: bool,
    /// Becomes this user.
    pub user: Option<User>,
    /// Moves into this control group.
    pub cgroup: Option<Cgroup>,
    /// Serves faults of guest memory, on a userfaultfd that is open already: unprivileged processes get none that sees the
    /// kernel's own faults.
    pub faults: bool,
    /// Opens taps by their names.
    pub taps: bool,
    /// Forbidden system calls go to the kernel's log and are carried out. For finding out what a filter lacks.
    pub report: bool,
}

/// Enters: of this thread and all it will start, for ever. What the kernel does not offer is said in the log and left out;
/// what it refuses is an error.
///
/// # Errors
/// [`SandboxError`]; the process has then lost some of its rights and is of no more use.
pub fn enter(plan: &Plan) -> Result<(), SandboxError> {
    privileges::require_single_thread()?;
    // Has `rustix` look for the kernel's clock now: on kernels before 6.4 it reads /proc/self/auxv for that.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    if let Some(cgroup) = &plan.cgroup {
        cgroup.enter()?;
    }
    let fence = files::Fence::around(&plan.files)?;
    privileges::bound();
    let kept = privileges::needed(plan);
    if let Some(user) = &plan.user {
        user.become_it(!kept.is_empty())?;
        privileges::require_access(&plan.files, user.uid)?;
    }
    privileges::drop_all_but(kept)?;
    fence.close()?;
    seccomp::begin(plan)
}
