//! A bundle's bytes: several parts that count as one message.

use bytes::{Bytes, BytesMut};

/// Bytes in several parts, cut and joined without copying.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    parts: Vec<Bytes>,
    /// Where each part ends; as long as `parts`.
    ends: Vec<usize>,
}

impl Payload {
    /// Bytes of all parts together.
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The parts, in order. A received bundle has one a stripe.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// All bytes in one piece; copies only if there are several parts.
    pub fn into_bytes(mut self) -> Bytes {
        if self.parts.len() == 1 {
            return self.parts.remove(0);
        }
        let mut joined = BytesMut::with_capacity(self.len());
        self.parts.iter().for_each(|part| joined.extend_from_slice(part));
        joined.freeze()
    }

    /// The `len` bytes from `offset` on, sharing memory. They must lie inside.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Vec<Bytes> {
        let end = offset + len;
        let first = self.ends.partition_point(|&part_end| part_end <= offset);
        let starts = |at: usize| self.ends[at] - self.parts[at].len();
        (first..self.parts.len())
            .take_while(|&at| starts(at) < end)
            .map(|at| {
                let part = &self.parts[at];
                let from = offset.saturating_sub(starts(at));
                let to = (end - starts(at)).min(part.len());
                part.slice(from..to)
            })
            .collect()
    }
}

impl From<Vec<Bytes>> for Payload {
    fn from(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        let ends = parts.iter().scan(0, |end, part| {
            *end += part.len();
            Some(*end)
        });
        let ends = ends.collect();
        Self { parts, ends }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        vec![bytes].into()
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static [u8]> for Payload {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::from_static(bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slices_like_the_joined_bytes(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..10),
            cut: (prop::sample::Index, prop::sample::Index),
        ) {
            let joined = parts.concat();
            let payload = Payload::from(parts.into_iter().map(Bytes::from).collect::<Vec<_>>());
            prop_assert_eq!(payload.len(), joined.len());
            let (a, b) = (cut.0.index(joined.len() + 1), cut.1.index(joined.len() + 1));
            let (from, to) = (a.min(b), a.max(b));
            prop_assert_eq!(payload.slice(from, to - from).concat(), &joined[from..to]);
            prop_assert_eq!(payload.into_bytes(), joined);
        }
    }
}
