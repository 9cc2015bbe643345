//! The serving loop: one thread, one poll, all connections.

use crate::limits::{MAX_CONNECTIONS, READ_BYTES, STORE_PERCENT};
use crate::machine::Machine;
use crate::sys::{self, Interest};
use resp_kv::{Engine, Host, Session};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// A connection's socket, session, and input that the session had no room for yet.
struct Connection {
    stream: TcpStream,
    session: Session,
    pending: Vec<u8>,
    peer_done: bool,
}

/// Whether a connection goes on.
#[derive(PartialEq, Eq)]
enum Fate {
    Open,
    Closed,
}

/// Serves `listener` for ever. Returns on an error of the machine, not of a connection.
pub(crate) fn run(listener: TcpListener, machine: Machine) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let limit = usize::try_from(machine.memory().total_bytes / 100 * STORE_PERCENT).unwrap_or(usize::MAX);
    let mut engine = Engine::new(machine, limit);
    let mut connections: Vec<Connection> = Vec::new();
    let mut scratch = vec![0; READ_BYTES];
    loop {
        let wait = engine.host_mut().dirty_slice();
        let mut interests = interests(&listener, &connections);
        sys::poll(&mut interests, wait.map(Duration::from_nanos))?;
        let (accepting, ready) = interests.split_first().expect("the listener is always among the interests");
        let mut ready = ready.iter();
        connections.retain_mut(|connection| {
            let ready = ready.next().is_some_and(|interest| interest.ready);
            !ready || connection.turn(&mut engine, &mut scratch) == Fate::Open
        });
        if accepting.ready {
            accept(&listener, &mut connections)?;
        }
        engine.host_mut().end_if_asked()?;
    }
}

fn interests(listener: &TcpListener, connections: &[Connection]) -> Vec<Interest> {
    let listening = Interest { fd: listener.as_raw_fd(), read: true, write: false, ready: false };
    std::iter::once(listening).chain(connections.iter().map(Connection::interest)).collect()
}

fn accept(listener: &TcpListener, connections: &mut Vec<Connection>) -> io::Result<()> {
    loop {
        match listener.accept() {
            // Dropped, so closed at once: the peer learns that there are too many.
            Ok(_) if connections.len() >= MAX_CONNECTIONS => {}
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                connections.push(Connection {
                    stream,
                    session: Session::new(),
                    pending: Vec::new(),
                    peer_done: false,
                });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // The peer gave up before it was accepted: its loss, not ours.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Connection {
    fn interest(&self) -> Interest {
        Interest {
            fd: self.stream.as_raw_fd(),
            read: self.pending.is_empty() && !self.peer_done,
            write: !self.session.output().is_empty(),
            ready: false,
        }
    }

    /// Reads, executes and writes once each.
    fn turn(&mut self, engine: &mut Engine<Machine>, scratch: &mut [u8]) -> Fate {
        if self.pending.is_empty() && !self.peer_done && self.read(scratch).is_err() {
            return Fate::Closed;
        }
        loop {
            let taken = self.session.feed(&self.pending);
            self.pending.drain(..taken);
            let executed = self.session.advance(engine);
            let Ok(sent) = self.write() else { return Fate::Closed };
            if taken == 0 && !executed && sent == 0 {
                break;
            }
        }
        let drained = self.session.output().is_empty();
        if self.session.is_finished() || (self.peer_done && drained) { Fate::Closed } else { Fate::Open }
    }

    fn read(&mut self, scratch: &mut [u8]) -> io::Result<()> {
        match self.stream.read(scratch) {
            Ok(0) => self.peer_done = true,
            Ok(count) => self.pending.extend_from_slice(&scratch[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<usize> {
        if self.session.output().is_empty() {
            return Ok(0);
        }
        match self.stream.write(self.session.output()) {
            Ok(sent) => {
                self.session.mark_sent(sent);
                Ok(sent)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) => Err(error),
        }
    }
}
