//! The network between lab hosts: bridges and taps in a namespace of the calling thread.
//!
//! ```text
//!   this namespace        client0 10.77.0.1/24      mgmt0 10.77.1.1/24      path0 path1 ..
//!                           |        |                |        |              |     |
//!   host h's NIC          client   client            mgmt     mgmt          path0  path0
//!   inside host h         port of br0 with tap vm0   10.77.1.(10+h)         10.77.(16+p).(10+h)
//! ```
//!
//! The namespace plays the clients' side and holds whatever belongs to no host (a client, an arbiter). It vanishes, with
//! everything in it, when the last thread and process in it ends; nothing outside it is touched.

mod ip;
mod namespace;

use std::net::Ipv4Addr;
use std::path::Path;

use lab_agent::plan::{BridgePlan, Cidr};

use crate::LabError;
use crate::host::{HostConfig, Mac, Nic, NicBackend};
use crate::limits::{HOSTS_MAX, PATHS_MAX};

pub use namespace::PrivateNamespace;

/// Name of the bridge inside each host that joins its client NIC and its guest's tap.
pub const GUEST_BRIDGE: &str = "br0";

/// Name of the tap inside each host to which a VMM attaches its guest.
pub const GUEST_TAP: &str = "vm0";

const PREFIX_BITS: u8 = 24;
const FIRST_HOST: u8 = 10;
const FIRST_PATH_SUBNET: u8 = 16;

/// What network to lay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabNetConfig {
    /// Hosts to lay wires for, 1 to [`HOSTS_MAX`].
    pub hosts: usize,
    /// Replication paths between all hosts, 0 to [`PATHS_MAX`].
    pub paths: usize,
}

impl Default for LabNetConfig {
    fn default() -> Self {
        Self { hosts: 2, paths: 2 }
    }
}

/// One of a host's NICs, seen from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wire {
    /// The guests' L2, shared with the clients.
    Client,
    /// Where the arbiter and whoever steers the test are reached.
    Management,
    /// A replication path by its number.
    Path(usize),
}

impl Wire {
    /// Name of the NIC inside the host.
    pub fn nic_name(self) -> String {
        match self {
            Self::Client => "client".to_owned(),
            Self::Management => "mgmt".to_owned(),
            Self::Path(path) => format!("path{path}"),
        }
    }

    fn bridge_name(self) -> String {
        match self {
            Self::Path(_) => self.nic_name(),
            Self::Client | Self::Management => format!("{}0", self.nic_name()),
        }
    }

    fn subnet(self) -> u8 {
        match self {
            Self::Client => 0,
            Self::Management => 1,
            Self::Path(path) => FIRST_PATH_SUBNET + small(path),
        }
    }

    fn address(self, last: u8) -> Cidr {
        Cidr { address: Ipv4Addr::new(10, 77, self.subnet(), last), prefix_bits: PREFIX_BITS }
    }
}

/// A laid network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabNet {
    config: LabNetConfig,
}

impl LabNet {
    /// Lays bridges and taps in a private namespace that the calling thread is in.
    ///
    /// # Errors
    /// [`LabError::NotPrivate`], [`LabError::Config`] beyond the limits, [`LabError::Command`] when a step fails.
    pub fn create(namespace: &PrivateNamespace, config: &LabNetConfig) -> Result<Self, LabError> {
        check("number of hosts", config.hosts, 1, HOSTS_MAX)?;
        check("number of paths", config.paths, 0, PATHS_MAX)?;
        namespace.require_here()?;
        let net = Self { config: config.clone() };
        net.wires().try_for_each(|wire| net.lay(wire))?;
        Ok(net)
    }

    /// All wires every host has.
    pub fn wires(&self) -> impl Iterator<Item = Wire> + use<> {
        [Wire::Client, Wire::Management].into_iter().chain((0..self.config.paths).map(Wire::Path))
    }

    /// This namespace's own address on a wire; only the client and management wires have one.
    pub fn own_address(&self, wire: Wire) -> Ipv4Addr {
        wire.address(1).address
    }

    /// A host's address on a path or the management wire.
    pub fn host_address(&self, host: usize, wire: Wire) -> Ipv4Addr {
        wire.address(FIRST_HOST + small(host)).address
    }

    /// An address on the clients' L2 for the `number`th guest.
    pub fn guest_address(&self, number: usize) -> Cidr {
        Wire::Client.address(100 + small(number))
    }

    /// Takes one of a host's wires up or down, as pulling its cable would.
    ///
    /// # Errors
    /// [`LabError::Command`] when `ip` fails.
    pub fn set_wire(&self, host: usize, wire: Wire, up: bool) -> Result<(), LabError> {
        ip::run(&format!("link set {} {}", tap_name(host, wire), if up { "up" } else { "down" }))
    }

    /// Takes all of a host's wires up or down.
    ///
    /// # Errors
    /// [`LabError::Command`] when `ip` fails.
    pub fn set_all_wires(&self, host: usize, up: bool) -> Result<(), LabError> {
        self.wires().try_for_each(|wire| self.set_wire(host, wire, up))
    }

    /// The config of a host on this network: its NICs with their addresses, and a bridge that joins its guest's tap to the
    /// clients' L2. Logs go below `run_dir`.
    pub fn host_config(&self, host: usize, run_dir: &Path) -> HostConfig {
        let mut config = HostConfig::new(format!("h{host}"), run_dir);
        config.nics = self.wires().map(|wire| self.nic(host, wire)).collect();
        config.taps = vec![GUEST_TAP.to_owned()];
        let ports = vec![Wire::Client.nic_name(), GUEST_TAP.to_owned()];
        config.bridges = vec![BridgePlan { name: GUEST_BRIDGE.to_owned(), ports, addresses: Vec::new() }];
        config
    }

    fn nic(&self, host: usize, wire: Wire) -> Nic {
        let own = wire.address(FIRST_HOST + small(host));
        Nic {
            name: wire.nic_name(),
            mac: Mac([0x02, 0x4c, 0x41, 0x42, small(host), wire.subnet()]),
            addresses: if wire == Wire::Client { Vec::new() } else { vec![own] },
            backend: NicBackend::Tap { device: tap_name(host, wire) },
        }
    }

    fn lay(&self, wire: Wire) -> Result<(), LabError> {
        let bridge = wire.bridge_name();
        ip::run(&format!("link add {bridge} type bridge mcast_snooping 0"))?;
        if !matches!(wire, Wire::Path(_)) {
            ip::run(&format!("address add {} dev {bridge}", wire.address(1)))?;
        }
        ip::run(&format!("link set {bridge} up"))?;
        for tap in (0..self.config.hosts).map(|host| tap_name(host, wire)) {
            ip::run(&format!("tuntap add {tap} mode tap"))?;
            ip::run(&format!("link set {tap} master {bridge} up"))?;
        }
        Ok(())
    }
}

fn tap_name(host: usize, wire: Wire) -> String {
    format!("h{host}-{}", wire.nic_name())
}

/// Numbers of hosts, paths and guests were checked against limits far below 100.
fn small(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn check(what: &'static str, asked: usize, least: usize, most: usize) -> Result<(), LabError> {
    if (least..=most).contains(&asked) {
        return Ok(());
    }
    Err(LabError::Config { what, asked: asked.to_string(), bound: format!("must be {least} to {most}") })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn net() -> LabNet {
        LabNet { config: LabNetConfig { hosts: HOSTS_MAX, paths: PATHS_MAX } }
    }

    #[test]
    fn no_two_nics_share_a_mac_an_address_or_a_tap() {
        let nics: Vec<_> =
            (0..HOSTS_MAX).flat_map(|host| net().host_config(host, Path::new("/run")).nics).collect();
        let macs: BTreeSet<_> = nics.iter().map(|nic| nic.mac.to_string()).collect();
        let taps: BTreeSet<_> = nics.iter().map(|nic| format!("{:?}", nic.backend)).collect();
        let addresses: Vec<_> = nics.iter().flat_map(|nic| &nic.addresses).map(Cidr::to_string).collect();
        assert_eq!((macs.len(), taps.len()), (nics.len(), nics.len()));
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len());
    }

    #[test]
    fn device_names_fit_the_kernels_limit() {
        let longest = tap_name(HOSTS_MAX - 1, Wire::Client);
        assert!(longest.len() < 16, "{longest}");
    }

    #[test]
    fn a_network_is_laid_only_where_it_was_allowed() {
        let elsewhere = PrivateNamespace { identity: "net:[0]".into() };
        assert!(matches!(LabNet::create(&elsewhere, &LabNetConfig::default()), Err(LabError::NotPrivate(_))));
        let none = LabNetConfig { hosts: 0, paths: 2 };
        assert!(matches!(
            LabNet::create(&elsewhere, &none),
            Err(LabError::Config { what: "number of hosts", .. })
        ));
    }
}
