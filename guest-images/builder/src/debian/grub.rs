//! `/boot/grub/grub.cfg`, made by Debian's own grub-mkconfig.
//!
//! It describes the system it runs in, so it has to run in one: the tree as a file system with its final UUID, mounted from a
//! loop device that is called as a virtio disk is. Only the file it writes is kept.

use std::path::Path;

use super::ext4::{self, Identity};
use super::recipe::clean;
use super::tree::{Tree, namespaced};
use crate::tool::run_watched;
use crate::{ImageError, Observer};

/// $1 file system, $2 its UUID, $3 an empty folder. The loop device frees itself when its last mount is gone, and the mounts
/// are gone with the namespace.
const SCRIPT: &str = r#"
mkdir "$3/first" "$3/root" "$3/dev"
mount -o loop "$1" "$3/first"
number=$(mountpoint -d "$3/first")
mount -t tmpfs -o mode=755 devices "$3/dev"
mknod "$3/dev/vda" b "${number%:*}" "${number#*:}"
mknod -m 666 "$3/dev/null" c 1 3
mkdir -p "$3/dev/disk/by-uuid"
ln -s ../../vda "$3/dev/disk/by-uuid/$2"
mount --rbind "$3/dev" /dev
mount /dev/vda "$3/root"
mount --rbind /dev "$3/root/dev"
mount -t proc proc "$3/root/proc"
mount -t sysfs sys "$3/root/sys"
chroot "$3/root" grub-mkconfig -o /boot/grub/grub.cfg
cat "$3/root/boot/grub/grub.cfg"
"#;

/// Writes the tree's grub.cfg.
pub(crate) fn configure(
    tree: &Tree,
    work: &Path,
    identity: &Identity,
    observer: &dyn Observer,
) -> Result<(), ImageError> {
    let folder = tree.path("/boot/grub");
    std::fs::create_dir_all(&folder).map_err(ImageError::file("create", &folder))?;
    let (draft, mounts) = (work.join("draft.ext4"), work.join("mounts"));
    ext4::write(tree.root(), &draft, identity, observer)?;
    std::fs::create_dir(&mounts).map_err(ImageError::file("create", &mounts))?;
    let mut command = clean(namespaced(), identity.date);
    command.args(["sh", "-euc", SCRIPT, "sh"]).arg(&draft).arg(&identity.uuid).arg(&mounts);
    let config = run_watched(&mut command, observer, |_| {})?.stdout;
    let wanted = format!("root=UUID={}", identity.uuid);
    if !config.contains(&wanted) {
        let reason = format!("grub-mkconfig wrote no entry with {wanted}");
        return Err(ImageError::unusable("grub.cfg", reason, "keep a kernel and grub2-common in the image"));
    }
    tree.write("/boot/grub/grub.cfg", &config)
}
