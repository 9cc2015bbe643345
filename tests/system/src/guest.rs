//! The native guest, asked over its socket device.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connection to the guest's RESP server.
#[derive(Debug)]
pub struct VsockGuest(BufReader<UnixStream>);

impl VsockGuest {
    /// Connects to `port` of a guest by the host's socket, as soon as it answers.
    ///
    /// # Panics
    /// When it does not within `patience`.
    #[must_use]
    pub fn reach(socket: &Path, port: u16, patience: Duration) -> Self {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(mut guest) = Self::connect(socket, port, patience)
                && guest.ask("PING").is_some()
            {
                return guest;
            }
            assert!(Instant::now() < deadline, "no guest answers at {}", socket.display());
            std::thread::yield_now();
        }
    }

    fn connect(socket: &Path, port: u16, patience: Duration) -> Option<Self> {
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        writeln!(stream, "CONNECT {port}").ok()?;
        let mut guest = Self(BufReader::new(stream));
        guest.line().filter(|line| line.starts_with("OK"))?;
        Some(guest)
    }

    /// Sends a command and returns the line it is answered with; `None` if the connection is gone.
    pub fn ask(&mut self, command: &str) -> Option<String> {
        write!(self.0.get_mut(), "{command}\r\n").ok()?;
        self.line()
    }

    /// Sends a command that is answered with bytes.
    ///
    /// # Panics
    /// When it is not.
    pub fn ask_bulk(&mut self, command: &str) -> Vec<u8> {
        let head = self.ask(command).expect("the guest answers");
        let bytes = head.strip_prefix('$').and_then(|bytes| bytes.parse().ok());
        let mut content = vec![0; bytes.unwrap_or_else(|| panic!("{command}: {head}"))];
        self.0.read_exact(&mut content).expect("as many bytes as were announced");
        self.line();
        content
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    }
}
