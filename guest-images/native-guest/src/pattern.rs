//! Numbers that look random and follow from a seed: what sectors hold, and the sizes and order of requests.

use alloc::vec::Vec;

/// Bytes of a sector, whatever the disk's blocks are.
pub const SECTOR_BYTES: usize = 512;

/// Bytes of a sector that are one word of the pattern.
const WORD_BYTES: usize = 8;

/// The `SplitMix64` generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// An index below `bound`, which must not be 0.
    pub fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap_or(0)
    }
}

/// Some consecutive sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first.
    pub sector: u64,
    /// How many.
    pub count: usize,
}

/// Cuts `sectors` sectors into extents of 1 to `most` sectors and shuffles them.
#[must_use]
pub fn extents(sectors: u64, most: usize, random: &mut Random) -> Vec<Extent> {
    let mut cut = Vec::new();
    let mut sector = 0;
    while sector < sectors {
        let left = usize::try_from(sectors - sector).unwrap_or(usize::MAX);
        let count = (1 + random.index(most)).min(left);
        cut.push(Extent { sector, count });
        sector += count as u64;
    }
    for at in (1..cut.len()).rev() {
        cut.swap(at, random.index(at + 1));
    }
    cut
}

fn words(seed: u64, sector: u64) -> Random {
    Random::new(seed ^ sector.wrapping_mul(0xd6e8_feb8_6659_fd93))
}

/// Fills whole sectors from `sector` on with what the pattern of `seed` has there.
pub fn fill(bytes: &mut [u8], seed: u64, sector: u64) {
    for (number, content) in (sector..).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
        let mut random = words(seed, number);
        for word in content.chunks_exact_mut(WORD_BYTES) {
            word.copy_from_slice(&random.next_u64().to_le_bytes());
        }
    }
}

/// The first sector of `bytes`, which were read from `sector` on, that does not hold the pattern of `seed`.
#[must_use]
pub fn mismatch(bytes: &[u8], seed: u64, sector: u64) -> Option<u64> {
    let wrong = |number: u64, content: &[u8]| {
        let mut random = words(seed, number);
        content.chunks_exact(WORD_BYTES).any(|word| *word != random.next_u64().to_le_bytes())
    };
    (sector..)
        .zip(bytes.chunks_exact(SECTOR_BYTES))
        .find(|(number, content)| wrong(*number, content))
        .map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn extents_cover_every_sector_once(sectors in 0_u64..5000, most in 1_usize..300, seed: u64) {
            let mut cut = extents(sectors, most, &mut Random::new(seed));
            cut.sort_by_key(|extent| extent.sector);
            let mut next = 0;
            for extent in cut {
                assert_eq!(extent.sector, next);
                assert!((1..=most).contains(&extent.count));
                next += extent.count as u64;
            }
            assert_eq!(next, sectors);
        }

        #[test]
        fn one_wrong_byte_is_found(seed: u64, sector in 0_u64..1 << 40, at in 0_usize..2048) {
            let mut bytes = [0; 2048];
            fill(&mut bytes, seed, sector);
            assert_eq!(mismatch(&bytes, seed, sector), None);
            bytes[at] ^= 1;
            assert_eq!(mismatch(&bytes, seed, sector), Some(sector + (at / SECTOR_BYTES) as u64));
        }
    }

    #[test]
    fn a_sector_in_the_place_of_another_is_found() {
        let mut bytes = [0; 1024];
        fill(&mut bytes, 1, 10);
        bytes.rotate_left(512);
        assert_eq!(mismatch(&bytes, 1, 10), Some(10));
        assert_eq!(mismatch(&bytes, 2, 10), Some(10));
    }
}
