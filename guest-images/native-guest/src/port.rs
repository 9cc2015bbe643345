//! Port I/O. Ring 3 may do it because its I/O privilege level is 3.

use core::arch::asm;

/// One I/O port of a device whose registers are safe to drive: naming it is the unsafe step, using it is not.
#[derive(Clone, Copy)]
pub(crate) struct Port(u16);

impl Port {
    /// # Safety
    /// Whatever is written to or read from the port must not be able to change memory this program owns, other
    /// than by ending the program (a reset, a power-off).
    pub(crate) const unsafe fn new(number: u16) -> Self {
        Self(number)
    }

    pub(crate) fn write_u8(self, value: u8) {
        // SAFETY: the constructor's caller promised that accesses to this port leave our memory alone.
        unsafe {
            asm!("out dx, al", in("dx") self.0, in("al") value, options(nomem, nostack, preserves_flags));
        }
    }

    pub(crate) fn read_u8(self) -> u8 {
        let value: u8;
        // SAFETY: as in `write_u8`.
        unsafe {
            asm!("in al, dx", in("dx") self.0, out("al") value, options(nomem, nostack, preserves_flags));
        }
        value
    }

    pub(crate) fn write_u16(self, value: u16) {
        // SAFETY: as in `write_u8`.
        unsafe {
            asm!("out dx, ax", in("dx") self.0, in("ax") value, options(nomem, nostack, preserves_flags));
        }
    }

    pub(crate) fn write_u32(self, value: u32) {
        // SAFETY: as in `write_u8`.
        unsafe {
            asm!("out dx, eax", in("dx") self.0, in("eax") value, options(nomem, nostack, preserves_flags));
        }
    }

    pub(crate) fn read_u32(self) -> u32 {
        let value: u32;
        // SAFETY: as in `write_u8`.
        unsafe {
            asm!("in eax, dx", in("dx") self.0, out("eax") value, options(nomem, nostack, preserves_flags));
        }
        value
    }
}
