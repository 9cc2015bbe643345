//! A client that counts: one connection, one INCR after another, every reply one more than the last.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::world::eventually;

/// The running client.
#[derive(Debug)]
pub struct Counter {
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    thread: JoinHandle<Result<Counted>>,
}

/// What it saw.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Requests acknowledged; the store's counter, too.
    pub acked: u64,
    /// The longest time without a reply.
    pub gap: Duration,
}

impl Counter {
    /// Connects and starts to count.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn start(server: &str) -> Result<Self> {
        let server: SocketAddr = format!("{server}:6379").parse()?;
        let stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let (stop, acked) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, counted) = (stop.clone(), acked.clone());
        let thread = std::thread::spawn(move || count(stream, &stopped, &counted));
        Ok(Self { stop, acked, thread })
    }

    /// The same as soon as the server is there.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn once_served(server: &str) -> Result<Self> {
        let mut client = None;
        eventually("the guest to serve", || {
            client = Self::start(server).ok();
            client.is_some()
        })
        .await?;
        client.context("no client")
    }

    /// Requests acknowledged so far.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Stops after the reply that is due.
    ///
    /// # Errors
    /// When a reply was missing or wrong: then something acknowledged was lost, or repeated.
    pub fn finish(self) -> Result<Counted> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the client's thread failed")?
    }
}

fn count(mut stream: TcpStream, stop: &AtomicBool, acked: &AtomicU64) -> Result<Counted> {
    let mut replies = BufReader::new(stream.try_clone()?);
    let (mut counted, mut gap, mut last) = (0, Duration::ZERO, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(b"INCR counter\r\n")?;
        let mut reply = String::new();
        if replies.read_line(&mut reply).context("the connection broke")? == 0 {
            bail!("the connection was closed after {counted} replies");
        }
        counted += 1;
        ensure!(reply.trim() == format!(":{counted}"), "reply {reply:?} instead of :{counted}");
        gap = gap.max(last.elapsed());
        last = Instant::now();
        acked.store(counted, Ordering::Relaxed);
        // A client with pauses: the machine also runs three nodes.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Counted { acked: counted, gap })
}
