//! Frequency of this machine's time stamp counter, which is also that of an emulated host.

use std::arch::x86_64::_rdtsc;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time between the two readings that make the measurement.
const SPAN: Duration = Duration::from_millis(50);
/// Readings from which the one that was disturbed least is taken.
const TRIES: usize = 16;

/// Kilohertz; measured once.
pub(crate) fn khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let begin = Reading::take();
        thread::sleep(SPAN);
        let end = Reading::take();
        let nanos = end.nanos.abs_diff(begin.nanos).max(1);
        let kilohertz = u128::from(end.count.wrapping_sub(begin.count)) * 1_000_000 / u128::from(nanos);
        u64::try_from(kilohertz).unwrap_or(u64::MAX)
    })
}

/// The counter and the clock at one moment.
#[derive(Clone, Copy)]
struct Reading {
    count: u64,
    nanos: u64,
    /// Counts in which the clock was read: how far apart the two may be.
    uncertainty: u64,
}

impl Reading {
    fn take() -> Reading {
        (0..TRIES)
            .map(|_| Reading::try_once())
            .min_by_key(|reading| reading.uncertainty)
            .expect("several tries")
    }

    fn try_once() -> Reading {
        let before = count();
        let time = clock_gettime(ClockId::Monotonic);
        let uncertainty = count().wrapping_sub(before);
        let nanos =
            Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0)).as_nanos();
        Reading {
            count: before.wrapping_add(uncertainty / 2),
            nanos: u64::try_from(nanos).unwrap_or(u64::MAX),
            uncertainty,
        }
    }
}

fn count() -> u64 {
    // SAFETY: the instruction reads a register of the processor and touches no memory; every x86-64 processor has it, and
    // Linux lets user space use it.
    unsafe { _rdtsc() }
}
