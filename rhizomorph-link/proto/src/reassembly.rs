//! Putting bundles together from stripes that come in any order, on any path, any number of times.
//!
//! ```text
//!   unknown ── first stripe ──> open ── last missing stripe ──> held ── application takes it ──> taken
//! ```
//!
//! A bundle is acknowledged when taken, so a slow application slows the sender instead of filling memory. What a
//! hostile sender can make us hold is bounded by [`HELD_BYTES_MAX`] of *declared* bundle lengths.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::codec::StripeHeader;
use crate::ids::{BundleId, Priority};
use crate::limits::{BUNDLE_SPAN, HELD_BYTES_MAX};
use crate::stripe_set::StripeSet;

/// The sender broke the rules of the link; its connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReassemblyError {
    /// Two stripes disagree about the bundle's length, stripe size or class.
    #[error("stripes of {0} disagree about its shape; the sender is faulty, update or remove it")]
    Conflict(BundleId),
    /// More bytes than a link may have under way.
    #[error(
        "{0} would make {1} bytes held, more than {HELD_BYTES_MAX}; the sender ignores its window, update or remove it"
    )]
    Window(BundleId, usize),
    /// The id runs too far ahead.
    #[error(
        "{0} is {BUNDLE_SPAN} or more ahead of {1}, the oldest not taken; the sender ignores its window, update or remove it"
    )]
    Span(BundleId, BundleId),
    /// A stripe whose bytes are not as many as its header says. Also a caller's fault if it did not check.
    #[error(
        "a stripe of {bundle} has {got} bytes, its header says {said}; the sender is faulty, update or remove it"
    )]
    Length {
        /// The bundle.
        bundle: BundleId,
        /// Bytes announced.
        said: usize,
        /// Bytes that came.
        got: usize,
    },
}

/// What to do with a stripe whose header has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Read it.
    Wanted,
    /// It is already here.
    Duplicate,
    /// Its bundle was taken: the sender seems to have missed the acknowledgement, repeat it.
    Taken,
}

/// A bundle that became whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Its id.
    pub id: BundleId,
    /// Its class.
    pub priority: Priority,
    /// Its bytes in order, one part a stripe.
    pub parts: Vec<Bytes>,
}

/// What is known of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The application has it.
    Taken,
    /// Not yet; these stripes are here (length 0 if none ever came).
    Waiting(StripeSet),
}

/// The receiving half of a link's bundles.
#[derive(Debug, Default)]
pub struct Reassembly {
    open: BTreeMap<BundleId, Open>,
    /// Every bundle below was taken.
    floor: u64,
    /// Taken ones at or above the floor.
    taken: BTreeSet<u64>,
    held_bytes: usize,
}

#[derive(Debug)]
struct Open {
    shape: StripeHeader,
    have: StripeSet,
    /// Empty once the bundle became whole and was handed out.
    parts: Vec<Bytes>,
}

impl Open {
    fn new(shape: StripeHeader) -> Self {
        Self { shape, have: StripeSet::empty(shape.count()), parts: vec![Bytes::new(); shape.count()] }
    }

    fn agrees(&self, header: &StripeHeader) -> bool {
        let shape = |h: &StripeHeader| (h.priority(), h.bundle_len(), h.stripe_size());
        shape(&self.shape) == shape(header)
    }
}

impl Reassembly {
    /// Looks at a stripe's header before its bytes are read, and makes room for its bundle.
    ///
    /// # Errors
    /// [`ReassemblyError`] when the sender broke a rule.
    pub fn offer(&mut self, header: &StripeHeader) -> Result<Offer, ReassemblyError> {
        let id = header.bundle();
        if self.is_taken(id) {
            return Ok(Offer::Taken);
        }
        if !self.open.contains_key(&id) {
            self.admit(header)?;
        }
        let open = &self.open[&id];
        if !open.agrees(header) {
            return Err(ReassemblyError::Conflict(id));
        }
        Ok(if open.have.contains(header.index()) { Offer::Duplicate } else { Offer::Wanted })
    }

    fn admit(&mut self, header: &StripeHeader) -> Result<(), ReassemblyError> {
        let id = header.bundle();
        if id.0 - self.floor >= BUNDLE_SPAN {
            return Err(ReassemblyError::Span(id, BundleId(self.floor)));
        }
        let held = self.held_bytes + header.bundle_len();
        if held > HELD_BYTES_MAX {
            return Err(ReassemblyError::Window(id, held));
        }
        self.held_bytes = held;
        self.open.insert(id, Open::new(*header));
        Ok(())
    }

    /// Adds a stripe's bytes; returns the bundle if this was the last one missing.
    ///
    /// # Errors
    /// As [`Reassembly::offer`], and [`ReassemblyError::Length`].
    pub fn insert(&mut self, header: &StripeHeader, bytes: Bytes) -> Result<Option<Whole>, ReassemblyError> {
        if bytes.len() != header.len() {
            let (bundle, said, got) = (header.bundle(), header.len(), bytes.len());
            return Err(ReassemblyError::Length { bundle, said, got });
        }
        if self.offer(header)? != Offer::Wanted {
            return Ok(None);
        }
        let Some(open) = self.open.get_mut(&header.bundle()) else { return Ok(None) };
        open.have.insert(header.index());
        open.parts[header.index()] = bytes;
        Ok(open.have.is_full().then(|| Whole {
            id: header.bundle(),
            priority: header.priority(),
            parts: std::mem::take(&mut open.parts),
        }))
    }

    /// The application has taken a whole bundle; its room is free, and it may be acknowledged.
    pub fn take(&mut self, id: BundleId) {
        if !self.open.get(&id).is_some_and(|open| open.have.is_full()) {
            return;
        }
        let open = self.open.remove(&id);
        self.held_bytes -= open.map_or(0, |open| open.shape.bundle_len());
        self.taken.insert(id.0);
        while self.taken.remove(&self.floor) {
            self.floor += 1;
        }
    }

    /// What is known of a bundle, for the sender's query.
    pub fn standing(&self, id: BundleId) -> Standing {
        if self.is_taken(id) {
            return Standing::Taken;
        }
        let have = self.open.get(&id).map(|open| open.have.clone());
        Standing::Waiting(have.unwrap_or_else(|| StripeSet::empty(0)))
    }

    /// Declared bytes of all bundles not taken yet.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn is_taken(&self, id: BundleId) -> bool {
        id.0 < self.floor || self.taken.contains(&id.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::{BUNDLE_MAX, STRIPE_MIN};

    fn header(id: u64, len: usize, index: usize) -> StripeHeader {
        sized(id, len, STRIPE_MIN, index)
    }

    fn sized(id: u64, len: usize, size: usize, index: usize) -> StripeHeader {
        let narrow = |n: usize| u32::try_from(n).unwrap();
        StripeHeader::new(BundleId(id), Priority::Bulk, narrow(len), narrow(size), narrow(index)).unwrap()
    }

    fn content(id: u64, header: &StripeHeader) -> Bytes {
        (header.offset()..header.offset() + header.len()).map(|at| byte(id, at)).collect()
    }

    #[expect(clippy::cast_possible_truncation, reason = "a test pattern")]
    fn byte(id: u64, at: usize) -> u8 {
        (at as u64 * 31 + id * 7 + (at as u64 >> 8)) as u8
    }

    #[test]
    fn a_taken_bundle_is_known_and_its_room_is_free() {
        let mut inbox = Reassembly::default();
        let stripe = header(0, 5, 0);
        assert_eq!(inbox.offer(&stripe), Ok(Offer::Wanted));
        assert!(inbox.insert(&stripe, Bytes::from_static(b"hello")).unwrap().is_some());
        assert_eq!(inbox.offer(&stripe), Ok(Offer::Duplicate));
        assert!(matches!(inbox.standing(BundleId(0)), Standing::Waiting(have) if have.is_full()));
        inbox.take(BundleId(0));
        assert_eq!((inbox.standing(BundleId(0)), inbox.held_bytes()), (Standing::Taken, 0));
        assert_eq!(inbox.offer(&stripe), Ok(Offer::Taken));
        inbox.take(BundleId(0));
    }

    #[test]
    fn an_incomplete_bundle_cannot_be_taken() {
        let mut inbox = Reassembly::default();
        let stripe = header(0, STRIPE_MIN + 1, 0);
        inbox.insert(&stripe, content(0, &stripe)).unwrap();
        inbox.take(BundleId(0));
        assert_eq!(inbox.held_bytes(), STRIPE_MIN + 1);
    }

    #[test]
    fn conflicting_shapes_are_refused() {
        let mut inbox = Reassembly::default();
        inbox.offer(&header(0, 100_000, 0)).unwrap();
        let conflict = Err(ReassemblyError::Conflict(BundleId(0)));
        assert_eq!(inbox.offer(&header(0, 100_001, 1)), conflict);
        assert_eq!(inbox.offer(&sized(0, 100_000, STRIPE_MIN + 1, 1)), conflict);
    }

    #[test]
    fn windows_hold() {
        let mut inbox = Reassembly::default();
        for id in 0..4 {
            inbox.offer(&header(id, BUNDLE_MAX, 0)).unwrap();
        }
        assert!(matches!(inbox.offer(&header(4, 1, 0)), Err(ReassemblyError::Window(..))));
        assert!(matches!(inbox.offer(&header(BUNDLE_SPAN, 0, 0)), Err(ReassemblyError::Span(..))));
        assert!(matches!(inbox.offer(&header(u64::MAX, 0, 0)), Err(ReassemblyError::Span(..))));
    }

    #[test]
    fn a_stripe_of_the_wrong_length_is_refused() {
        let mut inbox = Reassembly::default();
        let refused = inbox.insert(&header(0, 10, 0), Bytes::from_static(b"short"));
        assert_eq!(refused, Err(ReassemblyError::Length { bundle: BundleId(0), said: 10, got: 5 }));
    }

    proptest! {
        /// Any order and any repetition in, each bundle out exactly once and exactly as sent.
        #[test]
        fn any_order_and_duplication_in_the_exact_bundle_out(
            lens in prop::collection::vec(0usize..200_000, 1..5),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..120),
            take_at_once: bool,
        ) {
            let mut stripes: Vec<StripeHeader> = (0u64..).zip(&lens)
                .flat_map(|(id, &len)| (0..header(id, len, 0).count()).map(move |index| header(id, len, index)))
                .collect();
            let repeats: Vec<StripeHeader> = order.iter().map(|at| *at.get(&stripes)).collect();
            stripes.splice(0..0, repeats);
            let mut inbox = Reassembly::default();
            let mut out = BTreeMap::new();
            for stripe in &stripes {
                let id = stripe.bundle().0;
                if let Some(whole) = inbox.insert(stripe, content(id, stripe)).unwrap() {
                    prop_assert!(out.insert(whole.id.0, whole.parts.concat()).is_none());
                    if take_at_once { inbox.take(whole.id); }
                }
            }
            prop_assert_eq!(out.len(), lens.len());
            for (id, bytes) in out {
                prop_assert_eq!(bytes.len(), lens[usize::try_from(id).unwrap()]);
                prop_assert!(bytes.iter().enumerate().all(|(at, &b)| b == byte(id, at)));
            }
        }
    }
}
