//! What the command line has the guest do with its devices.

use crate::limits::{MAX_DEPTH, MAX_REQUEST_BYTES};
use crate::pattern::SECTOR_BYTES;

/// Work for the first disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskWork {
    /// `verify:BYTES[:SEED]`: writes a pattern over the first bytes, flushes, reads it back and compares.
    Verify {
        /// Bytes from the start, a multiple of the sector.
        bytes: u64,
        /// What the pattern, the sizes and the order of requests follow from; from the clock if `None`.
        seed: Option<u64>,
    },
    /// `bench:randread|randwrite:SECONDS:DEPTH[:BYTES_PER_REQUEST]`.
    Bench(Bench),
    /// `misc`: serial number, discard and write-zeroes.
    Misc,
}

/// A measurement of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bench {
    /// Writes instead of reads.
    pub write: bool,
    /// How long.
    pub seconds: u64,
    /// Requests under way.
    pub depth: usize,
    /// Bytes of each, a multiple of the sector.
    pub bytes: usize,
}

/// Work for the socket device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VsockWork {
    /// `echo:PORT`: listens there and sends everything back.
    Echo(u32),
    /// `resp:PORT`: listens there and answers RESP, as on the network.
    Resp(u32),
    /// `connect:PORT`: connects to the host, sends a line and expects it back.
    Connect(u32),
}

/// Bytes of a request of a bench, unless it says otherwise.
const BENCH_BYTES: usize = 4096;

/// The value of `blk=`, or `None` if it is not well formed.
#[must_use]
pub fn parse_disk(value: &str) -> Option<DiskWork> {
    let mut words = value.split(':');
    let work = match words.next()? {
        "verify" => verify(&mut words)?,
        "bench" => DiskWork::Bench(bench(&mut words)?),
        "misc" => DiskWork::Misc,
        _ => return None,
    };
    words.next().is_none().then_some(work)
}

fn verify<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<DiskWork> {
    let bytes = words.next()?.parse().ok().filter(|bytes| *bytes > 0 && bytes % SECTOR_BYTES as u64 == 0)?;
    let seed = words.next().map(str::parse).transpose().ok()?;
    Some(DiskWork::Verify { bytes, seed })
}

fn bench<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Bench> {
    let write = match words.next()? {
        "randread" => false,
        "randwrite" => true,
        _ => return None,
    };
    let seconds = words.next()?.parse().ok().filter(|seconds| (1..=3600).contains(seconds))?;
    let depth = words.next()?.parse().ok().filter(|depth| (1..=MAX_DEPTH).contains(depth))?;
    let bytes = words.next().map_or(Some(BENCH_BYTES), |bytes| bytes.parse().ok())?;
    let sized = (SECTOR_BYTES..=MAX_REQUEST_BYTES).contains(&bytes) && bytes.is_multiple_of(SECTOR_BYTES);
    sized.then_some(Bench { write, seconds, depth, bytes })
}

/// The value of `vsock=`, or `None` if it is not well formed.
#[must_use]
pub fn parse_vsock(value: &str) -> Option<VsockWork> {
    let (what, port) = value.split_once(':')?;
    let port = port.parse().ok().filter(|port| *port != u32::MAX)?;
    match what {
        "echo" => Some(VsockWork::Echo(port)),
        "resp" => Some(VsockWork::Resp(port)),
        "connect" => Some(VsockWork::Connect(port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_work_is_understood() {
        assert_eq!(parse_disk("verify:1024"), Some(DiskWork::Verify { bytes: 1024, seed: None }));
        assert_eq!(parse_disk("verify:512:7"), Some(DiskWork::Verify { bytes: 512, seed: Some(7) }));
        let bench = Bench { write: true, seconds: 2, depth: 32, bytes: 4096 };
        assert_eq!(parse_disk("bench:randwrite:2:32"), Some(DiskWork::Bench(bench)));
        let bench = Bench { write: false, seconds: 1, depth: 1, bytes: 512 };
        assert_eq!(parse_disk("bench:randread:1:1:512"), Some(DiskWork::Bench(bench)));
        assert_eq!(parse_disk("misc"), Some(DiskWork::Misc));
        assert_eq!(parse_vsock("echo:5"), Some(VsockWork::Echo(5)));
        assert_eq!(parse_vsock("resp:6379"), Some(VsockWork::Resp(6379)));
        assert_eq!(parse_vsock("connect:7"), Some(VsockWork::Connect(7)));
    }

    #[test]
    fn bad_values_are_refused() {
        for value in ["", "verify", "verify:0", "verify:100", "verify:512:x", "verify:512:1:1", "misc:1"] {
            assert_eq!(parse_disk(value), None, "{value}");
        }
        for value in ["read:1:1", "randread:0:1", "randread:1:0", "randread:1:65", "randread:1:1:100"] {
            assert_eq!(parse_disk(&alloc::format!("bench:{value}")), None, "{value}");
        }
        for value in ["", "echo", "echo:x", "shout:1", "echo:4294967295"] {
            assert_eq!(parse_vsock(value), None, "{value}");
        }
    }
}
