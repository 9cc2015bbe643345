//! The control queue: what the driver tells the card besides frames.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
};

use super::device::Net;
use crate::limits::NIC_TURN_FRAMES;
use crate::virtio::{ChainError, Io, Turn};

const OK: u8 = 0;
const ERROR: u8 = 1;

const ANNOUNCED: [u8; 2] = command(VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK);
const SET_PAIRS: [u8; 2] = command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);

/// Longest command known, and a byte that a longer one shows by.
const COMMAND_BYTES: usize = 4 + 1;

const fn command(class: u32, number: u32) -> [u8; 2] {
    [class.to_le_bytes()[0], number.to_le_bytes()[0]]
}

impl Net {
    /// Answers commands in queue `index`.
    pub(super) fn control(&mut self, index: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        for _ in 0..NIC_TURN_FRAMES {
            if !io.next(index)? {
                return Ok(Turn::Idle);
            }
            let mut command = [0; COMMAND_BYTES];
            let read = io.read(&mut command)?;
            let reply = if self.obey(&command[..read]) { OK } else { ERROR };
            if io.write(&[reply])? != 1 {
                return Err(ChainError::Direction);
            }
            io.complete(index, 1)?;
            io.signal(index)?;
        }
        Ok(Turn::More)
    }

    /// Whether the command is known and was carried out.
    fn obey(&mut self, command: &[u8]) -> bool {
        match command.split_first_chunk() {
            // Some drivers send more room than there is to say.
            Some((&ANNOUNCED, _)) => {
                self.announcing = false;
                true
            }
            Some((&SET_PAIRS, &[low, high])) => self.set_pairs(u16::from_le_bytes([low, high])),
            _ => false,
        }
    }

    fn set_pairs(&mut self, pairs: u16) -> bool {
        let tap = &self.attached.tap;
        if !self.agreed.several || !(1..=tap.pairs()).contains(&pairs) {
            return false;
        }
        if let Err(error) = tap.use_pairs(pairs) {
            tracing::error!(tap = tap.name(), pairs, %error, "a tap does not use that many queues; the guest is told");
            return false;
        }
        self.pairs = pairs;
        self.forget_unused();
        true
    }
}
