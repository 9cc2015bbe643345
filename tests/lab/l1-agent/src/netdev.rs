//! NICs, taps and bridges of the host.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use lab_agent::plan::{BootPlan, BridgePlan, NicPlan};
use lab_agent::protocol::Refusal;

use crate::netlink::{DeviceIndex, Netlink};

const SYS_NET: &str = "/sys/class/net";

/// Names and addresses the NICs, then creates taps and bridges; everything ends up.
pub(crate) fn set_up(plan: &BootPlan, netlink: &mut Netlink) -> Result<(), Refusal> {
    netlink.set_up(index_of("lo")?, true)?;
    plan.nics.iter().try_for_each(|nic| set_up_nic(nic, netlink))?;
    for tap in &plan.taps {
        create_tap(tap)?;
        netlink.set_up(index_of(tap)?, true)?;
    }
    plan.bridges.iter().try_for_each(|bridge| set_up_bridge(bridge, netlink))
}

/// The kernel's number of a device by name.
pub(crate) fn index_of(name: &str) -> Result<DeviceIndex, Refusal> {
    let raw = fs::read_to_string(Path::new(SYS_NET).join(name).join("ifindex"));
    let raw = raw.map_err(|error| Refusal::new(name, error))?;
    raw.trim().parse().map(DeviceIndex).map_err(|error| Refusal::new(name, error))
}

fn set_up_nic(nic: &NicPlan, netlink: &mut Netlink) -> Result<(), Refusal> {
    let device = index_of(&name_by_mac(&nic.mac)?)?;
    netlink.rename(device, &nic.name)?;
    for address in &nic.addresses {
        netlink.add_address(device, *address)?;
    }
    netlink.set_up(device, true)
}

fn name_by_mac(mac: &str) -> Result<String, Refusal> {
    let devices = fs::read_dir(SYS_NET).map_err(|error| Refusal::new(SYS_NET, error))?;
    for device in devices.flatten() {
        if fs::read_to_string(device.path().join("address")).is_ok_and(|found| found.trim() == mac) {
            return Ok(device.file_name().to_string_lossy().into_owned());
        }
    }
    Err(Refusal::new(mac, "the machine has no NIC of this address; is the driver's module listed?"))
}

fn set_up_bridge(bridge: &BridgePlan, netlink: &mut Netlink) -> Result<(), Refusal> {
    netlink.create_bridge(&bridge.name)?;
    let device = index_of(&bridge.name)?;
    for port in &bridge.ports {
        netlink.set_bridge(index_of(port)?, device)?;
    }
    for address in &bridge.addresses {
        netlink.add_address(device, *address)?;
    }
    netlink.set_up(device, true)
}

/// Creates a tap that outlives this process's descriptor, so that a VMM can attach to it by name.
fn create_tap(name: &str) -> Result<(), Refusal> {
    let refuse = |error: io::Error| Refusal::new(name, error);
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(refuse)?;
    let tun = OwnedFd::from(tun);
    let mut request = tap_request(name)?;
    // SAFETY: TUNSETIFF reads and writes one struct ifreq at the given address: `request` is one, lives across the call and
    // is not accessed by anything else during it. libc and rustix have no safe call for it.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).map_err(refuse)?;
    // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
    checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) }).map_err(refuse)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn tap_request(name: &str) -> Result<libc::ifreq, Refusal> {
    // SAFETY: ifreq is a plain C struct of integers and a union of such; all zeroes is a valid value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Refusal::new(name, "device names have at most 15 bytes"));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|error| Refusal::new(name, error))?;
    Ok(request)
}
