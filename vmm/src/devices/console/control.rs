//! Control messages, `struct virtio_console_control`, and what each port still has to tell the driver.

/// Bytes of a message without what some have behind it.
pub(super) const CONTROL_BYTES: usize = 8;

/// What a message is about.
pub(super) mod event {
    pub(in super::super) const DEVICE_READY: u16 = 0;
    pub(in super::super) const DEVICE_ADD: u16 = 1;
    pub(in super::super) const PORT_READY: u16 = 3;
    pub(in super::super) const CONSOLE_PORT: u16 = 4;
    pub(in super::super) const RESIZE: u16 = 5;
    pub(in super::super) const PORT_OPEN: u16 = 6;
    pub(in super::super) const PORT_NAME: u16 = 7;
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    /// Number of the port.
    pub(super) id: u32,
    pub(super) event: u16,
    pub(super) value: u16,
}

impl Control {
    /// Reads one; anything decodes.
    pub(super) fn decode(bytes: [u8; CONTROL_BYTES]) -> Control {
        let [a, b, c, d, e, f, g, h] = bytes;
        Control {
            id: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// Writes it.
    pub(super) fn encode(self) -> [u8; CONTROL_BYTES] {
        let ([a, b, c, d], [e, f], [g, h]) =
            (self.id.to_le_bytes(), self.event.to_le_bytes(), self.value.to_le_bytes());
        [a, b, c, d, e, f, g, h]
    }
}

/// What the driver and the device know of each other's end of a port. Messages are made of it when there is a buffer for
/// them, so however often a driver asks, nothing piles up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PortState {
    /// Messages owed, bits of [`owed`].
    pub(super) owed: u8,
    /// The driver has the port.
    pub(super) ready: bool,
    /// The guest has opened it.
    pub(super) open: bool,
    /// The client the driver knows of.
    pub(super) told: Option<u64>,
    /// Columns and rows; 0 when nobody has said.
    pub(super) size: (u16, u16),
}

/// Messages owed, in the order in which they are sent.
pub(super) mod owed {
    pub(in super::super) const ADD: u8 = 1;
    pub(in super::super) const CONSOLE: u8 = 2;
    pub(in super::super) const NAME: u8 = 4;
    pub(in super::super) const RESIZE: u8 = 8;
    pub(in super::super) const ALL: u8 = 15;
}

impl PortState {
    /// The driver starts anew; the window stays as large as it is.
    pub(super) fn reset(&mut self) {
        *self = PortState { size: self.size, ..PortState::default() };
    }

    /// The driver is ready for ports.
    pub(super) fn announce(&mut self) {
        self.reset();
        self.owed = owed::ADD;
    }

    /// The driver has the port, or could not have it.
    pub(super) fn added(&mut self, ready: bool, console: bool) {
        self.ready = ready;
        self.told = None;
        self.owed = match (ready, console) {
            (false, _) => 0,
            (true, false) => owed::NAME,
            (true, true) => owed::CONSOLE | owed::NAME | self.owed_size(),
        };
    }

    fn owed_size(&self) -> u8 {
        if self.size == (0, 0) { 0 } else { owed::RESIZE }
    }

    /// The window has another size.
    pub(super) fn resize(&mut self, size: (u16, u16)) {
        self.size = size;
        if self.ready {
            self.owed |= owed::RESIZE;
        }
    }

    /// The next message: event and value. `client` is the one there is.
    pub(super) fn next(&mut self, client: Option<u64>) -> Option<(u16, u16)> {
        let messages = [
            (owed::ADD, event::DEVICE_ADD),
            (owed::CONSOLE, event::CONSOLE_PORT),
            (owed::NAME, event::PORT_NAME),
            (owed::RESIZE, event::RESIZE),
        ];
        if let Some((bit, event)) = messages.into_iter().find(|(bit, _)| self.owed & bit != 0) {
            self.owed &= !bit;
            return Some((event, 1));
        }
        if !self.ready || self.told == client {
            return None;
        }
        // Between two clients the guest sees an end, so that a new one is not taken for the old.
        self.told = if self.told.is_some() { None } else { client };
        Some((event::PORT_OPEN, u16::from(self.told.is_some())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_message_and_come_back(bytes in any::<[u8; CONTROL_BYTES]>()) {
            prop_assert_eq!(Control::decode(bytes).encode(), bytes);
        }
    }

    #[test]
    fn a_new_client_is_not_taken_for_the_old_one() {
        let mut port = PortState { ready: true, told: Some(1), ..PortState::default() };
        assert_eq!(port.next(Some(1)), None);
        assert_eq!(port.next(Some(2)), Some((event::PORT_OPEN, 0)));
        assert_eq!(port.next(Some(2)), Some((event::PORT_OPEN, 1)));
        assert_eq!(port.next(Some(2)), None);
        assert_eq!(port.next(None), Some((event::PORT_OPEN, 0)));
        assert_eq!(port.next(None), None);
    }
}
