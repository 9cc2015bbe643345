//! What lab hosts and their guests boot from. Kernels and guests come from `mycelium-images`; here is what only the lab has: its
//! hosts' initramfs, and binaries for it.

mod initramfs;
mod static_binary;

pub(crate) use initramfs::host_initramfs;
pub use mycelium_images::linux::{Archive, GuestImage, Kernel, MODULE_LIST_PATH, linux_guest_image};
pub use mycelium_images::{Cache, ImageError};
pub use static_binary::static_binary;
