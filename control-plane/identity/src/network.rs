//! The name of a network.

use std::fmt;
use std::str::FromStr;

use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// 32 random bytes that tell one network from all others. As text: 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub [u8; 32]);

/// A network's name that does not parse, or could not be drawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkIdError {
    /// Not 64 hexadecimal digits.
    #[error("{0:?} names no network: expected 64 hexadecimal digits, as `mycelium status` prints them")]
    Text(String),
    /// The system gave no randomness.
    #[error("the system gives no random numbers ({0}); check that /dev/urandom is readable here")]
    Random(String),
}

impl NetworkId {
    /// A new name from the system's randomness.
    ///
    /// # Errors
    /// [`NetworkIdError::Random`].
    pub fn generate() -> Result<Self, NetworkIdError> {
        let mut id = [0; 32];
        OsRng.try_fill_bytes(&mut id).map_err(|error| NetworkIdError::Random(error.to_string()))?;
        Ok(Self(id))
    }

    /// The first eight digits: enough for people, not for programs.
    #[must_use]
    pub fn short(&self) -> String {
        self.0[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkId({})", self.short())
    }
}

impl FromStr for NetworkId {
    type Err = NetworkIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A network's name and a key have the same text form.
        let key: Result<rhizomorph_link::PeerKey, _> = text.parse();
        key.map(|key| Self(key.0)).map_err(|_| NetworkIdError::Text(text.chars().take(80).collect()))
    }
}

impl Serialize for NetworkId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NetworkId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses() {
        let id = NetworkId::generate().unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().starts_with(&id.short()));
        assert_eq!(id.short().len(), 8);
        assert!("xyz".parse::<NetworkId>().unwrap_err().to_string().contains("xyz"));
    }
}
