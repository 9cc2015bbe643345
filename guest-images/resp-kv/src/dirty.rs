//! Dirtying pages on purpose: which pages, in which order, how fast, and how to tell afterwards that none was lost.
//!
//! | pattern | a round writes | region |
//! | --- | --- | --- |
//! | `contiguous` | every page, in order | `pages` |
//! | `scattered` | every page, in a pseudo-random order | `pages` |
//! | `hot` | the first sixteenth of the pages (at least one), again and again | `pages` |
//! | `cold` | the next `pages` pages of a region sixteen times that size | 16 x `pages` |
//! | `random` | every page once, whole, with words no compressor gains on; there is only one round | `pages` |
//!
//! Word 0 of a written page counts the writes it has had, word 1 holds its index with [`PAGE_TAG`] in the upper
//! half. So the counters of all pages sum to the writes made, and a page that fell back to an older epoch shows.

use crate::limits::{DIRTY_SLICE_PAGES, MAX_DIRTY_PAGES};
use alloc::vec::Vec;

/// Upper 32 bits of word 1 of every dirtied page: "DIRT" in ASCII.
pub const PAGE_TAG: u32 = 0x4449_5254;

/// Rounds a `cold` region lasts before its pages come around again.
const COLD_ROUNDS: u32 = 16;

/// Share of the pages that a `hot` round rewrites.
const HOT_SHARE: u32 = 16;

/// The most a dirtier may fall behind its rate, as a fraction of a second: what is owed beyond that is forgotten.
const DEBT_SHARE: u32 = 10;

/// Words of a 4 KiB page.
const PAGE_WORDS: usize = 512;

/// The order in which pages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One after the other.
    Contiguous,
    /// In pseudo-random order, each page once a round.
    Scattered,
    /// A small set over and over.
    Hot,
    /// Each page rarely, moving through a large region.
    Cold,
    /// Each page once, and all of it.
    Random,
}

/// What to dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtySpec {
    /// The order.
    pub pattern: Pattern,
    /// Pages the table of the module text calls `pages`, 1 to [`MAX_DIRTY_PAGES`].
    pub pages: u32,
    /// Page writes a second; 0 is as fast as possible.
    pub pages_per_second: u32,
}

/// Why words do not describe something to dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirtySpecError {
    /// The first word.
    #[error("the pattern must be contiguous, scattered, hot, cold or random")]
    Pattern,
    /// The second word.
    #[error("the number of pages must be from 1 to {MAX_DIRTY_PAGES}")]
    Pages,
    /// The third word.
    #[error("the rate must be a number of pages a second, 0 for as fast as possible")]
    Rate,
    /// A fourth word.
    #[error("nothing may follow the rate")]
    Excess,
}

impl DirtySpec {
    /// Reads `PATTERN PAGES [PAGES_PER_SECOND]`.
    ///
    /// # Errors
    /// The first word that is missing or wrong.
    pub fn from_words<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Result<Self, DirtySpecError> {
        let pattern = words.next().and_then(pattern_of).ok_or(DirtySpecError::Pattern)?;
        let pages = words.next().and_then(number).ok_or(DirtySpecError::Pages)?;
        if !(1..=MAX_DIRTY_PAGES).contains(&pages) {
            return Err(DirtySpecError::Pages);
        }
        let pages_per_second = match words.next() {
            Some(word) => number(word).ok_or(DirtySpecError::Rate)?,
            None => 0,
        };
        if words.next().is_some() {
            return Err(DirtySpecError::Excess);
        }
        Ok(Self { pattern, pages, pages_per_second })
    }

    /// Pages of memory the pattern needs.
    #[must_use]
    pub fn region_pages(&self) -> u64 {
        match self.pattern {
            Pattern::Cold => u64::from(self.pages) * u64::from(COLD_ROUNDS),
            _ => u64::from(self.pages),
        }
    }

    /// Page writes of one round.
    #[must_use]
    pub fn round_pages(&self) -> u32 {
        match self.pattern {
            Pattern::Hot => (self.pages / HOT_SHARE).max(1),
            _ => self.pages,
        }
    }

    /// Different pages ever written.
    fn distinct_pages(&self) -> u64 {
        match self.pattern {
            Pattern::Hot => u64::from(self.round_pages()),
            _ => self.region_pages(),
        }
    }
}

fn pattern_of(word: &[u8]) -> Option<Pattern> {
    let patterns = [
        (&b"contiguous"[..], Pattern::Contiguous),
        (b"scattered", Pattern::Scattered),
        (b"hot", Pattern::Hot),
        (b"cold", Pattern::Cold),
        (b"random", Pattern::Random),
    ];
    patterns.into_iter().find(|(name, _)| word.eq_ignore_ascii_case(name)).map(|(_, pattern)| pattern)
}

fn number(word: &[u8]) -> Option<u32> {
    core::str::from_utf8(word).ok()?.parse().ok()
}

/// Progress of a dirtier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyStat {
    /// Whether it is writing.
    pub running: bool,
    /// Complete rounds.
    pub rounds: u64,
    /// Page writes, those of the current round included.
    pub page_writes: u64,
}

/// The endless sequence of page indices of a specification.
#[derive(Clone, Debug)]
struct Walk {
    spec: DirtySpec,
    in_round: u32,
    rounds: u64,
    shuffle: Shuffle,
}

impl Walk {
    fn new(spec: DirtySpec) -> Self {
        Self { spec, in_round: 0, rounds: 0, shuffle: Shuffle::new(spec.pages) }
    }

    fn writes(&self) -> u64 {
        self.rounds * u64::from(self.spec.round_pages()) + u64::from(self.in_round)
    }

    /// The next page, and whether it is its first time.
    fn step(&mut self) -> (u64, bool) {
        let first = self.writes() < self.spec.distinct_pages();
        let page = match self.spec.pattern {
            Pattern::Contiguous | Pattern::Hot | Pattern::Random => u64::from(self.in_round),
            Pattern::Scattered => u64::from(self.shuffle.step()),
            Pattern::Cold => {
                let window = self.rounds % u64::from(COLD_ROUNDS);
                window * u64::from(self.spec.pages) + u64::from(self.in_round)
            }
        };
        self.in_round += 1;
        if self.in_round == self.spec.round_pages() {
            self.in_round = 0;
            self.rounds += 1;
        }
        (page, first)
    }
}

/// Visits 0..n in pseudo-random order, round after round: a full-period generator modulo the next power of two,
/// its output mixed by a bijection and skipped where it is not below n.
#[derive(Clone, Debug)]
struct Shuffle {
    state: u32,
    mask: u32,
    below: u32,
}

impl Shuffle {
    fn new(below: u32) -> Self {
        Self { state: 0, mask: below.next_power_of_two() - 1, below }
    }

    fn step(&mut self) -> u32 {
        loop {
            // Multiplier 1 modulo 4 and an odd increment give the full period modulo any power of two.
            self.state = self.state.wrapping_mul(0x915f_77f5).wrapping_add(0x6d2b_79f5) & self.mask;
            let bits = self.mask.count_ones();
            let mixed = (self.state ^ (self.state >> bits.div_ceil(2))).wrapping_mul(0x9e37_79b1) & self.mask;
            let mixed = mixed ^ (mixed >> bits.div_ceil(2));
            if mixed < self.below {
                return mixed;
            }
        }
    }
}

#[repr(C, align(4096))]
struct Page([u64; PAGE_WORDS]);

/// A region of pages, and the walk through it.
pub struct Dirtier {
    walk: Walk,
    /// Always of length 0: the pages are its spare capacity, written when their turn comes, so that memory never
    /// dirtied costs nothing.
    region: Vec<Page>,
    running: bool,
    started_ns: u64,
    /// Writes already made when the pace was last taken up: they are not owed any more.
    paced_from: u64,
}

impl core::fmt::Debug for Dirtier {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Dirtier").field("spec", &self.walk.spec).field("stat", &self.stat()).finish()
    }
}

impl Dirtier {
    /// Takes the memory for `spec` and starts its clock at `now_ns`. `None` if there is not enough memory.
    #[must_use]
    pub fn new(spec: DirtySpec, now_ns: u64) -> Option<Self> {
        let pages = usize::try_from(spec.region_pages()).ok()?;
        let mut region = Vec::new();
        region.try_reserve_exact(pages).ok()?;
        Some(Self { walk: Walk::new(spec), region, running: true, started_ns: now_ns, paced_from: 0 })
    }

    /// Address of the first page, for whoever publishes where the region lies.
    #[must_use]
    pub fn region_address(&self) -> usize {
        self.region.as_ptr().addr()
    }

    /// What is being dirtied.
    #[must_use]
    pub fn spec(&self) -> DirtySpec {
        self.walk.spec
    }

    /// Progress so far.
    #[must_use]
    pub fn stat(&self) -> DirtyStat {
        DirtyStat { running: self.running, rounds: self.walk.rounds, page_writes: self.walk.writes() }
    }

    /// Ends the writing; pages and progress stay.
    pub fn stop(&mut self) {
        self.running = false;
    }

    /// Writes the pages due at `now_ns`, at most [`DIRTY_SLICE_PAGES`], and returns how many that were. Call it
    /// between polls of everything else.
    pub fn run_slice(&mut self, now_ns: u64) -> u32 {
        let owed = self.due(now_ns);
        let due = owed.min(DIRTY_SLICE_PAGES);
        for made in 1..=due {
            let (page, first) = self.walk.step();
            self.write(page, first);
            if self.walk.spec.pattern == Pattern::Random && self.walk.rounds > 0 {
                self.stop();
                return made;
            }
        }
        // Time in which the guest did not run, such as a takeover, must not end in one long burst.
        if owed > due
            && owed > self.walk.spec.pages_per_second / DEBT_SHARE
            && self.walk.spec.pages_per_second > 0
        {
            self.forgive(now_ns);
        }
        due
    }

    /// When the next page is due, in the clock of `now_ns`; `None` if nothing runs.
    #[must_use]
    pub fn next_due_ns(&self, now_ns: u64) -> Option<u64> {
        if !self.running {
            return None;
        }
        if self.due(now_ns) > 0 {
            return Some(now_ns);
        }
        let made = u128::from(self.walk.writes() - self.paced_from + 1);
        let after = (made * 1_000_000_000).div_ceil(u128::from(self.walk.spec.pages_per_second.max(1)));
        Some(self.started_ns.saturating_add(u64::try_from(after).unwrap_or(u64::MAX)))
    }

    fn due(&self, now_ns: u64) -> u32 {
        let rate = self.walk.spec.pages_per_second;
        if !self.running {
            return 0;
        }
        if rate == 0 {
            return u32::MAX;
        }
        let elapsed = u128::from(now_ns.saturating_sub(self.started_ns));
        let owed = elapsed * u128::from(rate) / 1_000_000_000;
        let made = u128::from(self.walk.writes() - self.paced_from);
        u32::try_from(owed.saturating_sub(made)).unwrap_or(u32::MAX)
    }

    /// Forgets what is owed up to `now_ns`.
    fn forgive(&mut self, now_ns: u64) {
        self.started_ns = now_ns;
        self.paced_from = self.walk.writes();
    }

    fn write(&mut self, index: u64, first: bool) {
        let (Ok(at), Ok(low)) = (usize::try_from(index), u32::try_from(index)) else { return };
        let page: *mut u64 = self.region.spare_capacity_mut()[at].as_mut_ptr().cast();
        // SAFETY: `page` points at the 512 words of a page of our own region, aligned to 4096; words 0 and 1 are
        // within it. Word 0 is read only when `first` is false, that is after this function initialised it.
        // The accesses are volatile because the point is the store itself: nobody in this program reads it.
        unsafe {
            let count = if first { 0 } else { page.read_volatile() };
            page.write_volatile(count.wrapping_add(1));
            if first {
                page.add(1).write_volatile(tag(low));
            }
        }
        if first && self.walk.spec.pattern == Pattern::Random {
            let mut word = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            for at in 2..PAGE_WORDS {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                // SAFETY: as above; `at` is below the page's number of words.
                unsafe { page.add(at).write_volatile(word) };
            }
        }
    }

    /// Compares each page with what must have been written to it: (pages found wrong, pages looked at).
    #[must_use]
    pub fn check(&self) -> (u64, u64) {
        let expected = CheckWalk::new(&self.walk);
        let mut bad = 0;
        let looked = self.walk.spec.distinct_pages().min(self.walk.writes());
        let mut first_visits = Walk::new(self.walk.spec);
        for position in 0..looked {
            let (index, _) = first_visits.step();
            let want = expected.count(position);
            let (Ok(at), Ok(low)) = (usize::try_from(index), u32::try_from(index)) else { continue };
            // SAFETY: `at` is an index the walk yields, so it is below the capacity that `new` reserved for
            // exactly this walk, and the first `looked` steps of a walk visit pages that have been written, so
            // both words are initialised.
            let (count, word1) = unsafe {
                let page = self.region.as_ptr().add(at).cast::<u64>();
                (page.read_volatile(), page.add(1).read_volatile())
            };
            if count != want || word1 != tag(low) {
                bad += 1;
            }
        }
        (bad, looked)
    }
}

fn tag(index: u32) -> u64 {
    u64::from(PAGE_TAG) << 32 | u64::from(index)
}

/// How often the page at a position of the visiting order has been written. Every pattern visits its distinct
/// pages in one fixed cyclic order, so the counts differ by at most one.
struct CheckWalk {
    full_cycles: u64,
    remainder: u64,
}

impl CheckWalk {
    fn new(walk: &Walk) -> Self {
        let cycle = walk.spec.distinct_pages();
        Self { full_cycles: walk.writes() / cycle, remainder: walk.writes() % cycle }
    }

    fn count(&self, position: u64) -> u64 {
        self.full_cycles + u64::from(position < self.remainder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn spec(pattern: Pattern, pages: u32, rate: u32) -> DirtySpec {
        DirtySpec { pattern, pages, pages_per_second: rate }
    }

    #[test]
    fn random_pages_are_written_once_and_whole() {
        let mut dirtier = Dirtier::new(spec(Pattern::Random, 3, 0), 0).unwrap();
        dirtier.run_slice(0);
        let stat = dirtier.stat();
        assert_eq!((stat.running, stat.rounds, stat.page_writes), (false, 1, 3));
        assert_eq!((dirtier.run_slice(1), dirtier.check()), (0, (0, 3)));
        // SAFETY: three pages have been written, all of their words.
        let words =
            unsafe { core::slice::from_raw_parts(dirtier.region.as_ptr().cast::<u64>(), 3 * PAGE_WORDS) };
        let different: BTreeSet<u64> = words.iter().copied().collect();
        assert!(different.len() > 3 * (PAGE_WORDS - 2));
    }

    #[test]
    fn reads_its_words() {
        let read = |text: &str| DirtySpec::from_words(text.split(' ').map(str::as_bytes));
        assert_eq!(read("scattered 16384 100000"), Ok(spec(Pattern::Scattered, 16384, 100_000)));
        assert_eq!(read("HOT 1"), Ok(spec(Pattern::Hot, 1, 0)));
        assert_eq!(read("warm 1"), Err(DirtySpecError::Pattern));
        assert_eq!(read("hot 0"), Err(DirtySpecError::Pages));
        assert_eq!(read("hot"), Err(DirtySpecError::Pages));
        assert_eq!(read("hot 1 x"), Err(DirtySpecError::Rate));
        assert_eq!(read("hot 1 1 1"), Err(DirtySpecError::Excess));
    }

    #[test]
    fn the_pace_is_kept_and_long_pauses_are_not_made_up_for() {
        let mut dirtier = Dirtier::new(spec(Pattern::Contiguous, 8, 1000), 0).unwrap();
        assert_eq!(dirtier.run_slice(0), 0);
        assert_eq!(dirtier.next_due_ns(0), Some(1_000_000));
        assert_eq!(dirtier.run_slice(10_000_000), 10);
        assert_eq!(dirtier.run_slice(10_000_000), 0);
        assert_eq!(dirtier.run_slice(5_000_000_000), DIRTY_SLICE_PAGES);
        assert_eq!(dirtier.run_slice(5_000_000_000), 0);
        assert_eq!(dirtier.run_slice(5_002_000_000), 2);
        dirtier.stop();
        assert_eq!(dirtier.next_due_ns(6_000_000_000), None);
        assert_eq!(dirtier.run_slice(9_000_000_000), 0);
        assert_eq!(dirtier.stat(), DirtyStat { running: false, rounds: 65, page_writes: 524 });
    }

    #[test]
    fn a_damaged_page_is_found() {
        let mut dirtier = Dirtier::new(spec(Pattern::Scattered, 100, 0), 0).unwrap();
        dirtier.run_slice(0);
        assert_eq!(dirtier.check(), (0, 100));
        dirtier.write(7, false);
        assert_eq!(dirtier.check(), (1, 100));
    }

    proptest! {
        #[test]
        fn each_round_is_a_permutation(pages in 1_u32..3000) {
            let mut shuffle = Shuffle::new(pages);
            for _ in 0..2 {
                let seen: BTreeSet<u32> = (0..pages).map(|_| shuffle.step()).collect();
                prop_assert_eq!(seen.len(), pages as usize);
            }
        }

        #[test]
        fn untouched_memory_passes_its_check(kind in 0..4_usize, pages in 1_u32..400, slices in 0..8) {
            let pattern = [Pattern::Contiguous, Pattern::Scattered, Pattern::Hot, Pattern::Cold][kind];
            let mut dirtier = Dirtier::new(spec(pattern, pages, 0), 0).unwrap();
            for _ in 0..slices {
                dirtier.run_slice(0);
            }
            prop_assert_eq!(dirtier.check().0, 0);
        }
    }
}
