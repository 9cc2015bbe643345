//! What really left each node: a packet capture on the outside of its guest port.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

const PCAP_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
/// Magic of a capture with nanosecond stamps, as tcpdump writes it on this machine.
const MAGIC_NANO: u32 = 0xa1b2_3c4d;
const ETHERTYPE_IPV4: [u8; 2] = [8, 0];

/// A running capture.
#[derive(Debug)]
pub(crate) struct Capture {
    tcpdump: Child,
    file: PathBuf,
}

/// One frame the guest's address sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// When, nanoseconds since 1970.
    pub(crate) wall_ns: u64,
    /// Whether it carried IPv4 (and was not an announcement).
    pub(crate) ipv4: bool,
}

impl Capture {
    /// Captures frames from `mac` that come in at `interface`.
    pub(crate) fn start(interface: &str, mac: &str, file: &Path) -> Result<Self> {
        let tcpdump = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "tcpdump", "-q", "-i", interface, "-Q", "in", "-s", "64", "-U"])
            .args(["--immediate-mode", "--time-stamp-precision=nano", "-B", "16384", "-Z", "root", "-w"])
            .arg(file)
            .args(["ether", "src", mac])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start tcpdump")?;
        Ok(Self { tcpdump, file: file.to_owned() })
    }

    /// Ends the capture and reads it.
    pub(crate) fn finish(mut self) -> Result<Vec<Seen>> {
        let pid = rustix::process::Pid::from_child(&self.tcpdump);
        // It writes out what it has on SIGTERM.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        self.tcpdump.wait()?;
        let bytes = fs::read(&self.file).with_context(|| format!("no capture at {}", self.file.display()))?;
        read_pcap(&bytes).with_context(|| format!("{} is not a capture", self.file.display()))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // After `finish` there is nothing left to kill.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

fn read_pcap(bytes: &[u8]) -> Option<Vec<Seen>> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if word(0)? != MAGIC_NANO {
        return None;
    }
    let (mut seen, mut at) = (Vec::new(), PCAP_HEADER);
    while at + RECORD_HEADER <= bytes.len() {
        let (seconds, nanos, kept) = (word(at)?, word(at + 4)?, word(at + 8)? as usize);
        let frame = bytes.get(at + RECORD_HEADER..at + RECORD_HEADER + kept)?;
        let wall_ns = u64::from(seconds) * 1_000_000_000 + u64::from(nanos);
        seen.push(Seen { wall_ns, ipv4: frame.get(12..14) == Some(&ETHERTYPE_IPV4) });
        at += RECORD_HEADER + kept;
    }
    Some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture() -> Vec<u8> {
        let mut bytes = MAGIC_NANO.to_le_bytes().to_vec();
        bytes.resize(PCAP_HEADER, 0);
        for (seconds, ethertype) in [(7u32, [8, 0]), (8, [0x80, 0x35])] {
            for word in [seconds, 5, 14, 60] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend([0; 12]);
            bytes.extend(ethertype);
        }
        bytes
    }

    #[test]
    fn reads_stamps_and_kinds() {
        let seen = read_pcap(&capture()).unwrap();
        assert_eq!(seen[0], Seen { wall_ns: 7_000_000_005, ipv4: true });
        assert_eq!(seen[1], Seen { wall_ns: 8_000_000_005, ipv4: false });
    }

    #[test]
    fn a_truncated_capture_is_refused_not_misread() {
        let bytes = capture();
        assert!(read_pcap(&bytes[..bytes.len() - 1]).is_none());
        assert!(read_pcap(b"pcap").is_none());
    }
}
