//! Capabilities, resource limits, and what a debugger or an exec could regain.

use std::path::Path;

use rustix::fs::{AtFlags, CWD};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::error::{SandboxError, refused};
use crate::limits::{NICE_LIMIT, OPEN_FILES_MAX};
use crate::{Files, Plan};

/// Refuses if there are other threads: they would stay outside.
pub(crate) fn require_single_thread() -> Result<(), SandboxError> {
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        // Without /proc nobody can tell; the caller's word counts.
        Ok(0 | 1) | Err(_) => Ok(()),
        Ok(threads) => Err(SandboxError::Threads { threads }),
    }
}

/// Bounds capabilities and resources, while this may still take capabilities.
pub(crate) fn bound() {
    for number in 0..u64::BITS {
        // Without CAP_SETPCAP, or past the last one this kernel knows, it is refused; no exec can use the bound anyway.
        let _ = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number));
    }
    lower(Resource::Core, 0);
    lower(Resource::Nofile, OPEN_FILES_MAX);
    // Lets threads go before others without the capability for it; takes CAP_SYS_RESOURCE.
    let _ = setrlimit(Resource::Nice, Rlimit { current: Some(NICE_LIMIT), maximum: Some(NICE_LIMIT) });
}

/// Lowering takes no right, so it does not fail.
fn lower(resource: Resource, most: u64) {
    let now = getrlimit(resource);
    let least = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
    let _ = setrlimit(resource, Rlimit { current: least(now.current), maximum: least(now.maximum) });
}

/// The capabilities without which this VM would not run as well as it did, none if possible.
pub(crate) fn needed(plan: &Plan) -> CapabilitySet {
    let mut kept = CapabilitySet::empty();
    let may_nice = getrlimit(Resource::Nice).current.is_none_or(|limit| limit >= NICE_LIMIT);
    if plan.priority && !may_nice {
        kept |= CapabilitySet::SYS_NICE;
    }
    if plan.user.is_none()
        && let Some(path) = plan.files.wanted().find(|(path, write)| belongs_to_others(path, *write))
    {
        tracing::info!(path = %path.0.display(), "the process keeps the right to use files of other users, for this one");
        kept |= CapabilitySet::DAC_OVERRIDE;
    }
    capabilities(None).map_or(CapabilitySet::empty(), |have| have.permitted & kept)
}

/// Whether a file can be used only because of a capability.
fn belongs_to_others(path: &Path, write: bool) -> bool {
    let Ok(have) = capabilities(None) else { return false };
    let bare = CapabilitySets { effective: CapabilitySet::empty(), ..have };
    if set_capabilities(None, bare).is_err() {
        return false;
    }
    let reachable = can_use(path, write);
    let _ = set_capabilities(None, have);
    !reachable && can_use(path, write)
}

/// Whether the thread may use a file as it is now. A missing file is nobody's.
fn can_use(path: &Path, write: bool) -> bool {
    use rustix::fs::Access;
    let how = if write { Access::READ_OK | Access::WRITE_OK } else { Access::READ_OK };
    !matches!(
        rustix::fs::accessat(CWD, path, how, AtFlags::EACCESS),
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM)
    )
}

/// Refuses if a user cannot use the VM's files.
pub(crate) fn require_access(files: &Files, uid: u32) -> Result<(), SandboxError> {
    match files.wanted().find(|(path, write)| !can_use(path, *write)) {
        Some((path, write)) => Err(SandboxError::Unreachable { uid, path: path.to_owned(), write }),
        None => Ok(()),
    }
}

/// Gives up everything but `kept`, and every way to get it back.
pub(crate) fn drop_all_but(kept: CapabilitySet) -> Result<(), SandboxError> {
    let _ = clear_ambient_capability_set();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(refused("drop capabilities"))?;
    set_no_new_privs(true).map_err(refused("forbid regaining privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("shut out debuggers"))
}

/// Gives up what this thread still has.
pub(crate) fn drop_rest() -> Result<(), SandboxError> {
    let empty = CapabilitySet::empty();
    let none = CapabilitySets { effective: empty, permitted: empty, inheritable: empty };
    set_capabilities(None, none).map_err(refused("drop capabilities"))
}
