//! The few rtnetlink requests a lab host needs, so that it needs no `ip` and no `tc`.

use std::os::fd::OwnedFd;

use lab_agent::plan::Cidr;
use lab_agent::protocol::{Netem, Refusal};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};

// From linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h and linux/pkt_sched.h; libc lacks some of them.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWQDISC: u16 = 36;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_NETEM_LATENCY64: u16 = 10;
const TCA_NETEM_JITTER64: u16 = 11;
const TC_H_ROOT: u32 = u32::MAX;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
/// Frames netem holds at once: enough for a second of traffic in an emulated machine.
const NETEM_QUEUE_FRAMES: u32 = 10_000;
const HEADER_BYTES: usize = 16;

/// The kernel's number of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceIndex(pub(crate) u32);

/// A socket to the kernel's routing table.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self, Refusal> {
        // NETLINK_ROUTE is protocol 0, which is what no protocol means.
        let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None);
        Ok(Self { socket: socket.map_err(|error| Refusal::new("rtnetlink", error))? })
    }

    pub(crate) fn create_bridge(&mut self, name: &str) -> Result<(), Refusal> {
        let mut request = Request::new(RTM_NEWLINK, NLM_F_CREATE);
        request.link_header(DeviceIndex(0), None);
        request.attribute(IFLA_IFNAME, &c_string(name));
        request.nested(IFLA_LINKINFO, |info| info.attribute(IFLA_INFO_KIND, b"bridge\0"));
        self.send(request, name)
    }

    pub(crate) fn rename(&mut self, device: DeviceIndex, name: &str) -> Result<(), Refusal> {
        let mut request = Request::new(RTM_NEWLINK, 0);
        request.link_header(device, None);
        request.attribute(IFLA_IFNAME, &c_string(name));
        self.send(request, name)
    }

    pub(crate) fn set_up(&mut self, device: DeviceIndex, up: bool) -> Result<(), Refusal> {
        let mut request = Request::new(RTM_NEWLINK, 0);
        request.link_header(device, Some(up));
        self.send(request, &format!("device {}", device.0))
    }

    pub(crate) fn set_bridge(&mut self, device: DeviceIndex, bridge: DeviceIndex) -> Result<(), Refusal> {
        let mut request = Request::new(RTM_NEWLINK, 0);
        request.link_header(device, None);
        request.attribute(IFLA_MASTER, &bridge.0.to_ne_bytes());
        self.send(request, &format!("device {} into bridge {}", device.0, bridge.0))
    }

    pub(crate) fn add_address(&mut self, device: DeviceIndex, address: Cidr) -> Result<(), Refusal> {
        let mut request = Request::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
        request.bytes(&[AF_INET, address.prefix_bits, 0, 0]);
        request.bytes(&device.0.to_ne_bytes());
        request.attribute(IFA_LOCAL, &address.address.octets());
        request.attribute(IFA_ADDRESS, &address.address.octets());
        self.send(request, &address.to_string())
    }

    pub(crate) fn set_netem(&mut self, device: DeviceIndex, shape: Netem) -> Result<(), Refusal> {
        let mut request = Request::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE);
        request.bytes(&[0; 4]);
        for word in [device.0, 0, TC_H_ROOT, 0] {
            request.bytes(&word.to_ne_bytes());
        }
        request.attribute(TCA_KIND, b"netem\0");
        request.nested(TCA_OPTIONS, |options| {
            // struct tc_netem_qopt; its 32-bit times are in scheduler ticks, so times go into the 64-bit attributes.
            for word in [0, NETEM_QUEUE_FRAMES, loss_fraction(shape.loss_ppm), 0, 0, 0] {
                options.bytes(&word.to_ne_bytes());
            }
            options.attribute(TCA_NETEM_LATENCY64, &shape.delay_us.saturating_mul(1000).to_ne_bytes());
            options.attribute(TCA_NETEM_JITTER64, &shape.jitter_us.saturating_mul(1000).to_ne_bytes());
        });
        self.send(request, &format!("netem on device {}", device.0))
    }

    fn send(&mut self, request: Request, what: &str) -> Result<(), Refusal> {
        let refuse = |error| Refusal::new(what, error);
        rustix::net::send(&self.socket, &request.finish(), SendFlags::empty()).map_err(refuse)?;
        let mut reply = [0_u8; 4096];
        let (read, _) = rustix::net::recv(&self.socket, &mut reply, RecvFlags::empty()).map_err(refuse)?;
        verdict(&reply[..read]).map_err(|reason| Refusal::new(what, reason))
    }
}

/// Parts per million as netem's fraction of `u32::MAX`.
fn loss_fraction(ppm: u32) -> u32 {
    let scaled = u64::from(ppm.min(1_000_000)) * u64::from(u32::MAX) / 1_000_000;
    u32::try_from(scaled).unwrap_or(u32::MAX)
}

fn c_string(name: &str) -> Vec<u8> {
    name.bytes().chain([0]).collect()
}

/// Reads the acknowledgement: an error message whose code is 0.
fn verdict(reply: &[u8]) -> Result<(), String> {
    let kind = reply.get(4..6).map(|raw| u16::from_ne_bytes([raw[0], raw[1]]));
    let code = reply
        .get(HEADER_BYTES..HEADER_BYTES + 4)
        .map(|raw| i32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]));
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(std::io::Error::from_raw_os_error(-code).to_string()),
        _ => Err(format!("the kernel sent no acknowledgement but {} bytes of kind {kind:?}", reply.len())),
    }
}

/// A netlink message under construction.
#[derive(Debug)]
struct Request {
    raw: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: u16) -> Self {
        let mut raw = vec![0; HEADER_BYTES];
        raw[4..6].copy_from_slice(&kind.to_ne_bytes());
        raw[6..8].copy_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        Self { raw }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
    }

    /// struct ifinfomsg; `up` changes the device's state, `None` leaves it.
    fn link_header(&mut self, device: DeviceIndex, up: Option<bool>) {
        let (flags, change) = up.map_or((0, 0), |up| (u32::from(up) * IFF_UP, IFF_UP));
        self.bytes(&[0; 4]);
        for word in [device.0, flags, change] {
            self.bytes(&word.to_ne_bytes());
        }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |attribute| attribute.bytes(value));
    }

    /// An attribute holding whatever `fill` appends; its length counts neither the padding before nor after it.
    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.pad();
        let start = self.raw.len();
        self.bytes(&[0; 4]);
        fill(self);
        let len = self.raw.len() - start;
        self.raw[start..start + 2].copy_from_slice(&short(len).to_ne_bytes());
        self.raw[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.raw.resize(self.raw.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let len = u32::from(short(self.raw.len()));
        self.raw[..4].copy_from_slice(&len.to_ne_bytes());
        self.raw
    }
}

/// Requests are built from names and addresses of this file's callers: tens of bytes.
fn short(len: usize) -> u16 {
    u16::try_from(len).expect("a netlink request of a lab host stays far below 64 KiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_their_lengths_are_not() {
        let mut request = Request::new(RTM_NEWLINK, 0);
        request.attribute(IFLA_IFNAME, b"br0\0\0");
        let raw = request.finish();
        assert_eq!(raw.len(), HEADER_BYTES + 12);
        assert_eq!(u32::from_ne_bytes(raw[..4].try_into().unwrap()), 28);
        assert_eq!(u16::from_ne_bytes(raw[16..18].try_into().unwrap()), 9);
    }

    #[test]
    fn a_nested_attribute_counts_its_children() {
        let mut request = Request::new(RTM_NEWLINK, 0);
        request.nested(IFLA_LINKINFO, |info| info.attribute(IFLA_INFO_KIND, b"bridge\0"));
        let raw = request.finish();
        assert_eq!(u16::from_ne_bytes(raw[16..18].try_into().unwrap()), 16);
        assert_eq!(u16::from_ne_bytes(raw[20..22].try_into().unwrap()), 11);
    }

    #[test]
    fn loss_reaches_from_none_to_all() {
        assert_eq!(loss_fraction(0), 0);
        assert_eq!(loss_fraction(500_000), u32::MAX / 2);
        assert_eq!(loss_fraction(2_000_000), u32::MAX);
    }

    #[test]
    fn an_errno_in_the_reply_is_told() {
        let mut reply = [0_u8; 20];
        reply[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(verdict(&reply), Ok(()));
        reply[16..20].copy_from_slice(&(-19_i32).to_ne_bytes());
        assert!(verdict(&reply).unwrap_err().contains("No such device"));
    }
}
