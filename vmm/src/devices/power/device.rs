//! The PM1a event and control blocks. There is no power button yet, so no event ever happens.

/// Sleep type of S5 ("soft off"), as the DSDT tells the guest.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;

/// Control: ACPI mode is on (there is no other).
const SCI_ENABLED: u16 = 1;
const SLEEP_TYPE_SHIFT: u32 = 10;
const SLEEP_TYPE_MASK: u16 = 7;
const SLEEP_ENABLE: u16 = 1 << 13;

/// The device.
#[derive(Debug, Default)]
pub(crate) struct Power {
    pub(super) enabled_events: u16,
    pub(super) control: u16,
}

impl Power {
    /// Reads the event block: status (nothing happened), then enable.
    pub(crate) fn event_read(&self, offset: usize, into: &mut [u8]) {
        let enable = self.enabled_events.to_le_bytes();
        copy(&[0, 0, enable[0], enable[1]], offset, into);
    }

    /// Writes the event block; clearing status bits that are not set changes nothing.
    pub(crate) fn event_write(&mut self, offset: usize, data: &[u8]) {
        if let (2, Ok(value)) = (offset, data.try_into()) {
            self.enabled_events = u16::from_le_bytes(value);
        }
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

fn copy(from: &[u8], offset: usize, into: &mut [u8]) {
    for (to, byte) in into.iter_mut().zip(from.iter().skip(offset)) {
        *to = *byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
