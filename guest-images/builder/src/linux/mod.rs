//! Guests without a disk: Debian's kernel, fetched once and checked by hash, with an initramfs of our own.

mod apt;
mod bzimage;
mod cpio;
mod guest;
mod kernel;
mod modules;

#[cfg(feature = "fuzzing")]
pub use bzimage::fuzz_bzimage;
pub use bzimage::vmlinux_from_bzimage;
pub use cpio::Archive;
pub use guest::{GuestImage, MODULE_LIST_PATH, linux_guest_image};
pub use kernel::Kernel;
#[cfg(feature = "fuzzing")]
pub use modules::fuzz_module;
