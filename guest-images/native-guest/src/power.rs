//! The ways this machine ends.

use crate::port::Port;
use crate::{serial, traps};
use resp_kv::Control;

// SAFETY: the registers below end or reset the machine, or tell the hypervisor something; none reaches memory.
const PVPANIC: Port = unsafe { Port::new(0x505) };
// SAFETY: as above.
const PM1A_CONTROL: Port = unsafe { Port::new(0x604) };
// SAFETY: as above.
const RESET_CONTROL: Port = unsafe { Port::new(0xcf9) };
// SAFETY: as above.
const KEYBOARD_COMMAND: Port = unsafe { Port::new(0x64) };

const PVPANIC_PANICKED: u8 = 1;
/// Sleep enable with sleep type 5 for S5, as our VMM's ACPI tables say.
const SLEEP_S5: u16 = 0x3400;
/// The same with sleep type 0, as QEMU's tables say.
const SLEEP_S5_QEMU: u16 = 0x2000;
const FULL_RESET: u8 = 0x06;
const PULSE_RESET: u8 = 0xfe;

/// Tells the hypervisor that the guest has panicked.
pub(crate) fn report_panic() {
    PVPANIC.write_u8(PVPANIC_PANICKED);
}

/// Sleeps for ever. Interrupts wake the CPU and send it back to sleep.
pub(crate) fn stop() -> ! {
    loop {
        traps::sleep();
    }
}

/// Ends the machine in the way asked for.
pub(crate) fn end(control: Control) -> ! {
    match control {
        Control::Crash => panic!("asked to crash"),
        Control::TripleFault => traps::triple_fault(),
        Control::PowerOff => {
            PM1A_CONTROL.write_u16(SLEEP_S5);
            PM1A_CONTROL.write_u16(SLEEP_S5_QEMU);
        }
        Control::Reset => {
            RESET_CONTROL.write_u8(FULL_RESET);
            KEYBOARD_COMMAND.write_u8(PULSE_RESET);
        }
    }
    serial::log(format_args!("{control:?} had no effect on this machine"));
    stop()
}
