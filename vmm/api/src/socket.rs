//! The API's Unix socket: ours alone to use, and gone with us.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens.
    #[error("API socket {}: another process serves an API there; stop it or choose another path", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Not ours to replace.
    #[error("API socket {}: there is a file of another kind; choose another path", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("API socket {}: cannot listen there: {source}; the folder must exist and be writable, the path short", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The socket's file. Drop it while its listener lives: until then no other process takes the path for abandoned.
#[derive(Debug)]
pub struct ApiSocket {
    path: PathBuf,
    identity: (u64, u64),
}

impl ApiSocket {
    /// Listens, non-blocking, for this user only. The file a dead process left is replaced.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let fail = |source| SocketError::Listen { path: path.to_owned(), source };
        make_room(path)?;
        let listener = listen_privately(path).map_err(fail)?;
        let file = fs::symlink_metadata(path).map_err(fail)?;
        Ok((Self { path: path.to_owned(), identity: (file.dev(), file.ino()) }, listener))
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn make_room(path: &Path) -> Result<(), SocketError> {
    let Ok(file) = fs::symlink_metadata(path) else { return Ok(()) };
    if !file.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let gone = fs::remove_file(path);
            gone.map_err(|source| SocketError::Listen { path: path.to_owned(), source })
        }
        _ => Err(SocketError::InUse { path: path.to_owned() }),
    }
}

fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux makes the file with the socket's own mode, so there is no moment at which others may connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_private_and_gone_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let (socket, _listener) = ApiSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_process_file_is_replaced_and_a_living_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file, as a killed process does");
        let (_socket, _listener) = ApiSocket::bind(&path).unwrap();
        let said = ApiSocket::bind(&path).unwrap_err().to_string();
        assert!(said.contains("another process") && said.contains("api.sock"), "{said}");
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"data");
        let nowhere = dir.path().join("no/such/folder");
        assert!(matches!(ApiSocket::bind(&nowhere), Err(SocketError::Listen { .. })));
    }
}
