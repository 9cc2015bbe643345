//! What can go wrong: when a node starts, and when it asks.

use std::io;
use std::net::SocketAddr;

use mycelium_identity::{FolderError, InvitationError, NetworkIdError};
use rhizomorph_link::TlsError;

use crate::mesh::MeshError;
use crate::raft::BadTiming;
use crate::state::Refused;

/// A node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node's folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The address cannot be had.
    #[error("cannot listen on UDP {addr}: {source}; is another daemon there?")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Others could not reach this node.
    #[error("listening on {0} does not say where others reach this node; give the addresses to advertise")]
    Advertise(SocketAddr),
    /// The pace.
    #[error(transparent)]
    Timing(#[from] BadTiming),
    /// The Raft member stopped.
    #[error("the Raft member stopped: {0}; see the log, and start the daemon again")]
    Raft(String),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] NetworkIdError),
    /// There is a network in the folder.
    #[error(
        "this node is in network {0} already; start it as it is, or leave that network first (`mycelium network leave`)"
    )]
    InNetwork(String),
    /// There is none.
    #[error(
        "this node is in no network; make one (`mycelium network init`) or join one (`mycelium network join`)"
    )]
    NoNetwork,
    /// The invitation.
    #[error(transparent)]
    Invitation(#[from] InvitationError),
    /// The inviter does not answer.
    #[error("the inviting node does not answer: {0}")]
    NoInviter(#[source] MeshError),
    /// The inviter said no.
    #[error("the network did not let this node in: {0}")]
    NotLetIn(String),
    /// Let in, but nothing was heard.
    #[error(
        "the network let this node in, but its leader has not been heard for {0} s; check that UDP reaches {1} from the other nodes, then start the daemon"
    )]
    Unheard(u64, SocketAddr),
    /// Nobody leads.
    #[error(
        "no member answers for the network ({0}). If others still run, wait or check the way to them. If all voters were \
         lost at once, an operator must decide which node's state counts: run `mycelium network recover` on the one that ran \
         last, and nowhere else"
    )]
    Undecided(String),
    /// Removed while away.
    #[error("{0}")]
    Refused(#[from] Refused),
}

/// A question got no usable answer. Nothing can be concluded from it, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum SporeError {
    /// No leader.
    #[error("the network has no leader at the moment ({0}); nothing was decided that is known of, ask again")]
    NoLeader(String),
    /// The group said no. Final.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Another node.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The other node's daemon said no.
    #[error("the daemon there says: {0}")]
    Daemon(String),
    /// Too long.
    #[error("{what} has {bytes} bytes, at most {most} are sent")]
    TooLong {
        /// What.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        most: usize,
    },
    /// An invitation could not be made.
    #[error(transparent)]
    Invitation(#[from] InvitationError),
    /// The node's folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
}
