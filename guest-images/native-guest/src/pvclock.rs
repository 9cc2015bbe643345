//! The arithmetic of kvmclock: nanoseconds from a TSC reading and the record the hypervisor maintains.

/// Scale and offset taken from one consistent reading of the hypervisor's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// TSC value at which `system_time_ns` was true.
    pub tsc_timestamp: u64,
    /// Nanoseconds since the VM's boot at `tsc_timestamp`.
    pub system_time_ns: u64,
    /// Fraction of 2^32 nanoseconds per shifted TSC tick.
    pub mul: u32,
    /// Shift of the TSC difference: left if positive, right if negative.
    pub shift: i8,
}

impl Scale {
    /// A scale for a TSC of `hz` that reads zero at `tsc_zero`, for machines without kvmclock.
    #[must_use]
    pub fn from_frequency(hz: u64, tsc_zero: u64) -> Self {
        // mul = 10^9 / hz * 2^32 must fit 32 bits: halve the ratio until it does, and shift the ticks left instead.
        let mut ratio = (1_000_000_000_u128 << 32) / u128::from(hz.max(1));
        let mut shift = 0;
        while ratio > u128::from(u32::MAX) {
            ratio >>= 1;
            shift += 1;
        }
        let mul = u32::try_from(ratio).unwrap_or(u32::MAX);
        Self { tsc_timestamp: tsc_zero, system_time_ns: 0, mul, shift }
    }

    /// Nanoseconds since the VM's boot at the reading `tsc`. A reading before `tsc_timestamp` counts as equal to it.
    #[must_use]
    pub fn nanoseconds(&self, tsc: u64) -> u64 {
        let ticks = u128::from(tsc.saturating_sub(self.tsc_timestamp));
        let shifted = if self.shift >= 0 {
            ticks << self.shift.unsigned_abs().min(32)
        } else {
            ticks >> self.shift.unsigned_abs().min(64)
        };
        let delta = (shifted * u128::from(self.mul)) >> 32;
        self.system_time_ns.saturating_add(u64::try_from(delta).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for hz in [100_000_000, 1_000_000_000, 2_500_000_000, 3_999_999_999] {
            let scale = Scale::from_frequency(hz, 1000);
            let error = scale.nanoseconds(1000 + hz).abs_diff(1_000_000_000);
            assert!(error <= 10, "{hz} Hz is off by {error} ns a second");
        }
    }

    #[test]
    fn never_before_its_own_timestamp() {
        let scale = Scale { tsc_timestamp: 500, system_time_ns: 77, mul: 1 << 31, shift: 0 };
        assert_eq!(scale.nanoseconds(10), 77);
        assert_eq!(scale.nanoseconds(504), 79);
    }

    #[test]
    fn extreme_records_do_not_overflow() {
        let scale = Scale { tsc_timestamp: 0, system_time_ns: u64::MAX, mul: u32::MAX, shift: 31 };
        assert_eq!(scale.nanoseconds(u64::MAX), u64::MAX);
        let scale = Scale { shift: -127, ..scale };
        assert_eq!(scale.nanoseconds(u64::MAX), u64::MAX);
    }
}
