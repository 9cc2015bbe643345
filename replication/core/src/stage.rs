//! The replica's staging area: an epoch's parts gather here and leave together, whole and verified, or not at all.
//!
//! ```text
//!   Part*, End (any order, doubles ignored) ──> all parts there, hash right, base staged ──> StagedEpoch, in epoch order
//! ```
//! The first epoch of a replica (the seed, `base` none) holds every page of the guest. It has nothing below it that must
//! survive, so its parts are handed out as soon as they arrive in order and are not kept twice.

use std::collections::BTreeMap;

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::ids::EpochId;
use crate::limits;
use crate::message::{EpochEnd, EpochPart, PartKind};
use crate::sabotage::{Sabotage, sabotaged};

/// Why a part or end cannot be taken. The sender is at fault; the link to it should be closed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// More epochs are open than a correct primary ever has.
    #[error("epoch {0} would be one open epoch more than the limit of {max}", max = limits::OPEN_EPOCHS)]
    TooManyEpochs(EpochId),
    /// Its parts do not fit.
    #[error("epoch {epoch} would stage more than the {limit} bytes this replica has room for")]
    TooManyBytes {
        /// Which epoch.
        epoch: EpochId,
        /// The bound in bytes.
        limit: usize,
    },
    /// A part index beyond the bound, or beyond the count the end gave.
    #[error("epoch {epoch} has no part {index}")]
    NoSuchPart {
        /// Which epoch.
        epoch: EpochId,
        /// Which part.
        index: u32,
    },
    /// Two ends, or parts with different bases.
    #[error("epoch {0} contradicts what was received of it before")]
    Contradiction(EpochId),
    /// The content is not what the sender sealed.
    #[error("epoch {0} does not match its content hash")]
    BadHash(EpochId),
}

/// What a part carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What it is about.
    pub kind: PartKind,
    /// The pages or changes.
    pub payload: Bytes,
}

/// A whole, verified epoch.
#[derive(Debug)]
pub struct StagedEpoch {
    /// Everything but the parts.
    pub end: EpochEnd,
    /// What the parts carry that have not been handed out before, in order.
    pub parts: Vec<Piece>,
}

#[derive(Debug)]
struct OpenEpoch {
    base: Option<EpochId>,
    parts: BTreeMap<u32, Piece>,
    hashes: BTreeMap<u32, u64>,
    /// Parts below this index were handed out already (seed only).
    handed_out: u32,
    end: Option<EpochEnd>,
}

/// The staging area.
#[derive(Debug)]
pub struct Stager {
    staged: Option<EpochId>,
    open: BTreeMap<EpochId, OpenEpoch>,
    bytes: usize,
    bytes_max: usize,
}

impl Stager {
    /// An empty area that may keep `bytes_max` bytes of parts.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { staged: None, open: BTreeMap::new(), bytes: 0, bytes_max }
    }

    /// The newest whole epoch.
    #[must_use]
    pub fn staged(&self) -> Option<EpochId> {
        self.staged
    }

    /// Bytes kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets every epoch that is not whole (the primary sends their content anew after a new handshake).
    pub fn abort_open(&mut self) {
        self.open.clear();
        self.bytes = 0;
    }

    /// Takes a part. Returns seed parts that may be applied right away, in order; empty for all other epochs.
    ///
    /// # Errors
    /// [`StageError`]: the sender is faulty or hostile.
    pub fn part(&mut self, part: EpochPart) -> Result<Vec<Piece>, StageError> {
        if self.is_past(part.epoch) {
            return Ok(Vec::new());
        }
        let (epoch, index, size) = (part.epoch, part.index, part.payload.len());
        if self.bytes + size > self.bytes_max {
            return Err(StageError::TooManyBytes { epoch, limit: self.bytes_max });
        }
        let open = self.open_epoch(epoch, part.base)?;
        let parts_max = open.end.as_ref().map_or(limits::EPOCH_PARTS, |end| end.parts);
        if index >= parts_max {
            return Err(StageError::NoSuchPart { epoch, index });
        }
        if open.hashes.contains_key(&index) {
            return Ok(Vec::new());
        }
        open.hashes.insert(index, part_hash(part.kind, &part.payload));
        open.parts.insert(index, Piece { kind: part.kind, payload: part.payload });
        let ready = open.take_seed_parts();
        self.bytes = self.bytes + size - weigh(&ready);
        Ok(ready)
    }

    /// Takes an epoch's end.
    ///
    /// # Errors
    /// [`StageError`]: the sender is faulty or hostile.
    pub fn end(&mut self, end: EpochEnd) -> Result<(), StageError> {
        if self.is_past(end.epoch) {
            return Ok(());
        }
        let open = self.open_epoch(end.epoch, end.base)?;
        if let Some(index) = open.hashes.keys().next_back().filter(|i| **i >= end.parts) {
            return Err(StageError::NoSuchPart { epoch: end.epoch, index: *index });
        }
        match &open.end {
            Some(earlier) if earlier.content_hash != end.content_hash => {
                Err(StageError::Contradiction(end.epoch))
            }
            Some(_) => Ok(()),
            None => {
                open.end = Some(end);
                Ok(())
            }
        }
    }

    /// Hands out the next epoch if it is whole and follows the newest staged one. Call until it returns none.
    ///
    /// # Errors
    /// [`StageError::BadHash`] when the content is not what was sealed.
    pub fn next_whole(&mut self) -> Result<Option<StagedEpoch>, StageError> {
        let Some((&epoch, open)) = self.open.first_key_value() else { return Ok(None) };
        let Some(end) = open.end.as_ref().filter(|end| open.is_whole(end) && open.base == self.staged) else {
            return Ok(None);
        };
        let honest = !sabotaged(Sabotage::AckBeforeStaged);
        if honest && content_hash(open.hashes.values().copied(), end) != end.content_hash {
            return Err(StageError::BadHash(epoch));
        }
        let Some(OpenEpoch { parts, end: Some(end), .. }) = self.open.remove(&epoch) else { return Ok(None) };
        self.staged = Some(epoch);
        self.bytes -= weigh(parts.values());
        Ok(Some(StagedEpoch { end, parts: parts.into_values().collect() }))
    }

    fn is_past(&self, epoch: EpochId) -> bool {
        self.staged.is_some_and(|s| epoch <= s)
    }

    fn open_epoch(&mut self, epoch: EpochId, base: Option<EpochId>) -> Result<&mut OpenEpoch, StageError> {
        if !self.open.contains_key(&epoch) && self.open.len() >= limits::OPEN_EPOCHS {
            return Err(StageError::TooManyEpochs(epoch));
        }
        let open = self.open.entry(epoch).or_insert_with(|| OpenEpoch::new(base));
        if open.base == base { Ok(open) } else { Err(StageError::Contradiction(epoch)) }
    }
}

impl OpenEpoch {
    fn new(base: Option<EpochId>) -> Self {
        Self { base, parts: BTreeMap::new(), hashes: BTreeMap::new(), handed_out: 0, end: None }
    }

    fn is_whole(&self, end: &EpochEnd) -> bool {
        self.hashes.len() == end.parts as usize || sabotaged(Sabotage::AckBeforeStaged)
    }

    fn take_seed_parts(&mut self) -> Vec<Piece> {
        if self.base.is_some() && !sabotaged(Sabotage::PartialEpochApplied) {
            return Vec::new();
        }
        let mut ready = Vec::new();
        while let Some(part) = self.parts.remove(&self.handed_out) {
            ready.push(part);
            self.handed_out += 1;
        }
        ready
    }
}

fn weigh<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> usize {
    pieces.into_iter().map(|piece| piece.payload.len()).sum()
}

/// The hash an [`EpochEnd`] carries: over the parts' hashes in order, then the state.
#[must_use]
pub fn content_hash(part_hashes: impl IntoIterator<Item = u64>, end: &EpochEnd) -> u64 {
    let mut hash = Xxh3::new();
    part_hashes.into_iter().for_each(|h| hash.update(&h.to_le_bytes()));
    hash.update(&end.state);
    hash.update(&end.ingress.0.to_le_bytes());
    hash.digest()
}

/// The hash of one part, for [`content_hash`].
#[must_use]
pub fn part_hash(kind: PartKind, payload: &[u8]) -> u64 {
    let seed = match kind {
        PartKind::Pages => 0,
        PartKind::Disks => 1,
    };
    xxh3_64_with_seed(payload, seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::IngressSeq;
    use crate::time::Time;
    use proptest::prelude::*;

    fn epoch(id: u64, base: Option<u64>, parts: &[&'static [u8]]) -> (Vec<EpochPart>, EpochEnd) {
        let (epoch, base) = (EpochId(id), base.map(EpochId));
        let mut end = EpochEnd {
            epoch,
            base,
            parts: u32::try_from(parts.len()).unwrap(),
            content_hash: 0,
            cut_at: Time(0),
            released: EpochId(0),
            ingress: IngressSeq(id),
            state: Bytes::from_static(b"state"),
            outputs: Vec::new(),
        };
        end.content_hash = content_hash(parts.iter().map(|p| part_hash(PartKind::Pages, p)), &end);
        let part = |(i, p): (usize, &&'static [u8])| EpochPart {
            epoch,
            base,
            index: u32::try_from(i).unwrap(),
            kind: PartKind::Pages,
            payload: Bytes::from_static(p),
        };
        (parts.iter().enumerate().map(part).collect(), end)
    }

    fn payloads(pieces: &[Piece]) -> Vec<&[u8]> {
        pieces.iter().map(|piece| &piece.payload[..]).collect()
    }

    #[test]
    fn an_epoch_is_whole_only_with_all_its_parts_and_its_base() {
        let mut s = Stager::new(1000);
        let (seed, seed_end) = epoch(5, None, &[b"a", b"b"]);
        let (next, next_end) = epoch(6, Some(5), &[b"c"]);
        s.part(next[0].clone()).unwrap();
        s.end(next_end).unwrap();
        assert!(s.next_whole().unwrap().is_none());
        assert!(s.part(seed[1].clone()).unwrap().is_empty());
        s.end(seed_end).unwrap();
        assert!(s.next_whole().unwrap().is_none());
        assert_eq!(payloads(&s.part(seed[0].clone()).unwrap()), [b"a", b"b"]);
        assert_eq!(s.next_whole().unwrap().unwrap().end.epoch, EpochId(5));
        assert_eq!(payloads(&s.next_whole().unwrap().unwrap().parts), [b"c"]);
        assert_eq!((s.staged(), s.bytes()), (Some(EpochId(6)), 0));
    }

    #[test]
    fn a_flipped_byte_is_noticed() {
        let mut s = Stager::new(1000);
        let (mut parts, end) = epoch(1, None, &[b"abc"]);
        parts[0].payload = Bytes::from_static(b"abd");
        s.part(parts[0].clone()).unwrap();
        s.end(end).unwrap();
        assert_eq!(s.next_whole().unwrap_err(), StageError::BadHash(EpochId(1)));
    }

    #[test]
    fn pages_cannot_pass_for_changes_of_a_disk() {
        let mut s = Stager::new(1000);
        let (parts, end) = epoch(1, None, &[b"abc"]);
        s.part(EpochPart { kind: PartKind::Disks, ..parts[0].clone() }).unwrap();
        s.end(end).unwrap();
        assert_eq!(s.next_whole().unwrap_err(), StageError::BadHash(EpochId(1)));
    }

    #[test]
    fn hostile_senders_are_bounded() {
        let mut s = Stager::new(10);
        let part = |epoch, index, size| EpochPart {
            epoch: EpochId(epoch),
            base: Some(EpochId(0)),
            index,
            kind: PartKind::Pages,
            payload: Bytes::from(vec![0; size]),
        };
        assert!(matches!(s.part(part(1, 0, 11)), Err(StageError::TooManyBytes { .. })));
        assert!(matches!(s.part(part(1, u32::MAX, 1)), Err(StageError::NoSuchPart { .. })));
        let opened = (1..100).take_while(|e| s.part(part(*e, 0, 0)).is_ok()).count();
        assert_eq!(opened, limits::OPEN_EPOCHS);
        let other_base = EpochPart { base: None, ..part(1, 1, 0) };
        assert_eq!(s.part(other_base), Err(StageError::Contradiction(EpochId(1))));
    }

    proptest! {
        #[test]
        fn any_order_and_doubling_gives_the_same_epochs(order in proptest::collection::vec(0usize..9, 60..120)) {
            let epochs = [
                epoch(3, None, &[b"a", b"b", b"c"]),
                epoch(4, Some(3), &[b"d", b"e"]),
                epoch(5, Some(4), &[b"f"]),
            ];
            let mut s = Stager::new(1000);
            let (mut image, mut whole) = (Vec::new(), Vec::new());
            for step in order.into_iter().chain(0..9) {
                let (parts, end) = &epochs[step / 3];
                match parts.get(step % 3) {
                    Some(part) => image.extend(s.part(part.clone()).unwrap()),
                    None => s.end(end.clone()).unwrap(),
                }
                if step == 2 {
                    s.end(epochs[0].1.clone()).unwrap();
                }
                while let Some(e) = s.next_whole().unwrap() {
                    image.extend(e.parts);
                    whole.push(e.end.epoch.0);
                }
            }
            prop_assert_eq!(whole, [3, 4, 5]);
            prop_assert_eq!(payloads(&image).concat(), b"abcdef");
            prop_assert_eq!(s.bytes(), 0);
        }
    }
}
