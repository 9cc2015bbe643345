//! The sending half of a link.

use std::sync::Arc;

use bytes::Bytes;
use rhizomorph_proto::ids::{BundleId, LinkId, Priority};
use tokio::sync::oneshot;

use crate::close::CloseReason;
use crate::error::SendError;
use crate::handle::Handle;
use crate::path_info::PathInfo;
use crate::payload::Payload;
use crate::peer_key::PeerKey;

/// Sends over a link; cheap to clone, usable from any thread and runtime.
#[derive(Clone, Debug)]
pub struct LinkSender {
    handle: Arc<Handle>,
}

impl LinkSender {
    pub(crate) fn new(handle: &Arc<Handle>) -> Self {
        Self { handle: Arc::clone(handle) }
    }

    /// The other end's key, proved in every handshake.
    pub fn peer(&self) -> PeerKey {
        self.handle.link().peer
    }

    /// The link's random id, the same at both ends; for logs.
    pub fn id(&self) -> LinkId {
        self.handle.link().id
    }

    /// Sends at most [`DATAGRAM_MAX`](crate::limits::DATAGRAM_MAX) bytes, at most once, without waiting. They leave
    /// on the two best paths and ahead of all bundles; the receiver sees one copy, or none.
    ///
    /// # Errors
    /// [`SendError::Closed`], [`SendError::NoPath`], [`SendError::DatagramTooLarge`].
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the one argument type all senders of small messages have"
    )]
    pub fn send_datagram(&self, payload: Bytes) -> Result<(), SendError> {
        self.handle.link().send_datagram(&payload)
    }

    /// Sends at most [`BUNDLE_MAX`](crate::limits::BUNDLE_MAX) bytes exactly once, cut into stripes over all live
    /// paths. Waits while the link has too many unacknowledged bytes; while no path is up the bundle waits in the
    /// link. Bundles of one class leave in order, though a later one may become whole first.
    ///
    /// Dropping the returned future before it completes sends nothing; dropping the receipt takes nothing back.
    ///
    /// # Errors
    /// [`SendError::Closed`], [`SendError::BundleTooLarge`].
    pub async fn send_bundle(
        &self,
        priority: Priority,
        payload: impl Into<Payload>,
    ) -> Result<BundleReceipt, SendError> {
        let link = self.handle.link();
        let (id, acked) = link.send_bundle(priority, payload.into()).await?;
        Ok(BundleReceipt { id, acked, handle: Arc::clone(&self.handle) })
    }

    /// Every path as it is now.
    pub fn paths(&self) -> Vec<PathInfo> {
        self.handle.link().paths()
    }

    /// Closes the link for both ends at once; bundles not acknowledged are lost.
    pub fn close(&self) {
        self.handle.link().close(CloseReason::Local);
    }

    /// Why the link is closed, if it is.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.handle.link().close_reason()
    }
}

/// Follows one sent bundle.
#[derive(Debug)]
pub struct BundleReceipt {
    id: BundleId,
    acked: oneshot::Receiver<()>,
    handle: Arc<Handle>,
}

impl BundleReceipt {
    /// The bundle's number, as its receiver sees it.
    pub fn id(&self) -> BundleId {
        self.id
    }

    /// Waits until the peer's application has received the bundle.
    ///
    /// # Errors
    /// [`SendError::Closed`]: the link ended first; whether the bundle was received is unknown.
    pub async fn acked(self) -> Result<(), SendError> {
        self.acked.await.map_err(|_| self.handle.link().closed_error())
    }
}
