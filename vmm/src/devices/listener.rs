//! A Unix socket at which programs of this host reach a device.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::limits::{SOCKET_BACKLOG, SOCKET_PATH_BYTES_MAX};

/// Only the user that runs the VM may connect.
const OWNER_ONLY: Mode = Mode::from_bits_truncate(0o600);

/// Why a socket cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// It does not fit an address.
    #[error("socket path {} is longer than {max} bytes; choose a shorter one", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Most bytes there is room for.
        max: usize,
    },
    /// Another process listens there.
    #[error("socket {} is in use by another process; stop that VM or give this one a socket of its own", path.display())]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} exists and is no socket; remove it or choose another path for the socket", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// There is no such folder.
    #[error("the folder of socket {} does not exist; create it", path.display())]
    Folder {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot listen at socket {}: {source}; check that its folder can be written", path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A listening socket, non-blocking. Its file goes when it is dropped.
#[derive(Debug)]
pub struct HostListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that nobody else's file is removed.
    file: Option<(u64, u64)>,
}

impl HostListener {
    /// Listens at `path`, to which up to `suffix` bytes will be appended by others. What a dead process left there is
    /// removed.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path, suffix: usize) -> Result<HostListener, SocketError> {
        let max = SOCKET_PATH_BYTES_MAX - suffix;
        if path.as_os_str().len() > max {
            return Err(SocketError::TooLong { path: path.to_owned(), max });
        }
        clear(path)?;
        listen(path).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => SocketError::Busy { path: path.to_owned() },
            io::ErrorKind::NotFound => SocketError::Folder { path: path.to_owned() },
            _ => SocketError::Listen { path: path.to_owned(), source },
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next program that connected, its stream non-blocking.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` when there is none.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsRawFd for HostListener {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for HostListener {
    fn drop(&mut self) {
        if self.file.is_some() && identity(&self.path) == self.file {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|found| (found.dev(), found.ino()))
}

/// Connects to `path` without waiting: a full backlog is an error like any other.
///
/// # Errors
/// The kernel's.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

fn listen(path: &Path) -> io::Result<HostListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Linux makes the file with the socket's own mode, so there is no moment in which others could connect.
    rustix::fs::fchmod(&socket, OWNER_ONLY)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(SOCKET_BACKLOG)?;
    let listener = UnixListener::from(OwnedFd::from(socket));
    Ok(HostListener { listener, path: path.to_owned(), file: identity(path) })
}

/// Removes a socket that nobody listens at.
fn clear(path: &Path) -> Result<(), SocketError> {
    let Ok(found) = path.symlink_metadata() else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(SocketError::Occupied { path: path.to_owned() });
    }
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| SocketError::Listen { path: path.to_owned(), source })
        }
        _ => Err(SocketError::Busy { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = HostListener::bind(&path, 0).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, OWNER_ONLY.bits());
        assert!(matches!(HostListener::bind(&path, 0), Err(SocketError::Busy { .. })));
        drop(first);
        assert!(!path.exists());
        std::fs::write(&path, "a file").unwrap();
        assert!(matches!(HostListener::bind(&path, 0), Err(SocketError::Occupied { .. })));
        let nowhere = folder.path().join("none").join("socket");
        assert!(matches!(HostListener::bind(&nowhere, 0), Err(SocketError::Folder { .. })));
        let long = folder.path().join("x".repeat(SOCKET_PATH_BYTES_MAX));
        assert!(matches!(HostListener::bind(&long, 0), Err(SocketError::TooLong { .. })));
    }

    #[test]
    fn a_dead_process_socket_is_replaced_and_a_successor_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let stale = HostListener::bind(&path, 0).unwrap();
        std::fs::remove_file(&path).unwrap();
        let successor = UnixListener::bind(&path).unwrap();
        drop(stale);
        assert!(path.exists(), "the file is another's by now");
        drop(successor);
    }
}
