//! What the host asks of the guest, which the guest may do or not.

use super::{Machine, MachineError};
use crate::devices::balloon::{BalloonDevice, BalloonInfo};

impl Machine {
    /// Asks the guest to have given up `pages` pages of 4 KiB in all; what it gives up goes back to the host. A paused
    /// guest hears of it when it is resumed. The target stays over resets and goes with the state.
    ///
    /// # Errors
    /// [`MachineError::NoBalloon`], or [`MachineError::BalloonTooLarge`] unless `pages` is less than RAM has.
    pub fn set_balloon(&self, pages: u64) -> Result<(), MachineError> {
        let balloon = self.platform.balloon().ok_or(MachineError::NoBalloon)?;
        let ram = self.ram.page_count();
        match u32::try_from(pages) {
            Ok(target) if pages < ram => {
                balloon.set_target(target);
                Ok(())
            }
            _ => Err(MachineError::BalloonTooLarge { pages, ram }),
        }
    }

    /// Presses the power button: a guest that listens (Linux with systemd or acpid does) shuts down. A paused guest
    /// feels it when it is resumed.
    pub fn press_power_button(&self) {
        self.platform.with_acpi(|acpi| acpi.power.press());
    }

    /// How the balloon stands; `None` without one. The guest is asked for fresh statistics, at most once a second: call
    /// again to have them.
    pub fn balloon(&self) -> Option<BalloonInfo> {
        self.platform.balloon().as_deref().map(BalloonDevice::info)
    }
}
