//! A client of a Service: it counts at whichever pod answers, and connects anew when one falls silent.
//!
//! Without a connection that lives through the takeover a request may have been carried out although its reply never came.
//! So the counter may run ahead of the replies by the requests that were left open, and by nothing else.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// A connection attempt may take this long. Short, because the next server may be the one that answers.
const ATTEMPT: Duration = Duration::from_millis(50);
/// A reply may take this long.
const PATIENCE: Duration = Duration::from_millis(150);
/// Each request left open widens what the counter may be.
const OPEN: u64 = 10;
/// Silence that ends the client.
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acked: AtomicU64,
    servers: Mutex<Vec<SocketAddr>>,
}

/// The running client.
#[derive(Debug)]
pub struct Reconnecting {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Counted>>,
}

/// What it saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Replies, each as it had to be.
    pub acked: u64,
    /// Requests whose reply never came.
    pub open: u64,
    /// The counter at the end.
    pub counter: u64,
    /// Connections.
    pub connections: u64,
    /// The longest time without a reply.
    pub gap: Duration,
}

impl Reconnecting {
    /// Starts to count at these servers.
    #[must_use]
    pub fn start(servers: Vec<SocketAddr>) -> Self {
        let shared = Arc::new(Shared { servers: Mutex::new(servers), ..Shared::default() });
        let counting = shared.clone();
        Self { shared, thread: std::thread::spawn(move || count(&counting)) }
    }

    /// One more place where the service may be.
    pub fn also(&self, server: SocketAddr) {
        self.shared.servers.lock().unwrap_or_else(PoisonError::into_inner).push(server);
    }

    /// Replies so far.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Stops after the reply that is due.
    ///
    /// # Errors
    /// When something acknowledged was lost, or repeated.
    pub fn finish(self) -> Result<Counted> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the client's thread failed")?
    }
}

fn count(shared: &Shared) -> Result<Counted> {
    let mut seen = Counted::default();
    let (mut connection, mut last, mut turn) = (None, Instant::now(), 0);
    while !shared.stop.load(Ordering::Relaxed) {
        ensure!(
            last.elapsed() < LONGEST,
            "no reply for {} s after {} replies",
            LONGEST.as_secs(),
            seen.acked
        );
        let Some(open) = connection.as_mut() else {
            turn += 1;
            connection = connect(shared, turn);
            seen.connections += u64::from(connection.is_some());
            continue;
        };
        let Ok(value) = increment(open) else {
            seen.open += 1;
            ensure!(
                seen.open <= OPEN,
                "{OPEN} requests without a reply: nothing could be said about lost ones"
            );
            connection = None;
            continue;
        };
        let (least, most) = (seen.counter + 1, seen.acked + seen.open + 1);
        ensure!((least..=most).contains(&value), "the counter says {value}, not {least} to {most}");
        seen.acked += 1;
        seen.counter = value;
        seen.gap = seen.gap.max(last.elapsed());
        last = Instant::now();
        shared.acked.store(seen.acked, Ordering::Relaxed);
        // A client with pauses: the machine also runs three nodes.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(seen)
}

fn connect(shared: &Shared, turn: usize) -> Option<BufReader<TcpStream>> {
    let servers = shared.servers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let stream = TcpStream::connect_timeout(&servers[turn % servers.len()], ATTEMPT).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    Some(BufReader::new(stream))
}

fn increment(connection: &mut BufReader<TcpStream>) -> Result<u64> {
    connection.get_mut().write_all(b"INCR counter\r\n")?;
    let mut reply = String::new();
    connection.read_line(&mut reply)?;
    Ok(reply.trim().trim_start_matches(':').parse()?)
}
