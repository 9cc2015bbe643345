//! The host's side: the listener, one socket per connection, and one epoll set over them all, which is the device's only
//! source of events.
//!
//! Sockets are watched level-triggered, but only for what can be acted on: bytes that the guest has no room for yet must
//! not keep the device's thread awake.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::port::{Deed, LinkId, Order, Released, VsockLink};
use crate::devices::listener;
use crate::devices::net::Transmit;
use crate::irq;
use crate::limits::{
    VSOCK_CONNECTIONS_MAX, VSOCK_GREETING_BYTES_MAX, VSOCK_TURN_PACKETS, VSOCK_WAITING_BYTES_MAX,
};

/// What epoll's user data says besides a [`LinkId`].
const LISTENER: u64 = 0;
const BELL: u64 = 1;
const FIRST_LINK: u64 = 2;

/// Events per turn.
const BATCH: usize = 64;

/// What the device has to know.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Happening {
    /// A program asks for a port of the guest's.
    Asks { link: LinkId, port: u32 },
    /// The program that the guest asked for was reached, or not.
    Answer { link: LinkId, reached: bool },
    /// That many of the guest's bytes have reached the program.
    Passed { link: LinkId, bytes: u32 },
    /// There is something to [`Host::read`].
    Readable { link: LinkId },
    /// The program, which had ended its own direction before, does not read any more either.
    HungUp { link: LinkId },
    /// The socket is closed.
    Gone { link: LinkId },
}

/// Answer of [`Host::read`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Got {
    /// That many bytes.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// The program sends nothing more; `both`: nor does it read.
    End { both: bool },
}

/// All sockets.
pub(super) struct Host {
    attached: VsockLink,
    epoll: Epoll,
    released: Arc<Released>,
    /// Bytes of orders that have been offered and not carried out.
    waiting: usize,
    sockets: HashMap<LinkId, HostSocket>,
    next: u64,
    accepting: bool,
    happened: VecDeque<Happening>,
}

struct HostSocket {
    stream: UnixStream,
    /// The line a program begins with, as far as it has come; `None` once it is whole.
    greeting: Option<Vec<u8>>,
    outgoing: VecDeque<u8>,
    /// Bytes at the front of `outgoing` that are not the guest's.
    uncounted: usize,
    then: Then,
    /// Whether what comes is wanted at all, and whether some has come.
    reading: bool,
    readable: bool,
    ended: bool,
    hung_up: bool,
    watched: Option<EventSet>,
}

/// What follows when everything was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    More,
    EndWrites,
    Close,
}

impl Host {
    /// With nobody connected.
    ///
    /// # Errors
    /// When the kernel grants no poll set or eventfd.
    pub(super) fn new(attached: VsockLink) -> io::Result<Host> {
        let bell = irq::eventfd().map_err(io::Error::from)?;
        let epoll = Epoll::new()?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for (fd, data) in [(attached.listener.as_raw_fd(), LISTENER), (bell.as_raw_fd(), BELL)] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(edge, data))?;
        }
        Ok(Host {
            attached,
            epoll,
            released: Arc::new(Released::new(bell)),
            waiting: 0,
            sockets: HashMap::new(),
            next: FIRST_LINK,
            accepting: true,
            happened: VecDeque::new(),
        })
    }

    /// The descriptor that is ready when [`Host::attend`] has something to do.
    pub(super) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// A number for a connection.
    pub(super) fn new_link(&mut self) -> LinkId {
        self.next += 1;
        LinkId(self.next - 1)
    }

    /// Offers an order to the port.
    pub(super) fn offer(&mut self, order: &Order) -> Transmit {
        let deed = Deed { order: order.clone(), to: Arc::clone(&self.released) };
        let taken = self.attached.port.offer(deed);
        if taken == Transmit::Taken {
            self.waiting += order.weight();
        }
        taken
    }

    /// Whether more orders may be offered.
    pub(super) fn has_room(&self) -> bool {
        self.waiting < VSOCK_WAITING_BYTES_MAX
    }

    /// Does what is due, a bounded amount; true if there may be more. What happened is told by [`Host::happening`].
    pub(super) fn attend(&mut self) -> bool {
        let more_orders = self.carry_out();
        let mut events = [EpollEvent::default(); BATCH];
        // Interrupted: nothing is lost, the events are still there.
        let ready = self.epoll.wait(0, &mut events).unwrap_or(1);
        for event in &events[..ready] {
            match event.data() {
                LISTENER => self.accepting = true,
                // Its orders were, or will be, carried out by the call above.
                BELL => {}
                link => self.socket_ready(LinkId(link), event.event_set()),
            }
        }
        self.accept();
        more_orders || ready > 0 || self.accepting
    }

    /// The next thing that happened.
    pub(super) fn happening(&mut self) -> Option<Happening> {
        self.happened.pop_front()
    }

    /// Forgets everybody.
    pub(super) fn close_all(&mut self) {
        self.sockets.clear();
        self.happened.clear();
    }

    /// Closes a link at once.
    pub(super) fn close(&mut self, link: LinkId) {
        self.sockets.remove(&link);
    }

    /// Carries out released orders; true if some are left.
    fn carry_out(&mut self) -> bool {
        for _ in 0..VSOCK_TURN_PACKETS {
            let Some(order) = self.released.pop() else { return false };
            self.waiting -= order.weight();
            self.obey(order);
        }
        true
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Connect { link, port } => {
                let connected = listener::connect(&self.path_of(port));
                let reached = connected.is_ok();
                if let Ok(stream) = connected {
                    self.add(link, HostSocket::new(stream, None));
                }
                self.happened.push_back(Happening::Answer { link, reached });
            }
            Order::Accept { link, port } => {
                let line = format!("OK {port}\n");
                self.write(link, line.as_bytes(), line.len());
            }
            Order::Write { link, bytes } => self.write(link, &bytes, 0),
            Order::EndWrites { link } => self.then(link, Then::EndWrites),
            Order::Finish { link } => self.then(link, Then::Close),
            Order::EndReads { link } => {
                if let Some(socket) = self.sockets.get_mut(&link) {
                    socket.reading = false;
                    // Refused by a socket whose other end is gone, which is then noticed anyway.
                    drop(socket.stream.shutdown(Shutdown::Read));
                    self.watch(link);
                }
            }
            Order::Close { link } => self.close(link),
            Order::CloseBelow { link } => self.sockets.retain(|other, _| *other >= link),
        }
    }

    fn path_of(&self, port: u32) -> PathBuf {
        let mut path = self.attached.listener.path().as_os_str().to_owned();
        path.push(format!("_{port}"));
        path.into()
    }

    fn add(&mut self, link: LinkId, socket: HostSocket) {
        self.sockets.insert(link, socket);
        self.watch(link);
    }

    fn accept(&mut self) {
        for _ in 0..BATCH {
            if !self.accepting {
                return;
            }
            match self.attached.listener.accept() {
                // Dropped when there are too many: the program sees an end instead of an answer.
                Ok(stream) if self.sockets.len() < VSOCK_CONNECTIONS_MAX => {
                    let link = self.new_link();
                    self.add(link, HostSocket::new(stream, Some(Vec::new())));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody, or no descriptors left: those who wait are seen with the next one who comes.
                Err(_) => self.accepting = false,
            }
        }
    }

    fn socket_ready(&mut self, link: LinkId, events: EventSet) {
        let Some(socket) = self.sockets.get_mut(&link) else { return };
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            socket.hung_up = true;
            if socket.ended {
                self.happened.push_back(Happening::HungUp { link });
            }
        }
        if socket.greeting.is_some() {
            return self.greet(link);
        }
        if socket.reading && !socket.readable && !socket.ended {
            socket.readable = socket.hung_up || events.contains(EventSet::IN);
            if socket.readable {
                self.happened.push_back(Happening::Readable { link });
            }
        }
        self.flush(link);
    }

    /// Reads the line `CONNECT PORT`, byte by byte: what follows it is the guest's.
    fn greet(&mut self, link: LinkId) {
        let Some(socket) = self.sockets.get_mut(&link) else { return };
        let Some(line) = &mut socket.greeting else { return };
        let mut byte = [0];
        while line.len() < VSOCK_GREETING_BYTES_MAX {
            match socket.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break,
                Ok(1) => line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !socket.hung_up => return,
                _ => return self.close(link),
            }
        }
        let Some(port) = wanted_port(line) else { return self.close(link) };
        socket.greeting = None;
        self.happened.push_back(Happening::Asks { link, port });
        self.watch(link);
    }

    /// Begins to look for bytes for the guest.
    pub(super) fn start_reading(&mut self, link: LinkId) {
        if let Some(socket) = self.sockets.get_mut(&link) {
            socket.reading = true;
            socket.readable = socket.hung_up;
            if socket.readable {
                self.happened.push_back(Happening::Readable { link });
            }
            self.watch(link);
        }
    }

    /// Whether [`Host::read`] is worth a try.
    pub(super) fn is_readable(&self, link: LinkId) -> bool {
        self.sockets.get(&link).is_some_and(|socket| socket.readable)
    }

    /// Takes bytes for the guest.
    pub(super) fn read(&mut self, link: LinkId, into: &mut [u8]) -> Got {
        let Some(socket) = self.sockets.get_mut(&link) else { return Got::Nothing };
        let got = loop {
            match socket.stream.read(into) {
                Ok(0) => break Got::End { both: socket.hung_up },
                Ok(length) => return Got::Bytes(length),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Got::Nothing,
                Err(_) => break Got::End { both: true },
            }
        };
        socket.readable = false;
        socket.ended = got != Got::Nothing;
        self.watch(link);
        got
    }

    fn write(&mut self, link: LinkId, bytes: &[u8], uncounted: usize) {
        if let Some(socket) = self.sockets.get_mut(&link) {
            socket.outgoing.extend(bytes);
            socket.uncounted += uncounted;
            self.flush(link);
        }
    }

    fn then(&mut self, link: LinkId, then: Then) {
        if let Some(socket) = self.sockets.get_mut(&link) {
            socket.then = then;
            self.flush(link);
        }
    }

    /// Writes what can be written.
    fn flush(&mut self, link: LinkId) {
        let Some(socket) = self.sockets.get_mut(&link) else { return };
        let written = socket.flush();
        if let Ok(bytes @ 1..) = written {
            self.happened.push_back(Happening::Passed { link, bytes });
        }
        let done = socket.outgoing.is_empty();
        if written.is_err() || done && socket.then == Then::Close {
            self.close(link);
            self.happened.push_back(Happening::Gone { link });
            return;
        }
        if done && socket.then == Then::EndWrites {
            socket.then = Then::More;
            drop(socket.stream.shutdown(Shutdown::Write));
        }
        self.watch(link);
    }

    /// Watches a socket for what can be acted on.
    fn watch(&mut self, link: LinkId) {
        let Some(socket) = self.sockets.get_mut(&link) else { return };
        let wanted = socket.wanted();
        if wanted == socket.watched {
            return;
        }
        let operation = match (socket.watched, wanted) {
            (None, _) => ControlOperation::Add,
            (_, None) => ControlOperation::Delete,
            _ => ControlOperation::Modify,
        };
        let event = EpollEvent::new(wanted.unwrap_or(EventSet::empty()), link.0);
        match self.epoll.ctl(operation, socket.stream.as_raw_fd(), event) {
            Ok(()) => socket.watched = wanted,
            Err(error) => {
                // Out of kernel memory or watches: a connection nobody looks after must not stay.
                tracing::warn!(%error, "a vsock connection is given up");
                self.close(link);
                self.happened.push_back(Happening::Gone { link });
            }
        }
    }
}

impl HostSocket {
    fn new(stream: UnixStream, greeting: Option<Vec<u8>>) -> HostSocket {
        HostSocket {
            stream,
            greeting,
            outgoing: VecDeque::new(),
            uncounted: 0,
            then: Then::More,
            reading: false,
            readable: false,
            ended: false,
            hung_up: false,
            watched: None,
        }
    }

    /// Events of use now. A socket that has hung up would report nothing else for ever.
    fn wanted(&self) -> Option<EventSet> {
        if self.hung_up {
            return None;
        }
        let input = self.greeting.is_some() || self.reading && !self.readable && !self.ended;
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, input);
        wanted.set(EventSet::OUT, !self.outgoing.is_empty());
        Some(wanted)
    }

    /// Writes until the kernel has no more room; bytes of the guest's that went.
    fn flush(&mut self) -> io::Result<u32> {
        let mut counted = 0;
        while !self.outgoing.is_empty() {
            match self.stream.write(self.outgoing.as_slices().0) {
                Ok(written) => {
                    self.outgoing.drain(..written);
                    let greeting = written.min(self.uncounted);
                    self.uncounted -= greeting;
                    counted += u32::try_from(written - greeting).unwrap_or(u32::MAX);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(counted)
    }
}

/// The port in a line `CONNECT PORT`.
fn wanted_port(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?;
    text.strip_prefix("CONNECT ")?.trim_end_matches('\r').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_line_names_a_port() {
        assert_eq!(wanted_port(b"CONNECT 52"), Some(52));
        assert_eq!(wanted_port(b"CONNECT 4294967295\r"), Some(u32::MAX));
        for wrong in
            [&b"CONNECT"[..], b"CONNECT ", b"CONNECT 4294967296", b"connect 5", b"CONNECT -1", b"\xff\xfe"]
        {
            assert_eq!(wanted_port(wrong), None, "{wrong:?}");
        }
    }
}
