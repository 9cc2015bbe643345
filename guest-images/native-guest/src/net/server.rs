//! RESP over TCP: a pool of listening sockets, each with its session.

use super::announce::gratuitous_arp;
use super::device::NetDevice;
use crate::machine::Machine;
use alloc::vec;
use alloc::vec::Vec;
use native_guest::options::Ipv4Net;
use resp_kv::{Engine, Session};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};

/// The port of Redis.
const PORT: u16 = 6379;

/// Simultaneous connections. smoltcp has no backlog: every socket listens until a connection takes it.
const CONNECTIONS: usize = 128;

/// Receive and transmit buffer of a connection, in bytes each: two replies of the usual size of a pipeline.
const BUFFER_BYTES: usize = 32 << 10;

/// Frames taken in before connections are served: bounds the time a flood can keep everything else waiting.
const FRAMES_PER_TURN: usize = 128;

/// Sockets that must be left listening before those in TIME-WAIT are taken back early.
const MIN_LISTENING: usize = 16;

struct Connection {
    socket: SocketHandle,
    session: Session,
}

/// Everything from frames to replies.
pub(crate) struct Server {
    device: NetDevice,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1000).unwrap_or(i64::MAX))
}

impl Server {
    /// Brings the network up at `net`, announces it, and listens.
    pub(crate) fn new(
        mut device: NetDevice,
        net: Ipv4Net,
        gateway: Option<Ipv4Address>,
        seed: u64,
        now_ns: u64,
    ) -> Self {
        let mut config = Config::new(EthernetAddress(device.mac()).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, instant(now_ns));
        interface.update_ip_addrs(|addresses| {
            // The list has room for two.
            let _ = addresses.push(IpCidr::new(net.address.into(), net.prefix));
        });
        if let Some(gateway) = gateway {
            // The table has room for two.
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
        device.send_raw(&gratuitous_arp(device.mac(), net.address));
        device.flush();
        let mut sockets = SocketSet::new(Vec::new());
        let connections = (0..CONNECTIONS)
            .map(|_| Connection { socket: sockets.add(new_socket()), session: Session::new() })
            .collect();
        Self { device, interface, sockets, connections }
    }

    /// One turn: frames in, connections served, frames out. Whether anything happened.
    pub(crate) fn turn(&mut self, engine: &mut Engine<Machine>, now_ns: u64) -> bool {
        let now = instant(now_ns);
        self.interface.poll_maintenance(now);
        let mut received = false;
        for _ in 0..FRAMES_PER_TURN {
            match self.interface.poll_ingress_single(now, &mut self.device, &mut self.sockets) {
                PollIngressSingleResult::None => break,
                _ => received = true,
            }
        }
        let served = self.serve(engine);
        let mut sent = false;
        while self.interface.poll_egress(now, &mut self.device, &mut self.sockets)
            == PollResult::SocketStateChanged
        {
            sent = true;
        }
        self.device.flush();
        received || served || sent
    }

    /// Moves bytes between sockets and sessions. Whether any moved.
    fn serve(&mut self, engine: &mut Engine<Machine>) -> bool {
        let mut moved = false;
        let mut listening = 0;
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.socket);
            match socket.state() {
                State::Listen => listening += 1,
                State::Closed => listen_again(socket, &mut connection.session),
                _ => moved |= connection_turn(socket, &mut connection.session, engine),
            }
        }
        if listening < MIN_LISTENING {
            self.reuse_time_wait();
        }
        moved
    }

    /// Takes sockets in TIME-WAIT back before their time, rather than refuse connections.
    fn reuse_time_wait(&mut self) {
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.socket);
            if socket.state() == State::TimeWait {
                listen_again(socket, &mut connection.session);
            }
        }
    }

    /// When the stack wants its next turn at the latest, in nanoseconds; `None` if only a frame can bring one.
    pub(crate) fn next_turn_ns(&mut self, now_ns: u64) -> Option<u64> {
        let at = self.interface.poll_at(instant(now_ns), &self.sockets)?;
        // Rounded up: a turn a fraction too early would find nothing to do and not be the last.
        Some(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000).saturating_add(999))
    }

    /// The network card, for the main loop to sleep on.
    pub(crate) fn device(&mut self) -> &mut NetDevice {
        &mut self.device
    }
}

fn new_socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    listen_again(&mut socket, &mut Session::new());
    socket
}

fn listen_again(socket: &mut Socket<'_>, session: &mut Session) {
    *session = Session::new();
    // Fails only for port 0 or an open socket, and this is neither.
    let _ = socket.listen(PORT);
}

/// One connection's turn: take in, execute, give out, until nothing moves. Whether anything moved.
fn connection_turn(socket: &mut Socket<'_>, session: &mut Session, engine: &mut Engine<Machine>) -> bool {
    let mut moved = false;
    loop {
        let mut progress = session.advance(engine);
        if socket.can_recv() {
            progress |= socket.recv(|bytes| (session.feed(bytes), ())).is_ok() && session.advance(engine);
        }
        while !session.output().is_empty() && socket.can_send() {
            let Ok(sent) = socket.send_slice(session.output()) else { break };
            session.mark_sent(sent);
            progress |= sent > 0;
        }
        if !progress {
            break;
        }
        moved = true;
    }
    let peer_done = socket.state() == State::CloseWait && !socket.can_recv() && session.output().is_empty();
    if session.is_finished() || peer_done {
        socket.close();
    }
    moved
}
