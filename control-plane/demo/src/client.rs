//! The checking client: several connections with one request outstanding each, every reply compared with the only one that
//! is right, every acknowledged write remembered.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mycelium_ram::clock;
use resp_kv::StoreDigest;

use crate::resp::{Connection, Reply};

/// Keys each connection writes in turn.
const KEYS: u64 = 64;

/// What all connections share with the story.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    stop: AtomicBool,
    /// Requests acknowledged.
    pub(crate) acked: AtomicU64,
    /// Connections that wait for a reply now.
    pub(crate) outstanding: AtomicU64,
    /// Connections that work.
    pub(crate) alive: AtomicU64,
}

/// What one connection has seen.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Every acknowledgement: when the request was sent and when the reply came, on CLOCK_BOOTTIME, nanoseconds.
    pub(crate) acks: Vec<(u64, u64)>,
    /// Replies that show a write done twice.
    pub(crate) repeated: u64,
    /// Replies or final reads that show a write gone.
    pub(crate) lost: u64,
    /// Why the connection ended before its time.
    pub(crate) broken: Option<String>,
    /// First few wrong replies, for people.
    pub(crate) complaints: Vec<String>,
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    count: i64,
}

/// The running client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) shared: Arc<Shared>,
    workers: Vec<JoinHandle<Log>>,
    server: SocketAddr,
    patience: Duration,
}

/// What the client found in the end.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) logs: Vec<Log>,
    pub(crate) digest_match: bool,
    pub(crate) digests: (String, String),
}

impl Client {
    /// Starts that many connections. `patience` bounds how long one reply may take.
    pub(crate) fn start(server: SocketAddr, connections: usize, patience: Duration, think: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let worker = |n: usize| {
            let shared = shared.clone();
            std::thread::spawn(move || Worker::new(n, shared, think).run(server, patience))
        };
        let workers = (0..connections).map(worker).collect();
        Self { shared, workers, server, patience }
    }

    /// Lets the requests in flight finish, has every connection read its keys back, and compares the digest of the
    /// store with that of the acknowledged writes.
    pub(crate) fn finish(self) -> io::Result<Findings> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let logs: Vec<Log> = self.workers.into_iter().map(|w| w.join().unwrap_or_default()).collect();
        let mut own = StoreDigest::new();
        for (key, value) in logs.iter().flat_map(Log::final_entries) {
            own.insert(&key, &value);
        }
        let theirs = match Connection::open(self.server, self.patience)?.ask(&[b"DIGEST"])? {
            Reply::Bulk(Some(hex)) => String::from_utf8_lossy(&hex).into_owned(),
            Reply::Simple(hex) => hex,
            other => format!("{other:?}"),
        };
        let own = own.to_string();
        Ok(Findings { digest_match: own == theirs, digests: (own, theirs), logs })
    }
}

impl Log {
    fn final_entries(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        self.entries.iter().map(|(k, v)| (k.clone(), v.clone()))
    }

    fn complain(&mut self, what: String) {
        if self.complaints.len() < 4 {
            self.complaints.push(what);
        }
    }
}

struct Worker {
    n: usize,
    shared: Arc<Shared>,
    think: Duration,
    log: Log,
}

impl Worker {
    fn new(n: usize, shared: Arc<Shared>, think: Duration) -> Self {
        Self { n, shared, think, log: Log::default() }
    }

    fn run(mut self, server: SocketAddr, patience: Duration) -> Log {
        let result = Connection::open(server, patience).and_then(|mut c| {
            self.shared.alive.fetch_add(1, Ordering::Relaxed);
            self.work(&mut c).and_then(|()| self.read_back(&mut c))
        });
        if let Err(error) = result {
            self.shared.alive.fetch_sub(1, Ordering::Relaxed);
            self.log.broken = Some(error.to_string());
        }
        self.log
    }

    fn work(&mut self, connection: &mut Connection) -> io::Result<()> {
        let mut turn = 0u64;
        while !self.shared.stop.load(Ordering::Relaxed) {
            if turn.is_multiple_of(2) {
                self.set(connection, turn)?;
            } else {
                self.incr(connection)?;
            }
            turn += 1;
            if !self.think.is_zero() {
                std::thread::sleep(self.think);
            }
        }
        Ok(())
    }

    fn set(&mut self, connection: &mut Connection, turn: u64) -> io::Result<()> {
        let key = format!("w{}:k{}", self.n, turn / 2 % KEYS).into_bytes();
        let value = format!("w{}:value-{turn}", self.n).into_bytes();
        match self.timed(connection, &[b"SET", &key, &value])? {
            Reply::Simple(ok) if ok == "OK" => drop(self.log.entries.insert(key, value)),
            other => self.log.complain(format!("SET answered {other:?}")),
        }
        Ok(())
    }

    /// The counter belongs to this connection alone: each reply must be the last one plus one.
    fn incr(&mut self, connection: &mut Connection) -> io::Result<()> {
        let key = format!("w{}:count", self.n).into_bytes();
        let want = self.log.count + 1;
        match self.timed(connection, &[b"INCR", &key])? {
            Reply::Int(got) => {
                if got > want {
                    self.log.repeated += (got - want).unsigned_abs();
                    self.log.complain(format!("INCR answered {got} instead of {want}"));
                } else if got < want {
                    self.log.lost += (want - got).unsigned_abs();
                    self.log.complain(format!("INCR answered {got} instead of {want}"));
                }
                self.log.count = got;
                self.log.entries.insert(key, got.to_string().into_bytes());
            }
            other => self.log.complain(format!("INCR answered {other:?}")),
        }
        Ok(())
    }

    fn timed(&mut self, connection: &mut Connection, words: &[&[u8]]) -> io::Result<Reply> {
        let sent = clock::now().0;
        connection.send(words)?;
        self.shared.outstanding.fetch_add(1, Ordering::Relaxed);
        let reply = connection.receive();
        self.shared.outstanding.fetch_sub(1, Ordering::Relaxed);
        let reply = reply?;
        self.shared.acked.fetch_add(1, Ordering::Relaxed);
        self.log.acks.push((sent, clock::now().0));
        Ok(reply)
    }

    fn read_back(&mut self, connection: &mut Connection) -> io::Result<()> {
        let entries = std::mem::take(&mut self.log.entries);
        for (key, value) in &entries {
            match connection.ask(&[b"GET", key])? {
                Reply::Bulk(Some(got)) if got == *value => {}
                other => {
                    self.log.lost += 1;
                    self.log.complain(format!("{} reads {other:?}", String::from_utf8_lossy(key)));
                }
            }
        }
        self.log.entries = entries;
        Ok(())
    }
}
