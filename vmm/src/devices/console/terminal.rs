//! The host's end of a port: a listener, at most one client, and output that no client has seen yet.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::devices::listener::{HostListener, SocketError};
use crate::limits::{CONSOLE_RING_BYTES, CONSOLE_TURN_CLIENTS};

/// What a program hears that comes while another is there.
const BUSY: &[u8] = b"this port has a client already; it takes one at a time\n";

/// A terminal. Output is shown from any thread; everything else is the device thread's.
#[derive(Debug)]
pub struct Terminal {
    listener: HostListener,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    client: Option<Client>,
    /// Clients so far.
    count: u64,
    unseen: VecDeque<u8>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    readable: bool,
    /// It has closed its end; what it said before may still be unread.
    hung_up: bool,
}

impl Terminal {
    /// Listens at `path`.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Terminal, SocketError> {
        Ok(Terminal { listener: HostListener::bind(path, 0)?, inner: Mutex::default() })
    }

    /// Shows output to the client, or keeps the newest part of it for the next one. Never waits.
    pub fn show(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.unseen.extend(bytes);
        inner.flush();
        let excess = inner.unseen.len().saturating_sub(CONSOLE_RING_BYTES);
        inner.unseen.drain(..excess);
    }

    /// The client there is, by its number.
    pub(super) fn client(&self) -> Option<u64> {
        let inner = self.lock();
        inner.client.as_ref().map(|_| inner.count)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Takes in who waits, up to a bound, to be watched in `epoll` under `data`; true if more may wait.
    pub(super) fn accept(&self, epoll: &Epoll, data: u64) -> bool {
        for _ in 0..CONSOLE_TURN_CLIENTS {
            match self.listener.accept() {
                Ok(stream) => self.lock().welcome(stream, epoll, data),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// The client's socket has changed.
    pub(super) fn client_ready(&self, events: EventSet) {
        let mut inner = self.lock();
        inner.flush();
        let Some(client) = &mut inner.client else { return };
        client.hung_up |= events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        client.readable |= client.hung_up || events.contains(EventSet::IN);
    }

    /// Takes input for the guest; 0 when there is none.
    pub(super) fn read(&self, into: &mut [u8]) -> usize {
        let mut inner = self.lock();
        let Some(client) = &mut inner.client else { return 0 };
        while client.readable {
            match client.stream.read(into) {
                // It may still listen, unless it has hung up.
                Ok(0) => client.readable = false,
                Ok(length) => return length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    client.readable = false;
                    client.hung_up |= error.kind() != ErrorKind::WouldBlock;
                }
            }
        }
        if client.hung_up {
            inner.client = None;
        }
        0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Bytes may be shown twice after a panic elsewhere, no more.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn welcome(&mut self, mut stream: UnixStream, epoll: &Epoll, data: u64) {
        // Unread words of one who has left do not keep the next one out.
        if self.client.as_ref().is_some_and(|client| !client.hung_up) {
            drop(stream.write(BUSY));
            return;
        }
        // Edge-triggered: words the guest has no room for, and a client that is slow, must not keep the thread awake.
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        if let Err(error) =
            epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(events, data))
        {
            tracing::warn!(%error, "a console client cannot be watched and is sent away");
            return;
        }
        self.client = Some(Client { stream, readable: true, hung_up: false });
        self.count += 1;
        self.flush();
    }

    /// Writes to the client what it takes.
    fn flush(&mut self) {
        let Some(client) = &mut self.client else { return };
        while !self.unseen.is_empty() {
            match client.stream.write(self.unseen.as_slices().0) {
                Ok(written) => drop(self.unseen.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    client.hung_up |= error.kind() != ErrorKind::WouldBlock;
                    client.readable |= client.hung_up;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meet(terminal: &Terminal, epoll: &Epoll) -> UnixStream {
        let client = UnixStream::connect(terminal.listener.path()).unwrap();
        assert!(!terminal.accept(epoll, 0));
        client
    }

    fn read(client: &mut UnixStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        client.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn output_without_a_client_waits_and_the_oldest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let terminal = Terminal::bind(&folder.path().join("t")).unwrap();
        let epoll = Epoll::new().unwrap();
        terminal.show(b"forgotten");
        terminal.show(&[b'x'; CONSOLE_RING_BYTES - 3]);
        terminal.show(b"end");
        let mut client = meet(&terminal, &epoll);
        let kept = read(&mut client, CONSOLE_RING_BYTES);
        assert_eq!((kept[0], &kept[CONSOLE_RING_BYTES - 4..]), (b'x', &b"xend"[..]));
        terminal.show(b"live");
        assert_eq!(read(&mut client, 4), b"live");
    }

    #[test]
    fn a_slow_client_gets_the_rest_when_it_reads() {
        let folder = tempfile::tempdir().unwrap();
        let terminal = Terminal::bind(&folder.path().join("t")).unwrap();
        let epoll = Epoll::new().unwrap();
        let mut client = meet(&terminal, &epoll);
        let mut shown = 0;
        while terminal.lock().unseen.is_empty() {
            terminal.show(&[7; 1000]);
            shown += 1000;
        }
        let mut got = 0;
        while got < shown {
            got += read(&mut client, 1000).len();
            terminal.client_ready(EventSet::OUT);
        }
        assert!(terminal.lock().unseen.is_empty());
    }

    #[test]
    fn a_second_client_is_told_so_and_one_that_left_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let terminal = Terminal::bind(&folder.path().join("t")).unwrap();
        let epoll = Epoll::new().unwrap();
        let mut first = meet(&terminal, &epoll);
        let mut second = meet(&terminal, &epoll);
        assert_eq!(read(&mut second, BUSY.len()), BUSY);
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
        first.write_all(b"unread").unwrap();
        drop(first);
        terminal.client_ready(EventSet::IN | EventSet::HANG_UP);
        let mut third = meet(&terminal, &epoll);
        assert_eq!(terminal.client(), Some(2));
        terminal.show(b"hello");
        assert_eq!(read(&mut third, 5), b"hello");
    }
}
