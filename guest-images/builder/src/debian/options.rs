//! What a Debian image shall be.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

use crate::ImageError;
use crate::limits::{DISK_BYTES_MAX, DISK_BYTES_MIN};

/// Everything that can be chosen about a Debian image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DebianOptions {
    /// Debian's code name, as `bookworm`.
    pub release: String,
    /// Bytes of the disk, a multiple of a MiB.
    pub size: u64,
    /// Packages beside those that every image has.
    pub include: Vec<String>,
    /// Files and folders of this machine to lay into the image.
    pub copies: Vec<CopyIn>,
    /// Commands to run in the image at the end, by its own shell.
    pub commands: Vec<String>,
    /// The guest's name.
    pub hostname: String,
    /// The guest's address; DHCP without one.
    pub address: Option<StaticAddress>,
    /// How root may log in.
    pub root: RootLogin,
}

impl Default for DebianOptions {
    fn default() -> Self {
        Self {
            release: "bookworm".to_owned(),
            size: 2 << 30,
            include: Vec::new(),
            copies: Vec::new(),
            commands: Vec::new(),
            hostname: "debian".to_owned(),
            address: None,
            root: RootLogin::Locked,
        }
    }
}

/// How root may log in on the console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub enum RootLogin {
    /// Not at all.
    #[default]
    Locked,
    /// By name alone.
    Passwordless,
    /// With this password.
    Password(String),
}

/// `SRC:DEST`: a file or folder of this machine, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyIn {
    /// On this machine. Not part of what an image is known by: its content is.
    #[serde(skip)]
    pub source: PathBuf,
    /// Absolute, in the image.
    pub dest: String,
}

impl FromStr for CopyIn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (source, dest) =
            text.rsplit_once(':').ok_or("write SRC:DEST, as ./agent:/usr/local/bin/agent")?;
        let whole = !source.is_empty() && dest.starts_with('/') && dest.len() > 1;
        if !whole || dest.split('/').any(|part| part == "..") {
            return Err("SRC must not be empty, and DEST be an absolute path without ..".to_owned());
        }
        Ok(Self { source: source.into(), dest: dest.trim_end_matches('/').to_owned() })
    }
}

/// A fixed address of the guest's NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StaticAddress {
    /// The address.
    pub ip: IpAddr,
    /// Leading bits of it that its network shares.
    pub prefix: u8,
    /// The router, if there is one.
    pub gateway: Option<IpAddr>,
}

impl FromStr for StaticAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ip, prefix) = text.split_once('/').ok_or("write IP/PREFIX, as 10.77.0.2/24")?;
        let ip: IpAddr = ip.parse().map_err(|_| format!("{ip:?} is no IP address"))?;
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse().ok().filter(|prefix| (1..=bits).contains(prefix));
        Ok(Self { ip, prefix: prefix.ok_or_else(|| format!("the prefix is 1 to {bits}"))?, gateway: None })
    }
}

impl fmt::Display for StaticAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// Reads a size in bytes, or in units of 1024: `2G`, `1536M`.
///
/// # Errors
/// Says what sizes there are.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().find(|(_, symbol)| !symbol.is_ascii_digit()) {
        Some((at, _)) => text.split_at(at),
        None => (text, ""),
    };
    let unit = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 1,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1_u64 << 40,
        _ => return Err("write a size as 2G or 1536M".to_owned()),
    };
    let count: u64 = digits.parse().map_err(|_| "write a size as 2G or 1536M".to_owned())?;
    count.checked_mul(unit).ok_or_else(|| "that is too much".to_owned())
}

impl DebianOptions {
    /// Refuses what cannot be built.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        let word = |text: &str, more: &str| {
            let fits = |symbol: char| {
                symbol.is_ascii_lowercase() || symbol.is_ascii_digit() || more.contains(symbol)
            };
            text.starts_with(|first: char| first.is_ascii_alphanumeric()) && text.chars().all(fits)
        };
        if !word(&self.release, "") {
            return Err(ImageError::option("--release", &self.release, "give a code name, as bookworm"));
        }
        if let Some(bad) = self.include.iter().find(|name| !word(name, "+-.")) {
            return Err(ImageError::option("--include", bad, "give names of Debian packages"));
        }
        if !word(&self.hostname, "-") || self.hostname.len() > 63 {
            let reason = "give up to 63 small letters, digits and dashes";
            return Err(ImageError::option("--hostname", &self.hostname, reason));
        }
        if !(DISK_BYTES_MIN..=DISK_BYTES_MAX).contains(&self.size) || !self.size.is_multiple_of(1 << 20) {
            return Err(ImageError::option("--size", self.size, "give 1G to 16T, in whole MiB"));
        }
        if matches!(&self.root, RootLogin::Password(password) if password.is_empty() || password.contains('\n'))
        {
            let reason = "it is empty or has a line break; --passwordless-root lets root in without one";
            return Err(ImageError::option("--root-password", "", reason));
        }
        self.copies.iter().try_for_each(|copy| {
            let found = copy.source.symlink_metadata().map(drop);
            found.map_err(|error| ImageError::option("--copy", copy.source.display(), error))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let good = [("2G", 2 << 30), ("1536M", 1536 << 20), ("1GiB", 1 << 30), ("4096", 4096)];
        assert!(good.iter().all(|(text, bytes)| parse_size(text) == Ok(*bytes)));
        assert!(["", "G", "2X", "2.5G", "99999999T"].iter().all(|text| parse_size(text).is_err()));
    }

    #[test]
    fn addresses_have_a_prefix_that_fits() {
        let address: StaticAddress = "10.77.0.2/24".parse().unwrap();
        assert_eq!((address.to_string().as_str(), address.gateway), ("10.77.0.2/24", None));
        assert!("fd00::2/64".parse::<StaticAddress>().is_ok());
        assert!(
            ["10.0.0.1", "10.0.0.1/33", "10.0.0.1/0", "x/8"]
                .iter()
                .all(|text| text.parse::<StaticAddress>().is_err())
        );
    }

    #[test]
    fn copies_go_to_absolute_paths() {
        let copy: CopyIn = "./a:b:/opt/agent".parse().unwrap();
        assert_eq!(copy, CopyIn { source: "./a:b".into(), dest: "/opt/agent".to_owned() });
        assert!(
            ["x", ":/x", "x:", "x:/", "x:rel", "x:/a/../b"]
                .iter()
                .all(|text| text.parse::<CopyIn>().is_err())
        );
    }

    #[test]
    fn what_cannot_be_built_is_named_with_its_option() {
        let refused = |change: fn(&mut DebianOptions)| {
            let mut options = DebianOptions::default();
            change(&mut options);
            options.check().unwrap_err().to_string()
        };
        assert!(DebianOptions::default().check().is_ok());
        assert!(refused(|o| o.release = "../etc".into()).contains("--release"));
        assert!(refused(|o| o.include = vec!["-oDebug".into()]).contains("--include"));
        assert!(refused(|o| o.hostname = "a b".into()).contains("--hostname"));
        assert!(refused(|o| o.size = (1 << 30) + 1).contains("--size"));
        assert!(refused(|o| o.root = RootLogin::Password("a\nb".into())).contains("--root-password"));
        assert!(refused(|o| o.copies = vec!["/no/such:/x".parse().unwrap()]).contains("--copy"));
    }
}
