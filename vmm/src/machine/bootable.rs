//! Where what is booted comes from: files of this node, or the guest's own disk.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use endophyte_bootdisk::{BootFile, BootPlan, Options, find};

use crate::arch::acpi::PlugSlots;
use crate::arch::boot::{self, BootError, BootSource, Entry, Initrd, Named};
use crate::devices::block::Disk;
use crate::limits::DISK_BOOT_DEADLINE;
use crate::memory::GuestRam;
use crate::spec::{BootSpec, VmSpec};
use crate::threads::{self, ThreadKind};

/// Loads what `spec` says; `disk` is the first disk, and `slots` are those in which devices come and go.
///
/// # Errors
/// [`BootError`].
pub(super) fn load(
    spec: &VmSpec,
    ram: &Arc<GuestRam>,
    disk: Option<&Arc<Disk>>,
    slots: PlugSlots,
) -> Result<Entry, BootError> {
    match &spec.boot {
        BootSpec::Kernel { kernel, initrd } => {
            let initrds = initrd.iter().map(|path| initrd_file(path)).collect::<Result<_, _>>()?;
            let kernel = kernel_file(kernel)?;
            boot::load(ram, BootSource { kernel, initrds, cmdline: &spec.cmdline, vcpus: spec.vcpus, slots })
        }
        BootSpec::Firmware(firmware) => {
            let (kernel, initrds) = (kernel_file(firmware)?, Vec::new());
            boot::load(ram, BootSource { kernel, initrds, cmdline: &spec.cmdline, vcpus: spec.vcpus, slots })
        }
        BootSpec::Disk { entry } => {
            let disk = disk.expect("a spec that boots from its disk has one");
            from_disk(spec.clone(), slots, Arc::clone(ram), Arc::clone(disk), entry.clone())
        }
    }
}

/// In a thread of its own, under a deadline: a disk made to do so can keep the reader of its file system going round
/// in circles without ever reading. The thread is then left to itself; whoever gets the error ends the process.
fn from_disk(
    spec: VmSpec,
    slots: PlugSlots,
    ram: Arc<GuestRam>,
    disk: Arc<Disk>,
    entry: Option<String>,
) -> Result<Entry, BootError> {
    let (tell, told) = channel();
    let read = move || {
        threads::started(ThreadKind::Boot);
        let plan = find(Arc::new(DiskReader(disk)), &Options { entry });
        let entry = plan.map_err(BootError::from).and_then(|plan| load_plan(&spec, slots, &ram, plan));
        // Nobody listens after the deadline.
        let _ = tell.send(entry);
    };
    let thread = std::thread::Builder::new().name("boot".to_owned()).spawn(read);
    thread.map_err(|source| BootError::Read {
        what: "boot files",
        name: "of the disk".to_owned(),
        source,
    })?;
    told.recv_timeout(DISK_BOOT_DEADLINE).unwrap_or(Err(BootError::Endless))
}

fn load_plan(spec: &VmSpec, slots: PlugSlots, ram: &GuestRam, plan: BootPlan) -> Result<Entry, BootError> {
    tracing::info!(vm = %spec.name, entry = %plan.title, source = %plan.source, "booting from the disk");
    let BootPlan { kernel, initrds, cmdline, source, .. } = plan;
    let cmdline = [cmdline.as_str(), spec.cmdline.as_str()].join(" ");
    let name = |file: &BootFile| format!("{} of the disk ({source})", file.path);
    let kernel = Named { name: name(&kernel), content: Cursor::new(whole(kernel, &source)?) };
    let initrd = |file: BootFile| Named {
        name: name(&file),
        content: Initrd { bytes: file.bytes, reader: Box::new(file) },
    };
    let initrds = initrds.into_iter().map(initrd).collect();
    boot::load(ram, BootSource { kernel, initrds, cmdline: cmdline.trim(), vcpus: spec.vcpus, slots })
}

/// The kernel in memory: its loader jumps about in it. Its size was checked against a bound when it was found.
fn whole(mut kernel: BootFile, source: &str) -> Result<Vec<u8>, BootError> {
    let mut bytes = Vec::with_capacity(usize::try_from(kernel.bytes).unwrap_or(0));
    match kernel.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => {
            let name = format!("{} of the disk ({source})", kernel.path);
            Err(BootError::Read { what: "kernel", name, source: error })
        }
    }
}

fn kernel_file(path: &Path) -> Result<Named<File>, BootError> {
    open("kernel", path).map(|(name, content)| Named { name, content })
}

fn initrd_file(path: &Path) -> Result<Named<Initrd>, BootError> {
    let (name, file) = open("initrd", path)?;
    let bytes = match file.metadata() {
        Ok(metadata) => metadata.len(),
        Err(source) => return Err(BootError::Read { what: "initrd", name, source }),
    };
    Ok(Named { name, content: Initrd { bytes, reader: Box::new(file) } })
}

fn open(what: &'static str, path: &Path) -> Result<(String, File), BootError> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => Ok((name, file)),
        Err(source) => Err(BootError::Read { what, name, source }),
    }
}

/// The guest's disk, as its boot files are looked for. The machine is paused meanwhile.
struct DiskReader(Arc<Disk>);

impl endophyte_bootdisk::Disk for DiskReader {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(into.len() as u64);
        match end.filter(|end| *end <= self.bytes()) {
            Some(_) => self.0.read_at(offset, into),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
