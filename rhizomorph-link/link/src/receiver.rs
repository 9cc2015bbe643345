//! The receiving half of a link.

use std::sync::Arc;

use crate::close::CloseReason;
use crate::events::{Arrived, LinkEvent};
use crate::handle::Handle;
use crate::peer_key::PeerKey;

/// Receives from a link. There is one; events not received hold the sender back.
#[derive(Debug)]
pub struct LinkReceiver {
    handle: Arc<Handle>,
    ended: bool,
}

impl LinkReceiver {
    pub(crate) fn new(handle: &Arc<Handle>) -> Self {
        Self { handle: Arc::clone(handle), ended: false }
    }

    /// The other end's key, proved in every handshake.
    pub fn peer(&self) -> PeerKey {
        self.handle.link().peer
    }

    /// The next event; datagrams before path events before control bundles before bulk. `None` after
    /// [`LinkEvent::Closed`]. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<LinkEvent> {
        self.recv_arrived().await.map(|arrived| arrived.event)
    }

    /// As [`LinkReceiver::recv`], with the moment of arrival.
    pub async fn recv_arrived(&mut self) -> Option<Arrived> {
        while !self.ended {
            if let Some(arrived) = self.try_recv() {
                return Some(arrived);
            }
            self.handle.link().event().await;
        }
        None
    }

    /// An event that waits already, or `None`: drains what has come without waiting for more.
    pub fn try_recv(&mut self) -> Option<Arrived> {
        let arrived = self.handle.link().try_recv()?;
        self.ended |= matches!(arrived.event, LinkEvent::Closed);
        Some(arrived)
    }

    /// Why the link is closed, if it is.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.handle.link().close_reason()
    }
}
