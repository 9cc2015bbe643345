//! Clients of the guest's Redis, outside its host.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use super::bench::ADDRESS;

const PORT: u16 = 6379;
/// TCP retries for longer than any pause here.
const PATIENCE: Duration = Duration::from_secs(240);

/// One attempt to reach a guest that may not be up.
const ATTEMPT: Duration = Duration::from_secs(5);
/// A client is looked at this often.
const LOOK: Duration = Duration::from_millis(20);

/// One connection.
pub(crate) struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    pub(crate) fn connect() -> Redis {
        let stream = TcpStream::connect((ADDRESS, PORT)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Redis { stream: BufReader::new(stream) }
    }

    /// Whether the guest's Redis answers yet.
    pub(crate) fn answers() -> bool {
        let address = SocketAddr::from((ADDRESS, PORT));
        let Ok(mut stream) = TcpStream::connect_timeout(&address, ATTEMPT) else { return false };
        let mut reply = [0; 7];
        let asked = stream.set_read_timeout(Some(ATTEMPT)).and_then(|()| stream.write_all(b"PING\r\n"));
        asked.and_then(|()| stream.read_exact(&mut reply)).is_ok_and(|()| &reply == b"+PONG\r\n")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n"), "the connection ended: {line:?}");
        line.trim_end().to_owned()
    }

    fn send(&mut self, words: &[&[u8]]) {
        let mut command = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            command.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            command.extend_from_slice(word);
            command.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&command).unwrap();
    }

    pub(crate) fn ping(&mut self) {
        self.send(&[b"PING"]);
        assert_eq!(self.line(), "+PONG");
    }

    pub(crate) fn set(&mut self, key: &str, value: &[u8]) {
        self.send(&[b"SET", key.as_bytes(), value]);
        assert_eq!(self.line(), "+OK");
    }

    pub(crate) fn get(&mut self, key: &str) -> Vec<u8> {
        self.send(&[b"GET", key.as_bytes()]);
        let length: usize = self.line().trim_start_matches('$').parse().unwrap();
        let mut value = vec![0; length + 2];
        self.stream.read_exact(&mut value).unwrap();
        value.truncate(length);
        value
    }

    fn increment(&mut self, key: &str) -> u64 {
        self.send(&[b"INCR", key.as_bytes()]);
        self.line().trim_start_matches(':').parse().unwrap()
    }
}

/// A client that counts in the guest, and accepts no count lost, repeated or on another connection.
pub(crate) struct Counting {
    stop: AtomicBool,
    count: AtomicU64,
}

impl Counting {
    pub(crate) fn new() -> Counting {
        Counting { stop: AtomicBool::new(false), count: AtomicU64::new(0) }
    }

    /// Counts while `act` does what it does, which may wait for the client to get further.
    pub(crate) fn during(&self, act: impl FnOnce(&ScopedJoinHandle<'_, ()>)) {
        thread::scope(|scope| {
            let client = self.start(scope);
            // Also if `act` panics: the scope waits for the client.
            let counting = Stop(&self.stop);
            act(&client);
            drop(counting);
            client.join().unwrap();
        });
    }

    fn start<'s, 'e>(&'s self, scope: &'s thread::Scope<'s, 'e>) -> ScopedJoinHandle<'s, ()> {
        scope.spawn(move || {
            let mut redis = Redis::connect();
            while !self.stop.load(Ordering::Relaxed) {
                let next = self.count.load(Ordering::Relaxed) + 1;
                assert_eq!(redis.increment("count"), next);
                self.count.store(next, Ordering::Relaxed);
            }
        })
    }

    pub(crate) fn so_far(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until it has counted this much further, or has ended.
    pub(crate) fn wait_for(&self, further: u64, client: &ScopedJoinHandle<'_, ()>) {
        let goal = self.so_far() + further;
        while self.so_far() < goal && !client.is_finished() {
            thread::park_timeout(LOOK);
        }
    }
}

/// Ends the counting when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
