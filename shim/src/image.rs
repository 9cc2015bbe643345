//! What an image has to boot.
//!
//! ```text
//!   /boot/kernel    a kernel with a PVH entry                   needed
//!   /boot/initrd    its initial RAM disk                        optional
//!   /boot/cmdline   its command line; {ip} {prefix} {netmask}   optional
//!                   {gateway} {mac} {hostname} are filled in
//!   /disk/*         a disk image (KubeVirt's containerDisk)     recognised, not bootable yet
//! ```

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::limits;
use crate::net::Interface;

/// An image that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(
        "the image has nothing to boot: neither /boot/kernel (a kernel with a PVH entry) nor /disk/*; \
         is it an ordinary container image? Run those without runtimeClassName: endophyte"
    )]
    Nothing,
    #[error(
        "the image holds a disk ({0}) and no /boot/kernel; this release boots kernels, not disk images yet: \
         add the guest's kernel and initrd as /boot/kernel and /boot/initrd"
    )]
    DiskOnly(String),
    #[error("cannot use {path} of the image: {source}")]
    File { path: &'static str, source: std::io::Error },
    #[error("/boot/cmdline of the image is longer than {} bytes", limits::CMDLINE_BYTES)]
    LongCmdline,
    #[error(
        "/boot/cmdline of the image has {{{0}}}; known are {{ip}} {{prefix}} {{netmask}} {{gateway}} {{mac}} {{hostname}}"
    )]
    Placeholder(String),
    #[error("/boot/cmdline of the image needs {{{0}}}, and the pod's network does not give it")]
    NoValue(&'static str),
}

/// What to boot. Paths are in the host, inside the image.
#[derive(Clone, Debug)]
pub(crate) struct Bootable {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    cmdline: String,
}

impl Bootable {
    /// Looks for something to boot in a mounted image.
    pub(crate) fn find(rootfs: &Path) -> Result<Self, ImageError> {
        let Some((kernel, _)) = resolve(rootfs, "/boot/kernel")? else {
            return Err(disk(rootfs).map_or(ImageError::Nothing, ImageError::DiskOnly));
        };
        let initrd = resolve(rootfs, "/boot/initrd")?.map(|(path, _)| path);
        let cmdline = match resolve(rootfs, "/boot/cmdline")? {
            Some((_, file)) => read_cmdline(file)?,
            None => String::new(),
        };
        Ok(Self { kernel, initrd, cmdline })
    }

    /// The command line for a guest on that interface.
    pub(crate) fn cmdline(
        &self,
        hostname: &str,
        interface: Option<&Interface>,
    ) -> Result<String, ImageError> {
        let mut filled = String::new();
        let mut rest = self.cmdline.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(|| ImageError::Placeholder(after.into()))?;
            filled += before;
            filled += &value(name, hostname, interface)?;
            rest = after;
        }
        Ok(filled + rest)
    }
}

fn value(name: &str, hostname: &str, interface: Option<&Interface>) -> Result<String, ImageError> {
    let on = |what, value: Option<String>| value.ok_or(ImageError::NoValue(what));
    match name {
        "hostname" => Ok(hostname.to_owned()),
        "ip" => on("ip", interface.map(|i| i.address.to_string())),
        "prefix" => on("prefix", interface.map(|i| i.prefix.to_string())),
        "netmask" => on("netmask", interface.map(|i| netmask(i.prefix).to_string())),
        "gateway" => on("gateway", interface.and_then(|i| i.gateway).map(|g| g.to_string())),
        "mac" => on("mac", interface.map(|i| i.mac.to_string())),
        other => Err(ImageError::Placeholder(other.to_owned())),
    }
}

fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

/// Opens a file of the image; links in it lead to places in the image, never in the host.
fn resolve(rootfs: &Path, path: &'static str) -> Result<Option<(PathBuf, File)>, ImageError> {
    let fail = |source| ImageError::File { path, source };
    let root = File::open(rootfs).map_err(fail)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let found: OwnedFd = match openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(fail(error.into())),
    };
    let file = File::from(found);
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(fail(std::io::Error::other("it is not a file")));
    }
    let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(fail)?;
    Ok(Some((real, file)))
}

fn read_cmdline(file: File) -> Result<String, ImageError> {
    let mut text = String::new();
    let read = file.take(limits::CMDLINE_BYTES + 1).read_to_string(&mut text);
    read.map_err(|source| ImageError::File { path: "/boot/cmdline", source })?;
    if text.len() as u64 > limits::CMDLINE_BYTES {
        return Err(ImageError::LongCmdline);
    }
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn disk(rootfs: &Path) -> Option<String> {
    let entry = std::fs::read_dir(rootfs.join("disk")).ok()?.flatten().next()?;
    Some(format!("/disk/{}", entry.file_name().to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::net::Mac;

    fn image(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    fn interface() -> Interface {
        Interface {
            mac: Mac([2, 0, 0, 0, 0, 9]),
            address: Ipv4Addr::new(10, 88, 0, 5),
            prefix: 16,
            gateway: Some(Ipv4Addr::new(10, 88, 0, 1)),
        }
    }

    #[test]
    fn placeholders_of_both_dialects_are_filled() {
        let dir = image(&[("boot/kernel", "k"), ("boot/cmdline", "quiet ip={ip}/{prefix}\n gw={gateway}\n")]);
        let found = Bootable::find(dir.path()).unwrap();
        assert_eq!(found.cmdline("h", Some(&interface())).unwrap(), "quiet ip=10.88.0.5/16 gw=10.88.0.1");
        let linux = Bootable { cmdline: "ip={ip}::{gateway}:{netmask}:{hostname}:eth0:off".into(), ..found };
        assert_eq!(
            linux.cmdline("web-0", Some(&interface())).unwrap(),
            "ip=10.88.0.5::10.88.0.1:255.255.0.0:web-0:eth0:off"
        );
        assert!(matches!(linux.cmdline("h", None), Err(ImageError::NoValue("ip"))));
    }

    #[test]
    fn an_image_without_a_bootable_thing_says_what_was_looked_for() {
        let plain = image(&[("bin/sh", "")]);
        let message = Bootable::find(plain.path()).unwrap_err().to_string();
        assert!(message.contains("/boot/kernel") && message.contains("/disk/"), "{message}");
        let disk = image(&[("disk/debian.qcow2", "")]);
        let message = Bootable::find(disk.path()).unwrap_err().to_string();
        assert!(message.contains("/disk/debian.qcow2") && message.contains("/boot/initrd"), "{message}");
    }

    #[test]
    fn links_stay_inside_the_image() {
        let dir = image(&[("vmlinux", "inside"), ("boot/x", "")]);
        std::os::unix::fs::symlink("/vmlinux", dir.path().join("boot/kernel")).unwrap();
        let found = Bootable::find(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&found.kernel).unwrap(), "inside");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("boot/initrd")).unwrap();
        assert!(Bootable::find(dir.path()).unwrap().initrd.is_none());
    }

    #[test]
    fn unknown_placeholders_and_long_lines_are_refused() {
        let dir = image(&[("boot/kernel", "k"), ("boot/cmdline", "x={color}")]);
        let refused = Bootable::find(dir.path()).unwrap().cmdline("h", None);
        assert!(matches!(refused, Err(ImageError::Placeholder(name)) if name == "color"));
        let long = image(&[("boot/kernel", "k"), ("boot/cmdline", &"x".repeat(3000))]);
        assert!(matches!(Bootable::find(long.path()), Err(ImageError::LongCmdline)));
    }

    #[test]
    fn netmasks() {
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(24), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
    }
}
