//! Taking the pod's interface into the VM.
//!
//! ```text
//!   VM's card ── tap "endo0" <══ tc: every frame, both ways ══> eth0 ── CNI's network
//!                (descriptor goes to the VMM)      (same MAC and address as the VM)
//! ```
//! The redirect happens before the namespace's own stack sees a frame, so the address may stay on eth0, where CNI looks
//! for it. Why not macvtap: docs/decisions/0007.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use rustix::thread::LinkNameSpaceType;

pub(crate) const TAP: &CStr = c"endo0";
/// `ETH_P_ALL`, as the kernel has it in a tc message.
const ALL_PROTOCOLS: u16 = 3u16.to_be();
/// An ingress qdisc is always `ffff:`.
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// The pod's interface could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error("cannot enter the pod's network namespace {path}: {source}")]
    Enter { path: PathBuf, source: io::Error },
    #[error("{path} is the host's own network namespace; its interfaces are never given to a VM")]
    Own { path: PathBuf },
    #[error("cannot make a tap in the pod's network namespace: {0}; is /dev/net/tun there (modprobe tun)?")]
    Tap(io::Error),
    #[error("the pod's network namespace has no interface besides lo; did CNI run? Look at /etc/cni/net.d")]
    NoInterface,
    #[error("interface {0} of the pod has no IPv4 address; look at what your CNI plugin assigns")]
    NoAddress(String),
    #[error("cannot {doing} in the pod's network namespace: {source}")]
    Netlink { doing: &'static str, source: rtnetlink::Error },
    #[error("cannot forward packets in the pod's network namespace: {0}")]
    Forward(io::Error),
    #[error(
        "cannot translate addresses in the pod's network namespace: {0}; pods of a group need nft (Debian: apt install nftables)"
    )]
    Translate(String),
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the VM is on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) mac: Mac,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) gateway: Option<Ipv4Addr>,
}

/// An interface that is the VM's now. The tap, and with it the VM's connection, lives as long as its descriptor.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) tap: OwnedFd,
    pub(crate) interface: Interface,
}

/// Takes the interface of a pod's network namespace.
pub(crate) async fn take(netns: &Path) -> Result<Taken, NetError> {
    let (tap, handle) = enter(netns).await?;
    let result = connect(&handle).await;
    result.map(|interface| Taken { tap, interface })
}

/// Makes the tap, and a netlink connection that speaks about the namespace from outside.
pub(crate) async fn enter(netns: &Path) -> Result<(OwnedFd, Handle), NetError> {
    let runtime = tokio::runtime::Handle::current();
    let path = netns.to_owned();
    inside(netns, move || {
        let _runtime = runtime.enter();
        let tap = make_tap().map_err(NetError::Tap)?;
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetError::Enter { path, source })?;
        runtime.spawn(connection);
        Ok((tap, handle))
    })
    .await
}

/// Does something in a network namespace.
pub(crate) async fn inside<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    let path = netns.to_owned();
    // A thread of its own: it never comes back from the namespace.
    let inside = std::thread::spawn(move || {
        let fail = |source| NetError::Enter { path: path.clone(), source };
        let namespace = File::open(&path).map_err(fail)?;
        if is_own(&namespace).map_err(fail)? {
            return Err(NetError::Own { path });
        }
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Network),
        )
        .map_err(|e| fail(e.into()))?;
        work()
    });
    tokio::task::spawn_blocking(move || inside.join()).await.ok().and_then(Result::ok).unwrap_or_else(|| {
        Err(NetError::Enter { path: netns.to_owned(), source: io::Error::other("its thread failed") })
    })
}

/// Whether a namespace is this thread's.
fn is_own(namespace: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let own = std::fs::metadata("/proc/thread-self/ns/net")?;
    let other = namespace.metadata()?;
    Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
}

fn make_tap() -> io::Result<OwnedFd> {
    let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is a valid value of that C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.to_bytes()) {
        *to = from.cast_signed();
    }
    // With a header on each frame, which is how the guest's card leaves checksums and segmentation to the host.
    let flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    request.ifr_ifru.ifru_flags = flags.map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which is live and of the kernel's own layout.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tap.into())
}

async fn connect(handle: &Handle) -> Result<Interface, NetError> {
    let fail = |doing| move |source| NetError::Netlink { doing, source };
    let links = links(handle).await?;
    let tap = tap_of(&links)?;
    let (pods, address, prefix) = with_address(handle, &links, tap).await?;
    let index = pods.header.index;
    let gateway = gateway(handle, index).await?;
    let up = LinkUnspec::new_with_index(tap).up().mtu(mtu(pods)).build();
    handle.link().set(up).execute().await.map_err(fail("set the tap up"))?;
    redirect(handle, index, tap).await?;
    redirect(handle, tap, index).await?;
    Ok(Interface { mac: mac(pods).ok_or(NetError::NoInterface)?, address, prefix, gateway })
}

pub(crate) async fn links(handle: &Handle) -> Result<Vec<LinkMessage>, NetError> {
    let listed = handle.link().get().execute().try_collect().await;
    listed.map_err(|source| NetError::Netlink { doing: "list interfaces", source })
}

/// The tap's number.
pub(crate) fn tap_of(links: &[LinkMessage]) -> Result<u32, NetError> {
    let tap_name = TAP.to_string_lossy();
    Ok(links.iter().find(|l| name(l) == tap_name).ok_or(NetError::NoInterface)?.header.index)
}

/// The interface CNI has given an address: eth0, unless a network plugin names it otherwise.
pub(crate) async fn with_address<'l>(
    handle: &Handle,
    links: &'l [LinkMessage],
    tap: u32,
) -> Result<(&'l LinkMessage, Ipv4Addr, u8), NetError> {
    let is_pods = |link: &&LinkMessage| {
        !link.header.flags.contains(LinkFlags::Loopback) && link.header.index != tap && mac(link).is_some()
    };
    let mut without = None;
    for link in links.iter().filter(is_pods) {
        match address(handle, link.header.index).await? {
            Some((address, prefix)) => return Ok((link, address, prefix)),
            None => without = without.or(Some(name(link).to_owned())),
        }
    }
    Err(without.map_or(NetError::NoInterface, NetError::NoAddress))
}

/// Has every frame that arrives at one interface leave by the other. What an earlier VM of this pod left is replaced.
async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<(), NetError> {
    let fail = |doing| move |source| NetError::Netlink { doing, source };
    let from = from.cast_signed();
    let mut old = handle.qdisc().del(from);
    old.message_mut().header.parent = TcHandle::INGRESS;
    old.message_mut().header.handle = TcHandle::from(INGRESS_HANDLE);
    // There is none the first time.
    let _ = old.execute().await;
    handle.qdisc().add(from).ingress().execute().await.map_err(fail("add an ingress qdisc"))?;
    let filter = handle.traffic_filter(from).add().parent(INGRESS_HANDLE).protocol(ALL_PROTOCOLS);
    let filter = filter.redirect(to).map_err(fail("describe a redirect"))?;
    filter
        .execute()
        .await
        .map_err(fail("redirect the interface (kernel options NET_CLS_U32, NET_ACT_MIRRED)"))
}

fn name(link: &LinkMessage) -> &str {
    let names = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    names.unwrap_or_default()
}

fn mac(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

pub(crate) fn mtu(link: &LinkMessage) -> u32 {
    let mtu = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or(1500)
}

async fn address(handle: &Handle, index: u32) -> Result<Option<(Ipv4Addr, u8)>, NetError> {
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    let fail = |source| NetError::Netlink { doing: "list addresses", source };
    while let Some(message) = addresses.try_next().await.map_err(fail)? {
        let found = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        if let Some(address) = found {
            return Ok(Some((address, message.header.prefix_len)));
        }
    }
    Ok(None)
}

/// The next hop of the default route over that interface.
async fn gateway(handle: &Handle, index: u32) -> Result<Option<Ipv4Addr>, NetError> {
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let fail = |source| NetError::Netlink { doing: "list routes", source };
    let mut found = None;
    while let Some(route) = routes.try_next().await.map_err(fail)? {
        let over = route.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(oif) if *oif == index));
        let hop = route.attributes.iter().find_map(|a| match a {
            RouteAttribute::Gateway(RouteAddress::Inet(hop)) => Some(*hop),
            _ => None,
        });
        if over && route.header.destination_prefix_length == 0 {
            found = found.or(hop);
        }
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;

    use rustix::thread::UnshareFlags;

    use super::*;

    /// An interface with address and route, as CNI leaves it.
    pub(crate) const LIKE_CNI: &[&str] = &[
        "link add eth0 address 02:00:00:00:00:05 type veth peer name outside",
        "link set eth0 mtu 1400 up",
        "link set outside up",
        "addr add 10.88.0.5/16 dev eth0",
        "route add default via 10.88.0.1",
    ];

    fn ip(line: &str) {
        let done = Command::new("ip").args(line.split(' ')).status().unwrap();
        assert!(done.success(), "ip {line}");
    }

    /// A namespace like a pod's, kept by a bind mount; `None` without the right to make one.
    pub(crate) fn pod(lines: &'static [&str]) -> Option<Pod> {
        let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let at = file.to_path_buf();
        let inside = std::thread::spawn(move || {
            // SAFETY: the network namespace of a thread is nothing memory or descriptors depend on.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.ok()?;
            lines.iter().for_each(|line| ip(line));
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &at).ok()
        });
        if inside.join().unwrap().is_none() {
            eprintln!("SKIPPED: not root");
            return None;
        }
        Some(Pod(file))
    }

    pub(crate) struct Pod(pub(crate) tempfile::TempPath);

    impl Drop for Pod {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&*self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }

    #[tokio::test]
    async fn the_pods_interface_becomes_the_vms_again_and_again() {
        let Some(netns) = pod(LIKE_CNI) else { return };
        for _ in 0..2 {
            let taken = take(&netns.0).await.unwrap();
            assert_eq!(taken.interface.mac, Mac([2, 0, 0, 0, 0, 5]));
            assert_eq!((taken.interface.address, taken.interface.prefix), (Ipv4Addr::new(10, 88, 0, 5), 16));
            assert_eq!(taken.interface.gateway, Some(Ipv4Addr::new(10, 88, 0, 1)));
            let mut tc = Command::new("nsenter");
            tc.arg(format!("--net={}", netns.0.display()));
            let shown = tc.args(["tc", "filter", "show", "dev", "eth0", "ingress"]).output().unwrap();
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            assert!(shown.contains("mirred (Egress Redirect to device endo0)"), "{shown}");
        }
    }

    #[tokio::test]
    async fn a_pod_without_an_address_is_told_where_to_look() {
        let Some(netns) = pod(&["link add eth0 type veth peer name outside"]) else { return };
        let refused = take(&netns.0).await.unwrap_err().to_string();
        assert!(refused.contains("has no IPv4 address") && refused.contains("CNI"), "{refused}");
        let own = take(Path::new("/proc/self/ns/net")).await.unwrap_err().to_string();
        assert!(own.contains("host's own"), "{own}");
        let missing = take(Path::new("/nonexistent/netns")).await.unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/netns"), "{missing}");
    }
}
