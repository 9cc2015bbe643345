//! The settings that make a tree of packages a guest.

use super::recipe::Recipe;
use super::tree::Tree;
use super::{RootLogin, StaticAddress};
use crate::{ImageError, Observer};

/// Units that a guest has no use for: they would only make its start longer, or its disk busy later.
const MASKED: [&str; 13] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "man-db.timer",
    // Asks questions on the console when a system has no identity yet, which ours has not before its first start.
    "systemd-firstboot.service",
    // Formats of programs for other machines, crash dumps in firmware, and a screen: nothing of it is there.
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    "systemd-pstore.service",
    "modprobe@drm.service",
    // There is a serial console and no screen.
    "getty@tty1.service",
];

const GRUB: &str = "GRUB_DEFAULT=0
GRUB_TIMEOUT=1
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=\"\"
GRUB_CMDLINE_LINUX=\"console=ttyS0\"
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND=\"serial --unit=0 --speed=115200\"
GRUB_PRELOAD_MODULES=\"part_gpt\"
GRUB_DISABLE_OS_PROBER=true
";

/// What must be there before the kernel's package makes its initramfs.
pub(crate) fn early(recipe: &Recipe<'_>) -> [(&'static str, String); 2] {
    let fstab = format!("UUID={} / ext4 errors=remount-ro 0 1\n", recipe.root_uuid());
    [("/etc/fstab", fstab), ("/etc/initramfs-tools/conf.d/resume", "RESUME=none\n".to_owned())]
}

/// Lays down the settings.
pub(crate) fn configure(tree: &Tree, recipe: &Recipe<'_>, observer: &dyn Observer) -> Result<(), ImageError> {
    let options = recipe.options;
    let name = &options.hostname;
    tree.write("/etc/hostname", &format!("{name}\n"))?;
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n");
    tree.write("/etc/hosts", &hosts)?;
    tree.write("/etc/systemd/network/20-virtio.network", &network(options.address.as_ref()))?;
    tree.write("/etc/default/locale", "LANG=C.UTF-8\n")?;
    tree.write("/etc/default/grub", GRUB)?;
    let enable =
        "systemctl enable systemd-networkd && systemctl disable systemd-networkd-wait-online.service";
    let masked = format!("{enable} && systemctl mask {}", MASKED.join(" "));
    tree.run(&masked, None, observer)?;
    let hash = match &options.root {
        RootLogin::Locked => "*".to_owned(),
        RootLogin::Passwordless => String::new(),
        RootLogin::Password(password) => crypt(tree, recipe, password, observer)?,
    };
    set_root_hash(tree, &hash)
}

/// Every virtio NIC, whatever its name and MAC.
fn network(address: Option<&StaticAddress>) -> String {
    let settings = match address {
        None => "DHCP=yes\n".to_owned(),
        Some(address) => {
            let gateway = address.gateway.map(|gateway| format!("Gateway={gateway}\n")).unwrap_or_default();
            format!("Address={address}\n{gateway}IPv6AcceptRA=no\n")
        }
    };
    format!("[Match]\nDriver=virtio_net\n\n[Network]\n{settings}")
}

/// The image's own crypt(3), with a salt that follows from the inputs: a random one would make every build differ.
fn crypt(
    tree: &Tree,
    recipe: &Recipe<'_>,
    password: &str,
    observer: &dyn Observer,
) -> Result<String, ImageError> {
    let salt: String = recipe.id("salt").0[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let script = format!(r#"perl -e 'print crypt($ENV{{SECRET}}, q($6${salt}))'"#);
    let said = tree.run(&script, Some(password), observer)?;
    if said.stdout.starts_with("$6$") {
        return Ok(said.stdout);
    }
    Err(ImageError::option("--root-password", "", "the image's crypt(3) refused it"))
}

fn set_root_hash(tree: &Tree, hash: &str) -> Result<(), ImageError> {
    let path = tree.path("/etc/shadow");
    let text = std::fs::read_to_string(&path).map_err(ImageError::file("read", &path))?;
    let lines = text.lines().map(|line| with_hash(line, "root", hash) + "\n");
    tree.write("/etc/shadow", &lines.collect::<String>())
}

fn with_hash(line: &str, user: &str, hash: &str) -> String {
    let mut fields: Vec<&str> = line.split(':').collect();
    if fields.len() > 1 && fields[0] == user {
        fields[1] = hash;
    }
    fields.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_is_dhcp_or_the_address_given() {
        assert!(network(None).ends_with("[Network]\nDHCP=yes\n"));
        let mut address: StaticAddress = "10.77.0.2/24".parse().unwrap();
        address.gateway = Some([10, 77, 0, 1].into());
        assert!(network(Some(&address)).contains("Address=10.77.0.2/24\nGateway=10.77.0.1\n"));
    }

    #[test]
    fn only_roots_hash_changes() {
        assert_eq!(with_hash("root:*:20428:0:99999:7:::", "root", ""), "root::20428:0:99999:7:::");
        assert_eq!(with_hash("daemon:*:20428::::::", "root", ""), "daemon:*:20428::::::");
    }
}
