//! Registers of the clock. Time is the host's, in UTC, and always current; alarms and interrupts are not offered.

use std::time::{SystemTime, UNIX_EPOCH};

pub(super) const BYTES: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Divider running at 32.768 kHz; never "update in progress", as a read is atomic.
const STATUS_A_RUNNING: u8 = 0x26;
/// 24-hour, BCD.
const STATUS_B_24H: u8 = 0x02;
/// Battery good.
const STATUS_D_VALID: u8 = 0x80;

/// The device.
#[derive(Debug)]
pub(crate) struct Cmos {
    pub(super) index: u8,
    pub(super) memory: [u8; BYTES],
}

impl Cmos {
    /// The device at power-on.
    pub(crate) fn new() -> Cmos {
        Cmos { index: 0, memory: [0; BYTES] }
    }

    /// Reads port 0 (index, write-only) or 1 (data).
    pub(crate) fn read(&self, port: u16) -> u8 {
        if port == 0 { 0xff } else { self.register(SystemTime::now()) }
    }

    /// Writes port 0 or 1. Setting the clock is ignored: the host keeps time.
    pub(crate) fn write(&mut self, port: u16, value: u8) {
        match port {
            // The top bit gates NMIs on hardware and is not part of the index.
            0 => self.index = value & 0x7f,
            _ => self.memory[usize::from(self.index)] = value,
        }
    }

    fn register(&self, now: SystemTime) -> u8 {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let date = Date::of_day(seconds / 86_400);
        match self.index {
            SECONDS => bcd(seconds % 60),
            MINUTES => bcd(seconds / 60 % 60),
            HOURS => bcd(seconds / 3600 % 24),
            WEEKDAY => bcd(date.weekday),
            DAY => bcd(date.day),
            MONTH => bcd(date.month),
            YEAR => bcd(date.year % 100),
            CENTURY => bcd(date.year / 100),
            STATUS_A => STATUS_A_RUNNING,
            STATUS_B => STATUS_B_24H,
            STATUS_C => 0,
            STATUS_D => STATUS_D_VALID,
            other => self.memory[usize::from(other)],
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Date {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
}

impl Date {
    /// The date `days` after 1 January 1970 (a Thursday).
    ///
    /// Counts in 400-year cycles of years that begin in March, which puts the leap day last.
    fn of_day(days: u64) -> Date {
        const CYCLE_DAYS: u64 = 146_097;
        const MARCH_0000_TO_1970: u64 = 719_468;
        let shifted = days + MARCH_0000_TO_1970;
        let (cycle, in_cycle) = (shifted / CYCLE_DAYS, shifted % CYCLE_DAYS);
        let year_of_cycle = (in_cycle - in_cycle / 1_460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
        let day_of_year = in_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
        Date { year, month, day, weekday: (days + 4) % 7 + 1 }
    }
}

fn bcd(value: u64) -> u8 {
    u8::try_from(value / 10 % 10 * 16 + value % 10).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        let date = |year, month, day, weekday| Date { year, month, day, weekday };
        assert_eq!(Date::of_day(0), date(1970, 1, 1, 5));
        assert_eq!(Date::of_day(11_016), date(2000, 2, 29, 3));
        assert_eq!(Date::of_day(11_017), date(2000, 3, 1, 4));
        assert_eq!(Date::of_day(20_514), date(2026, 3, 2, 2));
        assert_eq!(Date::of_day(47_540), date(2100, 2, 28, 1));
        assert_eq!(Date::of_day(47_541), date(2100, 3, 1, 2));
    }

    #[test]
    fn registers_read_in_bcd_and_memory_keeps_what_is_written() {
        let mut cmos = Cmos::new();
        let at = UNIX_EPOCH + Duration::from_secs(11_016 * 86_400 + 23 * 3600 + 59 * 60 + 58);
        for (index, value) in [(0, 0x58), (2, 0x59), (4, 0x23), (7, 0x29), (8, 0x02), (9, 0x00), (0x32, 0x20)]
        {
            cmos.write(0, index | 0x80);
            assert_eq!(cmos.register(at), value, "register {index:#x}");
        }
        cmos.write(0, 0x40);
        cmos.write(1, 7);
        assert_eq!(cmos.read(1), 7);
    }
}
