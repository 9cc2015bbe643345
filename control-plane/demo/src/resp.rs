//! Just enough of a RESP client to check every reply.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Bytes of one reply the client is ready to take.
const REPLY_BYTES: usize = 1 << 20;

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Self>),
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects with the kernel's stock settings, apart from a bound on how long one reply may take.
    pub(crate) fn open(addr: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends one command.
    pub(crate) fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        let mut out = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            out.extend(format!("${}\r\n", word.len()).bytes());
            out.extend_from_slice(word);
            out.extend(b"\r\n");
        }
        self.stream.get_mut().write_all(&out)
    }

    /// Reads one reply.
    pub(crate) fn receive(&mut self) -> io::Result<Reply> {
        let line = self.line()?;
        let Some((kind, rest)) = line.split_at_checked(1) else { return Err(bad("an empty line")) };
        match kind {
            "+" => Ok(Reply::Simple(rest.to_owned())),
            "-" => Ok(Reply::Error(rest.to_owned())),
            ":" => rest.parse().map(Reply::Int).map_err(|_| bad("an integer that is none")),
            "$" => self.bulk(rest).map(Reply::Bulk),
            "*" => {
                let count = length(rest)?.unwrap_or(0);
                (0..count).map(|_| self.receive()).collect::<io::Result<_>>().map(Reply::Array)
            }
            _ => Err(bad("an unknown kind of reply")),
        }
    }

    /// Sends a command and reads its reply.
    pub(crate) fn ask(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        self.send(words)?;
        self.receive()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        (&mut self.stream).take(4096).read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(text) => String::from_utf8(text.to_vec()).map_err(|_| bad("a line that is not text")),
            None if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Err(bad("a line without an end")),
        }
    }

    fn bulk(&mut self, header: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(length) = length(header)? else { return Ok(None) };
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(Some(bytes))
    }
}

fn length(text: &str) -> io::Result<Option<usize>> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(n) => usize::try_from(n)
            .ok()
            .filter(|n| *n <= REPLY_BYTES)
            .map(Some)
            .ok_or_else(|| bad("a length out of bounds")),
        Err(_) => Err(bad("a length that is none")),
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server sent {what}"))
}
