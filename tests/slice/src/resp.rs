//! Single questions to the native guest's store, over one connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::world::eventually;

/// Bytes of a disk's sector.
const SECTOR: usize = 512;

/// The connection.
#[derive(Debug)]
pub struct Resp(BufReader<TcpStream>);

impl Resp {
    /// Connects as soon as the server is there.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn once_served(server: &str) -> Result<Self> {
        let server: SocketAddr = format!("{server}:6379").parse()?;
        let mut stream = None;
        eventually("the guest to serve", || {
            stream = TcpStream::connect_timeout(&server, Duration::from_secs(1)).ok();
            stream.is_some()
        })
        .await?;
        let stream = stream.context("no connection")?;
        stream.set_nodelay(true)?;
        // A takeover has its place in an answer.
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        write!(self.0.get_mut(), "{command}\r\n")?;
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line).with_context(|| command.to_owned())? > 0, "closed at {command}");
        Ok(line.trim_end().to_owned())
    }

    /// Fills a sector of the guest's first disk.
    ///
    /// # Errors
    /// When it is not done.
    pub fn write_sector(&mut self, sector: u64, byte: u8) -> Result<()> {
        let said = self.ask(&format!("BLK WRITE {sector} {byte}"))?;
        ensure!(said == "+OK", "sector {sector}: {said}");
        Ok(())
    }

    /// Has what was written last.
    ///
    /// # Errors
    /// When it does not.
    pub fn flush(&mut self) -> Result<()> {
        let said = self.ask("BLK FLUSH")?;
        ensure!(said == "+OK", "{said}");
        Ok(())
    }

    /// The byte that fills a sector of the guest's first disk.
    ///
    /// # Errors
    /// When there are several, or none.
    pub fn read_sector(&mut self, sector: u64) -> Result<u8> {
        let head = self.ask(&format!("BLK READ {sector}"))?;
        ensure!(head == format!("${SECTOR}"), "sector {sector}: {head}");
        let mut content = [0; SECTOR + 2];
        self.0.read_exact(&mut content)?;
        ensure!(content[..SECTOR].iter().all(|byte| *byte == content[0]), "sector {sector} is torn");
        Ok(content[0])
    }
}
