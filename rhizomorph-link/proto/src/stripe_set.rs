//! A set of stripe numbers of one bundle, as a bitmap that fits one datagram.

use crate::limits::STRIPES_MAX;

/// Which of `len` stripes are present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeSet {
    bits: Vec<u8>,
    len: usize,
    present: usize,
}

impl StripeSet {
    /// No stripe of `len`.
    ///
    /// # Panics
    /// If `len` exceeds [`STRIPES_MAX`]: the codec and the outbox admit no such bundle.
    pub fn empty(len: usize) -> Self {
        assert!(len <= STRIPES_MAX, "{len} stripes in one bundle; at most {STRIPES_MAX}");
        Self { bits: vec![0; len.div_ceil(8)], len, present: 0 }
    }

    /// Reads a bitmap of `len` stripes: exactly its bytes, and no bit at or beyond `len`.
    pub fn from_bytes(bytes: &[u8], len: usize) -> Option<Self> {
        let exact = len <= STRIPES_MAX && bytes.len() == len.div_ceil(8);
        let spare_clear = len.is_multiple_of(8) || bytes.last().is_none_or(|last| last >> (len % 8) == 0);
        let present = bytes.iter().map(|byte| byte.count_ones() as usize).sum();
        (exact && spare_clear).then(|| Self { bits: bytes.to_vec(), len, present })
    }

    /// The bitmap, lowest stripe in the lowest bit of the first byte.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// How many stripes the bundle has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the bundle has no stripes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every stripe is present.
    pub fn is_full(&self) -> bool {
        self.present == self.len
    }

    /// Whether stripe `index` is present; false beyond the last.
    pub fn contains(&self, index: usize) -> bool {
        index < self.len && self.bits[index / 8] & (1 << (index % 8)) != 0
    }

    /// Adds stripe `index`; true if it was absent. Numbers beyond the last are ignored.
    pub fn insert(&mut self, index: usize) -> bool {
        if index >= self.len || self.contains(index) {
            return false;
        }
        self.bits[index / 8] |= 1 << (index % 8);
        self.present += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_survives_its_bytes() {
        let mut set = StripeSet::empty(11);
        assert!(set.insert(0) && set.insert(10) && !set.insert(10) && !set.insert(11));
        assert_eq!(StripeSet::from_bytes(set.as_bytes(), 11), Some(set.clone()));
        (0..11).for_each(|index| {
            set.insert(index);
        });
        assert!(set.is_full());
    }

    #[test]
    fn refuses_bits_beyond_the_last_and_wrong_sizes() {
        assert_eq!(StripeSet::from_bytes(&[0xff], 7), None);
        assert_eq!(StripeSet::from_bytes(&[0, 0], 8), None);
        assert_eq!(StripeSet::from_bytes(&[0; 4096], 8 * 4096), None);
        assert!(StripeSet::from_bytes(&[], 0).is_some());
    }
}
