//! One painful number, split into parts that sum to it.

/// Where the time went in which the guest stood, microseconds of the source's clock: from the order to pause to the word
/// that it runs at the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Downtime {
    /// Until the guest stood still.
    pub pause_us: u64,
    /// Reading and sending the last pages, until the destination had them.
    pub pages_us: u64,
    /// Saving vCPUs and devices.
    pub state_us: u64,
    /// Letting go of the disks, and taking them at the destination.
    pub disks_us: u64,
    /// Restoring at the destination.
    pub restore_us: u64,
    /// Resuming at the destination.
    pub resume_us: u64,
    /// The rest: messages on their way, and threads that waited for a processor.
    pub network_us: u64,
}

impl Downtime {
    /// Splits `total_us`. What was measured on two clocks may exceed it by their drift; then later parts are cut, so that
    /// the sum is exact.
    #[must_use]
    pub fn split(total_us: u64, measured: Self) -> Self {
        let mut left = total_us;
        let mut take = |part: u64| {
            let taken = part.min(left);
            left -= taken;
            taken
        };
        let [pause_us, pages_us, state_us, disks_us, restore_us, resume_us] = [
            measured.pause_us,
            measured.pages_us,
            measured.state_us,
            measured.disks_us,
            measured.restore_us,
            measured.resume_us,
        ]
        .map(&mut take);
        Self { pause_us, pages_us, state_us, disks_us, restore_us, resume_us, network_us: left }
    }

    /// All of it.
    #[must_use]
    pub fn total_us(&self) -> u64 {
        let Self { pause_us, pages_us, state_us, disks_us, restore_us, resume_us, network_us } = self;
        pause_us + pages_us + state_us + disks_us + restore_us + resume_us + network_us
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_sum_to_the_total(total in 0u64..1 << 40, parts in any::<[u32; 6]>()) {
            let [pause_us, pages_us, state_us, disks_us, restore_us, resume_us] = parts.map(u64::from);
            let measured =
                Downtime { pause_us, pages_us, state_us, disks_us, restore_us, resume_us, network_us: 0 };
            let split = Downtime::split(total, measured);
            prop_assert_eq!(split.total_us(), total);
            if measured.total_us() <= total {
                prop_assert_eq!(Downtime { network_us: 0, ..split }, measured);
            }
        }
    }
}
