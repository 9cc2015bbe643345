//! A client of the guest's RESP server: one request at a time.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::limits::{KNOCK_EVERY, KNOCKS_MAX, PATIENCE};
use crate::stop::Stop;

/// Bytes of a line or string the client is ready to take.
const REPLY_BYTES_MAX: u64 = 64 * 1024;

/// Parts of a reply: what the guest sends is trusted as little as any peer.
const PARTS_MAX: usize = 64;

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects to a guest that may not be up yet. A new connection is tried every few milliseconds and the first that is made
    /// is taken: the kernel would try a lost one again after a whole second.
    pub fn knock(server: SocketAddr, stop: &Stop) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let mut tried = VecDeque::new();
        while Instant::now() < deadline {
            stop.check()?;
            if tried.len() == KNOCKS_MAX {
                tried.pop_front();
            }
            tried.extend(begin(server));
            if let Some(stream) = first_made(&mut tried)? {
                return Self::over(stream);
            }
        }
        bail!("the guest took no connection at {server} for {} s", PATIENCE.as_secs())
    }

    /// As [`knock`](Self::knock), until a connection lives long enough to be answered: a guest that wakes may know nothing of one
    /// that was made while it slept.
    pub fn knock_until_answered(
        server: SocketAddr,
        words: &[&str],
        stop: &Stop,
    ) -> Result<(Self, Vec<String>)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut client = Self::knock(server, stop)?;
            match client.ask(words) {
                Err(error) if error.root_cause().is::<io::Error>() && Instant::now() < deadline => {}
                answered => return Ok((client, answered?)),
            }
        }
    }

    fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a command and reads its reply; of an array, its parts in order.
    ///
    /// # Errors
    /// Also when the reply is an error.
    pub fn ask(&mut self, words: &[&str]) -> Result<Vec<String>> {
        let request = encode(words);
        self.exchange(&request).with_context(|| format!("{} was not answered", words.join(" ")))
    }

    /// As [`ask`](Self::ask), of a request already encoded.
    pub fn exchange(&mut self, request: &[u8]) -> Result<Vec<String>> {
        self.stream.get_mut().write_all(request)?;
        read_reply(&mut self.stream)
    }
}

/// A command as the server reads it.
pub fn encode(words: &[&str]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
    out
}

fn read_reply(stream: &mut impl BufRead) -> Result<Vec<String>> {
    let (mut parts, mut left) = (Vec::new(), 1);
    while left > 0 {
        left -= 1;
        let line = read_line(stream)?;
        let (kind, rest) = line.split_at_checked(1).context("the server sent an empty line")?;
        match kind {
            "+" | ":" => parts.push(rest.to_owned()),
            "$" => parts.push(read_bulk(stream, rest)?),
            "*" => left += rest.parse::<usize>().context("the server sent a bad count")?,
            "-" => bail!("the server said {rest}"),
            _ => bail!("the server sent {line:?}"),
        }
        ensure!(parts.len() + left <= PARTS_MAX, "the server sent more than {PARTS_MAX} parts");
    }
    Ok(parts)
}

fn read_line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    stream.take(REPLY_BYTES_MAX).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let text = line.strip_suffix("\r\n").context("the server sent a line without an end")?;
    Ok(text.to_owned())
}

fn read_bulk(stream: &mut impl BufRead, length: &str) -> Result<String> {
    let length: u64 =
        length.parse().with_context(|| format!("the server sent a string of length {length}"))?;
    ensure!(length <= REPLY_BYTES_MAX, "the server sent a string of {length} bytes");
    let mut text = String::new();
    stream.take(length).read_to_string(&mut text)?;
    ensure!(text.len() as u64 == length, "the server's string ended early");
    read_line(stream)?;
    Ok(text)
}

/// Begins a connection; `None` while there is no way to the guest.
fn begin(server: SocketAddr) -> Option<TcpStream> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    );
    let socket = socket.ok()?;
    match rustix::net::connect(&socket, &server) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Some(socket.into()),
        Err(_) => None,
    }
}

/// Waits a moment for one of the connections to be made. Those that failed are given up.
fn first_made(tried: &mut VecDeque<TcpStream>) -> Result<Option<TcpStream>> {
    let mut fds: Vec<PollFd<'_>> = tried.iter().map(|s| PollFd::new(s, PollFlags::OUT)).collect();
    match poll(&mut fds, Some(&timespec(KNOCK_EVERY))) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
        ready => ready?,
    };
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    drop(fds);
    let (mut made, mut kept) = (None, VecDeque::new());
    for (stream, ready) in tried.drain(..).zip(ready) {
        match (ready, stream.take_error()) {
            (false, _) => kept.push_back(stream),
            (true, Ok(None)) if made.is_none() => made = Some(stream),
            (true, _) => {}
        }
    }
    *tried = kept;
    if made.is_none() {
        // All that were ready had failed, at once: without a pause this would spin.
        std::thread::sleep(KNOCK_EVERY);
    }
    Ok(made)
}

/// A time as the kernel takes it.
pub fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    fn reply(text: &str) -> Result<Vec<String>> {
        read_reply(&mut text.as_bytes())
    }

    #[test]
    fn replies_of_all_kinds_are_read() {
        assert_eq!(reply("+PONG\r\n").unwrap(), ["PONG"]);
        assert_eq!(reply("$5\r\nhello\r\n").unwrap(), ["hello"]);
        assert_eq!(reply("*4\r\n$6\r\nrounds\r\n:3\r\n+x\r\n:1\r\n").unwrap(), ["rounds", "3", "x", "1"]);
    }

    #[test]
    fn errors_and_nonsense_are_told() {
        for (text, part) in [
            ("-ERR no\r\n", "ERR no"),
            ("$-1\r\n", "-1"),
            ("?\r\n", "?"),
            ("*9999\r\n", "64"),
            ("+PO", "end"),
        ] {
            let error = reply(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        assert!(reply("").is_err() && reply("$9\r\nshort\r\n").is_err());
    }

    #[test]
    fn a_request_is_an_array_of_strings() {
        assert_eq!(encode(&["GET", "key"]), b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n");
    }

    #[test]
    fn a_knock_is_answered_once_somebody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 14]).unwrap();
            stream.write_all(b"+PONG\r\n").unwrap();
        });
        let mut client = Client::knock(server, &Stop::default()).unwrap();
        assert_eq!(client.ask(&["PING"]).unwrap(), ["PONG"]);
        serving.join().unwrap();
    }

    #[test]
    fn a_connection_that_breaks_is_not_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            drop(listener.accept().unwrap());
            // The knocker may have begun several; those given up break as well.
            while let Ok((mut stream, _)) = listener.accept() {
                if stream.read_exact(&mut [0; 14]).is_ok() && stream.write_all(b"+PONG\r\n").is_ok() {
                    return;
                }
            }
        });
        let (_, reply) = Client::knock_until_answered(server, &["PING"], &Stop::default()).unwrap();
        assert_eq!(reply, ["PONG"]);
        serving.join().unwrap();
    }

    proptest! {
        #[test]
        fn any_reply_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_reply(&mut &bytes[..]);
        }
    }
}
