//! What the agent reads from the kernel command line.

use std::net::Ipv4Addr;

/// The network configuration: `mycelium.ip=10.0.0.2/24 mycelium.gw=10.0.0.1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Address of `eth0` and bits of its network prefix. Without it there is no network but loopback.
    pub(crate) ip: Option<(Ipv4Addr, u8)>,
    /// Default gateway.
    pub(crate) gateway: Option<Ipv4Addr>,
}

/// A word of the command line that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OptionError {
    #[error("mycelium.ip={0}: not an address with a prefix; write mycelium.ip=10.0.0.2/24")]
    Ip(String),
    #[error("mycelium.gw={0}: not an IPv4 address; write mycelium.gw=10.0.0.1")]
    Gateway(String),
}

impl Options {
    /// Reads a command line; words of others are ignored.
    pub(crate) fn parse(line: &str) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("mycelium.ip", value)) => {
                    options.ip = Some(parse_net(value).ok_or_else(|| OptionError::Ip(value.to_owned()))?);
                }
                Some(("mycelium.gw", value)) => {
                    let gateway = value.parse().map_err(|_| OptionError::Gateway(value.to_owned()))?;
                    options.gateway = Some(gateway);
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

fn parse_net(value: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = value.split_once('/')?;
    Some((address.parse().ok()?, prefix.parse().ok().filter(|bits| *bits <= 32)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_words_and_leaves_the_kernels_alone() {
        let options =
            Options::parse("console=ttyS0 mycelium.ip=10.0.0.2/24 panic=1 mycelium.gw=10.0.0.1\n").unwrap();
        assert_eq!(options.ip, Some((Ipv4Addr::new(10, 0, 0, 2), 24)));
        assert_eq!(options.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(Options::parse("quiet ip=dhcp").unwrap(), Options::default());
    }

    #[test]
    fn refuses_bad_values_by_name() {
        for value in ["10.0.0.2", "10.0.0.2/33", "x/8", ""] {
            assert_eq!(
                Options::parse(&format!("mycelium.ip={value}")),
                Err(OptionError::Ip(value.to_owned()))
            );
        }
        assert_eq!(Options::parse("mycelium.gw=x"), Err(OptionError::Gateway("x".to_owned())));
    }
}
