//! A stock Linux guest: Debian's kernel and an initramfs with the guest agent as init.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Archive, Kernel};
use crate::Cache;
use crate::ImageError;

/// Where the guest agent finds the modules to load: one absolute path a line, in load order.
pub const MODULE_LIST_PATH: &str = "/modules.list";

/// What a guest on our VMM needs of the kernel's modules; the transport and the NIC.
const GUEST_MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];

/// What to put into a VM spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// Uncompressed kernel with a PVH entry.
    pub vmlinux: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
}

/// Builds the guest from the cached kernel and a static binary that becomes its `/init`.
///
/// # Errors
/// As [`Kernel::modules`]; [`ImageError::File`] when the binary cannot be read or the cache not written.
pub fn linux_guest_image(
    cache: &Cache,
    kernel: &Kernel,
    agent_binary: &Path,
) -> Result<GuestImage, ImageError> {
    let mut archive = Archive::new();
    let init = fs::read(agent_binary).map_err(ImageError::file("read", agent_binary))?;
    archive.file("/init", 0o755, init);
    // The kernel opens the init's console before devtmpfs is mounted over this folder.
    for folder in ["/dev", "/proc", "/sys", "/run", "/tmp"] {
        archive.folder(folder);
    }
    let mut list = String::new();
    for (name, content) in kernel.modules(&GUEST_MODULES)? {
        let path = format!("/lib/modules/{name}.ko");
        archive.file(&path, 0o644, content);
        list.push_str(&path);
        list.push('\n');
    }
    archive.file(MODULE_LIST_PATH, 0o644, list);
    Ok(GuestImage { vmlinux: kernel.vmlinux(), initrd: cache.store("guest", "cpio", &archive.finish()?)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::kernel::tests::lay_kernel;

    #[test]
    fn the_initramfs_holds_init_and_modules_in_load_order() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let modules: [(&str, &[&str]); 3] =
            [("virtio", &[]), ("virtio_net", &["virtio"]), ("virtio_pci", &["virtio"])];
        lay_kernel(&cache, "linux-image-6.1.0-56", b"vmlinux", &modules);
        let agent = folder.path().join("agent");
        fs::write(&agent, "the agent").unwrap();
        let kernel = Kernel::ensure(&cache).unwrap();
        let image = linux_guest_image(&cache, &kernel, &agent).unwrap();
        let initrd = String::from_utf8(fs::read(&image.initrd).unwrap()).unwrap();
        let list = "/lib/modules/virtio.ko\n/lib/modules/virtio_pci.ko\n/lib/modules/virtio_net.ko\n";
        assert!(initrd.contains("the agent") && initrd.contains(list), "{initrd}");
        assert_eq!(linux_guest_image(&cache, &kernel, &agent).unwrap(), image);
    }
}
