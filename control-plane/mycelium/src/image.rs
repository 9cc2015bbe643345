//! `mycelium image`: builds, looks at and converts what VMs boot from. Needs no daemon.

use std::cell::RefCell;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use mycelium_images::debian::{CopyIn, DebianOptions, RootLogin, StaticAddress, debian_image, parse_size};
use mycelium_images::disk::{self, Format, Inspection};
use mycelium_images::linux::{Kernel, linux_guest_image};
use mycelium_images::{Cache, Observer};
use serde::Serialize;

use crate::output::{mib, say, table};

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
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DebianArgs {
    /// File to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// raw or qcow2; by default what FILE's ending says.
    #[arg(long)]
    format: Option<Format>,
    /// Size of the disk. What is not used takes no room.
    #[arg(long, default_value = "2G", value_parser = parse_size)]
    size: u64,
    /// Debian's release.
    #[arg(long, value_name = "NAME", default_value = "bookworm")]
    release: String,
    /// Packages to install beside the basic system; may be repeated.
    #[arg(long, value_name = "PKG", value_delimiter = ',')]
    include: Vec<String>,
    /// Lay a file or folder into the image; may be repeated.
    #[arg(long, value_name = "SRC:DEST")]
    copy: Vec<CopyIn>,
    /// Run a command in the image at the end, by its shell and as root; may be repeated.
    #[arg(long, value_name = "COMMAND")]
    run: Vec<String>,
    /// The guest's name.
    #[arg(long, value_name = "NAME", default_value = "debian")]
    hostname: String,
    /// Fixed address of the guest; DHCP without it.
    #[arg(long, value_name = "IP/PREFIX")]
    address: Option<StaticAddress>,
    /// Its router.
    #[arg(long, value_name = "IP", requires = "address")]
    gateway: Option<IpAddr>,
    /// Let root log in with this password. Without it and --passwordless-root nobody can log in.
    #[arg(long, value_name = "PW", conflicts_with = "passwordless_root")]
    root_password: Option<String>,
    /// Let root log in on the console without a password: for tests.
    #[arg(long)]
    passwordless_root: bool,
    /// Build anew even if the cache has this image.
    #[arg(long)]
    no_cache: bool,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct LinuxArgs {
    /// Folder to write vmlinux, bzImage and initramfs.cpio to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The program that becomes the guest's init, if it is not beside this one.
    #[arg(long, value_name = "FILE")]
    guest_agent: Option<PathBuf>,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct NativeArgs {
    /// File to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names as `mycelium image list` shows them; the beginning of a name is enough.
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,
    /// Everything.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The image file.
    file: PathBuf,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Image to read; its format is recognised.
    source: PathBuf,
    /// File to write.
    dest: PathBuf,
    /// raw or qcow2; by default what DEST's ending says.
    #[arg(long)]
    format: Option<Format>,
    #[command(flatten)]
    shown: Shown,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Written {
    files: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    cached: bool,
    seconds: f64,
}

pub(crate) fn run(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Build(BuildCommand::Debian(args)) => debian(*args),
        ImageCommand::Build(BuildCommand::Linux(args)) => linux(&args),
        ImageCommand::Build(BuildCommand::Native(args)) => native(&args),
        ImageCommand::List(shown) => list(&shown),
        ImageCommand::Rm(args) => remove(&args),
        ImageCommand::Inspect(args) => inspect(&args),
        ImageCommand::Convert(args) => convert(&args),
    }
}

fn debian(args: DebianArgs) -> Result<()> {
    let (watch, begin) = (Watch::start()?, Instant::now());
    let format = args.format.unwrap_or_else(|| Format::named_by(&args.out));
    let image = debian_image(&Cache::open()?, &args.options(), args.no_cache, &watch)?;
    let built = image.file(format, &watch)?;
    watch.step("copying the image out of the cache");
    disk::copy(&built, &args.out, &watch)?;
    watch.finish();
    let files = vec![args.out];
    let (key, cached) = (Some(image.key), image.cached);
    args.shown.written(&Written { files, key, cached, seconds: begin.elapsed().as_secs_f64() })
}

impl DebianArgs {
    fn options(&self) -> DebianOptions {
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

fn linux(args: &LinuxArgs) -> Result<()> {
    let (watch, begin) = (Watch::start()?, Instant::now());
    let agent = args.guest_agent.clone().map_or_else(|| beside("guest-agent"), Ok)?;
    let cache = Cache::open()?;
    watch.step("fetching Debian's kernel");
    let kernel = Kernel::ensure(&cache)?;
    let image = linux_guest_image(&cache, &kernel, &agent)?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let parts =
        [(image.vmlinux, "vmlinux"), (kernel.bzimage()?, "bzImage"), (image.initrd, "initramfs.cpio")];
    let copied = parts.iter().map(|(from, name)| copy(from, &args.out.join(name)));
    let files = copied.collect::<Result<_>>()?;
    watch.finish();
    args.shown.written(&Written { files, key: None, cached: false, seconds: begin.elapsed().as_secs_f64() })
}

fn native(args: &NativeArgs) -> Result<()> {
    let begin = Instant::now();
    let files = vec![copy(&beside("native-guest")?, &args.out)?];
    args.shown.written(&Written { files, key: None, cached: false, seconds: begin.elapsed().as_secs_f64() })
}

/// A file that the build puts beside this program.
fn beside(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe().context("cannot tell where this program is")?.with_file_name(name);
    if !path.is_file() {
        bail!("{} is not beside this program; `cargo xtask build` puts them together", path.display());
    }
    Ok(path)
}

fn copy(from: &Path, to: &Path) -> Result<PathBuf> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(to.to_owned())
}

fn list(shown: &Shown) -> Result<()> {
    let entries = Cache::open()?.entries()?;
    shown.show(&entries, |entries| {
        if entries.is_empty() {
            return "the cache is empty; `mycelium image build` fills it".to_owned();
        }
        let row = |entry: &mycelium_images::cache::Entry| {
            vec![short(&entry.name), entry.kind.clone(), mib(entry.bytes), entry.path.display().to_string()]
        };
        table(&["NAME", "KIND", "SIZE", "PATH"], &entries.iter().map(row).collect::<Vec<_>>())
    })
}

/// The beginning of a hash tells images apart.
fn short(name: &str) -> String {
    const HASH_DIGITS: usize = 64;
    if name.len() == HASH_DIGITS { name[..12].to_owned() } else { name.to_owned() }
}

fn remove(args: &RmArgs) -> Result<()> {
    let cache = Cache::open()?;
    let entries = cache.entries()?;
    let mut chosen = if args.all { entries.clone() } else { Vec::new() };
    for name in &args.names {
        let mut matching = entries.iter().filter(|entry| entry.name.starts_with(name.as_str()));
        match (matching.next(), matching.next()) {
            (Some(entry), None) => chosen.push(entry.clone()),
            (None, _) => bail!("the cache has no {name}; `mycelium image list` shows what it has"),
            (Some(_), Some(_)) => bail!("several names begin with {name}; give more of it"),
        }
    }
    chosen.iter().try_for_each(|entry| cache.remove(entry))?;
    args.shown.show(&chosen, |chosen| {
        let bytes = chosen.iter().map(|entry| entry.bytes).sum();
        format!("removed {} images, {}", chosen.len(), mib(bytes))
    })
}

fn inspect(args: &InspectArgs) -> Result<()> {
    let found = disk::inspect(&args.file)?;
    args.shown.show(&found, in_words)
}

fn in_words(found: &Inspection) -> String {
    let Inspection { format, virtual_bytes, allocated_bytes, partitions } = found;
    let head =
        format!("{format}, {} for the guest, {} on this host", mib(*virtual_bytes), mib(*allocated_bytes));
    if partitions.is_empty() {
        return format!("{head}, no partition table (GPT)");
    }
    let row = |partition: &disk::PartitionInfo| {
        let sizes = [partition.start, partition.bytes].map(mib);
        [
            vec![partition.number.to_string()],
            sizes.to_vec(),
            vec![partition.kind.clone(), partition.name.clone()],
        ]
        .concat()
    };
    let rows: Vec<_> = partitions.iter().map(row).collect();
    format!("{head}\n{}", table(&["PARTITION", "START", "SIZE", "KIND", "NAME"], &rows))
}

fn convert(args: &ConvertArgs) -> Result<()> {
    let (watch, begin) = (Watch::start()?, Instant::now());
    let format = args.format.unwrap_or_else(|| Format::named_by(&args.dest));
    watch.step(&format!("writing {} as {format}", args.dest.display()));
    disk::convert(&args.source, &args.dest, format, &watch)?;
    watch.finish();
    let files = vec![args.dest.clone()];
    args.shown.written(&Written { files, key: None, cached: false, seconds: begin.elapsed().as_secs_f64() })
}

impl Shown {
    fn show<T: Serialize>(&self, answer: &T, words: impl FnOnce(&T) -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string(answer)? } else { words(answer) };
        say(text.trim_end());
        Ok(())
    }

    fn written(&self, written: &Written) -> Result<()> {
        self.show(written, |written| {
            let names: Vec<_> = written.files.iter().map(|file| file.display().to_string()).collect();
            let from = if written.cached { ", from the cache" } else { "" };
            format!("{} written in {:.1} s{from}", names.join(", "), written.seconds)
        })
    }
}

/// Shows on the terminal how long work goes on, and ends it at SIGINT or SIGTERM.
struct Watch {
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
    last: RefCell<String>,
}

impl Watch {
    fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, stop.clone())?;
        }
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}")?);
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        Ok(Self { stop, bar, last: RefCell::default() })
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Watch {
    fn step(&self, what: &str) {
        what.clone_into(&mut self.last.borrow_mut());
        self.bar.set_message(what.to_owned());
        if self.bar.is_hidden() {
            eprintln!("{what}");
        }
    }

    fn progress(&self, done: u64, total: u64) {
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
        self.bar.set_message(format!("{} {percent} %", self.last.borrow()));
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
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
