//! A fingerprint of a whole store that does not depend on the order of its entries.
//!
//! Precisely: the digest of an entry is XXH3-128 of the value, seeded with XXH3-64 (seed 0) of the key. The digest
//! of a store is the sum of the digests of its entries modulo 2^128; an empty store has digest 0. It is written
//! as 32 lower-case hexadecimal digits, most significant first. Keys are unique within a store, so no entry is
//! counted twice, and a change is one subtraction and one addition.
//!
//! It detects loss, repetition and corruption, not malice: XXH3 is not a cryptographic hash.

use core::fmt;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// The digest of the entry `key` = `value`, as the module text defines it.
#[must_use]
pub fn entry_digest(key: &[u8], value: &[u8]) -> u128 {
    xxh3_128_with_seed(value, key_hash(key))
}

/// XXH3-64 of a key: the seed of its entry's digest and the position of its slot in the store.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// The digest of an entry whose key hash is already known.
pub(crate) fn entry_digest_hashed(key_hash: u64, value: &[u8]) -> u128 {
    xxh3_128_with_seed(value, key_hash)
}

/// The running digest of a set of entries.
///
/// A client that mirrors a store's acknowledged writes keeps one of these beside its own map: [`insert`] on a new
/// key, [`remove`] on a deleted one, [`replace`] on an overwritten one.
///
/// [`insert`]: Self::insert
/// [`remove`]: Self::remove
/// [`replace`]: Self::replace
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StoreDigest(u128);

impl StoreDigest {
    /// The digest of the empty store.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// The digest as a number.
    #[must_use]
    pub const fn value(self) -> u128 {
        self.0
    }

    /// Adds an entry that was not there.
    pub fn insert(&mut self, key: &[u8], value: &[u8]) {
        self.add(entry_digest(key, value));
    }

    /// Takes away an entry that was there with this value.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.subtract(entry_digest(key, value));
    }

    /// Exchanges the value of an entry that was there with value `old`.
    pub fn replace(&mut self, key: &[u8], old: &[u8], new: &[u8]) {
        self.remove(key, old);
        self.insert(key, new);
    }

    pub(crate) fn add(&mut self, entry: u128) {
        self.0 = self.0.wrapping_add(entry);
    }

    pub(crate) fn subtract(&mut self, entry: u128) {
        self.0 = self.0.wrapping_sub(entry);
    }
}

impl fmt::Display for StoreDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl<'a> FromIterator<(&'a [u8], &'a [u8])> for StoreDigest {
    fn from_iter<I: IntoIterator<Item = (&'a [u8], &'a [u8])>>(entries: I) -> Self {
        let mut digest = Self::new();
        for (key, value) in entries {
            digest.insert(key, value);
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn order_does_not_matter_and_removal_undoes_insertion() {
        let ab: StoreDigest = [(&b"a"[..], &b"1"[..]), (b"b", b"2")].into_iter().collect();
        let mut ba: StoreDigest = [(&b"b"[..], &b"2"[..]), (b"a", b"1")].into_iter().collect();
        assert_eq!(ab, ba);
        ba.replace(b"a", b"1", b"3");
        assert_ne!(ab, ba);
        ba.replace(b"a", b"3", b"1");
        ba.remove(b"a", b"1");
        ba.remove(b"b", b"2");
        assert_eq!(ba, StoreDigest::new());
    }

    #[test]
    fn keys_and_values_are_told_apart() {
        assert_ne!(entry_digest(b"ab", b"c"), entry_digest(b"a", b"bc"));
        assert_ne!(entry_digest(b"", b"a"), entry_digest(b"a", b""));
    }

    /// Computed with another implementation of XXH3. Clients rely on it: it must never change.
    #[test]
    fn the_definition_is_pinned() {
        let mut digest = StoreDigest::new();
        assert_eq!(digest.to_string(), "00000000000000000000000000000000");
        digest.insert(b"", b"");
        assert_eq!(digest.to_string(), "7a3edd697cf3f9535310e30cce3262d6");
        digest.insert(b"key:000000000042", b"xxx");
        assert_eq!(digest.to_string(), "3857ac0f51756b83568cbf2c67d689f3");
    }
}
