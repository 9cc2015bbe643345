//! What a lab host does once at boot, before it takes orders.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Where the plan lies in the host's initramfs.
pub const PLAN_PATH: &str = "/lab/boot.json";

/// Name of the virtio-serial port that carries orders.
pub const CONTROL_PORT: &str = "mycelium.lab.control";

/// UDP port on which every agent echoes datagrams, so that hosts can ping each other without raw sockets.
pub const ECHO_PORT: u16 = 7;

/// Everything the agent sets up: modules first, then NICs, taps and bridges, in the order listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPlan {
    /// Host name.
    pub name: String,
    /// Kernel modules as paths in the initramfs, dependencies before dependants.
    pub modules: Vec<String>,
    /// NICs to name and address.
    pub nics: Vec<NicPlan>,
    /// Tap devices to create for guests.
    pub taps: Vec<String>,
    /// Bridges to create, after NICs and taps exist.
    pub bridges: Vec<BridgePlan>,
}

/// One NIC of the host, found by its MAC address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicPlan {
    /// Lower-case hex with colons, as `/sys/class/net/*/address` spells it.
    pub mac: String,
    /// The name it gets.
    pub name: String,
    /// Its addresses; none for a bridge port.
    pub addresses: Vec<Cidr>,
}

/// One bridge of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgePlan {
    /// The name it gets.
    pub name: String,
    /// Names of NICs and taps that become its ports.
    pub ports: Vec<String>,
    /// Its own addresses, if the host itself shall be reachable there.
    pub addresses: Vec<Cidr>,
}

/// An IPv4 address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cidr {
    /// The interface's address.
    pub address: Ipv4Addr,
    /// Prefix length in bits, 0 to 32.
    pub prefix_bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}
