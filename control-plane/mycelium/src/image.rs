//! `mycelium image`: builds, looks at and converts what VMs boot from. Needs no daemon.

mod args;
mod watch;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
pub(crate) use args::ImageCommand;
use args::{BuildCommand, ConvertArgs, DebianArgs, InspectArgs, LinuxArgs, NativeArgs, RmArgs, Shown};
use mycelium_images::debian::debian_image;
use mycelium_images::disk::{self, Format, Inspection};
use mycelium_images::linux::{Kernel, linux_guest_image};
use mycelium_images::{Cache, Observer, Unwatched};
use serde::Serialize;
use watch::Watch;

use crate::output::{mib, say, table};

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
    let files: Vec<_> = parts.iter().map(|(_, name)| args.out.join(name)).collect();
    parts.iter().zip(&files).try_for_each(|((from, _), to)| disk::copy(from, to, &watch))?;
    watch.finish();
    args.shown.written(&Written { files, key: None, cached: false, seconds: begin.elapsed().as_secs_f64() })
}

fn native(args: &NativeArgs) -> Result<()> {
    let begin = Instant::now();
    disk::copy(&beside("native-guest")?, &args.out, &Unwatched)?;
    let files = vec![args.out.clone()];
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
