//! The way out of the VM for frames.

use std::sync::Arc;

use super::Tap;

/// What became of a frame offered to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// The port has it. To the guest it is sent.
    Taken,
    /// No room. The device stops taking frames from the guest until `Machine::kick_tx` and then offers this one
    /// again.
    Full,
}

/// What a card's frames pass on their way out and in, each as a packet: a header and an Ethernet frame, see
/// [`super::header`]. Both calls come from the device thread with the card
/// locked: they must not wait, and while the machine is paused none comes, unless it is to take frames ahead.
pub trait NetPort: Send + Sync {
    /// Takes a packet from the guest, which sent it by that pair of its queues.
    fn transmit(&self, pair: u16, packet: &[u8]) -> Transmit;

    /// Sees a packet that is about to be put into guest receive buffers: it becomes part of guest state with
    /// this call, in this order. With `Machine::set_rx_ahead`, also one that a paused guest will get when it goes on, and again then.
    fn deliver(&self, packet: &[u8]);
}

/// What one card is attached to.
#[derive(Clone)]
pub struct NicPort {
    /// Where frames for the guest come from.
    pub tap: Arc<Tap>,
    /// Where the guest's frames go.
    pub port: Arc<dyn NetPort>,
}

impl std::fmt::Debug for NicPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NicPort").field("tap", &self.tap).finish_non_exhaustive()
    }
}

/// Passes frames straight to a tap: an unprotected VM.
#[derive(Debug)]
pub struct TapPort(Arc<Tap>);

impl TapPort {
    /// A port to `tap`.
    pub fn new(tap: Arc<Tap>) -> TapPort {
        TapPort(tap)
    }
}

impl NetPort for TapPort {
    fn transmit(&self, pair: u16, packet: &[u8]) -> Transmit {
        // A tap that is down or full drops the frame, like a cable: Ethernet promises nothing, and the guest's
        // transport notices.
        drop(self.0.write(pair, packet));
        Transmit::Taken
    }

    fn deliver(&self, _: &[u8]) {}
}
