//! Commands and answers of the controller.

/// Status: an answer waits in the data port.
const OUTPUT_FULL: u8 = 0x01;
/// Status: the self-test was passed.
const SYSTEM: u8 = 0x04;
/// Status: the last write was a command.
const COMMAND: u8 = 0x08;
/// Status: the keyboard is not locked.
const UNLOCKED: u8 = 0x10;

/// Output port: not being reset.
const NO_RESET: u8 = 0x01;
/// Output port: address line 20 is on. It always is; the bit is remembered for those who read it back.
const A20: u8 = 0x02;
/// Mode at power-on: self-test passed, both clocks stopped.
const MODE: u8 = 0x34;

/// Answer to a test of a port: its clock line is stuck, as with nothing plugged in.
const CLOCK_STUCK: u8 = 0x01;
const SELF_TEST_PASSED: u8 = 0x55;

/// The device.
#[derive(Debug)]
pub(crate) struct Keyboard {
    /// Command byte, bit by bit the guest's business.
    pub(super) mode: u8,
    pub(super) output_port: u8,
    /// A command that waits for its operand.
    pub(super) pending: Option<u8>,
    pub(super) answer: Option<u8>,
    pub(super) last_was_command: bool,
}

impl Keyboard {
    /// The device at power-on.
    pub(crate) fn new() -> Keyboard {
        Keyboard {
            mode: MODE,
            output_port: NO_RESET | A20,
            pending: None,
            answer: None,
            last_was_command: false,
        }
    }

    /// Reads status: never busy.
    pub(crate) fn status(&self) -> u8 {
        let full = if self.answer.is_some() { OUTPUT_FULL } else { 0 };
        let command = if self.last_was_command { COMMAND } else { 0 };
        full | command | SYSTEM | UNLOCKED
    }

    /// Reads the data port: the answer if there is one.
    pub(crate) fn data(&mut self) -> u8 {
        self.answer.take().unwrap_or(0)
    }

    /// Takes a command; true if the machine is to be reset.
    pub(crate) fn command(&mut self, command: u8) -> bool {
        self.last_was_command = true;
        self.pending = None;
        match command {
            0x20 => self.answer = Some(self.mode),
            0x60 | 0xd1..=0xd4 => self.pending = Some(command),
            0xa7 => self.mode |= 0x20,
            0xa8 => self.mode &= !0x20,
            0xa9 | 0xab => self.answer = Some(CLOCK_STUCK),
            0xaa => self.answer = Some(SELF_TEST_PASSED),
            0xad => self.mode |= 0x10,
            0xae => self.mode &= !0x10,
            0xc0 => self.answer = Some(0),
            0xd0 => self.answer = Some(self.output_port),
            0xdd => self.output_port &= !A20,
            0xdf => self.output_port |= A20,
            // Pulses the lines whose bits are clear; the lowest is reset.
            0xf0..=0xff => return command & NO_RESET == 0,
            _ => {}
        }
        false
    }

    /// Takes a byte of data; true if the machine is to be reset. What is meant for a keyboard goes nowhere.
    pub(crate) fn write(&mut self, byte: u8) -> bool {
        self.last_was_command = false;
        match self.pending.take() {
            Some(0x60) => self.mode = byte,
            Some(0xd1) => {
                self.output_port = byte | NO_RESET;
                return byte & NO_RESET == 0;
            }
            // Echoed as the keyboard's own, also what should come from a mouse: so there is none.
            Some(0xd2 | 0xd3) => self.answer = Some(byte),
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_come_by_pulse_and_by_output_port_and_by_nothing_else() {
        let mut keyboard = Keyboard::new();
        let resets: Vec<u8> = (0..=255).filter(|command| keyboard.command(*command)).collect();
        assert_eq!(resets, [0xf0, 0xf2, 0xf4, 0xf6, 0xf8, 0xfa, 0xfc, 0xfe]);
        assert!(!keyboard.write(0), "no command waits for it");
        keyboard.command(0xd1);
        assert!(!keyboard.write(0xdf), "A20 on");
        keyboard.command(0xd1);
        assert!(keyboard.write(0xde));
    }

    #[test]
    fn a_kernel_waiting_to_reset_finds_it_ready() {
        // Linux polls bit 1 of status up to 65,536 times.
        let mut keyboard = Keyboard::new();
        assert_eq!(keyboard.status() & 0x02, 0);
        keyboard.command(0x20);
        assert_eq!(keyboard.status() & 0x03, OUTPUT_FULL);
    }

    #[test]
    fn every_question_of_a_probe_is_answered_and_no_mouse_is_found() {
        let mut keyboard = Keyboard::new();
        let mut ask = |command, operand: Option<u8>| {
            keyboard.command(command);
            operand.map(|byte| keyboard.write(byte));
            assert_eq!(keyboard.status() & OUTPUT_FULL, OUTPUT_FULL, "{command:#x}");
            keyboard.data()
        };
        assert_eq!(ask(0x20, None), MODE);
        assert_eq!(ask(0xaa, None), 0x55);
        assert_eq!(ask(0xd3, Some(0x5a)), 0x5a);
        assert!((1..4).contains(&ask(0xa9, None)));
        assert_eq!(ask(0xd0, None) & NO_RESET, NO_RESET);
        assert_eq!(keyboard.status() & OUTPUT_FULL, 0, "and then it is quiet");
        keyboard.command(0x60);
        keyboard.write(0x65);
        keyboard.command(0x20);
        assert_eq!(keyboard.data(), 0x65);
    }
}
