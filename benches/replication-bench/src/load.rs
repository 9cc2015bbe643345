//! Clients of the guest's key-value store, all on one thread: SET and GET in turn, of random keys.
//!
//! *Closed*: every connection keeps as many requests under way as its pipeline holds. *Open*: requests begin at moments that are
//! fixed beforehand, whether the guest keeps up or not, and their latency counts from there.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bench_vms::Stop;
use bench_vms::resp::timespec;
use rustix::event::{PollFd, PollFlags, poll};

use crate::limits::{KEYS, READ_BYTES, REPLY_PATIENCE};

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    /// So many connections with so many requests under way each.
    Closed { connections: usize, pipeline: usize },
    /// So many connections, and requests a second over all of them.
    Open { connections: usize, rate: f64 },
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Requests answered a second.
    pub(crate) per_second: f64,
    /// Of each request, microseconds.
    pub(crate) latencies_us: Vec<f64>,
}

const DIGITS: usize = 32;
const SET: &[u8] = b"*3\r\n$3\r\nSET\r\n$10\r\nkey:000000\r\n$32\r\n00000000000000000000000000000000\r\n";
const SET_KEY: usize = 22;
const SET_VALUE: usize = 35;
const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n$10\r\nkey:000000\r\n";
const GET_KEY: usize = 22;
const SET_REPLY: usize = b"+OK\r\n".len();
const GET_REPLY: usize = b"$32\r\n".len() + DIGITS + 2;

/// Connections that go on from one turn to the next.
#[derive(Debug)]
pub(crate) struct Load {
    connections: Vec<Connection>,
    /// Requests made.
    made: u64,
    random: u64,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    /// Requests under way, in order: when their latency begins, and what their reply begins with and how long it is.
    waiting: VecDeque<(Instant, u8, usize)>,
    /// Bytes of the oldest one's reply that have come.
    come: usize,
}

impl Load {
    /// Writes every key once over a connection of its own.
    pub(crate) fn prepare(server: SocketAddr) -> Result<Self> {
        let mut load = Self { connections: Vec::new(), made: 0, random: 0x9e37_79b9_7f4a_7c15 };
        load.connect(server, 1)?;
        for key in 0..KEYS {
            load.connections[0].request(set(key, key), b'+', SET_REPLY, Instant::now());
            if key % 64 == 63 || key + 1 == KEYS {
                while !load.connections[0].waiting.is_empty() {
                    load.turn(Duration::from_secs(1), &mut Vec::new())?;
                }
            }
        }
        Ok(load)
    }

    fn connect(&mut self, server: SocketAddr, connections: usize) -> Result<()> {
        while self.connections.len() < connections {
            let stream = TcpStream::connect_timeout(&server, REPLY_PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            self.connections.push(Connection { stream, out: Vec::new(), waiting: VecDeque::new(), come: 0 });
        }
        Ok(())
    }

    /// Works for some time; waits for the last replies, which count.
    pub(crate) fn run(
        &mut self,
        server: SocketAddr,
        shape: Shape,
        time: Duration,
        stop: &Stop,
    ) -> Result<Outcome> {
        let (Shape::Closed { connections, .. } | Shape::Open { connections, .. }) = shape;
        self.connect(server, connections)?;
        let (begun, mut latencies_us, mut begun_requests) = (Instant::now(), Vec::new(), 0u32);
        while begun.elapsed() < time {
            stop.check()?;
            let wait = match shape {
                Shape::Closed { connections, pipeline } => {
                    self.fill(connections, pipeline);
                    Duration::from_millis(100)
                }
                Shape::Open { connections, rate } => {
                    begun_requests = self.fall_due(connections, rate, begun, begun_requests);
                    let next = begun + Duration::from_secs_f64(f64::from(begun_requests) / rate);
                    next.saturating_duration_since(Instant::now())
                }
            };
            self.turn(wait, &mut latencies_us)?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let answered = latencies_us.len() as f64;
        while self.connections.iter().any(|c| !c.waiting.is_empty()) {
            stop.check()?;
            self.turn(Duration::from_millis(100), &mut latencies_us)?;
        }
        Ok(Outcome { per_second: answered / seconds, latencies_us })
    }

    fn fill(&mut self, connections: usize, pipeline: usize) {
        for n in 0..connections {
            while self.connections[n].waiting.len() < pipeline {
                self.request(n, Instant::now());
            }
        }
    }

    /// Begins what is due; how many have been begun in all.
    fn fall_due(&mut self, connections: usize, rate: f64, begun: Instant, mut count: u32) -> u32 {
        loop {
            let due = begun + Duration::from_secs_f64(f64::from(count) / rate);
            if due > Instant::now() {
                return count;
            }
            self.request(count as usize % connections, due);
            count += 1;
        }
    }

    fn request(&mut self, connection: usize, since: Instant) {
        // Xorshift: any spread over the keys will do.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let key = self.random % KEYS;
        self.made += 1;
        let connection = &mut self.connections[connection];
        if self.made.is_multiple_of(2) {
            connection.request(set(key, self.made), b'+', SET_REPLY, since);
        } else {
            connection.request(get(key), b'$', GET_REPLY, since);
        }
    }

    /// Sends, waits for something to come, and takes it.
    fn turn(&mut self, wait: Duration, latencies_us: &mut Vec<f64>) -> Result<()> {
        self.connections.iter_mut().try_for_each(Connection::send)?;
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(self.connections.len());
        for connection in &self.connections {
            let out = if connection.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::new(&connection.stream, PollFlags::IN | out));
        }
        match poll(&mut fds, Some(&timespec(wait))) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            ready => ready?,
        };
        let ready: Vec<bool> =
            fds.iter().map(|fd| fd.revents().intersects(PollFlags::IN | PollFlags::HUP)).collect();
        drop(fds);
        for (connection, _) in self.connections.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            connection.receive(latencies_us)?;
        }
        let silent = self
            .connections
            .iter()
            .filter_map(|c| c.waiting.front())
            .any(|(since, ..)| since.elapsed() > REPLY_PATIENCE);
        ensure!(!silent, "the guest left a request unanswered for {} s", REPLY_PATIENCE.as_secs());
        Ok(())
    }
}

impl Connection {
    fn request(&mut self, request: Vec<u8>, kind: u8, reply: usize, since: Instant) {
        self.out.extend(request);
        self.waiting.push_back((since, kind, reply));
    }

    fn send(&mut self) -> Result<()> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, latencies_us: &mut Vec<f64>) -> Result<()> {
        let mut buffer = [0; READ_BYTES];
        let n = match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the guest closed a connection"),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let (mut come, now) = (&buffer[..n], Instant::now());
        while let Some(first) = come.first() {
            let Some((since, kind, length)) = self.waiting.front().copied() else {
                bail!("a reply to nothing")
            };
            if self.come == 0 && *first != kind {
                bail!("the guest answered {:?}", String::from_utf8_lossy(&come[..come.len().min(80)]));
            }
            let part = come.len().min(length - self.come);
            come = &come[part..];
            self.come += part;
            if self.come == length {
                self.come = 0;
                self.waiting.pop_front();
                latencies_us.push(now.saturating_duration_since(since).as_secs_f64() * 1e6);
            }
        }
        Ok(())
    }
}

fn set(key: u64, value: u64) -> Vec<u8> {
    let mut request = SET.to_vec();
    put_digits(&mut request[SET_KEY..SET_KEY + 6], key);
    put_digits(&mut request[SET_VALUE..SET_VALUE + DIGITS], value);
    request
}

fn get(key: u64) -> Vec<u8> {
    let mut request = GET.to_vec();
    put_digits(&mut request[GET_KEY..GET_KEY + 6], key);
    request
}

fn put_digits(into: &mut [u8], mut number: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).expect("a digit");
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn requests_have_their_digits_in_place() {
        let text = String::from_utf8(set(1234, 56)).unwrap();
        assert_eq!(text, format!("*3\r\n$3\r\nSET\r\n$10\r\nkey:001234\r\n$32\r\n{:032}\r\n", 56));
        assert_eq!(String::from_utf8(get(7)).unwrap(), "*2\r\n$3\r\nGET\r\n$10\r\nkey:000007\r\n");
    }

    /// Answers every request of the two kinds, in pieces.
    fn serve(listener: &TcpListener) {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut rest) = ([0; 999], Vec::new());
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            rest.extend_from_slice(&buffer[..n]);
            loop {
                let (length, reply) = match rest.get(1) {
                    Some(b'3') => (SET.len(), b"+OK\r\n".to_vec()),
                    Some(b'2') => (GET.len(), format!("$32\r\n{:032}\r\n", 1).into_bytes()),
                    _ => break,
                };
                if rest.len() < length {
                    break;
                }
                rest.drain(..length);
                let (a, b) = reply.split_at(3);
                if stream.write_all(a).and_then(|()| stream.write_all(b)).is_err() {
                    return;
                }
            }
        }
    }

    #[test]
    fn every_request_is_answered_and_timed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || serve(&listener));
        let mut load = Load::prepare(server).unwrap();
        let time = Duration::from_millis(50);
        let closed = Shape::Closed { connections: 1, pipeline: 4 };
        assert!(load.run(server, closed, time, &Stop::default()).unwrap().per_second > 0.0);
        let open = Shape::Open { connections: 1, rate: 1000.0 };
        let outcome = load.run(server, open, time, &Stop::default()).unwrap();
        assert!(outcome.latencies_us.len() >= 40, "{}", outcome.latencies_us.len());
        drop(load);
        serving.join().unwrap();
    }
}
