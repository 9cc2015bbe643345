//! A node's key pair, and its file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{fmt, io};

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{Signer, SigningKey};
use rand::TryRngCore;
use rand::rngs::OsRng;
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::limits::KEY_FILE_MAX;
use crate::peer_key::PeerKey;

const OTHERS: u32 = 0o077;

/// An Ed25519 key pair. Never shows its secret half in `Debug`.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
}

/// A key pair that could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The system gave no randomness.
    #[error("the system gives no random numbers ({0}); check that /dev/urandom is readable here")]
    Random(String),
    /// Reading or writing.
    #[error("key file {path}: cannot {what}; check the path and that this user may {what} it")]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried: "read" or "create".
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Group or others may read or write it.
    #[error("key file {path} has mode {mode:o}: others may read the secret key; run `chmod 600 {path}`")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No key in it.
    #[error(
        "key file {path} holds no Ed25519 private key in PKCS#8 PEM form ({reason}); make one with `keygen`"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
}

impl Identity {
    /// A new key pair from the system's randomness.
    ///
    /// # Errors
    /// [`IdentityError::Random`].
    pub fn generate() -> Result<Self, IdentityError> {
        let mut seed = [0; 32];
        OsRng.try_fill_bytes(&mut seed).map_err(|error| IdentityError::Random(error.to_string()))?;
        Ok(Self::from_seed(&seed))
    }

    /// The key pair of a 32-byte secret seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(seed) }
    }

    /// The public half.
    pub fn peer_key(&self) -> PeerKey {
        PeerKey(self.key.verifying_key().to_bytes())
    }

    /// Signs `message`, to be checked with [`PeerKey::verify`]. Start the message with a text of its own kind, so that what
    /// is signed for one purpose cannot be shown for another.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// Reads a key file, refusing one that others than its owner may access.
    ///
    /// # Errors
    /// [`IdentityError`], naming the file, the reason and the remedy.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let unreadable = |source| IdentityError::File { path: path.into(), what: "read", source };
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(IdentityError::Exposed { path: path.into(), mode });
        }
        let mut pem = String::new();
        file.take(KEY_FILE_MAX).read_to_string(&mut pem).map_err(unreadable)?;
        let content = |reason: String| IdentityError::Content { path: path.into(), reason };
        let key = SigningKey::from_pkcs8_pem(&pem).map_err(|error| content(error.to_string()))?;
        Ok(Self { key })
    }

    /// Writes a new key file that only its owner may access. Never overwrites: a lost key is a lost name.
    ///
    /// # Errors
    /// [`IdentityError::File`], also when the file exists.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let failed = |source| IdentityError::File { path: path.into(), what: "create", source };
        let pem = self.key.to_pkcs8_pem(LineEnding::LF).map_err(|error| failed(io::Error::other(error)))?;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }

    /// The pair as PKCS#8 DER, for rustls.
    pub(crate) fn pkcs8(&self) -> Result<PrivatePkcs8KeyDer<'static>, rustls::Error> {
        let der = self.key.to_pkcs8_der().map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(PrivatePkcs8KeyDer::from(der.as_bytes().to_vec()))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("public", &self.peer_key()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn saved() -> (tempfile::TempDir, PathBuf, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let identity = Identity::generate().unwrap();
        identity.save(&path).unwrap();
        (dir, path, identity)
    }

    #[test]
    fn a_saved_key_is_private_and_loads_again() {
        let (_dir, path, identity) = saved();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Identity::load(&path).unwrap().peer_key(), identity.peer_key());
    }

    #[test]
    fn an_exposed_key_is_refused_with_the_remedy() {
        let (_dir, path, _) = saved();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let message = Identity::load(&path).unwrap_err().to_string();
        assert!(message.contains("chmod 600") && message.contains("node.key"), "{message}");
    }

    #[test]
    fn an_existing_key_is_never_overwritten() {
        let (_dir, path, identity) = saved();
        assert!(matches!(Identity::generate().unwrap().save(&path), Err(IdentityError::File { .. })));
        assert_eq!(Identity::load(&path).unwrap().peer_key(), identity.peer_key());
    }

    #[test]
    fn what_is_no_key_is_named() {
        let (_dir, path, _) = saved();
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::Content { .. })));
        assert!(matches!(Identity::load(Path::new("/nonexistent")), Err(IdentityError::File { .. })));
    }

    #[test]
    fn a_signature_holds_for_its_key_and_message_only() {
        let (signer, other) = (Identity::from_seed(&[7; 32]), Identity::from_seed(&[8; 32]));
        let signature = signer.sign(b"hello");
        assert!(signer.peer_key().verify(b"hello", &signature));
        assert!(!signer.peer_key().verify(b"hellp", &signature));
        assert!(!other.peer_key().verify(b"hello", &signature));
        assert!(!PeerKey([0xff; 32]).verify(b"hello", &signature), "not a point of the curve");
    }

    #[test]
    fn debug_shows_the_public_half_only() {
        let shown = format!("{:?}", Identity::from_seed(&[7; 32]));
        assert!(!shown.contains("7, 7") && !shown.contains("0707"), "{shown}");
    }
}
