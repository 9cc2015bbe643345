//! Hardware addresses.

use std::fmt;
use std::str::FromStr;

/// A unicast Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    const MULTICAST: u8 = 1;
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<MacAddress, String> {
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            let part = parts.next().filter(|p| p.len() == 2);
            let digits = part.filter(|p| p.bytes().all(|b| b.is_ascii_hexdigit()));
            let value = digits.and_then(|p| u8::from_str_radix(p, 16).ok());
            *byte = value.ok_or("is not six two-digit hexadecimal numbers separated by colons")?;
        }
        if parts.next().is_some() {
            return Err("has more than six numbers".to_owned());
        }
        if address[0] & Self::MULTICAST != 0 {
            return Err("is a multicast address".to_owned());
        }
        if address == [0; 6] {
            return Err("is the null address".to_owned());
        }
        Ok(MacAddress(address))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_addresses_survive_a_round_trip_and_bad_ones_say_why() {
        let mac: MacAddress = "02:00:ab:CD:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:ab:cd:00:01");
        for (text, reason) in [
            ("", "six"),
            ("02:00:00:00:00", "six"),
            ("02:00:00:00:00:01:02", "more than six"),
            ("02:00:00:00:00:zz", "six"),
            ("02:00:00:00:00:+1", "six"),
            ("01:00:5e:00:00:01", "multicast"),
            ("00:00:00:00:00:00", "null"),
        ] {
            let said = text.parse::<MacAddress>().unwrap_err();
            assert!(said.contains(reason), "{text:?}: {said}");
        }
    }
}
