//! The vocabulary as types: an epoch cannot be passed where a generation is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $letter:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// The one before this; zero stays zero.
            #[must_use]
            pub const fn prev(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }
    };
}

counter!(
    /// A slice of guest execution that commits whole or not at all. Zero is "before the first epoch".
    EpochId,
    "e"
);
counter!(
    /// Counts takeovers of one VM. The arbiter alone raises it.
    Generation,
    "g"
);
counter!(
    /// Position of a frame in the order in which the active side gave frames to the guest. Zero is "none yet".
    IngressSeq,
    "i"
);
counter!(
    /// Index of a 4 KiB page of guest RAM, counted over RAM only (holes in the address space have no index).
    PageIndex,
    "p"
);

/// Name of a protected VM: 1 to [`crate::limits::VM_ID_BYTES`] bytes of `[A-Za-z0-9._-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmId(String);

impl VmId {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`BadVmId`] when the name is empty, too long or has other characters.
    pub fn new(name: impl Into<String>) -> Result<Self, BadVmId> {
        let name = name.into();
        let fits = (1..=crate::limits::VM_ID_BYTES).contains(&name.len());
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits && plain { Ok(Self(name)) } else { Err(BadVmId(name)) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A VM name that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("VM name {0:?} is not usable: give 1 to {max} characters of A-Z a-z 0-9 . _ -", max = crate::limits::VM_ID_BYTES)]
pub struct BadVmId(String);

impl TryFrom<String> for VmId {
    type Error = BadVmId;
    fn try_from(name: String) -> Result<Self, BadVmId> {
        Self::new(name)
    }
}

impl std::str::FromStr for VmId {
    type Err = BadVmId;
    fn from_str(name: &str) -> Result<Self, BadVmId> {
        Self::new(name)
    }
}

impl From<VmId> for String {
    fn from(id: VmId) -> Self {
        id.0
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node's Ed25519 public key; the node is its key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        parse_hex(&text).map(Self).ok_or_else(|| serde::de::Error::custom("a node id is 64 hex digits"))
    }
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut out = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// Drawn anew at random at every process start, so that a restarted process is never taken for its predecessor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One process that may hold a VM: a node, and which start of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// The start of its process.
    pub incarnation: Incarnation,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}", self.node, self.incarnation)
    }
}

/// Names one attempt to change the arbiter's record, so that a lost reply can be settled by reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    /// Who proposed it.
    pub incarnation: Incarnation,
    /// Counts that process's proposals.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_names_are_checked() {
        assert!(VmId::new("web-1.prod_a").is_ok());
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(VmId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn node_ids_print_and_parse() {
        let id = NodeId(std::array::from_fn(|i| u8::try_from(i * 7).unwrap()));
        assert_eq!(parse_hex(&id.to_string()), Some(id.0));
        assert_eq!(parse_hex("zz"), None);
        assert_eq!(parse_hex(&"+1".repeat(32)), None);
    }
}
