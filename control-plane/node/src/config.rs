//! What a daemon is started with.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The daemon's settings.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Folder for the key, what is known of the network, and the VMs.
    pub folder: PathBuf,
    /// The node's name in the network.
    pub name: String,
    /// Where other nodes' daemons come in (UDP).
    pub listen: SocketAddr,
    /// Where others reach it, if that differs.
    pub advertise: Vec<SocketAddr>,
    /// Addresses of this node that replication uses, one path each; none means where it listens.
    pub paths: Vec<IpAddr>,
    /// UDP payload of the paths.
    pub mtu: u16,
    /// Silence of a VM's active below this, in milliseconds, is never suspect to a replica here.
    pub detect_ms: u64,
    /// The API's Unix socket; the VMs' sockets are made beside it.
    pub api: PathBuf,
    /// The VMM.
    pub endophyte: PathBuf,
}

impl NodeConfig {
    /// The addresses a passive listens on.
    pub(crate) fn path_addrs(&self) -> Vec<SocketAddr> {
        if self.paths.is_empty() {
            return vec![SocketAddr::new(self.listen.ip(), 0)];
        }
        self.paths.iter().map(|ip| SocketAddr::new(*ip, 0)).collect()
    }
}
