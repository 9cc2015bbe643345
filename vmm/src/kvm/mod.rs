//! What KVM offers beyond `kvm-ioctls`: one error shape, the caps we depend on, the dirty log.

mod dirty_log;

use std::sync::{Arc, OnceLock};

use kvm_ioctls::{Cap, Kvm};
use vmm_sys_util::errno;

pub(crate) use dirty_log::{DirtyLog, region};

/// The KVM API version this code is written for; it has not changed since 2007.
pub(crate) const API_VERSION: i32 = 12;

/// A KVM call that failed.
#[derive(Debug, thiserror::Error)]
#[error("KVM refused to {action}: {errno}")]
pub struct KvmError {
    /// What was asked, as "verb object".
    pub action: &'static str,
    /// The kernel's answer.
    pub errno: errno::Error,
}

/// Names the failing call in a `map_err`.
pub(crate) fn refused(action: &'static str) -> impl Fn(errno::Error) -> KvmError {
    move |errno| KvmError { action, errno }
}

/// Why `/dev/kvm` cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum KvmUnavailable {
    /// It cannot be opened.
    #[error("cannot open /dev/kvm: {errno}; {remedy}")]
    Open {
        /// The kernel's answer.
        errno: errno::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// It speaks another version.
    #[error(
        "/dev/kvm speaks API version {found}, this program needs {API_VERSION}; use a kernel newer than 2.6.22"
    )]
    ApiVersion {
        /// What it speaks.
        found: i32,
    },
    /// A capability is missing.
    #[error("this kernel's KVM lacks {capability}; {remedy}")]
    MissingCap {
        /// Name of the capability.
        capability: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
}

/// Capabilities no VM of ours can do without.
const REQUIRED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
];

/// The descriptor that is kept open, if one is.
static KEPT: OnceLock<Arc<Kvm>> = OnceLock::new();

/// Opens `/dev/kvm` for all machines that this process will build: a process that gives up its rights may not be able to later.
///
/// # Errors
/// [`KvmUnavailable`], with the remedy.
pub fn keep_open() -> Result<(), KvmUnavailable> {
    let kvm = open()?;
    let _ = KEPT.set(kvm);
    Ok(())
}

/// Opens `/dev/kvm`, unless it is kept open, and checks that it can carry our VMs.
///
/// # Errors
/// [`KvmUnavailable`], with the remedy.
pub(crate) fn open() -> Result<Arc<Kvm>, KvmUnavailable> {
    if let Some(kept) = KEPT.get() {
        return Ok(Arc::clone(kept));
    }
    let kvm = Kvm::new().map_err(|errno| KvmUnavailable::Open { errno, remedy: remedy_for(errno) })?;
    let found = kvm.get_api_version();
    if found != API_VERSION {
        return Err(KvmUnavailable::ApiVersion { found });
    }
    match REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, capability)) => {
            Err(KvmUnavailable::MissingCap { capability, remedy: "use a Linux kernel of 5.10 or newer" })
        }
        None => Ok(Arc::new(kvm)),
    }
}

fn remedy_for(errno: errno::Error) -> &'static str {
    match errno.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => {
            "load kvm_intel or kvm_amd, enable virtualisation in the firmware, or pass /dev/kvm into this container"
        }
        libc::EACCES | libc::EPERM => "run as root or join the group that owns /dev/kvm (usually `kvm`)",
        _ => "see `endophyte doctor`",
    }
}
