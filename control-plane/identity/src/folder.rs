//! A node's folder: its key, what it knows of the network, and a lock.
//!
//! ```text
//!   node.key       the secret key; lost, the node is another node
//!   network.json   the network, this node's name, the members last known and where they listen
//!   state.json     the network's state as this node last saw it (written by the spore)
//!   lock           held by the one daemon that uses the folder
//! ```

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rhizomorph_link::{Identity, IdentityError, PeerKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{NetworkId, file};

const NETWORK: &str = "network.json";

/// A member as last known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownMember {
    /// Its key.
    pub key: PeerKey,
    /// Its name.
    pub name: String,
    /// Where it listened.
    pub addrs: Vec<SocketAddr>,
}

/// What `network.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFile {
    /// The network.
    pub network: NetworkId,
    /// This node's name in it.
    pub name: String,
    /// All members last known, this node among them.
    pub members: Vec<KnownMember>,
}

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder or a file in it.
    #[error(
        "cannot {doing} {path}: {source}; check that the disk has room and that this user may write there"
    )]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key.
    #[error(transparent)]
    Key(#[from] IdentityError),
    /// A file that does not parse must not be taken for none.
    #[error(
        "{path} is damaged ({source}); restore it from a backup, or move the folder away and join the network again with a new invitation"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Another daemon has it.
    #[error("{0} is in use by another daemon; stop that one, or give this one a folder of its own")]
    Locked(PathBuf),
}

/// The folder, held by this process alone until dropped.
#[derive(Debug)]
pub struct NodeFolder {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

impl NodeFolder {
    /// Opens or makes the folder; the key is made at the first start.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        fs::create_dir_all(path).map_err(|e| io_error("make folder", path, e))?;
        let lock = lock(path)?;
        let identity = load_or_make_key(&path.join("node.key"))?;
        Ok(Self { path: path.to_owned(), identity, _lock: lock })
    }

    /// The node's key pair.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the node knows of its network, or `None` when it has not been in one.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn network(&self) -> Result<Option<NetworkFile>, FolderError> {
        self.read(NETWORK)
    }

    /// Replaces `network.json`.
    ///
    /// # Errors
    /// [`FolderError`]; the old file is still there.
    pub fn set_network(&self, network: &NetworkFile) -> Result<(), FolderError> {
        self.write(NETWORK, network)
    }

    /// Forgets the network: the next start is a first one, under the same key. The files are kept aside as `*.left`.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn leave_network(&self) -> Result<(), FolderError> {
        for name in ["state.json", NETWORK] {
            let path = self.path.join(name);
            match fs::rename(&path, self.path.join(format!("{name}.left"))) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("move aside", &path, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads a JSON file of the folder; `None` when there is none.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FolderError> {
        let path = self.path.join(name);
        let Some(bytes) = file::read(&path).map_err(|e| io_error("read", &path, e))? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|source| FolderError::Damaged { path, source })
    }

    /// Replaces a JSON file of the folder, whole, synced to disk before this returns.
    ///
    /// # Errors
    /// [`FolderError`]; the old file is still there.
    pub fn write<T: Serialize>(&self, name: &str, content: &T) -> Result<(), FolderError> {
        let path = self.path.join(name);
        let bytes = serde_json::to_vec_pretty(content)
            .map_err(|source| FolderError::Damaged { path: path.clone(), source })?;
        file::replace(&path, &bytes).map_err(|e| io_error("write", &path, e))
    }
}

fn lock(folder: &Path) -> Result<File, FolderError> {
    let path = folder.join("lock");
    let lock = File::create(&path).map_err(|e| io_error("open", &path, e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(FolderError::Locked(folder.to_owned())),
        Err(fs::TryLockError::Error(e)) => Err(io_error("lock", &path, e)),
    }
}

fn load_or_make_key(path: &Path) -> Result<Identity, FolderError> {
    if path.exists() {
        return Ok(Identity::load(path)?);
    }
    let identity = Identity::generate()?;
    identity.save(path)?;
    Ok(identity)
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> FolderError {
    FolderError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file() -> NetworkFile {
        let addrs = vec!["10.0.0.2:7946".parse().unwrap()];
        let member = KnownMember { key: PeerKey([2; 32]), name: "b".into(), addrs };
        NetworkFile { network: NetworkId([1; 32]), name: "a".into(), members: vec![member] }
    }

    #[test]
    fn a_node_keeps_its_key_and_its_network() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeFolder::open(dir.path()).unwrap();
        let key = first.identity().peer_key();
        assert_eq!(first.network().unwrap(), None);
        first.set_network(&file()).unwrap();
        drop(first);
        let again = NodeFolder::open(dir.path()).unwrap();
        assert_eq!(again.identity().peer_key(), key);
        assert_eq!(again.network().unwrap(), Some(file()));
        again.leave_network().unwrap();
        assert_eq!(again.network().unwrap(), None);
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = NodeFolder::open(dir.path()).unwrap();
        assert!(matches!(NodeFolder::open(dir.path()), Err(FolderError::Locked(_))));
    }

    #[test]
    fn a_damaged_file_and_an_exposed_key_are_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let folder = NodeFolder::open(dir.path()).unwrap();
        fs::write(dir.path().join(NETWORK), b"{\"network\":").unwrap();
        let text = folder.network().unwrap_err().to_string();
        assert!(text.contains("network.json") && text.contains("join the network again"), "{text}");
        drop(folder);
        fs::set_permissions(dir.path().join("node.key"), fs::Permissions::from_mode(0o644)).unwrap();
        let text = NodeFolder::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("chmod 600"), "{text}");
    }
}
