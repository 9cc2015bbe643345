//! Registers of the clock. They decide nothing about timers and interrupt lines: see `clock`.

use std::time::{SystemTime, UNIX_EPOCH};

use super::date::{DAY_S, Date, Notation};

pub(super) const BYTES: usize = 128;

const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const STATUS_A: usize = 0x0a;
const STATUS_B: usize = 0x0b;
const STATUS_C: usize = 0x0c;
const STATUS_D: usize = 0x0d;
const CENTURY: usize = 0x32;

/// Divider running at 32.768 kHz.
const A_RUNNING: u8 = 0x26;
/// The time is about to change.
const A_UPDATING: u8 = 0x80;
/// How long before a second ends that is said, in microseconds: who reads without seeing it has that long.
const UPDATING_US: u32 = 244;

/// The guest is setting the clock: registers stand still.
const B_SET: u8 = 0x80;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;

/// What happened: an interrupt was raised, and for which reasons; the reasons have the places of their enable bits.
const C_RAISED: u8 = 0x80;

/// Battery good.
const D_VALID: u8 = 0x80;

/// An alarm register from here on matches every value.
const ALARM_ANY: u8 = 0xc0;

/// The device.
#[derive(Debug)]
pub(crate) struct Cmos {
    pub(super) index: u8,
    pub(super) memory: [u8; BYTES],
    /// Seconds the guest set its clock ahead of the host's.
    pub(super) offset_s: i64,
    /// The last second looked at for alarms.
    pub(super) checked_s: i64,
}

impl Cmos {
    /// The device at power-on: the host's time in UTC, 24 hours, BCD.
    pub(super) fn new() -> Cmos {
        let mut memory = [0; BYTES];
        (memory[STATUS_A], memory[STATUS_B]) = (A_RUNNING, B_24H);
        Cmos { index: 0, memory, offset_s: 0, checked_s: 0 }
    }

    /// Reads port 0 (index, write-only) or 1 (data).
    pub(super) fn read(&mut self, port: u16, now: SystemTime) -> u8 {
        if port == 0 { 0xff } else { self.register(now) }
    }

    /// Writes port 0 or 1.
    pub(super) fn write(&mut self, port: u16, value: u8, now: SystemTime) {
        let index = usize::from(self.index);
        match (port, index) {
            // The top bit gates NMIs on hardware and is not part of the index.
            (0, _) => self.index = value & 0x7f,
            (_, SECONDS | MINUTES | HOURS | DAY | MONTH | YEAR | CENTURY) => self.set_time(index, value, now),
            (_, STATUS_A) => self.memory[STATUS_A] = value & !A_UPDATING,
            (_, STATUS_B) => self.set_mode(value, now),
            (_, WEEKDAY | STATUS_C | STATUS_D) => {}
            _ => self.memory[index] = value,
        }
    }

    /// Whether somebody has to call [`Cmos::tick`] each second.
    pub(super) fn ticks(&self) -> bool {
        let mode = self.memory[STATUS_B];
        mode & (B_ALARM | B_UPDATE) != 0 && mode & B_SET == 0
    }

    /// Time has passed; true if the guest is to be interrupted. It reads status C to have another interrupt.
    pub(super) fn tick(&mut self, now: SystemTime) -> bool {
        let (from, to) = (self.checked_s, self.seconds(now));
        self.checked_s = to;
        if to <= from || !self.ticks() {
            return false;
        }
        // Alarms missed during a stall of the host still count, once; they repeat daily.
        let missed = (from.max(to - DAY_S) + 1..=to).any(|second| self.alarm_at(second));
        let happened = B_UPDATE | if missed { B_ALARM } else { 0 };
        let status = &mut self.memory[STATUS_C];
        let raised_before = *status & C_RAISED != 0;
        *status |= happened;
        if happened & self.memory[STATUS_B] != 0 {
            self.memory[STATUS_C] |= C_RAISED;
        }
        !raised_before && self.memory[STATUS_C] & C_RAISED != 0
    }

    fn alarm_at(&self, second: i64) -> bool {
        let time = self.time_registers(second);
        [(SECONDS_ALARM, SECONDS), (MINUTES_ALARM, MINUTES), (HOURS_ALARM, HOURS)]
            .into_iter()
            .all(|(alarm, place)| self.memory[alarm] >= ALARM_ANY || self.memory[alarm] == time[place])
    }

    fn register(&mut self, now: SystemTime) -> u8 {
        match usize::from(self.index) {
            index @ (SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY) => {
                self.current(now)[index]
            }
            STATUS_A => self.memory[STATUS_A] | self.updating(now),
            STATUS_C => std::mem::take(&mut self.memory[STATUS_C]),
            STATUS_D => D_VALID,
            other => self.memory[other],
        }
    }

    fn updating(&self, now: SystemTime) -> u8 {
        let into_second = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_micros());
        let soon = into_second >= 1_000_000 - UPDATING_US && self.memory[STATUS_B] & B_SET == 0;
        if soon { A_UPDATING } else { 0 }
    }

    fn set_mode(&mut self, mode: u8, now: SystemTime) {
        match (self.memory[STATUS_B] & B_SET, mode & B_SET) {
            (0, B_SET) => self.memory = self.current(now),
            (B_SET, 0) => self.adopt(now),
            _ => {}
        }
        let ticked = self.ticks();
        self.memory[STATUS_B] = mode;
        if !ticked {
            self.checked_s = self.seconds(now);
        }
    }

    fn set_time(&mut self, index: usize, value: u8, now: SystemTime) {
        self.memory = self.current(now);
        self.memory[index] = value;
        if self.memory[STATUS_B] & B_SET == 0 {
            self.adopt(now);
        }
    }

    /// Makes what the registers hold the time; what is no time is forgotten.
    fn adopt(&mut self, now: SystemTime) {
        if let Some(seconds) = self.seconds_held() {
            self.offset_s = seconds - host_seconds(now);
            self.checked_s = seconds;
        }
    }

    fn seconds_held(&self) -> Option<i64> {
        let notation = self.notation();
        let number = |place: usize| notation.read(self.memory[place]);
        let year = number(CENTURY)? * 100 + number(YEAR)?;
        let days = Date::days(year, number(MONTH)?, number(DAY)?)?;
        let [minute, second] = [number(MINUTES)?, number(SECONDS)?];
        let hour = notation.read_hour(self.memory[HOURS])?;
        (minute < 60 && second < 60).then_some(days * DAY_S + hour * 3600 + minute * 60 + second)
    }

    /// The registers as they read now.
    fn current(&self, now: SystemTime) -> [u8; BYTES] {
        if self.memory[STATUS_B] & B_SET != 0 { self.memory } else { self.time_registers(self.seconds(now)) }
    }

    /// The registers at `seconds` since 1970 by the guest's clock.
    fn time_registers(&self, seconds: i64) -> [u8; BYTES] {
        let (date, of_day) = (Date::of_day(seconds.div_euclid(DAY_S)), seconds.rem_euclid(DAY_S));
        let notation = self.notation();
        let mut registers = self.memory;
        for (place, number) in [
            (SECONDS, of_day % 60),
            (MINUTES, of_day / 60 % 60),
            (WEEKDAY, date.weekday),
            (DAY, date.day),
            (MONTH, date.month),
            (YEAR, date.year % 100),
            (CENTURY, date.year / 100),
        ] {
            registers[place] = notation.write(number);
        }
        registers[HOURS] = notation.write_hour(of_day / 3600);
        registers
    }

    fn seconds(&self, now: SystemTime) -> i64 {
        host_seconds(now).saturating_add(self.offset_s)
    }

    fn notation(&self) -> Notation {
        let mode = self.memory[STATUS_B];
        Notation { binary: mode & B_BINARY != 0, hours_24: mode & B_24H != 0 }
    }
}

fn host_seconds(now: SystemTime) -> i64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// 29 February 2000, 23:59:58 and half a second.
    fn leap_day() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis((11_016 * 86_400 + 86_398) * 1000 + 500)
    }

    fn get(cmos: &mut Cmos, index: u8, now: SystemTime) -> u8 {
        cmos.write(0, index, now);
        cmos.read(1, now)
    }

    fn set(cmos: &mut Cmos, index: u8, value: u8, now: SystemTime) {
        cmos.write(0, index | 0x80, now);
        cmos.write(1, value, now);
    }

    fn all(cmos: &mut Cmos, now: SystemTime) -> [u8; 7] {
        [0x32, 9, 8, 7, 4, 2, 0].map(|index| get(cmos, index, now))
    }

    #[test]
    fn the_host_s_time_reads_in_every_notation() {
        let (mut cmos, now) = (Cmos::new(), leap_day());
        assert_eq!(all(&mut cmos, now), [0x20, 0x00, 0x02, 0x29, 0x23, 0x59, 0x58]);
        set(&mut cmos, 0x0b, B_24H | B_BINARY, now);
        assert_eq!(all(&mut cmos, now), [20, 0, 2, 29, 23, 59, 58]);
        set(&mut cmos, 0x0b, 0, now);
        assert_eq!(all(&mut cmos, now), [0x20, 0x00, 0x02, 0x29, 0x91, 0x59, 0x58]);
        set(&mut cmos, 0x40, 7, now);
        assert_eq!(
            (get(&mut cmos, 0x40, now), get(&mut cmos, 0x0d, now), cmos.read(0, now)),
            (7, 0x80, 0xff)
        );
    }

    #[test]
    fn time_the_guest_sets_goes_on_from_there() {
        let (mut cmos, now) = (Cmos::new(), leap_day());
        // As Linux does it: stop, write, start.
        set(&mut cmos, 0x0b, B_SET | B_24H, now);
        for (index, value) in [(9, 0x31), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)] {
            set(&mut cmos, index, value, now + Duration::from_millis(700));
        }
        assert_eq!(get(&mut cmos, 0, now + Duration::from_secs(9)), 0x59, "stands still");
        set(&mut cmos, 0x0b, B_24H, now);
        let days = Date::days(2031, 12, 31).unwrap() - 11_016;
        assert_eq!(cmos.offset_s, days * DAY_S + 1);
        let next = all(&mut cmos, now + Duration::from_secs(1));
        assert_eq!(next, [0x20, 0x32, 0x01, 0x01, 0x00, 0x00, 0x00]);
    }

    #[test]
    fn what_is_no_time_is_not_taken() {
        let (mut cmos, now) = (Cmos::new(), leap_day());
        for (index, value) in [(8, 0x13), (7, 0x31), (4, 0x24), (2, 0x60), (0, 0x5a), (0x32, 0x00), (8, 0)] {
            set(&mut cmos, index, value, now);
            assert_eq!(cmos.offset_s, 0, "register {index:#x} = {value:#x}");
        }
        set(&mut cmos, 2, 0x58, now);
        assert_eq!(cmos.offset_s, -60, "one register at a time works too");
    }

    #[test]
    fn an_update_in_progress_shows_just_before_the_second_ends() {
        let mut cmos = Cmos::new();
        let at = |us: u64| UNIX_EPOCH + Duration::from_micros(us);
        assert_eq!(get(&mut cmos, 0x0a, at(999_755)), A_RUNNING);
        assert_eq!(get(&mut cmos, 0x0a, at(999_756)), A_RUNNING | A_UPDATING);
    }

    #[test]
    fn an_alarm_interrupts_once_at_its_time() {
        let (mut cmos, now) = (Cmos::new(), leap_day());
        for (index, value) in [(1, 0x05), (3, 0x00), (5, 0xff)] {
            set(&mut cmos, index, value, now);
        }
        assert!(!cmos.ticks());
        set(&mut cmos, 0x0b, B_24H | B_ALARM, now);
        let at = |second: u64| now + Duration::from_secs(second);
        assert!(cmos.ticks() && !cmos.tick(at(6)), "00:00:04");
        assert!(cmos.tick(at(8)), "00:00:05 was passed over");
        assert!(!cmos.tick(at(8)));
        assert_eq!(get(&mut cmos, 0x0c, now), C_RAISED | B_ALARM | B_UPDATE);
        assert_eq!(get(&mut cmos, 0x0c, now), 0, "reading acknowledges");
        assert!(!cmos.tick(at(60)));
        assert!(cmos.tick(at(60 + 3600 * 30)), "an hour's alarm within a day");
    }

    #[test]
    fn updates_interrupt_every_second_that_is_acknowledged() {
        let (mut cmos, now) = (Cmos::new(), leap_day());
        set(&mut cmos, 0x0b, B_24H | B_UPDATE, now);
        let at = |second: u64| now + Duration::from_secs(second);
        assert!(cmos.tick(at(1)));
        assert!(!cmos.tick(at(2)), "not read yet");
        get(&mut cmos, 0x0c, at(2));
        assert!(cmos.tick(at(3)));
    }
}
