//! How much each side of a connection may send. All counts are modulo 2^32, as in the packets.

use super::packet::Header;
use crate::limits::VSOCK_BUFFER_BYTES;

/// The credit of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credit {
    /// Room the guest says it has, and how much it has passed on.
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// Bytes sent to the guest.
    sent: u32,
    /// Bytes received from it, and of these: passed on to the host program, and passed on as the guest knows.
    received: u32,
    forwarded: u32,
    told: u32,
}

impl Credit {
    /// Takes what a packet from the guest says.
    pub(super) fn hear(&mut self, header: &Header) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
    }

    /// Bytes the guest has room for. A guest that claims to have passed on more than it got has none.
    pub(super) fn available(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_fwd_cnt))
    }

    /// `bytes` go to the guest.
    pub(super) fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// `bytes` come from the guest; false if there was no room for them.
    pub(super) fn receive(&mut self, bytes: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        let fits = bytes <= VSOCK_BUFFER_BYTES - held;
        if fits {
            self.received = self.received.wrapping_add(bytes);
        }
        fits
    }

    /// `bytes` of the guest's have reached the host program.
    pub(super) fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest should be told of room it does not know of: a quarter of the buffer, or any before it runs dry.
    pub(super) fn should_tell(&self) -> bool {
        let news = self.forwarded.wrapping_sub(self.told);
        let known = VSOCK_BUFFER_BYTES.saturating_sub(self.received.wrapping_sub(self.told));
        news > 0 && (news >= VSOCK_BUFFER_BYTES / 4 || known < VSOCK_BUFFER_BYTES / 4)
    }

    /// Puts our side into a header that goes to the guest.
    pub(super) fn stamp(&mut self, header: &mut Header) {
        self.told = self.forwarded;
        (header.buf_alloc, header.fwd_cnt) = (VSOCK_BUFFER_BYTES, self.forwarded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heard(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header { buf_alloc, fwd_cnt, ..Header::default() }
    }

    #[test]
    fn never_more_than_the_peer_has_room_for() {
        let mut credit = Credit { sent: u32::MAX - 4, peer_fwd_cnt: u32::MAX - 4, ..Credit::default() };
        credit.hear(&heard(10, u32::MAX - 4));
        assert_eq!(credit.available(), 10);
        credit.send(10);
        assert_eq!(credit.available(), 0);
        credit.hear(&heard(10, 1));
        assert_eq!(credit.available(), 6);
        credit.hear(&heard(4, 1));
        assert_eq!(credit.available(), 0, "the peer may shrink its buffer");
        credit.hear(&heard(10, 1000));
        assert_eq!(credit.available(), 0, "or lie");
    }

    #[test]
    fn a_sender_that_overruns_is_noticed() {
        let mut credit = Credit::default();
        assert!(credit.receive(VSOCK_BUFFER_BYTES));
        assert!(!credit.receive(1));
        credit.forward(1);
        assert!(credit.receive(1));
    }

    proptest! {
        /// A guest that sends all it may and waits for word otherwise is never left waiting for nothing.
        #[test]
        fn an_honest_sender_never_starves(steps in proptest::collection::vec((1u32..100_000, 1u32..100_000), 1..200)) {
            let mut credit = Credit::default();
            let (mut sent, mut known) = (0u32, 0u32);
            for (send, drain) in steps {
                let room = VSOCK_BUFFER_BYTES - (sent - known);
                let send = send.min(room);
                prop_assert!(credit.receive(send));
                sent += send;
                credit.forward(drain.min(credit.received - credit.forwarded));
                if credit.should_tell() {
                    let mut header = Header::default();
                    credit.stamp(&mut header);
                    known = header.fwd_cnt;
                }
                prop_assert!(VSOCK_BUFFER_BYTES > sent - known || credit.forwarded == known);
            }
        }
    }
}
