//! The PM1a event and control blocks, with the power button as their only event.

use crate::devices::registers::copy;

/// Sleep type of S5 ("soft off"), as the DSDT tells the guest.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;

/// Control: ACPI mode is on (there is no other).
const SCI_ENABLED: u16 = 1;
const SLEEP_TYPE_SHIFT: u32 = 10;
const SLEEP_TYPE_MASK: u16 = 7;
const SLEEP_ENABLE: u16 = 1 << 13;

/// The power button's bit in status and enable.
const POWER_BUTTON: u16 = 1 << 8;
/// Offset of the enable register in the event block, after status.
const ENABLE: usize = 2;
const EVENT_BYTES: usize = 4;

/// The device.
#[derive(Debug, Default)]
pub(crate) struct Power {
    /// What happened and has not been acknowledged.
    pub(super) status: u16,
    pub(super) enabled_events: u16,
    pub(super) control: u16,
    running: bool,
    /// The button was pressed while the machine stood still.
    pressed: bool,
}

impl Power {
    /// Presses the button; a machine that stands still feels it when it goes on.
    pub(crate) fn press(&mut self) {
        if self.running {
            self.status |= POWER_BUTTON;
        } else {
            self.pressed = true;
        }
    }

    /// Whether the interrupt line is up.
    pub(crate) fn interrupts(&self) -> bool {
        self.status & self.enabled_events != 0
    }

    /// Stands still.
    pub(crate) fn pause(&mut self) {
        self.running = false;
    }

    /// Goes on.
    pub(crate) fn resume(&mut self) {
        self.running = true;
        if std::mem::take(&mut self.pressed) {
            self.press();
        }
    }

    /// Takes registers from elsewhere; a press meant for what was here before is forgotten.
    pub(super) fn take(&mut self, status: u16, enabled_events: u16, control: u16) {
        *self = Power { status, enabled_events, control, running: self.running, pressed: false };
    }

    /// Reads the event block: status, then enable.
    pub(crate) fn event_read(&self, offset: usize, into: &mut [u8]) {
        copy(&self.event_block(), offset, into);
    }

    /// Writes the event block: ones clear status bits, enable takes what is written.
    pub(crate) fn event_write(&mut self, offset: usize, data: &[u8]) {
        let mut written = self.event_block();
        written[..ENABLE].fill(0);
        for (byte, new) in written.iter_mut().skip(offset).zip(data) {
            *byte = *new;
        }
        let [s0, s1, e0, e1] = written;
        self.status &= !u16::from_le_bytes([s0, s1]);
        self.enabled_events = u16::from_le_bytes([e0, e1]);
    }

    fn event_block(&self) -> [u8; EVENT_BYTES] {
        let ([s0, s1], [e0, e1]) = (self.status.to_le_bytes(), self.enabled_events.to_le_bytes());
        [s0, s1, e0, e1]
    }

    /// Reads the control block.
    pub(crate) fn control_read(&self, offset: usize, into: &mut [u8]) {
        copy(&(self.control | SCI_ENABLED).to_le_bytes(), offset, into);
    }

    /// Writes the control block; true if the guest switched itself off.
    pub(crate) fn control_write(&mut self, offset: usize, data: &[u8]) -> bool {
        let mut bytes = self.control.to_le_bytes();
        for (byte, new) in bytes.iter_mut().skip(offset).zip(data) {
            *byte = *new;
        }
        let written = u16::from_le_bytes(bytes);
        self.control = written & !SLEEP_ENABLE;
        let sleep_type = written >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        written & SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_S5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Power {
        let mut power = Power::default();
        power.resume();
        power
    }

    fn status(power: &Power) -> u16 {
        let mut read = [0; 2];
        power.event_read(0, &mut read);
        u16::from_le_bytes(read)
    }

    #[test]
    fn only_s5_switches_off() {
        let mut power = Power::default();
        let write = |power: &mut Power, value: u16| power.control_write(0, &value.to_le_bytes());
        assert!(!write(&mut power, 5 << 10));
        assert!(!write(&mut power, 1 << 13 | 3 << 10));
        assert!(write(&mut power, 1 << 13 | 5 << 10));
        let mut read = [0; 2];
        power.control_read(0, &mut read);
        assert_eq!(u16::from_le_bytes(read), 5 << 10 | SCI_ENABLED, "sleep enable reads as zero");
    }

    #[test]
    fn the_line_is_up_while_an_enabled_event_is_unacknowledged() {
        let mut power = running();
        power.press();
        assert!(!power.interrupts(), "not enabled");
        assert_eq!(status(&power), POWER_BUTTON);
        power.event_write(ENABLE, &POWER_BUTTON.to_le_bytes());
        assert!(power.interrupts(), "enabled with the event pending");
        power.event_write(0, &(!POWER_BUTTON).to_le_bytes());
        assert!(power.interrupts(), "other bits acknowledge nothing");
        power.event_write(0, &POWER_BUTTON.to_le_bytes());
        assert_eq!((power.interrupts(), status(&power)), (false, 0));
        power.press();
        power.event_write(ENABLE, &[0; 2]);
        assert!(!power.interrupts(), "disabled again");
    }

    #[test]
    fn registers_can_be_written_at_any_width() {
        let mut power = running();
        power.press();
        power.event_write(3, &[1]);
        assert!(power.interrupts(), "the enable register's upper byte");
        power.event_write(0, &[0xff]);
        assert!(power.interrupts(), "the button is in the upper byte of status");
        power.event_write(0, &[0, 1, 0, 1]);
        let mut block = [0; 4];
        power.event_read(0, &mut block);
        assert_eq!(block, [0, 0, 0, 1], "cleared and enabled in one write");
        power.event_write(9, &[1]);
    }

    #[test]
    fn a_press_while_paused_is_felt_on_resume_and_forgotten_by_a_restore() {
        let mut power = running();
        power.pause();
        power.press();
        assert_eq!(status(&power), 0);
        power.resume();
        assert_eq!(status(&power), POWER_BUTTON);
        power.pause();
        power.press();
        power.take(0, POWER_BUTTON, 0);
        power.resume();
        assert!(!power.interrupts());
    }
}
