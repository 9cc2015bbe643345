//! What packets mean, and what is said to the guest.

use std::sync::Arc;

use super::connection::{Connection, Heard, Key};
use super::device::Vsock;
use super::host::{Got, Happening};
use super::packet::{HEADER_BYTES, HOST_CID, Header, NO_RECEIVE, NO_SEND, STREAM, op};
use super::port::{LinkId, Order};
use crate::devices::net::Transmit;
use crate::limits::{VSOCK_CONNECTIONS_MAX, VSOCK_PACKET_BYTES_MAX};

/// First of the host ports that programs are given; below are those that the guest may know by name.
const FIRST_PORT: u32 = 1 << 30;

impl Vsock {
    /// Takes a packet whose payload, `present` bytes, follows the header in the packet buffer.
    pub(super) fn hear(&mut self, header: &Header, present: usize) {
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            self.metrics.tx_dropped += 1;
            return;
        }
        let key = Key { guest: header.src_port, host: header.dst_port };
        let known = self.by_key.get(&key).copied().filter(|_| header.kind == STREAM);
        match (known, header.op) {
            (Some(link), _) => self.hear_of(link, header, present),
            (None, op::REQUEST) if header.kind == STREAM => self.open(key, header),
            // A refusal of a refusal would go on for ever.
            (None, op::RST) => {}
            (None, _) => self.refuse(header.refusal()),
        }
    }

    fn hear_of(&mut self, link: LinkId, header: &Header, present: usize) {
        let Some(connection) = self.connections.get_mut(&link) else { return };
        let key = connection.key;
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if header.op == op::RW && length > present {
            return self.abort(link);
        }
        match connection.hear(header) {
            Heard::Nothing => {}
            Heard::Accepted => {
                self.order(Order::Accept { link, port: key.host });
                self.host.start_reading(link);
            }
            Heard::Bytes => {
                let bytes = Arc::from(&self.packet[HEADER_BYTES..HEADER_BYTES + length]);
                self.metrics.tx_bytes += length as u64;
                self.order(Order::Write { link, bytes });
            }
            Heard::Ends { writes, reads } => {
                if writes {
                    self.order(Order::EndWrites { link });
                }
                if reads {
                    self.order(Order::EndReads { link });
                }
            }
            Heard::Finished => self.order(Order::Finish { link }),
            Heard::Gone => {
                self.remove(link);
                self.order(Order::Close { link });
            }
            Heard::Nonsense => return self.abort(link),
        }
        self.wake(link);
    }

    /// The guest asks for a port of the host's.
    fn open(&mut self, key: Key, request: &Header) {
        if self.connections.len() >= VSOCK_CONNECTIONS_MAX {
            return self.refuse(request.refusal());
        }
        let link = self.host.new_link();
        self.insert(link, Connection::from_guest(key, request));
        self.metrics.from_guest += 1;
        self.order(Order::Connect { link, port: key.host });
    }

    /// A program asks for a port of the guest's.
    fn ask(&mut self, link: LinkId, port: u32) {
        if self.connections.len() >= VSOCK_CONNECTIONS_MAX {
            return self.host.close(link);
        }
        let key = loop {
            let host = FIRST_PORT + self.next_port;
            self.next_port = (self.next_port + 1) % FIRST_PORT;
            let key = Key { guest: port, host };
            if !self.by_key.contains_key(&key) {
                break key;
            }
        };
        self.insert(link, Connection::from_host(key));
        self.metrics.from_host += 1;
        self.wake(link);
    }

    /// Ends a connection whose two sides do not understand each other.
    fn abort(&mut self, link: LinkId) {
        self.end(link);
        self.order(Order::Close { link });
    }

    /// Ends the guest's side of a connection.
    fn end(&mut self, link: LinkId) {
        if let Some(connection) = self.remove(link).filter(|c| !c.is_unheard()) {
            let header = self.header(connection.key, op::RST, 0);
            self.refuse(header);
        }
    }

    fn refuse(&mut self, reset: Header) {
        self.metrics.resets += 1;
        self.resets.push_back(reset);
    }

    fn insert(&mut self, link: LinkId, connection: Connection) {
        self.by_key.insert(connection.key, link);
        self.connections.insert(link, connection);
    }

    fn remove(&mut self, link: LinkId) -> Option<Connection> {
        let connection = self.connections.remove(&link)?;
        self.by_key.remove(&connection.key);
        // Not left for later: a guest that makes and drops connections without reading would grow the list.
        if connection.queued {
            self.ready.retain(|other| *other != link);
        }
        Some(connection)
    }

    fn wake(&mut self, link: LinkId) {
        if let Some(connection) = self.connections.get_mut(&link)
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.ready.push_back(link);
        }
    }

    /// Gives an order to the port, after those that it had no room for.
    pub(super) fn order(&mut self, order: Order) {
        self.stalled.push_back(order);
        self.offer_stalled();
    }

    pub(super) fn offer_stalled(&mut self) {
        while let Some(order) = self.stalled.front() {
            if self.host.offer(order) == Transmit::Full {
                self.metrics.tx_full += 1;
                return;
            }
            self.stalled.pop_front();
        }
    }

    /// Looks after the host's side; true if there may be more to do. Without a driver nobody is let in.
    pub(super) fn attend(&mut self, live: bool) -> bool {
        let more = self.host.attend();
        while let Some(happening) = self.host.happening() {
            match happening {
                Happening::Asks { link, port } if live => self.ask(link, port),
                Happening::Asks { link, .. } => self.host.close(link),
                Happening::Answer { link, reached } => self.answer(link, reached),
                Happening::Readable { link } => self.wake(link),
                Happening::Gone { link } => self.end(link),
                Happening::Passed { link, bytes } => self.tell(link, |c| c.passed(bytes)),
                Happening::HungUp { link } => self.tell(link, |c| c.program_ended(NO_SEND | NO_RECEIVE)),
            }
        }
        more
    }

    fn answer(&mut self, link: LinkId, reached: bool) {
        if !reached {
            return self.end(link);
        }
        if self.connections.contains_key(&link) {
            self.host.start_reading(link);
        }
        self.tell(link, Connection::reached);
    }

    fn tell(&mut self, link: LinkId, what: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.connections.get_mut(&link) {
            what(connection);
            self.wake(link);
        }
    }

    /// Whether there may be something to say to the guest.
    pub(super) fn has_word(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Puts the next packet for the guest, with at most `room` bytes of payload, into the packet buffer; its length.
    pub(super) fn next_packet(&mut self, room: usize) -> Option<usize> {
        if let Some(reset) = self.resets.pop_front() {
            self.packet[..HEADER_BYTES].copy_from_slice(&reset.encode());
            return Some(HEADER_BYTES);
        }
        // Those woken meanwhile stand behind; one round is enough.
        for _ in 0..self.ready.len() {
            let link = self.ready.pop_front()?;
            let Some(connection) = self.connections.get_mut(&link) else { continue };
            connection.queued = false;
            if let Some((op, flags, length)) = self.speak(link, room) {
                return Some(self.put(link, op, flags, length));
            }
        }
        None
    }

    /// What a connection says next: operation, flags, and bytes of payload that are in the packet buffer.
    fn speak(&mut self, link: LinkId, room: usize) -> Option<(u16, u32, usize)> {
        let connection = self.connections.get_mut(&link)?;
        if let Some((op, flags)) = connection.next_word() {
            return Some((op, flags, 0));
        }
        if !connection.is_receiving() || !self.host.is_readable(link) {
            return None;
        }
        let credit = usize::try_from(connection.credit.available()).unwrap_or(usize::MAX);
        if credit == 0 {
            return connection.ask().map(|(op, flags)| (op, flags, 0));
        }
        let length = room.min(credit).min(VSOCK_PACKET_BYTES_MAX);
        if length == 0 {
            // A buffer for a header only; a later one may be longer.
            self.wake(link);
            return None;
        }
        match self.host.read(link, &mut self.packet[HEADER_BYTES..HEADER_BYTES + length]) {
            Got::Nothing => None,
            Got::Bytes(length) => Some((op::RW, 0, length)),
            Got::End { both } => {
                connection.program_ended(if both { NO_SEND | NO_RECEIVE } else { NO_SEND });
                connection.next_word().map(|(op, flags)| (op, flags, 0))
            }
        }
    }

    /// Completes the packet in the buffer; its length. The connection is heard again: it may have more.
    fn put(&mut self, link: LinkId, op: u16, flags: u32, length: usize) -> usize {
        let bytes = u32::try_from(length).unwrap_or(0);
        let Some(key) = self.connections.get(&link).map(|c| c.key) else { return 0 };
        let mut header = Header { length: bytes, flags, ..self.header(key, op, flags) };
        if let Some(connection) = self.connections.get_mut(&link) {
            connection.credit.send(bytes);
            connection.credit.stamp(&mut header);
        }
        self.wake(link);
        self.metrics.rx_bytes += u64::from(bytes);
        self.packet[..HEADER_BYTES].copy_from_slice(&header.encode());
        HEADER_BYTES + length
    }

    fn header(&self, key: Key, op: u16, flags: u32) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: key.host,
            dst_port: key.guest,
            kind: STREAM,
            op,
            flags,
            ..Header::default()
        }
    }
}
