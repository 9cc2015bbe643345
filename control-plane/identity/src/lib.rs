//! Who is who in a network: its name, the invitations to it, and the folder in which a node keeps its key and what it
//! knows of the others.
//!
//! A node is its Ed25519 key. A network is 32 random bytes, drawn when it is founded. Who holds an invitation signed by a
//! member may join, once, until it expires. Nothing here opens a socket or reads a clock: times come in as unix seconds.

mod codec;
mod file;
mod folder;
mod invitation;
pub mod limits;
mod network;

pub use folder::{FolderError, KnownMember, NetworkFile, NodeFolder};
pub use invitation::{Claims, Invitation, InvitationError};
pub use network::{NetworkId, NetworkIdError};

/// Entry point for fuzzing.
#[cfg(feature = "fuzzing")]
pub fn fuzz_invitation(data: &[u8]) {
    let _ = codec::decode(data);
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(invitation) = text.parse::<Invitation>()
    {
        let _ = invitation.check(0);
    }
}
