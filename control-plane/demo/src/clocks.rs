//! Watching the guest's clocks and its counter from outside, over the takeover.
//!
//! A reading lies somewhere between our request and its reply. Between a reading before the takeover and one after, at least
//! the time from the earlier reply to the later request has really passed: the guest's monotonic clock must have advanced
//! by that much. How far its wall clock is from ours is bounded the same way.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mycelium_ram::clock;
use serde::Serialize;

use crate::resp::{Connection, Reply};

/// Time between readings.
const EVERY: Duration = Duration::from_millis(10);
/// The guest's clock may run this much slower than ours without having lost time: two hosts' crystals, or in an emulation
/// the calibration of one clock by another.
const RATE_TOLERANCE: f64 = 1e-3;
/// How far the guest's wall clock may be moved by a takeover.
const WALL_SHIFT_MS_MAX: f64 = 50.0;

/// What the guest's clocks showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Our monotonic clock at the request and at the reply, nanoseconds.
    asked: u64,
    answered: u64,
    mono: u64,
    wall: u64,
    /// Largest step back the guest itself has seen.
    backward: u64,
    counter: u64,
}

/// The running watch.
#[derive(Debug)]
pub(crate) struct ClockWatch {
    stop: Arc<AtomicBool>,
    taken: Arc<AtomicUsize>,
    thread: JoinHandle<io::Result<Vec<Reading>>>,
}

/// The guest's clocks over the takeover.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct GuestClocks {
    /// Readings before the takeover and after it.
    pub readings: [usize; 2],
    /// Largest step back of any clock or of the guest's counter, in nanoseconds or counts.
    pub backward: u64,
    /// Real time that the monotonic clock missed over the takeover; none or negative where it advanced by more.
    pub missed_us: Option<f64>,
    /// By how much the wall clock was moved against ours, less the difference of two request times.
    pub wall_shift_ms: Option<f64>,
}

impl ClockWatch {
    /// Starts asking, on a connection of its own.
    pub(crate) fn start(server: SocketAddr, patience: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let taken = Arc::new(AtomicUsize::new(0));
        let (told, counted) = (stop.clone(), taken.clone());
        let thread = std::thread::spawn(move || {
            let mut connection = Connection::open(server, patience)?;
            let mut readings = Vec::new();
            while !told.load(Ordering::Relaxed) {
                readings.push(read(&mut connection)?);
                counted.store(readings.len(), Ordering::Relaxed);
                std::thread::sleep(EVERY);
            }
            Ok(readings)
        });
        Self { stop, taken, thread }
    }

    /// Readings taken so far.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether no more will come.
    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it; the readings, or why they broke off.
    pub(crate) fn finish(self) -> io::Result<Vec<Reading>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the watching thread panicked")))
    }
}

fn read(connection: &mut Connection) -> io::Result<Reading> {
    let counter = match connection.ask(&[b"COUNTER"])? {
        Reply::Int(count) => u64::try_from(count).unwrap_or(0),
        other => return Err(io::Error::other(format!("COUNTER answered {other:?}"))),
    };
    let asked = clock::now().0;
    let reply = connection.ask(&[b"CLOCKS"])?;
    let answered = clock::now().0;
    let Reply::Array(values) = &reply else {
        return Err(io::Error::other(format!("CLOCKS answered {reply:?}")));
    };
    let value = |n: usize| match values.get(n) {
        Some(Reply::Int(value)) => u64::try_from(*value).unwrap_or(0),
        _ => 0,
    };
    Ok(Reading { asked, answered, mono: value(0), wall: value(1), backward: value(3), counter })
}

impl GuestClocks {
    /// Compares readings answered before `lost_at` with those asked for after `resumed`; `wall_offset` is our wall clock
    /// minus our monotonic one.
    pub(crate) fn of(readings: &[Reading], lost_at: u64, resumed: Option<u64>, wall_offset: u64) -> Self {
        let before: Vec<&Reading> = readings.iter().filter(|r| r.answered < lost_at).collect();
        let after: Vec<&Reading> =
            readings.iter().filter(|r| resumed.is_some_and(|resumed| r.asked > resumed)).collect();
        let minus = |a: u64, b: u64| i128::from(a) - i128::from(b);
        let steps = readings.windows(2).flat_map(|pair| {
            let fields: [fn(&Reading) -> u64; 3] = [|r| r.mono, |r| r.wall, |r| r.counter];
            fields.map(|field| field(&pair[0]).saturating_sub(field(&pair[1])))
        });
        let backward = steps.chain(readings.iter().map(|r| r.backward)).max().unwrap_or(0);
        let lead = before.iter().map(|r| minus(r.mono, r.answered)).max();
        let lag = after.iter().map(|r| minus(r.asked, r.mono)).max();
        let wall = |set: &[&Reading]| set.iter().map(|r| minus(r.wall, r.asked + wall_offset)).min();
        Self {
            readings: [before.len(), after.len()],
            backward,
            missed_us: lead.zip(lag).map(|(lead, lag)| (lead + lag) as f64 / 1e3),
            wall_shift_ms: wall(&before).zip(wall(&after)).map(|(b, a)| (a - b) as f64 / 1e6),
        }
    }

    /// For people.
    pub(crate) fn in_words(&self) -> String {
        format!(
            "back by {}, time missed {:.1} ms, wall clock moved by {:.1} ms",
            self.backward,
            self.missed_us.map_or(f64::NAN, |us| us.max(0.0) / 1e3),
            self.wall_shift_ms.unwrap_or(f64::NAN)
        )
    }

    /// What is not as promised. `apart_ms` is the time between the earliest and the latest reading.
    pub(crate) fn failures(&self, apart_ms: f64) -> Vec<String> {
        let mut failures = Vec::new();
        if self.readings.contains(&0) {
            failures
                .push(format!("the guest's clocks were read {:?} times around the takeover", self.readings));
        }
        if self.backward > 0 {
            failures.push(format!("a clock or counter of the guest went back by {}", self.backward));
        }
        let tolerated_us = apart_ms * 1e3 * RATE_TOLERANCE;
        if let Some(missed) = self.missed_us.filter(|missed| *missed > tolerated_us) {
            failures.push(format!("the guest's monotonic clock missed {missed:.0} us over the takeover"));
        }
        if let Some(shift) = self.wall_shift_ms.filter(|shift| shift.abs() > WALL_SHIFT_MS_MAX) {
            failures.push(format!("the guest's wall clock moved by {shift:.1} ms"));
        }
        failures
    }
}

/// The readings asked for and answered in a time, nanoseconds on our monotonic clock.
pub(crate) fn between(readings: &[Reading], since: u64, until: u64) -> Vec<Reading> {
    // One that is under way at the end belongs to what follows.
    readings.iter().filter(|r| r.asked >= since && r.answered <= until).copied().collect()
}

/// Time between the first and the last reading, in milliseconds.
pub(crate) fn apart_ms(readings: &[Reading]) -> f64 {
    match (readings.first(), readings.last()) {
        (Some(first), Some(last)) => (last.answered - first.asked) as f64 / 1e6,
        _ => 0.0,
    }
}

/// The lines `tick N ...` that the guest writes to its console: the first and last number, if every number between them is
/// there once; what is wrong otherwise. None where the guest writes none.
pub(crate) fn ticks(console: &[u8]) -> Option<Result<(u64, u64), String>> {
    let text = String::from_utf8_lossy(console);
    let numbers = text.lines().filter_map(|line| {
        // What the other host wrote is a hole at the start of this host's log.
        line.trim_start_matches('\0').strip_prefix("tick ")?.split(' ').next()?.parse::<u64>().ok()
    });
    let numbers: Vec<u64> = numbers.collect();
    let (first, last) = (*numbers.first()?, *numbers.last()?);
    let gap = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    Some(match gap {
        Some(pair) => Err(format!("the guest's console goes from tick {} to tick {}", pair[0], pair[1])),
        None => Ok((first, last)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A reading at `at` ms, of a guest whose clocks are ahead of ours by `mono` and `wall` ms; one way takes 1 ms.
    fn reading(at: u64, mono: i64, wall: i64) -> Reading {
        let show = |ahead: i64| (at * MS).saturating_add_signed(ahead * 1_000_000);
        Reading {
            asked: (at - 1) * MS,
            answered: (at + 1) * MS,
            mono: show(mono),
            wall: show(wall),
            backward: 0,
            counter: at,
        }
    }

    fn judge(readings: &[Reading]) -> (GuestClocks, Vec<String>) {
        let clocks = GuestClocks::of(readings, 150 * MS, Some(200 * MS), 0);
        (clocks, clocks.failures(apart_ms(readings)))
    }

    #[test]
    fn clocks_that_go_on_are_as_promised() {
        let (clocks, failures) = judge(&[reading(100, 5, 0), reading(300, 5, 0)]);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!((clocks.readings, clocks.wall_shift_ms), ([1, 1], Some(0.0)));
        assert_eq!(clocks.missed_us, Some(-2000.0));
    }

    #[test]
    fn time_that_stood_still_is_missed() {
        let (clocks, failures) = judge(&[reading(100, 0, 0), reading(300, -90, 0)]);
        assert_eq!((clocks.missed_us, failures.len()), (Some(88_000.0), 1), "{failures:?}");
    }

    #[test]
    fn a_moved_wall_clock_and_a_step_back_are_seen() {
        assert_eq!(judge(&[reading(100, 0, 0), reading(300, 0, 60)]).1.len(), 1);
        let (clocks, failures) = judge(&[reading(100, 250, 0), reading(300, 0, 0)]);
        assert_eq!((clocks.backward, failures.len()), (50 * MS, 2), "{failures:?}");
    }

    #[test]
    fn without_readings_nothing_is_proven() {
        assert_eq!(judge(&[reading(100, 0, 0)]).1.len(), 1);
    }

    #[test]
    fn ticks_must_follow_each_other() {
        assert_eq!(ticks(b"\0\0\0tick 7 mono_ns=1\nhello\ntick 8 mono_ns=2\n"), Some(Ok((7, 8))));
        assert!(ticks(b"tick 7 x\ntick 9 x\n").unwrap().is_err());
        assert!(ticks(b"tick 7 x\ntick 7 x\n").unwrap().is_err());
        assert_eq!(ticks(b"hello\n"), None);
    }
}
