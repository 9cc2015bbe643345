//! The entries: a hash table whose memory is charged against a limit and whose digest is kept current.

use crate::digest::{StoreDigest, entry_digest, entry_digest_hashed, key_hash};
use crate::limits::ENTRY_OVERHEAD_BYTES;
use alloc::boxed::Box;
use alloc::vec::Vec;
use hashbrown::HashTable;

/// The write would take the store past its memory limit, or the allocator had no room. The store is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has reached its memory limit; delete keys or give the guest more memory")]
pub struct StoreFull;

struct Entry {
    key_hash: u64,
    key: Box<[u8]>,
    value: Vec<u8>,
}

impl Entry {
    fn cost(&self) -> usize {
        cost(&self.key, &self.value)
    }
}

fn cost(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_OVERHEAD_BYTES
}

/// A map from keys to values, both arbitrary bytes, bounded in memory.
///
/// The table's hash is not keyed: a peer can choose keys that collide and slow the store down, but not make it
/// grow past its limit.
pub struct Store {
    table: HashTable<Entry>,
    bytes: usize,
    limit_bytes: usize,
    digest: StoreDigest,
}

impl core::fmt::Debug for Store {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Store")
            .field("len", &self.len())
            .field("bytes", &self.bytes)
            .field("limit_bytes", &self.limit_bytes)
            .field("digest", &self.digest)
            .finish()
    }
}

impl Store {
    /// An empty store that charges at most `limit_bytes` for its entries.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self { table: HashTable::new(), bytes: 0, limit_bytes, digest: StoreDigest::new() }
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Bytes charged for the entries, by [`ENTRY_OVERHEAD_BYTES`] and their lengths.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The most [`bytes`](Self::bytes) may become.
    #[must_use]
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let entry = self.table.find(key_hash(key), |entry| *entry.key == *key)?;
        Some(&entry.value)
    }

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// [`StoreFull`]; then nothing has changed.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreFull> {
        let hash = key_hash(key);
        match self.table.find_mut(hash, |entry| *entry.key == *key) {
            Some(entry) => {
                let grown = self.bytes - entry.cost() + cost(key, value);
                if grown > self.limit_bytes && value.len() > entry.value.len() {
                    return Err(StoreFull);
                }
                let old = entry_digest_hashed(hash, &entry.value);
                overwrite(&mut entry.value, value)?;
                self.bytes = grown;
                self.digest.subtract(old);
            }
            None => self.insert_new(hash, key, value)?,
        }
        self.digest.add(entry_digest_hashed(hash, value));
        Ok(())
    }

    fn insert_new(&mut self, key_hash: u64, key: &[u8], value: &[u8]) -> Result<(), StoreFull> {
        let grown = self.bytes + cost(key, value);
        if grown > self.limit_bytes {
            return Err(StoreFull);
        }
        let entry = Entry { key_hash, key: copy(key)?.into_boxed_slice(), value: copy(value)? };
        self.table.try_reserve(1, |entry| entry.key_hash).map_err(|_| StoreFull)?;
        self.table.insert_unique(key_hash, entry, |entry| entry.key_hash);
        self.bytes = grown;
        Ok(())
    }

    /// Removes `key`; whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let hash = key_hash(key);
        let Ok(found) = self.table.find_entry(hash, |entry| *entry.key == *key) else { return false };
        let (entry, _) = found.remove();
        self.bytes -= entry.cost();
        self.digest.subtract(entry_digest_hashed(hash, &entry.value));
        true
    }

    /// Removes every entry and gives the table's memory back.
    pub fn clear(&mut self) {
        *self = Self::new(self.limit_bytes);
    }

    /// The digest kept current by every write, at no cost.
    #[must_use]
    pub fn digest(&self) -> StoreDigest {
        self.digest
    }

    /// The digest computed anew from every byte of every entry: it differs from [`digest`](Self::digest) if memory
    /// was damaged. Time is proportional to the store.
    #[must_use]
    pub fn recomputed_digest(&self) -> StoreDigest {
        let mut digest = StoreDigest::new();
        for entry in &self.table {
            digest.add(entry_digest(&entry.key, &entry.value));
        }
        digest
    }
}

fn copy(bytes: &[u8]) -> Result<Vec<u8>, StoreFull> {
    let mut owned = Vec::new();
    owned.try_reserve_exact(bytes.len()).map_err(|_| StoreFull)?;
    owned.extend_from_slice(bytes);
    Ok(owned)
}

/// Reuses the allocation where it fits well: an overwrite of like size then dirties no new page.
fn overwrite(old: &mut Vec<u8>, new: &[u8]) -> Result<(), StoreFull> {
    if new.len() > old.capacity() || old.capacity() > 2 * new.len() + 64 {
        *old = copy(new)?;
    } else {
        old.clear();
        old.extend_from_slice(new);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_full_store_refuses_growth_but_not_shrinkage() {
        let mut store = Store::new(2 * (ENTRY_OVERHEAD_BYTES + 4));
        store.set(b"aa", b"11").unwrap();
        store.set(b"bb", b"22").unwrap();
        assert_eq!(store.set(b"cc", b""), Err(StoreFull));
        assert_eq!(store.set(b"aa", b"111"), Err(StoreFull));
        assert_eq!(store.get(b"aa"), Some(&b"11"[..]));
        store.set(b"aa", b"1").unwrap();
        assert!(store.remove(b"bb"));
        store.set(b"cc", b"").unwrap();
        assert_eq!(store.digest(), store.recomputed_digest());
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_and_keeps_its_books(
            ops in proptest::collection::vec((0..3_u8, 0..20_u8, proptest::collection::vec(any::<u8>(), 0..90)), 0..200)
        ) {
            let mut store = Store::new(usize::MAX);
            let mut model = BTreeMap::new();
            for (op, key, value) in ops {
                match op {
                    0 | 1 => {
                        store.set(&[key], &value).unwrap();
                        model.insert([key], value);
                    }
                    _ => prop_assert_eq!(store.remove(&[key]), model.remove(&[key]).is_some()),
                }
            }
            prop_assert_eq!(store.len(), model.len());
            prop_assert_eq!(store.bytes(), model.iter().map(|(k, v)| cost(k, v)).sum::<usize>());
            let expected: StoreDigest = model.iter().map(|(k, v)| (&k[..], &v[..])).collect();
            prop_assert_eq!(store.digest(), expected);
            prop_assert_eq!(store.recomputed_digest(), expected);
            store.clear();
            prop_assert_eq!(store.digest(), StoreDigest::new());
        }
    }
}
