//! The files a process may open, by Landlock.
//!
//! A rule is bound to the file or folder that is there when the sandbox is entered, whatever its name leads to later. Files that
//! are open already stay open. What the kernel's Landlock cannot restrict yet stays as it is.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

use crate::error::SandboxError;

/// The newest version whose restrictions are known to leave a VM its own.
const ABI_KNOWN: ABI = ABI::V9;

/// What may be done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Read,
    ReadWrite,
    /// Files in it are made, replaced and removed.
    Keep,
    /// The same, and its block devices are used.
    Reach,
    /// Sockets in it are made, reached and removed.
    Sockets,
    /// A device that is no disk is opened and used.
    Device,
}

/// The files and folders a process may open by path, collected.
#[derive(Clone, Debug, Default)]
pub struct Files(Vec<(PathBuf, Use)>);

impl Files {
    /// A file, or all in a folder, is read.
    pub fn read(&mut self, path: &Path) {
        self.add(path, Use::Read);
    }

    /// An existing file or block device is read and written.
    pub fn read_write(&mut self, path: &Path) {
        self.add(path, Use::ReadWrite);
    }

    /// A device that is no disk is opened and used.
    pub fn device(&mut self, path: &Path) {
        self.add(path, Use::Device);
    }

    /// Files in a folder are made, read, written, replaced and removed.
    pub fn keep(&mut self, folder: &Path) {
        self.add(folder, Use::Keep);
    }

    /// As [`keep`](Self::keep), and disks may be there: files or block devices.
    pub fn reach(&mut self, folder: &Path) {
        self.add(folder, Use::Reach);
    }

    /// A socket is made or reached at this path, or beside it. Removing it takes the right to remove others of its folder:
    /// give sockets a folder of their own.
    pub fn socket(&mut self, path: &Path) {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        self.add(folder, Use::Sockets);
    }

    fn add(&mut self, path: &Path, what: Use) {
        self.0.push((path.to_owned(), what));
    }

    /// Every path with whether it is written.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = (&Path, bool)> {
        self.0.iter().map(|(path, what)| (path.as_path(), *what != Use::Read))
    }
}

/// The rules, ready; their files are open.
#[derive(Debug)]
pub(crate) struct Fence(RulesetCreated);

impl Fence {
    /// Prepared while the files can still be opened. One that is missing gets no rule: whoever opens it will tell.
    pub(crate) fn around(files: &Files) -> Result<Self, SandboxError> {
        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(ABI_KNOWN))?
            .handle_access(AccessNet::from_all(ABI::V4))?
            .scope(Scope::from_all(ABI::V6))?
            .create()?;
        for (path, what) in &files.0 {
            if let Ok(file) = PathFd::new(path) {
                rules = rules.add_rule(PathBeneath::new(file, rights(path, *what)))?;
            }
        }
        Ok(Self(rules))
    }

    /// Applies them to this thread and all it will start.
    pub(crate) fn close(self) -> Result<(), SandboxError> {
        let status = self.0.restrict_self()?;
        match status.ruleset {
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => {
                tracing::info!(landlock = ?status.landlock, "files are restricted to the VM's own");
            }
            RulesetStatus::NotEnforced => tracing::warn!(
                "this kernel has no Landlock: the process could open any file its user can; use Linux 5.13 or newer with \
                 landlock among the security modules it starts (lsm=)"
            ),
        }
        Ok(())
    }
}

fn rights(path: &Path, what: Use) -> BitFlags<AccessFs> {
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let keep = write | AccessFs::ReadDir | AccessFs::MakeReg | AccessFs::RemoveFile;
    match what {
        Use::Read if path.is_dir() => AccessFs::ReadFile | AccessFs::ReadDir,
        Use::Read => device_rights(path) | AccessFs::ReadFile,
        Use::ReadWrite => write | device_rights(path),
        Use::Keep => keep,
        Use::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        Use::Reach => keep | AccessFs::IoctlDev,
        Use::Sockets => AccessFs::MakeSock | AccessFs::RemoveFile | AccessFs::ResolveUnix,
    }
}

/// A disk tells its size and discards by ioctl.
fn device_rights(path: &Path) -> BitFlags<AccessFs> {
    let is_disk = path.metadata().is_ok_and(|file| file.file_type().is_block_device());
    if is_disk { AccessFs::IoctlDev.into() } else { BitFlags::EMPTY }
}

/// Version of Landlock that this kernel offers; `None` if it has none or it is not switched on.
pub fn landlock_abi() -> Option<i64> {
    const VERSION: libc::c_ulong = 1;
    // SAFETY: with this flag the call takes a null pointer and size 0 and only answers a number.
    let answer = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0usize, VERSION)
    };
    (answer > 0).then_some(answer)
}
