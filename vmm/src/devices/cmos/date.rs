//! The calendar, and how the clock's registers write it.

/// A day has that many seconds; the clock knows no leap seconds.
pub(super) const DAY_S: i64 = 86_400;
const CYCLE_DAYS: i64 = 146_097;
const MARCH_0000_TO_1970: i64 = 719_468;

/// Years a guest may set: what two digits and a century that firmware writes can mean.
const YEARS: std::ops::RangeInclusive<i64> = 1900..=9999;

/// Hour register: afternoon, in the 12-hour mode.
const PM: u8 = 0x80;

/// A day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    pub(super) month: i64,
    pub(super) day: i64,
    /// 1 is Sunday.
    pub(super) weekday: i64,
}

impl Date {
    /// The date `days` after 1 January 1970 (a Thursday).
    ///
    /// Counts in 400-year cycles of years that begin in March, which puts the leap day last.
    pub(super) fn of_day(days: i64) -> Date {
        let shifted = days + MARCH_0000_TO_1970;
        let (cycle, in_cycle) = (shifted.div_euclid(CYCLE_DAYS), shifted.rem_euclid(CYCLE_DAYS));
        let year_of_cycle = (in_cycle - in_cycle / 1_460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
        let day_of_year = in_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = cycle * 400 + year_of_cycle + i64::from(month <= 2);
        Date { year, month, day, weekday: (days + 4).rem_euclid(7) + 1 }
    }

    /// The days from 1 January 1970 to a date; `None` if there is no such date.
    pub(super) fn days(year: i64, month: i64, day: i64) -> Option<i64> {
        if !YEARS.contains(&year) || !(1..=12).contains(&month) {
            return None;
        }
        let (from_march, year_of_march) = if month > 2 { (month - 3, year) } else { (month + 9, year - 1) };
        let (cycle, of_cycle) = (year_of_march / 400, year_of_march % 400);
        let day_of_year = (153 * from_march + 2) / 5 + day - 1;
        let in_cycle = 365 * of_cycle + of_cycle / 4 - of_cycle / 100 + day_of_year;
        let days = cycle * CYCLE_DAYS + in_cycle - MARCH_0000_TO_1970;
        let date = Date::of_day(days);
        (date.year, date.month, date.day).eq(&(year, month, day)).then_some(days)
    }
}

/// How numbers are written: status register B decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Notation {
    pub(super) binary: bool,
    pub(super) hours_24: bool,
}

impl Notation {
    /// A number below 100 as a register holds it.
    pub(super) fn write(self, value: i64) -> u8 {
        let digits = if self.binary { value } else { value / 10 % 10 * 16 + value % 10 };
        u8::try_from(digits).unwrap_or(0)
    }

    /// Reads it back; `None` for digits there are not.
    pub(super) fn read(self, register: u8) -> Option<i64> {
        let (tens, ones) = (i64::from(register >> 4), i64::from(register & 0xf));
        match self.binary {
            true => Some(i64::from(register)),
            false if tens < 10 && ones < 10 => Some(tens * 10 + ones),
            false => None,
        }
    }

    /// An hour of the day.
    pub(super) fn write_hour(self, hour: i64) -> u8 {
        if self.hours_24 {
            return self.write(hour);
        }
        let twelve = (hour + 11) % 12 + 1;
        self.write(twelve) | if hour >= 12 { PM } else { 0 }
    }

    /// Reads it back.
    pub(super) fn read_hour(self, register: u8) -> Option<i64> {
        if self.hours_24 {
            return self.read(register).filter(|hour| *hour < 24);
        }
        let twelve = self.read(register & !PM).filter(|hour| (1..=12).contains(hour))?;
        Some(twelve % 12 + if register & PM == 0 { 0 } else { 12 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        let date = |year, month, day, weekday| Date { year, month, day, weekday };
        assert_eq!(Date::of_day(0), date(1970, 1, 1, 5));
        assert_eq!(Date::of_day(-1), date(1969, 12, 31, 4));
        assert_eq!(Date::of_day(11_016), date(2000, 2, 29, 3));
        assert_eq!(Date::of_day(11_017), date(2000, 3, 1, 4));
        assert_eq!(Date::of_day(20_514), date(2026, 3, 2, 2));
        assert_eq!(Date::of_day(47_540), date(2100, 2, 28, 1));
        assert_eq!(Date::of_day(47_541), date(2100, 3, 1, 2));
        assert_eq!(Date::days(2100, 2, 29), None);
        assert_eq!(Date::days(2000, 2, 29), Some(11_016));
        assert_eq!(Date::days(2000, 0, 1), None);
        assert_eq!(Date::days(2000, 1, 0), None);
    }

    #[test]
    fn midnight_and_noon_have_their_own_ways_in_the_12_hour_mode() {
        let notation = Notation { binary: false, hours_24: false };
        for (hour, register) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
            assert_eq!((notation.write_hour(hour), notation.read_hour(register)), (register, Some(hour)));
        }
        assert_eq!((notation.read_hour(0x00), notation.read_hour(0x13)), (None, None));
    }

    proptest! {
        #[test]
        fn days_and_dates_map_onto_each_other(days in -25_000i64..2_900_000) {
            let date = Date::of_day(days);
            prop_assert_eq!(Date::days(date.year, date.month, date.day), Some(days));
        }

        #[test]
        fn what_is_written_is_read_back(binary: bool, hours_24: bool, value in 0i64..100, hour in 0i64..24) {
            let notation = Notation { binary, hours_24 };
            prop_assert_eq!(notation.read(notation.write(value)), Some(value));
            prop_assert_eq!(notation.read_hour(notation.write_hour(hour)), Some(hour));
        }
    }
}
