//! What the guest says about its memory.

/// Bytes of one entry: a tag and a value.
pub(super) const ENTRY_BYTES: usize = 10;

/// The guest's own account of its memory. A field is `None` if its driver does not report it; the values are the
/// guest's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStats {
    /// Bytes swapped in since the guest booted.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Major page faults.
    pub major_faults: Option<u64>,
    /// Minor page faults.
    pub minor_faults: Option<u64>,
    /// Bytes nobody uses.
    pub free: Option<u64>,
    /// Bytes the guest can use at all.
    pub total: Option<u64>,
    /// Bytes new programs could have without swapping.
    pub available: Option<u64>,
    /// Bytes of file caches that can be dropped.
    pub disk_caches: Option<u64>,
    /// Huge pages allocated.
    pub huge_allocations: Option<u64>,
    /// Huge pages that could not be had.
    pub huge_failures: Option<u64>,
}

impl BalloonStats {
    /// Reads entries; unknown tags and a cut last entry are passed over, of a tag given twice the last counts.
    pub(super) fn parse(bytes: &[u8]) -> BalloonStats {
        let mut stats = BalloonStats::default();
        for entry in bytes.as_chunks::<ENTRY_BYTES>().0 {
            let [t0, t1, value @ ..] = *entry;
            if let Some(field) = stats.field(u16::from_le_bytes([t0, t1])) {
                *field = Some(u64::from_le_bytes(value));
            }
        }
        stats
    }

    /// The field of a tag (`VIRTIO_BALLOON_S_*`).
    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.disk_caches,
            8 => &mut self.huge_allocations,
            9 => &mut self.huge_failures,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_tags_are_read_and_everything_else_is_passed_over() {
        let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        let bytes = [entry(4, 1), entry(99, 2), entry(5, 1 << 40), entry(4, 3), vec![6, 0, 1]].concat();
        let expected = BalloonStats { free: Some(3), total: Some(1 << 40), ..BalloonStats::default() };
        assert_eq!(BalloonStats::parse(&bytes), expected);
    }
}
