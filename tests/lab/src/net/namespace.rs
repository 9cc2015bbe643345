//! Network namespaces of the calling thread.

use std::fs;
use std::path::PathBuf;

use rustix::thread::UnshareFlags;

use super::ip;
use crate::LabError;

const OWN: &str = "/proc/thread-self/ns/net";
const OWN_DEVICES: &str = "/proc/thread-self/net/dev";

/// Proof that a namespace may be filled with a lab network: it was made for one, or has nothing in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateNamespace {
    pub(super) identity: PathBuf,
}

impl PrivateNamespace {
    /// Moves the calling thread into a new network namespace with nothing but a loopback.
    ///
    /// Threads and processes started by this thread from now on are in it too; threads that already run are not. Call it
    /// before starting an async runtime, and start hosts and clients from here.
    ///
    /// # Errors
    /// [`LabError::File`] without the right to do so (root, or a user namespace); [`LabError::Command`] when `ip` fails.
    pub fn enter() -> Result<Self, LabError> {
        // SAFETY: leaving the network namespace invalidates no memory and no descriptor; only flags that unshare the
        // descriptor table could break what other code of this process relies on.
        let left = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
        left.map_err(|error| LabError::file("leave (run as root)", OWN)(error.into()))?;
        Self::adopt()
    }

    /// Takes the namespace the calling thread is in already, as after `unshare --net`.
    ///
    /// # Errors
    /// [`LabError::NotPrivate`] when it has any device but its loopback: then it is somebody's.
    pub fn adopt() -> Result<Self, LabError> {
        let listed = fs::read_to_string(OWN_DEVICES).map_err(LabError::file("read", OWN_DEVICES))?;
        let devices = foreign_devices(&listed);
        if !devices.is_empty() {
            return Err(LabError::NotPrivate(format!("it already has {}", devices.join(", "))));
        }
        ip::run("link set lo up")?;
        Ok(Self { identity: identity()? })
    }

    /// Refuses when the calling thread is not in this namespace.
    pub(super) fn require_here(&self) -> Result<(), LabError> {
        if identity()? == self.identity {
            return Ok(());
        }
        Err(LabError::NotPrivate("the calling thread is in another one than was entered".to_owned()))
    }
}

fn identity() -> Result<PathBuf, LabError> {
    fs::read_link(OWN).map_err(LabError::file("identify the namespace at", OWN))
}

/// Two heading lines, then one line a device: its name, a colon, its counters.
fn foreign_devices(listed: &str) -> Vec<&str> {
    let names = listed.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    names.filter(|name| *name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_is_not_foreign() {
        let listed = "Inter-|   Receive\n face |bytes\n    lo:  1 2\n  eth0: 3 4\n";
        assert_eq!(foreign_devices(listed), ["eth0"]);
    }
}
