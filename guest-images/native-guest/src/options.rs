//! The kernel command line: `key=value` words separated by blanks. Unknown words are ignored, since loaders add
//! their own; a known word with a bad value is an error, since a guest that silently runs otherwise than asked
//! makes every measurement of it wrong.

use crate::work::{DiskWork, VsockWork, parse_disk, parse_vsock};
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use resp_kv::dirty::{DirtySpec, DirtySpecError};

/// Longest command line read, in bytes: what Linux accepts on x86.
pub const MAX_COMMAND_LINE: usize = 2048;

/// An IPv4 address with the length of its network prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Net {
    /// The guest's own address.
    pub address: Ipv4Addr,
    /// Bits of the network prefix, 0 to 32.
    pub prefix: u8,
}

/// Everything the command line can ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// `ip=10.0.0.2/24`: no network without it.
    pub ip: Option<Ipv4Net>,
    /// `gw=10.0.0.1`.
    pub gateway: Option<Ipv4Addr>,
    /// `dirty=PATTERN:PAGES[:PAGES_PER_SECOND]`.
    pub dirty: Option<DirtySpec>,
    /// `heartbeat=MILLISECONDS`: prints a counter line that often.
    pub heartbeat_ms: Option<u64>,
    /// `watchdog=SECONDS`: arms the VMM's watchdog, 1 to 25.
    pub watchdog_s: Option<u8>,
    /// `spin=MICROSECONDS`: how long it looks for work before it sleeps; 0 to sleep at once.
    pub spin_us: Option<u32>,
    /// Each `blk=`, carried out one after the other.
    pub disk: Vec<DiskWork>,
    /// Each `vsock=`, carried out together.
    pub vsock: Vec<VsockWork>,
    /// `hvc=echo`: greets on the paravirtual console and sends back what is typed.
    pub terminal: bool,
    /// `plug=follow`: works each disk that is plugged in, and lets go of devices it is asked for.
    pub plug: bool,
    /// `rng=check`: looks whether the entropy source gives something.
    pub entropy: bool,
}

/// Why a word of the command line was refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum OptionError<'a> {
    /// Not `ADDRESS/PREFIX`.
    #[error("ip={0}: not an address with a prefix; write ip=10.0.0.2/24")]
    Ip(&'a str),
    /// Not an address.
    #[error("gw={0}: not an IPv4 address; write gw=10.0.0.1")]
    Gateway(&'a str),
    /// Not a dirty specification.
    #[error("dirty={word}: {reason}; write dirty=PATTERN:PAGES[:PAGES_PER_SECOND]")]
    Dirty {
        /// The value given.
        word: &'a str,
        /// What is wrong with it.
        reason: DirtySpecError,
    },
    /// Not a positive number.
    #[error("heartbeat={0}: not a number of milliseconds from 1 on")]
    Heartbeat(&'a str),
    /// Out of the range the watchdog's one-byte register can express.
    #[error("watchdog={0}: not a number of seconds from 1 to 25")]
    Watchdog(&'a str),
    /// Not a number.
    #[error("spin={0}: not a number of microseconds")]
    Spin(&'a str),
    /// No such work, or a number out of range.
    #[error(
        "blk={0}: write blk=verify:BYTES[:SEED], blk=misc or blk=bench:randread|randwrite:SECONDS:DEPTH[:BYTES], \
         with bytes in whole sectors, at most 64 requests deep and 131072 bytes each"
    )]
    Disk(&'a str),
    /// No such work, or no port.
    #[error("vsock={0}: write vsock=echo:PORT, vsock=resp:PORT or vsock=connect:PORT")]
    Vsock(&'a str),
    /// No such work.
    #[error("hvc={0}: write hvc=echo")]
    Terminal(&'a str),
    /// No such work.
    #[error("plug={0}: write plug=follow")]
    Plug(&'a str),
    /// No such work.
    #[error("rng={0}: write rng=check")]
    Entropy(&'a str),
}

impl Options {
    /// Reads a command line.
    ///
    /// # Errors
    /// The first known word whose value cannot be used.
    pub fn parse(line: &str) -> Result<Self, OptionError<'_>> {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            match key {
                "ip" => options.ip = Some(parse_net(value).ok_or(OptionError::Ip(value))?),
                "gw" => options.gateway = Some(value.parse().map_err(|_| OptionError::Gateway(value))?),
                "dirty" => options.dirty = Some(parse_dirty(value)?),
                "heartbeat" => {
                    let ms = value.parse().ok().filter(|ms| *ms > 0).ok_or(OptionError::Heartbeat(value))?;
                    options.heartbeat_ms = Some(ms);
                }
                "watchdog" => {
                    let seconds = value.parse().ok().filter(|s| (1..=25).contains(s));
                    options.watchdog_s = Some(seconds.ok_or(OptionError::Watchdog(value))?);
                }
                "spin" => options.spin_us = Some(value.parse().map_err(|_| OptionError::Spin(value))?),
                _ => options.device_word(key, value)?,
            }
        }
        Ok(options)
    }

    fn device_word<'a>(&mut self, key: &str, value: &'a str) -> Result<(), OptionError<'a>> {
        match key {
            "blk" => self.disk.push(parse_disk(value).ok_or(OptionError::Disk(value))?),
            "vsock" => self.vsock.push(parse_vsock(value).ok_or(OptionError::Vsock(value))?),
            "hvc" if value == "echo" => self.terminal = true,
            "hvc" => return Err(OptionError::Terminal(value)),
            "plug" if value == "follow" => self.plug = true,
            "plug" => return Err(OptionError::Plug(value)),
            "rng" if value == "check" => self.entropy = true,
            "rng" => return Err(OptionError::Entropy(value)),
            _ => {}
        }
        Ok(())
    }
}

fn parse_net(value: &str) -> Option<Ipv4Net> {
    let (address, prefix) = value.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|bits| *bits <= 32)?;
    Some(Ipv4Net { address: address.parse().ok()?, prefix })
}

fn parse_dirty(value: &str) -> Result<DirtySpec, OptionError<'_>> {
    DirtySpec::from_words(value.split(':').map(str::as_bytes))
        .map_err(|reason| OptionError::Dirty { word: value, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use resp_kv::dirty::Pattern;

    #[test]
    fn reads_everything_it_knows_and_ignores_the_rest() {
        let line = "console=ttyS0 quiet ip=10.0.0.2/24 gw=10.0.0.1 dirty=scattered:16384:100000 heartbeat=100 watchdog=5";
        let options = Options::parse(line).unwrap();
        assert_eq!(options.ip, Some(Ipv4Net { address: Ipv4Addr::new(10, 0, 0, 2), prefix: 24 }));
        assert_eq!(options.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        let dirty = options.dirty.unwrap();
        assert_eq!(
            (dirty.pattern, dirty.pages, dirty.pages_per_second),
            (Pattern::Scattered, 16384, 100_000)
        );
        assert_eq!((options.heartbeat_ms, options.watchdog_s), (Some(100), Some(5)));
        assert_eq!(Options::parse("").unwrap(), Options::default());
    }

    #[test]
    fn refuses_bad_values_by_name() {
        assert_eq!(Options::parse("ip=10.0.0.2"), Err(OptionError::Ip("10.0.0.2")));
        assert_eq!(Options::parse("ip=10.0.0.2/33"), Err(OptionError::Ip("10.0.0.2/33")));
        assert_eq!(Options::parse("gw=x"), Err(OptionError::Gateway("x")));
        assert_eq!(Options::parse("heartbeat=0"), Err(OptionError::Heartbeat("0")));
        assert_eq!(Options::parse("watchdog=26"), Err(OptionError::Watchdog("26")));
        assert_eq!(Options::parse("spin=-1"), Err(OptionError::Spin("-1")));
        assert_eq!(Options::parse("blk=verify:1"), Err(OptionError::Disk("verify:1")));
        assert_eq!(Options::parse("vsock=5"), Err(OptionError::Vsock("5")));
        assert_eq!(Options::parse("hvc=on"), Err(OptionError::Terminal("on")));
        assert_eq!(Options::parse("plug=1"), Err(OptionError::Plug("1")));
        assert_eq!(Options::parse("rng=1"), Err(OptionError::Entropy("1")));
        assert!(matches!(Options::parse("dirty=zigzag:1"), Err(OptionError::Dirty { word: "zigzag:1", .. })));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_accepted_or_refused(line in "[ -~]{0,200}") {
            let _ = Options::parse(&line);
        }
    }
}
