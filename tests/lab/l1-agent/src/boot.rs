//! Carrying out the boot plan.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use lab_agent::plan::{BootPlan, CONTROL_PORT, PLAN_PATH};
use lab_agent::protocol::Refusal;
use rustix::mount::{MountFlags, mount};

use crate::netdev;
use crate::netlink::Netlink;

/// Mounts what every Linux program expects.
pub(crate) fn mount_filesystems() -> Result<(), Refusal> {
    for (kind, at) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        fs::create_dir_all(at).map_err(|error| Refusal::new(at, error))?;
        mount(kind, at, kind, MountFlags::empty(), None).map_err(|error| Refusal::new(at, error))?;
    }
    Ok(())
}

/// Sets the host up and opens its control port.
pub(crate) fn boot() -> Result<File, Refusal> {
    let plan = read_plan()?;
    rustix::system::sethostname(plan.name.as_bytes()).map_err(|error| Refusal::new(&plan.name, error))?;
    // What the kernel says from here on is worth its time on the console: it tells why a host misbehaves.
    fs::write("/proc/sys/kernel/printk", "8")
        .map_err(|error| Refusal::new("/proc/sys/kernel/printk", error))?;
    plan.modules.iter().try_for_each(|module| load_module(module))?;
    let mut netlink = Netlink::open()?;
    netdev::set_up(&plan, &mut netlink)?;
    open_control_port()
}

fn read_plan() -> Result<BootPlan, Refusal> {
    let raw = fs::read(PLAN_PATH).map_err(|error| Refusal::new(PLAN_PATH, error))?;
    serde_json::from_slice(&raw).map_err(|error| Refusal::new(PLAN_PATH, error))
}

fn load_module(path: &str) -> Result<(), Refusal> {
    let file = File::open(path).map_err(|error| Refusal::new(path, error))?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(Refusal::new(path, error)),
    }
}

/// Finds the port by name: its device number depends on what else the machine has.
fn open_control_port() -> Result<File, Refusal> {
    let ports = Path::new("/sys/class/virtio-ports");
    let found = named_port(ports).map_err(|error| Refusal::new(ports.display().to_string(), error))?;
    let device = found
        .ok_or_else(|| Refusal::new(CONTROL_PORT, "the machine has no virtio-serial port of this name"))?;
    OpenOptions::new().read(true).write(true).open(&device).map_err(|error| Refusal::new(device, error))
}

fn named_port(ports: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(ports)? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name"))?.trim() == CONTROL_PORT {
            return Ok(Some(format!("/dev/{}", entry.file_name().to_string_lossy())));
        }
    }
    Ok(None)
}
