//! A system without a boot configuration: the links a distribution keeps to its newest kernel.

use crate::fs::FilesError;
use crate::limits;
use crate::menu::{Boot, Fixed, Item, Place};
use crate::volume::Volumes;

/// Links to kernels and to their initrds.
const LINKS: [(&str, &str); 2] = [("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img")];

/// An entry for the volume's own kernel, and how its root was found; nothing if there is no kernel.
pub(crate) fn read(volumes: &Volumes, volume: usize) -> Result<Option<(Fixed, String)>, FilesError> {
    let Some((kernel, initrd)) = LINKS.into_iter().find(|(kernel, _)| volumes.has(volume, kernel)) else {
        return Ok(None);
    };
    let place = |path: &str| Place { volume: Some(volume), device: String::new(), path: path.to_owned() };
    let initrds = if volumes.has(volume, initrd) { vec![place(initrd)] } else { Vec::new() };
    let (root, whence) = root(volumes, volume)?;
    let boot = Boot { kernel: Some(place(kernel)), initrds, cmdline: format!("root={root} ro") };
    let mut menu = Fixed::default();
    menu.push(Item { title: kernel.to_owned(), ids: Vec::new() }, boot);
    Ok(Some((menu, format!("{kernel}, no boot configuration; root from {whence}"))))
}

/// The root of the volume's `fstab`, of another's, or else the volume itself.
fn root(volumes: &Volumes, volume: usize) -> Result<(String, &'static str), FilesError> {
    let others = (0..volumes.0.len()).filter(|other| *other != volume);
    for candidate in [volume].into_iter().chain(others) {
        let Some(files) = volumes.files(candidate) else {
            continue;
        };
        if let Some(bytes) = files.read("/etc/fstab", limits::SMALL_FILE_BYTES_MAX)?
            && let Some(root) = fstab_root(&String::from_utf8_lossy(&bytes))
        {
            return Ok((root, "/etc/fstab"));
        }
    }
    let uuid = volumes.files(volume).map(|files| files.uuid()).unwrap_or_default();
    Ok((format!("UUID={uuid}"), "the partition itself"))
}

/// What is mounted on `/`.
fn fstab_root(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut mounts = lines.filter_map(|line| {
        let mut fields = line.split_whitespace();
        Some((fields.next()?, fields.next()?))
    });
    let (device, _) = mounts.find(|(_, folder)| *folder == "/")?;
    Some(device.replace('"', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_what_is_mounted_on_the_root_folder() {
        let text =
            "# <fs> <mount>\n#/dev/old / ext4\nUUID=b /boot ext4 defaults 0 2\nUUID=\"a\"\t/ ext4 rw 0 1\n";
        assert_eq!(fstab_root(text).as_deref(), Some("UUID=a"));
        assert_eq!(fstab_root("nonsense\n"), None);
    }
}
