//! Giving a network interface its address, with the classic interface requests: there is no other userland here.

use crate::limits::{INTERFACE_POLL, INTERFACE_WAIT};
use crate::sys;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

/// A step of the network's set-up that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error(
        "no interface {name} after {INTERFACE_WAIT:?}; give the machine a network card and list its driver"
    )]
    NoInterface { name: &'static str },
    #[error("cannot {what}")]
    Request { what: String, source: io::Error },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    |source| NetworkError::Request { what, source }
}

/// Brings the loopback interface up.
pub(crate) fn loopback() -> Result<(), NetworkError> {
    let socket = sys::control_socket().map_err(failed("open a control socket"))?;
    set_up(&socket, "lo")
}

/// Gives `name` an address and brings it up.
pub(crate) fn configure(name: &'static str, address: Ipv4Addr, prefix: u8) -> Result<(), NetworkError> {
    await_interface(name)?;
    let socket = sys::control_socket().map_err(failed("open a control socket"))?;
    set_address(&socket, name, libc::SIOCSIFADDR, address)
        .map_err(failed(format!("give {name} the address {address}")))?;
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
    set_address(&socket, name, libc::SIOCSIFNETMASK, mask)
        .map_err(failed(format!("give {name} the mask {mask}")))?;
    set_up(&socket, name)
}

/// Adds the default route.
pub(crate) fn default_route(gateway: Ipv4Addr) -> Result<(), NetworkError> {
    let socket = sys::control_socket().map_err(failed("open a control socket"))?;
    // SAFETY: all-zero is a valid `rtentry`: numbers, addresses of family 0, and null pointers.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT takes an `rtentry`; its only pointer, the device name, is null.
    unsafe { sys::ioctl(&socket, libc::SIOCADDRT, &mut route) }
        .map_err(failed(format!("route through {gateway}")))
}

/// Drivers may probe in the background, so the interface can be late.
fn await_interface(name: &'static str) -> Result<(), NetworkError> {
    let since = Instant::now();
    while !Path::new("/sys/class/net").join(name).exists() {
        if since.elapsed() > INTERFACE_WAIT {
            return Err(NetworkError::NoInterface { name });
        }
        std::thread::sleep(INTERFACE_POLL);
    }
    Ok(())
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero is a valid `ifreq`: an empty name and a union of plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the name ends there at the latest.
    let end = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..end].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr { sa_family: AF_INET, sa_data: data }
}

#[expect(clippy::cast_possible_truncation, reason = "the constant is 2")]
const AF_INET: libc::sa_family_t = libc::AF_INET as libc::sa_family_t;

fn set_address(socket: &OwnedFd, name: &str, what: libc::Ioctl, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_addr = socket_address(address);
    // SAFETY: the address requests take an `ifreq` whose union holds an address.
    unsafe { sys::ioctl(socket, what, &mut request) }
}

fn set_up(socket: &OwnedFd, name: &str) -> Result<(), NetworkError> {
    let mut request = request(name);
    // SAFETY: SIOCGIFFLAGS takes an `ifreq` and fills the flags in.
    unsafe { sys::ioctl(socket, libc::SIOCGIFFLAGS, &mut request) }
        .map_err(failed(format!("read the flags of {name}")))?;
    // SAFETY: the request before has filled the flags of the union in.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags }) | libc::IFF_UP;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    // SAFETY: SIOCSIFFLAGS takes an `ifreq` whose union holds flags.
    unsafe { sys::ioctl(socket, libc::SIOCSIFFLAGS, &mut request) }
        .map_err(failed(format!("bring {name} up")))
}
