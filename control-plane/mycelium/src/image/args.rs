//! The words of `mycelium image`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use mycelium_images::debian::{CopyIn, DebianOptions, RootLogin, StaticAddress, parse_size};
use mycelium_images::disk::Format;

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image.
    #[command(subcommand)]
    Build(BuildCommand),
    /// List what the cache keeps.
    List(Shown),
    /// Remove images from the cache.
    Rm(RmArgs),
    /// Show what an image file holds: format, sizes, partitions.
    Inspect(InspectArgs),
    /// Copy a disk image from one format to another; zeros take no room in the copy.
    Convert(ConvertArgs),
}

/// What can be built.
#[derive(Debug, Subcommand)]
pub(crate) enum BuildCommand {
    /// A Debian on a disk: systemd, Debian's kernel, a boot menu, a console on the serial line. Needs root.
    ///
    /// The same options and the same packages give the same bytes; a second build comes from the cache.
    #[command(
        after_help = "Example: mycelium image build debian --out web.qcow2 --include nginx --hostname web \\\n    \
        --address 10.77.0.2/24 --gateway 10.77.0.1 --passwordless-root"
    )]
    Debian(Box<DebianArgs>),
    /// A kernel with an initramfs: the smallest Linux guest. Its one program is the guest agent.
    Linux(LinuxArgs),
    /// The native guest, which runs at full speed on any KVM.
    Native(NativeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct Shown {
    /// One JSON object instead of words.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DebianArgs {
    /// File to write.
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    /// raw or qcow2; by default what FILE's ending says.
    #[arg(long)]
    pub(super) format: Option<Format>,
    /// Size of the disk. What is not used takes no room.
    #[arg(long, default_value = "2G", value_parser = parse_size)]
    pub(super) size: u64,
    /// Debian's release.
    #[arg(long, value_name = "NAME", default_value = "bookworm")]
    pub(super) release: String,
    /// Packages to install beside the basic system; may be repeated.
    #[arg(long, value_name = "PKG", value_delimiter = ',')]
    pub(super) include: Vec<String>,
    /// Lay a file or folder into the image; may be repeated.
    #[arg(long, value_name = "SRC:DEST")]
    pub(super) copy: Vec<CopyIn>,
    /// Run a command in the image at the end, by its shell and as root; may be repeated.
    #[arg(long, value_name = "COMMAND")]
    pub(super) run: Vec<String>,
    /// The guest's name.
    #[arg(long, value_name = "NAME", default_value = "debian")]
    pub(super) hostname: String,
    /// Fixed address of the guest; DHCP without it.
    #[arg(long, value_name = "IP/PREFIX")]
    pub(super) address: Option<StaticAddress>,
    /// Its router.
    #[arg(long, value_name = "IP", requires = "address")]
    pub(super) gateway: Option<IpAddr>,
    /// Let root log in with this password. Without it and --passwordless-root nobody can log in.
    #[arg(long, value_name = "PW", conflicts_with = "passwordless_root")]
    pub(super) root_password: Option<String>,
    /// Let root log in on the console without a password: for tests.
    #[arg(long)]
    pub(super) passwordless_root: bool,
    /// Build anew even if the cache has this image.
    #[arg(long)]
    pub(super) no_cache: bool,
    #[command(flatten)]
    pub(super) shown: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct LinuxArgs {
    /// Folder to write vmlinux, bzImage and initramfs.cpio to.
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// The program that becomes the guest's init, if it is not beside this one.
    #[arg(long, value_name = "FILE")]
    pub(super) guest_agent: Option<PathBuf>,
    #[command(flatten)]
    pub(super) shown: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct NativeArgs {
    /// File to write.
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) shown: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names as `mycelium image list` shows them; the beginning of a name is enough.
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub(super) names: Vec<String>,
    /// Everything.
    #[arg(long, conflicts_with = "names")]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) shown: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The image file.
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) shown: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Image to read; its format is recognised.
    pub(super) source: PathBuf,
    /// File to write.
    pub(super) dest: PathBuf,
    /// raw or qcow2; by default what DEST's ending says.
    #[arg(long)]
    pub(super) format: Option<Format>,
    #[command(flatten)]
    pub(super) shown: Shown,
}

impl DebianArgs {
    /// What the library is asked for.
    pub(super) fn options(&self) -> DebianOptions {
        let address = self.address.map(|address| StaticAddress { gateway: self.gateway, ..address });
        let root = match &self.root_password {
            Some(password) => RootLogin::Password(password.clone()),
            None if self.passwordless_root => RootLogin::Passwordless,
            None => RootLogin::Locked,
        };
        DebianOptions {
            release: self.release.clone(),
            size: self.size,
            include: self.include.clone(),
            copies: self.copy.clone(),
            commands: self.run.clone(),
            hostname: self.hostname.clone(),
            address,
            root,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: ImageCommand,
    }

    fn parse(line: &str) -> Result<ImageCommand, clap::Error> {
        Cli::try_parse_from(std::iter::once("image").chain(line.split(' '))).map(|cli| cli.command)
    }

    #[test]
    fn every_option_of_a_debian_image_arrives() {
        let line = "build debian --out web.qcow2 --size 3G --include fio,socat --include nginx --copy a:/b --run true \
                    --hostname web --address 10.0.0.2/24 --gateway 10.0.0.1 --root-password pw";
        let Ok(ImageCommand::Build(BuildCommand::Debian(args))) = parse(line) else {
            panic!("{:?}", parse(line))
        };
        let options = args.options();
        assert_eq!((options.size, options.include.len(), options.hostname.as_str()), (3 << 30, 3, "web"));
        assert_eq!(options.address.unwrap().gateway, Some([10, 0, 0, 1].into()));
        assert_eq!(options.root, RootLogin::Password("pw".to_owned()));
        assert_eq!((options.copies.len(), options.commands.len()), (1, 1));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = [
            "--gateway 10.0.0.1",
            "--root-password x --passwordless-root",
            "--format vmdk",
            "--size 2X",
            "--copy a",
        ];
        assert!(refused.iter().all(|more| parse(&format!("build debian --out x {more}")).is_err()));
        assert!(parse("rm").is_err() && parse("rm --all x").is_err() && parse("rm --all").is_ok());
    }
}
