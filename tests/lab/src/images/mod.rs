//! What lab hosts and their guests boot from: fetched once, checked by hash, reused.

mod apt;
mod bzimage;
mod cache;
mod cpio;
mod guest;
mod initramfs;
mod kernel;
mod modules;
mod static_binary;

pub use bzimage::vmlinux_from_bzimage;
pub use cache::Cache;
pub use cpio::Archive;
pub use guest::{GuestImage, MODULE_LIST_PATH, linux_guest_image};
pub(crate) use initramfs::host_initramfs;
pub use kernel::Kernel;
pub use static_binary::static_binary;
